"""How much two sets of vectors depend on each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pyg_mmrec.nn.functional import normalize_rows


def median_variance(x: Tensor) -> Tensor:
    r"""The median heuristic: half of the median squared distance between two rows,
    :math:`\sigma^2 = \frac{1}{2} \mathrm{median}_{i < j} \lVert \mathbf{x}_i - \mathbf{x}_j
    \rVert^2`, without gradient. Where it is 0, half or more of the pairs being equal: 1.

    Args:
        x (torch.Tensor): Vectors ``[n, channels]``, two or more.

    Returns:
        torch.Tensor: A scalar.
    """
    variance = torch.pdist(x.detach()).median().square() / 2
    return torch.where(variance > 0, variance, torch.ones_like(variance))


def _kernel(x: Tensor, variance: Tensor | float) -> Tensor:
    """RBF kernel between all rows, ``[n, n]``."""
    half = torch.linalg.vector_norm(x, dim=1).square() / 2
    kernel = torch.addmm(half[:, None], x, x.t(), beta=-1).sub_(half).div_(variance)
    return kernel.clamp_(max=0.0).exp_()


class _HSIC(torch.autograd.Function):
    r""":math:`c \, (\sum_{ij} K_{ij} L_{ij} - a \sum_i k_i l_i + b \, k l)` of two RBF kernels with
    row sums :math:`k_i`, :math:`l_i` and totals :math:`k`, :math:`l`: both estimators have this
    form. With its gradient in closed form; three ``[n, n]`` tensors live at a time.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, variances: tuple[Tensor | float, ...], unbiased: bool
    ) -> Tensor:
        # A tensor: under torch.compile the number of rows may be one, such as of unique items.
        n = x.new_full((), x.size(0))
        k_x, k_y = _kernel(x, variances[0]), _kernel(y, variances[1])
        if unbiased:
            k_x.fill_diagonal_(0.0), k_y.fill_diagonal_(0.0)
            c, a, b = 1 / (n * (n - 3)), 2 / (n - 2), 1 / ((n - 1) * (n - 2))
        else:
            c, a, b = 1 / (n - 1).square(), 2 / n, 1 / n.square()
        enough = n >= (4 if unbiased else 2)
        factors = tuple(torch.where(enough, factor, 0.0) for factor in (c, a, b))
        c, a, b = factors
        x_rows, y_rows = k_x.sum(1), k_y.sum(1)
        ctx.variances = variances
        ctx.save_for_backward(x, y, k_x, k_y, x_rows, y_rows, *factors)
        value = torch.dot(k_x.view(-1), k_y.view(-1)) - a * torch.dot(x_rows, y_rows)
        return c * (value + b * x_rows.sum() * y_rows.sum())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, k_x, k_y, x_rows, y_rows, c, a, b = ctx.saved_tensors
        grads: list[Tensor | None] = []
        for position, (z, own, other, rows) in enumerate(
            ((x, k_x, k_y, y_rows), (y, k_y, k_x, x_rows))
        ):
            if not ctx.needs_input_grad[position]:
                grads.append(None)
                continue
            # d value / d K, times K; the diagonal has no part: x_i - x_i is 0 whatever x_i is
            half = a / 2 * rows
            pull = (other - (half - b * rows.sum() / 2)[:, None]).sub_(half - b * rows.sum() / 2)
            pull.mul_(own)
            # d log K_ij / d x_i = (x_j - x_i) / variance
            grads.append(torch.addcmul(pull @ z, pull.sum(1, keepdim=True), z, value=-1))
            grads[-1].mul_(2 * c * grad / ctx.variances[position])  # type: ignore[union-attr]
            del pull  # before the other side's is made
        return grads[0], grads[1], None, None


def hsic(
    x: Tensor,
    y: Tensor,
    variance: float | None = 0.25,
    normalize: bool = True,
    unbiased: bool = False,
) -> Tensor:
    r"""Hilbert-Schmidt independence criterion between paired rows (`Gretton et al., 2005
    <https://doi.org/10.1007/11564089_7>`_; IBMRec, Eq. 2).

    .. math::
        \mathrm{HSIC}(X, Y) = \frac{1}{(n-1)^2} \mathrm{tr}(\mathbf{K}_X \mathbf{H} \mathbf{K}_Y
        \mathbf{H}), \qquad \mathbf{H} = \mathbf{I} - \frac{1}{n} \mathbf{1} \mathbf{1}^\top,
        \qquad (\mathbf{K}_X)_{ij} = \exp \left( - \frac{\lVert \mathbf{x}_i - \mathbf{x}_j
        \rVert^2}{2 \sigma^2} \right)

    0 for constant, and near 0 for independent, vectors; the biased form is never below 0. The
    unbiased one (`Song et al., 2012 <https://jmlr.org/papers/v13/song12a.html>`_, Eq. 5) is 0 in
    the mean if :math:`X` and :math:`Y` are independent. Time and memory are :math:`O(n^2)`, plus
    one product of ``[n, channels]`` with its transpose per argument; :math:`\mathbf{H}` is never
    made. Differentiable once.

    Args:
        x (torch.Tensor): Vectors ``[n, channels]``.
        y (torch.Tensor): Vectors ``[n, other_channels]``, row by row paired with ``x``.
        variance (float, optional): :math:`\sigma^2` of both kernels, or :obj:`None` for
            :func:`median_variance` of each. (default: 0.25)
        normalize (bool, optional): Whether rows are first divided by their norm; then
            :math:`\mathbf{K}_{ij} = \exp((\cos(\mathbf{x}_i, \mathbf{x}_j) - 1) / \sigma^2)`. Long
            raw features would else make kernels identity matrices. (default: :obj:`True`)
        unbiased (bool, optional): The unbiased estimator. (default: :obj:`False`)

    Returns:
        torch.Tensor: A scalar; 0 of fewer than 2 rows, 4 for the unbiased form.

    Raises:
        ValueError: If the rows do not pair up, or the variance is not positive.

    Example:
        >>> import torch
        >>> x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
        >>> y = torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
        >>> bool(hsic(x, y, unbiased=True).abs() < 0.02 * hsic(x, 3 * x, unbiased=True))
        True
    """
    if x.dim() != 2 or y.dim() != 2 or x.size(0) != y.size(0):
        raise ValueError(
            f"'x' and 'y' need shapes [n, channels] with the same n (got {list(x.shape)} and "
            f"{list(y.shape)})"
        )
    _check_variance(variance)
    if normalize:
        x, y = normalize_rows(x), normalize_rows(y)
    variances = tuple(median_variance(z) if variance is None else variance for z in (x, y))
    return _HSIC.apply(x, y, variances, unbiased)


def _check_variance(variance: float | None) -> None:
    if variance is not None and not variance > 0:
        raise ValueError(f"'variance' needs to be positive (got {variance})")


class HSICLoss(nn.Module):
    """Module form of :func:`hsic`, with the same arguments.

    Raises:
        ValueError: If the variance is not positive.
    """

    def __init__(
        self, variance: float | None = 0.25, normalize: bool = True, unbiased: bool = False
    ) -> None:
        super().__init__()
        _check_variance(variance)
        self.variance = variance
        self.normalize = normalize
        self.unbiased = unbiased

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """HSIC of paired rows ``[n, channels]`` and ``[n, other_channels]``."""
        return hsic(x, y, self.variance, self.normalize, self.unbiased)
