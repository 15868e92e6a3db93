"""What a coordinator's signed lines say of a study must be possible; no update needs to be at hand for it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aggregator.audit import pairs, reconcile, verify
from aggregator.strategy import Audited
from models.ledger import Checkpoint, Entry, Event, Ledger, Opened, Signer, read
from models.ledger.merkle import Tree

Toy = Any  # of conftest.py
Lines = list[Entry]
SILOS = ("east", "north", "south", "west")


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Path:
    """The folder of a closed study of three rounds and four hospitals, to work on; no updates are kept."""
    return Path(shutil.copytree(finished / "toy", tmp_path / "toy"))


def problems(study: Path, change: Callable[[Lines], Lines]) -> list[str]:
    """What is found after the coordinator has written its ledger anew and signed all of it."""
    opened, signer = read(study / "ledger"), Signer.load(study / "aggregator.key")
    lines = [
        Entry(r.event, {k: v for k, v in r.body.items() if k != "cosignature"}, r.study, r.round)
        for r in opened.records[1:]
    ]
    shutil.move(study / "ledger", study / "true")
    with Ledger.create(study / "ledger", signer, origin=opened.head.origin) as ledger:
        ledger.append(*change(lines))
    shutil.copytree(study / "true" / "manifests", study / "ledger" / "manifests", dirs_exist_ok=True)
    return [problem.partition(": ")[2] for problem in verify(study / "ledger").problems]


def place(lines: Lines, event: Event, round_: int | None = None) -> int:
    return next(n for n, line in enumerate(lines) if line.event == event and round_ in (None, line.round))


def changed(lines: Lines, at: int, **body: Any) -> Lines:
    return [*lines[:at], replace(lines[at], body={**lines[at].body, **body}), *lines[at + 1 :]]


def again(lines: Lines, event: Event, after: Event) -> Lines:
    at = place(lines, after) + 1
    return [*lines[:at], lines[place(lines, event)], *lines[at:]]


def test_an_honest_course_is_found_right(study: Path) -> None:
    assert problems(study, lambda lines: lines) == []


def test_a_study_is_created_once_and_first(study: Path) -> None:
    found = problems(study, lambda lines: again(lines, Event.STUDY_CREATED, Event.AGGREGATED))
    assert found == ["the study was created before"]


def test_without_its_beginning_a_study_has_no_course(study: Path) -> None:
    found = problems(study, lambda lines: [line for line in lines if line.event != Event.STUDY_CREATED])
    assert set(found) == {"the study was not created before"}


def test_nothing_but_a_release_comes_after_the_end(study: Path) -> None:
    found = problems(study, lambda lines: again(lines, Event.STUDY_CLOSED, Event.STUDY_CLOSED))
    assert found == ["the study was closed before"]


def test_a_round_comes_once(study: Path) -> None:
    found = problems(
        study, lambda lines: [*lines[: place(lines, Event.AGGREGATED, 2)], lines[place(lines, Event.AGGREGATED, 1)]]
    )
    assert "comes after round 1" in found


def test_a_model_of_no_update_is_found(study: Path) -> None:
    found = problems(
        study, lambda lines: changed(lines, place(lines, Event.AGGREGATED, 3), inputs=[], excluded=list(SILOS))
    )
    assert found == ["it is made of 0 updates, of 3 that the plan asks for"]


def test_a_void_round_denies_no_update(study: Path) -> None:
    def void(lines: Lines) -> Lines:
        at = place(lines, Event.AGGREGATED, 1)
        body = {"accepted": [], "excluded": ["north"], "required": 3, "model": lines[at].body["base"]}
        return [*lines[:at], replace(lines[at], event=Event.ROUND_VOID, body=body)]

    assert problems(study, void) == [
        f"it says nothing of the update of {silo}, which was accepted" for silo in ("east", "south", "west")
    ]


@pytest.mark.parametrize("void", [{"accepted": list(SILOS), "required": 3}, {"accepted": ["east"], "required": 5}])
def test_a_round_with_enough_updates_is_not_void(study: Path, void: dict[str, Any]) -> None:
    def instead(lines: Lines) -> Lines:
        at = place(lines, Event.AGGREGATED, 1)
        body = {"excluded": sorted({*SILOS} - {*void["accepted"]}), "model": lines[at].body["base"], **void}
        return [*lines[:at], replace(lines[at], event=Event.ROUND_VOID, body=body)]

    (problem,) = problems(study, instead)
    assert problem.startswith(f"it is void with {len(void['accepted'])} updates, of 3 that the plan asks for")


def test_an_update_that_was_lost_before_its_round_was_combined_is_told_as_left_out(
    toy: Callable[..., Toy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator is killed, the hospital is gone for good, and so is what it sent."""
    made = toy(rounds=1, min_silos=3)
    with monkeypatch.context() as patch:
        patch.setattr(Audited, "combine", lambda *more: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            made.run()
    made.study.update_path(1, "east").unlink()
    made.close()
    others = type(made).open(made.folder, SILOS[1:])
    others.run()
    assert others.lines(Event.AGGREGATED)[0]["excluded"] == ["east"]
    assert not list((made.folder / "toy" / "updates").glob("*"))
    others.close()
    assert verify(made.folder / "toy" / "ledger").problems == []


@pytest.mark.parametrize("after", ["toy", "north"])
def test_a_study_that_ends_while_it_is_read_is_no_contradiction(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    """It ends when the first, or the second, of the two ledgers has been read."""
    folder = Path(shutil.copytree(finished, tmp_path / "all"))
    hub, silo = folder / "toy" / "ledger", folder / "north"
    for ledger in (hub, silo):
        shutil.rmtree(ledger / "parted")

    def early(ledger: Path, *more: Any) -> Opened:
        """The ledger before the hospitals took leave; then they do."""
        opened = read(ledger)
        records = opened.records[: next(r.seq for r in opened.records if "closing" in r.event)]
        tree = Tree()
        for record in records:
            tree.append(record.leaf)
        head = Checkpoint(opened.head.origin, len(records), tree.root())
        if after in ledger.parts:
            for each in (hub, silo):
                shutil.copytree(finished / each.relative_to(folder) / "parted", each / "parted", dirs_exist_ok=True)
        return replace(opened, records=records, head=head, note="", tree=tree)

    looks = iter([early, read if after == "toy" else early, read])
    monkeypatch.setattr(pairs, "_readable", lambda ledger: next(looks)(ledger))
    assert reconcile(hub, silo).problems == []
    for ledger in (hub, silo):
        shutil.rmtree(ledger / "parted")
    monkeypatch.setattr("aggregator.audit.ledgers.read", early)
    assert verify(silo if after == "north" else hub).problems == []
