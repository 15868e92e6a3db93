"""What a proof file shows to whoever has nothing else; `proofs` says what that is, and what it is not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aggregator.audit import lines
from aggregator.audit.proofs import Proof
from aggregator.audit.reader import check_statement
from models.canonical import digest
from models.errors import BadSignature, Malformed, ProtocolError
from models.exchange.statement import Statement, receipt_bytes
from models.ledger import Checkpoint, Event, Record, Verifier, verify_inclusion
from models.ledger.vocabulary import explain


@dataclass(frozen=True)
class Shown:
    """One exchange that a proof file shows, with the sender's signature checked.

    Attributes:
        statement: What the sender signed.
        line: Its line in the ledger, from 1.
        time: When that line was written, by its writer's clock.
        receipt: Whether the receiver's signature that it has the statement is there too.
        code: Why the receiver did not use it, if so.
        head: Size and root (hex) of the sender's ledger that came with it, if this party received it.
    """

    statement: Statement
    line: int
    time: str
    receipt: bool
    code: str = ""
    head: tuple[int, str] | None = None

    def as_json(self) -> dict[str, Any]:
        """The exchange as JSON values."""
        more = {"line": self.line, "time": self.time, "receipt": self.receipt, "code": self.code}
        return {**self.statement.values(), "xid": self.statement.xid, **more}


@dataclass(frozen=True)
class Checked:
    """What a proof file shows.

    Attributes:
        party, peer: Whose ledger it is from, and the other one of the exchange.
        of: `pair`: the newest statements of both directions; or one `exchange`.
        study: The study's digest.
        keys: The key (vkey) of each of the two, as far as it is known.
        trusted: Names of those whose key was given; the others' keys are only the file's own word.
        head: The signed head of the party's ledger; None if it is not one.
        sent, received: The exchanges shown, oldest first.
        documents: Digests of the documents that the file holds, all of them named by a line.
        problems: What is wrong; empty if nothing is.
    """

    party: str
    peer: str
    of: str
    study: str
    keys: dict[str, str] = field(default_factory=dict)
    trusted: list[str] = field(default_factory=list)
    head: Checkpoint | None = None
    sent: list[Shown] = field(default_factory=list)
    received: list[Shown] = field(default_factory=list)
    documents: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        head = None if self.head is None else {"size": self.head.size, "root": self.head.root.hex()}
        sides = {side: [item.as_json() for item in getattr(self, side)] for side in ("sent", "received")}
        return {**vars(self), "head": head, **sides, "ok": self.ok}


def check(proof: Proof, keys: Sequence[Verifier] = ()) -> Checked:
    """Check a proof file.

    Args:
        proof: The file.
        keys: Public keys that are known from elsewhere. If any is given, that of the party whose ledger it is
            must be among them. Without one, the file shows only that it agrees with itself.
    """
    given = {key.name: key for key in keys}
    result = Checked(proof.verifier.name, proof.peer, proof.of, proof.study)
    if proof.of == "model":
        result.problems.append("it shows no exchange but where a model comes from: give the release's folder")
    head = signed_head(proof, given, result.problems)
    if head is None:
        return result
    own = proof.verifier
    result = Checked(own.name, proof.peer, proof.of, proof.study, head=head, problems=result.problems)
    records = included(proof, head, result.problems)
    peer = _peer(proof, records, given, result.problems)
    result.keys.update({key.name: key.vkey for key in (own, peer) if key})
    result.trusted.extend(sorted(given.keys() & result.keys.keys()))
    _read(proof, records, own, peer, result)
    if proof.farewell is not None and peer is not None:
        try:
            Checkpoint.open(proof.farewell, peer)
        except ProtocolError as error:
            result.problems.append(f"the farewell of {peer.name}: {error}")
    named = {name for record in records for name in lines.documents(record)}
    result.documents.extend(digest(content) for content in proof.documents)
    result.problems.extend(f"no line names the document {x[:16]}" for x in result.documents if x not in named)
    return result


def signed_head(proof: Proof, given: Mapping[str, Verifier], problems: list[str]) -> Checkpoint | None:
    """The head of the ledger that a file is from, if its party signed it; `problems` says what is wrong.

    Args:
        proof: The file.
        given: Keys that are known from elsewhere, by name; if there are any, the party's must be among them.
        problems: What is wrong is added here.
    """
    own = given.get(proof.verifier.name, proof.verifier)
    if own != proof.verifier:
        problems.append(f"it is signed with another key than the one given for {own.name}")
        return None
    if given and own.name not in given:
        problems.append(f"no key was given for {own.name}, whose ledger it is from")
    try:
        return Checkpoint.open(proof.head, own)
    except ProtocolError as error:
        problems.append(f"the head: {error}")
        return None


def included(proof: Proof, head: Checkpoint, problems: list[str]) -> list[Record]:
    """The lines that are in the ledger under this head, and say what they must."""
    good, last = [], -1
    for record, path in ((line.record, line.proof) for line in proof.lines):
        problem = explain(record)
        if not verify_inclusion(record.leaf, record.seq, head.size, path, head.root):
            problem = "is not in the ledger that was signed"
        elif record.study != proof.study or record.seq <= last:
            problem = "is of another study, or stands in another place"
        if problem:
            problems.append(f"line {record.seq + 1}: {problem}")
        else:
            good.append(record)
        last = record.seq
    return good


def _peer(proof: Proof, records: Sequence[Record], given: dict[str, Verifier], problems: list[str]) -> Verifier | None:
    """The other party's key: as the ledger has it, and as it is known from elsewhere."""
    try:
        named = lines.peers(records).get((proof.study, proof.peer))
    except Malformed as error:
        problems.append(str(error))
        return None
    known = given.get(proof.peer, named)
    if named not in (None, known):
        problems.append(f"the ledger names another key of {proof.peer} than the one given")
    return known


