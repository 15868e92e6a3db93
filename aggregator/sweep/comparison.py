"""What came out of a sweep, arm by arm; and the same as tables and drawings for people."""

import statistics as numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aggregator.history import History
from aggregator.sweep import statistics
from aggregator.sweep.running import Run
from aggregator.sweep.statistics import Difference, Estimate
from models import drawing
from models.page import Cell

_NAMES = 230  # of a drawing's width, for the names of arms


@dataclass(frozen=True)
class Result:
    """One arm.

    Attributes:
        label: What it is called.
        histories: Of its runs that are over, by seed.
        final: Mean of the last models, over seeds.
        worst: The same at the hospital that is served worst.
        difference: To the first arm, if it is among the arms.
        reached: Of each run, the round that reached the target, if there is one; None where none did.
    """

    label: str
    histories: Mapping[int, History]
    final: Estimate
    worst: Estimate
    difference: Difference | None
    reached: Sequence[int | None]


@dataclass(frozen=True)
class Comparison:
    """All arms of which a run is over and told the metric.

    Attributes:
        metric: What is compared.
        first: The sweep's first arm, with which the others are compared; it may not be among them.
        target: Of "rounds to target"; None if it was to be what the first arm reached, and no run of that one told.
        hospitals: Everybody who told the metric of a last model.
        results: In the order of the sweep.
    """

    metric: str
    first: str
    target: float | None
    hospitals: Sequence[str]
    results: Sequence[Result]


def compare(histories: Mapping[Run, History], metric: str, target: float | None, first: str) -> Comparison | None:
    """Compare the runs that are over; None if none of them told the metric.

    Args:
        histories: What happened in each.
        metric: What is compared.
        target: Of "rounds to target"; the first arm's mean at the end by default.
        first: Label of the sweep's first arm.
    """
    by_arm: dict[str, dict[int, History]] = {}
    for run, history in histories.items():
        if statistics.measured(history.rounds[-1], metric):
            by_arm.setdefault(run.arm.label, {})[run.seed] = history
    if not by_arm:
        return None
    finals = {label: {seed: _last(one, metric) for seed, one in each.items()} for label, each in by_arm.items()}
    gaps = statistics.differences(finals) if first in finals else {}
    if target is None and first in finals:
        target = numbers.fmean(finals[first].values())
    results = [
        Result(
            label,
            each,
            statistics.level(list(finals[label].values()), metric),
            statistics.level([statistics.worst(one.rounds[-1], metric) or 0.0 for one in each.values()], metric),
            gaps.get(label),
            [] if target is None else [statistics.reached(one, metric, target) for one in each.values()],
        )
        for label, each in by_arm.items()
    ]
    hospitals = {name for one in histories.values() for name in statistics.measured(one.rounds[-1], metric)}
    return Comparison(metric, first, target, sorted(hospitals), results)


def incomplete(histories: Mapping[Run, History], metric: str) -> dict[Run, str]:
    """The runs whose last model was not measured by everybody who measured another's, and what is missing.

    Args:
        histories: Of the runs that are over.
        metric: What is compared.
    """
    told = {run: statistics.measured(history.rounds[-1], metric).keys() for run, history in histories.items()}
    everybody = set().union(*told.values())
    return {
        run: f"{metric} of its last model is missing at {', '.join(sorted(everybody - names)) or 'every hospital'}"
        for run, names in told.items()
        if not names or everybody - names
    }


def _last(history: History, metric: str) -> float:
    return numbers.fmean(statistics.measured(history.rounds[-1], metric).values())


def table(found: Comparison) -> tuple[Sequence[str], list[Sequence[Cell]]]:
    """The arms in a table: columns and rows."""
    columns = ("arm", "seeds", found.metric, "worst hospital", "less the first arm", "p (Holm)", "rounds to target")
    rows: list[Sequence[Cell]] = []
    for one in found.results:
        gap = one.difference
        known = [number for number in one.reached if number is not None]
        rows.append(
            (
                one.label,
                one.final.count,
                str(one.final),
                str(one.worst),
                f"{gap.mean.mean:+.3f}" + _ends(gap.mean) if gap else "",
                "" if gap is None else _p(gap.corrected),
                f"{numbers.median(known):g} ({len(known)} of {len(one.reached)})"
                if known
                else "not reached" * bool(one.reached),
            )
        )
    return columns, rows


def as_json(found: Comparison | None) -> list[dict[str, Any]]:
    """The arms as JSON values."""
    return [
        {
            "arm": one.label,
            "metric": found.metric,
            "final": vars(one.final),
            "worst": vars(one.worst),
            "difference": one.difference and {**vars(one.difference), "mean": vars(one.difference.mean)},
            "rounds_to_target": list(one.reached),
        }
        for one in (found.results if found else ())
        if found
    ]


def _ends(found: Estimate) -> str:
    return f" ({found.low:+.3f} to {found.high:+.3f})" if found.count > 1 else ""


def _p(value: float | None) -> str:
    return "-" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def curves(found: Comparison) -> str:
    """The mean of each arm round by round, with the 95 % interval over seeds."""
    points, bands = {}, {}
    for one in found.results:
        each: dict[int, list[float]] = {}
        for history in one.histories.values():
            for number, value in statistics.means(history, found.metric).items():
                each.setdefault(number, []).append(value)
        told = {number: statistics.level(values, found.metric) for number, values in sorted(each.items())}
        points[one.label] = [(number, value.mean) for number, value in told.items()]
        bands[one.label] = [(number, value.low, value.high) for number, value in told.items() if value.count > 1]
    title = f"{found.metric} of each round's model, mean over hospitals and seeds"
    return drawing.lines(title, "", points, bands=bands, floor=None, height=320, right=_NAMES)


def hospitals(found: Comparison) -> str:
    """The last model at each hospital, with the 95 % interval over seeds."""
    bars = {one.label: [at(one, name, found.metric) for name in found.hospitals] for one in found.results}
    drawn = {
        label: [(value.mean, value.low, value.high) if value else None for value in values]
        for label, values in bars.items()
    }
    title = f"{found.metric} of the last model at each hospital"
    return drawing.groups(title, "", found.hospitals, drawn, height=280, right=_NAMES)


def at(one: Result, hospital: str, metric: str) -> Estimate | None:
    """The last models of an arm at one hospital, over seeds."""
    told = [statistics.measured(history.rounds[-1], metric).get(hospital) for history in one.histories.values()]
    values = [value for value in told if value is not None]
    return statistics.level(values, metric) if values else None


def targets(found: Comparison) -> str:
    """Rounds that each arm took to the target: median over the seeds that reached it, lowest and highest."""
    bars: list[drawing.Bar] = []
    for one in found.results:
        known = [number for number in one.reached if number is not None]
        bars.append((float(numbers.median(known)), float(min(known)), float(max(known))) if known else None)
    goal = "what the first arm reached" if found.target is None else f"{found.target:.3f}"
    title = f"Rounds until the mean {found.metric} was {goal}"
    return drawing.groups(title, "rounds", [one.label for one in found.results], {"rounds": bars})
