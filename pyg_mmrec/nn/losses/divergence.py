"""Divergences between two feature vectors read as distributions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pyg_mmrec.argument_checks import check_choice

#: Over rows: their mean, or none of it.
REDUCTIONS = ("mean", "none")


def _check_shapes(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape or x.dim() == 0:
        raise ValueError(
            f"'x' and 'y' need the same shape [..., channels] (got {list(x.shape)} and "
            f"{list(y.shape)})"
        )


class _JSDivergence(torch.autograd.Function):
    """With its gradient in closed form, in a third of the passes that autograd makes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        p, q = x.softmax(-1), y.softmax(-1)
        # With t = (p - q) / (p + q), p / m = 1 + t and q / m = 1 - t: the logarithms stay exact
        # for nearly equal distributions, where log p - log m would be rounding error.
        limits = torch.finfo(p.dtype)
        t = (p - q).div_((p + q).clamp_(min=limits.tiny)).clamp_(limits.eps - 1, 1 - limits.eps)
        x_grad = t.log1p().mul_(p)  # p log(p / m)
        y_grad = t.neg_().log1p_().mul_(q)
        p_kl, q_kl = x_grad.sum(-1, keepdim=True), y_grad.sum(-1, keepdim=True)
        # d JS / d x = p (log(p / m) - KL(p, m)) / 2, likewise for y: all that is kept
        x_grad.addcmul_(p, p_kl, value=-1)
        y_grad.addcmul_(q, q_kl, value=-1)
        ctx.save_for_backward(x_grad, y_grad)
        return (p_kl + q_kl).squeeze(-1).mul_(0.5)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        half = 0.5 * grad.unsqueeze(-1)
        x_grad, y_grad = ctx.saved_tensors
        return x_grad * half, y_grad * half


def js_divergence(x: Tensor, y: Tensor) -> Tensor:
    r"""Jensen-Shannon divergence of the softmax over the last axis.

    .. math::
        \mathrm{JS}(p, q) = \frac{1}{2} \mathrm{KL}(p \Vert m) + \frac{1}{2} \mathrm{KL}(q \Vert m),
        \qquad m = \frac{1}{2} (p + q), \; p = \mathrm{softmax}(x), \; q = \mathrm{softmax}(y)

    Symmetric, between 0 and :math:`\ln 2` (DVIB, Eq. 10).

    Args:
        x (torch.Tensor): Logits ``[..., channels]``.
        y (torch.Tensor): Logits of the same shape.

    Returns:
        torch.Tensor: One value per row, ``[...]``.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_shapes(x, y)
    return _JSDivergence.apply(x, y)


def kl_divergence(x: Tensor, y: Tensor) -> Tensor:
    r"""Kullback-Leibler divergence :math:`\mathrm{KL}(\mathrm{softmax}(x) \Vert
    \mathrm{softmax}(y))` over the last axis.

    Args:
        x (torch.Tensor): Logits ``[..., channels]``, finite.
        y (torch.Tensor): Logits of the same shape.

    Returns:
        torch.Tensor: One value per row, ``[...]``, 0 or more.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_shapes(x, y)
    log_p, log_q = x.log_softmax(-1), y.log_softmax(-1)
    p, d = log_p.exp(), log_q - log_p
    # Adds sum(q - p) = 0 to sum(-p d): the terms p (exp(d) - 1 - d) are not negative, and exact for
    # nearly equal distributions. Beyond d = 1, where exp(d) may overflow, p exp(d) is read off q.
    beyond = torch.where(d > 1, log_q.exp() - math.e * p, 0.0)
    return (p * (d.clamp(max=1).expm1() - d) + beyond).sum(-1)


def softmax_twice_divergence(x: Tensor, y: Tensor) -> Tensor:
    r"""The divergence of DVIB's published code, which applies the softmax twice.

    .. math::
        \frac{1}{2} [\mathrm{KL}(m \Vert \mathrm{softmax}(p)) + \mathrm{KL}(m \Vert
        \mathrm{softmax}(q))], \qquad m = \frac{1}{2} (p + q), \; p = \mathrm{softmax}(x), \;
        q = \mathrm{softmax}(y)

    Not a divergence in the strict sense: it is not 0 at ``x == y``, where it rewards flat
    distributions.

    Args:
        x (torch.Tensor): Logits ``[..., channels]``.
        y (torch.Tensor): Logits of the same shape.

    Returns:
        torch.Tensor: One value per row, ``[...]``.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_shapes(x, y)
    p, q = x.softmax(-1), y.softmax(-1)
    m = 0.5 * (p + q)
    log_m = m.clamp(min=torch.finfo(m.dtype).tiny).log()
    return (m * (log_m - 0.5 * (p.log_softmax(-1) + q.log_softmax(-1)))).sum(-1)


#: The divergences between a noisy and a clean representation, by name; arguments (noisy, clean).
DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "js": js_divergence,
    "kl": lambda noisy, clean: kl_divergence(clean, noisy),
    "reverse_kl": kl_divergence,
    "softmax_twice": softmax_twice_divergence,
}


class DistillationLoss(nn.Module):
    r"""Divergence between a noisy and a clean representation (DVIB, Eq. 10).

    Args:
        divergence (str, optional): :obj:`"js"`; :obj:`"kl"`, which is
            :math:`\mathrm{KL}(Z \Vert Z_\delta)`; :obj:`"reverse_kl"`,
            :math:`\mathrm{KL}(Z_\delta \Vert Z)`; or :obj:`"softmax_twice"`, see
            :func:`softmax_twice_divergence`. (default: :obj:`"js"`)
        reduction (str, optional): :obj:`"mean"` over rows, or :obj:`"none"`.
            (default: :obj:`"mean"`)

    Raises:
        ValueError: If a name is unknown.
    """

    def __init__(self, divergence: str = "js", reduction: str = "mean") -> None:
        super().__init__()
        check_choice("reduction", reduction, REDUCTIONS)
        check_choice("divergence", divergence, sorted(DIVERGENCES))
        self.divergence = divergence
        self.reduction = reduction

    def forward(self, noisy: Tensor, clean: Tensor) -> Tensor:
        """Compares ``noisy`` and ``clean``, both ``[..., rows, channels]``."""
        rows = DIVERGENCES[self.divergence](noisy, clean)
        return rows.mean() if self.reduction == "mean" else rows
