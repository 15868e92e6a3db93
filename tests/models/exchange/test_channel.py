"""Two parties exchange; each keeps its own ledger, checks the other's past, and believes nothing."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.canonical import digest
from models.errors import (
    BadSignature,
    DigestMismatch,
    IntramuralError,
    Malformed,
    NotAppended,
    Replayed,
    Rewritten,
    SpecMismatch,
)
from models.exchange import wire
from models.exchange.channel import Channel
from models.exchange.documents import Refusal
from models.exchange.spec import Spec, Vector, vector_digest
from models.exchange.statement import GENESIS, Envelope, Kind, Statement, receipt_bytes, signing_bytes
from models.ledger import Checkpoint, Entry, Event, Ledger, Signer, Verifier, read, sign_note

STUDY = "ab" * 32
SPEC = Spec.of({"bias": (2,), "weight": (2, 2)})
VECTOR: Vector = np.arange(6, dtype=np.float32)
WORD = Refusal(code="internal")


@dataclass
class Party:
    """One side: its key, its ledger and its channel to the other."""

    signer: Signer
    folder: Path
    peer: Verifier
    ledger: Ledger
    channel: Channel

    @classmethod
    def start(cls, folder: Path, signer: Signer, peer: Verifier, study: str = STUDY) -> "Party":
        ledger = Ledger.create(folder, signer) if not folder.exists() else Ledger.open(folder, signer)
        return cls(signer, folder, peer, ledger, Channel(ledger, signer, peer, study))

    def reopen(self) -> "Party":
        self.ledger.close()
        return Party.start(self.folder, self.signer, self.peer)

    def say(self, kind: Kind = Kind.REFUSAL, vector: Vector | None = None, **more: Any) -> Envelope:
        spec = None if vector is None else SPEC.digest
        return self.channel.offer(kind, 1, WORD, spec=spec, vector=vector, **more)

    def hear(self, envelope: Envelope) -> int:
        """Verify and accept; how many messages before it were lost."""
        received = self.channel.verify(envelope, None if envelope.vector is None else SPEC.digest)
        self.channel.accept(received)
        return received.missed


HUB_KEY, NORTH_KEY = Signer.from_seed("hub", b"h" * 32), Signer.from_seed("north", b"n" * 32)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """That lines are durable is proven with the ledger's own tests; here it would only take time."""
    for call in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, call, lambda number: None)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Party]:
    party = Party.start(tmp_path / "hub", HUB_KEY, NORTH_KEY.verifier)
    yield party
    party.ledger.close()


@pytest.fixture
def north(tmp_path: Path) -> Iterator[Party]:
    party = Party.start(tmp_path / "north", NORTH_KEY, HUB_KEY.verifier)
    yield party
    party.ledger.close()


def talk(hub: Party, north: Party, rounds: int = 1) -> None:
    """Honest rounds: an order with a model, an update back."""
    for _ in range(rounds):
        assert north.hear(hub.say(Kind.ORDER, VECTOR)) == 0
        assert hub.hear(north.say(Kind.UPDATE, -VECTOR, answers=north.channel.received[-1])) == 0


def events(party: Party) -> list[str]:
    return [record.event.value for record in party.ledger.records]


def sign(envelope: Envelope, signer: Signer, **changes: Any) -> Envelope:
    """The envelope with another statement, signed anew by whoever has the key."""
    statement = replace(Statement.decode(envelope.statement), **changes)
    signature = signer.sign(signing_bytes(statement.xid))
    return replace(envelope, statement=statement.encode(), signature=signature)


# What is sent and received


def test_what_one_side_sends_the_other_reads(hub: Party, north: Party) -> None:
    received = north.channel.verify(hub.say(Kind.ORDER, VECTOR), SPEC.digest)
    statement = received.statement
    assert (statement.src, statement.dst, statement.study, statement.round) == ("hub", "north", STUDY, 1)
    assert (statement.kind, statement.n, statement.prev, statement.answers) == (Kind.ORDER, 1, GENESIS, None)
    assert statement.body == digest(WORD.encode())
    assert statement.payload == vector_digest(SPEC.digest, VECTOR)
    assert statement.nbytes == len(WORD.encode()) + VECTOR.nbytes
    assert received.missed == 0


