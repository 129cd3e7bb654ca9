import pytest
import torch
from torch.utils import _pytree as pytree

from pyg_mmrec.nn.backbones import GRCN

MASK = torch.arange(20) % 3 > 0


def shares(score, edges):
    """Softmax of each row over its edges, 0 in rows without any."""
    exp = score.exp() * edges
    total = exp.sum(1, keepdim=True)
    return exp / (total + (total == 0))


def unit(x):
    square = x.square().sum(1, keepdim=True)
    return x / (square + (square == 0)).sqrt()


def dense_vectors(backbone, data):
    """Final vectors with matrices of users by items."""
    liked = torch.zeros(backbone.num_users, backbone.num_items).double()
    liked[tuple(data["user", "interacts", "item"].edge_index)] = 1
    users, items, to_user, to_item = [], [], [], []
    for m, name in enumerate(backbone.modalities):
        has = data[name].get("mask", torch.ones(backbone.num_items)).double()
        edges = liked * has
        f = backbone.projection[name](data[name].x.double())
        f = unit(torch.where(f > 0, f, 0.01 * f)) * has[:, None]
        p = unit(backbone.preference[name])
        for _ in range(backbone.num_routings):
            message = shares(p @ f.t(), edges) @ f if backbone.routing == "attention" else 0
            p = unit(p + message)
        by_user, by_item = shares(p @ f.t(), edges), shares(f @ p.t(), edges.t())
        users.append(p + by_user @ f)
        items.append(f + by_item @ p)
        to_user.append(by_user * backbone.item_confidence[:, m])
        to_item.append(by_item * backbone.user_confidence[:, m])
    to_user = torch.stack(to_user).max(0).values.clamp(min=0)
    to_item = torch.stack(to_item).max(0).values.clamp(min=0)
    e = unit(backbone.user_embedding.weight), unit(backbone.item_embedding.weight)
    e1 = to_user @ e[1], to_item @ e[0]
    e2 = to_user @ e1[1], to_item @ e1[0]
    user = torch.cat([e[0] + e1[0] + e2[0], *users], 1)
    return user, torch.cat([e[1] + e1[1] + e2[1], *items], 1)


def loss_by_hand(backbone, user, item, batch, image):
    bpr, squares, columns = 0.0, 0.0, backbone.user_embedding.embedding_dim
    size = batch.user.numel()
    for u, i, j in zip(batch.user, batch.positive, batch.negative, strict=True):
        bpr = bpr - (user[u] @ (item[i] - item[j])).sigmoid().log() / size
        for k in (i, j):
            rows = backbone.user_embedding.weight[u], backbone.item_embedding.weight[k]
            squares = squares + sum(x.square().sum() for x in rows) / (2 * size * columns)
        for name in backbone.modalities:
            squares = squares + backbone.preference[name][u].square().sum() / (size * columns)
    if image is not None:
        squares = squares + backbone.preference[image].square().mean()
    return {"bpr": bpr, "regularization": backbone.reg_weight * squares}


