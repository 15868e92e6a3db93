"""What one ledger proves on its own."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aggregator.audit.course import Course
from aggregator.audit.proofs import Proof
from aggregator.audit.reader import Reader
from models.errors import BadSignature, IntramuralError, LedgerError, Rewritten
from models.ledger import Checkpoint, Event, Opened, Verifier, cosigners, read, read_partings
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
    unread: bool = False
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """The verdict as JSON values, without the xids: a ledger may have very many."""
        return {**{name: value for name, value in vars(self).items() if name != "acknowledged"}, "ok": self.ok}


def verify(folder: Path | str, verifier: Verifier | None = None, seen: Sequence[Proof] = ()) -> Verdict:
    """Check one ledger: its lines, every word and signature in them, and the documents they name.

    Args:
        folder: The ledger's folder.
        verifier: The key it must be signed with; by default the key that it names itself, which shows
            only that nobody without that key changed it.
        seen: Proof files from elsewhere: of those made from this ledger it must continue the heads.
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
    course = [] if problems else list(_course(opened))  # of a line that cannot be read, nothing follows
    reader = Reader(opened)
    for step in (reader.learn, reader.check):
        for record in readable:
            try:
                step(record)
            except IntramuralError as error:
                problems.append(f"line {record.seq + 1}: {error}")
    problems += [*course, *_parted(opened, reader.keys), *_left(opened, seen)]
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
        problems=problems,
    )


def _left(opened: Opened, seen: Sequence[Proof]) -> Iterator[str]:
    """Heads of this ledger that were seen elsewhere, and that it does not continue."""
    for proof in seen:
        if proof.verifier != opened.verifier:
            continue
        try:
            head = Checkpoint.open(proof.head, opened.verifier)
        except IntramuralError as error:
            yield f"the head of a proof file: {error}"
            continue
        if head.origin == opened.head.origin and (
            head.size > opened.head.size or opened.tree.root(head.size) != head.root
        ):
            yield f"a proof file shows {head.size} lines of this ledger that are not those that are here"


def _course(opened: Opened) -> Iterator[str]:
    """How the lines of a coordinator contradict each other on what became of which model."""
    courses: dict[str | None, Course] = {}
    for record in opened.records:
        try:
            if record.event == Event.STUDY_CREATED:
                courses[record.study] = Course(opened, record)
            elif record.study in courses:
                yield from (f"line {record.seq + 1}: {what}" for what in courses[record.study].follow(record))
        except IntramuralError:
            continue  # a document is not what the line says, as whoever reads the line itself says


def _parted(opened: Opened, keys: Mapping[str | None, Mapping[str, Verifier]]) -> list[str]:
    """What is wrong with the heads that were exchanged at the end of studies, or with this ledger beside them."""
    try:
        partings = read_partings(opened.folder)
    except IntramuralError as error:
        return [str(error)]
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
