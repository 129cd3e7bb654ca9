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
    GatheredTriplets,
    VLightGCN,
)
from pyg_mmrec.nn.objectives import AMR, GIB, DVIBa, Objective

assert_close = partial(torch.testing.assert_close, rtol=1e-7, atol=1e-12)
CASES = {
    "VBPR": (VBPR, {}),
    "VLightGCN": (VLightGCN, {}),
    "VLATTICE": (VLATTICE, {}),
    "BM3": (BM3, {"dropout": 0.0}),
    "GRCN": (GRCN, {}),
    "MMGCN": (MMGCN, {"projected": {"image": 7}}),
    "FREEDOM": (FREEDOM, {"reg_weight": 0.5}),
}
ROWWISE = ["VBPR", "BM3", "GRCN", "FREEDOM"]


def double(tree):
    def to_double(x):
        return x.double() if x.is_floating_point() else x

    return pytree.tree_map_only(Tensor, to_double, tree)


def build(case, data, *methods, **options):
    cls, own = CASES[case]
    torch.manual_seed(0)
    backbone = cls.from_data(data, embedding_dim=8, **{**own, **options})
    return Objective(backbone, *methods).double(), double(backbone.graph(data))


def total(terms):
    return torch.stack(list(terms.values())).sum()


def loss_at(backbone, graph, batch, given, on):
    """L0 of every row, on other features or projections."""
    if on == "features":
        stages = backbone(graph.replace(x=given))
    else:
        hidden, context = backbone.fuse(given, graph)
        hidden, output, compared = backbone.encode(hidden, context, graph)
        stages = backbone(graph)
        stages = type(stages)(given, hidden, context, output, compared)
    return total(backbone.loss(stages, batch))


def delta_by_hand(backbone, graph, batch, on, epsilon, kind="gradient"):
    """Rows of length epsilon along the gradient, with loops over modalities and rows."""
    given = graph.x if on == "features" else backbone.project(graph)
    point = {name: x.detach().clone().requires_grad_() for name, x in given.items()}
    loss_at(backbone, graph, batch, point, on).backward()
    backbone.zero_grad()
    delta = {}
    for name, x in point.items():
        rows = []
        for gamma in x.grad:
            size = gamma.norm()
            if kind == "sign":
                rows.append(epsilon * gamma.sign())
            else:
                rows.append(epsilon * gamma / size if size > 0 else torch.zeros_like(gamma))
        delta[name] = torch.stack(rows)
    return {name: x + delta[name] for name, x in given.items()}, delta


def found_delta(objective, graph, batch, monkeypatch):
    """The perturbation that the method makes."""
    method, found = objective.methods[0], []
    make = method._delta

    def noted(*args):
        found.append(make(*args))
        return found[-1]

    monkeypatch.setattr(method, "_delta", noted)
    terms = objective(graph, batch)
    return found[0], terms


# The perturbation --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 100])
def test_delta_of_vbpr_in_closed_form(size, tiny, sample, monkeypatch):
    objective, graph = build("VBPR", tiny, AMR(0.3), reg_weight=0)
    backbone, batch = objective.backbone, sample(tiny, size)
    found, terms = found_delta(objective, graph, batch, monkeypatch)
    item = backbone(graph).output["item"]
    user = backbone.user_embedding.weight
    columns = dict(zip(["text", "image"], backbone.projection.weight.split([16, 24], 1),
                       strict=True))  # fmt: skip
    for name, x in graph.x.items():
        gamma = torch.zeros_like(x)
        for u, i, j in zip(batch.user, batch.positive, batch.negative, strict=True):
            gap = (user[u] * (item[i] - item[j])).sum()
            slope = -torch.sigmoid(-gap) / size  # of -log sigmoid
            gamma[i] += slope * (user[u, 8:] @ columns[name])
            gamma[j] -= slope * (user[u, 8:] @ columns[name])
        reached = gamma.norm(dim=1) > 0
        items = torch.cat([batch.positive, batch.negative]).unique()
        assert torch.equal(reached.nonzero().squeeze(1), items)
        expected = torch.zeros_like(gamma)
        expected[reached] = 0.3 * gamma[reached] / gamma[reached].norm(dim=1, keepdim=True)
        assert_close(found[name], expected, rtol=1e-6)
        lengths = found[name].norm(dim=1)
        assert_close(lengths[reached], torch.full_like(lengths[reached], 0.3))
        assert found[name][~reached].eq(0).all() and (size == 100 or bool((~reached).any()))
    assert terms["amr/adversarial"] > terms["bpr"]


