"""What one ledger proves on its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aggregator.audit import lines
from aggregator.audit.lines import Peer
from models.errors import BadSignature, IntramuralError, LedgerError, Malformed, Rewritten
from models.exchange.statement import Statement, receipt_bytes, signing_bytes
from models.ledger import Checkpoint, Event, Opened, Record, Verifier, cosigners, read, read_partings
from models.ledger.vocabulary import explain


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
        unread: Whether no ledger is there, or none that can be read, so that nothing was checked.
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
    unread: bool = False
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """The verdict as JSON values."""
        return {**vars(self), "ok": self.ok}


def verify(folder: Path | str, verifier: Verifier | None = None) -> Verdict:
    """Check one ledger: its lines, every word and signature in them, and the documents they name.

    Args:
        folder: The ledger's folder.
        verifier: The key it must be signed with; by default the key that it names itself, which shows
            only that nobody without that key changed it.
    """
    folder = Path(folder)
    try:
        opened = read(folder, verifier)
    except (IntramuralError, OSError) as error:
        problem = "; ".join(filter(None, (str(error), getattr(error, "hint", ""))))
        unread = isinstance(error, LedgerError | OSError) and not isinstance(error, Rewritten)
        return Verdict(str(folder), verifier.name if verifier else "?", unread=unread, problems=[problem])
    problems = [f"line {record.seq + 1}: {what}" for record in opened.records if (what := explain(record))]
    readable = [record for record in opened.records if not explain(record)] if problems else opened.records
    peers: dict[Peer, Verifier] = {}
    for record in readable:
        try:
            if key := lines.named_key(record):
                peers[record.study, key.name] = key
        except IntramuralError as error:
            problems.append(f"line {record.seq + 1}: {error}")
    statements, receipts = 0, 0
    kept: set[str] = set()  # documents that are there, each read once
    sent: dict[str, str] = {}  # to whom, by xid
    for record in readable:
        try:
            found = _check(record, opened, peers, sent)
            for name in set(lines.documents(record)) - kept:
                opened.manifest(name)
                kept.add(name)
        except IntramuralError as error:
            problems.append(f"line {record.seq + 1}: {error}")
            continue
        statements += found[0]
        receipts += found[1]
    problems += _parted(opened, peers)
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


def _parted(opened: Opened, peers: Mapping[Peer, Verifier]) -> list[str]:
    """What is wrong with the heads that were exchanged at the end of studies, or with this ledger beside them."""
    try:
        partings = read_partings(opened.folder)
    except IntramuralError as error:
        return [str(error)]
    problems = []
    for parting in partings:
        what = f"the farewell of {parting.peer}"
        key = peers.get((parting.study, parting.peer))
        if key is None:  # as with statements: nobody vouched for the key of such a study's coordinator
            continue
        try:
            Checkpoint.open(parting.theirs, key)
            ours = Checkpoint.open(parting.ours, opened.verifier)
            if key.name not in cosigners(parting.ours, [key]):
                raise BadSignature(f"is not cosigned by {key.name}")
        except IntramuralError as error:
            problems.append(f"{what}: {error}")
            continue
        if ours.size > opened.head.size or opened.tree.root(ours.size) != ours.root:
            problems.append(f"{what}: cosigns {ours.size} lines, and they are not those that are here")
    return problems


def _check(record: Record, opened: Opened, peers: Mapping[Peer, Verifier], sent: dict[str, str]) -> tuple[int, int]:
    """Check the signatures of one line, and note what it sends; how many statements and receipts there were."""
    own, body = opened.verifier, record.body
    keys = {name: verifier for (study, name), verifier in peers.items() if study == record.study}
    keys[own.name] = own
    if record.event == Event.EXCHANGE_RECEIPT:
        if keys.keys() == {own.name}:  # as with statements: nobody vouched for the key of such a study's coordinator
            return 0, 0
        _check_receipt(body, keys, sent)
        return 0, 1
    if "statement" not in body:
        return 0, 0
    statement = check_statement(record, own, keys)
    if statement is None:
        return 0, 0
    if lines.is_offer(record):
        sent[statement.xid] = statement.dst
    return 1, 0


def check_statement(record: Record, own: Verifier, keys: Mapping[str, Verifier]) -> Statement | None:
    """Check the line of a statement: who may have said it here, and that they did.

    Args:
        record: The line.
        own: Key of the party whose ledger it is in.
        keys: Keys of the parties of its study, by name.

    Returns:
        The statement; None if its signatures could not be checked. Of a study that was never approved here
        they cannot: nobody vouched for its coordinator's key.

    Raises:
        BadSignature: Somebody else signed it, or something else was signed.
        Malformed: It is no statement of this party and this study.
    """
    statement, body = lines.statement(record), record.body
    owner = statement.src if lines.is_offer(record) else statement.dst
    if statement.study != record.study or owner != own.name:
        raise Malformed("the statement is of another study or of other parties than the line")
    if statement.src not in keys:
        return None
    keys[statement.src].verify(signing_bytes(statement.xid), bytes.fromhex(body["signature"]))
    if lines.is_offer(record):
        return statement
    own.verify(receipt_bytes(statement.xid), bytes.fromhex(body["receipt"]))
    head = Checkpoint.open(body["head"], keys[statement.src])
    if (head.size, head.root.hex()) != (body["size"], body["root"]):
        raise BadSignature(f"the head is not the one that {statement.src} signed")
    return statement


def _check_receipt(body: Mapping[str, Any], keys: Mapping[str, Verifier], sent: Mapping[str, str]) -> None:
    addressee = keys.get(sent.get(body["xid"], ""))
    if addressee is None:
        raise BadSignature("the receipt is of nothing that was sent from here")
    addressee.verify(receipt_bytes(body["xid"]), bytes.fromhex(body["receipt"]))


def ledger_folder(path: Path) -> Path:
    """The ledger itself, given it or the folder it lies in."""
    inner = path / "ledger"
    return inner if inner.is_dir() else path
