"""Cases as tensors: each case is decoded and prepared once, kept on disk, and memory-mapped after.

The cache lies in the site's work folder, readable by its owner only: one file of prepared cases, one after the
other (the image in 16 bits a value, then its mask if it has one), and an SQLite index that says which case, made of
files of which size and age, lies where, or for what reason it does not. Another preparation (size, window, the
hospital's words for what was drawn) is another folder; a case of which a file changed is prepared anew; new cases are
appended.
"""

import fcntl
import importlib.metadata
import json
import mmap
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from models.canonical import canonical, digest
from models.errors import ConfigError, DataError
from models.plan import TaskSettings
from models.tasks import Case, Task
from models.tasks.preparation import VolumeTooLarge
from silos.cohort import Arrays, Cohort
from silos.config import Data
from silos.dicom.annotation import UnfitAnnotation
from silos.dicom.geometry import Misfit
from silos.dicom.header import Reason, UnreadableFile
from silos.packed import Packed, PackedImage, pack, row_type
from silos.reading import read_case

OUT_OF_RANGE = "pixel values out of range"

_VERSION = 6  # of the index, and of the arithmetic between file and case; raise it when one changes
_READERS = (  # packages that turn files into pixels, or fail to
    "highdicom",
    "monai",
    "pydicom",
    "pyjpegls",
    "pylibjpeg",
    "pylibjpeg-libjpeg",
    "pylibjpeg-openjpeg",
    "pylibjpeg-rle",
)
_BATCH = 256  # cases between two commits,
_BYTES = 2**27  # and bytes


@dataclass(frozen=True)
class Entry:
    """Where a prepared case lies in the cache, and what is known of it.

    Attributes:
        offset: Of its image, in bytes; its mask comes after.
        shape: Of its image, `(1, ...)`.
        spacing: mm along its axes, if known.
        masked: Whether it has a mask.
    """

    offset: int
    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None
    masked: bool


