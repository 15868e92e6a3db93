"""A simulation that trains all hospitals in one computation: the same study but for the last digits, and it says so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from aggregator import LocalGrid, Simulation, Study, run, simulate
from aggregator.audit import reconcile
from aggregator.cli import main
from aggregator.rounds import Outcome
from models.errors import ConfigError
from models.exchange.documents import Manifest
from models.exchange.spec import load_vector
from models.faults import AnyFault
from models.ledger import Event, read
from silos.config import Site

Write = Callable[..., Path]

NAMES = ["east", "north", "south"]
PROX = 'name = "fedprox"\nmu = 0.5'
FAULTS: list[Any] = [
    {"what": "absent", "silos": ["north"], "rounds": [1, 1]},
    {"what": "crash", "silos": ["east"], "rounds": [2, 2], "step": 3},
    {"what": "slow", "silos": ["south"], "factor": 2.5},
]


@pytest.fixture
def play(hospitals: list[Path], write_plan: Write, tmp_path: Path) -> Callable[..., Outcome]:
    """Runs a study, after others have been run in the same hospitals; they are of different sizes."""
    for site, share in zip(hospitals, (0.2, 0.3, 0.4), strict=True):
        text = site.read_text().replace("held_out = 0.2", f"held_out = {share}")
        text = text.replace("min_patients = 11", "min_patients = 6")  # in the steps of a slow one there are fewer
        site.write_text(text.replace('"trial"', ", ".join(f'"{name}"' for name in ("trial", "alone", "together"))))

    def of(name: str, batched: bool, faults: Any = (), more: str = "") -> Outcome:
        plan = write_plan(name, strategy=PROX, more=f'encoding = "float32"\n{more}')
        given = [TypeAdapter(AnyFault).validate_python(fault) for fault in faults]
        with (
            Study.create(plan, tmp_path / name) as study,
            LocalGrid(hospitals, faults=given, batched=batched) as grid,
        ):
            return run(study, grid)

    return of


def weights(outcome: Outcome) -> np.ndarray:
    return load_vector(outcome.model, outcome.digest)[1]


def updates(folder: Path) -> list[Manifest]:
    opened = read(folder / "ledger")
    found = [record for record in opened.records if record.event == Event.UPDATE_RECEIVED]
    return [Manifest.decode(opened.manifest(record.body["statement"]["body"])) for record in found]


@pytest.mark.parametrize("faults", [[], FAULTS])
def test_a_batched_study_comes_to_the_same_within_1e_5_and_its_ledgers_agree(
    play: Callable[..., Outcome], hospitals: list[Path], tmp_path: Path, faults: list[Any]
) -> None:
    more = 'stragglers = "partial"' if faults else ""
    alone, together = play("alone", False, faults, more), play("together", True, faults, more)
    distance = np.linalg.norm(weights(alone) - weights(together))
    assert distance <= 1e-5 * np.linalg.norm(weights(alone))
    for one, other in zip(alone.history.rounds, together.history.rounds, strict=True):
        assert (one.accepted, one.refused, one.work) == (other.accepted, other.refused, other.work)
        assert one.metrics == {name: pytest.approx(found, abs=1e-3) for name, found in other.metrics.items()}
    if faults:
        assert [item.refused for item in together.history.rounds[1:]] == [{"north": "silent"}, {"east": "internal"}]
        assert together.history.rounds[1].work["south"] < 0.5
    for site in hospitals:
        for name in ("alone", "together"):
            pair = reconcile(tmp_path / name / "ledger", Site.load(site).run.work / "ledger")
            assert (pair.problems, pair.closed) == ([], True)
    assert not any(manifest.batched for manifest in updates(tmp_path / "alone"))
    assert all(manifest.batched for manifest in updates(tmp_path / "together"))
    assert b"batched" not in updates(tmp_path / "alone")[0].encode()


def test_a_study_that_cannot_be_batched_is_refused_before_anybody_is_asked(
    hospitals: list[Path], write_plan: Write, tmp_path: Path
) -> None:
    plan = write_plan(strategy='name = "scaffold"', weights="equal")
    with Study.create(plan, tmp_path / "study") as study, LocalGrid(hospitals, batched=True) as grid:
        with pytest.raises(ConfigError, match=r'strategy\.name: "scaffold"'):
            run(study, grid)
        assert not list(study.ledger.of(Event.ORDER_OFFERED))


def test_a_batched_study_that_was_stopped_goes_on_in_the_usual_way(
    hospitals: list[Path], write_plan: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Study.create(write_plan(), tmp_path / "study") as study:
        with LocalGrid(hospitals, batched=True) as grid, monkeypatch.context() as patch:
            patch.setattr("silos.together._Group.step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                run(study, grid)
        with LocalGrid(hospitals) as grid:
            rounds = run(study, grid).history.rounds
    assert [item.accepted for item in rounds[1:]] == [NAMES] * 2
    assert all(reconcile(tmp_path / "study" / "ledger", Site.load(site).run.work / "ledger").ok for site in hospitals)


def test_it_takes_one_process(hospitals: list[Path]) -> None:
    with pytest.raises(ConfigError, match=r"workers: hospitals are batched in one process \(got 2\)"):
        LocalGrid(hospitals, workers=2, batched=True)
    LocalGrid(hospitals, batched=True).close()  # nothing is left locked


def test_a_simulation_file_and_the_command_ask_for_it(
    hospitals: list[Path], write_plan: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_plan()
    path = tmp_path / "simulation.toml"
    text = 'study = "trial-plan.toml"\nsites = ["hospitals/*/site.toml"]\nfolder = "out"\nbatched = true\n'
    path.write_text(text)
    assert simulate(path).history.rounds[1].accepted == NAMES
    assert all(manifest.batched for manifest in updates(tmp_path / "out" / "study"))
    for more in ("workers = 2", 'engine = "ray"'):
        path.write_text(text + more)
        with pytest.raises(ConfigError, match='batched: takes engine = "local" and workers = 1'):
            Simulation.load(path)
    Study.create(tmp_path / "trial-plan.toml", tmp_path / "study").close()
    command = ["run", str(tmp_path / "study"), "--local", *map(str, hospitals), "--batched"]
    assert main([*command, "--engine", "ray"]) == 1
    assert "--batched: all train in this process" in capsys.readouterr().err
    assert main(command) == 0
    assert all(manifest.batched for manifest in updates(tmp_path / "study"))
