"""What happened in training."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass
class History:
    """What happened in training, epoch by epoch.

    Args:
        epochs (list[dict]): Of each epoch, from 0: mean ``loss`` by term, ``validation`` metrics
            as far down the ranking as the one that picks the epoch looks, ``seconds`` of ``train``
            and ``validation``.
        best_epoch (int): The epoch whose weights are kept; -1 if nothing was trained.
    """

    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = -1

    def seconds_per_epoch(self) -> dict[str, float]:
        """Median seconds of an epoch's training and validation."""
        return {
            part: median(epoch["seconds"][part] for epoch in self.epochs)
            for part in ("train", "validation")
            if self.epochs
        }