@pytest.mark.parametrize("case", ["VLightGCN", "GRCN"])
def test_delta_by_finite_differences(case, tiny, sample, monkeypatch):
    objective, graph = build(case, tiny, AMR(0.2))
    backbone, batch = objective.backbone, sample(tiny, 16)
    found, _ = found_delta(objective, graph, batch, monkeypatch)
    row, step = int(batch.positive[0]), 1e-5
    assert set(found) == {"image", "text"}
    x, gamma = graph.x["text"], []
    for column in range(x.size(1)):
        values = []
        for sign in (1, -1):
            moved = x.clone()
            moved[row, column] += sign * step
            given = {**graph.x, "text": moved}
            values.append(loss_at(backbone, graph, batch, given, "features").detach())
        gamma.append((values[0] - values[1]) / (2 * step))
    gamma = torch.stack(gamma)
    assert_close(found["text"][row], 0.2 * gamma / gamma.norm(), rtol=1e-4, atol=1e-6)


def test_sign_and_random_kinds(tiny, sample, monkeypatch):
    batch = sample(tiny, 16)
    objective, graph = build("VBPR", tiny, AMR(0.3, kind="sign"))
    items = torch.cat([batch.positive, batch.negative]).unique()
    others = torch.tensor([i for i in range(90) if i not in items.tolist()])
    found, _ = found_delta(objective, graph, batch, monkeypatch)
    _, expected = delta_by_hand(objective.backbone, graph, batch, "features", 0.3, "sign")
    for name, x in found.items():
        assert torch.equal(x, expected[name])
        assert x[items].abs().eq(0.3).all() and x[others].eq(0).all()

    objective, graph = build("VBPR", tiny, AMR(0.3, kind="random"))
    torch.manual_seed(1)
    found, terms = found_delta(objective, graph, batch, monkeypatch)
    torch.manual_seed(2)
    other, _ = found_delta(objective, graph, batch, monkeypatch)
    for name, x in found.items():
        assert_close(x.norm(dim=1), torch.full((90,), 0.3, dtype=x.dtype))
        cosine = torch.nn.functional.cosine_similarity(x, other[name])
        assert cosine.abs().max() < 0.9 and cosine.mean().abs() < 0.15
        assert x.mean().abs() < 0.02
    given = {name: x + found[name] for name, x in graph.x.items()}
    expected = loss_at(objective.backbone, graph, batch, given, "features")
    assert_close(terms["amr/adversarial"], expected)


def test_items_without_a_modality_are_not_perturbed(make_data, sample, monkeypatch):
    mask = torch.arange(20) % 3 > 0
    data = make_data(masks={"text": mask}, image=6, text=5)
    for case in ("VBPR", "VLightGCN", "MMGCN"):
        objective, graph = build(case, data, AMR(0.3))
        found, _ = found_delta(objective, graph, sample(data, 30), monkeypatch)
        assert found["text"][~mask].eq(0).all()
        assert (found["image"][~mask].norm(dim=1) > 0).any()


# The loss ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", ["features", "projections"])
@pytest.mark.parametrize("size", [16, 100])  # rows of the batch alone, or every row
@pytest.mark.parametrize("case", CASES)
def test_is_the_loss_on_what_was_perturbed(case, size, on, tiny, sample):
    objective, graph = build(case, tiny, AMR(0.3, 0.7, on=on))
    backbone, batch = objective.backbone, sample(tiny, size)
    given, delta = delta_by_hand(backbone, graph, batch, on, 0.3)
    terms = objective(graph, batch)
    clean = backbone.loss(backbone(graph), batch)
    assert_close({k: x for k, x in terms.items() if k != "amr/adversarial"}, clean)
    expected = 0.7 * loss_at(backbone, graph, batch, given, on)
    assert_close(terms["amr/adversarial"], expected)
    assert any(x.abs().max() > 0.01 for x in delta.values())
    assert terms["amr/adversarial"] / 0.7 > total(clean) * (1 + 1e-5)


