"""Hospitals are each other's witnesses: whoever is shown another past than most trains on it no further."""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from flwr.app import Message

from aggregator import LocalGrid, Study, rounds, run
from aggregator.audit import reconcile, verify
from aggregator.history import History, Round, read_history
from models.errors import ConfigError
from models.ledger import Checkpoint, Event, Record, Verifier, read

NAMES = ("east", "north", "south")
Plan = Callable[..., Path]


class Left(Exception):  # noqa: N818
    """The study is left here, as when its process is killed."""


def play(folder: Path, sites: list[Path], until: int | None = None) -> list[Round]:
    """Go on with a study, to its end or until a round is over, or cannot be; the rounds that are."""

    def stop(history: History) -> None:
        if len(history.rounds) - 1 == until:
            raise Left

    with Study.open(folder) as study, LocalGrid(sites) as grid:
        with contextlib.suppress(Left):
            run(study, grid, on_round=stop)
        return read_history(study.ledger.records, study.plan).rounds


def lines(site: Path, event: Event) -> list[Record]:
    return [r for r in read(site.parent / "work" / "ledger").records if r.event == event]


@pytest.fixture
def study(write_plan: Plan, tmp_path: Path, hospitals: list[Path]) -> Path:
    """A study of four rounds of which one is over; one hospital is enough for a round."""
    plan = write_plan(rounds=4)
    plan.write_text(plan.read_text().replace("min_silos = 2", "min_silos = 1"))
    Study.create(plan, tmp_path / "study").close()
    play(tmp_path / "study", hospitals, until=1)
    return tmp_path / "study"


def test_of_two_histories_the_smaller_group_follows_the_other_one_for_a_round_and_no_further(
    study: Path, hospitals: list[Path], tmp_path: Path
) -> None:
    fork = Path(shutil.copytree(study, tmp_path / "fork"))
    most, one = hospitals[:2], hospitals[2:]
    kept = play(study, most)
    assert [sorted(item.accepted) for item in kept[2:]] == [["east", "north"]] * 3

    lost = play(fork, one, until=2)
    assert [item.accepted for item in lost[2:]] == [["south"]]
    with pytest.raises(ConfigError, match="refused: south: not-witnessed"):
        play(fork, one)
    assert len(lines(one[0], Event.UPDATE_OFFERED)) == 2
    # What it was shown is signed, and no part of what the others were shown.
    others = read(study / "ledger").tree
    assert any(r.body["root"] != others.root(r.body["size"]).hex() for r in lines(one[0], Event.ORDER_RECEIVED))
    assert not reconcile(study / "ledger", one[0].parent / "work" / "ledger").ok


def test_a_coordinator_that_went_back_to_a_backup_is_refused_at_once_and_both_heads_are_kept(
    study: Path, hospitals: list[Path], tmp_path: Path
) -> None:
    backup = shutil.copytree(study, tmp_path / "backup")
    play(study, hospitals, until=2)
    shutil.rmtree(study)
    shutil.copytree(backup, study)
    time.sleep(1.1)  # in the same second, the same lines would be written again, and nothing be rewritten
    # The first order is the one that they know, word for word; from the next on there are two. That round is left open.
    told = "round 3 cannot have .* refused: " + ", ".join(f"{name}: ledger-rewritten" for name in NAMES)
    with pytest.raises(ConfigError, match=told) as caught:
        play(study, hospitals)
    assert "restore the newest, then run it again" in caught.value.hint
    opened = read(study / "ledger")
    (void,) = [r for r in opened.records if r.event == Event.ROUND_VOID]
    assert {r.body["code"] for r in opened.records[: void.seq] if r.event == Event.REPLY_REJECTED} == {"replayed"}
    for site in hospitals:
        work = site.parent / "work"
        (first, *_) = [r for r in lines(site, Event.ORDER_REJECTED) if r.body["code"] == "ledger-rewritten"]
        kept = json.loads(
            (site.parent / "work" / "ledger" / "manifests" / f"{first.body['evidence']}.json").read_text()
        )
        key = Verifier.parse(lines(site, Event.STUDY_APPROVED)[0].body["recipient_key"])
        now, before = (Checkpoint.open(kept[name], key) for name in ("head", "before"))
        assert now.root != before.root
        assert verify(work / "ledger").ok


