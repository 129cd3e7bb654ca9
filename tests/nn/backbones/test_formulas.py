"""Backbones against their formulas, written down with dense matrices."""

import pytest
import torch

from pyg_mmrec.nn.backbones import (
    BM3,
    BPRMF,
    LATTICE,
    VLATTICE,
    LayerGCN,
    SelfCF,
    Triplets,
    VLightGCN,
)

HAS_TEXT = torch.arange(20) % 3 > 0
HAS_IMAGE = torch.arange(20) % 4 > 0


def unit(x):
    norm = x.norm(dim=1, keepdim=True)
    return x / norm.masked_fill(norm == 0, 1)


def cosine(x, y):
    return (unit(x) * unit(y)).sum(1)


def interactions(data):
    liked = torch.zeros(data["user"].num_nodes, data["item"].num_nodes)
    liked[tuple(data["user", "interacts", "item"].edge_index)] = 1
    return liked


def square(to_item, to_user):
    """One matrix over users and items; rows are targets."""
    n, m = to_item.shape
    return torch.cat(
        [
            torch.cat([torch.zeros(n, n), to_user], 1),
            torch.cat([to_item.t(), torch.zeros(m, m)], 1),
        ]
    )


def symmetric(data):
    liked = interactions(data)
    a = liked / liked.sum(1).clamp(min=1e-7).sqrt()[:, None] / liked.sum(0).clamp(min=1e-7).sqrt()
    return square(a, a)


def layers(a, x, count):
    found = [x]
    for _ in range(count):
        found.append(a @ found[-1])
    return found


def light(a, user, item, count):
    mean = torch.stack(layers(a, torch.cat([user, item]), count)).mean(0)
    return mean.split([user.size(0), item.size(0)])


def tables(backbone):
    return backbone.user_embedding.weight, backbone.item_embedding.weight


def has(name, data):
    return data[name].get("mask", torch.ones(data["item"].num_nodes, dtype=torch.bool))


def projected(backbone, data):
    return {
        name: backbone.projection[name](data[name].x) * has(name, data)[:, None]
        for name in backbone.modalities
    }


def knn(x, k, present):
    similarity = unit(x) @ unit(x).t()
    candidates = similarity.detach().masked_fill(~present, -9)
    chosen = torch.zeros_like(similarity).scatter(1, candidates.topk(k).indices, 1)
    return similarity * chosen * present[:, None] * present


def normalized(s):
    rows = s.sum(1)
    root = torch.where(rows > 0, rows, 1).sqrt()
    return s / root[:, None] / root * (rows > 0) * (rows > 0)[:, None]


def mixed(parts, backbone, data):
    """Row by row, over the modalities that the item has."""
    share = backbone.modality_logits.softmax(0) * torch.stack([has(m, data) for m in parts], 1)
    share = share / share.sum(1, keepdim=True).clamp(min=1e-30)
    return sum(share[:, i : i + 1] * part for i, part in enumerate(parts.values()))


def original(backbone, data):
    parts = {m: normalized(knn(data[m].x, backbone.k, has(m, data))) for m in backbone.modalities}
    return mixed(parts, backbone, data)


def bpr(user, item, batch, epsilon=0.0):
    u, i, j = batch.user, batch.positive, batch.negative
    return -((user[u] * (item[i] - item[j])).sum(1).sigmoid() + epsilon).log()


def squares(user, item, batch):
    return sum(
        x.square().sum() for x in (user[batch.user], item[batch.positive], item[batch.negative])
    )


def bprmf(backbone, data, batch):
    user, item = tables(backbone)
    rows = user[batch.user], item[batch.positive], item[batch.negative]
    norms = sum(x.norm() for x in rows) / batch.user.numel()
    return user @ item.t(), bpr(user, item, batch, 1e-10).mean() + backbone.reg_weight * norms


