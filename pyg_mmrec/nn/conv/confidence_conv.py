from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.typing import Adj, OptPairTensor, Size

from pyg_mmrec.data import Adjacency
from pyg_mmrec.nn.conv.weighted_conv import WeightedConv
from pyg_mmrec.nn.functional.confidence_weight import confidence_weight


class ConfidenceConv(WeightedConv):
    r"""Propagation over edges weighed by several views of them, the most confident one counting.

    .. math::
        \mathbf{x}^{\prime}_i = \sum_{j \in \mathcal{N}(i)} \mathrm{relu} \big(
        \max_m \alpha^m_{j,i} \, c_{j,m} \big) \, \mathbf{x}_j

    (`"Graph-Refined Convolutional Network for Multimedia Recommendation with Implicit Feedback"
    <https://arxiv.org/abs/2111.02036>`_, GRCN, ACM MM 2020), :math:`\alpha^m` being the attention
    of view :math:`m`, such as that of :class:`~pyg_mmrec.nn.conv.RoutingAttentionConv`, and
    :math:`c` what the source trusts each view with; see
    :func:`~pyg_mmrec.nn.functional.confidence_weight`.

    Args:
        **kwargs (optional): Arguments of :class:`~pyg_mmrec.nn.conv.WeightedConv`.

    Shapes:
        - **input:** node features :math:`(|\mathcal{V}|, F)`, or a pair
          :math:`((|\mathcal{V_s}|, F), *)` in a bipartite graph; edges; attention
          :math:`(|\mathcal{E}|, M)`; confidence :math:`(|\mathcal{V_s}|, M)`
        - **output:** :math:`(|\mathcal{V_t}|, F)`

    Example:
        >>> import torch
        >>> edge_index = torch.tensor([[0, 1], [0, 0]])
        >>> attention = torch.tensor([[0.5, 0.25], [0.5, 0.75]])
        >>> confidence = torch.tensor([[2.0, 0.0], [1.0, -1.0]])
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> ConfidenceConv()((x, None), edge_index, attention, confidence, size=(2, 1)).tolist()
        [[2.5]]
    """

    def forward(  # type: ignore[override]
        self,
        x: Tensor | OptPairTensor,
        edge_index: Adj | Adjacency,
        attention: Tensor,
        confidence: Tensor,
        size: Size = None,
    ) -> Tensor:
        """Weighs the edges and propagates once.

        Args:
            x (torch.Tensor or tuple): Features of the nodes, or of sources and targets.
            edge_index (Adj or Adjacency): The graph, as edges.
            attention (torch.Tensor): Weights of each edge, ``[num_edges, num_views]``, in the order
                of ``edge_index``; for an :class:`~pyg_mmrec.data.Adjacency` in the order of its
                ``edge_index``.
            confidence (torch.Tensor): Of each source, ``[num_sources, num_views]``.
            size (tuple[int, int], optional): Number of sources and targets of a COO graph.

        Raises:
            ValueError: If the graph is a sparse matrix, which holds weights of its own.
        """
        if isinstance(edge_index, Adjacency):
            source = edge_index.col
        elif isinstance(edge_index, EdgeIndex):
            source = edge_index.as_tensor()[0]
        elif self._is_coo(edge_index):
            source = edge_index[0]
        else:
            raise ValueError("'edge_index' needs to be edges, not a sparse matrix of weights")
        weight = confidence_weight(attention, confidence, source)
        return super().forward(x, edge_index, weight, size)
