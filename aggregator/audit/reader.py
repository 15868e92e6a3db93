"""What the lines of one ledger must be, each by itself and after those before it.

Every signature in a line holds; the statements of one direction between two parties are numbered and chained, with as
many missing as the line says; and what a line tells of a document, or of this ledger's past, is so.
"""

import json
from collections import ChainMap
from collections.abc import Mapping
from typing import Any

from aggregator.audit import lines
from aggregator.audit.course import read_document
from models.canonical import canonical, digest
from models.errors import BadSignature, Malformed, Replayed
from models.exchange.statement import GENESIS, Statement, receipt_bytes, signing_bytes
from models.ledger import Checkpoint, Event, Opened, Record, Verifier

_NOTHING = (Event.REFUSAL_OFFERED, Event.CLOSING_OFFERED)  # what is said to a coordinator whom nobody approved

_TOLD: Mapping[Event, tuple[str, ...]] = {
    Event.UPDATE_OFFERED: ("base",),
    Event.UPDATE_RECEIVED: ("base", "digest", "weight", "work", "metrics", "evaluated"),
    Event.REPORT_RECEIVED: ("metrics", "evaluated"),
    Event.REFUSAL_RECEIVED: ("code",),
}
"""What a line repeats of the document that its statement names."""

_POLICY = (Event.LOG_OPENED, Event.POLICY_CHANGED)
_AGREED: Mapping[Event, Mapping[str, str]] = {
    Event.STUDY_CREATED: {"name": "name", "model": "initial"},
    Event.STUDY_APPROVED: {
        "name": "name",
        "purpose": "purpose",
        "recipient": "coordinator",
        "recipient_key": "coordinator_key",
    },
}
"""What a line repeats of the agreement that it names, and how it is called there, or in its plan."""

_DECIDED = {Event.STUDY_APPROVED: "approve", Event.STUDY_REVOKED: "revoke"}


class Reader:
    """Goes through the lines of one ledger twice: first whose key is whose, then what each of them says.

    Attributes:
        keys: Keys of the other parties by study and name, as far as the ledger names them.
        statements: How many statements' signatures were checked.
        receipts: How many countersignatures of the other side were.
        acknowledged: xids of the statements, sent or received, whose receiver's signature was.
    """

    def __init__(self, opened: Opened) -> None:
        self.keys: dict[str | None, dict[str, Verifier]] = {}
        self.statements, self.receipts, self.acknowledged = 0, 0, set[str]()
        self._opened, self._own = opened, opened.verifier
        self._trusting: set[str | None] = set()  # studies in which more was said than that nothing is
        self._sent: dict[str, str] = {}  # to whom, by xid
        self._newest: dict[tuple[str, str, str], Statement] = {}  # by study, sender and receiver
        self._kept: set[str] = set()  # documents that are there, each read once
        self._policy = ""  # digest of this hospital's, as the newest line of it says

    def learn(self, record: Record) -> None:
        """Take in whose key a line names.

        Raises:
            Malformed: It is no key of that name.
        """
        if lines.is_offer(record) and record.event not in _NOTHING:
            self._trusting.add(record.study)
        if key := lines.named_key(record):
            self.keys.setdefault(record.study, {})[key.name] = key

    def check(self, record: Record) -> None:
        """Check a line, once all were learnt from.

        Raises:
            ProtocolError: It is not what it says.
            LedgerError: A document that it names is not there.
        """
        keys = ChainMap({self._own.name: self._own}, self.keys.get(record.study, {}))
        if record.event == Event.EXCHANGE_RECEIPT:
            self._check_receipt(record, keys)
        elif "statement" in record.body:
            self._check_statement(record, keys)
        if "policy" in record.body and record.event in _POLICY:
            self._policy = digest(canonical(record.body["policy"]))
        for name in lines.documents(record):
            if record.event in _TOLD:
                _require_told(record, self._opened.manifest(name))
            elif name not in self._kept:
                self._opened.manifest(name)
            self._kept.add(name)
        if record.event in _AGREED:
            self._check_agreement(record)
        if "decision" in record.body:
            decision = read_document(self._opened, record.body["decision"])
            if (decision.get("action"), decision.get("study")) != (_DECIDED[record.event], record.study):
                raise Malformed("the decision that it names is another one")

    def _check_agreement(self, record: Record) -> None:
        """See that a line tells of a study what its agreement says, and that the policy is this hospital's."""
        body = record.body
        agreement = read_document(self._opened, body["agreement"])
        plan = agreement.get("plan")
        if body["agreement"] != record.study or not isinstance(plan, dict):
            raise Malformed("its agreement is of another study")
        for name, said in _AGREED[record.event].items():
            if body[name] != {**agreement, **plan}.get(said):
                raise Malformed(f"its {name} is not the one in the agreement that it names")
        if body.get("policy", self._policy) != self._policy:
            raise Malformed("its policy is not the one that the lines before it say")

    def _check_receipt(self, record: Record, keys: Mapping[str, Verifier]) -> None:
        xid = record.body["xid"]
        if xid not in self._sent:
            raise BadSignature("the receipt is of nothing that was sent from here")
        addressee = keys.get(self._sent[xid])
        if addressee is None:
            self._require_stranger(record, self._sent[xid])
            return
        addressee.verify(receipt_bytes(xid), bytes.fromhex(record.body["receipt"]))
        self.receipts += 1
        self.acknowledged.add(xid)

    def _check_statement(self, record: Record, keys: Mapping[str, Verifier]) -> None:
        statement = lines.statement(record)
        if lines.is_offer(record):
            self._sent[statement.xid] = statement.dst
        self._follow(record, statement)
        if statement.src not in keys and record.event == Event.ORDER_RECEIVED:
            _require_placed(statement, record, self._own)
            self._require_stranger(record, statement.src)
            return
        check_statement(statement, record, self._own, keys)
        self.statements += 1
        if not lines.is_offer(record):
            self.acknowledged.add(statement.xid)
            self._check_cosignature(record, keys[statement.src])

    def _require_stranger(self, record: Record, name: str) -> None:
        """Let a coordinator's key be unknown in a study that nobody approved, so that it was told nothing."""
        if record.study in self.keys or record.study in self._trusting:
            raise BadSignature(f"nobody says which key {name} has")

    def _follow(self, record: Record, statement: Statement) -> None:
        """See that a statement comes once, and after those before it."""
        direction = statement.study, statement.src, statement.dst
        before, missed = self._newest.get(direction), record.body.get("missed", 0)
        n, xid = (before.n, before.xid) if before else (0, GENESIS)
        self._newest[direction] = statement
        if statement.n != n + missed + 1:
            what = f"statement {statement.n} of {statement.src} to {statement.dst} comes after number {n}"
            raise Replayed(f"{what}, and {missed} are said to be missing between them")
        if not missed and statement.prev != xid:
            what = f"statement {statement.n} of {statement.src} to {statement.dst}"
            raise Replayed(f"{what} does not name the one before it")

    def _check_cosignature(self, record: Record, witness: Verifier) -> None:
        """See that the other side saw the past that this ledger has."""
        body, opened = record.body, self._opened
        if "cosignature" not in body:
            return
        seen = body["seen"]
        if seen > record.seq:
            raise BadSignature(f"{witness.name} cannot have seen {seen} lines of this ledger then")
        past = Checkpoint(opened.head.origin, seen, opened.tree.root(seen))
        try:
            past.verify_cosignature(witness, bytes.fromhex(body["cosignature"]))
        except BadSignature as error:
            raise BadSignature(f"{witness.name} cosigned another past than these {seen} lines") from error


