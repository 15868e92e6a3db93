"""What the runs of a sweep say, and how sure of it one may be.

A run is one number: the metric of its last model, as the mean over the hospitals that told it, each counted alike. Over
seeds it has a mean and a 95 % interval of Student's t. Arms are compared with the first one seed by seed: the mean
difference, its interval, and the two-sided p of the paired t-test, corrected over all arms by Holm (1979, Scandinavian
Journal of Statistics 6). All of it is about seeds: other first weights and orders of images, not other patients.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aggregator.history import History, Round

LOWER_IS_BETTER = frozenset({"loss", "hausdorff95"})

_LEVEL = 0.95
_SAME = 1e-12  # a spread that is nothing but rounding


@dataclass(frozen=True)
class Estimate:
    """A mean of several numbers.

    Attributes:
        mean: Their mean.
        low: Lower end of the 95 % interval; the mean itself if there is only one number.
        high: Its upper end.
        count: How many they are.
    """

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + (f" ({self.low:.3f} to {self.high:.3f})" if self.count > 1 else "")


@dataclass(frozen=True)
class Difference:
    """An arm less the first one, over the seeds that both have.

    Attributes:
        mean: The mean difference, with its interval.
        p: Of the paired t-test, two-sided; None where it cannot be told (one seed, or differences without any spread).
        corrected: The same after Holm.
    """

    mean: Estimate
    p: float | None
    corrected: float | None


def measured(round_: Round, metric: str) -> dict[str, float]:
    """What each hospital told of a model."""
    return {name: values[metric] for name, values in sorted(round_.metrics.items()) if metric in values}


def worst(round_: Round, metric: str) -> float | None:
    """Of the hospital that is served worst."""
    values = measured(round_, metric).values()
    return (max if metric in LOWER_IS_BETTER else min)(values, default=None)


def means(history: History, metric: str) -> dict[int, float]:
    """By round, the mean over those who told the metric of the last model; a round that lacks one of them is left out.

    A mean over whoever was there would change with who was away.
    """
    judges = measured(history.rounds[-1], metric).keys()
    told = {round_.number: measured(round_, metric) for round_ in history.rounds}
    return {
        number: statistics.fmean(values[name] for name in judges)
        for number, values in told.items()
        if judges and judges <= values.keys()
    }


def reached(history: History, metric: str, target: float) -> int | None:
    """The first round whose model is at least as good as the target, of those that `means` knows; None if none is."""
    sign = -1 if metric in LOWER_IS_BETTER else 1
    return next((number for number, value in means(history, metric).items() if sign * value >= sign * target), None)


def level(values: Sequence[float], metric: str) -> Estimate:
    """The mean of at least one value of a metric; the interval is cut off at what the metric can be."""
    found = estimate(values)
    least = 0.0 if min(values) >= 0 else -math.inf  # a task of one's own may have a loss below 0
    most = math.inf if metric in LOWER_IS_BETTER else 1.0
    return Estimate(found.mean, max(least, found.low), min(most, found.high), found.count)


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of at least one number, with the 95 % interval of Student's t."""
    middle, count = statistics.fmean(values), len(values)
    if count == 1:
        return Estimate(middle, middle, middle, 1)
    from scipy.stats import t

    half = float(t.ppf((1 + _LEVEL) / 2, count - 1)) * statistics.stdev(values) / math.sqrt(count)
    return Estimate(middle, middle - half, middle + half, count)


def differences(arms: Mapping[str, Mapping[int, float]]) -> dict[str, Difference | None]:
    """Compare every arm with the first.

    Args:
        arms: By label, one number for each seed.

    Returns:
        For every arm but the first; None where they have no seed in common.
    """
    (_, first), *others = arms.items()
    raw: dict[str, tuple[Estimate, float | None] | None] = {}
    for label, values in others:
        gaps = [values[seed] - first[seed] for seed in first if seed in values]
        raw[label] = (estimate(gaps), paired_p(gaps)) if gaps else None
    told = {label: found[1] for label, found in raw.items() if found and found[1] is not None}
    corrected = dict(zip(told, holm(list(told.values())), strict=True))
    return {label: found and Difference(*found, corrected.get(label)) for label, found in raw.items()}


def paired_p(gaps: Sequence[float]) -> float | None:
    """Two-sided p of the t-test that the mean of some differences is 0; None without any spread."""
    if len(gaps) < 2 or (spread := statistics.stdev(gaps)) < _SAME:
        return None
    from scipy.stats import t

    return float(2 * t.sf(abs(statistics.fmean(gaps)) / (spread / math.sqrt(len(gaps))), len(gaps) - 1))


def holm(values: Sequence[float]) -> list[float]:
    """P values corrected for their number, by Holm's step-down rule, in their order."""
    corrected, highest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = highest
    return corrected
