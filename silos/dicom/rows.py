"""Reads what the index remembers of files, on every core if there are many.

    for rows in read_rows(root, columns, batches): ...

A worker that is lost loses no work: its batch is read in this process.
"""

import marshal
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from silos.dicom.decode import picture_flaw
from silos.dicom.header import Reason, UnreadableFile, read_header
from silos.dicom.worker import Answer, Worker, serve

WORTHWHILE = 16  # batches; to start the workers takes a second, and fewer are read in that time
AGAIN = -1  # as a time of change: open it again at the next scan, since the trouble may pass

File = tuple[str, int, int]  # path below the root, size in bytes, time of change in ns
Row = list[str | int | None]  # path, size, time of change, reason, attributes


def read_rows(root: Path, columns: Sequence[str], batches: Sequence[Sequence[File]]) -> Iterator[list[Row]]:
    """Read the attributes of many files.

    Args:
        root: The folder that they lie in.
        columns: DICOM keywords.
        batches: The files.

    Yields:
        The rows of each batch, in the order of the batches.
    """
    here = partial(_rows, root, columns)
    cores = len(os.sched_getaffinity(0))
    if cores == 1 or len(batches) < WORTHWHILE:
        yield from map(here, batches)
        return
    mine, workers = threading.local(), list[Worker]()

    def there(batch: Sequence[File]) -> list[Row]:
        """In a thread for each worker, which only waits for it."""
        try:
            if not (worker := getattr(mine, "worker", None)):
                mine.worker = worker = Worker(__name__)
                workers.append(worker)
            _, size = worker.ask({"root": str(root), "columns": list(columns), "files": batch})
            rows: list[Row] = marshal.loads(worker.read(size))  # noqa: S302 - from our own process
        except (OSError, EOFError, ValueError):
            mine.worker = None
            return here(batch)
        return rows

    threads = ThreadPoolExecutor(cores)
    try:
        yield from threads.map(there, batches)
    finally:
        threads.shutdown(cancel_futures=True)
        for worker in workers:
            worker.stop()


def _rows(root: Path, columns: Sequence[str], files: Sequence[File]) -> list[Row]:
    return [_row(root, path, (size, changed), columns) for path, size, changed in files]


def _row(root: Path, path: str, stamp: tuple[int, int], columns: Sequence[str]) -> Row:
    """What the index remembers of one file."""
    texts: dict[str, str] = {}
    reason: Reason | None
    try:
        texts = read_header(root / path, columns)
        reason = picture_flaw(texts)
    except UnreadableFile as error:
        reason = error.reason
    except OSError:
        reason, stamp = Reason.UNREADABLE, (stamp[0], AGAIN)
    return [path, *stamp, reason and reason.value, *(texts.get(column, "") for column in columns)]


def _answer(words: dict[str, Any], _: bytes) -> Answer:
    """In a worker."""
    return {}, marshal.dumps(_rows(Path(words["root"]), words["columns"], words["files"]), 2)


if __name__ == "__main__":
    serve(_answer)
