import pytest
import torch
from torch.utils import _pytree as pytree

from pyg_mmrec.nn.backbones import MMGCN

MASK = torch.arange(20) % 3 > 0


def lrelu(x):
    return torch.where(x > 0, x, 0.01 * x)


def unit(x):
    square = x.square().sum(1, keepdim=True)
    return x / (square + (square == 0)).sqrt()


def linear(x, layer):
    return x @ layer.weight.t() + layer.bias


def dense_vectors(backbone, data, concat=True):
    """Final vectors with one square matrix over users and items."""
    sizes = [backbone.num_users, backbone.num_items]
    identity = torch.cat([backbone.user_embedding.weight, backbone.item_embedding.weight])
    liked = torch.zeros(sizes).double()
    liked[tuple(data["user", "interacts", "item"].edge_index)] = 1
    total = 0
    for name in backbone.modalities:
        has = data[name].get("mask", torch.ones(backbone.num_items)).double()
        square = torch.zeros(sum(sizes), sum(sizes)).double()
        square[: sizes[0], sizes[0] :] = liked * has
        square = square + square.t()
        mean = square / square.sum(1, keepdim=True).clamp(min=1)
        f = data[name].x.double()
        if name in backbone.projection:
            f = linear(f, backbone.projection[name])
        x = unit(torch.cat([backbone.preference[name], f * has[:, None]]))
        for conv in backbone.convs[name]:
            h = lrelu(mean @ x @ conv.lin_neighbor.weight.t())
            x_hat = lrelu(linear(x, conv.lin_self)) + identity
            if concat:
                x = lrelu(linear(torch.cat([h, x_hat], 1), conv.lin_combined))
            else:
                x = lrelu(h @ conv.lin_combined.weight.t() + x_hat)
        total = total + x
    return (total / len(backbone.modalities)).split(sizes)


def loss_by_hand(backbone, user, item, batch, image):
    bpr, squares, columns = 0.0, 0.0, backbone.user_embedding.embedding_dim
    size = batch.user.numel()
    for u, i, j in zip(batch.user, batch.positive, batch.negative, strict=True):
        bpr = bpr - (user[u] @ (item[i] - item[j])).sigmoid().log() / size
        for k in (i, j):
            rows = backbone.user_embedding.weight[u], backbone.item_embedding.weight[k]
            squares = squares + sum(x.square().sum() for x in rows) / (2 * size * columns)
    if image is not None:
        squares = squares + backbone.preference[image].square().mean()
    return {"bpr": bpr, "regularization": backbone.reg_weight * squares}


@pytest.mark.parametrize(
    ("channels", "masks", "options", "image"),
    [
        ({"image": 6, "text": 5}, {}, {"projected": {"image": 7}}, "image"),
        ({"image": 6, "text": 5}, {}, {"projected": {"image": 7}, "concat": False}, "image"),
        ({"image": 6, "text": 5}, {}, {"projected": {"text": 7}}, "image"),
        ({"image": 6, "text": 5}, {}, {"projected": {}, "preset": "mmrec"}, "image"),
        ({"image": 6, "text": 5}, {}, {"projected": {"text": 3, "image": 9}}, "image"),
        ({"image": 6, "text": 5}, {}, {"modalities": ["text", "image"]}, "text"),
        ({"image": 6, "text": 5}, {"text": MASK}, {"projected": {"image": 7}}, "image"),
        ({"image": 6, "text": 5}, {"text": MASK, "image": ~MASK}, {"concat": False}, "image"),
        ({"image": 6}, {}, {}, "image"),
        ({"text": 6}, {}, {}, None),
        ({"text": 6}, {}, {"projected": {"text": 7}}, None),
        ({"text": 6, "image": 5}, {}, {"modalities": ["text"], "preset": "mmrec"}, None),
        ({"audio": 4}, {"audio": MASK}, {"projected": {"audio": 5}}, "audio"),
        ({"video": 4, "audio": 3, "text": 5}, {"audio": MASK}, {}, "text"),
    ],
)
def test_equals_dense_reference(make_data, sample, channels, masks, options, image):
    data = make_data(masks=masks, **channels)
    user, item = data["user", "interacts", "item"].edge_index
    edge_index = torch.stack([user, item])[:, (user != 2) & (item != 4)]  # leaves two alone
    data["user", "interacts", "item"].edge_index = edge_index
    torch.manual_seed(0)
    backbone = MMGCN.from_data(data, embedding_dim=8, reg_weight=0.1, **options).double()
    for parameter in backbone.requires_grad_().parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, std=0.1)
    graph = backbone.graph(data)
    graph = graph.replace(x=pytree.tree_map(torch.Tensor.double, graph.x))
    stages, batch = backbone(graph), sample(data, 30)
    user, item = dense_vectors(backbone, data, options.get("concat", True))
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


