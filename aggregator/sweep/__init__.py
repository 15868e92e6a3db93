"""Many runs of one study, compared: strategies, parameters and seeds, on hospitals of this machine.

    outcome = sweep(Path("sweep.toml"), Path("out"))
    outcome.comparison.results[0].final      # mean and 95 % interval over seeds

`settings` is what people type, `arms` changes and checks the study, `running` carries out (resumable, several at a
time), `statistics` and `comparison` say what came out, `table` and `page` write it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from aggregator.history import History
from aggregator.sweep import comparison, table
from aggregator.sweep.arms import Arm, read_arms
from aggregator.sweep.comparison import Comparison, compare, incomplete
from aggregator.sweep.page import page
from aggregator.sweep.running import Run, carry_out_all, require_possible
from aggregator.sweep.settings import Sweep
from models.console import Report
from models.drawing import as_file
from models.errors import ConfigError
from models.ledger.disk import publish
from models.page import as_html, as_markdown
from models.plan import Plan

__all__ = ["Arm", "Comparison", "Outcome", "Run", "Sweep", "sweep"]


@dataclass(frozen=True)
class Outcome:
    """What a sweep came to.

    Attributes:
        comparison: The arms, if any run is over that told the metric.
        histories: The runs that are over.
        incomplete: Those of them whose last model not every hospital measured, and what is missing.
        failed: The runs that are not over, and what went wrong.
        files: What was written about them.
    """

    comparison: Comparison | None
    histories: Mapping[Run, History]
    incomplete: Mapping[Run, str]
    failed: Mapping[Run, str]
    files: list[Path]


def sweep(
    source: Path,
    out: Path,
    told: Callable[[Run, str], None] | None = None,
    progress: Report | None = None,
) -> Outcome:
    """Carry out what is not over yet of a sweep, and write what came out.

    Args:
        source: The `sweep.toml`.
        out: Holds the runs (`runs/ARM/seed-N`), `results.csv`, `sweep.html`, `sweep.md` and the drawings.
        told: Called when a run is over, with what went wrong ("" if nothing did).
        progress: Told how many rounds are over.

    Raises:
        ConfigError: The sweep, its study, a hospital, a fault or an arm is wrong, or `out` holds runs of other plans,
            sites or faults; nothing was run.
    """
    settings = Sweep.load(source)
    plan = Plan.load(settings.study)
    metric: str = settings.metric or next((name for name in ("auc", "dice") if name in plan.metrics), plan.metrics[0])
    sites, faults = tuple(settings.found_sites()), tuple(settings.faults)
    arms = read_arms(settings, source)
    runs = [
        Run(arm, seed, out / "runs" / arm.folder / f"seed-{seed}", sites, faults, settings.batched)
        for arm in arms
        for seed in settings.seeds
    ]
    if silent := next((run for run in runs if metric not in run.plan.metrics), None):
        raise ConfigError(
            f"{source}: metric: {silent.arm.label} does not ask for {metric}", "compare by what every arm asks for"
        )
    failed: dict[Run, str] = {}

    def ended(run: Run, problem: str) -> None:
        if problem:
            failed[run] = problem
        if told:
            told(run, problem)

    waiting = [run for run in runs if run.history() is None]
    require_possible(waiting, source)
    carry_out_all(waiting, settings.processes, ended, progress)
    found = {run: history for run in runs if (history := run.history()) is not None}
    compared = compare(found, metric, settings.target, arms[0].label)
    files = table.write(out, table.rows(found))
    lacking = incomplete(found, metric)
    report = page(plan, compared, found, lacking, failed)
    contents = {"sweep.html": as_html(report).encode(), "sweep.md": as_markdown(report).encode()}
    if compared is not None:
        for draw in (comparison.curves, comparison.hospitals, comparison.targets):
            contents[f"{draw.__name__}.svg"] = as_file(draw(compared))
    for name, content in contents.items():
        publish(out / name, content)
        files.append(out / name)
    return Outcome(compared, found, lacking, failed, files)