def test_a_hospital_that_went_back_to_a_backup_is_named_and_costs_the_others_no_round(
    write_plan: Plan, hospitals: list[Path], tmp_path: Path
) -> None:
    plan, study = write_plan(rounds=3), tmp_path / "study"
    plan.write_text(plan.read_text().replace("min_silos = 2", "min_silos = 3"))
    Study.create(plan, study).close()
    work = hospitals[0].parent / "work"
    play(study, hospitals, until=1)
    shutil.copytree(work, tmp_path / "backup")
    play(study, hospitals, until=2)
    work.rename(tmp_path / "newest")
    shutil.copytree(tmp_path / "backup", work)
    with pytest.raises(ConfigError, match="refused: east: ledger-rewritten") as caught:
        play(study, hospitals)
    assert "the ledger of east, or this one, is older than it was: restore the newest" in caught.value.hint
    shutil.rmtree(work)
    (tmp_path / "newest").rename(work)
    assert [sorted(item.accepted) for item in play(study, hospitals)[1:]] == [list(NAMES)] * 3


class Deaf(LocalGrid):
    """A grid whose coordinator dies when the hospitals have answered in a round, and hears so many of them."""

    def __init__(self, sites: Iterable[Path], hears: int = 0, round_: int = 2) -> None:
        super().__init__(list(sites))
        self.hears, self.round = hears, round_

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        for number, reply in enumerate(list(super().pull_messages(message_ids))):
            if reply.metadata.group_id == str(self.round) and number >= self.hears:
                raise Left
            yield reply


def test_a_study_whose_answers_were_all_lost_goes_on_by_itself_to_the_same_model(
    study: Path, hospitals: list[Path], tmp_path: Path
) -> None:
    calm = tmp_path / "calm"
    shutil.copytree(study, calm / "study")
    shutil.copytree(hospitals[0].parent.parent, calm / "hospitals")
    expected = play(calm / "study", [calm / "hospitals" / site.parent.name / "site.toml" for site in hospitals])

    with Study.open(study) as opened, Deaf(hospitals) as grid, pytest.raises(Left):
        run(opened, grid)
    rounds = play(study, hospitals)
    assert [item.model for item in rounds] == [item.model for item in expected]
    # Each saw a head that nobody could vouch for: each refused once, and was asked again.
    assert [len(lines(site, Event.REFUSAL_OFFERED)) for site in hospitals] == [1, 1, 1]
    for site in hospitals:
        assert reconcile(study / "ledger", site.parent / "work" / "ledger").ok


@pytest.mark.parametrize(("min_silos", "hears"), [(1, 0), (2, 0), (3, 1)])
def test_a_study_whose_first_answers_were_lost_goes_on_by_itself(
    hospitals: list[Path], write_plan: Plan, tmp_path: Path, min_silos: int, hears: int
) -> None:
    plan, study = write_plan(rounds=2), tmp_path / "study"
    plan.write_text(plan.read_text().replace("min_silos = 2", f"min_silos = {min_silos}"))
    with Study.create(plan, study) as opened, Deaf(hospitals, hears, round_=1) as grid, pytest.raises(Left):
        run(opened, grid)
    assert [len(item.accepted) for item in play(study, hospitals)[1:]] == [3, 3]
    for site in hospitals:
        assert reconcile(study / "ledger", site.parent / "work" / "ledger").ok


class Thin(LocalGrid):
    """A grid to which only some hospitals are connected."""

    there: tuple[str, ...] = ()

    def get_node_ids(self) -> list[int]:
        return [node for node, key in self.roster.items() if key.name in self.there]


@pytest.mark.parametrize("there", [(), ("east",)])
def test_a_round_for_which_too_few_are_connected_is_not_begun(
    hospitals: list[Path], write_plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: tuple[str, ...]
) -> None:
    monkeypatch.setattr(rounds, "_GATHER", 0.01)
    study = tmp_path / "study"
    Study.create(write_plan(rounds=3, more="deadline = 0.01"), study).close()
    play(study, hospitals, until=1)
    size = len(read(study / "ledger").records)
    with Study.open(study) as opened, Thin(hospitals) as grid:
        grid.there = there
        away = ", ".join(sorted({"east", "north", "south"} - {*there}))
        with pytest.raises(ConfigError, match=f"round 2 cannot have min_silos = 2 updates; not connected: {away}"):
            run(opened, grid)
    assert len(read(study / "ledger").records) == size
    assert [len(lines(site, Event.UPDATE_OFFERED)) for site in hospitals] == [1, 1, 1]


