"""What one ledger proves on its own."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aggregator.audit.course import check_course
from aggregator.audit.proofs import Proof
from aggregator.audit.reader import Reader
from models.errors import BadSignature, IntramuralError, LedgerError, Rewritten
from models.ledger import Checkpoint, Opened, Verifier, cosigners, read, read_partings
from models.ledger.reading import Parting
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
        acknowledged: xids of the statements, sent or received, whose receiver's signature was checked.
        unsigned: Lines after the signed head: a writer at work, or a crash.
        continues: Of the heads that were seen elsewhere, those that it continues.
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
    acknowledged: frozenset[str] = frozenset()
    unsigned: int = 0
    continues: frozenset[str] = frozenset()
    unread: bool = False
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """The verdict as JSON values, without the xids: a ledger may have very many."""
        told = {name: value for name, value in vars(self).items() if name != "acknowledged"}
        return {**told, "continues": sorted(self.continues), "ok": self.ok}


def verify(folder: Path | str, verifier: Verifier | None = None, seen: Sequence[Proof] = ()) -> Verdict:
    """Check one ledger: its lines, every word and signature in them, and the documents they name.

    Args:
        folder: The ledger's folder.
        verifier: The key it must be signed with; by default the key that it names itself, which shows
            only that nobody without that key changed it.
        seen: Proof files from elsewhere, whose heads it may continue.
    """
    folder = Path(folder)
    partings, unreadable = [], []
    try:
        partings = read_partings(folder)  # first: while a study ends, they tell of lines that were there before them
    except IntramuralError as error:
        unreadable = [str(error)]
    try:
        opened = read(folder, verifier)
    except (IntramuralError, OSError) as error:
        problem = "; ".join(filter(None, (str(error), getattr(error, "hint", ""))))
        unread = isinstance(error, LedgerError | OSError) and not isinstance(error, Rewritten)
        return Verdict(str(folder), verifier.name if verifier else "?", unread=unread, problems=[problem])
    problems = [f"line {record.seq + 1}: {what}" for record in opened.records if (what := explain(record))]
    readable = [record for record in opened.records if not explain(record)] if problems else opened.records
    course = [] if problems else list(check_course(opened))  # of a line that cannot be read, nothing follows
    reader = Reader(opened)
    for step in (reader.learn, reader.check):
        for record in readable:
            try:
                step(record)
            except IntramuralError as error:
                problems.append(f"line {record.seq + 1}: {error}")
    problems += [*course, *unreadable, *_parted(opened, partings, reader.keys)]
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
        statements=reader.statements,
        receipts=reader.receipts,
        acknowledged=frozenset(reader.acknowledged),
        unsigned=opened.unsigned,
        continues=_continued(opened, seen),
        problems=problems,
    )


def _continued(opened: Opened, seen: Sequence[Proof]) -> frozenset[str]:
    """The heads of proof files that this ledger continues."""
    found = set()
    for proof in seen:
        if proof.verifier == opened.verifier:
            with suppress(IntramuralError):  # a head that its party did not sign is continued by nothing
                head = Checkpoint.open(proof.head, opened.verifier)
                if head.size <= opened.head.size and opened.tree.root(head.size) == head.root:
                    found.add(proof.head)
    return frozenset(found)


def _parted(
    opened: Opened, partings: Sequence[Parting], keys: Mapping[str | None, Mapping[str, Verifier]]
) -> list[str]:
    """What is wrong with the heads that were exchanged at the end of studies, or with this ledger beside them."""
    problems = []
    for parting in partings:
        what = f"the farewell of {parting.peer}"
        key = keys.get(parting.study, {}).get(parting.peer)
        try:
            if key is None:
                raise BadSignature(f"nobody says which key {parting.peer} has")
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


def ledger_folder(path: Path) -> Path:
    """The ledger itself, given it or the folder it lies in."""
    inner = path / "ledger"
    return inner if inner.is_dir() else path