def layergcn(backbone, data, batch):
    start, a = torch.cat(tables(backbone)), symmetric(data)
    x, total = start, 0
    for _ in range(backbone.num_layers):
        x = a @ x
        x = cosine(x, start)[:, None] * x
        total = total + x
    user, item = total.split([backbone.num_users, backbone.num_items])
    penalty = 0.5 * backbone.reg_weight * squares(*tables(backbone), batch)
    return user @ item.t(), bpr(user, item, batch).sum() + penalty


def selfcf(backbone, data, batch):
    user, item = light(symmetric(data), *tables(backbone), backbone.propagation.num_layers)
    h = backbone.predictor
    scores = h(user) @ item.t() + user @ h(item).t()
    u, i = user[batch.user], item[batch.positive]
    loss = -0.5 * (cosine(h(u), i.detach()).mean() + cosine(h(i), u.detach()).mean())
    return scores, loss + 0.5 * backbone.reg_weight * (u.square().sum() + i.square().sum())


def bm3(backbone, data, batch):
    user, item = light(symmetric(data), *tables(backbone), backbone.propagation.num_layers)
    item, h = item + backbone.item_embedding.weight, backbone.predictor
    u, i = user[batch.user], item[batch.positive]
    loss = 2 - cosine(h(u), i.detach()).mean() - cosine(h(i), u.detach()).mean()
    loss = loss + backbone.reg_weight * (user.norm() + item.norm()) / backbone.num_items
    for name, z in projected(backbone, data).items():
        present = has(name, data)[batch.positive]
        z, target = z[batch.positive][present], i[present]
        parts = 2 - cosine(h(z), target.detach()).mean() - cosine(h(z), z.detach()).mean()
        loss = loss + backbone.contrastive_weight * parts
    return h(user) @ h(item).t(), loss


def vlightgcn(backbone, data, batch):
    user = torch.cat([backbone.user_embedding.weight, backbone.user_content.weight], 1)
    z = projected(backbone, data)
    item = torch.cat([backbone.item_embedding.weight, *z.values()], 1)
    penalty = backbone.reg_weight * squares(user, item, batch) / batch.user.numel()
    count = backbone.propagation.num_layers
    x, y = light(symmetric(data), user, item, count)
    if isinstance(backbone, VLATTICE):
        s = normalized(original(backbone, data))
        y = y + unit(layers(s, item, backbone.num_item_layers)[-1])
    return x @ y.t(), bpr(x, y, batch).mean() + penalty


def lattice(backbone, data, batch):
    learned = {m: knn(z, backbone.k, has(m, data)) for m, z in projected(backbone, data).items()}
    share = backbone.original_weight
    s = (1 - share) * normalized(mixed(learned, backbone, data))
    s = s + share * original(backbone, data)
    h = layers(s, backbone.item_embedding.weight, backbone.num_item_layers)[-1]
    user, item = tables(backbone)
    if backbone.cf_model == "lightgcn":
        liked = interactions(data)
        a = square(liked, liked) + torch.eye(sum(liked.shape))
        user, item = light(a / a.sum(1, keepdim=True), user, item, backbone.num_layers)
    item = item + unit(h)
    penalty = 0.5 * backbone.reg_weight * squares(user, item, batch) / backbone.batch_size
    return user @ item.t(), bpr(user, item, batch).mean() + penalty