def test_statements_are_numbered_and_chained_in_each_direction(hub: Party, north: Party) -> None:
    talk(hub, north, rounds=3)
    for party in (hub, north):
        statements = [
            Statement.parse(record.body["statement"])
            for record in party.ledger.records
            if record.event.endswith(".offered")
        ]
        assert [statement.n for statement in statements] == [1, 2, 3]
        assert [statement.prev for statement in statements] == [GENESIS, *[s.xid for s in statements[:2]]]
    assert hub.channel.sent == north.channel.received
    assert north.channel.sent == hub.channel.received


def test_both_ledgers_hold_the_same_statement_signed_and_countersigned(hub: Party, north: Party) -> None:
    talk(hub, north)
    offered = next(r for r in north.ledger.records if r.event == Event.UPDATE_OFFERED)
    received = next(r for r in hub.ledger.records if r.event == Event.UPDATE_RECEIVED)

    assert offered.body["statement"] == received.body["statement"]
    assert offered.body["signature"] == received.body["signature"]
    xid = Statement.parse(received.body["statement"]).xid
    HUB_KEY.verifier.verify(receipt_bytes(xid), bytes.fromhex(received.body["receipt"]))
    head = Checkpoint.open(received.body["head"], NORTH_KEY.verifier)
    assert (head.size, head.root.hex()) == (received.body["size"], received.body["root"])
    assert hub.ledger.manifest(received.body["statement"]["body"]) == WORD.encode()


def test_the_receipt_of_a_message_comes_with_the_answer_and_is_written_down_once(hub: Party, north: Party) -> None:
    talk(hub, north, rounds=3)
    for party, key, count in ((hub, NORTH_KEY, 3), (north, HUB_KEY, 2)):
        receipts = [r.body for r in party.ledger.records if r.event == Event.EXCHANGE_RECEIPT]
        assert [body["xid"] for body in receipts] == party.channel.sent[:count]
        for body in receipts:
            key.verifier.verify(receipt_bytes(body["xid"]), bytes.fromhex(body["receipt"]))


@pytest.mark.parametrize(("spec", "vector"), [(SPEC.digest, None), (None, VECTOR)])
def test_arrays_do_not_travel_without_their_layout(hub: Party, spec: str | None, vector: Vector | None) -> None:
    with pytest.raises(SpecMismatch):
        hub.channel.offer(Kind.ORDER, 1, WORD, spec=spec, vector=vector)
    assert hub.channel.sent == []


def test_facts_stay_in_the_senders_ledger(hub: Party) -> None:
    envelope = hub.say(facts={"base": "secret-word"})
    assert hub.ledger.records[-1].body["base"] == "secret-word"
    assert b"secret-word" not in envelope.statement + envelope.body + envelope.evidence.note.encode()


# Nothing before the ledger line


def test_the_line_is_on_disk_when_the_envelope_is_handed_out(hub: Party) -> None:
    for _ in range(3):
        envelope = hub.say(Kind.ORDER, VECTOR)
        opened = read(hub.folder, HUB_KEY.verifier)
        assert opened.records[-1].event == Event.ORDER_OFFERED
        assert opened.records[-1].body["statement"] == Statement.decode(envelope.statement).values()
        assert opened.note == envelope.evidence.note
        assert opened.manifest(digest(envelope.body)) == envelope.body


def no_disk(*_: object) -> None:
    raise NotAppended("the disk is full")


@pytest.mark.parametrize("method", ["append", "store"])
def test_nothing_is_handed_out_when_the_ledger_cannot_be_written(
    hub: Party, north: Party, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk(hub, north)
    before = list(hub.channel.sent)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, method, no_disk)
        with pytest.raises(NotAppended):
            hub.say(Kind.ORDER, VECTOR)
        assert hub.channel.sent == before
    talk(hub, north)  # what was not written down was not sent: the chain has no gap


@pytest.mark.parametrize("method", ["append", "store"])
def test_nothing_counts_as_received_when_the_ledger_cannot_be_written(
    hub: Party, north: Party, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = north.channel.verify(hub.say(), None)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, method, no_disk)
        with pytest.raises(NotAppended):
            north.channel.accept(received)
        assert north.channel.received == []
    north.channel.accept(received)
    assert north.channel.received == hub.channel.sent


def test_verifying_writes_nothing(hub: Party, north: Party) -> None:
    envelope = hub.say(Kind.ORDER, VECTOR)
    before = (north.folder / "ledger.jsonl").read_bytes()
    north.channel.verify(envelope, SPEC.digest)
    north.channel.verify(envelope, SPEC.digest)
    assert (north.folder / "ledger.jsonl").read_bytes() == before
    assert north.channel.received == []


