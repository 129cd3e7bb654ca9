"""The shipped check lets sound methods pass, and names what is wrong with others."""

import re
from itertools import product

import pytest
import torch
from torch import nn

from pyg_mmrec.data import PlantedDataset
from pyg_mmrec.data.graph import INTERACTS
from pyg_mmrec.nn.backbones import (
    BM3,
    FREEDOM,
    LATTICE,
    MMGCN,
    VBPR,
    VLATTICE,
    LightGCN,
    SelfCF,
    VLightGCN,
)
from pyg_mmrec.nn.objectives import (
    AMR,
    FIB,
    GIB,
    DVIBa,
    DVIBc,
    Method,
    MirrorGradient,
    SecondStage,
)
from pyg_mmrec.testing import check_method

DATA = PlantedDataset("tiny")[0]


class Shrinking(Method):
    name = "shrinking"

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def terms(self, backbone, graph, stages, batch, clean):
        return {"squares": self.scale * batch.at("item", stages.output["item"]).square().mean()}


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return LightGCN.from_data(DATA, embedding_dim=8)


def fib_of_image():
    return FIB(modalities=["image"])


def dvib_of_scores():
    return DVIBa(kind="dropout", compare="scores")


SOUND = [
    *product(
        [Shrinking, Method, DVIBa, DVIBc, dvib_of_scores, MirrorGradient],
        [LightGCN, VBPR, FREEDOM, SelfCF, LATTICE],
    ),
    *product([FIB], [BM3, FREEDOM, LATTICE, VBPR]),
    (fib_of_image, MMGCN),
    *product([GIB], [FREEDOM, LATTICE, VLATTICE]),
    *product([AMR], [BM3, FREEDOM, MMGCN, VBPR]),
    *product([SecondStage], [VBPR, VLATTICE, VLightGCN]),
]


@pytest.mark.parametrize(("make", "cls"), SOUND)
def test_sound_methods_pass(make, cls):
    backbone = cls.from_data(DATA)
    check_method(make, backbone, backbone.graph(DATA))


def refused_method(cls, backbone, message, **options):
    with pytest.raises(AssertionError, match=message) as error:
        check_method(cls, backbone, backbone.graph(DATA), **options)
    return str(error.value)


def test_methods_read_rows_by_the_batch():
    class Raw(Shrinking):
        def terms(self, backbone, graph, stages, batch, clean):
            return {"squares": self.scale * stages.output["item"].square().mean()}

    class Indexed(Shrinking):
        def terms(self, backbone, graph, stages, batch, clean):
            return {"squares": self.scale * stages.output["user"][batch.user].square().mean()}

    class Everything(Raw):
        reads_all_rows = True

    class NoDict(Shrinking):
        def terms(self, backbone, graph, stages, batch, clean):
            return self.scale

    backbone = VBPR.from_data(DATA, embedding_dim=8)
    refused_method(
        Raw, backbone, r"the terms \['shrinking/squares'\] differ between stages of the ba"
    )
    refused_method(Indexed, backbone, "a forward pass fails with IndexError.*'batch.at")
    refused_method(NoDict, backbone, "a forward pass fails with ValueError.*'terms' a dict")
    check_method(Everything, backbone, backbone.graph(DATA))


def test_what_makes_no_method_is_refused(backbone):
    with pytest.raises(ValueError, match=r"needs to make a new method.*\(got DVIBa\)"):
        check_method(DVIBa(), backbone, backbone.graph(DATA))
    with pytest.raises(ValueError, match=r"'graph' needs to be a Graph"):
        check_method(DVIBa, backbone, DATA)


def test_methods_leave_the_backbone_alone(backbone):
    class Adding(Shrinking):
        def attach(self, backbone):
            backbone.extra = nn.Linear(2, 2)

    error = refused_method(Adding, backbone, "building the objective changes the backbone's state")
    assert error.startswith("Adding over LightGCN: ")
    assert not hasattr(backbone, "extra")

    class Writing(Shrinking):
        def terms(self, backbone, *args):
            backbone.item_embedding.weight.data.mul_(0.9)
            return super().terms(backbone, *args)

    refused_method(Writing, backbone, "a forward pass changes the backbone's state")

    class Replacing(Shrinking):
        def attach(self, backbone):
            vectors = backbone.vectors
            backbone.vectors = lambda stages: tuple(-x.abs() for x in vectors(stages))

    refused_method(Replacing, backbone, "ranks differently than before the method came")


def test_methods_leave_the_graph_alone(backbone):
    class Pruning(Shrinking):
        def refine(self, backbone, graph):
            graph.adjacency[INTERACTS].weight.mul_(0.5)
            return graph

    refused_method(Pruning, backbone, "a forward pass writes into the graph it is given")


def test_terms_are_finite_and_reproducible(backbone):
    class Infinite(Shrinking):
        def terms(self, *args):
            return {"squares": self.scale / 0}

    refused_method(Infinite, backbone, "the loss term 'shrinking/squares' of the objective is inf")

    class Counting(Shrinking):
        calls = 0

        def terms(self, *args):
            self.calls += 1
            return {"squares": self.scale * self.calls}

    refused_method(Counting, backbone, "differ between two calls under the same 'torch.manual_seed")

    class Silent(Method):
        clean_weight = 0.0

    refused_method(Silent, backbone, "the objective has no loss term")


def test_gradients_reach_the_methods_parameters(backbone):
    class Unused(Shrinking):
        def __init__(self):
            super().__init__()
            self.spare = nn.Parameter(torch.ones(()))

    refused_method(Unused, backbone, r"the method's parameters \['spare'\] get no gradient")
    graph = backbone.graph(DATA)
    check_method(Unused, backbone, graph, unused_parameters=["spare"])
    with pytest.raises(ValueError, match="'unused_parameters' names 'other', but the method's"):
        check_method(Unused, backbone, graph, unused_parameters=["other"])


