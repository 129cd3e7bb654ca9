from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyg_mmrec.data import Adjacency
from pyg_mmrec.data.graph import SIMILAR
from pyg_mmrec.nn.backbones import BPRMF, EVERY_ROW, FREEDOM, LATTICE, VLATTICE, Backbone, Triplets
from pyg_mmrec.nn.objectives import GIB, Objective
from pyg_mmrec.nn.objectives.gib import UNMASKED, mask_item_graph

assert_close = partial(torch.testing.assert_close, rtol=1e-8, atol=1e-12)
CASES = {
    "FREEDOM": (FREEDOM, {"reg_weight": 0.1}),
    "FREEDOM-2": (FREEDOM, {"num_item_layers": 2}),
    "LATTICE": (LATTICE, {}),  # the full graph, where the item graph is learned on the way
    "LATTICE-sampled": (LATTICE, {}),
    "LATTICE-2": (LATTICE, {"num_item_layers": 2}),
    "VLATTICE": (VLATTICE, {}),
    "VLATTICE-2": (VLATTICE, {"num_item_layers": 2}),
}


def double(tree):
    def to_double(x):
        return x.double() if x.is_floating_point() else x

    return pytree.tree_map_only(Tensor, to_double, tree)


def dense(adjacency, weight=None):
    source, target = adjacency.edge_index
    matrix = torch.zeros(adjacency.size[1], adjacency.size[0], dtype=adjacency.weight.dtype)
    return matrix.index_put((target, source), adjacency.weight if weight is None else weight)


def masked_by_formula(s, rho):
    """S'_ij = S_ij rho_ij sqrt(r_i / r'_i * r_j / r'_j), r / r' = 1 where it has no root, and 100
    at most.
    """
    kept = s * rho
    r, left = s.sum(1).tolist(), kept.sum(1).tolist()
    ratio = [min(a / b, 100) if b != 0 and a / b > 0 else 1.0 for a, b in zip(r, left, strict=True)]
    rows = [
        torch.stack([kept[i, j] * (ratio[i] * ratio[j]) ** 0.5 for j in range(len(r))])
        for i in range(len(r))
    ]
    return torch.stack(rows)


def keep_logit(method, backbone, graph, adjacency):
    """MLP([z_i || q_i || z_j || q_j]), Eq. 25, of every edge j -> i."""
    net, z = method.edge_mask, []
    for name in backbone.modalities:
        layer = backbone.projection[name]
        z.append(graph.x[name] @ layer.weight.t() + layer.bias)
    h = torch.cat([*z, backbone.item_embedding.weight], 1)
    j, i = adjacency.edge_index
    first = torch.cat([net.lin_target.weight, net.lin_source.weight], 1)
    hidden = torch.cat([h[i], h[j]], 1) @ first.t() + net.lin_target.bias
    return (hidden.relu() @ net.lin_out.weight.t() + net.lin_out.bias).squeeze(1)


def with_item_graph(graph, adjacency, matrix):
    source, target = adjacency.edge_index
    similar = Adjacency.from_edge_index(adjacency.edge_index, matrix[target, source], (90, 90))
    return graph.replace(adjacency={**graph.adjacency, SIMILAR: similar})


def slow_hsic(x, y, variance, normalize=True):
    n = x.size(0)
    h = torch.eye(n, dtype=x.dtype) - torch.ones(n, n, dtype=x.dtype) / n
    if normalize:
        x, y = (z / z.norm(dim=1, keepdim=True) for z in (x, y))
    k, m = (torch.exp(-(z[:, None] - z[None]).square().sum(2) / (2 * variance)) for z in (x, y))
    return torch.trace(k @ h @ m @ h) / (n - 1) ** 2


def build(case, data, **options):
    cls, backbone_options = CASES[case]
    torch.manual_seed(0)
    backbone = cls.from_data(data, embedding_dim=8, **backbone_options)
    objective = Objective(backbone, GIB(**options)).double()
    torch.nn.init.normal_(objective.methods[0].edge_mask.lin_out.bias)
    graph = double(backbone.graph(data))
    if case != "LATTICE":
        graph = backbone.sample_graph(graph, 0, torch.Generator().manual_seed(0))
    return objective, graph


def draw(logit, temperature=0.2):
    """The binary-concrete relaxation, drawn as the next from the global generator."""
    tiny = torch.finfo(logit.dtype).eps
    u = torch.empty_like(logit, requires_grad=False).uniform_(tiny, 1 - tiny)
    return torch.sigmoid((logit + torch.log(u) - torch.log(1 - u)) / temperature)


