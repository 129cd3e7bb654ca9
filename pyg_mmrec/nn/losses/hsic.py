"""How much two sets of vectors depend on each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyg_mmrec.nn.functional import normalize_rows


def median_variance(x: Tensor) -> Tensor:
    r"""The median heuristic: half of the median squared distance between two rows,
    :math:`\sigma^2 = \frac{1}{2} \mathrm{median}_{i < j} \lVert \mathbf{x}_i - \mathbf{x}_j
    \rVert^2`, without gradient. Where it is 0, half or more of the pairs being equal: 1. It takes
    the distances one by one: of wide vectors that is slower than :func:`hsic` itself.

    Args:
        x (torch.Tensor): Vectors ``[n, channels]``, two or more.

    Returns:
        torch.Tensor: A scalar.
    """
    variance = torch.pdist(x.detach()).median().square() / 2
    return torch.where(variance > 0, variance, torch.ones_like(variance))


def _block_size(x: Tensor) -> int:
    """On a CPU, blocks of a kernel stay in its cache; elsewhere the kernel is one block."""
    return 384 if x.device.type == "cpu" else max(x.size(0), 1)


def _num_entries(x: Tensor) -> int:
    """How many numbers the blocks of a kernel's upper half hold."""
    n, size = x.size(0), _block_size(x)
    return (n * n + n // size * size**2 + (n % size) ** 2) // 2


def _blocks(x: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """The upper half of an ``[n, n]`` kernel in blocks: rows, columns, and where the block lies
    among the :func:`_num_entries` numbers.
    """
    n, size, end = x.size(0), _block_size(x), 0
    for i in range(0, n, size):
        for j in range(i, n, size):
            rows, columns = slice(i, min(i + size, n)), slice(j, min(j + size, n))
            begin, end = end, end + (rows.stop - i) * (columns.stop - j)
            yield rows, columns, slice(begin, end)


def _kernel_factors(z: Tensor) -> tuple[Tensor, Tensor]:
    """Two matrices whose product is the logarithm of the RBF kernel of variance 1."""
    half = z.square().sum(1, keepdim=True) / 2
    ones = torch.ones_like(half)
    # z_i z_j - |z_i|^2 / 2 - |z_j|^2 / 2
    return torch.cat([z, half, ones], 1), torch.cat([z, -ones, -half], 1).t()


@torch.library.custom_op("pyg_mmrec::kernel_sums", mutates_args=())
def _kernel_sums(
    x: Tensor, y: Tensor, index: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    r"""Of the RBF kernels of variance 1 of ``x`` and of ``y``: :math:`\sum_{ij} K_{ij} L_{ij}`, the
    row sums of both, and the blocks of both kernels. With ``index``, ``y`` is a kernel itself, of
    which these rows and columns are taken.
    """
    n = x.size(0)
    kernels = [x.new_empty(_num_entries(x)) for _ in range(2)]
    rows = [x.new_zeros(n) for _ in range(2)]
    factors = [_kernel_factors(x), None if index is not None else _kernel_factors(y)]
    total = x.new_zeros(())
    for i, j, where in _blocks(x):
        for kernel, row, sides in zip(kernels, rows, factors, strict=True):
            block = kernel[where].view(i.stop - i.start, j.stop - j.start)
            if sides is not None:
                left, right = sides
                torch.mm(left[i], right[:, j], out=block).clamp_(max=0.0).exp_()
            elif index is not None:
                block.copy_(y.take(index[i, None] * y.size(1) + index[j]))
            row[i] += block.sum(1)
            if i != j:
                row[j] += block.sum(0)
        total += torch.dot(kernels[0][where], kernels[1][where]) * (1 if i == j else 2)
    return total, rows[0], rows[1], kernels[0], kernels[1]


@_kernel_sums.register_fake
def _(x: Tensor, y: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    n, m = x.size(0), _num_entries(x)
    rows, kernels = (x.new_empty(n), x.new_empty(n)), (x.new_empty(m), x.new_empty(m))
    return x.new_empty(()), *rows, *kernels


@torch.library.custom_op("pyg_mmrec::kernel_sums_backward", mutates_args=())
def _kernel_sums_backward(
    x: Tensor, own: Tensor, other: Tensor, grad_total: Tensor, grad_rows: Tensor
) -> Tensor:
    r""":math:`\sum_j P_{ij} (\mathbf{x}_j - \mathbf{x}_i)` with the symmetric :math:`P_{ij} =
    K_{ij} (2 g L_{ij} + g_i + g_j)`, since :math:`\partial \log K_{ij} / \partial \mathbf{x}_i =
    \mathbf{x}_j - \mathbf{x}_i`.
    """
    grad, weight = torch.zeros_like(x), torch.zeros_like(grad_rows)
    for i, j, where in _blocks(x):
        pull = (other[where] * (2 * grad_total)).view(i.stop - i.start, j.stop - j.start)
        pull.add_(grad_rows[i, None]).add_(grad_rows[j]).mul_(own[where].view_as(pull))
        grad[i].addmm_(pull, x[j])
        weight[i] += pull.sum(1)
        if i != j:
            grad[j].addmm_(pull.t(), x[i])
            weight[j] += pull.sum(0)
    return grad.addcmul_(weight[:, None], x, value=-1)


@_kernel_sums_backward.register_fake
def _(x: Tensor, own: Tensor, other: Tensor, grad_total: Tensor, grad_rows: Tensor) -> Tensor:
    return torch.empty_like(x)


def _context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:2], *output[3:])
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_total: Tensor | None, grad_x_rows: Tensor, grad_y_rows: Tensor, *unused: Tensor
) -> tuple[Tensor | None, Tensor | None, None]:
    x, y, k, other = ctx.saved_tensors
    grad_x = grad_y = None
    if grad_total is None:  # nothing depends on the value
        return None, None, None
    if ctx.needs_input_grad[0]:
        grad_x = _kernel_sums_backward(x, k, other, grad_total, grad_x_rows)
    if ctx.needs_input_grad[1]:
        grad_y = _kernel_sums_backward(y, other, k, grad_total, grad_y_rows)
    return grad_x, grad_y, None


_kernel_sums.register_autograd(_backward, setup_context=_context)


def _scaled(z: Tensor, variance: float | None, normalize: bool) -> Tensor:
    """The vectors whose RBF kernel of variance 1 is the wanted one."""
    if normalize:
        z = normalize_rows(z)
    # Distances do not depend on the mean, and a large one would cost them their digits.
    z = z - z.detach().mean(0)
    return z / (median_variance(z).sqrt() if variance is None else variance**0.5)


def rbf_kernel(x: Tensor, variance: float | None = 0.25, normalize: bool = True) -> Tensor:
    r"""RBF kernel between all rows, without gradient (IBMRec, Eq. 3).

    .. math::
        \mathbf{K}_{ij} = \exp \left( - \frac{\lVert \mathbf{x}_i - \mathbf{x}_j \rVert^2}
        {2 \sigma^2} \right)

    Beside the result, some copies of ``x`` are held for a moment.

    Args:
        x (torch.Tensor): Vectors ``[n, channels]``.
        variance (float, optional): :math:`\sigma^2`, or :obj:`None` for :func:`median_variance`.
            (default: 0.25)
        normalize (bool, optional): Whether rows are first divided by their norm.
            (default: :obj:`True`)

    Returns:
        torch.Tensor: ``[n, n]``.

    Raises:
        ValueError: If the variance is not positive.

    Example:
        >>> import torch
        >>> rbf_kernel(torch.eye(2), variance=1.0)
        tensor([[1.0000, 0.3679],
                [0.3679, 1.0000]])
    """
    _check_variance(variance)
    left, right = _kernel_factors(_scaled(x.detach(), variance, normalize))
    n = left.size(0)
    kernel = left.new_empty(n, n)
    for begin in range(0, n, 1024):
        end = min(begin + 1024, n)
        # Autocast leaves a product alone that is told where to write.
        upper = torch.mm(left[begin:end], right[:, begin:], out=kernel[begin:end, begin:])
        upper.clamp_(max=0.0).exp_()
        kernel[end:, begin:end] = upper[:, end - begin :].t()
    return kernel


class KernelRows(NamedTuple):
    """Constant vectors, given to :func:`hsic` as rows of a kernel that has been computed before:
    of wide vectors that costs a small part of computing it anew.

    Args:
        kernel (torch.Tensor): :func:`rbf_kernel` of ``N`` vectors, ``[N, N]``.
        rows (torch.Tensor): Which of these vectors, int64 ``[n]``.
    """

    kernel: Tensor
    rows: Tensor


def hsic(
    x: Tensor,
    y: Tensor | KernelRows,
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

    0 for constant, and near 0 for independent, vectors. The biased form is never below 0 but by
    rounding, about 1e-6 in float32. The unbiased one (`Song et al., 2012
    <https://jmlr.org/papers/v13/song12a.html>`_, Eq. 5) is 0 in the mean if :math:`X` and :math:`Y`
    are independent. Time and memory are :math:`O(n^2)`, of two ``[n, n]`` kernels the halves on a
    CPU, plus one product of ``[n, channels]`` with its transpose per argument; :math:`\mathbf{H}`
    is never made. Differentiable once.

    Args:
        x (torch.Tensor): Vectors ``[n, channels]``.
        y (torch.Tensor or KernelRows): Vectors ``[n, other_channels]``, row by row paired with
            ``x``; or rows of their kernel, which variance and normalisation have been applied to.
        variance (float, optional): :math:`\sigma^2` of both kernels, or :obj:`None` for
            :func:`median_variance` of each. (default: 0.25)
        normalize (bool, optional): Whether rows are first divided by their norm; then
            :math:`\mathbf{K}_{ij} = \exp((\cos(\mathbf{x}_i, \mathbf{x}_j) - 1) / \sigma^2)`. Long
            raw features would else make kernels identity matrices. (default: :obj:`True`)
        unbiased (bool, optional): The unbiased estimator. (default: :obj:`False`)

    Returns:
        torch.Tensor: A scalar; 0 of fewer than 2 rows, 4 for the unbiased form.

    Raises:
        ValueError: If the rows do not pair up or are none of the kernel's, or the variance is not
            positive.

    Example:
        >>> import torch
        >>> x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
        >>> y = torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
        >>> bool(hsic(x, y, unbiased=True).abs() < 0.02 * hsic(x, 3 * x, unbiased=True))
        True
    """
    other, index = y if isinstance(y, KernelRows) else (y, None)
    if index is not None:
        _check_kernel_rows(other, index, x)
    elif x.dim() != 2 or other.dim() != 2 or x.size(0) != other.size(0):
        raise ValueError(
            f"'x' and 'y' need shapes [n, channels] with the same n (got {list(x.shape)} and "
            f"{list(other.shape)})"
        )
    _check_variance(variance)
    dtype = torch.promote_types(x.dtype, other.dtype)
    x = _scaled(x.to(dtype), variance, normalize)
    other = _scaled(other.to(dtype), variance, normalize) if index is None else other.detach()
    total, x_rows, y_rows, *_ = _kernel_sums(x, other, index)
    # A tensor: under torch.compile the number of rows may be unknown, such as of unique items.
    n = x.new_full((), x.size(0))
    least = 4 if unbiased else 2
    m = n.clamp(min=least)
    if unbiased:  # without the diagonals, which are ones
        total, x_rows, y_rows = total - n, x_rows - 1, y_rows - 1
        factor, share, size = 2 / (m - 2), 1 / ((m - 1) * (m - 2)), m * (m - 3)
    else:
        factor, share, size = 2 / m, 1 / m.square(), (m - 1).square()
    value = total - factor * torch.dot(x_rows, y_rows) + share * x_rows.sum() * y_rows.sum()
    return torch.where(n >= least, value / size, 0.0)


def _check_kernel_rows(kernel: Tensor, rows: Tensor, x: Tensor) -> None:
    if kernel.dim() != 2 or kernel.size(0) != kernel.size(1):
        raise ValueError(f"'kernel' needs shape [N, N] (got {list(kernel.shape)})")
    if x.dim() != 2 or rows.dtype != torch.int64 or rows.shape != x.shape[:1]:
        raise ValueError(
            f"'rows' needs an int64 row of the kernel for each row of 'x' (got {rows.dtype} "
            f"{list(rows.shape)} for {list(x.shape)})"
        )
    if rows.numel() > 0 and not torch.compiler.is_compiling():
        low, high = map(int, rows.aminmax())
        if low < 0 or high >= kernel.size(0):
            raise ValueError(
                f"'rows' needs numbers from 0 to {kernel.size(0) - 1} (got {low} to {high})"
            )


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

    def forward(self, x: Tensor, y: Tensor | KernelRows) -> Tensor:
        """HSIC of paired rows ``[n, channels]`` and ``[n, other_channels]``."""
        return hsic(x, y, self.variance, self.normalize, self.unbiased)

    def extra_repr(self) -> str:
        """Options, for ``repr``."""
        return f"variance={self.variance}, normalize={self.normalize}, unbiased={self.unbiased}"
