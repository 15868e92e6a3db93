"""What honest ledgers prove, one alone and two together; `test_attacks` has the others."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aggregator.audit import pairs, reconcile, reconcile_each, verify
from models.errors import IntramuralError, LedgerError
from models.exchange import wire
from models.exchange.channel import Channel
from models.exchange.documents import Refusal
from models.exchange.statement import Kind, Statement, receipt_bytes
from models.ledger import Checkpoint, Entry, Event, Ledger, Opened, Signer, Verifier, read

Toy = Any  # of conftest.py
SILO = "north"


def hub_key(folder: Path) -> Signer:
    return Signer.load(folder / "toy" / "aggregator.key")


def silo_key(name: str = SILO) -> Signer:
    return Signer.from_seed(name, hashlib.sha256(name.encode()).digest())


def ledgers(folder: Path, silo: str = SILO) -> tuple[Path, Path]:
    return folder / "toy" / "ledger", folder / silo


# Honest ledgers


@pytest.mark.parametrize("name", ["east", "north", "south", "west"])
def test_honest_ledgers_agree_on_every_statement(finished: Path, name: str) -> None:
    found = reconcile(*ledgers(finished, name))
    assert found.problems == []
    assert found.ok
    assert (found.aggregator, found.silo) == ("aggregator", name)
    assert (found.orders, found.replies) == (5, 5)  # three rounds, the last measurement, the farewell
    assert (found.pending, found.closed) == ([], True)
    last = next(r for r in reversed(read(finished / name).records) if r.event == Event.CLOSING_OFFERED)
    assert found.newest["reply"] == Statement.parse(last.body["statement"]).xid


@pytest.mark.parametrize("name", ["toy/ledger", "east", "north", "south", "west"])
def test_an_honest_ledger_proves_itself(finished: Path, name: str) -> None:
    verdict = verify(finished / name)
    opened = read(finished / name)
    assert verdict.problems == []
    assert verdict.ok
    assert (verdict.size, verdict.root) == (opened.head.size, opened.head.root.hex())
    assert verdict.statements == (40 if "ledger" in name else 10)
    assert verdict.receipts == (20 if "ledger" in name else 4)  # the farewell is never acknowledged
    assert (verdict.first, verdict.last) == (opened.records[0].ts, opened.records[-1].ts)
    assert verdict.unsigned == 0


@pytest.mark.parametrize(("xid", "signer"), [("sent", "north"), ("sent", "east"), ("never sent", "north")])
def test_a_receipt_is_of_something_sent_and_from_whom_it_was_sent_to(
    finished: Path, tmp_path: Path, xid: str, signer: str
) -> None:
    ledger, key = shutil.copytree(finished / "toy" / "ledger", tmp_path / "ledger"), hub_key(finished)
    orders = [r for r in read(ledger).records if r.event == Event.ORDER_OFFERED]
    order = next(r for r in orders if r.body["statement"]["dst"] == "north")
    named = Statement.parse(order.body["statement"]).xid if xid == "sent" else "ab" * 32
    body = {"xid": named, "receipt": silo_key(signer).sign(receipt_bytes(named)).hex()}
    with Ledger.open(ledger, key) as opened:
        opened.append(Entry(Event.EXCHANGE_RECEIPT, body, order.study))
    problems = verify(ledger).problems
    if (xid, signer) == ("sent", "north"):
        assert problems == []
    else:
        assert len(problems) == 1
        assert ("not signed by north" if xid == "sent" else "nothing that was sent") in problems[0]


def test_a_verdict_is_json(finished: Path) -> None:
    for result in (verify(finished / SILO), reconcile(*ledgers(finished))):
        assert json.loads(json.dumps(result.as_json()))["ok"] is True


def test_a_reply_that_never_arrived_whole_is_pending_and_no_contradiction(begun: Toy) -> None:
    def lost(hospital: Any, order: Any, asked: str) -> Any:
        records = wire.pack(hospital.update(order, asked))
        del records["intramural"]["signature"]
        return records

    begun.poison(SILO, lost)
    begun.run()
    found = reconcile(*ledgers(begun.folder))
    xid = Statement.decode(begun.hospitals[SILO].outbox[1].statement).xid
    assert found.ok
    assert (found.pending, found.orders, found.replies, found.closed) == ([xid], 4, 3, True)


def test_a_refusal_and_a_rejected_update_are_exchanges_like_others(begun: Toy) -> None:
    begun.poison("east", lambda h, o, a: wire.pack(h.update(o, a, base="ab" * 32)))
    refuse = Refusal(code="round-limit")
    begun.poison("west", lambda h, o, a: wire.pack(h.offer(o, Kind.REFUSAL, refuse, None, answers=a)))
    begun.poison("south", lambda h, o, a: wire.pack(h.update(o, a)))
    begun.run()
    for name in begun.names:
        found = reconcile(*ledgers(begun.folder, name))
        assert (found.problems, found.pending, found.replies) == ([], [], 4)
    assert verify(begun.folder / "toy" / "ledger").ok


def test_a_hospital_that_refused_a_study_which_it_never_approved_is_honest_though_nobody_says_whose_the_orders_are(
    toy: Callable[..., Toy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "aggregator.rounds.take_leave", lambda *_: None
    )  # it takes no leave of a study that it did not enter
    world = toy(rounds=1)
    north, agreement = world.hospitals[SILO], world.study.agreement
    hub, refuse = Verifier.parse(agreement.coordinator_key), Refusal(code="study-not-approved")
    north._channels[agreement.study] = Channel(north.ledger, north.signer, hub, agreement.study)
    north.honest = lambda order, asked: north.offer(order, Kind.REFUSAL, refuse, None, answers=asked)
    world.run()
    world.close()
    verdict = verify(world.folder / SILO)
    assert (verdict.problems, verdict.statements, verdict.receipts) == ([], 3, 0)  # its own
    assert reconcile(*ledgers(world.folder)).problems == []


def test_a_hospital_in_two_studies_agrees_with_both_coordinators(toy: Callable[..., Toy]) -> None:
    first = toy(rounds=1)
    first.run()
    first.close()
    second = toy(rounds=1, names=(), min_silos=1)
    for name in first.names:
        shutil.copytree(first.folder / name, second.folder / name)
    second.close()
    again = type(second).open(second.folder)
    again.run()
    again.close()

    for name in first.names:
        assert verify(again.folder / name).problems == []
        for hub in (first, again):
            found = reconcile(hub.folder / "toy" / "ledger", again.folder / name)
            assert (found.problems, found.orders, found.replies) == ([], 3, 3)


def test_several_hospitals_are_reconciled_in_one_reading_of_the_coordinators_ledger(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, names = finished / "toy" / "ledger", ("east", "north", "south", "west")
    expected = [reconcile(hub, finished / name) for name in names]
    opened: list[Path] = []
    monkeypatch.setattr("aggregator.audit.pairs.read", lambda folder: (opened.append(folder), read(folder))[1])
    assert reconcile_each(hub, [finished / name for name in names]) == expected
    assert opened.count(hub) == 1


# What cannot be reconciled


@pytest.mark.parametrize("event", [Event.ORDER_OFFERED, Event.UPDATE_RECEIVED, Event.EXCHANGE_RECEIPT])
def test_what_happens_while_the_ledgers_are_read_is_no_contradiction(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, event: Event
) -> None:
    """The coordinator's ledger is read as it was in the middle of the study, and the hospital's at its end."""
    ledger, silo = ledgers(finished)
    early = tmp_path / "early"
    shutil.copytree(ledger, early)
    opened = read(ledger)
    size = next(record.seq for record in opened.records if record.event == event and record.round in (None, 2)) + 1
    (early / "ledger.jsonl").write_bytes(b"".join(record.line + b"\n" for record in opened.records[:size]))
    head = Checkpoint(opened.head.origin, size, opened.tree.root(size))
    (early / "checkpoint").write_text(head.sign(hub_key(finished)))
    readable = pairs._readable

    def slowly(folder: Path | str) -> Opened:
        if Path(folder) == silo:
            shutil.copytree(ledger, early, dirs_exist_ok=True)
        return readable(folder)

    monkeypatch.setattr(pairs, "_readable", slowly)
    found = reconcile(early, silo)
    assert found.problems == []
    assert found.replies < reconcile(ledger, silo).replies


def test_two_ledgers_that_share_no_study_do_not_agree(finished: Path, toy: Callable[..., Toy]) -> None:
    other = toy()  # of another coordinator; no hospital was ever asked
    other.close()
    with pytest.raises(IntramuralError):
        reconcile(other.folder / "toy" / "ledger", finished / SILO)


def test_a_hospitals_ledger_is_not_taken_for_a_coordinators(finished: Path) -> None:
    hub, silo = ledgers(finished)
    with pytest.raises(LedgerError, match="is no ledger of a study"):
        reconcile(silo, hub)


def test_a_ledger_that_is_not_there_is_named(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="nowhere"):
        reconcile(ledgers(finished)[0], tmp_path / "nowhere")
    verdict = verify(tmp_path / "nowhere")
    assert not verdict.ok
    assert "nowhere" in verdict.problems[0]


# One ledger on its own


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished / SILO, tmp_path / "copied"))


def one_byte(folder: Path) -> None:
    path = folder / "ledger.jsonl"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def one_line_less(folder: Path) -> None:
    path = folder / "ledger.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def half_a_line_more(folder: Path) -> None:
    with (folder / "ledger.jsonl").open("ab") as file:
        file.write(b'{"body":')


def one_document_less(folder: Path) -> None:
    next((folder / "manifests").iterdir()).unlink()


def another_document(folder: Path) -> None:
    next((folder / "manifests").iterdir()).write_bytes(b"{}")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (one_byte, "line"),
        (one_line_less, "missing"),
        (half_a_line_more, "incomplete"),
        (one_document_less, "manifests"),
        (another_document, "manifests"),
        (lambda folder: (folder / "checkpoint").write_bytes(b"nothing"), "checkpoint"),
        (lambda folder: (folder / "checkpoint").unlink(), "checkpoint"),
    ],
    ids=["a byte", "a line", "a half line", "a document", "another document", "a head", "no head"],
)
def test_damage_to_a_ledger_is_found_and_told(copied: Path, damage: Callable[[Path], None], said: str) -> None:
    assert verify(copied).ok
    damage(copied)
    verdict = verify(copied)
    assert not verdict.ok
    assert said in verdict.problems[0]


def test_a_ledger_under_another_key_than_the_enrolled_one_is_found(finished: Path) -> None:
    assert verify(finished / SILO, silo_key().verifier).ok
    assert not verify(finished / SILO, Signer.from_seed(SILO, b"x" * 32).verifier).ok
    assert not verify(finished / SILO, silo_key("south").verifier).ok
