import pytest
import torch
from torch import nn

from pyg_mmrec.data.graph import INTERACTS
from pyg_mmrec.nn.backbones import (
    BPRMF,
    FREEDOM,
    GRCN,
    LATTICE,
    MMGCN,
    VBPR,
    VLATTICE,
    LightGCN,
    MostPop,
    VLightGCN,
)
from pyg_mmrec.nn.objectives import (
    GIB,
    DVIBa,
    DVIBc,
    Method,
    MirrorGradient,
    Objective,
    ibmrec,
)


class Halve(Method):
    """Trains and ranks on every other interaction, and weighs the clean loss."""

    name = "halve"

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = weight

    @property
    def clean_weight(self):
        return self.weight

    def refine(self, backbone, graph):
        to_item = graph.adjacency[INTERACTS]
        return graph.with_interactions(to_item.select(torch.arange(to_item.num_edges) % 2 == 0))

    inference_graph = refine


class Shrink(Method):
    """Adds a term of its own, with a parameter."""

    name = "shrink"

    def __init__(self, everywhere=False):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.everywhere = everywhere
        self.rows = None

    @property
    def reads_all_rows(self):
        return self.everywhere

    def terms(self, backbone, graph, stages, batch, clean):
        self.rows = stages.output["item"].size(0)
        item = batch.at("item", stages.output["item"])
        return {"squares": self.scale * item.square().mean(), "edges": self.scale * 0
                + graph.adjacency[INTERACTS].num_edges}  # fmt: skip


def test_without_methods_it_is_the_backbones_loss(tiny, sample):
    for cls in (LightGCN, VBPR, FREEDOM):
        backbone = cls.from_data(tiny, embedding_dim=8)
        graph, batch = backbone.graph(tiny), sample(tiny)
        expected = backbone.loss(backbone(graph), batch)
        torch.testing.assert_close(Objective(backbone)(graph, batch), expected)
        assert Objective(backbone).inference_graph(graph) is graph


def test_methods_compose(tiny, sample):
    torch.manual_seed(0)
    backbone = LightGCN.from_data(tiny, embedding_dim=8, reg_weight=0)
    graph, batch = backbone.graph(tiny), sample(tiny)
    objective = Objective(backbone, Halve(0.5), DVIBc(std=0, clean_weight=0.5), Shrink())
    terms = objective(graph, batch)
    assert list(terms) == ["bpr", "dvib/noisy", "dvib/distillation", "shrink/squares",
                           "shrink/edges"]  # fmt: skip
    # The backbone, its noisy path and the other methods run on the refined graph.
    halved = objective.inference_graph(graph)
    clean = backbone.loss(backbone(halved), batch)["bpr"]
    torch.testing.assert_close(terms["bpr"], 0.25 * clean)
    torch.testing.assert_close(terms["dvib/noisy"], clean)
    assert terms["shrink/edges"].item() == halved.adjacency[INTERACTS].num_edges
    assert halved.adjacency[INTERACTS].num_edges * 2 - graph.adjacency[INTERACTS].num_edges < 2


def test_state_of_backbone_and_methods_stay_apart(tiny):
    backbone = LightGCN.from_data(tiny, embedding_dim=8)
    keys = list(backbone.state_dict())
    objective = Objective(backbone, Shrink())
    assert list(backbone.state_dict()) == keys and objective.backbone is backbone
    assert list(objective.state_dict()) == [f"backbone.{k}" for k in keys] + ["methods.0.scale"]


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("cls", [VBPR, FREEDOM, LightGCN])
def test_methods_get_the_rows_they_read(tiny, sample, everywhere, cls):
    backbone = cls.from_data(tiny, embedding_dim=8)
    method, batch = Shrink(everywhere), sample(tiny, 16)
    terms = Objective(backbone, method)(backbone.graph(tiny), batch)
    assert method.rows == (batch.items.numel() if backbone.rowwise and not everywhere else 90)
    item = batch.at("item", backbone(backbone.graph(tiny)).output["item"])
    torch.testing.assert_close(terms["shrink/squares"], 0.5 * item.square().mean())


@pytest.mark.parametrize("size", [100, 150])
def test_a_batch_is_read_by_rows_where_these_are_fewer(tiny, sample, size):
    backbone, method = FREEDOM.from_data(tiny, embedding_dim=8), Shrink()
    graph, batch = backbone.graph(tiny), sample(tiny, size)
    few = batch.items.numel()  # of 90; there are 120 users
    assert few < 90 and (size + few < 120 + 90) == (size == 100)
    terms = Objective(backbone, method)(graph, batch)
    assert method.rows == (few if size == 100 else 90)
    torch.testing.assert_close(terms["bpr"], backbone.loss(backbone(graph), batch)["bpr"])


def test_a_clean_weight_of_0_leaves_the_loss_to_the_methods(tiny, sample):
    backbone = LightGCN.from_data(tiny, embedding_dim=8)
    terms = Objective(backbone, Halve(0.0))(backbone.graph(tiny), sample(tiny))
    assert terms == {}


def test_nothing_to_train_has_no_term(tiny, sample):
    backbone = MostPop.from_data(tiny)
    assert Objective(backbone)(backbone.graph(tiny), sample(tiny)) == {}


