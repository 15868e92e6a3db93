"""Writing a ledger: lines that are durable before anything else happens, under one signed head.

    with Ledger.open(folder, signer) as ledger:
        ledger.append(Entry(Event.STUDY_CLOSED, {"model": "9f2c..."}, study, round=3))

The folder is that of `reading`, with a `lock` held by the one process that writes. When `append` returns,
the lines survive the death of the process and of the machine; when it raises, nothing may be sent or
used, and the ledger must be opened again.
"""

import hmac
import os
import secrets
import shutil
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from models.canonical import canonical, digest
from models.errors import LedgerError, NotAppended, ProtocolError, Rewritten
from models.ledger import disk
from models.ledger.events import START, Entry, Event, Record
from models.ledger.keys import Signer
from models.ledger.merkle import Tree
from models.ledger.note import Checkpoint
from models.ledger.reading import (
    CHECKPOINT,
    LINES,
    MANIFESTS,
    PARTED,
    TAMPERED,
    Opened,
    read,
    read_manifest,
    rewritten,
)

_LOCK = "lock"
_AFTER_SALT = b',"seq":'  # in the order of keys; what comes after it is no free text
_RESERVED = ("origin", "vkey", "software")
_DISK = "see that the disk is well and has space, then open the ledger again"


class Ledger:
    """A ledger open for writing, by one process at a time; safe to share between its threads."""

    def __init__(self, signer: Signer, opened: Opened, number: int, resources: ExitStack) -> None:
        """Use `create` or `open`."""
        self.folder = opened.folder
        self._signer = signer
        self._records: list[Record] = []
        self._of: dict[Event, list[Record]] = defaultdict(list)
        self._know(opened.records)
        self._tree = opened.tree
        self._head = opened.head
        self._note = opened.note
        self._bytes = opened.signed_bytes
        self._number = number
        self._resources = resources
        self._mutex = threading.Lock()
        self._process = os.getpid()
        self._stopped = ""
        self._stored: deque[str] = deque(maxlen=8)  # manifests that were made durable last

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
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise LedgerError(
                    f"{folder}: exists already", "open it, or choose another folder; nothing is overwritten"
                )
            disk.make_folder(draft / MANIFESTS)
            disk.publish(draft / LINES, record.line + b"\n")
            disk.publish(draft / CHECKPOINT, head.sign(signer).encode())
            disk.rename(draft, folder)
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
                resources.callback(os.close, disk.lock(folder / _LOCK))
                opened = read(folder, signer.verifier)
                number = os.open(folder / LINES, os.O_WRONLY | os.O_APPEND)
                resources.callback(os.close, number)
                ledger = cls(signer, opened, number, resources)
                ledger._recover(opened)
            except ProtocolError as error:
                raise Rewritten(str(error), error.hint or TAMPERED) from error
            except OSError as error:
                raise NotAppended(f"{folder}: could not be recovered: {error.strerror}", _DISK) from error
            ledger._resources = resources.pop_all()
            return ledger

    @property
    def records(self) -> Sequence[Record]:
        """Every line, the first one first."""
        return self._records

    def of(self, *events: Event) -> list[Record]:
        """The lines of some events, the first one first."""
        if len(events) == 1:
            return list(self._of[events[0]])
        return sorted((record for event in events for record in self._of[event]), key=lambda record: record.seq)

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
        """Keep a document beside the ledger, durable when this returns.

        Call it before appending the line that names it.

        Returns:
            Its SHA-256, 64 hex digits.

        Raises:
            NotAppended: It is not known to be durable; the ledger must be opened again.
        """
        name = digest(manifest)
        path = self.folder / MANIFESTS / f"{name}.json"
        # Written even if a file of this name is there, for nobody knows if that one is durable; unless it was
        # written by this very object, as a document that came with the last order and comes again with this one.
        if name in self._stored and path.exists():
            with self._mutex:
                self._require_usable()
            return name
        self._keep(path, manifest, "a manifest")
        self._stored.append(name)
        return name

    def manifest(self, name: str) -> bytes:
        """What was stored under this digest.

        Raises:
            Malformed: That is no digest.
            LedgerError: It is not kept here.
            Rewritten: The file is no longer what was stored.
        """
        return read_manifest(self.folder, name)

    def part(self, study: str, peer: str, *, theirs: str, ours: str, shown: str = "") -> None:
        """Keep what the other side signed last in a study, durable when this returns.

        Args:
            study: The study's digest.
            peer: The other side's name.
            theirs: The signed head of its ledger.
            ours: A signed head of this ledger, cosigned by it.
            shown: The signed head of this ledger that it is shown last.

        Raises:
            NotAppended: It is not known to be durable; the ledger must be opened again.
        """
        content = canonical({"v": 1, "study": study, "peer": peer, "theirs": theirs, "ours": ours, "shown": shown})
        self._keep(self.folder / PARTED / f"{study}-{peer}.json", content, "a farewell")

    def close(self) -> None:
        """Let others write. Nothing is lost without it; a closed ledger refuses to append."""
        with self._mutex:
            self._stopped = self._stopped or "it is closed"
            self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require_usable(self) -> None:
        if os.getpid() != self._process:
            raise NotAppended(f"{self.folder}: was opened by another process", "open it in this one")
        if self._stopped:
            raise NotAppended(f"{self.folder}: {self._stopped}", "open the ledger again")

    def _keep(self, path: Path, content: bytes, what: str) -> None:
        """Write a file beside the lines, durably."""
        with self._mutex:
            self._require_usable()
            self._stopped = f"{what} could not be made durable"
            try:
                disk.make_folder(path.parent)
                disk.publish(path, content)
            except OSError as error:
                raise NotAppended(f"{self.folder}: {self._stopped}: {error.strerror}", _DISK) from error
            self._stopped = ""

    def _recover(self, opened: Opened) -> None:
        for record in opened.pending:
            unsalted = {name: value for name, value in record.values().items() if name != "salt"}
            if record.salt != _salt(self._signer, canonical(unsalted)):
                what = f"line {record.seq + 1} was not written with this key"
                raise rewritten(self.folder / LINES, what)
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
            disk.write_all(self._number, lines)
            os.fdatasync(self._number)
            for record in records:
                self._tree.append(record.leaf)
            head = Checkpoint(self._head.origin, self._tree.size, self._tree.root())
            note = head.sign(self._signer)
            disk.publish(self.folder / CHECKPOINT, note.encode())
        except OSError as error:
            raise NotAppended(f"{self.folder}: {self._stopped}: {error.strerror}", _DISK) from error
        self._know(records)
        self._head, self._note, self._bytes, self._stopped = head, note, self._bytes + len(lines), ""

    def _know(self, records: Sequence[Record]) -> None:
        self._records.extend(records)
        for record in records:
            self._of[record.event].append(record)

    def _require_untouched(self) -> None:
        """An open file can be replaced under its name; lines would then go where nobody looks."""
        mine, there = os.fstat(self._number), os.stat(self.folder / LINES)
        if not os.path.samestat(mine, there) or mine.st_size != self._bytes:
            raise Rewritten(f"{self.folder / LINES}: was changed by another program", "see who writes there")


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
        unsalted = canonical(values)
        before, _, after = unsalted.rpartition(_AFTER_SALT)
        return Record.parse(b'%b,"salt":"%b"%b%b' % (before, _salt(signer, unsalted).encode(), _AFTER_SALT, after))
    except ValueError as error:
        raise ValueError(f"{entry.event}: {error}") from None


def _salt(signer: Signer, unsalted: bytes) -> str:
    """16 bytes that nobody can guess and only the key can make, as hex.

    Unguessable, they hide a short line from whoever sees only its hash. Made by the key, they let `open`
    tell a line of its own, left unsigned by a crash, from one that somebody else appended to be signed.
    """
    return hmac.digest(signer.derive(b"intramural ledger salt v2"), unsalted, "sha256").hex()[:32]


def _software() -> dict[str, str]:
    from importlib import metadata  # here, because a reader never needs it and it is slow to import

    try:
        version = metadata.version("intramural")
    except metadata.PackageNotFoundError:
        version = "unknown"
    return {"name": "intramural", "version": version, "python": ".".join(map(str, sys.version_info[:3]))}
