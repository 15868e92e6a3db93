"""A study folder is made once, opened only whole, and says where the study is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from aggregator import app, visits
from aggregator.audit import reconcile, verify
from aggregator.history import History, read_study
from aggregator.rounds import run
from aggregator.service import runs
from aggregator.service.home import Home
from aggregator.service.superlink import SERVICE
from aggregator.study import Study
from models.canonical import canonical
from models.errors import ConfigError, IntramuralError, Locked, Malformed, SpecMismatch
from models.exchange import wire
from models.exchange.documents import Agreement, Refusal
from models.exchange.spec import Spec, load_vector, save_vector, tensor_digests, update_digest, vector_digest
from models.exchange.statement import Kind
from models.ledger import Entry, Event, Ledger, Signer, read, read_partings

Toy = Any  # of conftest.py
Make = Callable[..., Toy]
NAMES = ("east", "north", "south", "west")


@pytest.fixture
def parts(toy: Make) -> tuple[Path, Path, Path]:
    """The plan, the first model and the study's folder, closed."""
    world = toy()
    world.study.close()
    return world.folder / "toy.toml", world.folder / "initial.safetensors", world.folder / "toy"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Making one


def test_a_new_study_holds_its_plan_its_agreement_its_key_and_its_first_model(toy: Make) -> None:
    world = toy()
    study, folder = world.study, world.study.folder
    assert (folder / "study.toml").read_bytes() == (world.folder / "toy.toml").read_bytes()
    assert (folder / "agreement.json").read_bytes() == study.agreement.encode()
    assert (folder / "aggregator.key").stat().st_mode & 0o777 == 0o600
    spec, vector = load_vector(folder / "models" / "000.safetensors")
    assert (study.spec, study.agreement.spec) == (spec, spec.digest)
    assert study.agreement.initial == vector_digest(spec.digest, vector)
    assert study.digest == study.agreement.study

    created = study.ledger.records[1]
    assert (created.event, created.study) == (Event.STUDY_CREATED, study.digest)
    assert study.ledger.manifest(created.body["agreement"]) == study.agreement.encode()
    assert read(folder / "ledger", study.signer.verifier).head.origin == f"aggregator/toy/{study.digest[:16]}"


def test_two_studies_of_one_plan_are_two_studies(parts: tuple[Path, Path, Path], tmp_path: Path) -> None:
    plan, initial, folder = parts
    with Study.create(plan, tmp_path / "again", initial) as again, Study.open(folder) as study:
        assert again.signer.vkey != study.signer.vkey
        assert again.digest != study.digest


def test_a_study_that_is_there_is_never_overwritten(parts: tuple[Path, Path, Path]) -> None:
    plan, initial, folder = parts
    before = content(folder)
    with pytest.raises(ConfigError, match="exists already"):
        Study.create(plan, folder, initial)
    assert content(folder) == before


@pytest.mark.parametrize("kind", ["file", "other folder"])
def test_whatever_is_there_is_never_overwritten(parts: tuple[Path, Path, Path], tmp_path: Path, kind: str) -> None:
    plan, initial, _ = parts
    taken = tmp_path / "taken"
    if kind == "file":
        taken.write_text("mine")
    else:
        taken.mkdir()
        (taken / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="taken: exists already"):
        Study.create(plan, taken, initial)
    assert (taken if kind == "file" else taken / "thesis.txt").read_text() == "mine"


def test_an_empty_folder_can_become_a_study(parts: tuple[Path, Path, Path], tmp_path: Path) -> None:
    plan, initial, _ = parts
    (tmp_path / "empty").mkdir()
    with Study.create(plan, tmp_path / "empty", initial) as study:
        assert study.position.round == 0


