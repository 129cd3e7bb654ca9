import copy
import itertools
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyg_mmrec.nn.backbones import (
    BM3,
    BPRMF,
    FREEDOM,
    GRCN,
    LATTICE,
    MMGCN,
    VBPR,
    VLATTICE,
    Triplets,
    VLightGCN,
)
from pyg_mmrec.nn.objectives import FIB, Objective

assert_close = partial(torch.testing.assert_close, rtol=1e-8, atol=0)
CASES = {
    "VBPR": (VBPR, {}),
    "VLightGCN": (VLightGCN, {}),
    "VLATTICE": (VLATTICE, {}),
    "LATTICE": (LATTICE, {}),
    "BM3": (BM3, {}),
    "FREEDOM": (FREEDOM, {}),
    "FREEDOM-unread": (FREEDOM, {"reg_weight": 0}),  # whose loss has no projections
    "GRCN": (GRCN, {}),
    "MMGCN": (MMGCN, {"projected": {"image": 7, "text": 5}}),
    "MMGCN-image": (MMGCN, {"modalities": ["image"], "projected": {"image": 7}}),
}


def kernel(z, variance, normalize=True):
    if normalize:
        z = z / z.norm(dim=1, keepdim=True)
    return torch.exp(-(z[:, None] - z[None]).square().sum(2) / (2 * variance))


def slow_hsic(x, y, variance, normalize=True):
    """IBMRec's Eq. 2 and 3."""
    n = x.size(0)
    h = torch.eye(n, dtype=x.dtype) - torch.ones(n, n, dtype=x.dtype) / n
    k, m = (kernel(z, variance, normalize) for z in (x, y))
    return torch.trace(k @ h @ m @ h) / (n - 1) ** 2


def slow_unbiased_hsic(x, y, variance):
    """The U-statistic, over all quadruples of different rows."""
    k, m = kernel(x, variance).tolist(), kernel(y, variance).tolist()
    quadruples = list(itertools.permutations(range(len(k)), 4))
    values = [k[a][b] * (m[a][b] + m[c][d] - 2 * m[a][c]) for a, b, c, d in quadruples]
    return torch.tensor(values, dtype=x.dtype).sum() / len(quadruples)


def projections(backbone, x):
    """Every item's Z^m, written down for each backbone."""
    if isinstance(backbone, VBPR):
        text, image = backbone.projection.weight.split([x["text"].size(1), x["image"].size(1)], 1)
        return {"image": x["image"] @ image.t(), "text": x["text"] @ text.t()}
    z = {}
    for name, layer in backbone.projection.items():
        z[name] = x[name] @ layer.weight.t() + layer.bias
        if isinstance(backbone, GRCN):
            z[name] = torch.where(z[name] > 0, z[name], 0.01 * z[name])
    return z


def double(tree):
    def to_double(x):
        return x.double() if x.is_floating_point() else x

    return pytree.tree_map_only(Tensor, to_double, tree)


def build(cls, data, *methods, **options):
    torch.manual_seed(0)
    backbone = cls.from_data(data, embedding_dim=8, **options)
    for name, parameter in backbone.named_parameters():
        if name.endswith("bias"):  # which would else start at 0
            torch.nn.init.normal_(parameter, std=0.1)
    objective = Objective(backbone, *methods).double()
    graph = double(backbone.graph(data))
    return objective, backbone.sample_graph(graph, 0, torch.Generator().manual_seed(0))


def items_of(batch):
    return sorted({*batch.positive.tolist(), *batch.negative.tolist()})


def fib_terms(terms):
    return {k.removeprefix("fib/"): x for k, x in terms.items() if k.startswith("fib/")}


@pytest.mark.parametrize("size", [16, 100])  # rows of the batch alone, or every row
@pytest.mark.parametrize("case", CASES)
def test_is_the_hsic_of_projections_and_raw_features_of_the_batchs_items(case, size, tiny, sample):
    cls, options = CASES[case]
    objective, graph = build(cls, tiny, FIB(3.0, variance=0.3), **options)
    batch = sample(tiny, size)
    items = items_of(batch)
    assert len(items) < 2 * size  # some stand there twice
    torch.manual_seed(1)
    terms = objective(graph, batch)
    z = projections(objective.backbone, graph.x)
    expected = {m: 3 * slow_hsic(z[m][items], graph.x[m][items], 0.3) for m in z}
    assert_close(fib_terms(terms), expected)
    assert list(fib_terms(terms)) == objective.backbone.modalities
    torch.manual_seed(1)  # BM3 draws dropout
    plain = Objective(objective.backbone)(graph, batch)
    assert_close({k: x for k, x in terms.items() if "/" not in k}, plain)