def test_a_message_that_is_not_used_is_written_down_with_the_reason(hub: Party, north: Party) -> None:
    north.hear(hub.say())
    received = hub.channel.verify(north.say(Kind.UPDATE, VECTOR), SPEC.digest)
    hub.channel.reject(received, "too-large.norm")
    line = hub.ledger.records[-1]
    assert (line.event, line.body["code"]) == (Event.REPLY_REJECTED, "too-large.norm")
    assert line.body["statement"]["src"] == "north"
    assert hub.channel.received == north.channel.sent  # it cannot come again as something else
    talk(hub, north)


# What is refused


def test_a_message_that_was_changed_on_its_way_is_refused(hub: Party, north: Party) -> None:
    envelope = hub.say(Kind.ORDER, VECTOR)
    other = hub.say(Kind.ORDER, VECTOR)
    changes = {
        "statement": (replace(envelope, statement=other.statement), BadSignature),
        "signature": (replace(envelope, signature=other.signature), BadSignature),
        "no signature": (replace(envelope, signature=b""), BadSignature),
        "document": (replace(envelope, body=Refusal(code="data").encode()), DigestMismatch),
        "arrays": (replace(envelope, vector=VECTOR + 1), DigestMismatch),
        "one bit": (replace(envelope, vector=np.nextafter(VECTOR, np.float32(9))), DigestMismatch),
        "no arrays": (replace(envelope, vector=None), DigestMismatch),
        "head": (replace(envelope, evidence=replace(envelope.evidence, note="hub\n1\nAAAA\n")), Malformed),
    }
    for what, (changed, error) in changes.items():
        with pytest.raises(error):
            north.channel.verify(changed, None if changed.vector is None else SPEC.digest)
        assert north.channel.received == [], what
    north.hear(envelope)


def test_arrays_where_none_may_come_are_refused(hub: Party, north: Party) -> None:
    with pytest.raises(DigestMismatch):
        north.channel.verify(hub.say(Kind.ORDER, VECTOR), None)


def test_a_digest_that_the_sender_gave_is_checked_by_who_receives_it(hub: Party, north: Party) -> None:
    known = vector_digest(SPEC.digest, VECTOR)
    north.hear(hub.say(Kind.ORDER, VECTOR, payload=known))
    with pytest.raises(DigestMismatch):
        north.hear(hub.say(Kind.ORDER, VECTOR, payload="ab" * 32))


def test_arrays_of_another_layout_are_refused(hub: Party, north: Party) -> None:
    with pytest.raises(DigestMismatch):
        north.channel.verify(hub.say(Kind.ORDER, VECTOR), Spec.of({"all": (6,)}).digest)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"dst": "south"}, "malformed.address"),
        ({"src": "south"}, "malformed.address"),
        ({"study": "cd" * 32}, "malformed.study"),
        ({"nbytes": 1}, "digest-mismatch.size"),
        ({"payload": "cd" * 32}, "digest-mismatch.payload"),
        ({"payload": None}, "digest-mismatch.payload"),
        ({"body": "cd" * 32}, "digest-mismatch.document"),
        ({"prev": "cd" * 32}, "replayed"),
    ],
    ids=str,
)
def test_a_statement_that_its_own_sender_signed_wrongly_is_refused(
    hub: Party, north: Party, changes: dict[str, Any], code: str
) -> None:
    envelope = sign(hub.say(Kind.ORDER, VECTOR), HUB_KEY, **changes)
    with pytest.raises(IntramuralError) as caught:
        north.channel.verify(envelope, SPEC.digest)
    assert caught.value.wire_code == code


def test_a_message_of_somebody_else_is_refused(hub: Party, north: Party) -> None:
    stranger = Signer.from_seed("hub", b"x" * 32)
    with pytest.raises(BadSignature):
        north.channel.verify(sign(hub.say(), stranger), None)


def test_a_head_that_somebody_else_signed_is_refused(hub: Party, north: Party) -> None:
    envelope = hub.say()
    stranger = Signer.from_seed("hub", b"x" * 32)
    note = Checkpoint("hub", 2, b"r" * 32).sign(stranger)
    with pytest.raises(BadSignature):
        north.channel.verify(replace(envelope, evidence=replace(envelope.evidence, note=note)), None)


