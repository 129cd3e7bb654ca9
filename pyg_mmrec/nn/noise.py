"""Perturbations of a hidden layer (DVIB, Eq. 11 and 12)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pyg_mmrec.argument_checks import check_choice, check_rate, check_weight

KINDS = ("gaussian", "uniform", "dropout")


def _noise(kind: str, hidden: Tensor, std: float, generator: torch.Generator | None) -> Tensor:
    """Noise of mean 0 and standard deviation ``std`` with the shape of ``hidden``."""
    if kind == "gaussian":
        noise = torch.empty_like(hidden, requires_grad=False)
        return noise.normal_(0.0, std, generator=generator)
    bound = math.sqrt(3.0) * std
    return torch.empty_like(hidden, requires_grad=False).uniform_(
        -bound, bound, generator=generator
    )


class ConstantNoise(nn.Module):
    r"""Perturbation :math:`\delta H` of constant strength, ``DVIB_c`` (Eq. 11; Tables 7, 11).

    Args:
        kind (str, optional): :obj:`"gaussian"`, :math:`\mathcal{N}(0, s^2)`; :obj:`"uniform"`,
            :math:`\mathcal{U}(-\sqrt{3} s, \sqrt{3} s)`, of equal variance; :obj:`"dropout"`,
            :math:`\mathrm{dropout}(H) - H`. (default: :obj:`"gaussian"`)
        std (float, optional): Standard deviation :math:`s`; not used by dropout. (default: 1e-3)
        dropout_rate (float, optional): Rate in [0, 1) of the dropout kind. (default: 0.1)

    Shapes:
        - **input:** :math:`H`, any shape
        - **output:** :math:`\delta H`, the same shape

    Raises:
        ValueError: If ``kind`` is unknown or a number is out of range.
    """

    def __init__(
        self, kind: str = "gaussian", std: float = 1e-3, dropout_rate: float = 0.1
    ) -> None:
        super().__init__()
        check_choice("kind", kind, KINDS)
        check_weight("std", std)
        check_rate("dropout_rate", dropout_rate)
        self.kind = kind
        self.std = std
        self.dropout_rate = dropout_rate

    def forward(self, hidden: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws a perturbation of ``hidden``."""
        if self.kind == "dropout":
            kept = torch.empty_like(hidden, requires_grad=False).uniform_(generator=generator)
            kept.lt_(1 - self.dropout_rate)
            return hidden * (kept / (1 - self.dropout_rate) - 1)
        return _noise(self.kind, hidden, self.std, generator)


class AdaptiveNoise(nn.Module):
    r"""Perturbation whose strength a small network reads off the hidden layer, ``DVIB_a``.

    .. math::
        \delta H = \phi \cdot \epsilon, \qquad
        \phi = \sigma(W_1 \, \mathrm{relu}(W_2 \, \mathrm{relu}(W_3 H)))

    (Eq. 12, 14; the linear layers have biases), one :math:`\phi \in (0, 1)` per row. Eq. 12 makes
    :math:`\phi` a standard deviation, while Theorems 3.1 and 3.2 read it as a variance: ``scale``
    chooses.

    Args:
        channels (int): Size of a hidden row.
        kind (str, optional): Of :math:`\epsilon`: :obj:`"gaussian"`, :obj:`"uniform"` (of variance
            1), or :obj:`"dropout"`, where :math:`\phi` is the rate, with a straight-through
            gradient. (default: :obj:`"gaussian"`)
        scale (str, optional): :obj:`"std"`, :math:`\delta H = \phi \epsilon`, or
            :obj:`"variance"`, :math:`\delta H = \sqrt{\phi} \epsilon`; not used by dropout.
            (default: :obj:`"std"`)
        hidden_channels (tuple[int, int], optional): Widths of the two hidden layers.
            (default: ``channels // 2`` twice)

    Shapes:
        - **input:** :math:`H` ``[rows, channels]``
        - **output:** :math:`\delta H` ``[rows, channels]`` and :math:`\phi` ``[rows, 1]``

    Raises:
        ValueError: If ``kind`` or ``scale`` is unknown or a width is not positive.
    """

    def __init__(
        self,
        channels: int,
        kind: str = "gaussian",
        scale: str = "std",
        hidden_channels: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        check_choice("kind", kind, KINDS)
        check_choice("scale", scale, ("std", "variance"))
        if hidden_channels is None:
            hidden_channels = (max(channels // 2, 1), max(channels // 2, 1))
        if len(hidden_channels) != 2 or min(channels, *hidden_channels) < 1:
            raise ValueError(
                f"'channels' and the two 'hidden_channels' need to be positive "
                f"(got {channels} and {list(hidden_channels)})"
            )
        self.channels = channels
        self.kind = kind
        self.scale = scale
        first, second = hidden_channels
        self.net = nn.Sequential(
            nn.Linear(channels, first),
            nn.ReLU(inplace=True),
            nn.Linear(first, second),
            nn.ReLU(inplace=True),
            nn.Linear(second, 1),
            nn.Sigmoid(),
        )

    def reset_parameters(self) -> None:
        """Draws the network's weights anew."""
        for module in self.net:
            if isinstance(module, nn.Linear):
                module.reset_parameters()

    def forward(
        self, hidden: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws a perturbation of ``hidden`` and tells its strength.

        Raises:
            ValueError: If rows are not as long as the network reads.
        """
        if hidden.size(-1) != self.channels:
            raise ValueError(
                f"'hidden' needs rows of {self.channels} channels (got shape {list(hidden.shape)})"
            )
        phi = self.net(hidden)
        if self.kind == "dropout":
            uniform = torch.empty_like(hidden, requires_grad=False).uniform_(generator=generator)
            keep_rate = 1 - phi
            # Kept or not is drawn by phi; backward sees the rate itself (straight-through).
            kept = (uniform < keep_rate).to(hidden.dtype) - keep_rate.detach() + keep_rate
            # A sigmoid may round to 1: nothing is kept there, and nothing is divided by zero.
            tiny = torch.finfo(hidden.dtype).eps
            return hidden * (kept / keep_rate.detach().clamp(min=tiny) - 1), phi
        strength = phi if self.scale == "std" else phi.sqrt()
        return strength * _noise(self.kind, hidden, 1.0, generator), phi
