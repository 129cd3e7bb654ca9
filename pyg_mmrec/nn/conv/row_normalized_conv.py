from torch import Tensor
from torch_geometric.typing import Adj, OptPairTensor, OptTensor, Size

from pyg_mmrec.data import Adjacency
from pyg_mmrec.nn.conv.weighted_conv import WeightedConv
from pyg_mmrec.nn.functional.spmm import spmm


class RowNormalizedConv(WeightedConv):
    r"""Weighted mean of a node and its neighbours, :math:`\mathbf{D}^{-1} (\mathbf{A} +
    \mathbf{I}) \mathbf{X}`.

    .. math::
        \mathbf{x}^{\prime}_i = \frac{\mathbf{x}_i + \sum_{j \in \mathcal{N}(i)} e_{j,i} \,
        \mathbf{x}_j}{1 + \sum_{j \in \mathcal{N}(i)} e_{j,i}}

    (the user-item part of `"Mining Latent Structures for Multimedia Recommendation"
    <https://arxiv.org/abs/2104.09036>`_, LATTICE). Unlike a mean with self-loops it takes bipartite
    graphs, where :math:`\mathbf{x}_i` is the target's. Weights are 0 or more.

    Args:
        **kwargs (optional): Arguments of :class:`~pyg_mmrec.nn.conv.WeightedConv`.

    Shapes:
        - **input:** node features :math:`(|\mathcal{V}|, F)`, or the pair
          :math:`((|\mathcal{V_s}|, F), (|\mathcal{V_t}|, F))` in a bipartite graph; adjacency;
          edge weights :math:`(|\mathcal{E}|)` *(optional)*
        - **output:** :math:`(|\mathcal{V_t}|, F)`

    Example:
        >>> import torch
        >>> edge_index = torch.tensor([[0, 1], [0, 0]])  # two users of one item
        >>> users, items = torch.tensor([[1.0], [2.0]]), torch.tensor([[6.0], [7.0]])
        >>> RowNormalizedConv()((users, items), edge_index).flatten().tolist()
        [3.0, 7.0]
    """

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
            edge_index (Adj or Adjacency): The graph.
            edge_weight (torch.Tensor, optional): ``[num_edges]`` in the order of ``edge_index``.
                (default: the graph's own, or ones)
            size (tuple[int, int], optional): Number of sources and targets of a COO graph.

        Raises:
            ValueError: As :class:`~pyg_mmrec.nn.conv.WeightedConv`, or if the targets' features
                are missing.
        """
        if isinstance(x, Tensor):
            x = (x, x)
        source, target = x
        if target is None:
            raise ValueError("'x' needs the features of the targets, too (got None)")
        ones = source.new_ones(source.size(0), 1)
        degree = super().forward((ones, target[:, :1]), edge_index, edge_weight, size)
        if isinstance(edge_index, Adjacency):  # adds the targets in the same pass
            if edge_weight is not None:
                edge_index = edge_index.with_weight(edge_weight)
            return spmm(edge_index, source, base=target) / (1 + degree)
        return (target + super().forward(x, edge_index, edge_weight, size)) / (1 + degree)
