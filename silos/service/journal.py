"""The executor's journal: which order is being worked on, so that a killed executor finishes the one it had.

Two files in the work folder, mode 0600: `journal`, a few words, and `journal.order`, the order as it came.
Orders only ever come from outside, so nothing of a patient is in them. A reader sees a file that is whole
or none; that it may be lost in a power cut does no harm, for then the SuperNode that gave the order is gone
too.

    journal = Journal(work / "journal", node)
    page = journal.read()                       # of a predecessor that was killed
    journal.acquired(token)                     # before the order is asked for
    journal.pulled(token, message_id, order)    # before it is followed
    journal.replying()                          # before the answer goes to the SuperNode
    journal.clear()                             # when it is there
"""

import json
import logging
import os
import zlib
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from models.ledger.disk import write_all

log = logging.getLogger("intramural.executor")

RESTART_NODE = 75
"""The executor's exit code when the SuperNode waits for an answer that it can never get (EX_TEMPFAIL)."""

STATUS = "executor.json"
"""In the work folder: what the executor is doing. It is written when the executor is ready, and not before."""


class Stage(StrEnum):
    """How far the work on an order has come."""

    ACQUIRED = "acquired"
    """The SuperNode gave a token for it; whether the order itself was fetched is not known."""
    PULLED = "pulled"
    """The order is here."""
    REPLYING = "replying"
    """An answer is on its way to the SuperNode; whether it arrived whole is not known."""


class TornError(Exception):
    """The journal cannot be read."""


@dataclass(frozen=True)
class Page:
    """What the journal says.

    Attributes:
        stage: How far it has come.
        token: Allows one to work on the order at the SuperNode.
        node: Which SuperNode gave it.
        message_id: Flower's name of the order.
        tries: How often somebody began to follow it.
        size: Bytes of the order.
        crc: CRC-32 of the order.
    """

    stage: Stage
    token: str
    node: str
    message_id: str = ""
    tries: int = 0
    size: int = 0
    crc: int = 0


class Journal:
    """The journal of one executor.

    Args:
        path: The file; the order stands beside it.
        node: Names the SuperNode, so that an order of another one is known as such.
    """

    def __init__(self, path: Path, node: str) -> None:
        self._path, self._order = path, path.with_name(f"{path.name}.order")
        self.node = node
        self._page: Page | None = None

    def read(self) -> Page | None:
        """The page that was left behind, if any.

        Raises:
            TornError: It cannot be read.
        """
        try:
            found = json.loads(self._path.read_bytes())
            self._page = Page(**{**found, "stage": Stage(found["stage"])})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise TornError(f"{self._path}: cannot be read") from error
        return self._page

    def order(self) -> bytes:
        """The order of the page that was read.

        Raises:
            TornError: It is not the one that the page speaks of.
        """
        try:
            content = self._order.read_bytes()
        except OSError as error:
            raise TornError(f"{self._order}: cannot be read") from error
        if self._page is None or (len(content), zlib.crc32(content)) != (self._page.size, self._page.crc):
            raise TornError(f"{self._order}: is not what the journal says")
        return content

    def acquired(self, token: str) -> None:
        """A token was given."""
        self._write(Page(Stage.ACQUIRED, token, self.node))

    def pulled(self, token: str, message_id: str, order: bytes) -> None:
        """The order is here, and is about to be followed for the first time."""
        self._write(Page(Stage.PULLED, token, self.node, message_id, 1, len(order), zlib.crc32(order)), order)

    def again(self) -> None:
        """The order of the page is about to be followed once more."""
        assert self._page is not None
        self._write(replace(self._page, tries=self._page.tries + 1))

    def replying(self) -> None:
        """The answer is about to leave for the SuperNode."""
        assert self._page is not None
        self._write(replace(self._page, stage=Stage.REPLYING))

    def clear(self) -> None:
        """Nothing is being worked on."""
        self._path.unlink(missing_ok=True)
        self._order.unlink(missing_ok=True)
        self._page = None

    def _write(self, page: Page, order: bytes | None = None) -> None:
        """Write a page; where that cannot be done, the work goes on and is lost if it is killed."""
        self._page = page
        try:
            if order is not None:
                put(self._order, order)
            put(self._path, json.dumps(asdict(page)).encode())
        except OSError as error:
            log.warning("the journal cannot be written: %s", error.strerror)
            self._path.unlink(missing_ok=True)  # an older page would speak of another order


def put(path: Path, content: bytes) -> None:
    """Put a whole file, readable by its owner only, in place of the one that may be there; not durable.

    Args:
        path: The file; its folder must exist.
        content: All of it.
    """
    draft = path.with_name(f"{path.name}.new")
    number = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        write_all(number, content)
    finally:
        os.close(number)
    draft.replace(path)


def put_json(path: Path, value: dict[str, Any]) -> None:
    """The same, of a JSON object."""
    put(path, json.dumps(value).encode() + b"\n")
