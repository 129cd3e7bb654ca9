"""Mirror gradients."""

from __future__ import annotations

from pyg_mmrec.argument_checks import check_positive
from pyg_mmrec.nn.objectives.method import Method


class MirrorGradient(Method):
    r"""Mirror gradient, MG (`"Mirror Gradient: Towards Robust Multimodal Recommender Systems via
    Exploring Flat Local Minima" <https://arxiv.org/abs/2402.11262>`_, WWW 2024).

    On the batches :math:`0, \beta, 2 \beta, \ldots` of an epoch, a step along :math:`\alpha_1
    \nabla L` is followed by one along :math:`- \alpha_2 \nabla L` at the new point, on the same
    batch and through the same optimiser; the others take a plain step. The loss, and what it draws,
    is computed anew for the second step. It wraps any objective; of one with a second stage, the
    first.

    Args:
        alpha_1 (float, optional): :math:`\alpha_1`. (default: 1)
        alpha_2 (float, optional): :math:`\alpha_2`. (default: 0.1)
        interval (int, optional): :math:`\beta`. (default: 3)

    Raises:
        ValueError: If an option is out of range.

    .. note::
        Adam divides by the root of the mean squared gradient, so its steps shrink less under
        :math:`\alpha_2` than those of plain gradient descent, for which the paper argues.
    """

    name = "mg"
    reads_hidden = False

    def __init__(self, alpha_1: float = 1.0, alpha_2: float = 0.1, interval: int = 3) -> None:
        super().__init__()
        for name, value in (("alpha_1", alpha_1), ("alpha_2", alpha_2)):
            # Not 0 either: Adam's moments would move the weights all the same.
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ValueError(f"'{name}' needs to be a positive number (got {value!r})")
        check_positive("interval", interval)
        self.alpha_1 = alpha_1
        self.alpha_2 = alpha_2
        self.interval = interval

    def gradient_scales(self, step: int) -> tuple[float, ...]:
        """Forth and back in every ``interval``-th step."""
        return (1.0,) if step % self.interval else (self.alpha_1, -self.alpha_2)
