from typing import Any, Optional

import torch
from torch import Tensor
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.typing import Adj, OptTensor, PairTensor, Size, SparseTensor
from torch_geometric.utils import is_torch_sparse_tensor
from torch_geometric.utils.sparse import set_sparse_value

from pyg_mmrec.data import Adjacency
from pyg_mmrec.nn.conv.weighted_conv import with_wide_ids
from pyg_mmrec.nn.functional.edge_softmax import edge_softmax
from pyg_mmrec.nn.functional.spmm import sddmm, spmm


class RoutingAttentionConv(MessagePassing):
    r"""Attention by inner products, without parameters: neighbours alike speak louder.

    .. math::
        \mathbf{x}^{\prime}_i = \sum_{j \in \mathcal{N}(i)} \alpha_{j,i} \, \mathbf{x}_j, \qquad
        \alpha_{j,i} = \frac{\exp(\mathbf{x}_i^{\top} \mathbf{x}_j)}
        {\sum_{k \in \mathcal{N}(i)} \exp(\mathbf{x}_i^{\top} \mathbf{x}_k)}

    (`"Graph-Refined Convolutional Network for Multimedia Recommendation with Implicit Feedback"
    <https://arxiv.org/abs/2111.02036>`_, its neighbour routing). The products are not scaled, so
    features of length one are usual; the graph's own weights are not read. A node without edges
    gets 0. It takes every adjacency layout of PyG and gives equal results on all of them; on an
    :class:`~pyg_mmrec.data.Adjacency` there is no message per edge.

    Args:
        **kwargs (optional): Arguments of :class:`torch_geometric.nn.conv.MessagePassing`, but for
            ``aggr`` and ``flow``, which are what the formula says.

    Shapes:
        - **input:** node features :math:`(|\mathcal{V}|, F)`, or a pair
          :math:`((|\mathcal{V_s}|, F), (|\mathcal{V_t}|, F))` in a bipartite graph; adjacency;
          marks of the edges that take part :math:`(|\mathcal{E}|)` *(optional)*
        - **output:** :math:`(|\mathcal{V_t}|, F)`, with ``return_attention_weights`` also the pair
          of the adjacency and the attention weights :math:`(|\mathcal{E}|)`

    Example:
        >>> import torch
        >>> user, item = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 3.0]])
        >>> edge_index = torch.tensor([[0, 1], [0, 0]])  # items 0 and 1 are the user's
        >>> RoutingAttentionConv()((item, user), edge_index).tolist()
        [[0.0, 2.0]]
    """

    def __init__(self, **kwargs: Any) -> None:
        for name, value in (("aggr", "add"), ("flow", "source_to_target")):
            if kwargs.setdefault(name, value) != value:
                raise ValueError(
                    f"'{name}' of RoutingAttentionConv is '{value}' (got {kwargs[name]!r})"
                )
        super().__init__(**kwargs)

    def forward(
        self,
        x: Tensor | PairTensor,
        edge_index: Adj | Adjacency,
        edge_mask: OptTensor = None,
        size: Size = None,
        return_attention_weights: bool | None = None,
    ) -> Any:
        """Attends once.

        Args:
            x (torch.Tensor or tuple): Features of the nodes, or of sources and targets.
            edge_index (Adj or Adjacency): The graph, from sources to targets (sparse matrices as
                PyG has them: transposed, one row per target).
            edge_mask (torch.Tensor, optional): Boolean, which edges take part; they and they alone
                share the attention. ``[num_edges]`` in the order of ``edge_index``; for an
                :class:`~pyg_mmrec.data.Adjacency` in the order of its ``edge_index``.
                (default: all)
            size (tuple[int, int], optional): Number of sources and targets of a COO graph.
            return_attention_weights (bool, optional): Whether to return
                ``(out, (edge_index, attention))`` instead of ``out``, the attention in the order of
                the edges; a ``SparseTensor`` holds it as values, ``(out, edge_index)``. Equal to
                what :class:`torch_geometric.nn.conv.GATConv` returns.

        Raises:
            ValueError: If ``edge_mask`` comes with a sparse matrix (leave the edges out of it), or
                targets have no features, or shapes do not fit.
        """
        if isinstance(x, Tensor):
            x = (x, x)
        if x[1] is None:
            raise ValueError("'x' needs features of sources and of targets (got none of targets)")
        if isinstance(edge_index, Adjacency):
            score = sddmm(edge_index, x[1], x[0])
            alpha = edge_softmax(score, edge_index.edge_index[1], x[1].size(0), edge_mask)
            out = spmm(edge_index.with_weight(alpha), x[0])
        else:
            coo = isinstance(edge_index, Tensor) and edge_index.layout is torch.strided
            if edge_mask is not None and not coo:
                raise ValueError("'edge_mask' does not go with a sparse matrix: leave edges out")
            if isinstance(edge_index, Tensor) and edge_index.layout is torch.sparse_csc:
                edge_index = edge_index.to_sparse_csr()  # PyG collects no features along the other
            graph = with_wide_ids(edge_index)
            # edge_updater_type: (x: PairTensor, edge_mask: OptTensor)
            alpha = self.edge_updater(graph, x=x, edge_mask=edge_mask, size=size)
            # propagate_type: (x: PairTensor, alpha: Tensor)
            out = self.propagate(graph, x=x, alpha=alpha, size=size)
        if not return_attention_weights:
            return out
        if isinstance(edge_index, SparseTensor):
            return out, edge_index.set_value(alpha, layout="coo")
        if isinstance(edge_index, Tensor) and is_torch_sparse_tensor(edge_index):
            edge_index = set_sparse_value(edge_index, alpha)
        return out, (edge_index, alpha)

    def edge_update(
        self, x_j: Tensor, x_i: Tensor, edge_mask: OptTensor, index: Tensor, size_i: Optional[int]
    ) -> Tensor:
        """The attention weight of every edge."""
        return edge_softmax((x_i * x_j).sum(-1), index, size_i, edge_mask)

    def message(self, x_j: Tensor, alpha: Tensor) -> Tensor:
        """Weighs the sources' features by their attention."""
        return alpha.view(-1, 1) * x_j
