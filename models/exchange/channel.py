"""The exchange between two parties in one study, as one of them keeps it.

A channel sends and receives envelopes, and its only memory is the ledger: what was offered, received
and countersigned is read back from there, so a killed process goes on where it was. The order of work
is always the same. Sending: write the line, then hand out the envelope. Receiving: `verify`, which
changes nothing; then `accept` or `reject`, which write the line; only then may the content be used.

At the end of a study each side shows the other its last head once more (`farewell`, `part`), so that not
even the last line can be dropped unseen.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.canonical import canonical, digest
from models.errors import BadSignature, DigestMismatch, Malformed, Replayed, Rewritten, SpecMismatch
from models.exchange.documents import Document
from models.exchange.encoding import Encoding
from models.exchange.spec import Spec, Vector, tensor_digests, update_digest, vector_digest
from models.exchange.statement import (
    GENESIS,
    Envelope,
    Evidence,
    Kind,
    Statement,
    arrays_nbytes,
    receipt_bytes,
    signing_bytes,
)
from models.exchange.witness import Testimony, head_size
from models.ledger import (
    Checkpoint,
    Entry,
    Event,
    Ledger,
    Record,
    Signer,
    Verifier,
    add_cosignatures,
    verify_consistency,
)

_SHOWN = 2048  # heads that the other side may have seen without our knowing


def _both_ends(sizes: list[int]) -> list[int]:
    """Who went away saw one of the first heads; whose answers got lost saw one of the last."""
    return sizes if len(sizes) <= _SHOWN else [*sizes[: _SHOWN // 2], *sizes[-_SHOWN // 2 :]]


def _digests(spec: str | Spec, vector: Vector) -> tuple[str, tuple[str, ...]]:
    """Of a model, by its layout's digest; or of an update, and then of each of its arrays too."""
    if isinstance(spec, str):
        return vector_digest(spec, vector), ()
    tensors = tensor_digests(spec, vector)
    return update_digest(spec, tensors), tensors


@dataclass(frozen=True)
class Received:
    """A verified message, not yet written down.

    Attributes:
        statement: What its sender signed.
        envelope: The message itself.
        head: The sender's ledger head.
        missed: Statements of the sender that never arrived here.
        again: Whether its line is in the ledger already; such a message is not accepted a second time.
        tensors: Of an update, SHA-256 of each array as it came; the signed digest is made of these.
    """

    statement: Statement
    envelope: Envelope
    head: Checkpoint
    missed: int
    again: bool = False
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Draft:
    """What is about to be offered, signed and not yet written down; see `Channel.draft`."""

    channel: "Channel"
    statement: Statement
    signature: bytes
    body: bytes
    vector: Vector | None
    encoding: Encoding | None
    testimony: Testimony
    facts: Mapping[str, Any]


def offer(drafts: Sequence[Draft]) -> list[Envelope]:
    """Write down what is about to leave, to one party or to several, then hand it out.

    What goes out together shows one and the same head of the ledger.

    Args:
        drafts: At least one, of different channels over one ledger.

    Raises:
        NotAppended: The lines are not durable; nothing may be sent.
    """
    ledger = drafts[0].channel.ledger
    for body in {draft.body for draft in drafts}:
        ledger.store(body)
    size = ledger.head.size + len(drafts)
    entries = []
    for draft in drafts:
        statement = draft.statement
        line = {"statement": statement.values(), "signature": draft.signature.hex(), "size": size, **draft.facts}
        entries.append(Entry(Event(f"{statement.kind}.offered"), line, statement.study, statement.round))
    for draft, record in zip(drafts, ledger.append(*entries), strict=True):
        draft.channel.learn(record, draft.statement)
    return [draft.channel.envelope(draft) for draft in drafts]


