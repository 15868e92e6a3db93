"""Handing objects to another process of this machine, their arrays without sending them.

    line.send(message, Outbox())        # here
    pickle.loads(*line.receive())       # there

What `pickle` makes of an object goes through a socket. Its NumPy arrays do not: each is written once to a file
without a name, which the other side maps into its memory, read-only. The file is gone when nobody maps it any
more, however a process ends; until then the system may put it on the disk if memory is short. An array that
cannot change and is sent to several receivers, as the orders of a round share a model, is written once for all.
"""

import mmap
import os
import pickle
import tempfile
import weakref
from collections.abc import Callable
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

from models.ledger.disk import write_all


class _File:
    """A file without a name, for as long as somebody holds it."""

    def __init__(self, content: memoryview) -> None:
        self.number, path = tempfile.mkstemp()
        os.unlink(path)
        write_all(self.number, content)

    def __del__(self) -> None:
        os.close(self.number)


class Outbox:
    """The files of what is being sent.

    Attributes:
        written: Arrays so far.
    """

    def __init__(self) -> None:
        self.written = 0
        self._file: _File | None = None
        self._array: Callable[[], Any] = lambda: None  # what is in the file, if it is still alive

    def put(self, content: memoryview) -> tuple[int, _File]:
        """Number and file of an array; the last one again if it is that array, and read-only."""
        if self._file is None or not content.readonly or content.obj is not self._array():
            self._file, self._array = _File(content), weakref.ref(content.obj)
            self.written += 1
        return self.written, self._file


class Line:
    """One end of a connection.

    Args:
        connection: A Unix socket.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._there: set[int] = set()  # arrays that the other end has of what was sent last
        self._here: dict[int, Any] = {}  # and those that this end has of what came last

    def send(self, item: Any, outbox: Outbox) -> None:
        """Send an object; see `Outbox` for its arrays.

        Raises:
            OSError: The other end is closed, or there is no space for an array.
        """
        buffers: list[pickle.PickleBuffer] = []
        data = pickle.dumps(item, protocol=5, buffer_callback=buffers.append)
        listed, files = [], []
        for buffer in buffers:
            with buffer.raw() as content:
                number, file = outbox.put(content)
                new = number not in self._there
                listed.append((number, content.nbytes, new))
                files += [file] if new else []
        self.connection.send((data, listed))
        for file in files:
            reduction.send_handle(self.connection, file.number, 0)
        self._there = {number for number, _, _ in listed}

    def receive(self) -> tuple[bytes, list[Any]]:
        """Wait for an object.

        Returns:
            What `pickle.loads` makes it of: its bytes, and the memory of its arrays.

        Raises:
            EOFError, OSError or RuntimeError: The other end is closed.
        """
        data, listed = self.connection.recv()
        self._here = {
            number: _map(self.connection, size) if new else self._here[number] for number, size, new in listed
        }
        return data, [self._here[number] for number, _, _ in listed]

    def close(self) -> None:
        """Close this end."""
        self.connection.close()


def load(received: tuple[bytes, list[Any]]) -> Any:
    """The object that was received; its arrays are read-only."""
    data, arrays = received
    return pickle.loads(data, buffers=arrays)  # noqa: S301 - from a process that was forked from this program


def _map(connection: Connection, size: int) -> Any:
    number = reduction.recv_handle(connection)
    try:
        return mmap.mmap(number, size, prot=mmap.PROT_READ) if size else b""
    finally:
        os.close(number)