def _read(proof: Proof, records: Sequence[Record], own: Verifier, peer: Verifier | None, result: Checked) -> None:
    """Check every signature, and sort the statements into those sent and those received."""
    keys = {key.name: key for key in (own, peer) if key}
    receipts = {r.body["xid"]: r for r in records if r.event == Event.EXCHANGE_RECEIPT}
    for record in records:
        if "statement" not in record.body:
            continue
        statement = lines.statement(record)
        try:
            if {statement.src, statement.dst} != {own.name, proof.peer}:
                raise Malformed("is between other parties")
            if statement.src not in keys:
                raise BadSignature(f"nobody says which key {statement.src} has; give it")
            check_statement(statement, record, own, keys)
            receipt = receipts.pop(statement.xid, None) if lines.is_offer(record) else None
            if receipt is not None:
                if peer is None:
                    raise BadSignature(f"nobody says which key {proof.peer} has; give it")
                peer.verify(receipt_bytes(statement.xid), bytes.fromhex(receipt.body["receipt"]))
        except ProtocolError as error:
            result.problems.append(f"line {record.seq + 1}: {error}")
            continue
        body, mine = record.body, lines.is_offer(record)
        (result.sent if mine else result.received).append(
            Shown(
                statement=statement,
                line=record.seq + 1,
                time=record.ts,
                receipt=receipt is not None or not mine,
                code=body.get("code", ""),
                head=None if mine else (body["size"], body["root"]),
            )
        )
    result.problems.extend(f"line {r.seq + 1}: is the receipt of nothing that is shown" for r in receipts.values())
    for before, after in zip(result.sent, result.sent[1:], strict=False):
        if (after.statement.n, after.statement.prev) != (before.statement.n + 1, before.statement.xid):
            result.problems.append(f"line {after.line}: does not continue the statement before it")
    if not (result.sent or result.received or result.problems):
        result.problems.append("it shows no exchange")