@pytest.fixture
def adjacency():
    generator = torch.Generator().manual_seed(0)
    edge_index = (torch.rand(7, 7, generator=generator) < 0.5).nonzero().t()
    edge_index = edge_index[:, edge_index[1] != 3]  # nothing reaches item 3
    weight = torch.rand(edge_index.size(1), generator=generator, dtype=torch.float64) + 0.1
    return Adjacency.from_edge_index(edge_index, weight, (7, 7))


# The mask on a graph -----------------------------------------------------------------------------


def test_masked_weights_follow_the_formula(adjacency):
    mask = torch.rand(adjacency.num_edges, dtype=torch.float64)
    mask[adjacency.edge_index[1] == 5] = 0  # of item 5 nothing is left
    masked = mask_item_graph(adjacency, mask)
    assert torch.equal(masked.edge_index, adjacency.edge_index)
    expected = masked_by_formula(dense(adjacency), dense(adjacency, mask))
    assert_close(dense(masked), expected)
    assert expected[5].eq(0).all() and expected[3].eq(0).all() and expected[:, 5].ne(0).any()
    assert torch.equal(masked.weight_t, masked.weight[masked.perm_t])


def test_a_symmetric_graph_stays_symmetric(adjacency):
    s = dense(adjacency) + dense(adjacency).t()
    edge_index = s.nonzero().t().flip(0)
    symmetric = Adjacency.from_edge_index(edge_index, s[edge_index[1], edge_index[0]], (7, 7), True)
    rho = torch.rand(7, 7, dtype=torch.float64)
    rho = rho + rho.t()
    source, target = symmetric.edge_index
    masked = dense(mask_item_graph(symmetric, rho[target, source]))
    assert_close(masked, masked_by_formula(s, rho))
    assert_close(masked, masked.t())


def test_a_mask_of_one_value_changes_nothing(adjacency):
    ones = torch.ones(adjacency.num_edges, dtype=torch.float64)
    assert torch.equal(mask_item_graph(adjacency, ones).weight, adjacency.weight)
    restored = mask_item_graph(adjacency, 0.3 * ones).weight
    rest = adjacency.edge_index[0] != 3  # item 3 has no row sum to restore
    assert_close(restored[rest], adjacency.weight[rest])
    assert_close(restored[~rest], 0.3**0.5 * adjacency.weight[~rest])
    assert mask_item_graph(adjacency, 0 * ones).weight.eq(0).all()


@pytest.mark.parametrize("share", [0.1, 0.02, 0.0101, 0.0099, 0.002, 1e-5])
def test_scale_is_restored_down_to_a_hundredth(adjacency, share):
    inner = (adjacency.edge_index != 3).all(0)  # item 3 has no row sum to restore
    adjacency = Adjacency.from_edge_index(
        adjacency.edge_index[:, inner], adjacency.weight[inner], (7, 7)
    )
    mask = torch.full_like(adjacency.weight, share)
    left = 1.0 if share > 0.01 else share / 0.01  # of rho S * 100
    assert_close(mask_item_graph(adjacency, mask).weight, left * adjacency.weight)

    mask = torch.ones_like(mask)  # edges from item 5 meet rows of which everything is left
    mask[adjacency.edge_index[1] == 5] = share
    masked = dense(mask_item_graph(adjacency, mask))
    s = dense(adjacency)
    assert_close(masked, masked_by_formula(s, dense(adjacency, mask)))
    into, out = (s[5] != 0) & (torch.arange(7) != 5), (s[:, 5] != 0) & (torch.arange(7) != 5)
    root = max(share, 0.01) ** -0.5  # never above 10
    assert_close(masked[5, into], share * root * s[5, into])
    assert_close(masked[out, 5], root * s[out, 5])


def test_sums_of_other_sign_are_not_restored(adjacency):
    weight = adjacency.weight.clone()
    weight[0] = -0.5 * weight[adjacency.edge_index[1] == adjacency.edge_index[1, 0]].sum()
    negative = adjacency.with_weight(weight)
    mask = torch.ones_like(weight)
    mask[adjacency.edge_index[1] == adjacency.edge_index[1, 0]] = 0.01
    mask[0] = 1.0
    s, rho = dense(negative), dense(negative, mask)
    row = adjacency.edge_index[1, 0]
    assert s[row].sum() > 0 > (s * rho)[row].sum()
    assert_close(dense(mask_item_graph(negative, mask)), masked_by_formula(s, rho))


