"""The shipped check lets sound backbones pass, and names what is wrong with others."""

import copy

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from pyg_mmrec.data.graph import INTERACTS
from pyg_mmrec.nn.backbones import (
    EVERY_ROW,
    FREEDOM,
    VBPR,
    VLATTICE,
    ItemKNN,
    LightGCN,
    MostPop,
    Triplets,
)
from pyg_mmrec.nn.objectives import FIB, DVIBa
from pyg_mmrec.testing import check_backbone, check_method
from tests.testing.sound import DATA, Content, Lazy, Regularized, Rowwise, Sound, refused


@pytest.mark.parametrize("cls", [Sound, Rowwise, Regularized, Lazy, Content])
def test_a_sound_backbone_passes(cls):
    backbone = cls.from_data(DATA)
    check_backbone(backbone, backbone.graph(DATA))
    ids = torch.arange(5)
    check_backbone(backbone, backbone.graph(DATA), batch=Triplets(ids, ids, ids + 5))
    check_method(DVIBa, backbone, backbone.graph(DATA))
    if backbone.content_channels:
        check_method(FIB, backbone, backbone.graph(DATA))


@pytest.mark.parametrize("cls", [MostPop, ItemKNN, LightGCN, VBPR, FREEDOM])
def test_nothing_is_changed(cls):
    torch.manual_seed(0)
    backbone = cls.from_data(DATA).eval()
    graph = backbone.graph(DATA)
    before = copy.deepcopy((graph, dict(backbone.state_dict())))
    state = torch.get_rng_state()
    check_backbone(backbone, graph)
    if backbone.sites:
        check_method(DVIBa, backbone, graph)
    assert torch.equal(torch.get_rng_state(), state) and not backbone.training
    assert all(p.grad is None for p in backbone.parameters())
    after = (graph, dict(backbone.state_dict()))
    for x, y in zip(pytree.tree_leaves(before), pytree.tree_leaves(after), strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


def test_sizes_of_backbone_and_graph_agree():
    class Other(Sound):
        def graph(self, data):
            return super().graph(data).replace(num_items=91)

    refused(Other, "'num_items' is 90, but the graph has 91")


def test_what_is_no_backbone_or_graph_is_refused():
    backbone = Sound(DATA["user"].num_nodes, DATA["item"].num_nodes)
    with pytest.raises(ValueError, match=r"'backbone' needs to be a Backbone \(got the class So"):
        check_backbone(Sound, backbone.graph(DATA))
    with pytest.raises(ValueError, match=r"'graph' needs to be a Graph.*\(got HeteroData\)"):
        check_backbone(backbone, DATA)


def test_loss_terms_are_finite_scalars():
    class Vector(Sound):
        def loss(self, stages, batch):
            return {"bpr": batch.at("item", stages.output["item"]).sum(1)}

    refused(Vector, r"the loss term 'bpr' of 'loss' needs to be a scalar tensor \(got \[64\]\)")

    class Infinite(Sound):
        def loss(self, stages, batch):
            return {"bpr": super().loss(stages, batch)["bpr"] / 0}

    refused(Infinite, "the loss term 'bpr' of 'loss' is inf")

    class Sum(Sound):
        def loss(self, stages, batch):
            return super().loss(stages, batch)["bpr"]

    refused(Sum, "'loss' needs to return a dict of loss terms by name")

    class Nothing(Sound):
        def loss(self, stages, batch):
            return {}

    refused(Nothing, "'loss' returns no term, though there are parameters")


def test_loss_reads_rows_of_the_batch_from_the_output():
    def whole(base):
        class Whole(base):
            def loss(self, stages, batch):
                squares = stages.output["item"].square().mean()
                return {**super().loss(stages, batch), "squares": squares}

        return Whole

    backbone = whole(Sound).from_data(DATA)  # every row is there
    check_backbone(backbone, backbone.graph(DATA))
    refused(
        whole(Rowwise),
        r"'loss' of the batch's rows alone gives other terms \['squares'\]; read 'batch",
    )

    class Hidden(Sound):
        def loss(self, stages, batch):
            return {"x": batch.at("item", stages.hidden["item/first"]).square().mean()}

    refused(Hidden, "'loss' of the whole 'output' alone fails with KeyError")

    class Indexing(Rowwise):
        def loss(self, stages, batch):
            rows = stages.output["item"][torch.cat([batch.positive, batch.negative])]
            return {"x": rows.square().mean()}

    refused(Indexing, "'loss' of the batch's rows alone")


def test_every_parameter_gets_a_gradient_or_is_named():
    class Unused(Sound):
        def __init__(self, num_users, num_items):
            super().__init__(num_users, num_items)
            self.spare = nn.Linear(2, 2)

    refused(Unused, r"\['spare.weight', 'spare.bias'\] get no gradient")
    refused(Unused, r"\['spare.bias'\] get no gradient", unused_parameters=["spare.weight"])
    backbone = Unused.from_data(DATA)
    names = ["spare.weight", "spare.bias"]
    check_backbone(backbone, backbone.graph(DATA), unused_parameters=names)
    with pytest.raises(ValueError, match="'unused_parameters' names 'spares', but the parameters"):
        check_backbone(backbone, backbone.graph(DATA), unused_parameters=["spares"])

    class Detached(Sound):
        def loss(self, stages, batch):
            return {key: x.detach() for key, x in super().loss(stages, batch).items()}

    refused(Detached, "the loss depends on no parameter; is something detached")


def test_what_is_trained_is_registered():
    class Listed(Sound):
        def __init__(self, num_users, num_items):
            super().__init__(num_users, num_items)
            self.layers = [nn.Linear(4, 4)]

        def fuse(self, modality, graph):
            hidden, context = super().fuse(modality, graph)
            return {site: self.layers[0](x) for site, x in hidden.items()}, context

    refused(Listed, r"tensors that are not among 'parameters\(\)', of shapes \[\[4\], \[4, 4\]\]")


def test_vectors_rank_as_the_scores_do():
    class Other(Sound):
        def scores(self, stages, graph, users):
            return 2 * super().scores(stages, graph, users)

    refused(Other, "inner products of 'vectors' differ from 'scores'")

    class Few(Sound):
        def scores(self, stages, graph, users):
            return super().scores(stages, graph, users)[:, :5]

    refused(Few, r"of shape \[users, items\], \[32, 90\] \(got \[32, 5\]\)")

    class Uneven(Sound):
        def vectors(self, stages):
            user, item = super().vectors(stages)
            return user[:-1], item

    refused(Uneven, r"'vectors' needs to return \[120, d\] and \[90, d\] \(got \[119, 4\]")

    class Silent(Sound):
        def vectors(self, stages):
            raise ValueError("no vectors")

    with pytest.raises(ValueError, match="no vectors"):  # the inherited scores need them
        backbone = Silent.from_data(DATA)
        check_backbone(backbone, backbone.graph(DATA))

    class Dropped(Sound):
        def fuse(self, *args):
            hidden, context = super().fuse(*args)
            return hidden, {**context, "user/embedding": self.dropped(context["user/embedding"])}

        def dropped(self, x):
            return nn.functional.dropout(x)

    refused(Dropped, "two calls in evaluation mode rank differently")

    class Ordered(Sound):
        def scores(self, stages, graph, users):
            return super().scores(stages, graph, users.sort().values)

    refused(Ordered, "'scores' depends on the order of the users")


def test_the_graph_is_not_kept():
    class Cached(LightGCN):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.kept = []

        def encode(self, hidden, context, graph, delta=None):
            self.kept = self.kept or [graph]
            return super().encode(hidden, context, self.kept[0], delta)

    refused(Cached, "on another graph it ranks differently from a copy that never saw this one")


def test_all_that_is_learned_is_in_the_state():
    class Cached(Sound):
        cache = None

        def fuse(self, modality, graph):
            hidden, context = super().fuse(modality, graph)
            if self.training:
                return hidden, context
            if self.cache is None:  # as one would to save work at inference
                self.cache = hidden["item/first"].clone()
            return {"item/first": self.cache}, context

    message = r"with the 'state_dict\(\)' of a copy loaded it ranks differently from the copy"
    refused(Cached, message)

    class Loose(Sound):
        sharpness = 1.0

        def load_state_dict(self, *args, **kwargs):
            self.sharpness = 2.0  # stands for anything that is not among parameters and buffers
            return super().load_state_dict(*args, **kwargs)

        def encode(self, *args):
            hidden, output, compared = super().encode(*args)
            item = output["item"] * self.sharpness
            return hidden, {**output, "item": item}, {"item": item}

    refused(Loose, message)

    class Lowest(LightGCN):
        kept = None

        def encode(self, hidden, context, graph, delta=None):
            reached, output, _ = super().encode(hidden, context, graph, delta)
            degree = graph.adjacency[INTERACTS].rowptr.diff()[:, None]
            self.kept = degree if self.kept is None else torch.minimum(self.kept, degree)
            output["item"] = output["item"] * self.kept
            return reached, output, {"user": output["user"], "item": output["item"]}

    refused(Lowest, "after a call on another graph it ranks differently on this one")


def test_perturbed_terms_are_those_that_a_perturbation_changes():
    class Silent(LightGCN):
        def perturbed_loss(self, stages, batch):
            return {}

        def loss(self, stages, batch):
            return {**LightGCN.perturbed_loss(self, stages, batch)}

    refused(Silent, r"changes the loss terms \['bpr'\], which 'perturbed_loss' leaves out")

    class Other(LightGCN):
        def perturbed_loss(self, stages, batch):
            return {k: 2 * x for k, x in super().perturbed_loss(stages, batch).items()}

        def loss(self, stages, batch):
            return LightGCN.perturbed_loss(self, stages, batch)

    refused(Other, r"'perturbed_loss' gives terms \['bpr'\] that 'loss' does not give alike")


def test_sampled_graphs_follow_the_generator():
    class Global(FREEDOM):
        def sample_graph(self, graph, epoch, generator=None):
            return super().sample_graph(graph, epoch)

    refused(Global, "draws different graphs from generators of the same seed")

    class Undeclared(FREEDOM):
        graph_sampling = "never"

    refused(Undeclared, "changes the graph, but 'graph_sampling' is 'never'")

    class Rare(FREEDOM):
        graph_sampling = "rarely"

    refused(Rare, "needs to be 'never', 'epoch' or 'step'")

    class Smaller(FREEDOM):
        def sample_graph(self, graph, epoch, generator=None):
            return graph.replace(adjacency={INTERACTS: graph.adjacency[INTERACTS]})

    refused(Smaller, "'sample_graph' changes sizes or drops edge types")

    class Writing(FREEDOM):
        def sample_graph(self, graph, epoch, generator=None):
            graph.adjacency[INTERACTS].weight.mul_(0.5)
            return graph

    refused(Writing, "'sample_graph' writes into the graph it is given")


def test_content_is_what_is_declared():
    class Wide(VBPR):
        @property
        def content_channels(self):
            return dict.fromkeys(self.modalities, 7)

    refused(Wide, "declares 7 channels of 'image', but 'content'")

    class Silent(Sound):
        loss_reads_content = True

    refused(Silent, "neither 'modalities' nor 'content_channels' says which")

    class Late(VBPR):
        def content(self, graph, rows=EVERY_ROW):
            return {name: rows.at("item", z) + 1 for name, z in super().content(graph).items()}

        def project(self, graph, rows=EVERY_ROW):
            return VBPR.content(self, graph, rows)

    refused(Late, r"'content' and 'project' differ in \['image', 'text'\]")

    class Whole(VBPR):
        def content(self, graph, rows=EVERY_ROW):
            return super().content(graph)

        def project(self, graph, rows=EVERY_ROW):
            return VBPR.content(self, graph, rows)

    refused(Whole, "for some rows differs from the same rows")

    class Nobody(VBPR):
        def user_content_parameters(self):
            return iter(())

    refused(Nobody, "'user_content_parameters' names none")

    class Uneven(VBPR):
        def content_vectors(self, graph, rows=EVERY_ROW):
            user, item = super().content_vectors(graph, rows)
            return user[:, 1:], item

    refused(Uneven, "one row per given user and item, of one")


def test_the_item_graph_is_what_items_are_propagated_over():
    class Reversed(VLATTICE):
        def item_graph(self, graph):
            return super().item_graph(graph).t()

        def fuse(self, modality, graph):
            hidden, context = super().fuse(modality, graph)
            return hidden, {**context, "similar": VLATTICE.item_graph(self, graph)}

    refused(Reversed, "is not what items are propagated over")

    class Stubborn(VLATTICE):
        def fuse(self, modality, graph):
            hidden, context = super().fuse(modality, graph)
            own = {k: x for k, x in graph.adjacency.items() if k != ("item", "similar", "item")}
            similar = VLATTICE.item_graph(self, graph.replace(adjacency=own))
            return hidden, {**context, "similar": similar}

    refused(Stubborn, "another one changes nothing")

    class Elsewhere(VLATTICE):
        def item_vectors_on(self, similar, stages, graph, batch=None):
            return stages.output["item"]

    refused(Elsewhere, "'item_vectors_on' differs from a run")