@pytest.mark.parametrize("on", ["features", "projections"])
@pytest.mark.parametrize("case", ROWWISE)
def test_rows_of_the_batch_alone_give_what_all_rows_give(case, on, tiny, sample, monkeypatch):
    objective, graph = build(case, tiny, AMR(0.3, on=on))
    batch = sample(tiny, 30)
    ids = torch.cat([batch.positive, batch.negative])
    assert ids.unique().numel() < 60 and 90 < 210  # items occur twice; all rows are more
    assert objective.backbone.rowwise

    def run():
        objective.zero_grad()
        terms = objective(graph, batch)
        total(terms).backward()
        return terms, {k: x.grad for k, x in objective.named_parameters() if x.grad is not None}

    fast = run()
    monkeypatch.setattr(CASES[case][0], "rowwise", False)
    assert_close(fast, run(), atol=1e-10)


@pytest.mark.parametrize("on", ["features", "projections"])
@pytest.mark.parametrize("case", ["VBPR", "VLightGCN", "MMGCN"])
def test_no_gradient_flows_through_delta(case, on, tiny, sample):
    objective, graph = build(case, tiny, AMR(0.3, on=on))
    backbone, batch = objective.backbone, sample(tiny, 16)
    _, delta = delta_by_hand(backbone, graph, batch, on, 0.3)
    objective(graph, batch)["amr/adversarial"].backward()
    found = {name: x.grad.clone() for name, x in backbone.named_parameters()}
    backbone.zero_grad()
    given = graph.x if on == "features" else backbone.project(graph)
    given = {name: x + delta[name] for name, x in given.items()}  # constants were added
    loss_at(backbone, graph, batch, given, on).backward()
    assert_close(found, {name: x.grad for name, x in backbone.named_parameters()}, atol=1e-10)


def test_what_the_graph_holds_stays(tiny, sample):
    objective, graph = build("VLightGCN", tiny, AMR())
    before = {name: x.clone() for name, x in graph.x.items()}
    total(objective(graph, sample(tiny))).backward()
    assert all(torch.equal(x, before[name]) for name, x in graph.x.items())
    assert not any(x.requires_grad for x in graph.x.values())


def test_an_epsilon_of_0_repeats_the_loss_and_a_weight_is_a_factor(tiny, sample):
    batch = sample(tiny, 16)
    objective, graph = build("VBPR", tiny, AMR(0.0))
    terms = objective(graph, batch)
    clean = terms["bpr"] + terms["regularization"]
    assert_close(terms["amr/adversarial"], clean)
    values = []
    for weight in (1.0, 2.5):
        objective, graph = build("VBPR", tiny, AMR(0.3, weight))
        values.append(objective(graph, batch)["amr/adversarial"])
    assert_close(values[1], 2.5 * values[0])
    objective, graph = build("VBPR", tiny, AMR(0.3, 0.0))
    assert "amr/adversarial" not in objective(graph, batch)


@pytest.mark.parametrize("cls", [BM3, GRCN, MMGCN, VLightGCN])
@pytest.mark.parametrize("kind", ["gradient", "sign", "random"])
@pytest.mark.parametrize("on", ["features", "projections"])
def test_other_backbones_train_with_it(cls, kind, on, tiny, sample):
    torch.manual_seed(0)
    objective = Objective(cls.from_data(tiny, embedding_dim=8), AMR(kind=kind, on=on))
    terms = objective(objective.backbone.graph(tiny), sample(tiny))
    total(terms).backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_composes_with_dvib_and_gib(tiny, sample):
    objective, graph = build("FREEDOM", tiny, AMR(0.3), DVIBa(), GIB())
    amr, dvib, gib = objective.methods
    backbone, batch = objective.backbone, sample(tiny, 16)
    torch.manual_seed(3)
    terms = objective(graph, batch)
    torch.manual_seed(3)
    masked = gib.refine(backbone, graph)  # every method runs on the masked graph
    stages, rows = backbone(masked, batch.rows), GatheredTriplets.of(batch)
    alone = clean = backbone.loss(stages, rows)
    assert_close({name: terms[name] for name in clean}, clean)
    alone = dict(clean)
    for method in (amr, dvib, gib):
        for name, value in method.terms(backbone, masked, stages, rows, clean).items():
            assert_close(terms.pop(f"{method.name}/{name}"), value)
            alone[name] = value
    assert set(terms) == set(clean)
    total(alone).backward()
    assert all(x.grad.isfinite().all() for x in objective.parameters())