def test_gradient_reaches_mask_and_graph(adjacency):
    mask = torch.rand(adjacency.num_edges, dtype=torch.float64).requires_grad_()
    weight = adjacency.weight.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda m, w: mask_item_graph(adjacency.with_weight(w), m).weight, (mask, weight)
    )
    dropped = torch.zeros(adjacency.num_edges, dtype=torch.float64).requires_grad_()
    mask_item_graph(adjacency, dropped).weight.sum().backward()
    assert_close(dropped.grad, adjacency.weight)  # finite where nothing is left


@pytest.mark.parametrize("logit", [-10.0, -50.0, -90.0, -110.0])
def test_rows_of_which_next_to_nothing_is_left_stay_finite(adjacency, logit):
    adjacency = adjacency.with_weight(adjacency.weight.float())
    logits = torch.full((adjacency.num_edges,), logit, requires_grad=True)
    masked = mask_item_graph(adjacency, logits.sigmoid())
    (masked.weight * torch.arange(adjacency.num_edges)).sum().backward()
    assert masked.weight.isfinite().all() and logits.grad.isfinite().all()


# The method --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_trains_on_a_drawn_mask_and_ranks_on_its_mean(case, tiny):
    objective, graph = build(case, tiny)
    backbone, method = objective.backbone, objective.methods[0]
    similar = backbone.item_graph(graph)
    logit = keep_logit(method, backbone, graph, similar)
    edge_index, keep = method.keep_probability(backbone, graph)
    assert torch.equal(edge_index, similar.edge_index)
    assert_close(keep, torch.sigmoid(logit))
    assert 0 < keep.min() < keep.max() - 0.1 < 0.9

    torch.manual_seed(3)
    refined = method.refine(backbone, graph)
    torch.manual_seed(3)
    rho = draw(logit)
    expected = masked_by_formula(dense(similar), dense(similar, rho))
    assert_close(dense(refined.adjacency[SIMILAR]), expected)
    assert torch.equal(refined.adjacency[UNMASKED].weight, similar.weight)

    ranked_on = objective.inference_graph(graph)
    expected = masked_by_formula(dense(similar), dense(similar, keep))
    assert_close(dense(ranked_on.adjacency[SIMILAR]), expected)
    assert set(ranked_on.adjacency) == {*graph.adjacency, SIMILAR}
    assert graph.adjacency.get(SIMILAR) in (None, similar)  # the given graph stays as it is


@pytest.mark.parametrize("size", [16, 100])  # rows of the batch alone, or every row
@pytest.mark.parametrize("case", CASES)
def test_loss_on_the_masked_graph_and_dependence_on_the_full_one(case, size, tiny, sample):
    objective, graph = build(case, tiny, weight=3.0, variance=0.4)
    backbone, method, batch = objective.backbone, objective.methods[0], sample(tiny, size)
    torch.manual_seed(3)
    terms = objective(graph, batch)
    torch.manual_seed(3)
    similar = backbone.item_graph(graph)
    rho = draw(keep_logit(method, backbone, graph, similar))
    masked = masked_by_formula(dense(similar), dense(similar, rho))
    stages = backbone(with_item_graph(graph, similar, masked))
    full = backbone(with_item_graph(graph, similar, dense(similar)))
    items = sorted({*batch.positive.tolist(), *batch.negative.tolist()})
    y, y_full = stages.output["item"][items], full.output["item"][items]
    assert not torch.allclose(y, y_full)
    expected = {**backbone.loss(stages, batch), "gib/hsic": 3 * slow_hsic(y, y_full, 0.4)}
    assert_close(terms, expected)
    plain = backbone.loss(backbone(graph), batch)
    assert not torch.allclose(plain["bpr"], terms["bpr"], rtol=1e-6)


def test_rows_may_keep_their_lengths(tiny, sample):
    objective, graph = build("VLATTICE", tiny, weight=1.0, normalize=False)
    backbone, batch = objective.backbone, sample(tiny, 100)
    torch.manual_seed(3)
    value = objective(graph, batch)["gib/hsic"]
    torch.manual_seed(3)
    masked = objective.methods[0].refine(backbone, graph)
    y, y_full = (backbone(x).output["item"][batch.items] for x in (masked, graph))
    assert_close(value, slow_hsic(y, y_full, 0.25, False))
    assert abs(value - slow_hsic(y, y_full, 0.25)) > 0.1 * value