def test_a_receipt_for_something_never_sent_is_refused(hub: Party, north: Party) -> None:
    north.hear(hub.say())
    envelope, xid = north.say(), "cd" * 32
    for receipt in ((xid, NORTH_KEY.sign(receipt_bytes(xid))), (hub.channel.sent[0], b"r" * 64)):
        with pytest.raises(BadSignature):
            hub.channel.verify(replace(envelope, evidence=replace(envelope.evidence, receipt=receipt)), None)
    hub.hear(envelope)


def test_a_message_that_comes_twice_is_refused_the_second_time(hub: Party, north: Party) -> None:
    envelope = hub.say(Kind.ORDER, VECTOR)
    north.hear(envelope)
    north.hear(hub.say())
    before = events(north)
    with pytest.raises(Replayed):
        north.channel.verify(envelope, SPEC.digest)
    assert events(north) == before


def test_a_message_overtaken_by_a_later_one_is_refused(hub: Party, north: Party) -> None:
    first, second = hub.say(), hub.say()
    assert north.hear(second) == 1
    with pytest.raises(Replayed):
        north.channel.verify(first, None)


# What gets lost


def test_a_lost_message_is_counted_and_the_exchange_goes_on(hub: Party, north: Party) -> None:
    talk(hub, north)
    hub.say(Kind.ORDER, VECTOR)
    assert north.hear(hub.say(Kind.ORDER, VECTOR)) == 1
    assert north.ledger.records[-1].body["missed"] == 1
    assert hub.hear(north.say()) == 0
    talk(hub, north, rounds=2)


@pytest.mark.parametrize("before", [0, 1, 3], ids=["the first", "the second", "a later"])
def test_a_lost_answer_is_counted_and_the_exchange_goes_on(hub: Party, north: Party, before: int) -> None:
    talk(hub, north, rounds=before)
    north.hear(hub.say(Kind.ORDER, VECTOR))
    north.say(Kind.UPDATE, VECTOR)
    assert north.hear(hub.say(Kind.ORDER, VECTOR)) == 0
    assert hub.hear(north.say(Kind.UPDATE, VECTOR)) == 1
    talk(hub, north, rounds=2)


def test_a_party_that_was_away_for_many_rounds_is_understood_again(hub: Party, north: Party) -> None:
    talk(hub, north)
    for _ in range(150):
        envelope = hub.say()
    assert north.hear(wire.unpack(wire.pack(envelope))) == 149
    assert hub.hear(wire.unpack(wire.pack(north.say()))) == 0
    talk(hub, north)


@pytest.mark.parametrize("restart", [False, True])
def test_a_party_whose_answers_were_lost_before_it_was_away_is_understood_again(
    hub: Party, north: Party, restart: bool
) -> None:
    talk(hub, north)
    for _ in range(80):
        north.hear(hub.say())
        north.say()  # which is lost
    for _ in range(80):
        hub.say()
    hub = hub.reopen() if restart else hub
    assert north.hear(wire.unpack(wire.pack(hub.say()))) == 80
    assert hub.hear(wire.unpack(wire.pack(north.say()))) == 80
    talk(hub, north)


# What survives the death of the process


def test_the_exchange_goes_on_after_both_ledgers_were_closed_and_opened(hub: Party, north: Party) -> None:
    talk(hub, north, rounds=2)
    lost = north.reopen()
    lost.hear(hub.say())
    lost.say()
    again, other = hub.reopen(), lost.reopen()
    try:
        assert again.channel.sent == hub.channel.sent
        assert again.channel.received == hub.channel.received
        assert other.channel.sent == lost.channel.sent
        assert other.channel.received == again.channel.sent
        other.hear(again.say(Kind.ORDER, VECTOR))
        assert again.hear(other.say(Kind.UPDATE, VECTOR)) == 1
        talk(again, other)
    finally:
        again.ledger.close()
        other.ledger.close()


def test_a_replay_is_still_refused_after_a_restart(hub: Party, north: Party) -> None:
    envelope = hub.say()
    north.hear(envelope)
    again = north.reopen()
    try:
        with pytest.raises(Replayed):
            again.channel.verify(envelope, None)
    finally:
        again.ledger.close()


