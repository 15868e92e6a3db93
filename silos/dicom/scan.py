"""Finds the usable images below a folder and what is drawn on them, and counts what was left out and why.

    found = scan(Path("/srv/dicom"), Path("work/index.sqlite"), modality=["MR"], attributes=["StudyDate"])
    found.instances     # one row per usable image
    found.annotations   # one row per segmentation or set of contours drawn on images
    found.left_out      # {"wrong modality": 14, "truncated": 1}
    found.examples      # {"wrong modality": "a/0001.dcm", "truncated": "b/0007.dcm"}

Any shape of folder will do: a file is DICOM by what it holds, not by its name. Only headers are read, and of
those only `ATTRIBUTES` and what the site joins its labels on. A file that has not changed since the last
scan is not opened again; an interrupted scan goes on where it stopped. The folder is never written to.

No file can stop a scan. What a hospital's own settings decide (modality, burned-in text) is decided anew
on every scan from the index, so that changing them needs no reading.
"""

import fcntl
import hashlib
import marshal
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
from pydicom.datadict import dictionary_VR, tag_for_keyword

from models.errors import DataError
from silos.dicom import index as store
from silos.dicom.header import Reason
from silos.dicom.rows import AGAIN, File, read_rows

ATTRIBUTES = (
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "PatientID",
    "AccessionNumber",
    "InstanceNumber",
    "Modality",
    "TransferSyntaxUID",
    "SOPClassUID",
    "ImageType",
    "ConversionType",
    "BurnedInAnnotation",
    "RecognizableVisualFeatures",
    "BodyPartExamined",
    "StudyDate",
    "Manufacturer",
    "ManufacturerModelName",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "NumberOfFrames",
    "ConcatenationUID",
    "PixelSpacing",
    "SliceThickness",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "FrameOfReferenceUID",
    "Units",
)
"""Every attribute that is read of a header; a site adds only what joins its labels."""

BATCH = 256  # files between two commits; an interrupted scan reads at most these again

ANNOTATIONS: dict[str, str] = {
    "1.2.840.10008.5.1.4.1.1.66.4": "SEG",  # segmentation
    "1.2.840.10008.5.1.4.1.1.66.7": "SEG",  # label map segmentation
    "1.2.840.10008.5.1.4.1.1.481.3": "RTSTRUCT",  # radiotherapy structure set
}
"""SOP classes of what is drawn on images, and their modality."""

_NO_TEXT = {"SQ", "OB", "OD", "OF", "OL", "OV", "OW", "UN"}
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and its multi-frame variants below it
_SCREENS = {"SCREENSAVE", "SCREENSHOT", "SCREENCAPTURE", "SECONDARYCAPTURE"}
# Modalities whose machines write names into the picture, and do not always say so.
OFTEN_BURNED_IN = ("US", "XA", "RF", "ES", "XC", "OT")


@dataclass(frozen=True, eq=False)
class Scan:
    """What a scan found.

    Attributes:
        instances: One row per usable image: `path` below the root, `size` (bytes), `mtime_ns`, and every
            attribute as text ("" where absent), sorted by series, then instance number.
        annotations: The same columns, one row per DICOM SEG or RTSTRUCT, sorted by path.
        left_out: Reason -> number of files.
        examples: Reason -> the first such file's path below the root. For this machine's eyes only.
        files: Files below the root; the usable, the annotations and the left out add up to it.
        opened: Files that were opened this time, because they were new or had changed.
        closed: Folders that could not be opened, and why: "PATH: Permission denied". For this machine's eyes only.
    """

    instances: pd.DataFrame
    annotations: pd.DataFrame
    left_out: dict[str, int]
    examples: dict[str, str]
    files: int
    opened: int
    closed: tuple[str, ...]