TWO = {"image": 6, "text": 5}
CASES = [
    (BPRMF, bprmf, {}, {}, {}),
    (LayerGCN, layergcn, {}, {}, {"num_layers": 3}),
    (LayerGCN, layergcn, {}, {}, {"num_layers": 1}),
    (SelfCF, selfcf, {}, {}, {"dropout": 0.0}),
    (SelfCF, selfcf, {}, {}, {"dropout": 0.0, "num_layers": 3}),
]
for cls, formula, variants in (
    (BM3, bm3, [{"dropout": 0.0}, {"dropout": 0.0, "num_layers": 2, "contrastive_weight": 0.5}]),
    (VLightGCN, vlightgcn, [{}, {"num_layers": 3}]),
    (VLATTICE, vlightgcn, [{"k": 4}, {"k": 3, "num_item_layers": 2, "num_layers": 1}]),
    (LATTICE, lattice, [{"k": 4, "batch_size": 17}, {"k": 3, "num_item_layers": 2}]),
    (LATTICE, lattice, [{"k": 4, "cf_model": "mf"}, {"k": 4, "original_weight": 0.3}]),
):
    for options in variants:
        CASES.append((cls, formula, TWO, {}, options))
    options = variants[0]
    CASES += [
        (cls, formula, {"image": 6}, {}, options),
        (cls, formula, {"text": 6}, {}, options),
        (cls, formula, {"speech": 4, "text": 3, "audio": 5}, {}, options),
        (cls, formula, TWO, {}, {**options, "modalities": ["text", "image"]}),
        (cls, formula, TWO, {"text": HAS_TEXT}, options),
        (cls, formula, TWO, {"text": HAS_TEXT, "image": HAS_IMAGE | HAS_TEXT}, options),
    ]