def test_the_newest_message_may_be_read_again_by_who_was_killed_over_it(hub: Party, north: Party) -> None:
    talk(hub, north)
    envelope = hub.say(Kind.ORDER, VECTOR)
    north.hear(envelope)
    for answered in (False, True):
        if answered:
            north.say(Kind.UPDATE, VECTOR, answers=north.channel.received[-1])
        before, killed = events(north), north.reopen()
        received = killed.channel.verify(wire.unpack(wire.pack(envelope)), SPEC.digest, again=True)
        assert (received.again, received.missed) == (True, 0)
        assert received.statement.xid == killed.channel.received[-1]
        assert events(killed) == before
        north.ledger, north.channel = killed.ledger, killed.channel
    assert hub.hear(north.say(Kind.UPDATE, VECTOR, answers=north.channel.received[-1])) == 1
    talk(hub, north)


def test_who_was_killed_before_the_line_receives_the_message_for_the_first_time(hub: Party, north: Party) -> None:
    talk(hub, north)
    received = north.channel.verify(hub.say(Kind.ORDER, VECTOR), SPEC.digest, again=True)
    assert not received.again
    north.channel.accept(received)
    assert events(north)[-1] == Event.ORDER_RECEIVED


def test_a_message_read_again_must_still_be_the_newest_and_the_very_same(hub: Party, north: Party) -> None:
    first, second = hub.say(Kind.ORDER, VECTOR), hub.say(Kind.ORDER, VECTOR)
    north.hear(first)
    north.hear(second)
    with pytest.raises(Replayed):
        north.channel.verify(first, SPEC.digest, again=True)
    with pytest.raises(Rewritten):
        north.channel.verify(sign(second, HUB_KEY, round=2), SPEC.digest, again=True)
    with pytest.raises(BadSignature):
        north.channel.verify(replace(second, signature=first.signature), SPEC.digest, again=True)
    with pytest.raises(DigestMismatch):
        north.channel.verify(replace(second, vector=-VECTOR), SPEC.digest, again=True)
    with pytest.raises(Replayed):
        north.channel.verify(second, SPEC.digest)
    assert north.channel.verify(second, SPEC.digest, again=True).again


def test_two_studies_in_one_ledger_are_numbered_apart(hub: Party, north: Party, tmp_path: Path) -> None:
    talk(hub, north, rounds=2)
    other = Party(
        NORTH_KEY, north.folder, HUB_KEY.verifier, north.ledger,
        Channel(north.ledger, NORTH_KEY, HUB_KEY.verifier, "cd" * 32),
    )  # fmt: skip
    assert other.channel.sent == other.channel.received == []
    assert Statement.decode(other.say().statement).n == 1
    talk(hub, north)


# A peer that changes its past


def restore(party: Party, copy: Path) -> Party:
    """The party after its folder was replaced by a copy."""
    party.ledger.close()
    shutil.rmtree(party.folder)
    shutil.copytree(copy, party.folder)
    return Party.start(party.folder, party.signer, party.peer)


def test_a_peer_that_went_back_to_an_older_copy_of_its_ledger_is_refused(
    hub: Party, north: Party, tmp_path: Path
) -> None:
    talk(hub, north)
    shutil.copytree(north.folder, tmp_path / "copy")
    talk(hub, north, rounds=2)
    old = restore(north, tmp_path / "copy")
    try:
        with pytest.raises(Rewritten):  # it signs another statement 2 than the one that is known
            hub.channel.verify(old.say(), None)
    finally:
        old.ledger.close()


def test_a_peer_that_lost_lines_it_wrote_for_itself_is_refused(hub: Party, north: Party, tmp_path: Path) -> None:
    talk(hub, north)
    shutil.copytree(north.folder, tmp_path / "copy")
    north.ledger.append(*[Entry(Event.POLICY_CHANGED, {"policy": number}) for number in range(5)])
    north.hear(hub.say())
    lost = north.say()  # shows a head of all these lines
    hub.hear(lost)
    old = restore(north, tmp_path / "copy")
    try:
        # Its owner knows how many statements are missing, and numbers the next one as if they were there.
        statement = Statement.decode(lost.statement)
        envelope = sign(old.say(), NORTH_KEY, n=statement.n + 1, prev=statement.xid)
        with pytest.raises(Rewritten):
            hub.channel.verify(envelope, None)
    finally:
        old.ledger.close()


