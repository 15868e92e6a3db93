"""Studies that take what a slow hospital managed, and studies in which only some hospitals train in a round."""

from collections.abc import Callable
from pathlib import Path

import pytest

from aggregator import LocalGrid, Study, run
from aggregator.audit import reconcile
from aggregator.history import History
from aggregator.report import account
from aggregator.sampling import drawn
from models.errors import ConfigError
from models.exchange.documents import Manifest
from models.ledger import Event, read
from models.plan import Plan
from silos.app import close_silo, open_silo
from silos.released import released

NAMES = ["east", "north", "south"]
Write = Callable[..., Path]


def play(plan: Path, sites: list[Path], folder: Path) -> History:
    with Study.create(plan, folder) as study, LocalGrid(sites) as grid:
        return run(study, grid).history


# --- only some train ------------------------------------------------------------------------------------


@pytest.fixture
def one_of_three(write_plan: Write, hospitals: list[Path], tmp_path: Path) -> History:
    plan = write_plan(rounds=5, more="silos_per_round = 1")
    plan.write_text(plan.read_text().replace("min_silos = 2", "min_silos = 1"))
    return play(plan, hospitals, tmp_path / "study")


def test_each_round_the_drawn_hospital_trains_and_all_measure_the_model(one_of_three: History, tmp_path: Path) -> None:
    rounds = one_of_three.rounds
    assert [item.accepted for item in rounds[1:]] == [drawn(7, number, NAMES, 1) for number in range(1, 6)]
    assert [sorted(item.metrics) for item in rounds] == [NAMES] * 6
    assert not any(item.refused for item in rounds)  # nobody lacks a witness, although few train
    for record in read(tmp_path / "study" / "ledger").records:
        if record.event == Event.AGGREGATED:
            assert record.body["asked"] == [item["silo"] for item in record.body["inputs"]]
            assert record.body["excluded"] == []


def test_the_ledgers_of_those_who_trained_and_of_the_others_agree(
    one_of_three: History, hospitals: list[Path], tmp_path: Path
) -> None:
    for site in hospitals:
        assert reconcile(tmp_path / "study" / "ledger", site.parent / "work" / "ledger").ok


def test_a_study_cannot_draw_fewer_than_a_round_needs(write_plan: Write) -> None:
    with pytest.raises(ConfigError, match="silos_per_round: must be at least min_silos = 2, or every round is void"):
        Plan.load(write_plan(more="silos_per_round = 1"))


def test_who_is_drawn_depends_on_seed_and_round_and_all_are_drawn_alike() -> None:
    names = [f"h{number:02}" for number in range(30)]
    assert drawn(1, 1, names, 10) == drawn(1, 1, reversed(names), 10) == sorted(drawn(1, 1, names, 10))
    assert drawn(1, 1, names, 10) != drawn(1, 2, names, 10) != drawn(2, 2, names, 10)
    times = [sum(name in drawn(5, round_, names, 10) for round_ in range(600)) for name in names]
    assert 150 < min(times) <= max(times) < 250  # 200 expected, standard deviation 11.5
    # Who goes away is replaced; nobody else changes.
    gone = drawn(1, 1, names, 10)[0]
    assert len(set(drawn(1, 1, [n for n in names if n != gone], 10)) - set(drawn(1, 1, names, 10))) == 1
    assert drawn(1, 1, names, None) == names


# --- partial work ---------------------------------------------------------------------------------------


@pytest.fixture
def in_no_time(write_plan: Write, hospitals: list[Path], tmp_path: Path) -> History:
    """A study that takes partial work, and one hospital that keeps a deadline which is over at once."""
    plan = write_plan(rounds=1, more='stragglers = "partial"\ndeadline = 0.001')
    open_silo(hospitals[0])  # as its service does; what a grid opens itself waits for the others
    try:
        return play(plan, hospitals, tmp_path / "study")
    finally:
        close_silo(hospitals[0])


def test_a_hospital_whose_time_is_over_hands_in_what_it_has_done_and_says_so(
    in_no_time: History, hospitals: list[Path], tmp_path: Path
) -> None:
    assert in_no_time.rounds[1].accepted == NAMES
    assert in_no_time.rounds[1].work == {"east": 0.2, "north": 1.0, "south": 1.0}  # one step of 5
    (update,) = [item for item in released(hospitals[0].parent / "work" / "ledger") if item.what == "update"]
    assert update.metrics.startswith("work 0.2")
    told = [fact.details.get("work") for fact in account(read(tmp_path / "study" / "ledger")).studies[0].shared]
    assert told[:3] == ["0.2", "1.0", "1.0"]


def test_a_study_that_takes_no_partial_work_is_told_of_none(
    write_plan: Write, hospitals: list[Path], tmp_path: Path
) -> None:
    history = play(write_plan(rounds=1, more="deadline = 0.001"), hospitals, tmp_path / "study")
    assert history.rounds[1].work == {}
    opened = read(tmp_path / "study" / "ledger")
    for record in opened.records:
        if record.event == Event.UPDATE_RECEIVED:
            assert Manifest.decode(opened.manifest(record.body["statement"]["body"])).work is None
