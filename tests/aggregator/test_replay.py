"""From kept updates every combined model comes out again to the bit, and nothing else passes for one."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator.audit import verify
from aggregator.audit.replay import replay
from aggregator.audit_cli import main
from aggregator.rounds import survey
from aggregator.strategy import Audited
from models.errors import ConfigError, DataError, DigestMismatch
from models.exchange import wire
from models.exchange.documents import Refusal
from models.exchange.spec import load_vector, save_vector
from models.exchange.statement import Kind
from models.ledger import Entry, Event, Ledger, Record, Signer, read

Toy = Any  # of conftest.py


@pytest.fixture(params=["fedavg", "fedprox"])
def strategy(request: pytest.FixtureRequest) -> str:
    return {"fedavg": 'name = "fedavg"', "fedprox": 'name = "fedprox"\nmu = 0.1'}[request.param]


@pytest.fixture
def kept(toy: Callable[..., Toy]) -> Path:
    """The folder of a study of three rounds that kept its updates."""
    made = toy(rounds=3, keep_updates=True)
    made.run()
    made.close()
    return Path(made.folder / "toy")


def sums(folder: Path) -> list[Record]:
    return [record for record in read(folder / "ledger").records if record.event == Event.AGGREGATED]


def forge(folder: Path, edit: Callable[[Record], dict[str, Any]]) -> None:
    """The coordinator writes its ledger anew, with other bodies; it signs all and hides its witnesses' signatures."""
    opened, signer = read(folder / "ledger"), Signer.load(folder / "aggregator.key")
    shutil.move(folder / "ledger", folder / "true")
    with Ledger.create(folder / "ledger", signer, origin=opened.head.origin) as ledger:
        ledger.append(*[Entry(r.event, unwitnessed(edit(r)), r.study, r.round) for r in opened.records[1:]])
    shutil.copytree(folder / "true" / "manifests", folder / "ledger" / "manifests", dirs_exist_ok=True)


def unwitnessed(body: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != "cosignature"}


def test_every_model_comes_out_again_to_the_bit(toy: Callable[..., Toy], strategy: str) -> None:
    made = toy(rounds=3, keep_updates=True, strategy=strategy)
    made.run()
    made.close()
    folder = made.folder / "toy"
    found = replay(folder)
    assert found.problems == []
    assert [(m.round, m.inputs) for m in found.models] == [(r, ["east", "north", "south", "west"]) for r in (1, 2, 3)]
    assert [m.found for m in found.models] == [r.body["model"] for r in sums(folder)]
    assert found.orders == 20  # four hospitals, three rounds, the last measurement and the farewell
    assert json.loads(json.dumps(found.as_json()))["ok"] is True


def test_a_round_that_was_void_and_a_silo_that_refused_are_no_hindrance(toy: Callable[..., Toy]) -> None:
    made = toy(rounds=3, keep_updates=True, min_silos=4)
    refuse = Refusal(code="round-limit")
    made.poison("west", lambda h, o, a: wire.pack(h.offer(o, Kind.REFUSAL, refuse, None, answers=a)))
    made.run()
    made.close()
    found = replay(made.folder / "toy")
    assert (found.problems, [m.round for m in found.models]) == ([], [1, 3])


def test_a_survey_before_the_study_is_no_hindrance(toy: Callable[..., Toy]) -> None:
    made = toy(rounds=1, keep_updates=True)
    survey(made.study, type(made).run.__globals__["Hospitals"](made.hospitals.values()))
    made.run()
    made.close()
    found = replay(made.folder / "toy")
    assert (found.problems, found.orders) == ([], 16)  # four hospitals: survey, round, last measurement, farewell


def test_a_study_that_kept_nothing_cannot_be_replayed_and_says_so(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match="was not kept"):
        replay(finished / "toy")
    assert main(["replay", str(finished / "toy")]) == 1
    assert "keep_updates = true" in capsys.readouterr().err


