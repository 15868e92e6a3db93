"""Store and forward: the ledger is the store, a cursor file says how much of it was taken.

    forward(folder, sink, Path("siem.cursor"), follow=True)

This only reads the ledger. A log server that cannot be reached makes this process wait and try again, and
touches neither the ledger nor the training; nothing needs to be kept for it, since the ledger keeps all.

*Promise: at least once, in order.* The cursor moves only after the sink took a batch, so no line is ever
left out. After a crash between the two, or a connection that broke at the very end, a batch comes again:
a line is the same line if ledger and line number are the same. The cursor holds the leaf hash of the last
line taken; a ledger that was replaced by another past is refused.
"""

import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import Field

from aggregator.exports.fact import Fact, facts
from models.errors import ConfigError, IntramuralError, Locked, Malformed
from models.exchange.documents import Digest, Document
from models.ledger import Opened, Verifier, read
from models.ledger.disk import lock, publish, read_bounded, sync_folder, unlock, write_all
from models.ledger.reading import CHECKPOINT, LINES, MAX_NOTES, rewritten

log = logging.getLogger("intramural.export")

BATCH = 500
"""Lines that are sent at a time."""

LONGEST_PAUSE = 60.0
"""Seconds between two attempts, at most."""


class Sink(Protocol):
    """Where lines go."""

    @property
    def name(self) -> str:
        """What the cursor calls it."""
        ...

    def take(self, facts: Sequence[Fact]) -> None:
        """Take lines; when this returns it has them. Raises OSError if it may not have them."""
        ...


class Cursor(Document):
    """How far an export has come."""

    ledger: str  # origin
    vkey: str  # that signs it
    to: str  # name of the sink
    line: Annotated[int, Field(ge=1)]  # newest line taken, from 1
    leaf: Digest  # its leaf hash


@dataclass(frozen=True)
class File:
    """A file that lines are added to, for whatever collects it.

    Attributes:
        path: The file; made if it is not there.
        render: How a line becomes text.
    """

    path: Path
    render: Callable[[Fact], bytes]

    @property
    def name(self) -> str:
        """Its path."""
        return str(self.path.absolute())

    def take(self, facts: Sequence[Fact]) -> None:
        """Add lines, durably; one of them that was half written before is cut first.

        Raises:
            OSError: They could not be made durable.
        """
        lines = [self.render(fact) + b"\n" for fact in facts]
        _cut_half(self.path, lines)
        number = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        try:
            write_all(number, b"".join(lines))
            os.fsync(number)
        finally:
            os.close(number)
        sync_folder(self.path.absolute().parent)


def forward(
    folder: Path,
    sink: Sink,
    cursor: Path,
    *,
    verifier: Verifier | None = None,
    follow: bool = False,
    stop: threading.Event | None = None,
    patience: float = 60.0,
    pause: float = 1.0,
) -> int:
    """Send what the cursor says was not sent yet.

    Args:
        folder: The ledger.
        sink: Where to.
        cursor: The cursor file; without one, everything is sent.
        verifier: The key that the ledger must be signed with.
        follow: Go on with every line that is added, until `stop` is set.
        stop: Ends the work after the batch at hand.
        patience: Seconds of fruitless attempts before it gives up; with `follow` it never does.
        pause: Seconds between two looks at the ledger, and after the first fruitless attempt.

    Returns:
        Number of lines that were taken.

    Raises:
        LedgerError: The ledger is not the one that was signed, or not the one that the cursor is of.
        ConfigError: The cursor is of another ledger or sink, or in use.
        IntramuralError: The sink could not be reached in time.
    """
    stop = stop or threading.Event()
    with closing(_Held(cursor)):
        count, seen = 0, b""
        while True:
            now = _signed_head(folder)
            if now != seen:  # a ledger that did not grow is not read again
                opened = read(folder, verifier)
                verifier, seen = opened.verifier, now
                for batch in _batches(opened, sink, cursor):
                    if not _deliver(sink, batch, stop, None if follow else patience, pause):
                        return count
                    last = batch[-1]
                    place = Cursor(
                        ledger=opened.head.origin, vkey=verifier.vkey, to=sink.name, line=last.line, leaf=last.leaf
                    )
                    publish(cursor, place.encode())
                    count += len(batch)
                    if stop.is_set():
                        return count
            if not follow or stop.wait(pause):
                return count


def position(opened: Opened, sink: Sink, cursor: Path) -> int:
    """How many lines of a ledger a cursor says were taken.

    Raises:
        ConfigError: It is of another ledger or sink.
        Rewritten: The ledger does not hold the line that was taken last.
    """
    if not cursor.exists():
        return 0
    try:
        place = Cursor.decode(cursor.read_bytes())
    except Malformed as error:
        raise ConfigError(f"{cursor}: {error}", "give a cursor file of this export, or a new name") from error
    if (place.ledger, place.vkey) != (opened.head.origin, opened.verifier.vkey):
        raise ConfigError(f"{cursor}: is of the ledger {place.ledger}", "give each ledger a cursor of its own")
    if place.to != sink.name:
        raise ConfigError(f"{cursor}: is of an export to {place.to}", "give each destination a cursor of its own")
    if place.line > len(opened.records):
        held = f"holds {len(opened.records)} signed lines, but {place.line} were exported"
        raise rewritten(opened.folder / LINES, f"{held}: it is an older copy")
    if opened.records[place.line - 1].leaf.hex() != place.leaf:
        raise rewritten(opened.folder / LINES, f"line {place.line} is not the one that was exported")
    return place.line


def _batches(opened: Opened, sink: Sink, cursor: Path) -> list[list[Fact]]:
    left = facts(opened, position(opened, sink, cursor))
    return [left[start : start + BATCH] for start in range(0, len(left), BATCH)]


def _deliver(sink: Sink, batch: list[Fact], stop: threading.Event, patience: float | None, pause: float) -> bool:
    """Try until the sink took a batch; False if asked to stop before."""
    started = time.monotonic()
    while True:
        try:
            sink.take(batch)
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
            hopeless = isinstance(error, ssl.SSLCertVerificationError)
            if patience is not None and (hopeless or time.monotonic() - started >= patience):
                raise IntramuralError(
                    f"{sink.name}: did not take line {batch[0].line}: {reason}",
                    "nothing is lost: the same command goes on from there; the ledger and the training go on anyway",
                ) from error
            log.warning("%s does not take lines: %s; next attempt in %.0f s", sink.name, reason, pause)
            if stop.wait(pause):
                return False
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            return True


def _cut_half(path: Path, lines: Sequence[bytes]) -> None:
    """Cut from a file the beginning of one of these lines, as a full disk or a killed process leaves it at the end."""
    if not path.is_file():  # a pipe has no end to look at
        return
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - max(map(len, lines)), 0))
        half = file.read().rpartition(b"\n")[2]
    if half and any(line.startswith(half) for line in lines):  # of anything else nothing is cut
        os.truncate(path, end - len(half))  # a file that may only be appended to can be looked at, but not cut


def _signed_head(folder: Path) -> bytes:
    try:
        return read_bounded(folder / CHECKPOINT, MAX_NOTES)
    except OSError:
        return b"?"  # `read` says what is wrong


class _Held:
    """A cursor that no other process moves."""

    def __init__(self, cursor: Path) -> None:
        try:
            self._number = lock(cursor.with_name(f"{cursor.name}.lock"))
        except Locked as error:
            raise ConfigError(f"{cursor}: is in use by another export", "stop that one first") from error

    def close(self) -> None:
        unlock(self._number)
