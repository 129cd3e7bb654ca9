"""Softmax over the incoming edges of every node."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.utils import softmax


def edge_softmax(
    score: Tensor,
    target: Tensor,
    num_targets: int | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Softmax over the incoming edges of every target, leaving out masked edges.

    .. math::
        \alpha_{ji} = \frac{m_{ji} \exp(s_{ji})}{\sum_k m_{ki} \exp(s_{ki})}

    Without a mask it is :func:`torch_geometric.utils.softmax`. A target none of whose edges takes
    part has weights 0, and so have masked edges; no gradient passes through either.

    Args:
        score (torch.Tensor): One score :math:`s` per edge, ``[num_edges]``.
        target (torch.Tensor): Target of each edge, ``[num_edges]``.
        num_targets (int, optional): Number of targets. (default: one more than the highest id)
        mask (torch.Tensor, optional): Boolean, which edges take part, ``[num_edges]``.
            (default: all)

    Returns:
        torch.Tensor: ``[num_edges]``.

    Raises:
        ValueError: If the mask is not one mark per edge.

    Example:
        >>> import torch
        >>> score, target = torch.tensor([0.0, 0.0, 5.0, 1.0]), torch.tensor([0, 0, 0, 1])
        >>> edge_softmax(score, target, 2, mask=torch.tensor([True, True, False, False])).tolist()
        [0.5, 0.5, 0.0, 0.0]
    """
    if mask is None:
        return softmax(score, target, num_nodes=num_targets)
    if mask.shape != score.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"'mask' needs one boolean mark per edge, shape {list(score.shape)} "
            f"(got {mask.dtype} {list(mask.shape)})"
        )
    # The lowest finite number vanishes beside any other; where it stands alone the mask clears it.
    score = score.masked_fill(~mask, torch.finfo(score.dtype).min)
    return softmax(score, target, num_nodes=num_targets) * mask
