"""Cases as tensors: each image is decoded and prepared once, kept on disk, and memory-mapped after.

The cache lies in the site's work folder, readable by its owner only: one file of equal rows, 16 bits a value,
and an SQLite index that says which file of which size and age became which row, or for what reason none.
Another preparation (size, window) is another folder; a changed file is prepared anew; new files are
appended.
"""

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.errors import ConfigError, DataError
from models.ledger.canonical import canonical, digest
from models.plan import Classification, TaskSettings
from models.tasks import Case, Task
from silos.cohort import Cohort
from silos.dicom.decode import read_image
from silos.dicom.header import Reason, UnreadableFile
from silos.packed import Packed, pack, row_type

OUT_OF_RANGE = "pixel values out of range"

_VERSION = 3  # of the index, and of the arithmetic between file and row; raise it when one changes
_BATCH = 256  # images between two commits


@dataclass(frozen=True)
class Prepared:
    """Prepared images of one side of a cohort.

    Attributes:
        store: All rows of the cache, `(1, h, w)` each, memory-mapped.
        rows: Which of them are this side's, `(n,)` int64.
        targets: Their classes, `(n,)` int64.
    """

    store: Packed
    rows: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """How many images."""
        return len(self.rows)

    def take(self, rows: npt.NDArray[np.int64]) -> list[Case]:
        """Copies of some images, `(1, h, w)` float32, with their classes."""
        images = zip(self.store[self.rows[rows]], self.targets[rows], strict=True)
        return [Case(image, label=int(target)) for image, target in images]


@dataclass(frozen=True)
class Dataset:
    """A cohort whose every case has been read: the images to train on, and those held out."""

    cohort: Cohort
    train: Prepared
    held_out: Prepared


def prepare(
    cohort: Cohort,
    root: Path,
    cache: Path,
    settings: TaskSettings,
    task: Task,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Decode what is not yet in the cache, and open it.

    Args:
        cohort: The cases; those whose pixels cannot be read or prepared are left out, and counted by reason.
        root: Folder that the cases' paths are relative to.
        cache: Folder of all caches of this site.
        settings: The study's task.
        task: Prepares one image.
        progress: Called with (images done, images in all) of those not yet in the cache.

    Raises:
        ConfigError: The task is not about 2-D images with one label each.
        DataError: The cache cannot be written.
    """
    if not isinstance(settings, Classification) or settings.dimensions != 2:
        raise ConfigError(f"task.name: images for {settings.name} cannot be read yet", "use 2-D classification")
    folder = cache / _name(settings)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with closing(_open_index(folder / "index.sqlite")) as index:
            _fill(index, folder / "images", cohort, root, settings, task, progress)
            rows, reasons = _known(index)
    except (OSError, sqlite3.Error) as error:
        raise DataError(
            f"run.work: the image cache {folder} cannot be written: {error}",
            "free space or correct its permissions",
        ) from error
    store = Packed.open(folder / "images", max(rows.values(), default=-1) + 1, (1, *settings.size))
    cohort = cohort.without({path: reasons[path] for path in cohort.cases["path"] if path in reasons})
    return Dataset(cohort, _side(cohort, False, store, rows), _side(cohort, True, store, rows))


def _side(cohort: Cohort, held_out: bool, store: Packed, rows: dict[str, int]) -> Prepared:
    cases = cohort.side(held_out)
    used = np.array([rows[path] for path in cases["path"]], dtype=np.int64)
    return Prepared(store, used, cases["target"].to_numpy().astype(np.int64))


def _name(settings: Classification) -> str:
    """The folder of one preparation: whatever changes a row changes this."""
    what = settings.model_dump(mode="json", include={"name", "size", "percentiles", "window", "zscore", "landmarks"})
    return digest(canonical([_VERSION, what]))[:16]


def _open_index(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    index = sqlite3.connect(path)
    index.execute(
        "CREATE TABLE IF NOT EXISTS images"
        " (path BLOB PRIMARY KEY, size INT, mtime_ns INT, row INT, reason TEXT)"  # a path may be no UTF-8
    )
    return index


def _known(index: sqlite3.Connection) -> tuple[dict[str, int], dict[str, str]]:
    """By path: the row of each image that has one, and the reason of each that has none."""
    rows = index.execute("SELECT path, row FROM images WHERE reason IS NULL")
    reasons = index.execute("SELECT path, reason FROM images WHERE reason IS NOT NULL")
    return {os.fsdecode(path): row for path, row in rows}, {os.fsdecode(path): why for path, why in reasons}


def _fill(
    index: sqlite3.Connection,
    data: Path,
    cohort: Cohort,
    root: Path,
    settings: Classification,
    task: Task,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Append every case that is not in the cache as it is on disk now."""
    row_bytes = row_type((1, *settings.size)).itemsize
    with open(os.open(data, os.O_CREAT | os.O_RDWR, 0o600), "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # two that append at once would write over each other's rows
        (count,) = index.execute("SELECT COALESCE(MAX(row) + 1, 0) FROM images").fetchone()
        if os.fstat(file.fileno()).st_size < count * row_bytes:  # somebody deleted the images
            with index:
                index.execute("DELETE FROM images")
            count = 0
        # A file that could not be read at all is tried again: the trouble may have passed.
        again = Reason.UNREADABLE.value
        present = set(index.execute("SELECT path, size, mtime_ns FROM images WHERE reason IS NOT ?", (again,)))
        columns = cohort.cases[["path", "size", "mtime_ns"]].itertuples(index=False, name=None)
        wanted = [(os.fsencode(path), int(size), int(age)) for path, size, age in columns]
        missing = [case for case in wanted if case not in present]
        if not missing:
            return
        file.truncate(count * row_bytes)  # rows that an interrupted run wrote but did not index
        file.seek(0, os.SEEK_END)
        for start in range(0, len(missing), _BATCH):
            batch = missing[start : start + _BATCH]
            entries: list[tuple[bytes, int, int, int | None, str | None]] = []
            for (path, size, age), image in zip(batch, _images(batch, root, task), strict=True):
                if isinstance(image, str):
                    entries.append((path, size, age, None, image))
                else:
                    file.write(pack(image))
                    entries.append((path, size, age, count, None))
                    count += 1
            file.flush()
            os.fsync(file.fileno())
            with index:
                index.executemany("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?)", entries)
            if progress:
                progress(min(start + _BATCH, len(missing)), len(missing))


def _images(batch: list[tuple[bytes, int, int]], root: Path, task: Task) -> Iterator[npt.NDArray[np.float32] | str]:
    """Each image as a row, or the reason why there is none."""
    for path, _, _ in batch:
        try:
            image = task.prepare(Case(read_image(root / os.fsdecode(path)))).image
        except UnreadableFile as error:
            yield error.reason.value
        except DataError:
            yield OUT_OF_RANGE
        else:
            with np.errstate(all="ignore"):
                usable = np.isfinite(np.ptp(image))  # so that every value and the range can be told in float32
            yield image if usable else OUT_OF_RANGE
