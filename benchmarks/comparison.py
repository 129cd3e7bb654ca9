"""Whether two sets of runs differ, by the metrics of the same users."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import t

_Array = npt.NDArray[np.float64]


def compare(ours: _Array, other: _Array) -> tuple[float, float | None]:
    r"""Two-sided p-values of the difference in the mean of a metric of the same users.

    With :math:`d_u` the difference of user :math:`u`'s means over the runs, the first is the paired
    t-test over users, of variance :math:`\mathrm{var}(d) / U`. The second adds
    :math:`s^2 (1/n_1 + 1/n_2)`, where :math:`s^2` is the variance of a run's mean, pooled over both
    sides, with the degrees of freedom of Satterthwaite. It takes all runs for independent, also
    those of the same seed, and counts what is random in a user and a run in both summands: where it
    errs, it is rather for a larger p. (Resampling the runs instead would see only the share
    :math:`(n - 1) / n` of their variance: with two seeds, half.)

    Args:
        ours (numpy.ndarray): A metric ``[runs, users]``.
        other (numpy.ndarray): The same metric in other runs, ``[other_runs, users]``.

    Returns:
        tuple: The p-values over users, and over users and seeds; the second is None where either
        side is a single run.
    """
    difference = ours.mean(0) - other.mean(0)
    mean, num_users = float(difference.mean()), difference.size
    of_users = (float(difference.var(ddof=1)) / num_users, num_users - 1)
    p_of_users = p_value(mean, of_users)
    if min(len(ours), len(other)) < 2:
        return p_of_users, None
    freedom = len(ours) + len(other) - 2
    squares = sum(len(x) * float(x.mean(1).var()) for x in (ours, other))
    of_runs = (squares / freedom * (1 / len(ours) + 1 / len(other)), freedom)
    return p_of_users, p_value(mean, of_users, of_runs)


def bootstrap(difference: _Array, samples: int = 10_000) -> float:
    """Two-sided p-value of a mean of paired differences, by resampling them around 0: how often a
    resample's mean, by its own standard error, is as large as the one that was found.
    """
    generator, size = np.random.default_rng(0), difference.size
    mean, centred, at_least = float(difference.mean()), difference - difference.mean(), 0
    if mean == 0 or np.ptp(difference) == 0:
        return 1.0 if mean == 0 else 1 / (samples + 1)
    found = mean**2 / float(centred @ centred)
    for _ in range(samples // 1000):
        counts = generator.multinomial(size, [1 / size] * size, 1000)
        squared = (counts @ centred / size) ** 2
        # Without a difference in the resample this is infinite: nothing speaks against chance.
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = squared / (counts @ centred**2 - size * squared).clip(min=0)
        at_least += int((~(ratio < found)).sum())
    return (at_least + 1) / (samples + 1)


def p_value(mean: float, *variances: tuple[float, int]) -> float:
    """Two-sided p-value of a mean, by Student's t.

    Args:
        mean (float): The mean.
        *variances (tuple[float, int]): Parts of its variance, each with its degrees of freedom.
    """
    total = sum(variance for variance, _ in variances)
    if mean == 0 or total == 0:
        return float(mean == 0)
    freedom = total**2 / sum(variance**2 / degrees for variance, degrees in variances)
    return float(2 * t.sf(abs(mean) / total**0.5, freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction for several comparisons."""
    corrected = np.empty(len(p_values))
    running = 0.0
    for rank, index in enumerate(np.argsort(p_values)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = running
    return corrected.tolist()


def stars(p: float) -> str:
    """One for p < 0.05, two for p < 0.01."""
    return "**" if p < 0.01 else "*" if p < 0.05 else ""