class Channel:
    """One party's side of a pair in one study.

    Args:
        ledger: This party's ledger, open for appending.
        signer: This party's key.
        peer: The other party's public key; its name is the other party's name.
        study: The study's digest.
    """

    def __init__(self, ledger: Ledger, signer: Signer, peer: Verifier, study: str) -> None:
        self.ledger, self._signer, self.peer, self.study = ledger, signer, peer, study
        self.sent: list[str] = []  # xids, oldest first
        self.sizes: list[int] = []  # of our head that went with each
        self.received: list[str] = []
        self._numbers: dict[int, str] = {}  # xid by number, of what was received
        self._receipted: set[str] = set()
        self._heads: dict[int, bytes] = {}  # the peer's heads seen here, root by size
        self._note = ""  # the newest of them, as the peer signed it
        self._seen_by_peer = 0  # size of our head that the peer saw last, by its own word
        self._shown: list[int] = []  # sizes of the heads that went with what was offered since
        for record in ledger.records:
            if record.study == study:
                self.learn(record)

    def draft(
        self,
        kind: Kind,
        round_: int,
        document: Document,
        *,
        spec: str | Spec | None = None,
        vector: Vector | None = None,
        encoding: Encoding | None = None,
        payload: str | None = None,
        answers: str | None = None,
        testimony: Testimony | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Draft:
        """Sign what is to leave next. Writes nothing; `offer` does.

        Args:
            kind: What it is.
            round_: The study's round.
            document: Order, manifest, survey, refusal or closing; kept beside the ledger by its digest.
            spec: The layout of an update's `vector`; of a model's, the layout's digest is enough.
            vector: Arrays that travel, 1-D float32.
            encoding: How they are told, if not as they are; they are rounded already.
            payload: Their digest, from whoever has it already: a large model takes a while to hash. Without
                arrays it is not used.
            answers: xid of the order that this replies to.
            testimony: What witnesses have seen of this party's ledger.
            facts: More for this party's own ledger line; does not travel.
        """
        body = document.encode()
        if (spec is None) != (vector is None):
            raise SpecMismatch("arrays travel with their layout, or neither does")
        payload = None if spec is None or vector is None else payload or _digests(spec, vector)[0]
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
            nbytes=len(body) + arrays_nbytes(vector, encoding),
        )
        signature = self._signer.sign(signing_bytes(statement.xid))
        return Draft(self, statement, signature, body, vector, encoding, testimony or Testimony(), facts or {})

    def offer(self, kind: Kind, round_: int, document: Document, **more: Any) -> Envelope:
        """Write down what is about to leave, then hand it out; see `draft` for the arguments.

        Raises:
            NotAppended: The line is not durable; nothing may be sent.
        """
        return offer([self.draft(kind, round_, document, **more)])[0]

    def envelope(self, draft: Draft) -> Envelope:
        """What travels of a draft whose line is written."""
        evidence = self._evidence(draft.testimony)
        statement = draft.statement.encode()
        return Envelope(statement, draft.signature, draft.body, evidence, draft.vector, draft.encoding)

    def verify(self, envelope: Envelope, spec: str | Spec | None, *, again: bool = False) -> Received:
        """Check a message against the sender's key and past. Writes nothing.

        Args:
            envelope: What arrived.
            spec: The layout that an update's arrays must have; of a model, the layout's digest is enough; None if no
                arrays may come.
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
        tensors: tuple[str, ...] = ()
        if envelope.vector is None or spec is None:
            if envelope.vector is not None or statement.payload is not None:
                raise DigestMismatch("arrays and statement do not belong together", detail="payload")
        else:
            found, tensors = _digests(spec, envelope.vector)
            if found != statement.payload:
                raise DigestMismatch("the arrays are not those that were signed", detail="payload")
        if statement.nbytes != envelope.nbytes:
            raise DigestMismatch("the size is not the one that was signed", detail="size")
        head = self._check_evidence(envelope.evidence)
        return Received(statement, envelope, head, max(missed, 0), missed < 0, tensors)

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

    def against(self, envelope: Envelope) -> bytes:
        """What shows that the peer's past is not the one it signed before: both as it signed them, to be kept.

        Args:
            envelope: The message that `verify` called rewritten.
        """
        return canonical(
            {
                "v": 1,
                "statement": Statement.decode(envelope.statement).values(),
                "signature": envelope.signature.hex(),
                "head": envelope.evidence.note,
                "before": self._note,
            }
        )

    def farewell(self) -> Evidence:
        """The last head, and the last receipt, at the end of a study; nothing is left to be written down."""
        return self._evidence(Testimony())

    def part(self, evidence: Evidence) -> None:
        """Keep, beside the ledger, the other side's last head and its signature under this one's.

        Kept with them is the head that this side shows in a `farewell` now, so that it can prove it later.

        Raises:
            BadSignature: Something in it is not the peer's.
            Rewritten: The peer's ledger is not a continuation of the one seen before.
            Malformed: The peer saw nothing of this ledger.
            NotAppended: It could not be kept.
        """
        head = self._check_evidence(evidence)
        if not evidence.cosignature:
            raise Malformed(f"{self.peer.name} does not sign what it saw", detail="cosignature")
        own = self._own_head(evidence.seen).sign(self._signer)
        cosigned = add_cosignatures(own, [(self.peer, evidence.cosignature)])
        self.ledger.part(self.study, self.peer.name, theirs=evidence.note, ours=cosigned, shown=self.ledger.note)
        self._heads[head.size], self._note = head.root, evidence.note

    def _write(self, received: Received, event: Event, round_: int, facts: Mapping[str, Any]) -> None:
        statement, evidence = received.statement, received.envelope.evidence
        entries = []
        if evidence.receipt and evidence.receipt[0] not in self._receipted:
            xid, signature = evidence.receipt
            entries.append(Entry(Event.EXCHANGE_RECEIPT, {"xid": xid, "receipt": signature.hex()}, self.study))
        self.ledger.store(received.envelope.body)
        body = {
            "statement": statement.values(),
            "signature": received.envelope.signature.hex(),
            "receipt": self._signer.sign(receipt_bytes(statement.xid)).hex(),
            "head": evidence.note,
            "size": received.head.size,
            "root": received.head.root.hex(),
            "seen": evidence.seen,
            "missed": received.missed,
            **({"cosignature": evidence.cosignature.hex()} if evidence.cosignature else {}),
            **facts,
        }
        entries.append(Entry(event, body, study=self.study, round=round_))
        for record in self.ledger.append(*entries):
            self.learn(record, statement)

    def learn(self, record: Record, known: Statement | None = None) -> None:
        """Take one line of the ledger into memory; new lines and old ones go the same way.

        Args:
            record: The line.
            known: The statement in it, if it was read already.
        """
        body = record.body
        if record.event == Event.EXCHANGE_RECEIPT and body["xid"] in self.sent:
            self._receipted.add(body["xid"])
        raw = body.get("statement")
        if raw is None or self.peer.name not in (raw["src"], raw["dst"]):
            return
        statement = known or Statement.parse(raw)
        if statement.dst == self.peer.name:
            self.sent.append(statement.xid)
            self.sizes.append(body["size"])
            self._shown = _both_ends([*self._shown, body["size"]])
            return
        self.received.append(statement.xid)
        self._numbers[statement.n] = statement.xid
        self._heads[body["size"]] = bytes.fromhex(body["root"])
        self._note = body["head"]
        self._seen_by_peer = max(self._seen_by_peer, body["seen"])
        self._shown = [size for size in self._shown if size > self._seen_by_peer]

    def _evidence(self, testimony: Testimony) -> Evidence:
        receipt = None
        if self.received:
            newest = self.received[-1]
            receipt = (newest, self._signer.sign(receipt_bytes(newest)))
        size, tree = self.ledger.head.size, self.ledger.tree
        earlier = dict.fromkeys([self._seen_by_peer, *self._shown, *map(head_size, testimony.heads)])
        proofs = {old: tuple(tree.consistency(old, size)) for old in earlier if 0 < old <= size}
        seen, cosignature = max(self._heads, default=0), b""
        if seen:
            origin = self._note.partition("\n")[0]
            cosignature = Checkpoint(origin, seen, self._heads[seen]).cosign(self._signer, int(time.time()))
        encoded = testimony.encoded if testimony.roster else b""
        return Evidence(receipt, self.ledger.note, proofs, seen, cosignature, encoded)

    def _own_head(self, size: int) -> Checkpoint:
        return Checkpoint(self.ledger.head.origin, size, self.ledger.tree.root(size))

    def _check_evidence(self, evidence: Evidence) -> Checkpoint:
        if evidence.seen > (size := self.ledger.head.size):  # first: of what is lost it may have a receipt, too
            hint = "this ledger was restored from a backup, or the other side errs; keep both as they are"
            raise Rewritten(f"{self.peer.name} saw {evidence.seen} lines of this ledger, which has {size}", hint)
        if evidence.receipt:
            xid, signature = evidence.receipt
            if xid not in self.sent:
                raise BadSignature(f"{self.peer.name} gives a receipt for a statement never sent", detail="receipt")
            self.peer.verify(receipt_bytes(xid), signature)
        if evidence.cosignature:
            try:
                self._own_head(evidence.seen).verify_cosignature(self.peer, evidence.cosignature)
            except BadSignature as error:
                raise BadSignature(f"{self.peer.name} cosigned another past", detail="cosignature") from error
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
