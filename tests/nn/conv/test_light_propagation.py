import pytest
import torch

from pyg_mmrec.data import Adjacency
from pyg_mmrec.nn.conv import LightPropagation

NUM_USERS, NUM_ITEMS = 4, 6


@pytest.fixture
def graph():
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(NUM_USERS, NUM_ITEMS, dtype=torch.float64, generator=generator)
    weight = weight * (torch.rand(NUM_USERS, NUM_ITEMS, generator=generator) < 0.5)
    edge_index = weight.nonzero().t()
    adjacency = Adjacency.from_edge_index(
        edge_index, weight[tuple(edge_index)], size=(NUM_USERS, NUM_ITEMS)
    )
    square = torch.zeros(NUM_USERS + NUM_ITEMS, NUM_USERS + NUM_ITEMS, dtype=torch.float64)
    square[:NUM_USERS, NUM_USERS:] = weight
    square[NUM_USERS:, :NUM_USERS] = weight.t()
    x = torch.randn(NUM_USERS + NUM_ITEMS, 3, dtype=torch.float64, generator=generator)
    return adjacency, square, x


def propagate(adjacency, x, num_layers):
    user, item = x.split([NUM_USERS, NUM_ITEMS])
    return torch.cat(LightPropagation(num_layers)(user, item, adjacency, adjacency.t()))


@pytest.mark.parametrize("num_layers", [0, 1, 2, 3])
def test_equals_the_mean_of_the_layers_of_the_square_matrix(graph, num_layers):
    adjacency, square, x = graph
    layers = [x]
    for _ in range(num_layers):
        layers.append(square @ layers[-1])
    torch.testing.assert_close(
        propagate(adjacency, x, num_layers), torch.stack(layers).mean(0), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("num_layers", [1, 2])
def test_gradcheck(graph, num_layers):
    adjacency, _, x = graph
    assert torch.autograd.gradcheck(
        lambda x: propagate(adjacency, x, num_layers), x.requires_grad_()
    )


def test_fewer_than_no_layers_are_refused():
    with pytest.raises(ValueError, match=r"needs to be an integer of 0 or more \(got -1\)"):
        LightPropagation(-1)