def test_item_vectors_on_a_masked_graph_are_freedoms(tiny):
    objective, graph = build("FREEDOM", tiny)
    backbone = objective.backbone
    torch.manual_seed(3)
    refined = objective.methods[0].refine(backbone, graph)
    masked, full = (backbone(x).output["item"] for x in (refined, graph))
    change = dense(refined.adjacency[SIMILAR]) - dense(graph.adjacency[SIMILAR])
    assert_close(masked - full, change @ backbone.item_embedding.weight)


def test_gradients_reach_mask_projections_and_both_paths(tiny, sample):
    # Of FREEDOM without a loss of its own for them, only the mask reads the projections.
    torch.manual_seed(0)
    backbone = FREEDOM.from_data(tiny, embedding_dim=8, reg_weight=0)
    objective = Objective(backbone, GIB())
    graph, batch = backbone.graph(tiny), sample(tiny)
    for term in ("bpr", "gib/hsic"):
        objective.zero_grad()
        objective(graph, batch)[term].backward()
        for name, parameter in objective.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name

    torch.manual_seed(3)
    objective.zero_grad()
    objective(graph, batch)["gib/hsic"].backward()
    both = backbone.item_embedding.weight.grad.clone()
    torch.manual_seed(3)
    refined = objective.methods[0].refine(backbone, graph)
    items = sorted({*batch.positive.tolist(), *batch.negative.tolist()})
    masked, full = (backbone(x).output["item"][items] for x in (refined, graph))
    objective.zero_grad()
    (0.5 * slow_hsic(masked, full.detach(), 0.25)).backward()
    one = backbone.item_embedding.weight.grad
    assert (both - one).abs().max() > 0.01 * both.abs().max()


def test_straight_through_drops_edges_altogether(tiny, sample):
    objective, graph = build("FREEDOM", tiny, straight_through=True)
    backbone, method = objective.backbone, objective.methods[0]
    torch.manual_seed(3)
    refined = method.refine(backbone, graph).adjacency[SIMILAR]
    similar = graph.adjacency[SIMILAR]
    torch.manual_seed(3)
    kept = draw(keep_logit(method, backbone, graph, similar)).round()
    assert 0.05 < kept.mean() < 0.95
    assert torch.equal(refined.weight == 0, kept == 0)
    assert_close(dense(refined), masked_by_formula(dense(similar), dense(similar, kept)))
    refined.weight.square().sum().backward()
    assert method.edge_mask.lin_out.weight.grad.abs().max() > 0


def test_temperature_and_hidden_size_reach_the_mask(tiny):
    objective, graph = build("VLATTICE", tiny, temperature=0.7, hidden_channels=5)
    backbone, method = objective.backbone, objective.methods[0]
    assert method.edge_mask.lin_target.weight.shape == (5, 24)
    similar = backbone.item_graph(graph)
    torch.manual_seed(3)
    refined = method.refine(backbone, graph)
    torch.manual_seed(3)
    rho = draw(keep_logit(method, backbone, graph, similar), 0.7)
    expected = masked_by_formula(dense(similar), dense(similar, rho))
    assert_close(dense(refined.adjacency[SIMILAR]), expected)
    default, _ = build("VLATTICE", tiny)
    assert default.methods[0].edge_mask.lin_target.weight.shape == (8, 24)


@pytest.mark.parametrize("case", CASES)
def test_ranking_is_the_bare_backbones_and_draws_nothing(case, tiny):
    objective, graph = build(case, tiny)
    backbone, users = objective.backbone, torch.arange(120)
    state = torch.get_rng_state()
    ranked_on = objective.inference_graph(graph)  # also in training mode
    assert torch.equal(torch.get_rng_state(), state)
    objective.eval()
    again = objective.inference_graph(graph)
    assert torch.equal(ranked_on.adjacency[SIMILAR].weight, again.adjacency[SIMILAR].weight)
    scores = backbone.scores(backbone(ranked_on), ranked_on, users)
    bare = type(backbone).from_data(tiny, embedding_dim=8, **CASES[case][1]).double().eval()
    bare.load_state_dict(backbone.state_dict())
    assert torch.equal(bare.scores(bare(ranked_on), ranked_on, users), scores)
    assert not torch.allclose(bare.scores(bare(graph), graph, users), scores)


