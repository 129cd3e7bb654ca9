import pytest
import torch

from pyg_mmrec.data import Adjacency
from pyg_mmrec.nn.conv import LayerRefinementConv

SIZE = (6, 4)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Converting sparse tensor to CSR"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
]


@pytest.fixture
def bipartite():
    """Sources, the targets' first layer, edges and weights; no edge enters the last target."""
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randperm(SIZE[0] * (SIZE[1] - 1), generator=generator)[:11]
    edge_index = torch.stack([pairs // (SIZE[1] - 1), pairs % (SIZE[1] - 1)])
    weight = torch.rand(11, dtype=torch.float64, generator=generator)
    x = torch.randn(SIZE[0], 3, dtype=torch.float64, generator=generator)
    return x, torch.randn(SIZE[1], 3, dtype=torch.float64, generator=generator), edge_index, weight


def by_hand(x, x_0, edge_index, weight):
    out = torch.zeros_like(x_0)
    for i in range(SIZE[1]):
        h = sum(w * x[j] for w, (j, k) in zip(weight, edge_index.t(), strict=True) if k == i)
        if isinstance(h, torch.Tensor):
            out[i] = (h @ x_0[i]) / (h.norm() * x_0[i].norm()) * h
    return out


def test_every_layout_follows_the_formula(bipartite, layouts):
    x, x_0, edge_index, weight = bipartite
    expected = by_hand(*bipartite)
    for name, graph, edge_weight in layouts(edge_index, weight, SIZE):
        for given in (SIZE, None):
            if name.startswith("coo") and given is None:  # nothing tells the number of targets
                continue
            for learns in (False, True):
                x = x.detach().requires_grad_(learns)
                out = LayerRefinementConv()((x, None), graph, x_0, edge_weight, size=given)
                torch.testing.assert_close(out, expected, msg=name)


def test_gradients_are_right_and_finite_where_nothing_arrives(bipartite):
    x, x_0, edge_index, weight = bipartite
    adjacency = Adjacency.from_edge_index(edge_index, weight, size=SIZE)

    def run(x, x_0):
        return LayerRefinementConv()((x, None), adjacency, x_0)

    assert torch.autograd.gradcheck(lambda x: run(x, x_0), x.requires_grad_())
    some = slice(0, SIZE[1] - 1)
    assert torch.autograd.gradcheck(lambda x_0: run(x, x_0)[some], x_0.requires_grad_())
    run(x, x_0).sum().backward()
    assert x.grad.isfinite().all() and x_0.grad.isfinite().all()


def test_a_first_layer_of_another_shape_is_refused(bipartite):
    x, x_0, edge_index, _ = bipartite
    with pytest.raises(ValueError, match=r"'x_0' needs shape \[4, 3\] \(got \[3, 3\]\)"):
        LayerRefinementConv()((x, None), edge_index, x_0[:3], size=SIZE)
