"""What a study survives. The whole table is written by scripts/failures.py; the cheapest of it is tried here."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from aggregator import Study, rounds, run
from models.ledger import Event

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return importlib.import_module("failures")


def test_a_hospital_that_went_away_with_its_order_is_asked_again_when_it_is_back(
    hospitals: list[Path], write_plan: Callable[..., Path], tmp_path: Path
) -> None:
    with Study.create(write_plan(rounds=3), tmp_path / "study") as study, Restless(hospitals) as grid:
        outcome = run(study, grid)
        assert grid.left == -1
        assert [len(item.accepted) for item in outcome.history.rounds[1:]] == [3, 3, 3]
        orders = [r for r in study.ledger.records if r.event == Event.ORDER_OFFERED and r.round == 2]
        assert len(orders) == 4
        used = [r for r in study.ledger.records if r.event == Event.UPDATE_RECEIVED and r.round == 2]
        assert len(used) == 3


def test_a_hospital_that_stays_away_is_not_waited_for_until_the_deadline(
    hospitals: list[Path], write_plan: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "_RETURN", 0.5)
    monkeypatch.setattr(Restless, "away", 10**9)
    with (
        Study.create(write_plan(rounds=3, more="deadline = 100_000"), tmp_path / "study") as study,
        Restless(hospitals) as grid,
    ):
        outcome = run(study, grid)
        assert [len(item.accepted) for item in outcome.history.rounds[1:]] == [3, 2, 2]
        assert list(outcome.history.rounds[2].refused.values()) == ["silent"]