def forge(party: Party, folder: Path, edit: Callable[[int, Entry], Entry | None]) -> Party:
    """The party with a ledger written anew, line by line, under its own key."""
    with Ledger.create(folder, party.signer) as ledger:
        for record in party.ledger.records[1:]:
            if "statement" in record.body:
                ledger.store(party.ledger.manifest(record.body["statement"]["body"]))
            entry = edit(record.seq, Entry(record.event, record.body, record.study, record.round))
            if entry is not None:
                ledger.append(entry)
    return Party.start(folder, party.signer, party.peer)


def test_a_peer_that_wrote_its_ledger_anew_under_its_own_key_is_refused(
    hub: Party, north: Party, tmp_path: Path
) -> None:
    north.ledger.append(Entry(Event.POLICY_CHANGED, {"policy": "strict"}))
    talk(hub, north, rounds=2)

    def relax(_: int, entry: Entry) -> Entry:
        return replace(entry, body={"policy": "lax"}) if entry.event == Event.POLICY_CHANGED else entry

    forged = forge(north, tmp_path / "forged", relax)
    try:
        assert forged.channel.sent == north.channel.sent
        with pytest.raises(Rewritten):
            hub.channel.verify(forged.say(), None)
    finally:
        forged.ledger.close()


def test_a_peer_cannot_prove_only_the_old_part_of_its_past(hub: Party, north: Party, tmp_path: Path) -> None:
    talk(hub, north)
    known = dict(hub.channel._heads)
    north.ledger.append(Entry(Event.POLICY_CHANGED, {"policy": "strict"}))
    talk(hub, north, rounds=2)

    # The lines up to the first head stay as they are; what comes after is written anew.
    copy = tmp_path / "forged"
    shutil.copytree(north.folder, copy)
    lines = (copy / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    size = max(known)
    (copy / "ledger.jsonl").write_bytes(b"".join(lines[:size]))
    note = Checkpoint("north", size, known[size]).sign(NORTH_KEY)
    (copy / "checkpoint").write_text(note)
    with Ledger.open(copy, NORTH_KEY) as ledger:
        for record in north.ledger.records[size:]:
            body = {"policy": "lax"} if record.event == Event.POLICY_CHANGED else dict(record.body)
            if "seen" in body:
                body["seen"] = size  # so that its next proof starts there
            ledger.append(Entry(record.event, body, record.study, record.round))
        forged = Channel(ledger, NORTH_KEY, HUB_KEY.verifier, STUDY)
        assert forged.sent == north.channel.sent
        envelope = forged.offer(Kind.REFUSAL, 1, WORD)
        with pytest.raises(Rewritten):
            hub.channel.verify(envelope, None)


def test_a_peer_that_shows_two_heads_of_one_size_is_refused(hub: Party, north: Party) -> None:
    talk(hub, north)
    size, root = max(hub.channel._heads.items())
    north.hear(hub.say())
    envelope = north.say()
    note = Checkpoint("north", size, b"x" * 32).sign(NORTH_KEY)
    assert root != b"x" * 32
    with pytest.raises(Rewritten):
        hub.channel.verify(replace(envelope, evidence=replace(envelope.evidence, note=note)), None)


def test_a_peer_that_proves_nothing_is_refused(hub: Party, north: Party) -> None:
    talk(hub, north)
    north.hear(hub.say())
    envelope = north.say()
    assert envelope.evidence.proofs
    forged = replace(envelope, evidence=replace(envelope.evidence, proofs={}))
    with pytest.raises(Rewritten):
        hub.channel.verify(forged, None)
    hub.hear(envelope)


ROOT = "A" * 43 + "="


@pytest.mark.parametrize(
    "note",
    [
        sign_note(f"north\n{10**17}\n{ROOT}\n", NORTH_KEY),
        sign_note(f"{'north' * 20_000}\n5\n{ROOT}\n", NORTH_KEY),
        sign_note(f"north\n5\n{ROOT}\n", NORTH_KEY) + "— else AAAAAAAAAAAA\n" * 5000,
    ],
    ids=["too many lines", "too long a name", "too many signatures"],
)
def test_a_head_that_no_ledger_line_could_hold_is_refused_as_malformed(hub: Party, north: Party, note: str) -> None:
    envelope = north.say()
    forged = replace(envelope, evidence=replace(envelope.evidence, note=note))
    with pytest.raises(IntramuralError) as caught:
        hub.channel.verify(wire.unpack(wire.pack(forged)), None)
    assert caught.value.wire_code.partition(".")[0] in {"malformed", "too-large"}
