"""What a noisy hidden layer costs in information: the rate of a variational bottleneck."""

from __future__ import annotations

from torch import Tensor, nn

from pyg_mmrec.argument_checks import check_choice
from pyg_mmrec.nn.losses.divergence import REDUCTIONS


def _check(hidden: Tensor, scale: Tensor, prior_name: str, prior: float, reduction: str) -> None:
    check_choice("reduction", reduction, REDUCTIONS)
    if not prior > 0:
        raise ValueError(f"'{prior_name}' needs to be positive (got {prior})")
    if hidden.dim() != 2 or scale.shape != (hidden.size(0), 1):
        raise ValueError(
            f"'hidden' and 'scale' need shapes [rows, channels] and [rows, 1] (got "
            f"{list(hidden.shape)} and {list(scale.shape)})"
        )


def bottleneck_rate(
    hidden: Tensor,
    scale: Tensor,
    prior_scale: float = 0.5,
    hidden_weight: float = 1.0,
    scale_weight: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    r"""Rate of the adaptive noise of DVIB (`Zhao et al., WWW 2025`, Eq. 13).

    .. math::
        R = \frac{1}{n} \sum_{r=1}^{n} \left[ \alpha_0 \lVert H_r \rVert^2 +
        \beta_0 \left( \frac{\phi_r}{a} - \log \frac{\phi_r}{a} - 1 \right) \right]

    For :math:`\alpha_0 = \frac{1}{2a}` and :math:`\beta_0 = \frac{d}{2}` it equals
    :math:`\mathrm{KL}(\mathcal{N}(H, \phi I) \Vert \mathcal{N}(0, a I))` (Theorem 3.1, which reads
    :math:`\phi` as a variance); for :math:`\alpha_0 = 0` its minimum is at :math:`\phi = a`
    (Theorem 3.2).

    Args:
        hidden (torch.Tensor): :math:`H`, ``[rows, channels]``.
        scale (torch.Tensor): :math:`\phi`, positive, ``[rows, 1]``.
        prior_scale (float, optional): :math:`a`. (default: 0.5)
        hidden_weight (float, optional): :math:`\alpha_0`. (default: 1)
        scale_weight (float, optional): :math:`\beta_0`. (default: 1)
        reduction (str, optional): :obj:`"mean"` over rows, or :obj:`"none"`.
            (default: :obj:`"mean"`)

    Returns:
        torch.Tensor: A scalar, or one value per row, ``[rows]``.

    Raises:
        ValueError: If shapes do not fit, ``prior_scale`` is not positive, or ``reduction`` is
            unknown.
    """
    _check(hidden, scale, "prior_scale", prior_scale, reduction)
    ratio = (scale / prior_scale).squeeze(-1)
    rate = scale_weight * (ratio - ratio.log() - 1)
    if hidden_weight != 0.0:
        rate = rate + hidden_weight * hidden.square().sum(-1)
    return rate.mean() if reduction == "mean" else rate


def normal_kl_rate(
    hidden: Tensor, scale: Tensor, prior_std: float = 0.5, reduction: str = "mean"
) -> Tensor:
    r"""Mean over rows and channels of :math:`\mathrm{KL}(\mathcal{N}(H, \phi^2) \Vert
    \mathcal{N}(0, s^2))`, the rate of DVIB's published code (there with :math:`s = 0.5`).

    Args:
        hidden (torch.Tensor): :math:`H`, ``[rows, channels]``.
        scale (torch.Tensor): :math:`\phi`, a standard deviation, ``[rows, 1]``.
        prior_std (float, optional): :math:`s`. (default: 0.5)
        reduction (str, optional): :obj:`"mean"` over rows, or :obj:`"none"`.
            (default: :obj:`"mean"`)

    Returns:
        torch.Tensor: A scalar, or the mean over channels of each row, ``[rows]``.

    Raises:
        ValueError: If shapes do not fit, ``prior_std`` is not positive, or ``reduction`` is
            unknown.
    """
    _check(hidden, scale, "prior_std", prior_std, reduction)
    ratio = (scale / prior_std).square().squeeze(-1)
    rate = 0.5 * (ratio - ratio.log() - 1 + (hidden / prior_std).square().mean(-1))
    return rate.mean() if reduction == "mean" else rate


class BottleneckRate(nn.Module):
    """Module form of :func:`bottleneck_rate`, with the same arguments.

    Raises:
        ValueError: If ``prior_scale`` is not positive or ``reduction`` unknown.
    """

    def __init__(
        self,
        prior_scale: float = 0.5,
        hidden_weight: float = 1.0,
        scale_weight: float = 1.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        check_choice("reduction", reduction, REDUCTIONS)
        if not prior_scale > 0:
            raise ValueError(f"'prior_scale' needs to be positive (got {prior_scale})")
        self.prior_scale = prior_scale
        self.hidden_weight = hidden_weight
        self.scale_weight = scale_weight
        self.reduction = reduction

    def forward(self, hidden: Tensor, scale: Tensor) -> Tensor:
        """Rates ``hidden`` ``[rows, channels]`` under noise of ``scale`` ``[rows, 1]``."""
        return bottleneck_rate(
            hidden,
            scale,
            self.prior_scale,
            self.hidden_weight,
            self.scale_weight,
            self.reduction,
        )


class NormalKLRate(nn.Module):
    """Module form of :func:`normal_kl_rate`, with the same arguments.

    Raises:
        ValueError: If ``prior_std`` is not positive or ``reduction`` unknown.
    """

    def __init__(self, prior_std: float = 0.5, reduction: str = "mean") -> None:
        super().__init__()
        check_choice("reduction", reduction, REDUCTIONS)
        if not prior_std > 0:
            raise ValueError(f"'prior_std' needs to be positive (got {prior_std})")
        self.prior_std = prior_std
        self.reduction = reduction

    def forward(self, hidden: Tensor, scale: Tensor) -> Tensor:
        """Rates ``hidden`` ``[rows, channels]`` under noise of ``scale`` ``[rows, 1]``."""
        return normal_kl_rate(hidden, scale, self.prior_std, self.reduction)