@dataclass(frozen=True, eq=False)
class Prepared:
    """Prepared cases of one side of a cohort.

    Attributes:
        data: All bytes of the cache, memory-mapped.
        entries: Where this side's cases lie, `n` of them.
        targets: Their classes, `(n,)` int64; -1 of a case with a mask.
    """

    data: npt.NDArray[np.uint8]
    entries: tuple[Entry, ...]
    targets: npt.NDArray[np.int64]
    _kept: dict[int, Case] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many cases."""
        return len(self.entries)

    def take(self, rows: npt.NDArray[np.int64]) -> list[Case]:
        """Some cases, prepared.

        Images of one shape with labels are copied; of cases with masks only what is looked at is ever read.
        """
        if self._alike is not None:
            store, places = self._alike
            images = zip(store[places[rows]], self.targets[rows], strict=True)
            return [Case(image, label=int(target)) for image, target in images]
        return [self._case(int(row)) for row in rows]

    def _case(self, row: int) -> Case:
        """One case; kept, because it remembers where its classes lie."""
        if row not in self._kept:
            entry, target = self.entries[row], int(self.targets[row])
            image, mask = cast(npt.NDArray[np.float32], PackedImage.at(self.data, entry.offset, entry.shape)), None
            if entry.masked:
                after = entry.offset + row_type(entry.shape).itemsize
                mask = np.ndarray(entry.shape[1:], np.uint8, self.data, after)
            self._kept[row] = Case(image, entry.spacing, mask, None if target < 0 else target)
        return self._kept[row]

    @cached_property
    def _alike(self) -> tuple[Packed, npt.NDArray[np.int64]] | None:
        """All images as rows, if they are of one shape and nothing else: many small ones are then read at once."""
        if not self.entries or any(entry.masked or entry.spacing for entry in self.entries):
            return None
        row = row_type(self.entries[0].shape)
        offsets = np.array([entry.offset for entry in self.entries])
        if {entry.shape for entry in self.entries} != {self.entries[0].shape} or (offsets % row.itemsize).any():
            return None
        return Packed(self.data[: len(self.data) // row.itemsize * row.itemsize].view(row)), offsets // row.itemsize


@dataclass(frozen=True)
class InMemory:
    """Prepared cases in memory; as `Prepared`."""

    cases: tuple[Case, ...]
    targets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """How many cases."""
        return len(self.cases)

    def take(self, rows: npt.NDArray[np.int64]) -> list[Case]:
        """Some cases, prepared."""
        return [self.cases[row] for row in rows]


@dataclass(frozen=True)
class Dataset:
    """A cohort whose every case has been read: those to train on, and those held out."""

    cohort: Cohort
    train: Prepared | InMemory
    held_out: Prepared | InMemory
    mapped: mmap.mmap | None = None

    @cached_property
    def judged(self) -> int:
        """Held-out patients whom metrics tell of; of cases with masks, those in whom something is drawn."""
        side = self.held_out
        drawn = np.ones(len(side), bool)
        for row in np.flatnonzero(side.targets < 0):
            (case,) = side.take(np.array([row]))
            drawn[row] = case.mask is None or case.mask.any()
        return len(set(self.cohort.whose(held_out=True)[drawn]))

    def rest(self) -> None:
        """Let go of the images' memory; what is looked at again is mapped again, from the system's cache as a rule."""
        if self.mapped is not None:
            self.mapped.madvise(mmap.MADV_DONTNEED)


def prepare(
    cohort: Cohort,
    data: Data,
    cache: Path,
    settings: TaskSettings,
    task: Task,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Decode what is not yet in the cache, and open it.

    Args:
        cohort: The cases; those that cannot be read or prepared are left out, and counted by reason.
        data: The site's data settings.
        cache: Folder of all caches of this site.
        settings: The study's task.
        task: Prepares one case.
        progress: Called with (cases done, cases in all) of those not yet in the cache.

    Raises:
        ConfigError: The annotations name what the site's words do not know.
        DataError: The cache cannot be written.
    """
    folder = cache / _name(settings, data)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with closing(_open_index(folder / "index.sqlite")) as index:
            _fill(index, folder / "images", cohort, lambda case: _prepared(case, data, settings, task), progress)
            entries, reasons = _known(index)
        with (folder / "images").open("rb") as images:
            size = os.fstat(images.fileno()).st_size
            mapped = mmap.mmap(images.fileno(), size, access=mmap.ACCESS_READ) if size else None
        store = np.frombuffer(mapped or b"", np.uint8)
    except (OSError, sqlite3.Error) as error:
        raise DataError(
            f"run.work: the image cache {folder} cannot be written: {error}",
            "free space or correct its permissions",
        ) from error
    cohort = cohort.without({name: reasons[name] for name in cohort.cases["name"] if name in reasons})
    return Dataset(cohort, _side(cohort, False, store, entries), _side(cohort, True, store, entries), mapped)


def hold(arrays: Arrays, cohort: Cohort, task: Task) -> Dataset:
    """Prepare cases that are arrays already, and hold them in memory.

    Args:
        arrays: Of all cases.
        cohort: The same cases, in the same order.
        task: Prepares one case.
    """

    def side(held_out: bool) -> InMemory:
        rows = np.flatnonzero(cohort.cases["held_out"].to_numpy() == held_out)
        cases = (task.prepare(Case(arrays.images[row], label=int(arrays.labels[row]))) for row in rows)
        return InMemory(tuple(cases), arrays.labels[rows])

    return Dataset(cohort, side(False), side(True))


def _side(cohort: Cohort, held_out: bool, store: npt.NDArray[np.uint8], entries: dict[str, Entry]) -> Prepared:
    cases = cohort.side(held_out)
    return Prepared(store, tuple(entries[name] for name in cases["name"]), cases["target"].to_numpy().astype(np.int64))


def _name(settings: TaskSettings, data: Data) -> str:
    """The folder of one preparation: whatever changes a prepared case, but for its own files, changes this."""
    # Names, sizes and times of files may be the same in two exports.
    root = ascii(str(data.folder.resolve()))
    what: list[Any] = [root, settings.model_dump(mode="json", exclude=set(settings.unprepared))]
    if settings.drawn and data.annotations is not None:
        what += [settings.classes, data.annotations.model_dump(mode="json", exclude={"kinds"})]
    return digest(canonical([_VERSION, {name: _installed(name) for name in _READERS}, *what]))[:16]