def test_the_current_folder_can_become_a_study(
    parts: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, initial, _ = parts
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with Study.create(plan, ".", initial) as study:
        assert study.folder == tmp_path / "empty"
    with Study.open(tmp_path / "empty") as study:
        assert study.position.round == 0


@pytest.mark.parametrize("what", ["plan", "model", "double"])
def test_a_study_that_cannot_be_made_leaves_nothing_behind(
    parts: tuple[Path, Path, Path], tmp_path: Path, what: str
) -> None:
    from safetensors.numpy import save

    plan, initial, _ = parts
    if what == "plan":
        plan.write_text(plan.read_text().replace("rounds = 2", "rounds = 0"))
    elif what == "model":
        initial.write_bytes(b"no model")
    else:
        initial.write_bytes(save({"weight": np.zeros(3)}))
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(IntramuralError, match=r"toy\.toml|initial\.safetensors"):
        Study.create(plan, tmp_path / "new", initial)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


# Opening one


def test_opening_never_makes_anything(tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ConfigError, match=r"is no study folder"):
            Study.open(folder)
    assert list(tmp_path.iterdir()) == []


def test_a_study_is_worked_on_by_one_at_a_time(toy: Make) -> None:
    world = toy()
    with pytest.raises(Locked):
        Study.open(world.study.folder)


def test_a_study_that_is_opened_is_the_one_that_was_made(parts: tuple[Path, Path, Path]) -> None:
    before = content(parts[2])
    with Study.open(parts[2]) as study:
        assert study.plan.name == "toy"
    assert content(parts[2]) == before


def other_key(folder: Path) -> None:
    (folder / "aggregator.key").unlink()
    (folder / "aggregator.pub").unlink()
    Signer.create(folder / "aggregator.key", "aggregator")


def other_model(folder: Path) -> None:
    path = folder / "models" / "000.safetensors"
    spec, vector = load_vector(path)
    save_vector(path, spec, vector + 1)


def other_layout(folder: Path) -> None:
    save_vector(folder / "models" / "000.safetensors", Spec.of({"all": (12,)}), np.zeros(12, np.float32))


def other_ledger(folder: Path) -> None:
    shutil.rmtree(folder / "ledger")
    Ledger.create(folder / "ledger", Signer.from_seed("aggregator", b"x" * 32)).close()


def changed_line(folder: Path) -> None:
    path = folder / "ledger" / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"name":"toy"', b'"name":"boy"'))


def broken_agreement(folder: Path) -> None:
    (folder / "agreement.json").write_bytes(b"{}")


def lower_bar(folder: Path) -> None:
    """Another plan than the hospitals approved, and otherwise a perfect agreement."""
    path = folder / "agreement.json"
    values = json.loads(path.read_bytes())
    values["plan"]["min_silos"] = 1
    path.write_bytes(Agreement.model_validate(values).encode())


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (other_key, "aggregator.key"),
        (lambda folder: (folder / "aggregator.key").unlink(), "aggregator.key"),
        (lambda folder: (folder / "aggregator.key").write_bytes(b"\xff"), "aggregator.key"),
        (lambda folder: (folder / "aggregator.key").chmod(0o644), "aggregator.key"),
        (other_model, "000.safetensors"),
        (other_layout, "000.safetensors"),
        (lambda folder: (folder / "models" / "000.safetensors").unlink(), "000.safetensors"),
        (lambda folder: shutil.rmtree(folder / "ledger"), "ledger"),
        (other_ledger, "ledger"),
        (changed_line, "ledger.jsonl"),
        (lambda folder: (folder / "ledger" / "checkpoint").unlink(), "checkpoint"),
        (broken_agreement, "agreement.json"),
        (lower_bar, "agreement.json"),
    ],
    ids=[
        "another key", "no key", "a broken key", "an open key", "another model", "another layout", "no model",
        "no ledger", "another ledger", "a changed line", "no checkpoint", "a broken agreement",
        "a changed agreement",
    ],
)  # fmt: skip
def test_a_folder_that_is_not_whole_is_not_opened_and_the_file_is_named(
    parts: tuple[Path, Path, Path], damage: Callable[[Path], None], named: str
) -> None:
    damage(parts[2])
    before = content(parts[2])
    with pytest.raises(IntramuralError) as caught:
        Study.open(parts[2])
    assert named in str(caught.value)
    assert {**content(parts[2]), "ledger/lock": b""} == {**before, "ledger/lock": b""}


def test_a_study_can_be_opened_after_it_was_refused(parts: tuple[Path, Path, Path]) -> None:
    key = (parts[2] / "aggregator.key").read_bytes()
    (parts[2] / "aggregator.key").write_bytes(b"\xff")
    with pytest.raises(ConfigError):
        Study.open(parts[2])
    (parts[2] / "aggregator.key").write_bytes(key)
    Study.open(parts[2]).close()


# Loading one


def test_a_plan_is_loaded_as_the_study_beside_it_and_goes_on(toy: Make) -> None:
    world = toy()
    world.run_one()
    world.study.close()
    for path in (world.folder / "toy.toml", world.folder / "toy", str(world.folder / "toy.toml")):
        with Study.load(path) as study:
            assert study.digest == world.study.digest
            assert study.position.round == 1


