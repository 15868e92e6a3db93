"""The ledger on disk: lines that are durable before anything else happens, under one signed head.

    ledger.jsonl          one line per event, each naming the hash of the line before; only ever appended to
    checkpoint            how many lines there are and the root of their tree, signed (replaced as a whole)
    manifests/<sha>.json  long lists that a line names by digest, written before that line
    lock                  held by the one process that writes

A writer promises: when `append` returns, the lines survive the death of the process and of the machine;
when it raises, nothing may be sent or used, and the ledger must be opened again. A reader (`read`) needs
no private key and finds every changed, removed, added or reordered line that the checkpoint covers. What
one folder cannot show is that all of it, checkpoint included, was replaced by an older copy: for that,
other parties keep the heads they have seen.
"""

import errno
import os
import secrets
import shutil
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from models.errors import BadSignature, LedgerError, Locked, Malformed, NotAppended, ProtocolError, Rewritten
from models.ledger.canonical import canonical, digest
from models.ledger.events import START, Entry, Event, Record, is_digest
from models.ledger.merkle import Tree
from models.ledger.note import Checkpoint, Signer, Verifier

_LINES, _CHECKPOINT, _MANIFESTS, _LOCK = "ledger.jsonl", "checkpoint", "manifests", "lock"
_RESERVED = ("origin", "vkey", "software")


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
        signed_bytes: Length of `records` in `ledger.jsonl`.
    """

    folder: Path
    verifier: Verifier
    records: Sequence[Record]
    pending: Sequence[Record]
    incomplete: bool
    head: Checkpoint
    note: str
    tree: Tree
    signed_bytes: int

    @property
    def unsigned(self) -> int:
        """Number of lines beyond the signed head."""
        return len(self.pending)

    def manifest(self, name: str) -> bytes:
        """The manifest of this digest; see `Ledger.manifest`."""
        return _manifest(self.folder, name)


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
    path = folder / _LINES
    # The checkpoint first: a writer at work can then only have added lines that it does not cover.
    signed = _load(folder / _CHECKPOINT)
    *lines, rest = _load(path).split(b"\n")
    records = _chain(path, lines)
    if not records:
        raise Rewritten(f"{path}: line 1 is missing", "restore the ledger from a backup")
    opening = records[0].body
    try:
        verifier = verifier or Verifier.parse(str(opening.get("vkey")))
        note = signed.decode()
        head = Checkpoint.open(note, verifier)
    except UnicodeDecodeError:
        raise Malformed(f"{folder / _CHECKPOINT}: is not UTF-8 text", _TAMPERED) from None
    except (BadSignature, Malformed) as error:
        raise type(error)(f"{folder / _CHECKPOINT}: {error}", _TAMPERED) from error
    if (opening.get("origin"), opening.get("vkey")) != (head.origin, verifier.vkey):
        raise Rewritten(f"{path}: line 1 names another origin or key than the signed head", _TAMPERED)
    if len(records) < head.size:
        raise Rewritten(f"{path}: line {len(records) + 1} is missing; {head.size} were signed", _TAMPERED)
    tree = Tree()
    for record in records[: head.size]:
        tree.append(record.leaf)
    if tree.root() != head.root:
        raise Rewritten(f"{path}: lines 1 to {head.size} are not those that were signed", _TAMPERED)
    return Opened(
        folder=folder,
        verifier=verifier,
        records=records[: head.size],
        pending=records[head.size :],
        incomplete=bool(rest),
        head=head,
        note=note,
        tree=tree,
        signed_bytes=sum(len(line) + 1 for line in lines[: head.size]),
    )


class Ledger:
    """A ledger open for writing, by one process at a time; safe to share between its threads."""

    def __init__(
        self, folder: Path, signer: Signer, opened: Opened, number: int, resources: ExitStack
    ) -> None:
        """Use `create` or `open`."""
        self.folder = folder
        self._signer = signer
        self._records = list(opened.records)
        self._tree = opened.tree
        self._head = opened.head
        self._note = opened.note
        self._bytes = opened.signed_bytes
        self._number = number
        self._resources = resources
        self._mutex = threading.Lock()
        self._process = os.getpid()
        self._stopped = ""

    @classmethod
    def create(
        cls,
        folder: Path | str,
        signer: Signer,
        body: dict[str, Any] | None = None,
        *,
        origin: str | None = None,
    ) -> Self:
        """Start a ledger with its first line, `log.opened`, and open it.

        The folder appears complete or not at all.

        Args:
            folder: Where; it must not exist, or be empty.
            signer: Whose ledger it is.
            body: What the first line says besides `origin`, `vkey` and `software`.
            origin: The ledger's name, unlike that of any other ledger under this key; the signer's name by
                default.

        Raises:
            LedgerError: The folder holds something; a ledger is never overwritten.
            NotAppended: It could not be made durable.
            ValueError: The body has one of the keys named above, or cannot be written as JSON.
        """
        folder = Path(folder).absolute()
        taken = [key for key in _RESERVED if key in (body or {})]
        if taken:
            raise ValueError(f"log.opened: {taken[0]} is written by the ledger itself")
        origin = origin or signer.name
        opening = {**(body or {}), "origin": origin, "vkey": signer.vkey, "software": _software()}
        record = _compose(signer, 0, START, Entry(Event.LOG_OPENED, opening))
        head = Checkpoint(origin, 1, record.leaf)  # the root of one leaf is the leaf
        draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        try:
            if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
                raise LedgerError(
                    f"{folder}: exists already", "open it, or choose another folder; nothing is overwritten"
                )
            (draft / _MANIFESTS).mkdir(parents=True)
            _publish(draft / _LINES, record.line + b"\n")
            _publish(draft / _CHECKPOINT, head.sign(signer).encode())
            os.rename(draft, folder)
            _sync_folder(folder.parent)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise NotAppended(f"{folder}: no ledger could be made: {error.strerror}", _DISK) from error
        return cls.open(folder, signer)

    @classmethod
    def open(cls, folder: Path | str, signer: Signer) -> Self:
        """Lock, verify and recover a ledger.

        An incomplete last line is cut: `append` had not returned. Complete lines after the signed head, which
        a crash between line and checkpoint leaves behind, are made durable and signed if this key wrote them.

        Raises:
            Locked: Another process, or another object of this one, is writing it.
            Rewritten: It is not what this key signed, or holds a line that this key did not write.
            NotAppended: It could not be made durable.
            LedgerError: There is no ledger, or it cannot be read.
        """
        folder = Path(folder).absolute()
        if not folder.is_dir():
            raise LedgerError(f"{folder}: there is no ledger here", "create it first")
        with ExitStack() as resources:
            try:
                resources.callback(os.close, _lock(folder / _LOCK))
                opened = read(folder, signer.verifier)
                number = os.open(folder / _LINES, os.O_WRONLY | os.O_APPEND)
                resources.callback(os.close, number)
                ledger = cls(folder, signer, opened, number, resources)
                ledger._recover(opened)
            except ProtocolError as error:
                hint = "is this the right key? if it is, the folder was tampered with: keep it as it is"
                raise Rewritten(str(error), hint) from error
            except OSError as error:
                raise NotAppended(f"{folder}: could not be recovered: {error.strerror}", _DISK) from error
            ledger._resources = resources.pop_all()
            return ledger

    @property
    def records(self) -> Sequence[Record]:
        """Every line, the first one first."""
        return self._records

    @property
    def head(self) -> Checkpoint:
        """The newest signed head."""
        return self._head

    @property
    def note(self) -> str:
        """The newest signed head as text, to be sent to others."""
        return self._note

    @property
    def tree(self) -> Tree:
        """The Merkle tree of the lines, for proofs: ask it for those of size `head.size`."""
        return self._tree

    def append(self, *entries: Entry) -> list[Record]:
        """Write lines; when this returns they are durable and signed.

        Several entries cost one write and one sync. A crash before the return may leave the first few of
        them, none, or all.

        Raises:
            ValueError: An entry cannot be a line (unknown event, value that is no JSON, too long, or
                `log.opened` again). Nothing was written and the ledger can be used further.
            NotAppended: The lines are not known to be durable; the ledger must be opened again.
            Rewritten: Another program changed the file meanwhile; the ledger must be opened again.
        """
        with self._mutex:
            self._require_usable()
            records: list[Record] = []
            last = self._records[-1]
            for entry in entries:
                if entry.event == Event.LOG_OPENED:
                    raise ValueError("log.opened: is the first line of a ledger and no other")
                last = _compose(self._signer, last.seq + 1, last.leaf.hex(), entry)
                records.append(last)
            if records:
                self._commit(records)
            return records

    def store(self, manifest: bytes) -> str:
        """Keep a long list beside the ledger, durable when this returns.

        Call it before appending the line that names it.

        Returns:
            Its SHA-256, 64 hex digits.

        Raises:
            NotAppended: It is not known to be durable; the ledger must be opened again.
        """
        name = digest(manifest)
        with self._mutex:
            self._require_usable()
            self._stopped = "a manifest could not be made durable"
            try:
                # Always written, even if a file of this name is there: nobody knows if that one is durable.
                _publish(self.folder / _MANIFESTS / f"{name}.json", manifest)
            except OSError as error:
                raise NotAppended(f"{self.folder}: {self._stopped}: {error.strerror}", _DISK) from error
            self._stopped = ""
        return name

    def manifest(self, name: str) -> bytes:
        """What was stored under this digest.

        Raises:
            Malformed: That is no digest.
            LedgerError: It is not kept here.
            Rewritten: The file is no longer what was stored.
        """
        return _manifest(self.folder, name)

    def close(self) -> None:
        """Let others write. Nothing is lost without it; a closed ledger refuses to append."""
        with self._mutex:
            self._stopped = self._stopped or "it is closed"
            self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _require_usable(self) -> None:
        if os.getpid() != self._process:
            raise NotAppended(f"{self.folder}: was opened by another process", "open it in this one")
        if self._stopped:
            raise NotAppended(f"{self.folder}: {self._stopped}", "open the ledger again")

    def _recover(self, opened: Opened) -> None:
        for record in opened.pending:
            if record.salt != _salt(self._signer, record.values()):
                raise Rewritten(
                    f"{self.folder / _LINES}: line {record.seq + 1} was not written with this key", _TAMPERED
                )
        if opened.pending or opened.incomplete:
            # Written once more, not only synced: after a failed sync the system may hold lines that the
            # disk does not, and report the next sync as a success.
            os.ftruncate(self._number, opened.signed_bytes)
            os.fsync(self._number)
        if opened.pending:
            self._commit(opened.pending)

    def _commit(self, records: Sequence[Record]) -> None:
        # Stopped until it is durable, so that after an error, or an interrupt, nothing follows a line that
        # may be half there. A sync is never tried twice: the second one may succeed without the first's data.
        self._stopped = "a line could not be made durable"
        lines = b"".join(record.line + b"\n" for record in records)
        try:
            self._require_untouched()
            _write(self._number, lines)
            os.fdatasync(self._number)
            for record in records:
                self._tree.append(record.leaf)
            head = Checkpoint(self._head.origin, self._tree.size, self._tree.root())
            note = head.sign(self._signer)
            _publish(self.folder / _CHECKPOINT, note.encode())
        except OSError as error:
            raise NotAppended(f"{self.folder}: {self._stopped}: {error.strerror}", _DISK) from error
        self._records.extend(records)
        self._head, self._note, self._bytes, self._stopped = head, note, self._bytes + len(lines), ""

    def _require_untouched(self) -> None:
        """An open file can be replaced under its name; lines would then go where nobody looks."""
        mine, there = os.fstat(self._number), os.stat(self.folder / _LINES)
        if not os.path.samestat(mine, there) or mine.st_size != self._bytes:
            raise Rewritten(f"{self.folder / _LINES}: was changed by another program", "see who writes there")


_DISK = "see that the disk is well and has space, then open the ledger again"
_TAMPERED = "keep the folder as it is, for whoever investigates, and restore a backup elsewhere"


def _chain(path: Path, lines: Sequence[bytes]) -> list[Record]:
    """Read lines, each of which must continue the one before."""
    records: list[Record] = []
    prev = START
    for seq, line in enumerate(lines):
        try:
            record = Record.parse(line)
        except ValueError as error:
            raise Rewritten(f"{path}: line {seq + 1} {error}", _TAMPERED) from None
        if (record.seq, record.prev) != (seq, prev):
            what = "one of the two was changed, or lines were removed, added or moved"
            raise Rewritten(f"{path}: line {seq + 1} does not continue line {seq}: {what}", _TAMPERED)
        if (record.event is Event.LOG_OPENED) != (seq == 0):
            raise Rewritten(
                f"{path}: line {seq + 1} must {'' if seq == 0 else 'not '}be log.opened", _TAMPERED
            )
        records.append(record)
        prev = record.leaf.hex()
    return records


def _compose(signer: Signer, seq: int, prev: str, entry: Entry) -> Record:
    """The record of an entry, read back from its own line: what is written can be read."""
    values = {
        "v": 1,
        "seq": seq,
        "prev": prev,
        "ts": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "event": entry.event,
        "study": entry.study,
        "round": entry.round,
        "body": entry.body,
    }
    try:
        return Record.parse(canonical({**values, "salt": _salt(signer, values)}))
    except ValueError as error:
        raise ValueError(f"{entry.event}: {error}") from None


def _salt(signer: Signer, values: dict[str, Any]) -> str:
    """16 bytes that nobody can guess and only the key can make, as hex.

    Unguessable, they hide a short line from whoever sees only its hash. Made by the key, they let `open`
    tell a line of its own, left unsigned by a crash, from one that somebody else appended to be signed.
    """
    unsalted = {name: value for name, value in values.items() if name != "salt"}
    return digest(signer.sign(b"intramural ledger salt\x00" + canonical(unsalted)))[:32]


def _software() -> dict[str, str]:
    from importlib import metadata  # here, because a reader never needs it and it is slow to import

    try:
        version = metadata.version("intramural")
    except metadata.PackageNotFoundError:
        version = "unknown"
    return {"name": "intramural", "version": version, "python": ".".join(map(str, sys.version_info[:3]))}


def _load(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        if not path.parent.is_dir() or not any(
            (path.parent / name).exists() for name in (_LINES, _CHECKPOINT)
        ):
            raise LedgerError(f"{path.parent}: there is no ledger here", "give the ledger's folder") from None
        raise Rewritten(f"{path}: is missing", _TAMPERED) from None
    except OSError as error:
        raise LedgerError(f"{path}: {error.strerror}", "see that this user may read the folder") from error


def _manifest(folder: Path, name: str) -> bytes:
    if not is_digest(name):  # a name from another party must not walk through the disk
        raise Malformed(f"manifest {name[:80]!r}: is not a SHA-256 of 64 hex digits")
    path = folder / _MANIFESTS / f"{name}.json"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LedgerError(f"{path}: {error.strerror}", "the line that names it still stands") from error
    if digest(content) != name:
        raise Rewritten(f"{path}: is not what was stored under this name", _TAMPERED)
    return content


def _lock(path: Path) -> int:
    import fcntl  # here, so that a ledger can be read where this does not exist

    number = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(number)
        raise Locked(f"{path.parent}: is being written by another process", "stop that one first") from None
    except OSError:
        os.close(number)
        raise
    return number


def _write(number: int, data: bytes) -> None:
    """One write, of everything; a short one means that the disk is full."""
    if os.write(number, data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _publish(path: Path, data: bytes) -> None:
    """Put a whole file in place, durably: a reader sees the old one or the new one."""
    draft = path.with_name(f"{path.name}.new")
    number = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        _write(number, data)
        os.fsync(number)
    finally:
        os.close(number)
    os.rename(draft, path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
