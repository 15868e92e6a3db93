"""What the ledgers prove: one on its own, and two against each other. Reads only.

`verify` checks one ledger against its signed head and every statement in it against its signatures.
`reconcile` takes the aggregator's ledger and a hospital's and compares, statement by statement, what
each says was exchanged: equal, still unacknowledged, or contradicting. It needs neither torch nor Flower
nor any private key.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.errors import BadSignature, IntramuralError, LedgerError, Malformed
from models.exchange.statement import Statement, receipt_bytes, signing_bytes
from models.ledger import Checkpoint, Event, Opened, Record, Verifier, read

_Peer = tuple[str | None, str]  # study and name
_NAMING = {Event.SILO_ENROLLED: ("name", "vkey"), Event.STUDY_APPROVED: ("recipient", "recipient_key")}
_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError)  # of a line that its writer filled as it liked


@dataclass(frozen=True)
class Verdict:
    """What one ledger proves on its own.

    Attributes:
        folder: Where it lies.
        name: Who wrote it, by its own first line.
        vkey: With which key.
        size: Signed lines.
        root: Root of their tree (hex).
        first, last: Time of the first and last line.
        statements: Statements whose signatures were checked.
        receipts: Countersignatures of the other side that were checked.
        unsigned: Lines after the signed head: a writer at work, or a crash.
        problems: What is wrong; empty if nothing is.
    """

    folder: str
    name: str
    vkey: str = ""
    size: int = 0
    root: str = ""
    first: str = ""
    last: str = ""
    statements: int = 0
    receipts: int = 0
    unsigned: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


@dataclass(frozen=True)
class Reconciliation:
    """What two ledgers prove together about one study.

    Attributes:
        study: The study's digest.
        aggregator, silo: The two parties.
        orders, replies: Statements in each direction that both ledgers hold.
        pending: xids that were offered and never acknowledged.
        newest: xid of the newest agreed statement of each direction.
        closed: Whether the silo's last word has arrived.
        problems: Contradictions; empty if the two agree.
    """

    study: str
    aggregator: str
    silo: str
    orders: int
    replies: int
    pending: list[str]
    newest: dict[str, str | None]
    closed: bool
    problems: list[str]

    @property
    def ok(self) -> bool:
        """Whether the two ledgers agree."""
        return not self.problems


def verify(folder: Path | str, verifier: Verifier | None = None) -> Verdict:
    """Check one ledger.

    Args:
        folder: The ledger's folder.
        verifier: The key it must be signed with; by default the key that it names itself, which shows
            only that nobody without that key changed it.
    """
    folder = Path(folder)
    try:
        opened = read(folder, verifier)
    except (IntramuralError, OSError) as error:
        return Verdict(str(folder), verifier.name if verifier else "?", problems=[str(error)])
    peers = _peers(opened)
    statements, receipts, problems = 0, 0, []
    for record in opened.records:
        try:
            found = _check_record(record, opened, peers)
            for name in _documents(record):
                opened.manifest(name)
        except IntramuralError as error:
            problems.append(f"line {record.seq + 1}: {error}")
            continue
        except _UNREADABLE:
            problems.append(f"line {record.seq + 1}: {record.event} does not say what it must")
            continue
        statements += found[0]
        receipts += found[1]
    if opened.incomplete:
        problems.append("the last line is incomplete")
    return Verdict(
        folder=str(folder),
        name=opened.verifier.name,
        vkey=opened.verifier.vkey,
        size=opened.head.size,
        root=opened.head.root.hex(),
        first=opened.records[0].ts,
        last=opened.records[-1].ts,
        statements=statements,
        receipts=receipts,
        unsigned=opened.unsigned,
        problems=problems,
    )


def reconcile(aggregator: Path | str, silo: Path | str) -> Reconciliation:
    """Compare what the aggregator and one silo say of their exchange.

    The silo's key is the one that the aggregator enrolled, the aggregator's the one that stands in the
    agreement the silo approved, so neither ledger is believed about its own key.

    Args:
        aggregator: The study's ledger folder.
        silo: The hospital's ledger folder.

    Raises:
        LedgerError: One of the two is not what was signed.
        BadSignature: One of the two is signed with another key than the other side knows.
    """
    try:
        return _reconcile(aggregator, silo)
    except _UNREADABLE as error:
        raise LedgerError("a line does not say what it must", "verify both ledgers; it names the line") from error


def _reconcile(aggregator: Path | str, silo: Path | str) -> Reconciliation:
    theirs = read(aggregator)
    created = next((r for r in theirs.records if r.event == Event.STUDY_CREATED), None)
    if created is None or created.study is None:
        raise LedgerError(f"{aggregator}: is no ledger of a study", "give the ledger folder in the study's folder")
    study = created.study
    ours = read(silo)
    name = ours.verifier.name
    enrolled = {r.body["name"]: r.body["vkey"] for r in theirs.records if r.event == Event.SILO_ENROLLED}
    if enrolled.get(name, ours.verifier.vkey) != ours.verifier.vkey:
        raise BadSignature(f"{silo}: is not signed with the key that was enrolled for {name}")
    known = _peers(ours).get((study, theirs.verifier.name), theirs.verifier)
    if known != theirs.verifier:
        raise BadSignature(f"{aggregator}: is not signed with the key that {name} approved")

    sent, got = _offered(theirs, study, name), _received(ours, study)
    answered, taken = _offered(ours, study, theirs.verifier.name), _received(theirs, study, name)
    problems: list[str] = []
    if name not in enrolled and not (got or answered):
        raise LedgerError(f"{silo}: {name} took no part in the study of {aggregator}", "give the ledgers of one study")
    if name not in enrolled:
        problems.append(f"{name} took part, but the aggregator's ledger never enrolled it")
    for what, offered, received, keys in (
        ("order", sent, got, theirs.verifier),
        ("reply", answered, taken, ours.verifier),
    ):
        problems += _contradictions(what, offered, received, keys)
    problems += _rewritten(theirs, _heads(ours, study, theirs.verifier.name))
    problems += _rewritten(ours, _heads(theirs, study, name))
    agreed_orders, agreed_replies = [x for x in sent if x in got], [x for x in answered if x in taken]
    return Reconciliation(
        study=study,
        aggregator=theirs.verifier.name,
        silo=name,
        orders=len(agreed_orders),
        replies=len(agreed_replies),
        pending=[x for x in sent if x not in got] + [x for x in answered if x not in taken],
        newest={
            "order": agreed_orders[-1] if agreed_orders else None,
            "reply": agreed_replies[-1] if agreed_replies else None,
        },
        closed=any(
            _statement(r).xid in taken for r in ours.records if r.event == Event.CLOSING_OFFERED and r.study == study
        ),
        problems=problems,
    )


def _check_record(record: Record, opened: Opened, peers: Mapping[_Peer, Verifier]) -> tuple[int, int]:
    """Check the signatures of one line; how many statements and receipts there were."""
    body = record.body
    keys = {name: verifier for (study, name), verifier in peers.items() if study == record.study}
    keys[opened.verifier.name] = opened.verifier
    if record.event in _NAMING:
        Verifier.parse(body[_NAMING[record.event][1]])
    if record.event == Event.EXCHANGE_RECEIPT:
        signature = bytes.fromhex(body["receipt"])
        for verifier in keys.values():
            try:
                verifier.verify(receipt_bytes(body["xid"]), signature)
            except BadSignature:
                continue
            return 0, 1
        raise BadSignature("the receipt is not signed by any party of this ledger")
    if "statement" not in body:
        return 0, 0
    statement = _statement(record)
    if statement.src not in keys:
        return 0, 0  # of a study that was never approved here: nobody vouched for its coordinator's key
    keys[statement.src].verify(signing_bytes(statement.xid), bytes.fromhex(body["signature"]))
    if "receipt" in body and statement.dst in keys:
        keys[statement.dst].verify(receipt_bytes(statement.xid), bytes.fromhex(body["receipt"]))
    if "head" in body:
        head = Checkpoint.open(body["head"], keys[statement.src])
        if (head.size, head.root.hex()) != (body["size"], body["root"]):
            raise BadSignature(f"the head is not the one that {statement.src} signed")
    return 1, 0


def _peers(opened: Opened) -> dict[_Peer, Verifier]:
    """The other parties' keys, by study and name, as far as this ledger names them.

    A coordinator of the same name has another key in another study.
    """
    keys = {}
    for record in opened.records:
        if record.event in _NAMING:
            name, key = _NAMING[record.event]
            with contextlib.suppress(Malformed, *_UNREADABLE):  # told where the line is checked
                keys[record.study, record.body[name]] = Verifier.parse(record.body[key])
    return keys


def _statement(record: Record) -> Statement:
    return Statement.model_validate(record.body["statement"])


def _documents(record: Record) -> list[str]:
    body = record.body
    names = [body["statement"]["body"]] if "statement" in body else []
    return [*names, *([body["agreement"]] if "agreement" in body else [])]


def _offered(opened: Opened, study: str, to: str) -> dict[str, Record]:
    """Statements that this party sent to another in a study, by xid, oldest first."""
    return {
        _statement(r).xid: r
        for r in opened.records
        if r.study == study and r.event.endswith(".offered") and r.body["statement"]["dst"] == to
    }


def _received(opened: Opened, study: str, source: str | None = None) -> dict[str, Record]:
    """Statements that this party received in a study, used or not, by xid, oldest first."""
    return {
        _statement(r).xid: r
        for r in opened.records
        if r.study == study
        and "receipt" in r.body
        and "statement" in r.body
        and source in (None, r.body["statement"]["src"])
    }


def _contradictions(
    what: str, offered: Mapping[str, Record], received: Mapping[str, Record], sender: Verifier
) -> list[str]:
    problems = [
        f"{what} {xid[:16]} was received, but the sender's ledger does not have it"
        for xid in received
        if xid not in offered
    ]
    for xid, record in [*offered.items(), *received.items()]:
        try:
            sender.verify(signing_bytes(xid), bytes.fromhex(record.body["signature"]))
        except BadSignature as error:
            problems.append(f"{what} {xid[:16]}: {error}")
    numbers = [r.body["statement"]["n"] for r in offered.values()]
    if numbers != list(range(1, len(numbers) + 1)):
        problems.append(f"the sender's {what} statements are not numbered without a gap")
    previous = "0" * 64
    for xid, record in offered.items():
        if record.body["statement"]["prev"] != previous:
            problems.append(f"{what} {xid[:16]} does not name the one before it")
        previous = xid
    return problems


def _heads(opened: Opened, study: str, source: str) -> list[tuple[int, str]]:
    """The other side's ledger heads that this party saw: size and root (hex)."""
    return [
        (r.body["size"], r.body["root"])
        for r in opened.records
        if r.study == study and "root" in r.body and r.body["statement"]["src"] == source
    ]


def _rewritten(opened: Opened, heads: Sequence[tuple[int, str]]) -> list[str]:
    """Whether a ledger still has every head that the other side saw of it."""
    problems = []
    for size, root in heads:
        if size > opened.head.size:
            problems.append(
                f"{opened.verifier.name}'s ledger ends at line {opened.head.size}, but had {size} lines before"
            )
        elif opened.tree.root(size).hex() != root:
            problems.append(f"{opened.verifier.name}'s ledger was rewritten in its first {size} lines")
    return problems[:1]


def as_json(verdict: Verdict | Reconciliation) -> dict[str, Any]:
    """A result as JSON values."""
    return {**vars(verdict), "ok": verdict.ok}
