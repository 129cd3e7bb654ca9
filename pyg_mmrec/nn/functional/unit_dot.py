"""Inner products of rows of length one with constants."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _UnitDot(torch.autograd.Function):
    """With its gradient in closed form, in a third of the passes that autograd makes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        norm = norm.masked_fill(norm == 0, 1.0)
        dot = (x * target).sum(-1, keepdim=True) / norm
        ctx.save_for_backward(x, target, norm, dot)
        return dot.squeeze(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # d dot / d x = (t - dot x / norm) / norm
        x, target, norm, dot = ctx.saved_tensors
        scale = grad.unsqueeze(-1) / norm
        return (target * scale).addcmul_(x, dot * scale / norm, value=-1), None


def unit_dot(x: Tensor, target: Tensor) -> Tensor:
    r"""Inner product of every row, divided by its Euclidean norm, with a constant,
    :math:`\langle \mathbf{x}_i / \lVert \mathbf{x}_i \rVert, \mathbf{t}_i \rangle`: the cosine
    where :math:`\mathbf{t}_i` is of length one.

    A row of zeros has product 0 and gradient :math:`\mathbf{t}_i`, as in
    :func:`~pyg_mmrec.nn.functional.normalize_rows`. Differentiable once.

    Args:
        x (torch.Tensor): ``[..., channels]``.
        target (torch.Tensor): The constants, of the same shape.

    Returns:
        torch.Tensor: One value per row, ``[...]``.

    Raises:
        ValueError: If the shapes differ, or the constants require a gradient, which they would
            not get.

    Example:
        >>> import torch
        >>> unit_dot(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])).tolist()
        [1.6...]
    """
    if x.shape != target.shape:
        raise ValueError(
            f"'x' and 'target' need the same shape (got {list(x.shape)} and {list(target.shape)})"
        )
    if target.requires_grad:
        raise ValueError("'target' needs to be constant (it requires a gradient): detach it")
    return _UnitDot.apply(x, target)
