"""Contrast of what belongs together with what does not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyg_mmrec.nn.functional import normalize_rows


def info_nce(x: Tensor, y: Tensor, index: Tensor | None = None, temperature: float = 0.2) -> Tensor:
    r"""InfoNCE with cosine similarity (`van den Oord et al., 2018
    <https://arxiv.org/abs/1807.03748>`_; IBMRec, Eq. 20).

    .. math::
        - \frac{1}{n} \sum_{a=1}^{n} \log \frac{\exp(\cos(\mathbf{x}_a, \mathbf{y}_{t(a)}) / \tau)}
        {\sum_{j=1}^{m} \exp(\cos(\mathbf{x}_a, \mathbf{y}_j) / \tau)}

    Args:
        x (torch.Tensor): Anchors ``[n, channels]``.
        y (torch.Tensor): Candidates ``[m, channels]``.
        index (torch.Tensor, optional): :math:`t`, the row of ``y`` that belongs to each anchor,
            ``[n]``. (default: the row of the same number)
        temperature (float, optional): :math:`\tau`. (default: 0.2)

    Returns:
        torch.Tensor: A scalar; 0 without anchors.

    Raises:
        ValueError: If shapes do not fit or the temperature is not positive.

    Example:
        >>> import torch
        >>> x = torch.eye(4)
        >>> round(info_nce(x, x, temperature=1.0).item(), 4)  # log(e + 3) - 1
        0.7437
    """
    _check_temperature(temperature)
    if x.dim() != 2 or y.dim() != 2 or x.size(1) != y.size(1):
        raise ValueError(
            f"'x' and 'y' need shapes [n, channels] and [m, channels] (got {list(x.shape)} and "
            f"{list(y.shape)})"
        )
    if index is None:
        if x.size(0) != y.size(0):
            raise ValueError(
                f"'index' is needed for {x.size(0)} anchors and {y.size(0)} candidates"
            )
        index = torch.arange(x.size(0), device=x.device)
    if index.shape != x.shape[:1]:
        raise ValueError(
            f"'index' needs one row of 'y' per anchor, shape [{x.size(0)}] "
            f"(got {list(index.shape)})"
        )
    logits = normalize_rows(x) @ normalize_rows(y).t() / temperature
    return -logits.log_softmax(1).gather(1, index[:, None]).sum() / max(x.size(0), 1)


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"'temperature' needs to be positive (got {temperature})")


class InfoNCELoss(nn.Module):
    r"""Module form of :func:`info_nce`.

    Args:
        temperature (float, optional): :math:`\tau`. (default: 0.2)

    Raises:
        ValueError: If the temperature is not positive.
    """

    def __init__(self, temperature: float = 0.2) -> None:
        super().__init__()
        _check_temperature(temperature)
        self.temperature = temperature

    def forward(self, x: Tensor, y: Tensor, index: Tensor | None = None) -> Tensor:
        """InfoNCE of anchors ``[n, channels]`` and candidates ``[m, channels]``."""
        return info_nce(x, y, index, self.temperature)