@pytest.mark.parametrize(
    ("channels", "masks", "options", "image"),
    [
        ({"image": 6, "text": 5}, {}, {}, "image"),
        ({"image": 6, "text": 5}, {}, {"preset": "mmrec"}, "image"),
        ({"image": 6, "text": 5}, {}, {"num_routings": 1}, "image"),
        ({"image": 6, "text": 5}, {}, {"modalities": ["text", "image"]}, "text"),
        ({"image": 6, "text": 5}, {"text": MASK}, {}, "image"),
        ({"image": 6, "text": 5}, {"text": MASK, "image": ~MASK}, {}, "image"),
        ({"image": 6, "text": 5}, {"text": MASK, "image": MASK}, {"preset": "mmrec"}, "image"),
        ({"image": 6}, {}, {}, "image"),
        ({"text": 6}, {}, {}, None),
        ({"text": 6}, {}, {"preset": "mmrec"}, None),
        ({"text": 6, "image": 5}, {}, {"modalities": ["text"]}, None),
        ({"audio": 4}, {"audio": MASK}, {}, "audio"),
        ({"video": 4, "audio": 3, "text": 5}, {"audio": MASK}, {}, "text"),
    ],
)
def test_equals_dense_reference(make_data, sample, channels, masks, options, image):
    data = make_data(masks=masks, **channels)
    user, item = data["user", "interacts", "item"].edge_index
    edge_index = torch.stack([user, item])[:, (user != 2) & (item != 4)]  # leaves two alone
    data["user", "interacts", "item"].edge_index = edge_index
    torch.manual_seed(0)
    backbone = GRCN.from_data(data, embedding_dim=8, reg_weight=0.1, **options).double()
    graph = backbone.graph(data)
    graph = graph.replace(x=pytree.tree_map(torch.Tensor.double, graph.x))
    stages, batch = backbone(graph), sample(data, 30)
    user, item = dense_vectors(backbone, data)
    torch.testing.assert_close(stages.output["user"], user)
    torch.testing.assert_close(stages.output["item"], item)

    loss = backbone.loss(stages, batch)
    expected = loss_by_hand(backbone, user, item, batch, image)
    torch.testing.assert_close(loss, expected)
    parameters = list(backbone.parameters())
    found = torch.autograd.grad(sum(loss.values()), parameters)
    wanted = torch.autograd.grad(sum(expected.values()), parameters)
    for (name, _), x, y in zip(backbone.named_parameters(), found, wanted, strict=True):
        torch.testing.assert_close(x, y, msg=name)
        assert x.count_nonzero(), name


def test_an_item_that_lacks_a_modality_neither_sends_nor_receives(make_data):
    data = make_data(masks={"text": MASK}, image=6, text=5)
    torch.manual_seed(0)
    backbone = GRCN.from_data(data, embedding_dim=8)
    graph = backbone.graph(data)
    stages = backbone(graph)
    assert stages.modality["text"][~MASK].eq(0).all()
    assert stages.hidden["item/content"][~MASK, 8:].eq(0).all()
    assert stages.hidden["item/content"][MASK, 8:].ne(0).any(1).all()
    noisy = graph.x["text"].masked_fill(~MASK[:, None], 100.0)
    other = backbone(graph.replace(x={**graph.x, "text": noisy}))
    assert torch.equal(other.output["user"], stages.output["user"])


def test_users_and_items_start_as_one_table(make_data):
    data = make_data(num_users=4000, num_items=1000, image=6)
    torch.manual_seed(0)
    backbone = GRCN.from_data(data, embedding_dim=16)
    for table in (backbone.user_embedding.weight, backbone.item_embedding.weight):
        assert table.std().item() == pytest.approx((2 / 5016) ** 0.5, rel=0.05)
    for table in (backbone.user_confidence, backbone.item_confidence):
        assert table.std().item() == pytest.approx((2 / 5001) ** 0.5, rel=0.1)
    assert backbone.preference["image"].std().item() == pytest.approx((2 / 4016) ** 0.5, rel=0.05)
    assert backbone.projection["image"].bias.eq(0).all()


def test_preset_and_sizes(tiny):
    assert GRCN.from_data(tiny).routing == "attention"
    backbone = GRCN.from_data(tiny, preset="mmrec", embedding_dim=8)
    assert backbone.routing == "renormalise"
    assert backbone.sites == {"user/content": 16, "item/content": 16}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_dim": 0}, r"'embedding_dim' needs to be a positive integer \(got 0\)"),
        ({"num_routings": 0}, "'num_routings' needs to be a positive integer"),
        ({"reg_weight": -1.0}, "'reg_weight' needs to be a number of 0 or more"),
        (
            {"routing": "none"},
            r"'routing' needs to be one of \['attention', 'renormalise'\] \(got 'none'\)",
        ),
        ({"modalities": ["audio"]}, "'modalities' names 'audio', but the data have"),
    ],
)
def test_bad_options_are_refused(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        GRCN.from_data(tiny, **options)


def test_features_are_needed():
    with pytest.raises(ValueError, match=r"GRCN reads the features of \['text'\], which the data"):
        GRCN(3, 4, {"image": 2}, modalities=["image", "text"])