def test_bandwidth_may_follow_the_median(tiny, sample):
    objective, graph = build(VLightGCN, tiny, FIB(variance=None, modalities=["text"]))
    batch = sample(tiny, 20)
    items = items_of(batch)
    x, z = graph.x["text"][items], projections(objective.backbone, graph.x)["text"][items]
    kernels = []
    for rows in (z, x):
        rows = rows / rows.norm(dim=1, keepdim=True)
        pairs = itertools.combinations(rows, 2)
        squared = sorted((a - b).square().sum().item() for a, b in pairs)
        kernels.append(kernel(rows, squared[(len(squared) - 1) // 2] / 2))
    n = len(items)
    h = torch.eye(n, dtype=x.dtype) - 1 / n
    expected = torch.trace(kernels[0] @ h @ kernels[1] @ h) / (n - 1) ** 2
    assert_close(fib_terms(objective(graph, batch)), {"text": expected})


@pytest.mark.parametrize("size", [16, 100])
@pytest.mark.parametrize("cls", [VBPR, VLATTICE, LATTICE])
def test_kernels_of_wide_features_are_kept(cls, size, make_data, sample):
    mask = torch.arange(20) % 3 > 0
    data = make_data(masks={"text": mask}, image=600, text=512)
    data["text"].x[~mask] = torch.nan
    objective, graph = build(cls, data, FIB(variance=0.3))
    bare, _ = build(cls, data, FIB(variance=0.3, keep_kernels=False))
    kept = objective.methods[0]._kernels
    for step in range(2):
        graph = graph.detach()  # as an epoch's graph is after its first step
        batch = sample(data, size, seed=step)
        values, expected = objective(graph, batch), bare(graph, batch)
        assert_close(values, expected)
        gradients = []
        for one, terms in ((objective, values), (bare, expected)):
            one.zero_grad()
            sum(terms.values()).backward()
            gradients.append({n: x.grad for n, x in one.named_parameters() if x.grad is not None})
        torch.testing.assert_close(*gradients)
        if step == 0:
            first = {name: kernel for name, (_, _, kernel) in kept.items()}
    assert list(kept) == ["image", "text"] and not bare.methods[0]._kernels
    assert all(kernel is first[name] for name, (_, _, kernel) in kept.items())
    assert objective.state_dict().keys() == bare.state_dict().keys()

    other = graph.replace(x={name: x.flip(1) * 2 + 1 for name, x in graph.x.items()})
    assert_close(objective(other, batch), bare(other, batch))  # not of those kept
    asking = {name: x.clone().requires_grad_() for name, x in graph.x.items()}
    copied = copy.deepcopy(objective)
    terms = fib_terms(copied(graph.replace(x=asking), batch))
    found = torch.autograd.grad(sum(terms.values()), list(asking.values()))
    terms = fib_terms(bare(graph.replace(x=asking), batch))
    assert_close(found, torch.autograd.grad(sum(terms.values()), list(asking.values())))
    assert kept and not copied.methods[0]._kernels
    for x in graph.x.values():
        x.mul_(torch.linspace(0.1, 3, x.size(1), dtype=x.dtype))
    for one in (objective, copied):
        assert_close(one(graph, batch), bare(graph, batch))


@pytest.mark.parametrize("options", [{"normalize": False}, {"unbiased": True}])
def test_kept_kernels_follow_the_options(options, make_data, sample):
    data, batch = make_data(image=600, text=600), None
    options = {"variance": 400.0, **options}
    objective, graph = build(VLightGCN, data, FIB(**options))
    bare, _ = build(VLightGCN, data, FIB(**options, keep_kernels=False))
    batch = sample(data, 16)
    assert_close(objective(graph, batch), bare(graph, batch))
    assert objective.methods[0]._kernels


def test_a_step_in_inference_mode_keeps_nothing(make_data, sample):
    data = make_data(image=600)
    objective, graph = build(VLightGCN, data, FIB())
    with torch.inference_mode():
        objective(graph, sample(data, 16))
    assert not objective.methods[0]._kernels
    sum(objective(graph, sample(data, 16)).values()).backward()
    assert objective.methods[0]._kernels


def test_kernels_that_take_too_much_are_not_kept(monkeypatch, make_data, sample):
    data = make_data(image=600)
    for most, kept in ((20 * 20 * 8, 1), (20 * 20 * 8 - 1, 0)):
        monkeypatch.setattr("pyg_mmrec.nn.objectives.fib._MOST_BYTES", most)
        objective, graph = build(VLightGCN, data, FIB())
        objective(graph, sample(data, 16))
        assert len(objective.methods[0]._kernels) == kept


def test_kernels_of_narrow_features_and_of_the_batchs_median_are_not_kept(make_data, sample):
    data = make_data(image=511, text=600)
    for variance, expected in ((0.3, ["text"]), (None, [])):
        objective, graph = build(VLightGCN, data, FIB(variance=variance))
        objective(graph, sample(data, 16))
        assert list(objective.methods[0]._kernels) == expected


@pytest.mark.parametrize("cls", [VBPR, VLightGCN])
def test_items_without_a_modality_have_no_part_in_its_term(cls, make_data, sample):
    mask = torch.arange(20) % 3 > 0
    data = make_data(masks={"text": mask}, image=6, text=5)
    data["text"].x[~mask] = torch.nan  # whatever stands there
    objective, graph = build(cls, data, FIB(variance=0.3))
    batch = sample(data, 12)
    items = items_of(batch)
    having = [i for i in items if mask[i]]
    assert 4 < len(having) < len(items)
    z = projections(objective.backbone, graph.x)
    expected = {
        "image": slow_hsic(z["image"][items], graph.x["image"][items], 0.3),
        "text": slow_hsic(z["text"][having], graph.x["text"][having], 0.3),
    }
    terms = fib_terms(objective(graph, batch))
    assert_close(terms, expected)
    sum(terms.values()).backward()
    gradients = [x.grad for x in objective.backbone.content_parameters() if x.grad is not None]
    assert gradients and all(x.isfinite().all() for x in gradients)


@pytest.mark.parametrize("cls", [VBPR, VLightGCN])
def test_raw_features_stay_those_of_the_graph_where_a_copy_is_trained(cls, tiny, sample):
    objective, graph = build(cls, tiny, FIB(variance=0.3), train_features=True)
    trained = objective.backbone.features
    for parameter in trained.values():
        parameter.data.mul_(torch.linspace(-1, 1, parameter.size(1)))
    batch = sample(tiny, 16)
    items = items_of(batch)
    z = projections(objective.backbone, dict(trained.items()))
    expected = {m: slow_hsic(z[m][items], graph.x[m][items], 0.3) for m in z}
    assert_close(fib_terms(objective(graph, batch)), expected)


@pytest.mark.parametrize(("cls", "bias"), [(VBPR, False), (VLightGCN, True), (LATTICE, True)])
def test_gradient_reaches_the_projections_and_nothing_else(cls, bias, tiny, sample):
    objective, graph = build(cls, tiny, FIB())
    backbone, batch = objective.backbone, sample(tiny, 16)
    sum(fib_terms(objective(graph, batch)).values()).backward()
    reached = {name for name, x in backbone.named_parameters() if x.grad is not None}
    expected = {n for n, _ in backbone.named_parameters() if n.startswith("projection.")}
    if not bias:  # one for all modalities, so it is in none of their Z^m
        expected = {"projection.weight"}
    assert reached == expected
    found = {name: backbone.get_parameter(name).grad.clone() for name in reached}
    assert all(gradient.abs().max() > 0 for gradient in found.values())

    backbone.zero_grad()
    items, z = items_of(batch), projections(backbone, graph.x)
    sum(slow_hsic(z[m][items], graph.x[m][items], 0.2) for m in z).backward()
    torch.testing.assert_close(found, {name: backbone.get_parameter(name).grad for name in reached})


def test_no_gradient_reaches_raw_features(tiny, sample):
    objective, graph = build(VLightGCN, tiny, FIB(), train_features=True)
    sum(fib_terms(objective(graph, sample(tiny, 16))).values()).backward()
    assert all(x.grad.abs().max() > 0 for x in objective.backbone.features.values())  # through Z
    assert not any(x.requires_grad for x in graph.x.values())


def test_rows_may_keep_their_lengths(tiny, sample):
    objective, graph = build(VLightGCN, tiny, FIB(variance=2.0, normalize=False))
    batch = sample(tiny, 16)
    items, z = items_of(batch), projections(objective.backbone, graph.x)
    values = [
        {m: slow_hsic(z[m][items], graph.x[m][items], 2.0, normalize) for m in z}
        for normalize in (False, True)
    ]
    assert_close(fib_terms(objective(graph, batch)), values[0])
    assert all(abs(x - y) > 0.1 * y for x, y in zip(*(v.values() for v in values), strict=True))


def test_unbiased_form(tiny, sample):
    objective, graph = build(VBPR, tiny, FIB(2.0, variance=0.4, unbiased=True))
    batch = sample(tiny, 4)
    items, z = items_of(batch), projections(objective.backbone, graph.x)
    assert len(items) >= 6
    expected = {m: 2 * slow_unbiased_hsic(z[m][items], graph.x[m][items], 0.4) for m in z}
    assert_close(fib_terms(objective(graph, batch)), expected)


def test_weight_is_a_factor(tiny, sample):
    batch, values = sample(tiny, 16), {}
    for weight in (0, 1.0, 2.5):
        objective, graph = build(VBPR, tiny, FIB(weight))
        values[weight] = fib_terms(objective(graph, batch))
        if weight == 0:
            assert all(x == 0 for x in values[0].values())
    assert_close(values[2.5], {name: 2.5 * x for name, x in values[1.0].items()})
    assert all(x > 0 for x in values[1.0].values())


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("cls", [VBPR, VLightGCN])
def test_a_batch_of_one_triplet_is_finite(cls, unbiased, tiny, sample):
    objective, graph = build(cls, tiny, FIB(unbiased=unbiased))
    batch = sample(tiny, 1)
    terms = objective(graph, batch)
    sum(terms.values()).backward()
    assert all(x.isfinite() for x in terms.values())
    for parameter in objective.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()
    values = [x.item() for x in fib_terms(terms).values()]
    assert all(x == 0 for x in values) if unbiased else all(x > 0 for x in values)


def test_too_few_items_with_a_modality_leave_its_term_at_0(make_data):
    mask = torch.arange(20) < 1
    data = make_data(masks={"text": mask}, image=6, text=5)
    objective, graph = build(VLightGCN, data, FIB())
    for items in ([0, 1], [2, 3]):  # one has it, or none
        one = torch.tensor([0])
        batch = Triplets(one, torch.tensor(items[:1]), torch.tensor(items[1:]))
        terms = fib_terms(objective(graph, batch))
        assert terms["text"] == 0 and terms["image"] > 0


def test_modalities_that_are_not_projected_are_refused(tiny, sample):
    backbone = MMGCN.from_data(tiny, embedding_dim=8)
    with pytest.raises(ValueError) as error:
        Objective(backbone, FIB())
    others = "BM3, FREEDOM, GRCN, LATTICE, VBPR, VLATTICE, VLightGCN project all of theirs"
    assert str(error.value) == (
        "FIB narrows the projections of modalities, and this MMGCN does not project ['text']: name "
        "those to take part in 'modalities', of ['image'], or build it with 'projected', such as "
        f"{{'image': 256, 'text': 64}}; {others}"
    )
    widths = {"image": 256, "text": 64}
    Objective(MMGCN.from_data(tiny, embedding_dim=8, projected=widths), FIB())
    with pytest.raises(ValueError) as error:
        Objective(MMGCN.from_data(tiny, embedding_dim=8, modalities=["text"]), FIB())
    assert str(error.value) == (
        "FIB narrows the projections of modalities, and this MMGCN does not project ['text']: "
        f"build it with 'projected', such as {{'text': 64}}; {others}"
    )
    terms = Objective(backbone, FIB(modalities=["image"]))(backbone.graph(tiny), sample(tiny))
    assert list(fib_terms(terms)) == ["image"] and terms["fib/image"] > 0
    with pytest.raises(ValueError, match=r"project \['audio'\]: .* of \['image', 'text'\]; BM3"):
        Objective(VBPR.from_data(tiny), FIB(modalities=["audio", "image"]))


def test_backbones_without_projections_are_refused(tiny):
    with pytest.raises(ValueError) as error:
        Objective(BPRMF.from_data(tiny), FIB())
    assert str(error.value) == (
        "FIB narrows the projections of modalities, and BPRMF has none (its 'content_channels' are "
        "empty); BM3, FREEDOM, GRCN, LATTICE, MMGCN, VBPR, VLATTICE, VLightGCN have some"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, r"'weight' needs to be a number of 0 or more \(got -1.0\)"),
        ({"variance": 0.0}, r"'variance' needs to be positive \(got 0.0\)"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FIB(**options)
