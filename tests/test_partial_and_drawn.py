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


def test_a_round_that_was_interrupted_has_no_more_hospitals_than_the_plan_says(
    write_plan: Write, hospitals: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, folder = write_plan(rounds=1, more="silos_per_round = 1"), tmp_path / "study"
    plan.write_text(plan.read_text().replace("min_silos = 2", "min_silos = 1"))
    (away,) = drawn(7, 1, NAMES, 1)
    (instead,) = drawn(7, 1, [name for name in NAMES if name != away], 1)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with Study.create(plan, folder) as study, LocalGrid([s for s in hospitals if s.parent.name != away]) as grid:
        monkeypatch.setattr(study, "save_model", killed)
        with pytest.raises(KeyboardInterrupt):
            run(study, grid)
    with Study.open(folder) as study, LocalGrid(hospitals) as grid:
        assert run(study, grid).history.rounds[1].accepted == [instead]
        (made,) = study.ledger.of(Event.AGGREGATED)
    assert made.body["asked"] == [instead]
    assert made.body["excluded"] == []


# --- partial work ---------------------------------------------------------------------------------------


@pytest.fixture
def in_no_time(write_plan: Write, hospitals: list[Path], tmp_path: Path) -> History:
    """A study that takes partial work, and one hospital that keeps a deadline which is over at once."""
    hospitals[0].write_text(hospitals[0].read_text().replace("min_patients = 11", "min_patients = 1"))
    return hurry(write_plan, hospitals, tmp_path / "study")


def hurry(write_plan: Write, hospitals: list[Path], folder: Path) -> History:
    open_silo(hospitals[0])  # as its service does; what a grid opens itself waits for the others
    try:
        return play(write_plan(rounds=1, more='stragglers = "partial"\ndeadline = 0.001'), hospitals, folder)
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


def test_what_a_hospital_did_in_no_time_stays_if_it_is_of_fewer_patients_than_its_policy_says(
    write_plan: Write, hospitals: list[Path], tmp_path: Path
) -> None:
    (round_,) = hurry(write_plan, hospitals, tmp_path / "study").rounds[1:]
    assert round_.accepted == ["north", "south"]
    assert round_.refused == {"east": "too-few-patients"}  # it has enough, and its one step took a few of them


def test_a_study_that_takes_no_partial_work_is_told_of_none(
    write_plan: Write, hospitals: list[Path], tmp_path: Path
) -> None:
    history = play(write_plan(rounds=1, more="deadline = 0.001"), hospitals, tmp_path / "study")
    assert history.rounds[1].work == {}
    opened = read(tmp_path / "study" / "ledger")
    for record in opened.records:
        if record.event == Event.UPDATE_RECEIVED:
            assert Manifest.decode(opened.manifest(record.body["statement"]["body"])).work is None
