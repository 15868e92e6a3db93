"""What TensorBoard and MLflow are told: what the ledger tells, once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aggregator.history import History
from aggregator.loggers import ALL, logger, mlflow, numbers, tensorboard
from models.errors import ConfigError

Make = Callable[..., Any]
Numbers = dict[tuple[str, str, int], float]


class Stopped(Exception):  # noqa: N818
    pass


def expected(history: History) -> Numbers:
    return {(name, metric, step): value for name, metric, step, value in numbers(history)}


def stop_after_one_round(log: Callable[[History], None]) -> Callable[[History], None]:
    def on_round(history: History) -> None:
        log(history)
        raise Stopped

    return on_round


def events(folder: Path) -> Numbers:
    """What TensorBoard's files hold; a number that stands there twice is an error."""
    from tensorboardX.proto.event_pb2 import Event

    found: Numbers = {}
    for path in folder.glob("*/*/events.out.tfevents.*"):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
            for value in event.summary.value:
                key = (path.parent.name, value.tag, event.step)
                assert key not in found
                found[key] = value.simple_value
    return found


def test_numbers_are_those_of_the_history(toy: Make) -> None:
    history = toy(rounds=2).run().history
    found = expected(history)
    for round_ in history.rounds:
        for silo, metrics in round_.metrics.items():
            assert {metric: found[silo, metric, round_.number] for metric in metrics} == metrics
    assert found[ALL, "accepted", 2] == len(history.rounds[2].accepted)
    assert found[ALL, "loss", 2] == history.rounds[2].mean("loss")


def test_tensorboard_is_told_everything_once_though_the_study_was_stopped(toy: Make, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="pip install 'intramural[tensorboard]'")
    world = toy(rounds=3)
    with pytest.raises(Stopped):
        world.run(on_round=stop_after_one_round(tensorboard(world.study, tmp_path / "logs")))
    history = world.run(on_round=tensorboard(world.study, tmp_path / "logs")).history
    assert events(tmp_path / "logs") == pytest.approx(expected(history), rel=1e-6)


@pytest.mark.filterwarnings("default")  # of MLflow's own
def test_mlflow_is_told_everything_once_though_the_study_was_stopped(toy: Make, tmp_path: Path) -> None:
    tracking = pytest.importorskip("mlflow.tracking", reason="pip install 'intramural[mlflow]'")
    world, uri = toy(rounds=2), f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(Stopped):
        world.run(on_round=stop_after_one_round(mlflow(world.study, uri)))
    history = world.run(on_round=mlflow(world.study, uri)).history
    client = tracking.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name(world.study.plan.name).experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["strategy.name"] == "fedavg"
    found = [
        ((*key.split("/"), item.step), item.value)
        for key in run.data.metrics
        for item in client.get_metric_history(run.info.run_id, key)
    ]
    assert len(found) == len(dict(found))
    assert dict(found) == pytest.approx(expected(history))


@pytest.mark.parametrize("where", ["excel:book", "tensorboard:", "tensorboard"])
def test_another_logger_is_an_error(toy: Make, where: str) -> None:
    with pytest.raises(ConfigError, match="is no logger"):
        logger(toy().study, where)


def test_a_logger_that_is_not_installed_says_what_to_install(toy: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    world = toy()
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError, match="tensorboard needs tensorboardX") as error:
        logger(world.study, "tensorboard:logs")
    assert error.value.hint == "run: pip install 'intramural[tensorboard]'"