def test_a_changed_plan_is_not_taken_for_the_study_beside_it(parts: tuple[Path, Path, Path]) -> None:
    parts[0].write_text(parts[0].read_text().replace("rounds = 2", "rounds = 3"))
    with pytest.raises(ConfigError, match=r"holds a study of another plan than .*toy\.toml"):
        Study.load(parts[0])
    Study.open(parts[2]).close()  # and its lock was given back


# Where it is


def test_a_study_knows_its_place_after_every_round(toy: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visits, "POLL", 0.001)
    world = toy(rounds=3, min_silos=4, deadline=0.01)
    study = world.study
    place = study.position
    assert (place.round, place.model, place.digest, place.closed) == (0, 0, study.agreement.initial, False)

    world.run_one()
    first = study.position
    assert (first.round, first.model, first.closed) == (1, 1, False)
    assert first.digest == world.lines(Event.AGGREGATED)[0]["model"]

    world.hospitals["north"].silent = True
    world.run_one()
    void = study.position
    assert (void.round, void.model, void.digest, void.closed) == (2, 1, first.digest, False)

    world.hospitals["north"].silent = False
    world.run()
    last = study.position
    assert (last.round, last.model, last.closed) == (3, 3, True)
    assert last.digest not in (first.digest, study.agreement.initial)


def test_a_study_that_was_left_goes_on_after_the_last_round_that_is_over(toy: Make) -> None:
    world = toy(rounds=3)
    world.run_one()
    digest = world.study.position.digest
    again = world.reopen()
    try:
        outcome = again.run()
        assert outcome.history.rounds[1].model == digest
        assert [item.accepted for item in outcome.history.rounds[1:]] == [list(again.names)] * 3
        assert len(again.lines(Event.AGGREGATED)) == 3
    finally:
        again.close()


class Killed(Exception):  # noqa: N818 - the process is gone
    pass


def dying_after(lines: int, owner: Ledger) -> Callable[..., Any]:
    """`Ledger.append` of a coordinator that dies when it has written so many lines."""
    append, written = Ledger.append, 0

    def write(ledger: Ledger, *entries: Entry) -> Any:
        nonlocal written
        records = append(ledger, *entries)
        written += len(records) if ledger is owner else 0
        if written >= lines:
            raise Killed
        return records

    return write


def test_a_study_that_dies_again_and_again_ends_with_the_same_model(toy: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = toy(rounds=2).run().digest
    world = toy(rounds=2)
    for life in range(3, 40):
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "append", dying_after(life, world.study.ledger))
            try:
                outcome = world.run()
                break
            except Killed:
                pass
        world = world.reopen()
    try:
        assert life > 6  # it died in both rounds and in the farewell
        assert outcome.digest == reference
        assert [item.accepted for item in outcome.history.rounds[1:]] == [list(world.names)] * 2
    finally:
        world.close()


def test_a_study_that_is_over_gives_its_outcome_again_and_asks_nobody(
    toy: Make, caplog: pytest.LogCaptureFixture
) -> None:
    world = toy(rounds=1)
    outcome = world.run()
    size = len(world.study.ledger.records)
    for hospital in world.hospitals.values():
        hospital.answer = lambda message: pytest.fail("it was asked")
    assert "nothing was run" not in caplog.text
    assert world.run() == outcome
    assert f"{world.study.folder}: the study is over; nothing was run" in caplog.text
    assert len(world.study.ledger.records) == size