def test_one_update_that_is_missing_is_named(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kept / "updates" / "002" / "north.safetensors").unlink()
    assert main(["replay", str(kept)]) == 1
    assert "updates/002/north.safetensors" in capsys.readouterr().err


def test_an_update_that_was_changed_on_disk_is_found_in_its_round(
    kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = kept / "updates" / "002" / "north.safetensors"
    spec, vector = load_vector(path)
    vector[0] = np.nextafter(vector[0], np.float32(9))  # one bit
    save_vector(path, spec, vector)
    found = replay(kept)
    assert not found.ok
    assert found.problems[0].startswith("round 2:")
    assert [m.round for m in found.models] == [1]
    assert main(["replay", str(kept)]) == 3
    assert "FAILED: round 2" in capsys.readouterr().out


def test_a_first_model_that_was_changed_on_disk_is_found(kept: Path) -> None:
    path = kept / "models" / "000.safetensors"
    spec, vector = load_vector(path)
    save_vector(path, spec, vector + 1)
    with pytest.raises(DigestMismatch):
        replay(kept)


Edit = Callable[[dict[str, Any]], dict[str, Any]]


def inputs(**change: Any) -> Edit:
    return lambda body: {**body, "inputs": [{**body["inputs"][0], **change}, *body["inputs"][1:]]}


LIES: dict[str, tuple[Edit, str]] = {
    "another weight": (inputs(weight=1), "another weight"),
    "another hospital's update": (
        lambda body: {**body, "inputs": [{**body["inputs"][1], "silo": "east"}, *body["inputs"][1:]]},
        "the input of east was not signed by east",
    ),
    "an update that nobody sent": (inputs(xid="ab" * 32), "no accepted update"),
    "other arrays": (inputs(digest="ab" * 32), "other arrays than those it signed"),
    "an update less": (lambda body: {**body, "inputs": body["inputs"][1:]}, "says nothing of the update of east"),
    "an update twice": (
        lambda body: {**body, "inputs": [*body["inputs"], body["inputs"][0]]},
        "not each hospital once",
    ),
    "another order of the sum": (lambda body: {**body, "inputs": body["inputs"][::-1]}, "once, in order of name"),
    "another strategy": (lambda body: {**body, "strategy": {"name": "fedavg", "mu": 0.5}}, "another strategy"),
    "another result": (lambda body: {**body, "model": "ab" * 32}, "offers another model than the newest one"),
    "another start": (lambda body: {**body, "base": "ab" * 32}, "does not start from"),
}


@pytest.mark.parametrize("keep_updates", [True, False], ids=["updates kept", "none kept"])
@pytest.mark.parametrize("lie", LIES)
def test_a_coordinator_that_lies_about_a_sum_is_found_whether_updates_are_kept_or_not(
    kept: Path, lie: str, keep_updates: bool
) -> None:
    if not keep_updates:
        shutil.rmtree(kept / "updates")
    edit, said = LIES[lie]
    forge(kept, lambda r: edit(r.body) if (r.event, r.round) == (Event.AGGREGATED, 2) else r.body)
    problems = verify(kept / "ledger").problems
    assert any(said in problem for problem in problems)
    assert replay(kept).problems == problems


def test_a_sum_that_its_updates_do_not_give_is_found_from_the_kept_ones_alone(
    toy: Callable[..., Toy], monkeypatch: pytest.MonkeyPatch
) -> None:
    combine = Audited.combine

    def wrongly(self: Audited, round_: int, base: Any, *more: Any) -> Any:
        combined = combine(self, round_, base, *more)
        return combined if round_ != 2 else dataclasses.replace(combined, model=combined.model + np.float32(1))

    made = toy(rounds=3, keep_updates=True)
    with monkeypatch.context() as patch:
        patch.setattr(Audited, "combine", wrongly)
        made.run()
    made.close()
    folder = made.folder / "toy"
    assert verify(folder / "ledger").ok
    found = replay(folder)
    assert [m.round for m in found.models] == [1, 2]
    assert [problem.startswith("round 2: its updates give the model") for problem in found.problems] == [True]


@pytest.mark.parametrize(
    ("twist", "said"),
    [
        (lambda items: [items[0], *items], "its inputs are not each hospital once"),
        (lambda items: items[1:], "it says nothing of the update of east, which was accepted"),
    ],
    ids=["one hospital's update twice", "an update less"],
)
def test_a_coordinator_that_combines_otherwise_than_it_accepted_is_found_although_the_sum_is_right(
    toy: Callable[..., Toy], monkeypatch: pytest.MonkeyPatch, twist: Callable[[Any], Any], said: str
) -> None:
    combine, append = Audited.combine, Ledger.append

    def lie(ledger: Ledger, *entries: Entry) -> list[Record]:
        told = [e.body | {"inputs": twist(e.body["inputs"])} if "inputs" in e.body else e.body for e in entries]
        return append(ledger, *[Entry(e.event, body, e.study, e.round) for e, body in zip(entries, told, strict=True)])

    def otherwise(self: Audited, round_: int, base: Any, given: Any, *more: Any) -> Any:
        return combine(self, round_, base, twist(given), *more)

    made = toy(rounds=2, keep_updates=True)
    with monkeypatch.context() as patch:
        patch.setattr(Audited, "combine", otherwise)
        patch.setattr(Ledger, "append", lie)
        made.run()
    made.close()
    found = verify(made.folder / "toy" / "ledger")
    assert [said in problem for problem in found.problems] == [True, True]  # both rounds


@pytest.mark.parametrize("event", [Event.STUDY_CLOSED, Event.MODEL_RELEASED])
def test_a_study_that_ends_with_a_model_that_no_round_made_is_found(kept: Path, event: Event) -> None:
    with Ledger.open(kept / "ledger", Signer.load(kept / "aggregator.key")) as ledger:
        closed = ledger.of(Event.STUDY_CLOSED)[0]
        body = {**closed.body, **({"files": []} if event == Event.MODEL_RELEASED else {})}
        ledger.append(Entry(event, {**body, "model": "ab" * 32}, closed.study, closed.round))
    assert replay(kept).problems[-1].endswith(f": {event} names another model than the newest one")


def test_an_order_that_offers_another_model_than_the_newest_is_found(kept: Path) -> None:
    """The coordinator says that round 2 was void, yet its orders of round 3 carry round 2's model."""
    records = read(kept / "ledger").records
    model = next(r.body["model"] for r in records if r.event == Event.AGGREGATED)
    opened, signer = read(kept / "ledger"), Signer.load(kept / "aggregator.key")
    shutil.move(kept / "ledger", kept / "true")
    void = {"accepted": [], "excluded": ["east", "north", "south", "west"], "required": 3, "model": model}
    with Ledger.create(kept / "ledger", signer, origin=opened.head.origin) as ledger:
        for r in opened.records[1:]:
            if r.event == Event.AGGREGATED and r.round and r.round > 1:
                ledger.append(Entry(Event.ROUND_VOID, void, r.study, r.round))
            else:
                body = {"model": model} if r.event == Event.STUDY_CLOSED else unwitnessed(r.body)
                ledger.append(Entry(r.event, body, r.study, r.round))
    shutil.copytree(kept / "true" / "manifests", kept / "ledger" / "manifests", dirs_exist_ok=True)
    problems = verify(kept / "ledger").problems
    offered = [problem for problem in problems if "offers another model" in problem]
    made = [problem for problem in problems if "was made from another model" in problem]
    assert (len(offered), len(made), len(problems)) == (12, 4, 16)
    assert replay(kept).problems == problems


def test_a_ledger_that_does_not_verify_is_not_replayed(kept: Path) -> None:
    next((kept / "ledger" / "manifests").iterdir()).write_bytes(b"{}")
    found = replay(kept)
    assert (found.models, found.ok) == ([], False)
    assert "manifests" in found.problems[0]


def test_what_is_no_study_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no study folder"):
        replay(tmp_path)
