"""Products of a sorted sparse adjacency with dense features, as compilable operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyg_mmrec.data import Adjacency

# Takes int32 indices as they are; elsewhere the row-parallel reduction kernel is the fast one.
_WITH_MKL = torch.backends.mkl.is_available()


def _csr(rowptr: Tensor, col: Tensor, weight: Tensor, num_columns: int) -> Tensor:
    return torch.sparse_csr_tensor(
        rowptr, col, weight, (rowptr.numel() - 1, num_columns), check_invariants=False
    )


def _sums_bags(x: Tensor) -> bool:
    """Whether sums of weighted rows have the fastest kernel: in float32 on a CPU."""
    return not x.is_cuda and x.dtype == torch.float32


def weighted_sum(
    rowptr: Tensor,
    col: Tensor,
    weight: Tensor,
    x: Tensor,
    base: Tensor | None = None,
    factor: float = 1.0,
) -> Tensor:
    """The kernel of :func:`spmm`, which autograd does not see: ``factor * (base + A @ x)``."""
    x = x.contiguous()
    if _sums_bags(x):
        if factor != 1.0:
            weight = weight * factor
        out = torch.embedding_bag(
            x, col, rowptr, mode=0, per_sample_weights=weight, include_last_offset=True
        )[0]
        return out if base is None else out.add_(base, alpha=factor)
    matrix = _csr(rowptr, col, weight, x.size(0))
    if x.is_cuda or _WITH_MKL and x.dtype in (torch.float32, torch.float64):
        out, beta = x.new_empty((rowptr.numel() - 1, x.size(1))), factor
        if base is None:
            # At beta=0 MKL reads nothing of what it adds to, and as the output it is not copied.
            base, beta = out.zero_() if x.is_cuda else out, 0.0
        # Autocast, which stays on in here, leaves a product alone that is told where to write.
        return torch.addmm(base, matrix, x, beta=beta, alpha=factor, out=out)
    out = torch.sparse.mm(matrix, x, "sum")
    if base is not None:
        out += base
    return out if factor == 1.0 else out.mul_(factor)


@torch.library.custom_op("pyg_mmrec::spmm", mutates_args=())
def _spmm(
    rowptr: Tensor,
    col: Tensor,
    weight: Tensor,
    perm: Tensor,
    rowptr_t: Tensor,
    col_t: Tensor,
    weight_t: Tensor,
    perm_t: Tensor,
    x: Tensor,
    base: Tensor | None,
    factor: float,
) -> Tensor:
    return weighted_sum(rowptr, col, weight, x, base, factor)


@_spmm.register_fake
def _(
    rowptr: Tensor,
    col: Tensor,
    weight: Tensor,
    perm: Tensor,
    rowptr_t: Tensor,
    col_t: Tensor,
    weight_t: Tensor,
    perm_t: Tensor,
    x: Tensor,
    base: Tensor | None,
    factor: float,
) -> Tensor:
    return x.new_empty((rowptr.numel() - 1, x.size(1)))


@torch.library.custom_op("pyg_mmrec::sddmm", mutates_args=())
def _sddmm(
    rowptr: Tensor,
    col: Tensor,
    perm: Tensor,
    rowptr_t: Tensor,
    col_t: Tensor,
    perm_t: Tensor,
    left: Tensor,
    right: Tensor,
) -> Tensor:
    dtype, full = left.dtype, torch.promote_types(left.dtype, torch.float32)
    left, right = left.to(full), right.to(full)  # there is no kernel for half precision
    pattern = _csr(rowptr, col, left.new_zeros(col.numel()), right.size(0))
    product = torch.sparse.sampled_addmm(
        pattern, left.contiguous(), right.contiguous().t(), beta=0.0
    )
    return product.values().to(dtype, copy=True)


@_sddmm.register_fake
def _(
    rowptr: Tensor,
    col: Tensor,
    perm: Tensor,
    rowptr_t: Tensor,
    col_t: Tensor,
    perm_t: Tensor,
    left: Tensor,
    right: Tensor,
) -> Tensor:
    return left.new_empty(col.numel())


# The two products are each other's derivatives, so gradients of every order stay sparse:
#   y_i = f (b_i + sum_e A_e x_j)   db = f dy, dx = f transposed A times dy, dA_e = f <dy_i, x_j>
#   s_e = <l_i, r_j>                dl = ds times r, dr = transposed ds times l
# `weight_t` repeats `weight`; its own gradient arises when a backward product is differentiated.
def _spmm_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, base, ctx.factor = inputs
    ctx.save_for_backward(*tensors)


def _spmm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rowptr, col, weight, perm, rowptr_t, col_t, weight_t, perm_t, x = ctx.saved_tensors
    grad_weight = grad_x = grad_base = None
    if ctx.needs_input_grad[2]:
        grad_weight = _sddmm(rowptr, col, perm, rowptr_t, col_t, perm_t, grad, x) * ctx.factor
    if ctx.needs_input_grad[8]:
        by_source = (rowptr_t, col_t, weight_t, perm_t)
        by_target = (rowptr, col, weight, perm)
        grad_x = _spmm(*by_source, *by_target, grad, None, ctx.factor)
    if ctx.needs_input_grad[9]:
        grad_base = grad if ctx.factor == 1.0 else grad * ctx.factor
    return None, None, grad_weight, None, None, None, None, None, grad_x, grad_base, None


def _sddmm_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _sddmm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rowptr, col, perm, rowptr_t, col_t, perm_t, left, right = ctx.saved_tensors
    grad_t = grad[perm_t]
    grad_left = grad_right = None
    if ctx.needs_input_grad[6]:
        by_target, by_source = (rowptr, col, grad, perm), (rowptr_t, col_t, grad_t, perm_t)
        grad_left = _spmm(*by_target, *by_source, right, None, 1.0)
    if ctx.needs_input_grad[7]:
        by_target, by_source = (rowptr, col, grad, perm), (rowptr_t, col_t, grad_t, perm_t)
        grad_right = _spmm(*by_source, *by_target, left, None, 1.0)
    return None, None, None, None, None, None, grad_left, grad_right


_spmm.register_autograd(_spmm_backward, setup_context=_spmm_context)
_sddmm.register_autograd(_sddmm_backward, setup_context=_sddmm_context)


def outside_autocast(x: Tensor) -> Tensor:
    """Sparse products have kernels for full precision on every device, so they keep to it."""
    if x.dtype in (torch.bfloat16, torch.float16) and torch.is_autocast_enabled(x.device.type):
        return x.float()
    return x


def check_features(adjacency: Adjacency, x: Tensor, name: str = "x") -> None:
    """Raises a :class:`ValueError` unless ``x`` holds a floating-point row per source."""
    if x.dim() != 2 or x.size(0) != adjacency.rowptr_t.numel() - 1:
        raise ValueError(
            f"'{name}' needs one row per source, shape [{adjacency.rowptr_t.numel() - 1}, "
            f"channels] (got {list(x.shape)})"
        )
    if not x.is_floating_point():
        raise ValueError(f"'{name}' needs to hold floating-point numbers (got {x.dtype})")


def spmm(
    adjacency: Adjacency, x: Tensor, base: Tensor | None = None, factor: float = 1.0
) -> Tensor:
    r"""Weighted sum over incoming edges.

    .. math::
        y_i = f \cdot \Big( b_i + \sum_{j \to i} w_{ji} x_j \Big)

    Differentiable to any order in ``x``, ``base`` and the edge weights. The backward pass runs the
    same kernel on the order by source that :class:`~pyg_mmrec.data.Adjacency` keeps, so it neither
    sorts nor transposes; :func:`torch.compile` sees one operator.

    Args:
        adjacency (Adjacency): The graph.
        x (torch.Tensor): Source features ``[num_sources, channels]``.
        base (torch.Tensor, optional): Added in the same pass, ``[num_targets, channels]``.
            (default: nothing is)
        factor (float, optional): Scales the result in the same pass. (default: 1)

    Returns:
        torch.Tensor: Target features ``[num_targets, channels]``.

    Raises:
        ValueError: If ``x`` is not a floating-point matrix with one row per source, or ``base``
            does not have the result's shape and type.
    """
    check_features(adjacency, x)
    x = outside_autocast(x)
    if base is not None:
        base = outside_autocast(base)
    if base is not None and base.dtype != x.dtype:
        raise ValueError(f"'base' needs the type of 'x', {x.dtype} (got {base.dtype})")
    if base is not None and base.shape != (adjacency.rowptr.numel() - 1, x.size(1)):
        raise ValueError(
            f"'base' needs one row per target, shape "
            f"[{adjacency.rowptr.numel() - 1}, {x.size(1)}] (got {list(base.shape)})"
        )
    return _spmm(
        adjacency.rowptr,
        adjacency.col,
        adjacency.weight.to(x.dtype),
        adjacency.perm,
        adjacency.rowptr_t,
        adjacency.col_t,
        adjacency.weight_t.to(x.dtype),
        adjacency.perm_t,
        x,
        base,
        factor,
    )


def sddmm(adjacency: Adjacency, left: Tensor, right: Tensor) -> Tensor:
    r"""Inner product of the two ends of every edge, without a gathered row per edge.

    .. math::
        s_{ji} = \langle \mathbf{l}_i, \mathbf{r}_j \rangle \qquad \text{for every edge }
        j \to i

    The graph's weights are not read. Differentiable to any order in ``left`` and ``right``;
    :func:`torch.compile` sees one operator.

    Args:
        adjacency (Adjacency): The graph.
        left (torch.Tensor): Features of the targets ``[num_targets, channels]``.
        right (torch.Tensor): Features of the sources ``[num_sources, channels]``.

    Returns:
        torch.Tensor: ``[num_edges]``, in the order of ``adjacency.edge_index``.

    Raises:
        ValueError: If ``left`` is not a floating-point matrix with one row per target, or ``right``
            not one of its type and width with one row per source.

    Example:
        >>> import torch
        >>> from pyg_mmrec.data import Adjacency
        >>> adjacency = Adjacency.from_edge_index(torch.tensor([[0, 1, 1], [0, 0, 1]]))
        >>> target = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> source = torch.tensor([[2.0, 3.0], [4.0, 5.0]])
        >>> sddmm(adjacency, target, source).tolist()
        [2.0, 4.0, 5.0]
    """
    num_sources, num_targets = adjacency.size
    left, right = outside_autocast(left), outside_autocast(right)
    if left.dim() != 2 or left.size(0) != num_targets or not left.is_floating_point():
        raise ValueError(
            f"'left' needs one floating-point row per target, shape [{num_targets}, channels] "
            f"(got {left.dtype} {list(left.shape)})"
        )
    if right.dtype != left.dtype or right.shape != (num_sources, left.size(1)):
        raise ValueError(
            f"'right' needs one row per source, {left.dtype} of shape "
            f"[{num_sources}, {left.size(1)}] (got {right.dtype} {list(right.shape)})"
        )
    return _sddmm(
        adjacency.rowptr,
        adjacency.col,
        adjacency.perm,
        adjacency.rowptr_t,
        adjacency.col_t,
        adjacency.perm_t,
        left,
        right,
    )
