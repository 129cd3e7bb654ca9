from typing import Any

import torch
from torch import Tensor
from torch_geometric.typing import Adj, OptPairTensor, OptTensor, Size

from pyg_mmrec.data import Adjacency
from pyg_mmrec.nn.conv.weighted_conv import WeightedConv


class LayerRefinementConv(WeightedConv):
    r"""Weighted propagation, refined by how similar each result is to the node's first layer.

    .. math::
        \mathbf{x}^{\prime}_i = \cos(\mathbf{h}_i, \mathbf{x}^{(0)}_i) \, \mathbf{h}_i, \qquad
        \mathbf{h}_i = \sum_{j \in \mathcal{N}(i)} e_{j,i} \, \mathbf{x}_j

    (`"Layer-refined Graph Convolutional Networks for Recommendation"
    <https://arxiv.org/abs/2207.11088>`_, ICDE 2023). It takes what
    :class:`~pyg_mmrec.nn.conv.WeightedConv` takes. Where a vector is zero, the cosine counts as 0.

    Args:
        **kwargs (optional): Arguments of :class:`~pyg_mmrec.nn.conv.WeightedConv`.

    Shapes:
        - **input:** node features :math:`(|\mathcal{V}|, F)`, or a pair
          :math:`((|\mathcal{V_s}|, F), *)` in a bipartite graph; adjacency; the targets' first
          layer :math:`(|\mathcal{V_t}|, F)`; edge weights :math:`(|\mathcal{E}|)` *(optional)*
        - **output:** :math:`(|\mathcal{V_t}|, F)`

    Example:
        >>> import torch
        >>> edge_index = torch.tensor([[0, 1], [1, 0]])
        >>> x = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
        >>> LayerRefinementConv()(x, edge_index, x)
        tensor([[0.6000, 0.0000],
                [1.8000, 2.4000]])
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def forward(  # type: ignore[override]
        self,
        x: Tensor | OptPairTensor,
        edge_index: Adj | Adjacency,
        x_0: Tensor,
        edge_weight: OptTensor = None,
        size: Size = None,
    ) -> Tensor:
        """Propagates once and refines.

        Args:
            x (torch.Tensor or tuple): Features of the nodes, or of sources and targets.
            edge_index (Adj or Adjacency): The graph.
            x_0 (torch.Tensor): The targets' first layer.
            edge_weight (torch.Tensor, optional): ``[num_edges]`` in the order of ``edge_index``.
            size (tuple[int, int], optional): Number of sources and targets of a COO graph.

        Raises:
            ValueError: As :class:`~pyg_mmrec.nn.conv.WeightedConv`, or if ``x_0`` does not have
                the result's shape.
        """
        h = super().forward(x, edge_index, edge_weight, size)
        if x_0.shape != h.shape:
            raise ValueError(f"'x_0' needs shape {list(h.shape)} (got {list(x_0.shape)})")
        # Not 'cosine_similarity': its backward pass makes LayerGCN's steps half as long again.
        norm, norm_0 = (torch.linalg.vector_norm(y, dim=-1, keepdim=True) for y in (h, x_0))
        cosine = (h * x_0).sum(-1, keepdim=True) / (norm.clamp(min=1e-8) * norm_0.clamp(min=1e-8))
        return cosine * h
