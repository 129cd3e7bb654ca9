"""The shipped check lets sound methods pass, and names what is wrong with others."""

import pytest
import torch
from torch import nn

from pyg_mmrec.data import PlantedDataset
from pyg_mmrec.data.graph import INTERACTS
from pyg_mmrec.nn.backbones import FREEDOM, LATTICE, VBPR, LightGCN, SelfCF
from pyg_mmrec.nn.objectives import DVIBa, DVIBc, Method
from pyg_mmrec.testing import check_method

DATA = PlantedDataset("tiny")[0]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The tensors here are so small that threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


@pytest.mark.parametrize(
    "make", [Shrinking, Method, DVIBa, DVIBc, lambda: DVIBa(kind="dropout", compare="scores")]
)
@pytest.mark.parametrize("cls", [LightGCN, VBPR, FREEDOM, SelfCF, LATTICE])
def test_sound_methods_pass(make, cls):
    backbone = cls.from_data(DATA)
    check_method(make, backbone, backbone.graph(DATA))


def refused_method(cls, backbone, message, **options):
    with pytest.raises(AssertionError, match=message) as error:
        check_method(cls, backbone, backbone.graph(DATA), **options)
    return str(error.value)


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