def check_statement(statement: Statement, record: Record, own: Verifier, keys: Mapping[str, Verifier]) -> None:
    """Check the line of a statement: who may have said it here, and that they did.

    Args:
        statement: The statement in it.
        record: The line.
        own: Key of the party whose ledger it is in.
        keys: Keys of the parties of its study, by name.

    Raises:
        BadSignature: Somebody else signed it, something else was signed, or nobody says which key its sender has.
        Malformed: It is no statement of this party and this study, or the line tells something else of it.
    """
    _require_placed(statement, record, own)
    body = record.body
    if statement.src not in keys:
        raise BadSignature(f"nobody says which key {statement.src} has")
    keys[statement.src].verify(signing_bytes(statement.xid), bytes.fromhex(body["signature"]))
    if lines.is_offer(record):
        return
    own.verify(receipt_bytes(statement.xid), bytes.fromhex(body["receipt"]))
    head = Checkpoint.open(body["head"], keys[statement.src])
    if (head.size, head.root.hex()) != (body["size"], body["root"]):
        raise BadSignature(f"the head is not the one that {statement.src} signed")


def _require_placed(statement: Statement, record: Record, own: Verifier) -> None:
    """See that a statement is in the line that it belongs in."""
    owner = statement.src if lines.is_offer(record) else statement.dst
    if statement.study != record.study or owner != own.name:
        raise Malformed("the statement is of another study or of other parties than the line")
    # What is rejected stands in the round in which it came, whatever it claims.
    if statement.round != record.round and record.event != Event.REPLY_REJECTED:
        raise Malformed(f"the statement is of round {statement.round}, the line of round {record.round}")
    if record.body.get("digest", statement.payload) != statement.payload:
        raise Malformed("the line names other arrays than the statement")


def _require_told(record: Record, document: bytes) -> None:
    """Let a line pass that repeats a document as it is."""
    try:
        told = _told(json.loads(document))
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError):
        raise Malformed("the document that the line names is not of its kind") from None
    for name in _TOLD[record.event]:
        if record.body.get(name) != told[name]:
            raise Malformed(f"its {name} is not the one in the document that it names")


def _told(said: dict[str, Any]) -> dict[str, Any]:
    """What a manifest or a refusal says, in the words of a line."""
    metrics, evaluated = said.get("metrics") or None, _middle(said.get("evaluated"))
    measured = metrics is not None and evaluated is not None
    return {
        **{name: said.get(name) for name in ("base", "digest", "work", "code")},
        "weight": _middle(said.get("examples")),
        "metrics": metrics if measured else None,
        "evaluated": evaluated if measured else None,
    }


def _middle(band: dict[str, Any] | None) -> float | None:
    """The middle of a band of how many."""
    return None if band is None else (band["low"] + band["high"]) / 2