@pytest.mark.parametrize(("cls", "formula", "channels", "masks", "options"), CASES)
def test_agrees_with_its_formula(make_data, cls, formula, channels, masks, options):
    data = make_data(masks=masks, **channels)
    torch.manual_seed(0)
    backbone = cls.from_data(data, embedding_dim=7, reg_weight=0.3, **options)
    with torch.no_grad():  # so that nothing is symmetric by its start
        for name, parameter in backbone.named_parameters():
            if name.endswith(("bias", "modality_logits")):
                parameter.normal_()
    batch = Triplets(torch.randint(12, (30,)), torch.randint(20, (30,)), torch.randint(20, (30,)))
    graph = backbone.graph(data)
    stages = backbone(graph)
    scores, loss = formula(backbone, data, batch)
    torch.testing.assert_close(backbone.scores(stages, graph, torch.arange(12)), scores)
    ours = sum(backbone.loss(stages, batch).values())
    torch.testing.assert_close(ours, loss)
    parameters = dict(backbone.named_parameters())
    expected = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True)
    found = torch.autograd.grad(ours, list(parameters.values()))
    for name, x, y in zip(parameters, found, expected, strict=True):
        torch.testing.assert_close(
            x, y, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_dropout_rescales_what_it_keeps_and_hits_targets_alone(make_data):
    data = make_data(**TWO)
    torch.manual_seed(0)
    for cls in (SelfCF, BM3):
        backbone = cls.from_data(data, embedding_dim=64, dropout=0.3)
        graph = backbone.graph(data)
        torch.manual_seed(1)
        training = backbone(graph)
        backbone.eval()
        ranking = backbone(graph)
        for key in ("user", "item"):
            torch.testing.assert_close(training.output[key], ranking.output[key])
        if cls is BM3:
            kept = {k: x for k, x in training.output.items() if "/target" in k}
            assert len(kept) == 4 and not any(x.requires_grad for x in kept.values())
            for x in (*kept.values(), *(ranking.output[k] for k in kept)):
                torch.testing.assert_close(x.norm(dim=1), torch.ones(len(x)))
            ratio = {k: x / ranking.output[k] for k, x in kept.items()}
            # All that a row keeps is scaled alike: the targets are of unit length.
            ratio = {k: x / x.amax(dim=1, keepdim=True) for k, x in ratio.items()}
            values = torch.cat([x.flatten() for x in ratio.values()]) / 0.7
        else:
            values = torch.cat([training.output[f"{k}/kept"].flatten() for k in ("user", "item")])
            assert not [k for k in ranking.output if k.endswith("/kept")]
            values = values / 0.7
        assert abs((values == 0).float().mean() - 0.3) < 0.03
        torch.testing.assert_close(
            values[values != 0], torch.full_like(values[values != 0], 1 / 0.7)
        )


@pytest.mark.parametrize(("cls", "normal"), [(BPRMF, True), (LayerGCN, False), (SelfCF, False)])
def test_embeddings_start_as_xavier_has_them(cls, normal):
    torch.manual_seed(0)
    backbone = cls(300, 200)
    for table in tables(backbone):
        std = (2 / sum(table.shape)) ** 0.5
        assert abs(table.std() / std - 1) < 0.03
        assert (table.abs().max() > 3 * std) == normal  # uniform ones end at the root of 3


def test_selfcf_compares_predictions_with_the_dropped_targets(make_data):
    data = make_data()
    torch.manual_seed(0)
    backbone = SelfCF.from_data(data, embedding_dim=7, dropout=0.4, reg_weight=0)
    stages = backbone(backbone.graph(data))
    u, i, j = torch.arange(12), torch.arange(12), torch.arange(12) + 8
    user, item, h = stages.output["user"], stages.output["item"], backbone.predictor
    target = {
        key: (stages.output[key] * stages.output[f"{key}/kept"] / 0.6).detach()
        for key in ("user", "item")
    }
    expected = cosine(h(user[u]), target["item"][i]) + cosine(h(item[i]), target["user"][u])
    (loss,) = backbone.loss(stages, Triplets(u, i, j)).values()
    torch.testing.assert_close(loss, -0.5 * expected.mean())
    weights = list(backbone.parameters())
    gradients = torch.autograd.grad(loss, weights, retain_graph=True)
    torch.testing.assert_close(gradients, torch.autograd.grad(-0.5 * expected.mean(), weights))


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (BPRMF, {"embedding_dim": 0}, "'embedding_dim' needs to be a positive integer"),
        (BPRMF, {"reg_weight": -1.0}, "'reg_weight' needs to be a number of 0 or more"),
        (LayerGCN, {"num_layers": 0}, r"'num_layers' needs to be a positive integer \(got 0\)"),
        (LayerGCN, {"edge_dropout": 1.0}, r"'edge_dropout' needs to lie in \[0, 1\) \(got 1.0\)"),
        (SelfCF, {"dropout": 1.0}, r"'dropout' needs to lie in \[0, 1\) \(got 1.0\)"),
        (SelfCF, {"edge_dropout": "rare"}, r"or to be 'uniform' or None \(got 'rare'\)"),
        (SelfCF, {"edge_dropout": 1.0}, r"'edge_dropout' needs to lie in \[0, 1\).* \(got 1.0\)"),
        (BM3, {"dropout": -0.1}, r"'dropout' needs to lie in \[0, 1\) \(got -0.1\)"),
        (BM3, {"contrastive_weight": -1}, "'contrastive_weight' needs to be a number of 0 or more"),
        (VLightGCN, {"reg_weight": "x"}, "'reg_weight' needs to be a number of 0 or more"),
        (VLATTICE, {"num_item_layers": 0}, "'num_item_layers' needs to be a positive integer"),
        (LATTICE, {"k": 0}, "'k' needs to be a positive integer"),
        (LATTICE, {"original_weight": 1.1}, r"'original_weight' needs to lie in \[0, 1\]"),
        (LATTICE, {"cf_model": "gcn"}, r"'cf_model' needs to be one of \['lightgcn', 'mf'\]"),
        (LATTICE, {"batch_size": 0}, "'batch_size' needs to be a positive integer"),
    ],
)
def test_bad_options_are_refused(make_data, cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls.from_data(make_data(**TWO), **options)


@pytest.mark.parametrize("cls", [BM3, LATTICE, VLATTICE, VLightGCN])
def test_features_are_needed(make_data, cls):
    data = make_data(**TWO)
    del data["text"].x
    with pytest.raises(ValueError, match=rf"{cls.__name__} reads the features of \['text'\]"):
        cls.from_data(data)