# Refused -----------------------------------------------------------------------------------------


def test_backbones_that_read_no_features_are_refused(tiny):
    with pytest.raises(ValueError) as error:
        Objective(BPRMF.from_data(tiny), AMR())
    assert str(error.value) == (
        "AMR perturbs modality features, and the loss of this BPRMF reads none (its "
        "'loss_reads_content' is false); that of BM3, FREEDOM, GRCN, MMGCN, VBPR, VLATTICE, "
        "VLightGCN does, given 'contrastive_weight' > 0 of BM3 and 'reg_weight' > 0 of FREEDOM"
    )


def test_a_backbone_that_names_no_modality_is_refused(tiny):
    backbone = BPRMF.from_data(tiny)
    backbone.loss_reads_content = True
    with pytest.raises(ValueError, match="BPRMF does not say which it reads: name them in"):
        Objective(backbone, AMR())


def test_trained_features_are_refused_but_their_projections_are_not(tiny, sample):
    backbone = VBPR.from_data(tiny, embedding_dim=8, train_features=True)
    message = r"VBPR trains a copy of its own: use 'train_features=False', or 'on=\"projections\"'"
    with pytest.raises(ValueError, match=message):
        Objective(backbone, AMR())
    terms = Objective(backbone, AMR(on="projections"))(backbone.graph(tiny), sample(tiny, 16))
    assert terms["amr/adversarial"] > terms["bpr"] + terms["regularization"]


@pytest.mark.parametrize("kind", ["gradient", "sign", "random"])
@pytest.mark.parametrize("on", ["features", "projections"])
def test_a_loss_that_reads_nothing_of_the_features_is_refused(kind, on, tiny):
    for backbone in (
        LATTICE.from_data(tiny, embedding_dim=8),
        FREEDOM.from_data(tiny, embedding_dim=8, reg_weight=0),
        BM3.from_data(tiny, embedding_dim=8, contrastive_weight=0),
    ):
        name = type(backbone).__name__
        with pytest.raises(ValueError, match=f"the loss of this {name} reads none"):
            Objective(backbone, AMR(kind=kind, on=on))


def test_items_that_lack_a_modality_have_no_projection_to_perturb(make_data, sample):
    mask = torch.arange(20) % 2 > 0
    data = make_data(masks={"text": mask}, image=6, text=5)
    seen = []

    class Spy(VBPR):
        def forward_from(self, modality, *args):
            seen.append(modality)
            return super().forward_from(modality, *args)

    torch.manual_seed(0)
    objective = Objective(Spy.from_data(data, embedding_dim=8), AMR(0.5, on="projections"))
    objective(objective.backbone.graph(data), sample(data, 16))
    clean, _, adversarial = (modality["text"] for modality in seen)
    assert torch.equal(clean[~mask], adversarial[~mask])
    assert not torch.equal(clean[mask], adversarial[mask])


def test_the_perturbation_is_found_without_gradients_too(tiny, sample):
    objective, graph = build("VBPR", tiny, AMR(0.3))
    batch = sample(tiny, 16)
    with torch.no_grad():
        terms = objective(graph, batch)
    assert_close(terms, {name: x.detach() for name, x in objective(graph, batch).items()})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": -0.1}, r"'epsilon' needs to be a number of 0 or more \(got -0.1\)"),
        ({"adversarial_weight": -1}, "'adversarial_weight' needs to be a number of 0 or more"),
        ({"kind": "normal"}, r"'kind' needs to be one of \['gradient', 'sign', 'random'\] \(got"),
        ({"on": "items"}, r"'on' needs to be one of \['features', 'projections'\] \(got 'items'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AMR(**options)
