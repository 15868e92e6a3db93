"""A study's numbers where researchers look at numbers: TensorBoard, or MLflow.

    run(study, grid, on_round=tensorboard(study, "logs"))              # then: tensorboard --logdir logs
    run(study, grid, on_round=mlflow(study, "sqlite:///mlflow.db"))    # or a server's address

Both are told what the coordinator's ledger tells: each hospital's metrics of each round's model, and of each round the
mean over hospitals (weighted by evaluated images), the bytes that came, and how many updates were accepted and refused.
They are copies to look at, and no evidence: the ledger is. When a study goes on after a stop, no number is told twice.
"""

import importlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from aggregator.history import History
from aggregator.study import Study
from models.errors import ConfigError
from models.settings import flat

OnRound = Callable[[History], None]
"""Called with the history so far, and a last time when the study is over."""

ALL = "all hospitals"
"""Under this stands what is of no single hospital; a hospital's name has no space."""


def logger(study: Study, where: str) -> OnRound:
    """A logger by its kind and place, as a command takes it: `tensorboard:FOLDER` or `mlflow:URI`.

    Raises:
        ConfigError: There is no such kind, or what it needs is not installed.
    """
    kind, _, place = where.partition(":")
    kinds: dict[str, Callable[[Study, str], OnRound]] = {"tensorboard": tensorboard, "mlflow": mlflow}
    if kind not in kinds or not place:
        raise ConfigError(f"--log: {where!r} is no logger", "write tensorboard:FOLDER or mlflow:URI")
    return kinds[kind](study, place)


def loggers(study: Study, places: Sequence[str], also: OnRound | None = None) -> OnRound:
    """Loggers by kind and place, as one; see `logger`.

    Args:
        study: Whose numbers are shown.
        places: Of each, as a command takes it.
        also: Called before them.
    """
    told = [*([also] if also else []), *(logger(study, where) for where in places)]

    def on_round(history: History) -> None:
        for tell in told:
            tell(history)

    return on_round


def tensorboard(study: Study, folder: Path | str) -> OnRound:
    """Write TensorBoard's event files below `folder/STUDY-DIGEST/HOSPITAL`, so that hospitals are lines of one chart.

    Raises:
        ConfigError: `tensorboardX` is not installed.
    """
    writer = _needed("tensorboardX", "tensorboard").SummaryWriter
    place = Path(folder) / f"{study.plan.name}-{study.digest[:8]}"
    # All of it is told anew, from the ledger: an earlier process may have stopped half way.
    for old in place.glob("*/events.out.tfevents.*"):
        old.unlink()
    writers: dict[str, Any] = {}
    told: set[tuple[str, str, int]] = set()

    def on_round(history: History) -> None:
        for name, metric, step, value in numbers(history):
            if (name, metric, step) not in told:
                told.add((name, metric, step))
                if name not in writers:
                    writers[name] = writer(str(place / name))
                writers[name].add_scalar(metric, value, step)
        for each in writers.values():
            each.flush()
            if history.closed:
                each.close()

    return on_round


def mlflow(study: Study, uri: str) -> OnRound:
    """Log to MLflow: an experiment of the study's name, a run for the study, metrics as `HOSPITAL/METRIC`.

    Args:
        study: Whose numbers.
        uri: MLflow's tracking URI. A server of that address is told what the ledger tells, and the plan.

    Raises:
        ConfigError: `mlflow` or `mlflow-skinny` is not installed.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    client = _needed("mlflow.tracking", "mlflow").MlflowClient(tracking_uri=uri)
    entity = importlib.import_module("mlflow.entities").Metric
    tag = "intramural.study"
    found = client.get_experiment_by_name(study.plan.name)
    experiment = found.experiment_id if found else client.create_experiment(study.plan.name)
    runs = client.search_runs([experiment], f"tags.`{tag}` = '{study.digest}'")
    run = (runs[0] if runs else client.create_run(experiment, tags={tag: study.digest})).info.run_id
    if not runs:
        for key, value in flat(study.plan.model_dump(mode="json")):
            client.log_param(run, key, value)
    told: dict[str, set[int]] = {}

    def on_round(history: History) -> None:
        new = []
        for name, metric, step, value in numbers(history):
            key = f"{name}/{metric}"
            if key not in told:
                told[key] = {item.step for item in client.get_metric_history(run, key)}
            if step not in told[key]:
                told[key].add(step)
                new.append(entity(key, value, time.time_ns() // 1_000_000, step))
        for first in range(0, len(new), 1000):  # MLflow takes no more at a time
            client.log_batch(run, metrics=new[first : first + 1000])
        if history.closed:
            client.set_terminated(run)

    return on_round


def numbers(history: History) -> Iterator[tuple[str, str, int, float]]:
    """Whose, what, of which round, how much. A model's metrics are there once the next round measured it."""
    for round_ in history.rounds:
        for silo, metrics in sorted(round_.metrics.items()):
            for metric, value in sorted(metrics.items()):
                yield silo, metric, round_.number, value
        if round_.number:
            yield ALL, "accepted", round_.number, len(round_.accepted)
            yield ALL, "refused", round_.number, len(round_.refused)
            if history.closed or round_.number < history.plan.rounds:  # the final visit adds to the last round's
                yield ALL, "bytes", round_.number, round_.nbytes
    # A mean is told when every hospital that will measure the model has had its turn.
    for round_ in history.rounds if history.closed else history.rounds[:-1]:
        for metric in history.plan.metrics:
            if (mean := round_.mean(metric)) is not None:
                yield ALL, metric, round_.number, mean


def _needed(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"--log: {extra} needs {error.name}, which is not installed", f"run: pip install 'intramural[{extra}]'"
        ) from error
