import pytest
import torch
from torch_geometric import EdgeIndex

from pyg_mmrec.data import Adjacency
from pyg_mmrec.nn.conv import ConfidenceConv

SIZE = (6, 4)

# torch announces unchecked invariants of sparse tensors.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")


@pytest.fixture
def bipartite():
    """Features, edges by target then source, attention of 3 views, confidence of the sources."""
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randperm(SIZE[0] * SIZE[1], generator=generator)[:11].sort().values
    edge_index = torch.stack([pairs % SIZE[0], pairs // SIZE[0]])
    x = torch.randn(SIZE[0], 5, dtype=torch.float64, generator=generator)
    attention = torch.rand(11, 3, dtype=torch.float64, generator=generator)
    confidence = torch.randn(SIZE[0], 3, dtype=torch.float64, generator=generator)
    return x, edge_index, attention, confidence


def by_hand(x, edge_index, attention, confidence):
    out = torch.zeros(SIZE[1], x.size(1), dtype=x.dtype)
    for alpha, (j, i) in zip(attention, edge_index.t(), strict=True):
        out[i] += max(0, *(alpha * confidence[j]).tolist()) * x[j]
    return out


def test_every_layout_of_edges_follows_the_formula(bipartite):
    x, edge_index, attention, confidence = bipartite
    expected = by_hand(*bipartite)
    for graph in (
        edge_index,
        EdgeIndex(edge_index, sparse_size=SIZE, sort_order="col"),
        Adjacency.from_edge_index(edge_index, size=SIZE),
    ):
        out = ConfidenceConv()((x, None), graph, attention, confidence, size=SIZE)
        torch.testing.assert_close(out, expected)


def test_gradients_reach_everything(bipartite):
    x, edge_index, attention, confidence = bipartite
    adjacency = Adjacency.from_edge_index(edge_index, size=SIZE)
    inputs = [t.requires_grad_() for t in (x, attention, confidence)]
    assert torch.autograd.gradcheck(
        lambda x, a, c: ConfidenceConv()((x, None), adjacency, a, c), inputs
    )


def test_a_matrix_of_weights_is_refused(bipartite):
    x, _, attention, confidence = bipartite
    with pytest.raises(ValueError, match="needs to be edges, not a sparse matrix"):
        ConfidenceConv()((x, None), torch.eye(6).to_sparse_csr(), attention, confidence)
