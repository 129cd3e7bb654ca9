"""Edge weights from attention and confidence."""

from __future__ import annotations

import torch
from torch import Tensor


def confidence_weight(attention: Tensor, confidence: Tensor, source: Tensor) -> Tensor:
    r"""Edge weights from several attentions, each believed as far as the source's confidence in it.

    .. math::
        w_{ji} = \mathrm{ReLU} \left( \max_m \alpha^m_{ji} \, c_{jm} \right)

    (`"Graph-Refined Convolutional Network for Multimedia Recommendation with Implicit Feedback"
    <https://arxiv.org/abs/2111.02036>`_). An edge that no modality speaks for gets weight 0: it is
    pruned softly. Of equal products one gets the gradient.

    Args:
        attention (torch.Tensor): Weight :math:`\alpha` of each edge in each modality,
            ``[num_edges, num_modalities]``.
        confidence (torch.Tensor): Confidence :math:`c` of each source in each modality,
            ``[num_sources, num_modalities]``.
        source (torch.Tensor): Source of each edge, ``[num_edges]``.

    Returns:
        torch.Tensor: ``[num_edges]``, 0 or more.

    Raises:
        ValueError: If shapes do not fit.

    Example:
        >>> import torch
        >>> from pyg_mmrec.nn.conv import WeightedConv
        >>> edge_index = torch.tensor([[0, 1, 1], [1, 0, 1]])
        >>> attention = torch.tensor([[0.5, 0.25], [1.0, 1.0], [0.5, 0.75]])
        >>> confidence = torch.tensor([[1.0, 4.0], [-1.0, -2.0]])
        >>> weight = confidence_weight(attention, confidence, edge_index[0])
        >>> weight.tolist()
        [1.0, 0.0, 0.0]
        >>> WeightedConv()(torch.tensor([[3.0], [5.0]]), edge_index, weight).tolist()
        [[0.0], [3.0]]
    """
    shape = (source.numel(), confidence.size(-1))
    if confidence.dim() != 2 or attention.shape != shape:
        raise ValueError(
            f"'attention' and 'confidence' need one column per modality, and 'attention' one row "
            f"per edge, shape {list(shape)} (got {list(attention.shape)} and "
            f"{list(confidence.shape)})"
        )
    believed = attention * confidence.index_select(0, source)
    return torch.relu(believed.max(dim=1).values)
