"""The exchange between two parties in one study, as one of them keeps it.

A channel sends and receives envelopes, and its only memory is the ledger: what was offered, received
and countersigned is read back from there, so a killed process goes on where it was. The order of work
is always the same. Sending: write the line, then hand out the envelope. Receiving: `verify`, which
changes nothing; then `accept` or `reject`, which write the line; only then may the content be used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.errors import BadSignature, DigestMismatch, Malformed, Replayed, Rewritten, SpecMismatch
from models.exchange.documents import Document
from models.exchange.spec import Vector, vector_digest
from models.exchange.statement import (
    GENESIS,
    Envelope,
    Evidence,
    Kind,
    Statement,
    receipt_bytes,
    signing_bytes,
)
from models.ledger import Checkpoint, Entry, Event, Ledger, Record, Signer, Verifier, verify_consistency
from models.ledger.canonical import digest

_SHOWN = 64  # heads that the other side may have seen without our knowing


def _both_ends(sizes: list[int]) -> list[int]:
    """Who went away saw one of the first heads; whose answers got lost saw one of the last."""
    return sizes if len(sizes) <= _SHOWN else [*sizes[: _SHOWN // 2], *sizes[-_SHOWN // 2 :]]


@dataclass(frozen=True)
class Received:
    """A verified message, not yet written down.

    Attributes:
        statement: What its sender signed.
        envelope: The message itself.
        head: The sender's ledger head.
        missed: Statements of the sender that never arrived here.
        again: Whether its line is in the ledger already; such a message is not accepted a second time.
    """

    statement: Statement
    envelope: Envelope
    head: Checkpoint
    missed: int
    again: bool = False


class Channel:
    """One party's side of a pair in one study.

    Args:
        ledger: This party's ledger, open for appending.
        signer: This party's key.
        peer: The other party's public key; its name is the other party's name.
        study: The study's digest.
    """

    def __init__(self, ledger: Ledger, signer: Signer, peer: Verifier, study: str) -> None:
        self._ledger, self._signer, self.peer, self.study = ledger, signer, peer, study
        self.sent: list[str] = []  # xids, oldest first
        self.received: list[str] = []
        self._numbers: dict[int, str] = {}  # xid by number, of what was received
        self._receipted: set[str] = set()
        self._heads: dict[int, bytes] = {}  # the peer's heads seen here, root by size
        self._seen_by_peer = 0  # size of our head that the peer saw last, by its own word
        self._shown: list[int] = []  # sizes of the heads that went with what was offered since
        for record in ledger.records:
            if record.study == study:
                self._replay(record)

    def offer(
        self,
        kind: Kind,
        round_: int,
        document: Document,
        *,
        spec: str | None = None,
        vector: Vector | None = None,
        answers: str | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Envelope:
        """Write down what is about to leave, then hand it out.

        Args:
            kind: What it is.
            round_: The study's round.
            document: Order, manifest, refusal or closing; kept beside the ledger by its digest.
            spec: Digest of the layout of `vector`.
            vector: Arrays that travel, 1-D float32.
            answers: xid of the order that this replies to.
            facts: More for this party's own ledger line; does not travel.

        Raises:
            NotAppended: The line is not durable; nothing may be sent.
        """
        body = document.encode()
        if (spec is None) != (vector is None):
            raise SpecMismatch("arrays travel with their layout, or neither does")
        payload = vector_digest(spec, vector) if spec is not None and vector is not None else None
        statement = Statement(
            study=self.study,
            round=round_,
            kind=kind,
            src=self._signer.name,
            dst=self.peer.name,
            n=len(self.sent) + 1,
            prev=self.sent[-1] if self.sent else GENESIS,
            answers=answers,
            body=digest(body),
            payload=payload,
            nbytes=len(body) + (0 if vector is None else vector.nbytes),
        )
        xid = statement.xid
        signature = self._signer.sign(signing_bytes(xid))
        self._ledger.store(body)
        line = {"statement": statement.values(), "signature": signature.hex(), **(facts or {})}
        self._append(Entry(Event(f"{kind}.offered"), line, study=self.study, round=round_))
        return Envelope(statement.encode(), signature, body, self._evidence(), vector)

    def verify(self, envelope: Envelope, spec: str | None, *, again: bool = False) -> Received:
        """Check a message against the sender's key and past. Writes nothing.

        Args:
            envelope: What arrived.
            spec: Digest of the layout that its arrays must have; None if none may come.
            again: Let the newest message of all pass although it was received before: whoever was at work
                on it was killed, and begins anew.

        Raises:
            Malformed: Not a statement of this study between these two.
            BadSignature: Not signed by the peer's key.
            Replayed: Seen before, or not the continuation of the peer's chain.
            DigestMismatch: Document or arrays are not those that were signed.
            Rewritten: The peer's ledger is not a continuation of the one seen before.
        """
        statement = Statement.decode(envelope.statement)
        xid = statement.xid
        self.peer.verify(signing_bytes(xid), envelope.signature)
        if (statement.src, statement.dst) != (self.peer.name, self._signer.name):
            raise Malformed(f"is not from {self.peer.name} to {self._signer.name}", detail="address")
        if statement.study != self.study:
            raise Malformed("belongs to another study", detail="study")
        newest = max(self._numbers, default=0)
        if self._numbers.get(statement.n, xid) != xid:
            raise Rewritten(f"{self.peer.name} signed another statement {statement.n} before")
        if statement.n <= newest and not (again and statement.n == newest):
            raise Replayed(f"statement {statement.n} of {self.peer.name} was received before, or comes too late")
        missed = statement.n - newest - 1  # -1: it is the newest one itself
        if missed == 0 and statement.prev != self._numbers.get(newest, GENESIS):
            raise Replayed(f"statement {statement.n} of {self.peer.name} does not follow the one before it")
        if digest(envelope.body) != statement.body:
            raise DigestMismatch("the document is not the one that was signed", detail="document")
        if envelope.vector is None or spec is None:
            if envelope.vector is not None or statement.payload is not None:
                raise DigestMismatch("arrays and statement do not belong together", detail="payload")
        elif vector_digest(spec, envelope.vector) != statement.payload:
            raise DigestMismatch("the arrays are not those that were signed", detail="payload")
        if statement.nbytes != envelope.nbytes:
            raise DigestMismatch("the size is not the one that was signed", detail="size")
        head = self._check_evidence(envelope.evidence)
        return Received(statement, envelope, head, max(missed, 0), again=missed < 0)

    def accept(self, received: Received, facts: Mapping[str, Any] | None = None) -> None:
        """Write down that a message was received; after this its content may be used.

        Raises:
            NotAppended: The line is not durable; the content may not be used.
        """
        assert not received.again, "its line is there already"
        statement = received.statement
        self._write(received, Event(f"{statement.kind}.received"), statement.round, facts or {})

    def reject(self, received: Received, code: str, round_: int | None = None) -> None:
        """Write down that a reply was received, and why it is not used.

        Args:
            received: The reply.
            code: The reason.
            round_: The round it came in, whatever it claims; by default the one it claims.
        """
        round_ = received.statement.round if round_ is None else round_
        self._write(received, Event.REPLY_REJECTED, round_, {"code": code})

    def _write(self, received: Received, event: Event, round_: int, facts: Mapping[str, Any]) -> None:
        statement, evidence = received.statement, received.envelope.evidence
        entries = []
        if evidence.receipt and evidence.receipt[0] not in self._receipted:
            xid, signature = evidence.receipt
            entries.append(Entry(Event.EXCHANGE_RECEIPT, {"xid": xid, "receipt": signature.hex()}, self.study))
        self._ledger.store(received.envelope.body)
        body = {
            "statement": statement.values(),
            "signature": received.envelope.signature.hex(),
            "receipt": self._signer.sign(receipt_bytes(statement.xid)).hex(),
            "head": evidence.note,
            "size": received.head.size,
            "root": received.head.root.hex(),
            "seen": evidence.seen,
            "missed": received.missed,
            **facts,
        }
        entries.append(Entry(event, body, study=self.study, round=round_))
        self._append(*entries)

    def _append(self, *entries: Entry) -> None:
        for record in self._ledger.append(*entries):
            self._replay(record)

    def _replay(self, record: Record) -> None:
        """Take one line of the ledger into memory; new lines and old ones go the same way."""
        body = record.body
        if record.event == Event.EXCHANGE_RECEIPT and body["xid"] in self.sent:
            self._receipted.add(body["xid"])
        raw = body.get("statement")
        if raw is None or self.peer.name not in (raw["src"], raw["dst"]):
            return
        statement = Statement.parse(raw)
        if statement.dst == self.peer.name:
            self.sent.append(statement.xid)
            self._shown = _both_ends([*self._shown, record.seq + 1])
            return
        self.received.append(statement.xid)
        self._numbers[statement.n] = statement.xid
        self._heads[body["size"]] = bytes.fromhex(body["root"])
        self._seen_by_peer = max(self._seen_by_peer, body["seen"])
        self._shown = [size for size in self._shown if size > self._seen_by_peer]

    def _evidence(self) -> Evidence:
        receipt = None
        if self.received:
            newest = self.received[-1]
            receipt = (newest, self._signer.sign(receipt_bytes(newest)))
        size = self._ledger.head.size
        earlier = [old for old in (self._seen_by_peer, *self._shown) if 0 < old <= size]
        proofs = {old: tuple(self._ledger.tree.consistency(old, size)) for old in earlier}
        return Evidence(receipt, self._ledger.note, proofs, max(self._heads, default=0))

    def _check_evidence(self, evidence: Evidence) -> Checkpoint:
        if evidence.receipt:
            xid, signature = evidence.receipt
            if xid not in self.sent:
                raise BadSignature(f"{self.peer.name} gives a receipt for a statement never sent", detail="receipt")
            self.peer.verify(receipt_bytes(xid), signature)
        head = Checkpoint.open(evidence.note, self.peer)
        newest = max(self._heads, default=0)
        if head.size < newest or self._heads.get(head.size, head.root) != head.root:
            raise Rewritten(f"the ledger of {self.peer.name} is not the one it signed before")
        if newest:
            proof = list(evidence.proofs.get(newest, ()))
            if newest not in evidence.proofs or not verify_consistency(
                newest, head.size, self._heads[newest], head.root, proof
            ):
                raise Rewritten(f"{self.peer.name} does not prove that its ledger continues the one seen here")
        return head