class Wrong(Method):
    """Returns what is no dict of scalars."""

    name = "wrong"

    def __init__(self, terms=None, second=None):
        super().__init__()
        self.found, self.second = terms or {}, second or {}

    def terms(self, *_):
        return self.found

    def second_terms(self, *_):
        return self.second


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rows": torch.zeros(3)}, r"'rows' of Wrong needs to be a scalar tensor \(got \[3\]\)"),
        ({"number": 0.5}, r"'number' of Wrong needs to be a scalar tensor \(got float\)"),
        (torch.ones(()), r"terms of Wrong need to be a dict \(got Tensor\)"),
    ],
)
def test_terms_are_scalars(tiny, sample, wrong, message):
    backbone = VBPR.from_data(tiny, embedding_dim=8)
    graph, batch = backbone.graph(tiny), sample(tiny)
    with pytest.raises(ValueError, match=message):
        Objective(backbone, Wrong(wrong))(graph, batch)
    with pytest.raises(ValueError, match=message):
        Objective(backbone, Wrong(second=wrong)).second_stage(graph, batch)


def test_a_loss_of_the_backbone_is_one_number(tiny, sample, monkeypatch):
    backbone = VBPR.from_data(tiny, embedding_dim=8)
    graph, batch = backbone.graph(tiny), sample(tiny)
    monkeypatch.setattr(backbone, "loss", lambda stages, batch: {"bpr": batch.user.float()})
    with pytest.raises(ValueError, match=r"the loss term 'bpr' of VBPR needs to be a scalar"):
        Objective(backbone, DVIBc())(graph, batch)


def test_what_is_no_backbone_is_refused():
    with pytest.raises(ValueError, match=r"'backbone' needs to be a Backbone \(got Linear\)"):
        Objective(nn.Linear(2, 2), DVIBc())


def test_two_methods_of_one_name_are_refused_before_anything_is_attached(tiny):
    attached = []

    class Noted(Method):
        def attach(self, backbone):
            attached.append(backbone)

    with pytest.raises(ValueError, match=r"each method goes in once \(got \['method', 'method'"):
        Objective(LightGCN.from_data(tiny), Noted(), Noted())
    assert attached == []


def test_the_base_method_changes_nothing(tiny, sample):
    backbone = LightGCN.from_data(tiny, embedding_dim=8)
    graph, batch = backbone.graph(tiny), sample(tiny)
    objective = Objective(backbone, Method())
    torch.testing.assert_close(objective(graph, batch), Objective(backbone)(graph, batch))
    assert objective.inference_graph(graph) is graph


def test_a_method_goes_with_one_backbone_alone(tiny):
    method = GIB()
    first = Objective(VLATTICE.from_data(tiny, embedding_dim=8), method)
    weights = first.methods[0].edge_mask.lin_out.weight
    with pytest.raises(ValueError, match="this GIB is part of another objective"):
        Objective(FREEDOM.from_data(tiny, embedding_dim=4), method)
    assert first.methods[0].edge_mask.lin_out.weight is weights
    with pytest.raises(ValueError, match="needs methods, instances of Method"):
        Objective(VLATTICE.from_data(tiny), GIB)


def test_methods_follow_the_backbone(tiny, sample):
    backbone = VLATTICE.from_data(tiny, embedding_dim=8).double()
    objective = Objective(backbone, *ibmrec(backbone), DVIBa())
    assert {x.dtype for x in objective.parameters()} == {torch.float64}
    on_meta = Objective(VLATTICE.from_data(tiny, embedding_dim=8).to("meta"), GIB())
    assert {x.device.type for x in on_meta.parameters()} == {"meta"}


def test_what_trains_nothing_takes_no_method(tiny):
    with pytest.raises(ValueError, match="MostPop has nothing to train, so no method goes with it"):
        Objective(MostPop(tiny["user"].num_nodes, tiny["item"].num_nodes), MirrorGradient())
    Objective(MostPop(tiny["user"].num_nodes, tiny["item"].num_nodes))


def test_the_parts_of_ibmrec(tiny):
    parts = {
        cls: [type(method).__name__ for method in ibmrec(cls)]
        for cls in (VBPR, VLightGCN, LATTICE, VLATTICE, FREEDOM, GRCN)
    }
    both = ["FIB", "SecondStage"]
    assert list(parts.values()) == [
        both, both, ["GIB"], ["FIB", "GIB", "SecondStage"], ["GIB"], ["FIB"],
    ]  # fmt: skip


def test_ibmrec_leaves_it_to_fib_to_refuse_what_is_not_projected(tiny):
    text_only = MMGCN.from_data(tiny, modalities=["text"])
    for backbone in (MMGCN.from_data(tiny), text_only, BPRMF.from_data(tiny)):
        with pytest.raises(ValueError, match="FIB narrows the projections of modalities"):
            Objective(backbone, *ibmrec(backbone))


def test_a_method_shows_its_options():
    assert (
        repr(MirrorGradient(alpha_2=0.3)) == "MirrorGradient(alpha_1=1.0, alpha_2=0.3, interval=3)"
    )
    text = repr(GIB(weight=2.0, variance=None))
    assert "weight=2.0" in text and "variance=None, normalize=True, unbiased=False" in text
