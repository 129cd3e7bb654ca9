from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.typing import Adj, OptTensor, PairTensor, Size, SparseTensor
from torch_geometric.utils import spmm as pyg_spmm
from torch_geometric.utils.sparse import set_sparse_value

from pyg_mmrec.data import Adjacency
from pyg_mmrec.nn.conv.weighted_conv import with_wide_ids
from pyg_mmrec.nn.functional.spmm import outside_autocast, spmm


class MMGCNConv(MessagePassing):
    r"""The layer of one modality's graph in MMGCN: mean of the neighbours, combined with the node
    itself and with an embedding of its ID that all modalities share.

    .. math::
        \mathbf{h}_i = \mathrm{LeakyReLU} \Big( \mathbf{W} \, \frac{1}{|\mathcal{N}(i)|}
        \sum_{j \in \mathcal{N}(i)} \mathbf{x}_j \Big), \qquad
        \hat{\mathbf{x}}_i = \mathrm{LeakyReLU}(\mathbf{V} \mathbf{x}_i + \mathbf{b})
        + \mathbf{e}_i

    .. math::
        \mathbf{x}^{\prime}_i = \mathrm{LeakyReLU}(\mathbf{G} [\mathbf{h}_i \Vert
        \hat{\mathbf{x}}_i] + \mathbf{c}) \qquad \text{or} \qquad
        \mathbf{x}^{\prime}_i = \mathrm{LeakyReLU}(\mathbf{G} \mathbf{h}_i + \hat{\mathbf{x}}_i)

    (`"MMGCN: Multi-modal Graph Convolution Network for Personalized Recommendation of Micro-video"
    <https://doi.org/10.1145/3343031.3351034>`_, ACM MM 2019). Only neighbours are averaged, never
    the node itself; a node without any has :math:`\mathbf{h}_i = 0`. The graph's own weights are
    not read. It takes every adjacency layout of PyG and gives equal results on all of them; an
    :class:`~pyg_mmrec.data.Adjacency` is the fast one for training.

    Args:
        in_channels (int): Size of the features.
        out_channels (int): Size of the ID embedding and of the result.
        concat (bool, optional): Whether :math:`\mathbf{h}` and :math:`\hat{\mathbf{x}}` are
            concatenated, the left form; else they are added up, the right one.
            (default: :obj:`True`)
        **kwargs (optional): Arguments of :class:`torch_geometric.nn.conv.MessagePassing`, but for
            ``aggr`` and ``flow``, which are what the formula says.

    Shapes:
        - **input:** node features :math:`(|\mathcal{V}|, F_{in})`, or a pair
          :math:`((|\mathcal{V_s}|, F_{in}), (|\mathcal{V_t}|, F_{in}))` in a bipartite graph;
          adjacency; the targets' ID embedding :math:`(|\mathcal{V_t}|, F_{out})` *(optional)*;
          marks of the edges that take part :math:`(|\mathcal{E}|)` *(optional)*
        - **output:** :math:`(|\mathcal{V_t}|, F_{out})`

    Example:
        >>> import torch
        >>> user, item = torch.randn(3, 16), torch.randn(4, 16)
        >>> to_item = torch.tensor([[0, 1, 1, 2], [0, 0, 1, 3]])  # edges from users to items
        >>> conv = MMGCNConv(16, 8)
        >>> conv((user, item), to_item, id_embedding=torch.randn(4, 8)).shape
        torch.Size([4, 8])
        >>> conv((item, user), to_item.flip(0), id_embedding=torch.randn(3, 8)).shape
        torch.Size([3, 8])
    """

    def __init__(
        self, in_channels: int, out_channels: int, concat: bool = True, **kwargs: Any
    ) -> None:
        for name, value in (("aggr", "mean"), ("flow", "source_to_target")):
            if kwargs.setdefault(name, value) != value:
                raise ValueError(f"'{name}' of MMGCNConv is '{value}' (got {kwargs[name]!r})")
        super().__init__(**kwargs)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.concat = concat
        self.lin_neighbor = nn.Linear(in_channels, in_channels, bias=False)  # W
        self.lin_self = nn.Linear(in_channels, out_channels)  # V
        combined = in_channels + out_channels if concat else in_channels
        self.lin_combined = nn.Linear(combined, out_channels, bias=concat)  # G
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weights, Xavier normal, and the biases as :class:`torch.nn.Linear` does."""
        super().reset_parameters()
        for lin in (self.lin_neighbor, self.lin_self, self.lin_combined):
            lin.reset_parameters()
            nn.init.xavier_normal_(lin.weight)

    def forward(
        self,
        x: Tensor | PairTensor,
        edge_index: Adj | Adjacency,
        id_embedding: OptTensor = None,
        edge_mask: OptTensor = None,
        size: Size = None,
    ) -> Tensor:
        r"""Runs the layer.

        Args:
            x (torch.Tensor or tuple): Features of the nodes, or of sources and targets.
            edge_index (Adj or Adjacency): The graph, from sources to targets (sparse matrices as
                PyG has them: transposed, one row per target).
            id_embedding (torch.Tensor, optional): :math:`\mathbf{e}`, of the targets.
                (default: zeros)
            edge_mask (torch.Tensor, optional): Boolean, which edges take part in the mean.
                ``[num_edges]`` in the order of ``edge_index``; for an
                :class:`~pyg_mmrec.data.Adjacency` in the order of its ``edge_index``.
                (default: all)
            size (tuple[int, int], optional): Number of sources and targets of a COO graph.

        Raises:
            ValueError: If ``edge_mask`` comes with a sparse matrix (leave the edges out of it), or
                targets have no features, or shapes do not fit.
        """
        source, target = (x, x) if isinstance(x, Tensor) else x
        if target is None:
            raise ValueError("'x' needs features of sources and of targets (got none of targets)")
        # A mean of products is a product of means: transformed where there are fewer rows.
        if source.size(0) < target.size(0):
            h = self._mean(self.lin_neighbor(source), target, edge_index, edge_mask, size)
        else:
            h = self.lin_neighbor(self._mean(source, target, edge_index, edge_mask, size))
        h = F.leaky_relu(h, inplace=True)
        x_hat = F.leaky_relu(self.lin_self(target), inplace=True)
        if id_embedding is not None:
            if id_embedding.shape != x_hat.shape:
                raise ValueError(
                    f"'id_embedding' needs shape {list(x_hat.shape)} "
                    f"(got {list(id_embedding.shape)})"
                )
            x_hat = x_hat + id_embedding
        if not self.concat:
            return F.leaky_relu(self.lin_combined(h) + x_hat, inplace=True)
        # G [h || x_hat], without the concatenation
        weight_h, weight_x = self.lin_combined.weight.split(
            [self.in_channels, self.out_channels], 1
        )
        out = torch.addmm(F.linear(x_hat, weight_x, self.lin_combined.bias), h, weight_h.t())
        return F.leaky_relu(out, inplace=True)

    def _mean(
        self,
        source: Tensor,
        target: Tensor,
        edge_index: Adj | Adjacency,
        edge_mask: OptTensor,
        size: Size,
    ) -> Tensor:
        if isinstance(edge_index, Adjacency):
            if edge_index.size[1] != target.size(0):
                raise ValueError(
                    f"'x' needs one row per target, {edge_index.size[1]} (got {target.size(0)})"
                )
            source = outside_autocast(source)  # as the weights are to be, too
            return spmm(_with_mean_weight(edge_index, edge_mask, source.dtype), source)
        edge_index = with_wide_ids(edge_index)
        if edge_mask is not None:
            if not isinstance(edge_index, Tensor) or edge_index.layout is not torch.strided:
                raise ValueError("'edge_mask' does not go with a sparse matrix: leave edges out")
            if edge_mask.dtype != torch.bool or edge_mask.shape != edge_index.shape[1:]:
                raise ValueError(
                    f"'edge_mask' needs to be a boolean vector of shape {[edge_index.size(1)]} "
                    f"(got {edge_mask.dtype} {list(edge_mask.shape)})"
                )
            edge_index = edge_index[:, edge_mask]
        if isinstance(edge_index, Tensor) and edge_index.layout is torch.sparse_csc:
            edge_index = edge_index.to_sparse_csr()  # PyG collects no features along the other
        # propagate_type: (x: PairTensor)
        return self.propagate(edge_index, x=(source, target), size=size)

    def message(self, x_j: Tensor) -> Tensor:
        """The sources' features as they are."""
        return x_j

    def message_and_aggregate(self, adj_t: Adj, x: PairTensor) -> Tensor:
        """Multiplies with the sparse matrix, without a message per edge."""
        if isinstance(adj_t, SparseTensor):
            adj_t = adj_t.set_value(None, layout=None)
        else:
            adj_t = adj_t.to_sparse_csr()
            ones = torch.ones_like(adj_t.values(), dtype=x[0].dtype)
            adj_t = set_sparse_value(adj_t, ones)
        return pyg_spmm(adj_t, x[0], reduce="mean")

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}({self.in_channels}, {self.out_channels}, "
            f"concat={self.concat})"
        )


def _with_mean_weight(adjacency: Adjacency, mask: OptTensor, dtype: torch.dtype) -> Adjacency:
    """The graph with weights that make a sum over incoming edges the mean of those marked."""
    num_edges, degree = adjacency.num_edges, adjacency.rowptr.diff()
    if mask is None:
        weight = degree.clamp(min=1).to(dtype).reciprocal()
        return adjacency.with_weight(weight.repeat_interleave(degree, output_size=num_edges))
    if mask.shape != (num_edges,) or mask.dtype != torch.bool:
        raise ValueError(
            f"'edge_mask' needs one boolean mark per edge, shape [{num_edges}] "
            f"(got {mask.dtype} {list(mask.shape)})"
        )
    target = adjacency.edge_index[1]
    marks = mask.to(dtype)
    degree = marks.new_zeros(adjacency.size[1]).index_add_(0, target, marks)
    return adjacency.with_weight(marks / degree.clamp(min=1).index_select(0, target))