def test_a_study_that_was_killed_when_it_was_over_takes_its_leave_when_it_is_run_again(
    toy: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise Killed

    world = toy(rounds=1)
    with monkeypatch.context() as patch:
        patch.setattr("aggregator.rounds.take_leave", die)
        with pytest.raises(Killed):
            world.run()
    assert read_partings(world.study.ledger.folder) == []
    world = world.reopen()
    try:
        world.hospitals["west"].silent = True
        monkeypatch.setattr(visits, "_LEAVE", 0.1)
        world.run()
        assert {parting.peer for parting in read_partings(world.study.ledger.folder)} == {"east", "north", "south"}
        assert len(read_partings(world.folder / "north")) == 1
        world.hospitals["west"].silent = False
        for name in ("east", "north", "south"):  # they took theirs
            world.hospitals[name].answer = lambda message: pytest.fail("it was asked")
        world.run()
        assert {parting.peer for parting in read_partings(world.study.ledger.folder)} == set(world.names)
        assert world.study.ledger.records[-1].event == Event.STUDY_CLOSED
        assert all(reconcile(world.study.folder / "ledger", world.folder / name).ok for name in NAMES)
    finally:
        world.close()


# Who takes part


def test_another_key_under_an_enrolled_name_is_refused(toy: Make) -> None:
    world = toy()
    north = world.hospitals["north"].signer.verifier
    world.study.enrol(north)
    world.study.enrol(north)
    assert len(world.lines(Event.SILO_ENROLLED)) == 1

    impostor = Signer.from_seed("north", b"i" * 32).verifier
    with pytest.raises(ConfigError, match="north: has another key"):
        world.study.enrol(impostor)
    assert world.study.enrolled == {"north": north.vkey}


def test_a_silo_of_the_coordinators_name_is_refused(toy: Make) -> None:
    world = toy()
    with pytest.raises(ConfigError, match="aggregator"):  # nobody could tell their statements apart
        world.study.enrol(Signer.from_seed("aggregator", b"a" * 32).verifier)


def with_impostor(world: Toy) -> Any:
    """A grid in which west has another key."""
    grid = world.grid()
    node = next(node for node, verifier in grid.roster.items() if verifier.name == "west")
    grid.roster[node] = Signer.from_seed("west", b"i" * 32).verifier
    return grid


def test_a_grid_with_an_impostor_starts_nothing(toy: Make) -> None:
    world = toy()
    for hospital in world.hospitals.values():
        world.study.enrol(hospital.signer.verifier)
    size = len(world.study.ledger.records)
    with pytest.raises(ConfigError, match="west: has another key"):
        run(world.study, with_impostor(world))
    assert len(world.study.ledger.records) == size


def test_a_study_at_work_goes_on_without_an_impostor_after_a_restart_too(
    begun: Toy, caplog: pytest.LogCaptureFixture
) -> None:
    outcome = run(begun.study, with_impostor(begun))
    assert [item.accepted for item in outcome.history.rounds[2:]] == [["east", "north", "south"]]
    assert "west takes no part: west: has another key" in caplog.text


def test_a_study_that_needs_the_hospital_with_another_key_does_not_use_up_its_rounds(toy: Make) -> None:
    world = toy(min_silos=4)
    world.run_one()
    with pytest.raises(ConfigError, match="min_silos: 4 are required, 3 silos take part"):
        run(world.study, with_impostor(world))
    assert world.study.position.round == 1


def test_a_hospital_that_comes_back_under_another_key_takes_no_part_and_the_others_go_on(
    toy: Make, caplog: pytest.LogCaptureFixture
) -> None:
    world = toy(rounds=2)
    grid = type(world).run.__globals__["Hospitals"](world.hospitals.values())
    old = next(node for node, verifier in grid.roster.items() if verifier.name == "west")

    def readmit(_: History) -> None:
        if old in grid.roster:
            grid.hospitals[99] = grid.hospitals.pop(old)
            grid.roster[99] = Signer.from_seed(grid.roster.pop(old).name, b"n" * 32).verifier

    outcome = run(world.study, grid, on_round=readmit)
    assert [item.accepted for item in outcome.history.rounds[1:]] == [list(world.names), ["east", "north", "south"]]
    assert outcome.history.closed
    assert caplog.text.count("west takes no part: west: has another key") == 1


def test_a_study_with_fewer_silos_than_it_needs_does_not_begin(toy: Make) -> None:
    world = toy(min_silos=5)
    with pytest.raises(ConfigError, match="min_silos: 5 are required, 4 silos take part"):
        world.run()
    assert len(world.study.ledger.records) == 2


# What it keeps


@pytest.mark.parametrize("keep", [False, True])
def test_updates_are_kept_after_their_round_only_if_the_plan_says_so(toy: Make, keep: bool) -> None:
    world = toy(rounds=1, keep_updates=keep)
    world.run()
    kept = sorted(path.name for path in (world.study.folder / "updates").rglob("*.safetensors"))
    assert kept == ([f"{name}.safetensors" for name in world.names] if keep else [])
    if keep:
        digest = world.lines(Event.UPDATE_RECEIVED)[0]["digest"]
        silo = world.lines(Event.UPDATE_RECEIVED)[0]["statement"]["src"]
        update = world.study.load_update(1, silo, digest)
        assert update.tobytes() == world.hospitals[silo].delta(1).tobytes()


def test_updates_of_a_round_that_was_combined_before_a_kill_are_not_kept_either(
    toy: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = toy(rounds=3)
    with monkeypatch.context() as patch:
        patch.setattr(Study, "drop_states", Mock(side_effect=KeyboardInterrupt))  # the next thing after the line
        with pytest.raises(KeyboardInterrupt):
            world.run()
    assert world.study.position.round == 1
    assert list((world.study.folder / "updates").rglob("*.safetensors"))
    world.run()
    assert not list((world.study.folder / "updates").rglob("*.safetensors"))


def test_a_model_that_was_changed_on_disk_is_not_trained_on(begun: Toy) -> None:
    path = begun.study.model_path(1)
    spec, vector = load_vector(path)
    save_vector(path, spec, vector * 2)
    orders = len(begun.lines(Event.ORDER_OFFERED))
    with pytest.raises(IntramuralError, match=r"001\.safetensors"):
        begun.run()
    assert len(begun.lines(Event.ORDER_OFFERED)) == orders


def test_an_update_that_was_changed_on_disk_is_asked_for_again(begun: Toy) -> None:
    # The coordinator died when all four updates of round 2 were in.
    combine = begun.study.save_model
    begun.study.save_model = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        begun.run()
    begun.study.save_model = combine
    path = begun.study.update_path(2, "south")
    spec, vector = load_vector(path)
    save_vector(path, spec, vector * 2)
    asked = {name: len(hospital.outbox) for name, hospital in begun.hospitals.items()}

    begun.run_one()

    again = {name: len(h.outbox) - asked[name] for name, h in begun.hospitals.items()}
    assert again == {"east": 0, "north": 0, "south": 1, "west": 0}
    expected = begun.model(1) + begun.mean(2, begun.hospitals)
    assert begun.model(2).tobytes() == expected.tobytes()


def test_an_agreement_that_cannot_be_read_says_nothing_of_its_content() -> None:
    with pytest.raises(Malformed) as caught:
        Agreement.decode(canonical({"plan": {"name": "secret"}}))
    assert "secret" not in str(caught.value)


def test_a_model_of_double_precision_cannot_start_a_study(tmp_path: Path) -> None:
    from safetensors.numpy import save

    (tmp_path / "model.safetensors").write_bytes(save({"weight": np.zeros(3)}))
    with pytest.raises(SpecMismatch, match="F64"):
        load_vector(tmp_path / "model.safetensors")


def test_what_was_just_written_is_not_hashed_again_until_somebody_touches_it(
    begun: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, vector = begun.study, np.ones(begun.study.spec.size, np.float32)
    digest = update_digest(study.spec, tensor_digests(study.spec, vector))
    study.save_update(2, "north", vector, digest)
    assert (study.folder / "updates").stat().st_mode & 0o777 == 0o700  # one hospital's numbers are nobody else's
    hashed: list[Path] = []
    load = study.load_update

    def watched(round_: int, silo: str, digest: str) -> Any:
        hashed.append(study.update_path(round_, silo))
        return load(round_, silo, digest)

    monkeypatch.setattr(study, "load_update", watched)
    assert study.has_update(2, "north", digest)
    assert not study.has_update(2, "north", "ab" * 32)
    assert len(hashed) == 1
    path = study.update_path(2, "north")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)  # in place
    assert not study.has_update(2, "north", digest)
    assert len(hashed) == 2


def refuse(code: str) -> Any:
    return lambda h, o, a: wire.pack(h.offer(o, Kind.REFUSAL, Refusal(code=code), None, answers=a))


def test_a_study_that_no_hospital_has_approved_stops_and_can_be_run_once_they_have(toy: Make) -> None:
    world = toy(rounds=1)
    codes = ["study-not-approved", "study-changed", "study-revoked", "study-changed"]
    for name, code in zip(world.hospitals, codes, strict=True):
        world.poison(name, refuse(code), round_=1)
    for _ in range(2):
        with pytest.raises(ConfigError, match="refused: east: study-not-approved, north: ") as caught:
            world.run()
        assert f"approve SITE.toml {world.study.folder / 'agreement.json'}" in caught.value.hint
        assert not world.study.position.closed
    world = world.reopen()  # its hospitals are no longer told to refuse
    try:
        outcome = world.run()
        assert [item.accepted for item in outcome.history.rounds] == [[], list(NAMES)]
        assert outcome.history.closed
        assert not outcome.history.rounds[1].refused
        assert verify(world.study.folder / "ledger").ok
        assert all(reconcile(world.study.folder / "ledger", world.folder / name).ok for name in NAMES)
    finally:
        world.close()


def test_a_study_stops_in_any_round_for_which_too_few_have_approved_it_and_loses_none(begun: Toy) -> None:
    for name in ("north", "south"):
        begun.poison(name, refuse("study-revoked"))
    with pytest.raises(
        ConfigError, match="round 2 cannot have min_silos = 3 updates; refused: north: study-revoked, south: "
    ):
        begun.run()
    assert begun.study.position.round == 1
    for name in ("north", "south"):
        begun.poison(name, refuse("study-revoked"), round_=3)  # they have approved it again
    assert begun.run().history.rounds[2].accepted == list(NAMES)
    assert len(begun.hospitals["west"].outbox) == 4  # two updates, a report and a closing: its second one was kept


def test_a_study_that_too_few_approve_any_more_is_closed_with_the_model_that_it_has(begun: Toy) -> None:
    for name in ("north", "south"):
        for round_ in (2, begun.study.plan.rounds):
            begun.poison(name, refuse("study-revoked"), round_=round_)
    with pytest.raises(ConfigError) as caught:
        begun.run()
    assert "close it with the model that it has: run it with --end" in caught.value.hint
    model, updates = begun.study.position.digest, begun.study.folder / "updates"
    assert list(updates.rglob("*.safetensors"))  # of the round that was left open
    outcome = begun.run(end=True)
    assert not list(updates.rglob("*.safetensors"))
    assert (outcome.digest, outcome.history.closed, len(outcome.history.rounds)) == (model, True, 2)
    assert verify(begun.study.folder / "ledger").ok
    assert all(reconcile(begun.study.folder / "ledger", begun.folder / name).ok for name in NAMES)


@pytest.mark.parametrize("code", ["too-few-patients", "silence"])
def test_a_study_of_which_enough_hospitals_approve_goes_on_after_a_void_round(
    toy: Make, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    for wait in ("POLL", "_LEAVE"):
        monkeypatch.setattr(visits, wait, 0.001)
    world = toy(rounds=1, deadline=0.05)
    world.poison("east", refuse("study-changed"), round_=1)
    if code == "silence":
        world.hospitals["west"].silent = True
    else:
        world.poison("west", refuse(code), round_=1)
    assert world.run().history.rounds[1].void


def test_a_study_of_a_service_that_no_hospital_has_approved_is_taken_off_its_list(
    toy: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, world = Home.create(tmp_path / "home", "localhost:8443"), toy(rounds=1)
    for name in world.hospitals:
        world.poison(name, refuse("study-changed"), round_=1)
    runs.want(home, world.study.digest, world.study.folder)
    world.study.close()
    monkeypatch.setenv(SERVICE, str(home.folder))
    monkeypatch.setattr(app, "NetworkGrid", lambda grid, roster: world.grid())
    context = Context(1, 1, {}, RecordDict(), {app.STUDY: world.study.digest})
    with pytest.raises(ConfigError, match="round 1 cannot have min_silos = 3 updates; refused: "):
        app.main(None, context)
    assert runs.wanted(home) == {}
    problem = runs.studies(home)[world.study.digest].problem
    assert problem is not None
    assert "refused: east: study-changed, " in problem[0]
    runs.want(home, world.study.digest, world.study.folder)  # as `run` does
    for name in world.hospitals:
        world.poison(name, refuse("study-changed"), round_=2)  # they have approved it
    app.main(None, context)
    assert read_study(world.study.folder)[1].closed
    assert runs.wanted(home) == {}


def test_a_service_closes_a_study_that_is_to_end(toy: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, world = Home.create(tmp_path / "home", "localhost:8443"), toy(rounds=2)
    runs.want(home, world.study.digest, world.study.folder, end=True)
    with pytest.raises(ConfigError, match="it runs already"):
        runs.want(home, world.study.digest, world.study.folder)
    world.study.close()
    monkeypatch.setenv(SERVICE, str(home.folder))
    monkeypatch.setattr(app, "NetworkGrid", lambda grid, roster: world.grid())
    app.main(None, Context(1, 1, {}, RecordDict(), {app.STUDY: world.study.digest}))
    history = read_study(world.study.folder)[1]
    assert (history.closed, len(history.rounds), runs.wanted(home)) == (True, 1, {})
