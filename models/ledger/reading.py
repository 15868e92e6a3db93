"""Reading a ledger: every changed, removed, added or reordered line that its signed head covers is found.

    ledger.jsonl          one line per event, each naming the hash of the line before; only ever appended to
    checkpoint            how many lines there are and the root of their tree, signed (replaced as a whole)
    manifests/<sha>.json  documents that a line names by digest (orders, agreements, manifests, ...), written before it
    parted/<who>.json     what another party signed last in a study that is over: its own head, and this one's

    opened = read(folder, Verifier.parse(vkey))     # raises if one byte of the past has changed

This needs neither a private key nor the writer's lock. What one folder cannot show is that all of it,
checkpoint included, was replaced by an older copy: for that, other parties keep the heads they have seen.
"""

import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from models.canonical import digest, parse
from models.errors import BadSignature, LedgerError, Malformed, Rewritten
from models.ledger.disk import open_regular, read_bounded
from models.ledger.events import MAX_LINE, START, Event, Record, is_digest
from models.ledger.keys import Verifier
from models.ledger.merkle import Tree
from models.ledger.note import Checkpoint

LINES, CHECKPOINT, MANIFESTS, PARTED = "ledger.jsonl", "checkpoint", "manifests", "parted"
MAX_NOTES, MAX_MANIFEST = 2**16, 2**26
"""Bytes of the longest signed heads, and of the longest document, that are read; honest ones are far shorter."""

TAMPERED = "keep the folder as it is, for whoever investigates, and restore a backup elsewhere"
ANOTHER_KEY = (
    "it begins with another key: use that one; or, if the key was replaced, move the folder away and keep it: it is "
    "that key's evidence; if neither is so, the folder was put in the place of another"
)


@dataclass(frozen=True)
class Opened:
    """A ledger that was read and verified.

    Attributes:
        folder: Where it is.
        verifier: The key that its head was checked against.
        records: The lines that the signed head covers; nothing else is evidence.
        pending: Well-formed lines after them, not signed yet: a writer at work, a crash, or somebody
            without the key.
        incomplete: Whether the file ends in the middle of a line.
        head: The signed head.
        note: Its signed text.
        tree: Merkle tree of `records`.
    """

    folder: Path
    verifier: Verifier
    records: Sequence[Record]
    pending: Sequence[Record]
    incomplete: bool
    head: Checkpoint
    note: str
    tree: Tree

    @property
    def unsigned(self) -> int:
        """Number of lines beyond the signed head."""
        return len(self.pending)

    @property
    def signed_bytes(self) -> int:
        """Length of `records` in `ledger.jsonl`."""
        return sum(len(record.line) + 1 for record in self.records)

    def manifest(self, name: str) -> bytes:
        """What was stored under this digest; see `read_manifest`."""
        return read_manifest(self.folder, name)


def read(folder: Path | str, verifier: Verifier | None = None) -> Opened:
    """Verify a ledger, without its private key and without its lock: for auditors.

    Args:
        folder: The ledger's folder.
        verifier: The key that the party was enrolled with. Without it the key that the ledger itself names
            is used, which only shows that the ledger agrees with itself, not whose it is.

    Raises:
        Rewritten: The lines are not those that were signed; the message names the line.
        BadSignature: The head is not signed by that key.
        Malformed: The head, or the key in line 1, cannot be read.
        LedgerError: There is no ledger, or it cannot be read.
    """
    folder = Path(folder)
    path = folder / LINES
    # The checkpoint first: a writer at work can then only have added lines that it does not cover.
    with _told(folder / CHECKPOINT):
        signed = read_bounded(folder / CHECKPOINT, MAX_NOTES)
    with _told(path), open_regular(path) as file, _no_collection():
        lines = iter(partial(file.readline, MAX_LINE + 2), b"")  # more than a line and its end: it has no end
        records, incomplete = _chain(path, lines)
    if not records:
        raise rewritten(path, "line 1 is missing")
    opening = records[0].body
    try:
        verifier = verifier or Verifier.parse(str(opening.get("vkey")))
    except Malformed as error:
        raise Malformed(f"{path}: line 1: {error}", TAMPERED) from error
    try:
        note = signed.decode()
        head = Checkpoint.open(note, verifier)
    except UnicodeDecodeError:
        raise Malformed(f"{folder / CHECKPOINT}: is not UTF-8 text", TAMPERED) from None
    except (BadSignature, Malformed) as error:
        hint = TAMPERED if opening.get("vkey") == verifier.vkey else ANOTHER_KEY
        raise type(error)(f"{folder / CHECKPOINT}: {error}", hint) from error
    if (opening.get("origin"), opening.get("vkey")) != (head.origin, verifier.vkey):
        raise rewritten(path, "line 1 names another origin or key than the signed head")
    covered, pending = records[: head.size], records[head.size :]
    if len(covered) < head.size:
        raise rewritten(path, f"line {len(covered) + 1} is missing; {head.size} were signed")
    tree = Tree()
    for record in covered:
        tree.append(record.leaf)
    if tree.root() != head.root:
        raise rewritten(path, f"lines 1 to {head.size} are not those that were signed")
    return Opened(folder, verifier, covered, pending, incomplete, head, note, tree)