def test_sites_are_preferences_and_features_before_any_normalisation(make_data):
    data = make_data(masks={"text": MASK}, image=6, text=5)
    backbone = MMGCN.from_data(data, embedding_dim=8, projected={"image": 7})
    assert list(backbone.sites.items()) == [
        ("user/image", 7), ("item/image", 7), ("user/text", 5), ("item/text", 5)
    ]  # fmt: skip
    stages = backbone(backbone.graph(data))
    assert list(stages.hidden) == list(backbone.sites)
    image = backbone.projection["image"](data["image"].x)
    torch.testing.assert_close(stages.hidden["item/image"], image)
    torch.testing.assert_close(stages.hidden["item/text"], data["text"].x * MASK[:, None])
    assert torch.equal(stages.hidden["user/text"], backbone.preference["text"])
    assert set(backbone.content_parameters()) == set(backbone.projection["image"].parameters())


def test_features_of_items_that_lack_a_modality_are_not_read(make_data):
    data = make_data(masks={"text": MASK}, image=6, text=5)
    torch.manual_seed(0)
    backbone = MMGCN.from_data(data, embedding_dim=8, projected={"image": 7, "text": 6})
    torch.nn.init.ones_(backbone.projection["text"].bias)
    graph = backbone.graph(data)
    stages = backbone(graph)
    assert stages.modality["text"][~MASK].eq(0).all()
    noisy = graph.x["text"].masked_fill(~MASK[:, None], 100.0)
    other = backbone(graph.replace(x={**graph.x, "text": noisy}))
    for kind in ("user", "item"):
        assert torch.equal(other.output[kind], stages.output[kind])


def test_tables_start_xavier_normal_users_and_items_as_one(make_data):
    data = make_data(num_users=4000, num_items=1000, image=6)
    torch.manual_seed(0)
    backbone = MMGCN.from_data(data, embedding_dim=16, projected={"image": 20})
    for table in (backbone.user_embedding.weight, backbone.item_embedding.weight):
        assert table.std().item() == pytest.approx((2 / 5016) ** 0.5, rel=0.05)
    assert backbone.preference["image"].std().item() == pytest.approx((2 / 4020) ** 0.5, rel=0.05)
    bias = backbone.projection["image"].bias
    assert bias.abs().max() <= 6**-0.5 and bias.std() > 6**-0.5 / 3


def untrained(backbone):
    return {name for name, x in backbone.named_parameters() if not x.requires_grad}


def test_preset_leaves_the_tables_as_they_were_drawn(tiny):
    identity = {"user_embedding.weight", "item_embedding.weight"}
    preference = {"preference.image", "preference.text"}
    assert untrained(MMGCN.from_data(tiny)) == set()
    backbone = MMGCN.from_data(tiny, preset="mmrec")
    assert untrained(backbone) == identity | preference <= set(backbone.state_dict())
    assert untrained(MMGCN.from_data(tiny, train_preference=False)) == preference
    assert untrained(MMGCN.from_data(tiny, preset="mmrec", train_preference=True)) == identity


@pytest.mark.parametrize(
    ("names", "modalities", "projected"),
    [
        (["text", "image"], None, {"image": 256}),
        (["text", "image"], ["text", "image"], {"text": 256}),
        (["text", "image"], ["text"], {}),
        (["text", "video"], None, {"text": 256}),
        (["audio"], None, {"audio": 256}),
        (["text"], None, {}),
    ],
)
def test_what_plays_image_is_projected(names, modalities, projected):
    backbone = MMGCN(3, 4, dict.fromkeys(names, 2), modalities=modalities)
    assert backbone.projected == projected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_dim": 0}, r"'embedding_dim' needs to be a positive integer \(got 0\)"),
        ({"reg_weight": -1.0}, "'reg_weight' needs to be a number of 0 or more"),
        ({"projected": {"image": 0}}, r"projected\['image'\]' needs to be a positive integer"),
        (
            {"projected": {"audio": 8}},
            r"'projected' names 'audio', but the modalities are \['image', 'text'\]",
        ),
        ({"modalities": ["audio"]}, "'modalities' names 'audio', but the data have"),
    ],
)
def test_bad_options_are_refused(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        MMGCN.from_data(tiny, **options)


def test_features_are_needed():
    with pytest.raises(ValueError, match=r"MMGCN reads the features of \['text'\], which the data"):
        MMGCN(3, 4, {"image": 2}, modalities=["image", "text"])