def test_a_weight_of_0_leaves_the_mask_and_drops_the_term(tiny, sample, monkeypatch):
    batch = sample(tiny)
    terms = {}
    for weight in (0.0, 1.0):
        objective, graph = build("VLATTICE", tiny, weight=weight)
        calls, forward = [], objective.backbone.item_vectors_on

        def counted(*args, calls=calls, forward=forward):
            calls.append(None)
            return forward(*args)

        monkeypatch.setattr(objective.backbone, "item_vectors_on", counted)
        torch.manual_seed(3)
        terms[weight] = objective(graph, batch)
        assert len(calls) == (weight > 0)
    assert "gib/hsic" not in terms[0.0]
    assert_close(terms[0.0], {k: x for k, x in terms[1.0].items() if k != "gib/hsic"})


@pytest.mark.parametrize("unbiased", [False, True])
def test_a_batch_of_one_triplet_is_finite(unbiased, tiny, sample):
    objective, graph = build("FREEDOM", tiny, unbiased=unbiased)
    terms = objective(graph, sample(tiny, 1))
    sum(terms.values()).backward()
    assert all(x.isfinite() for x in terms.values())
    assert all(x.grad is None or x.grad.isfinite().all() for x in objective.parameters())
    assert terms["gib/hsic"] == 0 if unbiased else terms["gib/hsic"] > 0
    same = torch.tensor([4])
    assert objective(graph, Triplets(same, same, same))["gib/hsic"] == 0


def test_backbones_without_an_item_graph_are_refused(tiny):
    with pytest.raises(ValueError) as error:
        Objective(BPRMF.from_data(tiny), GIB())
    assert str(error.value) == (
        "GIB masks an item-item graph, and BPRMF has none (its 'has_item_graph' is false); "
        "FREEDOM, LATTICE, VLATTICE have one"
    )


class Bare(BPRMF):
    """Declares an item graph, and nothing that the mask could read of an item."""

    has_item_graph = True

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.items, self.item_embedding = self.item_embedding, None


def test_backbones_whose_items_have_nothing_to_read_are_refused(tiny):
    with pytest.raises(ValueError) as error:
        Objective(Bare.from_data(tiny), GIB())
    assert str(error.value) == (
        "GIB reads the items of an edge, and Bare has neither an 'item_embedding' nor projected "
        "modalities ('content_channels'); FREEDOM, LATTICE, VLATTICE have both"
    )


def test_an_embedding_that_is_none_is_no_part_of_what_the_mask_reads(tiny):
    class NoEmbedding(Bare):
        content_channels = {"image": 16}

        def content(self, graph, rows=EVERY_ROW):
            return {"image": graph.x["image"][:, :16]}

    backbone = NoEmbedding.from_data(tiny)
    method = Objective(backbone, GIB()).methods[0]
    graph = backbone.graph(tiny)
    assert method.edge_mask.lin_target.in_features == 16
    assert torch.equal(
        method._items(backbone, method._content(backbone, graph)), graph.x["image"][:, :16]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, r"'weight' needs to be a number of 0 or more \(got -1.0\)"),
        ({"variance": -0.1}, r"'variance' needs to be positive \(got -0.1\)"),
        ({"temperature": 0.0}, r"'temperature' needs to be positive \(got 0.0\)"),
        ({"hidden_channels": -3}, r"'hidden_channels' needs to be a positive integer \(got -3\)"),
        ({"hidden_channels": 0}, r"'hidden_channels' needs to be a positive integer \(got 0\)"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GIB(**options)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [16, 100])
def test_vectors_on_the_full_graph_are_those_of_another_run(case, size, tiny, sample):
    objective, graph = build(case, tiny)
    backbone, batch = objective.backbone, sample(tiny, size)
    torch.manual_seed(3)
    masked = objective.methods[0].refine(backbone, graph)
    full = masked.adjacency[UNMASKED]
    by_rows = backbone.rowwise or backbone.gathers_output
    for rows in [EVERY_ROW, batch.rows] if by_rows else [EVERY_ROW]:
        stages = backbone(masked, rows)
        ours = backbone.item_vectors_on(full, stages, masked, rows)
        assert_close(ours, Backbone.item_vectors_on(backbone, full, stages, masked, rows))
        assert not torch.allclose(ours, backbone.vectors(stages)[1])
