"""A sweep on one page, with what can and cannot be concluded from it."""

from collections.abc import Mapping, Sequence

from aggregator.history import History
from aggregator.sweep import comparison
from aggregator.sweep.comparison import Comparison
from aggregator.sweep.running import Run
from aggregator.sweep.statistics import LOWER_IS_BETTER
from models.page import Cell, Figure, Item, Page, Section, Table
from models.plan import Plan


def page(
    plan: Plan,
    found: Comparison | None,
    histories: Mapping[Run, History],
    incomplete: Mapping[Run, str],
    failed: Mapping[Run, str],
) -> Page:
    """The page.

    Args:
        plan: The study before any arm changed it.
        found: The arms compared, if any told the metric.
        histories: The runs that are over.
        incomplete: Those of them whose last model not every hospital measured, and what is missing.
        failed: The runs that are not over, and why.
    """
    if found is None:
        sections = [Section("Arms", ["No run is over that told the metric."])]
    else:
        columns, rows = comparison.table(found)
        sections = [
            Section("Arms", [Table(columns, rows), _reading(found)]),
            Section("Round by round", [Figure("Shaded: 95 % interval over seeds.", comparison.curves(found))]),
            Section("Hospital by hospital", _hospitals(found)),
            Section(
                "Rounds to target",
                [Figure("Median over the seeds that reached it; lines: lowest, highest.", comparison.targets(found))],
            ),
        ]
    sections.append(Section("Runs", _runs(histories)))
    for title, runs in (("Not measured everywhere", incomplete), ("Failed", failed)):
        if runs:
            sections.append(Section(title, [_told(runs)]))
    return Page(f"Sweep of {plan.name}: {plan.purpose}", sections)


def _reading(found: Comparison) -> str:
    counts = {one.final.count for one in found.results}
    better = "lower" if found.metric in LOWER_IS_BETTER else "higher"
    few = " With fewer than five seeds an interval is wide, and a test finds only large differences." * (
        min(counts) < 5
    )
    tests = sum(one.difference is not None and one.difference.p is not None for one in found.results)
    differences = (
        f" Differences to {found.first} are taken seed by seed; p is of the paired t-test, two-sided, corrected by Holm"
        f" for {tests} comparisons."
        if any(one.label == found.first for one in found.results)
        else f" No run of the first arm, {found.first}, is over that told the metric: nothing is compared with it."
    )
    target = "" if found.target is None else f" Target: {found.target:.3f}."
    return (
        f"{found.metric} ({better} is better) of the last model, as the mean over {len(found.hospitals)} hospitals,"
        " each counted alike, on their held-out patients. In brackets 95 % intervals of Student's t over seeds,"
        f" cut off at what the metric can be.{differences}{target} A seed changes the first model and the order of"
        f" images, not the patients: nothing here says how arms would compare on other patients.{few}"
    )


def _hospitals(found: Comparison) -> list[Item]:
    rows: list[Sequence[Cell]] = []
    for name in found.hospitals:
        values = [comparison.at(one, name, found.metric) for one in found.results]
        rows.append((name, *("-" if value is None else str(value) for value in values)))
    return [
        Figure("Lines: 95 % interval over seeds.", comparison.hospitals(found)),
        Table(("hospital", *(one.label for one in found.results)), rows),
    ]


def _runs(histories: Mapping[Run, History]) -> list[Item]:
    if not histories:
        return ["None is over."]
    rows: list[Sequence[Cell]] = [
        (
            run.arm.label,
            str(run.seed),
            len(history.rounds) - 1,
            sum(round_.void for round_ in history.rounds),
            sum(len(round_.refused) for round_ in history.rounds),
            sum(round_.nbytes for round_ in history.rounds),
            history.rounds[-1].model,
        )
        for run, history in histories.items()
    ]
    columns = ("arm", "seed", "rounds", "void", "refused", "bytes of hospitals", "last model (SHA-256)")
    return [
        Table(columns, rows),
        "Each run is a study folder with ledgers; intramural-audit verifies and reconciles them.",
    ]


def _told(runs: Mapping[Run, str]) -> Table:
    rows = [(run.arm.label, str(run.seed), what) for run, what in runs.items()]
    return Table(("arm", "seed", "what is missing or went wrong"), rows)
