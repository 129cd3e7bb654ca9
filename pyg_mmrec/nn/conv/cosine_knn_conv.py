from torch import Tensor
from torch_geometric.typing import OptTensor

from pyg_mmrec.argument_checks import check_positive
from pyg_mmrec.data import Adjacency
from pyg_mmrec.nn.conv.weighted_conv import WeightedConv
from pyg_mmrec.nn.functional.normalize_rows import normalize_rows
from pyg_mmrec.nn.functional.spmm import sddmm
from pyg_mmrec.transforms import cosine_knn, normalize_item_graph


def cosine_knn_adjacency(z: Tensor, k: int, mask: OptTensor = None) -> Adjacency:
    r"""The cosine k-nearest-neighbour graph of some rows, its weights differentiable.

    .. math::
        s_{ij} = \frac{\mathbf{z}_i^\top \mathbf{z}_j}
        {\lVert \mathbf{z}_i \rVert \, \lVert \mathbf{z}_j \rVert}, \qquad
        j \in \operatorname{top-}k_{j} \, s_{ij}

    FAISS finds the neighbours, a constant choice; gradients flow through the similarities. Nothing
    of size :math:`n^2` exists.

    Args:
        z (torch.Tensor): Vectors, ``[num_nodes, channels]``.
        k (int): Neighbours of each node, itself included.
        mask (torch.Tensor, optional): ``[num_nodes]``, which take part. (default: all)

    Returns:
        Adjacency: Edges from neighbours to nodes, weighted by their cosine.

    Raises:
        ValueError: As :func:`~pyg_mmrec.transforms.cosine_knn`.
    """
    edge_index, _ = cosine_knn(z, k, mask)
    adjacency = Adjacency.from_edge_index(edge_index, size=(z.size(0), z.size(0)))
    unit = normalize_rows(z)
    return adjacency.with_weight(sddmm(adjacency, unit, unit))


class CosineKNNConv(WeightedConv):
    r"""Propagation over a graph learned from vectors: their cosine k nearest neighbours.

    .. math::
        \mathbf{x}^{\prime}_i = \sum_{j \in \mathcal{N}_k(i)}
        \frac{s_{ij}}{\sqrt{r_i \, r_j}} \, \mathbf{x}_j, \qquad
        r_i = \sum_{j \in \mathcal{N}_k(i)} s_{ij}

    (`"Mining Latent Structures for Multimedia Recommendation" <https://arxiv.org/abs/2104.09036>`_,
    LATTICE), with the similarities :math:`s_{ij}` of :func:`cosine_knn_adjacency`. Gradients reach
    ``x`` and, through the similarities, ``z``.

    Args:
        k (int): Neighbours of each node, itself included.
        **kwargs (optional): Arguments of :class:`~pyg_mmrec.nn.conv.WeightedConv`.

    Shapes:
        - **input:** node features :math:`(|\mathcal{V}|, F)`, vectors :math:`(|\mathcal{V}|, D)`,
          mask :math:`(|\mathcal{V}|)` *(optional)*
        - **output:** :math:`(|\mathcal{V}|, F)`

    Raises:
        ValueError: If ``k`` is not positive.

    Example:
        >>> import torch
        >>> z = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
        >>> x = torch.tensor([[1.0], [3.0], [5.0]])
        >>> CosineKNNConv(k=2)(x, z)[:2].flatten().round(decimals=4).tolist()
        [2.0, 2.0]
    """

    def __init__(self, k: int, **kwargs: object) -> None:
        check_positive("k", k)
        super().__init__(**kwargs)
        self.k = k

    def forward(self, x: Tensor, z: Tensor, mask: OptTensor = None) -> Tensor:  # type: ignore
        """Finds the neighbours of ``z`` and propagates ``x`` over them once."""
        adjacency = cosine_knn_adjacency(z, self.k, mask)
        weight = normalize_item_graph(adjacency.edge_index, adjacency.weight, z.size(0))
        return super().forward(x, adjacency.with_weight(weight))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(k={self.k})"