def read_manifest(folder: Path, name: str) -> bytes:
    """A document that a line names by its digest.

    Args:
        folder: The ledger's folder.
        name: SHA-256 of the document, 64 hex digits.

    Raises:
        Malformed: That is no digest.
        LedgerError: It is not kept here.
        Rewritten: The file is no longer what was stored.
    """
    if not is_digest(name):  # a name from another party must not walk through the disk
        raise Malformed(f"manifest {name[:80]!r}: is not a SHA-256 of 64 hex digits")
    path = folder / MANIFESTS / f"{name}.json"
    try:
        content = read_bounded(path, MAX_MANIFEST)
    except OSError as error:
        raise LedgerError(f"{path}: {error.strerror}", "the line that names it still stands") from error
    if digest(content) != name:
        raise rewritten(path, "is not what was stored under this name")
    return content


@dataclass(frozen=True)
class Parting:
    """What another party signed last in a study; nothing of it is checked yet.

    Attributes:
        study: The study's digest.
        peer: The other party's name.
        theirs: The signed head of its ledger.
        ours: A signed head of this ledger, cosigned by it.
        shown: The signed head of this ledger that it was shown last; empty if that was not kept.
    """

    study: str
    peer: str
    theirs: str
    ours: str
    shown: str = ""


def read_partings(folder: Path) -> list[Parting]:
    """What other parties signed last in the studies that are over.

    Args:
        folder: The ledger's folder.

    Raises:
        Malformed: A file of them cannot be read.
    """
    found = []
    for path in sorted((folder / PARTED).glob("*.json")):
        try:
            value = parse(read_bounded(path, MAX_NOTES))
            if value.pop("v") != 1 or not all(isinstance(item, str) for item in value.values()):
                raise ValueError
            found.append(Parting(**value))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            raise Malformed(f"{path}: cannot be read", "restore it from a backup; the ledger itself is whole") from None
    return found


def rewritten(path: Path, what: str) -> Rewritten:
    """The error that says what in this file is not what was written."""
    return Rewritten(f"{path}: {what}", TAMPERED)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Let Python not look for garbage among lines that are all kept; in a long ledger it would take a third longer."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            if not gc.get_freeze_count():
                gc.freeze()  # these two make old all that is young, without a look at each
                gc.unfreeze()
            gc.enable()


def _chain(path: Path, lines: Iterable[bytes]) -> tuple[list[Record], bool]:
    """Read lines, each of which must continue the one before; and whether the last one has no end."""
    records: list[Record] = []
    prev = START
    for seq, line in enumerate(lines):
        if not line.endswith(b"\n"):
            return records, True
        try:
            record = Record.parse(line[:-1])
        except ValueError as error:
            raise rewritten(path, f"line {seq + 1} {error}") from None
        if (record.seq, record.prev) != (seq, prev):
            what = "one of the two was changed, or lines were removed, added or moved"
            raise rewritten(path, f"line {seq + 1} does not continue line {seq}: {what}")
        if (record.event is Event.LOG_OPENED) != (seq == 0):
            raise rewritten(path, f"line {seq + 1} must {'not ' if seq else ''}be log.opened")
        records.append(record)
        prev = record.leaf.hex()
    return records, False


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say of a file that cannot be read what it is of the ledger."""
    try:
        yield
    except FileNotFoundError:
        folder = path.parent
        if (folder / LINES).exists() or (folder / CHECKPOINT).exists():
            raise rewritten(path, "is missing") from None
        raise LedgerError(f"{folder}: there is no ledger here", "give the ledger's folder") from None
    except NotADirectoryError:
        raise LedgerError(f"{path.parent}: is a file, not a ledger's folder", "give the ledger's folder") from None
    except OSError as error:
        raise LedgerError(f"{path}: {error.strerror}", "see that this user may read the folder") from error
