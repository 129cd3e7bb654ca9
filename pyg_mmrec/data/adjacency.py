"""A weighted adjacency sorted for both directions of a product."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.export import register_dataclass
from torch.utils import _pytree as pytree
from torch_geometric import EdgeIndex

_Tree = TypeVar("_Tree")

with warnings.catch_warnings():
    # The first CSR tensor of a process warns that the layout is in beta, and none after it.
    warnings.simplefilter("ignore")
    _none = torch.zeros(1, dtype=torch.int32)
    torch.sparse_csr_tensor(_none, _none[:0], torch.empty(0), (0, 0))


def moved(tree: _Tree, device: torch.device | str, non_blocking: bool = False) -> _Tree:
    """A copy of a pytree on another device, in which those share a tensor that did before."""
    copies: dict[int, Tensor] = {}

    def move(tensor: Tensor) -> Tensor:
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.to(device, non_blocking=non_blocking)
        return copies[id(tensor)]

    return pytree.tree_map_only(Tensor, move, tree)


def _sorted_rowptr(sorted_index: Tensor, size: int) -> Tensor:
    """CSR row pointer ``[size + 1]`` of an ascending index vector."""
    boundaries = torch.arange(size + 1, device=sorted_index.device, dtype=sorted_index.dtype)
    return torch.searchsorted(sorted_index.contiguous(), boundaries)


def _compact_dtype(num_edges: int, size: tuple[int, int]) -> torch.dtype:
    """int32 wherever it can hold every id: it halves the index traffic of a product."""
    return torch.int32 if max(num_edges, *size) < 2**31 else torch.int64


@dataclass(frozen=True)
class Adjacency:
    r"""A sparse weighted adjacency, sorted once by target and once by source.

    The forward product of message passing reads the edges by target, its backward pass reads them
    by source. :class:`Adjacency` keeps both orders side by side, so that neither a sort nor a
    transposition happens inside a training loop. Of a symmetric adjacency both orders are the same
    tensors, so the backward kernel *is* the forward kernel. It is a pytree of tensors and goes
    through :func:`torch.compile` as such.

    Args:
        rowptr (torch.Tensor): CSR pointer over targets, ``[num_targets + 1]``.
        col (torch.Tensor): Source of each edge, in target order, ``[num_edges]``.
        weight (torch.Tensor): Weight of each edge, in target order, ``[num_edges]``.
        perm (torch.Tensor): Position of each edge in source order, so that
            ``weight == weight_t[perm]``, ``[num_edges]``.
        rowptr_t (torch.Tensor): CSR pointer over sources, ``[num_sources + 1]``.
        col_t (torch.Tensor): Target of each edge, in source order, ``[num_edges]``.
        weight_t (torch.Tensor): Weight of each edge, in source order, ``[num_edges]``.
        perm_t (torch.Tensor): Position in target order of each edge in source order, so that
            ``weight_t == weight[perm_t]``, ``[num_edges]``.
    """

    rowptr: Tensor
    col: Tensor
    weight: Tensor
    perm: Tensor
    rowptr_t: Tensor
    col_t: Tensor
    weight_t: Tensor
    perm_t: Tensor

    @classmethod
    def from_edge_index(
        cls,
        edge_index: Tensor,
        edge_weight: Tensor | None = None,
        size: tuple[int, int] | None = None,
        symmetric: bool = False,
    ) -> Adjacency:
        r"""Sorts a COO graph.

        Args:
            edge_index (torch.Tensor): Source and target of each edge, ``[2, num_edges]``, int64.
            edge_weight (torch.Tensor, optional): Edge weights, ``[num_edges]``, floating point
                (default: ones, float32). They may require a gradient.
            size (tuple[int, int], optional): Number of sources and of targets
                (default: one more than the highest id).
            symmetric (bool, optional): The caller's word that every edge has its reverse of equal
                weight; both orders then share their storage. (default: :obj:`False`)

        Raises:
            ValueError: If shapes do not fit, an id is out of range, or a graph declared symmetric
                is not.
        """
        if isinstance(edge_index, EdgeIndex):  # its rows are of a subclass too
            edge_index = edge_index.as_tensor()
        if edge_index.dim() != 2 or edge_index.size(0) != 2 or edge_index.is_floating_point():
            raise ValueError(
                f"'edge_index' needs to be an integer tensor of shape [2, num_edges] "
                f"(got {edge_index.dtype} {list(edge_index.shape)})"
            )
        num_edges = edge_index.size(1)
        if edge_weight is None:
            edge_weight = torch.ones(num_edges, device=edge_index.device)
        if edge_weight.shape != (num_edges,):
            raise ValueError(
                f"'edge_weight' needs one weight per edge, shape [{num_edges}] "
                f"(got {list(edge_weight.shape)})"
            )
        source, target = edge_index[0].long(), edge_index[1].long()
        if size is None:
            source_count = int(source.max()) + 1 if num_edges else 0
            target_count = int(target.max()) + 1 if num_edges else 0
            size = (source_count, target_count)
        for name, index, count in (("sources", source, size[0]), ("targets", target, size[1])):
            if num_edges and (int(index.min()) < 0 or int(index.max()) >= count):
                raise ValueError(
                    f"'edge_index' holds {name} outside [0, {count}) "
                    f"(got [{int(index.min())}, {int(index.max())}])"
                )

        order = (target * max(size[0], 1) + source).argsort(stable=True)
        source, target, weight = source[order], target[order], edge_weight[order]
        perm_t = source.argsort(stable=True)  # targets stay ascending within a source
        dtype = _compact_dtype(num_edges, size)
        rowptr, col = _sorted_rowptr(target, size[1]).to(dtype), source.to(dtype)
        rowptr_t, col_t = (
            _sorted_rowptr(source[perm_t], size[0]).to(dtype),
            target[perm_t].to(dtype),
        )
        weight_t = weight[perm_t]
        perm = torch.empty_like(perm_t)
        perm[perm_t] = torch.arange(num_edges, device=perm.device)
        if symmetric:
            same = size[0] == size[1] and torch.equal(rowptr, rowptr_t) and torch.equal(col, col_t)
            if not same or not torch.equal(weight, weight_t):
                raise ValueError("'symmetric' was given, but the graph differs from its reverse")
            rowptr_t, col_t = rowptr, col
            if not weight.requires_grad:  # else a second derivative would meet the wrong edge
                weight_t = weight
        return cls(rowptr, col, weight, perm, rowptr_t, col_t, weight_t, perm_t)

    @property
    def num_edges(self) -> int:
        """Number of edges."""
        return self.col.numel()

    @property
    def size(self) -> tuple[int, int]:
        """Number of sources and number of targets."""
        return self.rowptr_t.numel() - 1, self.rowptr.numel() - 1

    @property
    def edge_index(self) -> Tensor:
        """COO view ``[2, num_edges]``, int64, by target, in the order of :attr:`weight`."""
        num_targets = self.rowptr.numel() - 1
        target = torch.arange(num_targets, device=self.col.device).repeat_interleave(
            self.rowptr.diff().long(), output_size=self.num_edges
        )
        return torch.stack([self.col.long(), target])

    def t(self) -> Adjacency:
        """The graph with every edge reversed; its edges are ordered by the former sources."""
        by_target = (self.rowptr, self.col, self.weight, self.perm)
        by_source = (self.rowptr_t, self.col_t, self.weight_t, self.perm_t)
        return Adjacency(*by_source, *by_target)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Adjacency:
        """A copy of the graph on another device; both orders share what they shared."""
        return moved(self, device, non_blocking)

    def with_weight(self, weight: Tensor) -> Adjacency:
        """The same edges with other weights ``[num_edges]``, in the order of :attr:`edge_index`.

        Gradients flow into the new weights. Nothing of a former symmetry is assumed.

        Raises:
            ValueError: If there is not one weight per edge.
        """
        if weight.shape != (self.num_edges,):
            raise ValueError(
                f"'weight' needs one weight per edge, shape [{self.num_edges}] "
                f"(got {list(weight.shape)})"
            )
        return replace(self, weight=weight, weight_t=weight.index_select(0, self.perm_t))

    def select(self, kept: Tensor) -> Adjacency:
        """The subgraph of the edges marked in ``kept``, a boolean vector ``[num_edges]`` in the
        order of :attr:`edge_index`; weights are cut along, both orders stay sorted.

        Raises:
            ValueError: If ``kept`` is no such vector.
        """
        if kept.shape != (self.num_edges,) or kept.dtype != torch.bool:
            raise ValueError(
                f"'kept' needs to be a boolean vector of shape [{self.num_edges}], one mark per "
                f"edge (got {kept.dtype} {list(kept.shape)})"
            )
        position = torch.zeros(self.num_edges + 1, dtype=torch.long, device=kept.device)
        torch.cumsum(kept, dim=0, out=position[1:])
        kept_t = kept[self.perm_t]
        position_t = torch.zeros_like(position)
        torch.cumsum(kept_t, dim=0, out=position_t[1:])
        edges, edges_t = kept.nonzero().squeeze(1), kept_t.nonzero().squeeze(1)
        return Adjacency(
            rowptr=position[self.rowptr.long()].to(self.rowptr.dtype),
            col=self.col[edges],
            weight=self.weight[edges],
            perm=position_t[self.perm[edges]],
            rowptr_t=position_t[self.rowptr_t.long()].to(self.rowptr_t.dtype),
            col_t=self.col_t[edges_t],
            weight_t=self.weight_t[edges_t],
            perm_t=position[self.perm_t[edges_t]],
        )


def on_shared_edges(adjacencies: Sequence[Adjacency]) -> list[Adjacency]:
    r"""The same graphs on the union of their edges, in one order, with weight 0 where one lacks an
    edge; their weights can then be added up. Gradients reach the given weights.

    Args:
        adjacencies (list[Adjacency]): One or more graphs of the same size, without parallel edges.

    Raises:
        ValueError: If there is none, or sizes differ.
    """
    sizes = {adjacency.size for adjacency in adjacencies}
    if len(sizes) != 1:
        raise ValueError(
            f"'adjacencies' needs one or more graphs of the same size (got {sorted(sizes)})"
        )
    (size,) = sizes
    keys = [a.edge_index[1] * size[0] + a.edge_index[0] for a in adjacencies]
    union, position = torch.cat(keys).unique(return_inverse=True)
    edge_index = torch.stack([union % size[0], union // size[0]])  # sorted by target, then source
    pattern = Adjacency.from_edge_index(edge_index, size=size)
    parts = position.split([adjacency.num_edges for adjacency in adjacencies])
    return [
        pattern.with_weight(a.weight.new_zeros(union.numel()).index_add(0, part, a.weight))
        for a, part in zip(adjacencies, parts, strict=True)
    ]


register_dataclass(Adjacency)
