from typing import Any

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.typing import Adj, OptPairTensor, OptTensor, Size
from torch_geometric.utils import spmm as pyg_spmm

from pyg_mmrec.data import Adjacency
from pyg_mmrec.nn.functional.spmm import outside_autocast, spmm


def with_wide_ids(edge_index: Any) -> Any:
    """The same graph, with 64-bit ids if it is one of edges: by expanded indices of 32 bits, as
    PyG's backward pass has them, torch 2.13 gathers wrong rows on a CPU.
    """
    coo = isinstance(edge_index, Tensor) and edge_index.layout is torch.strided
    return edge_index.long() if coo and edge_index.dtype == torch.int32 else edge_index


class WeightedConv(MessagePassing):
    r"""Weighted propagation, the one graph operation of LightGCN-like recommenders.

    .. math::
        \mathbf{x}^{\prime}_i = \sum_{j \in \mathcal{N}(i)} e_{j,i} \, \mathbf{x}_j

    (`"LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation"
    <https://arxiv.org/abs/2002.02126>`_, Eq. 3, with the normalisation held in the edge weights).
    It takes every adjacency layout of PyG and gives equal results on all of them. An
    :class:`~pyg_mmrec.data.Adjacency` is the fast one for training: it is sorted once for both
    passes, and its weights may need a gradient.

    Args:
        **kwargs (optional): Arguments of :class:`torch_geometric.nn.conv.MessagePassing`, but for
            ``aggr`` and ``flow``, which are what the formula says.

    Shapes:
        - **input:** node features :math:`(|\mathcal{V}|, F)`, or a pair
          :math:`((|\mathcal{V_s}|, F), *)` in a bipartite graph (the second part is only used for
          its number of rows and may be :obj:`None` where ``size`` or the adjacency tells it);
          adjacency; edge weights :math:`(|\mathcal{E}|)` *(optional)*
        - **output:** :math:`(|\mathcal{V_t}|, F)`

    Example:
        >>> import torch
        >>> from pyg_mmrec.data import Adjacency
        >>> edge_index = torch.tensor([[0, 1, 1], [1, 0, 2]])
        >>> adjacency = Adjacency.from_edge_index(edge_index, size=(3, 3))
        >>> WeightedConv()(torch.tensor([[1.0], [2.0], [4.0]]), adjacency).flatten().tolist()
        [2.0, 1.0, 2.0]
    """

    SUPPORTS_FUSED_EDGE_INDEX = True

    def __init__(self, **kwargs: Any) -> None:
        for name, value in (("aggr", "add"), ("flow", "source_to_target")):
            if kwargs.setdefault(name, value) != value:
                raise ValueError(f"'{name}' of WeightedConv is '{value}' (got {kwargs[name]!r})")
        super().__init__(**kwargs)

    def forward(
        self,
        x: Tensor | OptPairTensor,
        edge_index: Adj | Adjacency,
        edge_weight: OptTensor = None,
        size: Size = None,
    ) -> Tensor:
        """Propagates once.

        Args:
            x (torch.Tensor or tuple): Features of the nodes, or of sources and targets.
            edge_index (Adj or Adjacency): The graph, from sources to targets (sparse matrices as
                PyG has them: transposed, one row per target).
            edge_weight (torch.Tensor, optional): ``[num_edges]`` in the order of ``edge_index``;
                for an :class:`~pyg_mmrec.data.Adjacency` in the order of its ``edge_index``.
            size (tuple[int, int], optional): Number of sources and targets of a COO graph.
                (default: those of an ``EdgeIndex``, else the numbers of rows in ``x``)

        Raises:
            ValueError: If ``edge_weight`` comes with a sparse matrix, which holds its own weights,
                or shapes do not fit.
        """
        if isinstance(x, Tensor):
            x = (x, x)
        edge_index = with_wide_ids(edge_index)
        if isinstance(edge_index, Adjacency):
            if edge_weight is not None:
                edge_index = edge_index.with_weight(edge_weight)
            return spmm(edge_index, x[0])
        if isinstance(edge_index, EdgeIndex):
            sizes = edge_index.sparse_size()
            size = sizes if size is None else size
            # Its own product has no gradient by weights, and a wrong one in bipartite graphs; of
            # unknown sizes, it ends at the highest id.
            learns = edge_weight is not None and edge_weight.requires_grad
            if None in sizes or torch.is_grad_enabled() and (learns or x[0].requires_grad):
                edge_index = edge_index.as_tensor()
        elif edge_weight is not None and not self._is_coo(edge_index):
            raise ValueError("'edge_weight' does not go with a sparse matrix, which holds its own")
        elif isinstance(edge_index, Tensor) and edge_index.layout is torch.sparse_csc:
            edge_index = edge_index.to_sparse_csr()  # the other has no gradient by values
        if edge_weight is not None and edge_weight.shape != edge_index.shape[1:]:
            raise ValueError(
                f"'edge_weight' needs one number per edge, shape {list(edge_index.shape[1:])} "
                f"(got {list(edge_weight.shape)})"
            )
        # propagate_type: (x: OptPairTensor, edge_weight: OptTensor)
        return self.propagate(edge_index, x=x, edge_weight=edge_weight, size=size)

    @staticmethod
    def _is_coo(edge_index: Adj) -> bool:
        return isinstance(edge_index, Tensor) and edge_index.layout is torch.strided

    def message(self, x_j: Tensor, edge_weight: OptTensor) -> Tensor:
        """Weighs the sources' features by their edges."""
        return x_j if edge_weight is None else edge_weight.view(-1, 1) * x_j

    def message_and_aggregate(self, adj_t: Adj, x: OptPairTensor, edge_weight: OptTensor) -> Tensor:
        """Multiplies with the sparse matrix, without a message per edge."""
        if isinstance(adj_t, EdgeIndex):
            return adj_t.matmul(x[0], input_value=edge_weight, reduce=self.aggr, transpose=True)
        source = outside_autocast(x[0])
        with torch.autocast(source.device.type, enabled=False):
            return pyg_spmm(adj_t, source, reduce=self.aggr)