def _installed(package: str) -> str:
    """The version of a package, "" if it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _open_index(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    index = sqlite3.connect(path)
    index.execute(
        "CREATE TABLE IF NOT EXISTS cases"  # a name may be no UTF-8
        " (name BLOB PRIMARY KEY, stamp TEXT, start INT, stop INT, about TEXT, reason TEXT)"
    )
    return index


def _known(index: sqlite3.Connection) -> tuple[dict[str, Entry], dict[str, str]]:
    """By name: where each case lies that does, and the reason of each that does not."""
    entries, reasons = {}, {}
    for name, start, about, reason in index.execute("SELECT name, start, about, reason FROM cases"):
        if reason is not None:
            reasons[os.fsdecode(name)] = reason
        else:
            shape, spacing, masked = json.loads(about)
            entries[os.fsdecode(name)] = Entry(start, tuple(shape), tuple(spacing) if spacing else None, masked)
    return entries, reasons


def _fill(
    index: sqlite3.Connection,
    data: Path,
    cohort: Cohort,
    read: Callable[[Any], Case | str],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Append every case that is not in the cache as it is on disk now."""
    with open(os.open(data, os.O_CREAT | os.O_RDWR, 0o600), "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # two that append at once would write over each other's cases
        (end,) = index.execute("SELECT COALESCE(MAX(stop), 0) FROM cases").fetchone()
        if os.fstat(file.fileno()).st_size < end:  # somebody deleted the images
            with index:
                index.execute("DELETE FROM cases")
            end = 0
        # A file that could not be read at all is tried again: the trouble may have passed.
        again = Reason.UNREADABLE.value
        present = set(index.execute("SELECT name, stamp FROM cases WHERE reason IS NOT ?", (again,)))
        names = [os.fsencode(name) for name in cohort.cases["name"]]
        missing = cohort.cases[[key not in present for key in zip(names, cohort.cases["stamp"], strict=True)]]
        if missing.empty:
            return
        file.truncate(end)  # cases that an interrupted run wrote but did not index
        file.seek(0, os.SEEK_END)
        entries: list[tuple[bytes, str, int | None, int | None, str | None, str | None]] = []
        start = end
        row: Any
        for done, row in enumerate(missing.itertuples(index=False), start=1):
            name, found = os.fsencode(row.name), read(row)
            if isinstance(found, str):
                # Its `stop` keeps the file from being cut shorter: what lay there last may still be in use elsewhere.
                entries.append((name, row.stamp, None, end, None, found))
            else:
                stop = end + file.write(_record(found))
                about = json.dumps([found.image.shape, found.spacing, found.mask is not None])
                entries.append((name, row.stamp, end, stop, about, None))
                end = stop
            if len(entries) == _BATCH or end - start >= _BYTES or done == len(missing):
                file.flush()
                os.fsync(file.fileno())
                with index:
                    index.executemany("INSERT OR REPLACE INTO cases VALUES (?, ?, ?, ?, ?, ?)", entries)
                entries, start = [], end
                if progress:
                    progress(done, len(missing))


def _record(case: Case) -> bytes:
    """A prepared case as it is written; of even length, so that the next one can be read fast."""
    record = pack(case.image)
    if case.mask is None:
        return record
    mask = np.ascontiguousarray(case.mask).tobytes()
    return record + mask + bytes(len(mask) % 2)


def _prepared(case: Any, data: Data, settings: TaskSettings, task: Task) -> Case | str:
    """A case as the network takes it, or the reason why there is none."""
    try:
        prepared = task.prepare(read_case(case, data, settings.classes, settings.unit))
    except (UnreadableFile, UnfitAnnotation) as error:
        return error.reason.value
    except ConfigError:
        raise
    except VolumeTooLarge:
        return Misfit.TOO_LARGE.value
    except DataError:
        return OUT_OF_RANGE
    with np.errstate(all="ignore"):
        usable = np.isfinite(np.ptp(prepared.image))  # so that every value and the range can be told in float32
    return prepared if usable else OUT_OF_RANGE