@pytest.mark.parametrize("min_silos", [1, 3])  # one is enough; each needs all the others
def test_a_hospital_that_was_asked_once_more_alone_begins_the_later_rounds_with_the_others(
    hospitals: list[Path], write_plan: Plan, tmp_path: Path, min_silos: int
) -> None:
    plan, study = write_plan(rounds=4), tmp_path / "study"
    plan.write_text(plan.read_text().replace("min_silos = 2", f"min_silos = {min_silos}"))
    Study.create(plan, study).close()
    with Study.open(study) as opened, Deaf(hospitals, hears=2) as grid, pytest.raises(Left):
        run(opened, grid)
    rounds = play(study, hospitals)
    assert [len(item.accepted) for item in rounds[1:]] == [3, 3, 3, 3]
    # Once, when what it had been shown alone was shown to all, and in no later round.
    assert sorted(len(lines(site, Event.REFUSAL_OFFERED)) for site in hospitals) == [0, 0, 1]
    assert [len(lines(site, Event.REPORT_OFFERED)) for site in hospitals].count(2) == 2  # the last model, and then
    for site in hospitals:
        assert reconcile(study / "ledger", site.parent / "work" / "ledger").ok


def test_with_one_hospital_away_the_others_are_enough(study: Path, hospitals: list[Path]) -> None:
    rounds = play(study, hospitals[:2])
    assert [len(item.accepted) for item in rounds[1:]] == [3, 2, 2, 2]


def test_one_hospital_of_three_is_not_enough(study: Path, hospitals: list[Path]) -> None:
    # It may follow one order: what it was shown before was seen by all. After that nobody vouches.
    rounds = play(study, hospitals[:1], until=2)
    assert [len(item.accepted) for item in rounds[1:]] == [3, 1]
    with pytest.raises(ConfigError, match="round 3 cannot have min_silos = 1 updates; refused: east: not") as caught:
        play(study, hospitals[:1])
    assert caught.value.hint.startswith("wait for north, south to be connected, then run it again; or ")
    # No round is lost, and with them it goes on by itself.
    assert [len(item.accepted) for item in play(study, hospitals)[1:]] == [3, 1, 3, 3]


def test_hospitals_that_never_approved_the_study_are_missed_by_nobody(
    write_plan: Plan, tmp_path: Path, hospitals: list[Path]
) -> None:
    plan = write_plan(rounds=3)
    plan.write_text(plan.read_text().replace("min_silos = 2", "min_silos = 1"))
    for site in hospitals[1:]:
        site.write_text(site.read_text().replace('studies = ["trial", ', "studies = ["))
    Study.create(plan, tmp_path / "study").close()
    play(tmp_path / "study", hospitals, until=1)
    rounds = play(tmp_path / "study", hospitals[:1])  # the two that refused are away
    assert [item.accepted for item in rounds[1:]] == [["east"]] * 3


def test_each_side_keeps_the_last_head_of_the_other(study: Path, hospitals: list[Path]) -> None:
    play(study, hospitals)
    ours = read(study / "ledger")
    for site in hospitals:
        folder = site.parent / "work" / "ledger"
        theirs = read(folder)
        for opened, other in ((theirs, ours), (ours, theirs)):
            files = [json.loads(p.read_text()) for p in (opened.folder / "parted").glob("*.json")]
            (kept,) = [item for item in files if item["peer"] == other.verifier.name]
            last = Checkpoint.open(kept["theirs"], other.verifier)
            assert (last.size, last.root) == (other.head.size, other.head.root)


def test_a_farewell_that_was_changed_afterwards_is_found(study: Path, hospitals: list[Path]) -> None:
    play(study, hospitals)
    folder = hospitals[0].parent / "work" / "ledger"
    (path,) = (folder / "parted").glob("*.json")
    values = json.loads(path.read_text())
    assert verify(folder).ok
    for name in ("theirs", "ours"):
        note = values[name].split("\n")
        forged = {**values, name: "\n".join([note[0], str(int(note[1]) - 1), *note[2:]])}
        path.write_text(json.dumps(forged, sort_keys=True, separators=(",", ":"), ensure_ascii=False))
        assert any("farewell" in problem for problem in verify(folder).problems)
    path.write_text("{}")
    assert any(str(path) in problem for problem in verify(folder).problems)