def test_what_a_method_lacks_is_refused_with_a_value_error(backbone):
    class Careless(Shrinking):
        def attach(self, backbone):
            backbone.item_embedding.weight  # noqa: B018

    refused_method(Careless, backbone, "'attach' fails on a backbone that declares nothing")

    class Late(Shrinking):
        def terms(self, backbone, graph, stages, batch, clean):
            return {"x": self.scale * stages.hidden["item/embedding"].mean()}

    refused_method(Late, backbone, "but training on it fails with KeyError")


def test_the_factory_makes_new_methods(backbone):
    method = Shrinking()
    refused_method(lambda: method, backbone, "needs to make a new method each time")


# What only training steps, or a second stage, call -----------------------------------------------


class Second(Shrinking):
    """Sound: a second stage that trains the item vectors."""

    def second_parameters(self, backbone):
        yield backbone.get_parameter(next(name for name, _ in backbone.named_parameters()))

    def second_terms(self, backbone, graph, batch):
        return {"squares": sum(x.square().mean() for x in self.second_parameters(backbone))}


def test_a_sound_second_stage_passes(backbone):
    check_method(Second, backbone, backbone.graph(DATA))


def test_a_second_stage_gives_finite_and_reproducible_terms(backbone):
    class Raising(Second):
        def second_terms(self, *args):
            raise KeyError("content")

    error = refused_method(Raising, backbone, r"'second_terms' fails with KeyError\('content'\)")
    assert error.startswith("Raising over LightGCN: ")

    class Infinite(Second):
        def second_terms(self, *args):
            return {"squares": super().second_terms(*args)["squares"] * torch.nan}

    refused_method(Infinite, backbone, "the loss term 'squares' of 'second_terms' is nan")

    class Listing(Second):
        def second_terms(self, *args):
            return list(super().second_terms(*args).values())

    refused_method(Listing, backbone, r"'second_terms' needs to return a dict .* \(got list\)")

    class Counting(Second):
        calls = 0

        def second_terms(self, *args):
            self.calls += 1
            return {"squares": self.calls * super().second_terms(*args)["squares"]}

    refused_method(Counting, backbone, r"the terms \['squares'\] differ between two calls")


def test_a_second_stage_leaves_backbone_and_graph_alone(backbone):
    class Writing(Second):
        def second_terms(self, backbone, *args):
            backbone.item_embedding.weight.data.mul_(0.9)
            return super().second_terms(backbone, *args)

    refused_method(Writing, backbone, "'second_terms' changes the backbone's state dict")

    class Pruning(Second):
        def second_terms(self, backbone, graph, batch):
            graph.adjacency[INTERACTS].weight.mul_(0.5)
            return super().second_terms(backbone, graph, batch)

    refused_method(Pruning, backbone, "'second_terms' writes into the graph it is given")


def test_a_second_stage_trains_parameters_of_the_backbone(backbone):
    class Own(Second):
        def second_parameters(self, backbone):
            yield self.scale

    refused_method(Own, backbone, "'second_parameters' needs to yield parameters of the backbone")

    class Failing(Second):
        def second_parameters(self, backbone):
            yield backbone.extra

        def second_terms(self, *args):
            return {}

    refused_method(Failing, backbone, "'second_parameters' fails with AttributeError")

    class Forgetful(Failing):
        def second_parameters(self, backbone):
            pass

    refused_method(Forgetful, backbone, "'second_parameters' fails with TypeError")

    class Nothing(Second):
        def second_parameters(self, backbone):
            return iter(())

        def second_terms(self, backbone, *args):
            return {"squares": backbone.item_embedding.weight.square().mean()}

    class Elsewhere(Nothing):
        def second_parameters(self, backbone):
            yield backbone.user_embedding.weight

    for broken in (Nothing, Elsewhere):
        refused_method(broken, backbone, "no gradient of 'second_terms' reaches what")


def test_gradients_of_a_second_stage_are_finite(backbone):
    class Rooted(Second):
        def second_terms(self, backbone, *args):
            x = backbone.user_embedding.weight
            return {"root": (x - x.detach()).square().sum().sqrt()}  # 0, with the slope 0 / 0

    match = r"'second_terms' give of \['backbone.user_embedding.weight'\] are not finite"
    refused_method(Rooted, backbone, match)


def test_a_second_stage_asks_for_what_it_needs(backbone):
    class Late(Second):
        def second_terms(self, backbone, graph, batch):
            return {"x": backbone.item_embedding.weight.square().mean()}

        def second_parameters(self, backbone):
            yield backbone.item_embedding.weight

    refused_method(Late, backbone, "'attach' takes a backbone that declares nothing, but training")


@pytest.mark.parametrize(
    "scales", [[1.0], (), 1.0, None, (1.0, float("nan")), (float("inf"),), ("1",)]
)
def test_gradient_scales_are_finite_numbers(backbone, scales):
    class Scaling(Shrinking):
        def gradient_scales(self, step):
            return (1.0,) if step < 3 else scales

    message = "'gradient_scales' needs to return a tuple of one or more finite numbers (got "
    refused_method(Scaling, backbone, re.escape(f"{message}{scales!r} in step 3)"))


def test_gradient_scales_need_no_more_than_the_step(backbone):
    class Failing(Shrinking):
        def gradient_scales(self, step):
            return self.scales[step]

    refused_method(Failing, backbone, "'gradient_scales' fails with AttributeError")
