"""Norm penalties on the embeddings of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Norm(torch.autograd.Function):
    """Frobenius norm with its gradient, E / |E| or 0, in one pass, where autograd makes three."""

    @staticmethod
    def forward(ctx: Any, embedding: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(embedding)
        ctx.save_for_backward(embedding, norm)
        return norm

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        embedding, norm = ctx.saved_tensors
        return embedding * torch.where(norm == 0, 0.0, grad / norm)


def _norms(embeddings: tuple[Tensor, ...]) -> Tensor:
    if not embeddings:
        raise ValueError("'embeddings' needs at least one matrix (got none)")
    return torch.stack([_Norm.apply(embedding) for embedding in embeddings])


def emb_loss(*embeddings: Tensor) -> Tensor:
    r"""Sum of Frobenius norms over the batch size, as the field's toolboxes regularise.

    .. math::
        \mathcal{L} = \frac{1}{B} \sum_k \lVert \mathbf{E}_k \rVert_F

    The norms are not squared; :math:`B` is the number of rows of the last argument.

    Args:
        *embeddings (torch.Tensor): Matrices ``[rows, channels]``, at least one.

    Raises:
        ValueError: If none is given.
    """
    return _norms(embeddings).sum() / embeddings[-1].size(0)


def l2_loss(*embeddings: Tensor) -> Tensor:
    r"""Half the sum of squares, :math:`\frac{1}{2} \sum_k \lVert \mathbf{E}_k \rVert_F^2`.

    Args:
        *embeddings (torch.Tensor): Matrices ``[rows, channels]``, at least one.

    Raises:
        ValueError: If none is given.
    """
    return 0.5 * _norms(embeddings).square().sum()


class EmbLoss(nn.Module):
    """Module form of :func:`emb_loss`."""

    def forward(self, *embeddings: Tensor) -> Tensor:
        """Penalises the embeddings' norms."""
        return emb_loss(*embeddings)


class L2Loss(nn.Module):
    """Module form of :func:`l2_loss`."""

    def forward(self, *embeddings: Tensor) -> Tensor:
        """Penalises the embeddings' squares."""
        return l2_loss(*embeddings)