def scan(
    root: Path,
    index: Path,
    *,
    modality: Sequence[str],
    attributes: Sequence[str] = (),
    burned_in: Literal["refuse", "allow-unmarked"] = "refuse",
    several_frames: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Scan:
    """Bring the index up to date with the folder, and sort out the usable images.

    Args:
        root: The folder with DICOM; only ever read.
        index: The SQLite file that remembers; must lie outside `root`.
        modality: The modalities that may be used, such as `["MR"]`. Naming OT or SC here is the only way
            to let images of that modality pass as more than a screenshot.
        attributes: Further DICOM keywords to read, of text or numbers.
        burned_in: What to do with modalities that often have text in the picture (ultrasound, angiography,
            fluoroscopy, endoscopy, photographs, other) when an image does not say whether it has.
        several_frames: Whether images of several frames may be used, as volumes may and 2-D images may not.
        progress: Called with (files known, files in all) as the scan goes on.

    Returns:
        The usable images and the number of all others by reason.

    Raises:
        DataError: `root` is missing, no folder, unreadable or empty; `index` lies inside it or cannot be
            written; an attribute is none that can be read as text.
    """
    root, index = root.resolve(), index.absolute()
    _check(root, index, attributes)
    columns = [*ATTRIBUTES, *sorted(set(attributes) - set(ATTRIBUTES))]
    closed: dict[str, str] = {}
    files = walk(root, closed)
    if not files:
        raise DataError(f"data.root: {root} holds no file", "point it at the folder with the DICOM files")
    try:
        with _alone(index), closing(store.open_index(index, root, columns)) as database:
            opened = refresh(database, root, files, columns, progress)
            rows = store.read(database)
    except sqlite3.Error as error:
        raise DataError(
            f"run.work: {index}: {error}", "let one scan run at a time; if it stays, delete the file"
        ) from error
    rows["reason"] = _reasons(rows, modality, burned_in, several_frames)
    paths = rows.groupby("reason")["path"]
    counts, firsts = paths.size(), paths.first()  # rows are sorted by path
    reasons = [reason for reason in Reason if reason in counts]
    left_out = {reason.value: int(counts[reason]) for reason in reasons}
    examples = {reason.value: str(firsts[reason]) for reason in reasons}
    found = rows[rows["reason"] == ""].drop(columns="reason")
    annotated = found["SOPClassUID"].isin(ANNOTATIONS)
    usable, annotations = found[~annotated], found[annotated].reset_index(drop=True)
    number = pd.to_numeric(usable["InstanceNumber"], errors="coerce")
    order = usable.assign(_number=number).sort_values(["SeriesInstanceUID", "_number", "SOPInstanceUID"], kind="stable")
    instances = order.drop(columns="_number").reset_index(drop=True)
    told = tuple(f"{root / folder}: {reason}" for folder, reason in sorted(closed.items()))
    return Scan(instances, annotations, left_out, examples, len(files), opened, told)


def _check(root: Path, index: Path, attributes: Sequence[str]) -> None:
    if not root.exists():
        raise DataError(f"data.root: {root} does not exist", "correct the path, or mount the folder")
    if not root.is_dir():
        raise DataError(f"data.root: {root} is not a folder", "point it at the folder with the DICOM files")
    try:
        os.scandir(root).close()
    except OSError as error:
        raise DataError(f"data.root: {root}: {error.strerror}", "let this user read the folder") from error
    if index.resolve().is_relative_to(root):
        raise DataError(f"run.work: {index} lies inside data.root", "keep what we write outside the images")
    for keyword in attributes:
        if not is_text(keyword):
            raise DataError(f"data.labels.join: {keyword} is no DICOM attribute of text or numbers", "name another")


def is_text(keyword: str) -> bool:
    """Whether a DICOM keyword names an attribute of text or numbers, as a scan can read it."""
    tag = tag_for_keyword(keyword)
    return tag is not None and _NO_TEXT.isdisjoint(dictionary_VR(tag).split(" or "))


@contextmanager
def _alone(index: Path) -> Iterator[None]:
    """Wait until no other scan is at work on an index: sites of one folder may share it."""
    try:
        index.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # A file of its own: closing one that SQLite has open too would end SQLite's locks.
        number = os.open(f"{index}.lock", os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise DataError(f"run.work: {index}: {error.strerror}", "give a folder that this user can write") from error
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)


def walk(root: Path, closed: dict[str, str] | None = None) -> list[File]:
    """Every regular file below the root.

    Links are followed, each folder is entered once. A file or folder that cannot be looked at is given with
    a size that no file has, so that it is opened, fails, and is counted.

    Args:
        root: The folder.
        closed: Takes the folders that could not be opened, by their path below the root, and why.
    """
    closed = {} if closed is None else closed
    files: list[File] = []
    seen: set[tuple[int, int]] = set()
    folders = [""]
    while folders:
        folder = folders.pop()
        within = folder and folder + os.sep
        inner = []
        try:
            status = os.stat(root / folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            listing = os.scandir(root / folder)
        except OSError as error:
            closed[folder] = str(error.strerror)
            files.append((folder, -1, AGAIN))
            continue
        with listing:
            for entry in listing:
                try:
                    status = entry.stat()
                except OSError as error:
                    if isinstance(error, PermissionError) and not entry.is_symlink():  # names are all that is shown
                        closed[folder] = str(error.strerror)
                    files.append((within + entry.name, -1, AGAIN))
                    continue
                kind = stat.S_IFMT(status.st_mode)
                if kind == stat.S_IFREG:
                    files.append((within + entry.name, status.st_size, status.st_mtime_ns))
                elif kind == stat.S_IFDIR:
                    inner.append(within + entry.name)
        folders += sorted(inner, reverse=True)
    return files


def refresh(
    database: sqlite3.Connection,
    root: Path,
    files: Sequence[File],
    columns: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Read what is new or changed into the index, and forget what is gone.

    Args:
        database: The index, from `open_index`.
        root: The folder that it describes.
        files: What `walk` found below it.
        columns: The attributes of the index.
        progress: As for `scan`.

    Returns:
        How many files were opened.
    """
    listing = hashlib.sha256(marshal.dumps(list(files), 2)).digest()  # 2: later versions depend on more than the values
    if store.listing(database) == listing:
        return 0
    store.note(database, None)
    known = store.stamps(database)
    waiting = sorted(file for file in files if file not in known or file[1] < 0)
    store.forget(database, {path for path, *_ in known} - {path for path, *_ in files})
    done, complete = len(files) - len(waiting), True
    batches = [waiting[first : first + BATCH] for first in range(0, len(waiting), BATCH)]
    for rows in read_rows(root, columns, batches):
        for row in rows:
            complete &= row[2] != AGAIN
            done += 1
            if progress:
                progress(done, len(files))
        store.write(database, rows)
    if complete:
        store.note(database, listing)
    return len(waiting)


def _reasons(rows: pd.DataFrame, modality: Sequence[str], burned_in: str, several_frames: bool) -> pd.Series:
    """Why each row is left out; "" if it is not. The first reason that applies is the one that counts."""
    annotated = rows["SOPClassUID"].isin(ANNOTATIONS)
    known = rows["reason"].mask(annotated, "")  # whether these can be read is seen when they are
    known = known.mask(known == Reason.SEVERAL_FRAMES, "") if several_frames else known
    flawed_picture = known.isin([Reason.COLOUR, Reason.SEVERAL_FRAMES, Reason.PIXELS])
    readable = (known == "") | flawed_picture
    kind, series = rows["Modality"], rows["SeriesInstanceUID"]
    several = kind[readable & ~annotated & (series != "")].groupby(series).nunique() > 1
    unmarked = ~rows["BurnedInAnnotation"].str.upper().isin(["YES", "NO"])
    risky = unmarked & kind.isin(OFTEN_BURNED_IN) & (burned_in == "refuse")

    reasons = known.where(~readable, "")
    for reason, applies in (
        (Reason.SEVERAL_MODALITIES, series.isin(several[several].index)),
        (Reason.SECONDARY_CAPTURE, _is_capture(rows, modality)),
        (Reason.MODALITY, ~kind.isin(list(modality))),
        (Reason.BURNED_IN, (rows["BurnedInAnnotation"].str.upper() == "YES") | risky),
    ):
        reasons = reasons.mask((reasons == "") & applies & ~annotated, reason.value)
    reasons = reasons.mask((reasons == "") & flawed_picture, known)
    usable = rows.loc[(reasons == "") & (rows["SOPInstanceUID"] != ""), "SOPInstanceUID"]
    reasons[usable.index[usable.duplicated()]] = Reason.DUPLICATE.value
    return reasons


def _is_capture(rows: pd.DataFrame, modality: Sequence[str]) -> pd.Series:
    """Screenshots and scanned paper, by SOP class, conversion type, image type or modality."""
    words = rows["ImageType"].str.upper().str.replace("[ _-]", "", regex=True).str.split("\\")
    captured = words.map(lambda several: not _SCREENS.isdisjoint(several)).astype(bool)
    sop_class = rows["SOPClassUID"]
    return (
        (sop_class == _SECONDARY_CAPTURE)
        | sop_class.str.startswith(_SECONDARY_CAPTURE + ".")
        | (rows["ConversionType"] != "")
        | captured
        | rows["Modality"].isin({"OT", "SC"} - set(modality))
    )
