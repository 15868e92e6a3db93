"""From the files of a series to volumes in the patient.

    found = find_stacks(scan.instances, root)           # headers only
    found.stacks, found.left_out                        # {"single slice": 3, "missing slices": 40}
    volume = read_volume(found.stacks[0], root)
    volume.pixels, volume.affine                        # (columns, rows, slices) float32; (4, 4), mm in RAS

A series may hold several stacks: parallel slices of one size, spacing and frame of reference are one stack,
whatever the files are called or numbered. Whatever makes no volume is left out and counted with a reason. Images
of several frames (enhanced CT and MR) bring the place and rescaling of every frame with them.

PET is taken in the units that it was stored in, Bq/ml, and the page of `describe` says so; standardised uptake values
are not made, because they need weight, dose and decay times that exports rarely keep right.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from silos.dicom.decode import fill_padding, read_frames, read_slice
from silos.dicom.frames import read_frame_texts
from silos.dicom.geometry import Floats, Misfit, Plane, alike, alone, arrange, read_plane
from silos.dicom.header import Reason, UnreadableFile

MAX_VOXELS = 2**29  # of one volume, upright: 2 GiB of float32
_PET_UNITS = "BQML"  # Bq/ml, the only Units (PS3.3 C.8.9.1.1.3) in which PET is taken


class Note(StrEnum):
    """What one should know about a stack, in the words of the report."""

    TILT = "gantry tilt"
    PART = "part of its series"
    NO_SUV = "PET as stored, no SUV"


@dataclass(frozen=True)
class Slice:
    """One slice of a stack: which frame (from 1) of which file.

    Attributes:
        path: Below the root.
        instance: SOPInstanceUID.
        frame: From 1; 1 in an image of one frame.
        rescale: The frame's own slope and intercept; None where the file's apply.
    """

    path: str
    instance: str
    frame: int
    rescale: tuple[str, str] | None


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices that make a volume, in their order along the normal.

    Attributes:
        series: SeriesInstanceUID.
        frame_of_reference: FrameOfReferenceUID, "" where absent.
        modality: Such as MR.
        slices: The slices.
        shape: (columns, rows, slices).
        affine: (4, 4) float64, from (column, row, slice) to mm in RAS; sheared where the gantry was tilted.
        tilt: Degrees of gantry tilt.
        thickness: SliceThickness as written, "" where the first slice has none. Only of a slice without others does
            anything follow from it.
        notes: What one should know.
        others: (SOPInstanceUID, frame from 1) of the slices of the other stacks of its series.
    """

    series: str
    frame_of_reference: str
    modality: str
    slices: tuple[Slice, ...]
    shape: tuple[int, int, int]
    affine: Floats
    tilt: float
    thickness: str
    notes: tuple[Note, ...]
    others: frozenset[tuple[str, int]] = frozenset()

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distances (mm) between columns, between rows, and between slices along their normal."""
        column, row, step = self.affine[:3, :3].T
        normal = np.cross(column, row)
        distance = abs(step @ normal) / np.linalg.norm(normal)
        return float(np.linalg.norm(column)), float(np.linalg.norm(row)), float(distance)

    @cached_property
    def axes(self) -> list[tuple[int, int]]:
        """For each axis: which of RAS it is nearest to, and whether it points the same way."""
        from nibabel.orientations import io_orientation  # slow to load, and of use for volumes only

        return [(int(axis), int(sign)) for axis, sign in io_orientation(self.affine)]  # type: ignore[no-untyped-call]

    @cached_property
    def instances(self) -> frozenset[str]:
        """SOPInstanceUIDs of the files that the slices are in."""
        return frozenset(each.instance for each in self.slices)

    @cached_property
    def places(self) -> dict[tuple[str, int], int]:
        """(SOPInstanceUID, frame from 1) -> index of the slice."""
        return {(each.instance, each.frame): index for index, each in enumerate(self.slices)}

    def named(self, image: Dataset) -> frozenset[tuple[str, int]]:
        """What a reference to an image means in the stack's series.

        Args:
            image: An item that names it (PS3.3 10.3); without a ReferencedFrameNumber it means all of its frames.

        Returns:
            (SOPInstanceUID, frame from 1) of each slice.
        """
        instance, numbers = str(image.ReferencedSOPInstanceUID), image.get("ReferencedFrameNumber")
        if not numbers:
            return self._of_instance.get(instance, frozenset({(instance, 1)}))
        several = numbers if isinstance(numbers, MultiValue) else [numbers]
        return frozenset((instance, int(each)) for each in several)

    def has(self, images: Iterable[tuple[str, int]]) -> bool:
        """Whether any of these images is in a stack of the series."""
        return any(instance in self._of_instance for instance, _ in images)

    @cached_property
    def _of_instance(self) -> dict[str, frozenset[tuple[str, int]]]:
        """SOPInstanceUID -> the slices of its series that are in that file."""
        found: dict[str, set[tuple[str, int]]] = {}
        for instance, frame in (*self.places, *self.others):
            found.setdefault(instance, set()).add((instance, frame))
        return {instance: frozenset(several) for instance, several in found.items()}


@dataclass(frozen=True, eq=False)
class Volume:
    """A stack and its pixels: (columns, rows, slices) float32 in modality units."""

    pixels: NDArray[np.float32]
    stack: Stack

    @property
    def affine(self) -> Floats:
        """(4, 4) float64, from (column, row, slice) to mm in RAS."""
        return self.stack.affine


@dataclass(frozen=True)
class Found:
    """The stacks of some series, and how many files are in none of them, by reason."""

    stacks: tuple[Stack, ...]
    left_out: dict[str, int]


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A slice that may become part of a stack, and what it must share with the others exactly."""

    slice: Slice
    plane: Plane
    thickness: str
    shared: tuple[str, ...]


def find_stacks(instances: pd.DataFrame, root: Path, *, single: bool = False) -> Found:
    """Sort the images of each series into stacks. Reads no pixel, and opens only images of several frames.

    Args:
        instances: The usable images of a scan with `several_frames`, attributes as text.
        root: Folder that their paths are relative to.
        single: Whether a slice without others is a stack of one, 1 mm thick.

    Returns:
        The stacks by series, in the scan's order, and the number of other files by reason (`Misfit`, or
        `Reason` where a file could not be read).
    """
    stacks: list[Stack] = []
    left_out: Counter[str] = Counter()
    for uid, rows in instances.groupby("SeriesInstanceUID", sort=False):
        found = _in_series(str(uid), rows, root, single)
        stacks += found.stacks
        left_out.update(found.left_out)
    return Found(tuple(stacks), dict(sorted(left_out.items())))


def of_several_patients(instances: pd.DataFrame) -> "pd.Series[bool]":
    """Which images have a PatientID that stands beside another one in a study or a series.

    A study is of exactly one patient (PS3.3 A.1.2.2), so that the two are one person's, before and after a correction,
    or somebody's by mistake. Elsewhere each of them may stand alone, and nobody knows on whose images.

    Args:
        instances: The usable images of a scan, attributes as text.

    Returns:
        One for each image. A file without a PatientID, or without a UID, says nothing.
    """
    patients = instances["PatientID"].str.strip()
    known, several = patients.where(patients != ""), pd.Series(False, instances.index)
    for uids in (instances["StudyInstanceUID"], instances["SeriesInstanceUID"]):
        several |= known.groupby(uids.where(uids != "")).transform("nunique") > 1
    return several | known.isin(known[several].dropna())


def measured(instances: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Images with the PixelSpacing and SliceThickness that those of several frames say of each frame.

    Args:
        instances: The usable images of a scan, attributes as text.
        root: Folder that their paths are relative to.

    Returns:
        The same, with what such an image says of its first frame; as it was where that is nothing or cannot be read.
    """
    found = instances.copy()
    several = (instances["PixelSpacing"] == "") & (instances["NumberOfFrames"] != "")
    for row, path in instances.loc[several, "path"].items():
        try:
            frames = read_frame_texts(root / path)
        except (UnreadableFile, OSError):
            continue
        for keyword in ("PixelSpacing", "SliceThickness") if frames else ():
            if frames[0][keyword]:
                found.loc[row, keyword] = frames[0][keyword]
    return found


def read_volume(stack: Stack, root: Path) -> Volume:
    """Decode the slices of a stack, and fill their padding together.

    Args:
        stack: One that `find_stacks` found.
        root: Folder that its paths are relative to.

    Raises:
        UnreadableFile: A slice cannot be decoded; without it there is no volume.
    """
    columns, rows, count = stack.shape
    pixels = np.empty((count, rows, columns), np.float32)
    framed: dict[str, dict[int, tuple[str, str]]] = {}
    for place, each in enumerate(stack.slices):
        if each.rescale is not None:
            framed.setdefault(each.path, {})[each.frame] = each.rescale
            continue
        image = read_slice(root / each.path)
        if image.shape != (rows, columns):  # the file changed since it was scanned
            raise UnreadableFile(root / each.path, Reason.PIXELS, "another size than its header's")
        pixels[place] = image
    for path, frames in framed.items():
        places = [place for place, each in enumerate(stack.slices) if each.path == path]
        images = read_frames(root / path, frames)
        if images.shape != (len(places), rows, columns):
            raise UnreadableFile(root / path, Reason.PIXELS, "another size than its header's")
        pixels[places] = images
    return Volume(fill_padding(pixels).transpose(2, 1, 0), stack)


def _in_series(uid: str, rows: pd.DataFrame, root: Path, single: bool) -> Found:
    if not uid:
        return Found((), {Misfit.NO_SERIES.value: len(rows)})
    if of_several_patients(rows).any():
        return Found((), {Misfit.SEVERAL_PATIENTS.value: len(rows)})
    texts = [{str(key): value for key, value in row.items()} for row in rows.to_dict("records")]
    modality = texts[0]["Modality"]
    if modality == "PT" and {row["Units"] for row in texts} != {_PET_UNITS}:
        return Found((), {Misfit.PET_UNITS.value: len(rows)})

    candidates: list[_Candidate] = []
    fates: dict[str, str] = {}  # path -> why nothing of it is in a stack
    seen = 0
    for row in texts:
        path = row["path"]
        try:
            for candidate in _candidates(row, root):
                seen += 1
                if isinstance(candidate, Misfit):
                    fates[path] = candidate.value
                else:
                    candidates.append(candidate)
                    fates.setdefault(path, Misfit.MANY_DIRECTIONS.value)  # unless a group takes it
        except UnreadableFile as error:
            fates[path] = error.reason.value
        except OSError:
            fates[path] = Reason.UNREADABLE.value

    stacks = []
    for group in _groups(candidates):
        stack = _stack(uid, modality, group, single)
        if isinstance(stack, Misfit):
            fates |= {each.slice.path: stack.value for each in group}
        else:
            stacks.append(stack)
    for path in {each.path for stack in stacks for each in stack.slices}:
        del fates[path]
    if any(len(stack.slices) < seen for stack in stacks):
        places = frozenset(place for stack in stacks for place in stack.places)
        stacks = [
            replace(stack, notes=(*stack.notes, Note.PART), others=places - stack.places.keys()) for stack in stacks
        ]
    return Found(tuple(stacks), dict(Counter(fates.values())))


def _groups(candidates: list[_Candidate]) -> Iterator[list[_Candidate]]:
    by_shared: dict[tuple[str, ...], list[_Candidate]] = {}
    for each in candidates:
        by_shared.setdefault(each.shared, []).append(each)
    for several in by_shared.values():
        for group in alike([each.plane for each in several]):
            yield [several[index] for index in group]


def _stack(uid: str, modality: str, group: list[_Candidate], single: bool) -> Stack | Misfit:
    planes = [each.plane for each in group]
    arrangement = alone(planes[0]) if single and len(planes) == 1 else arrange(planes)
    if isinstance(arrangement, Misfit):
        return arrangement
    rows, columns = planes[0].shape
    tilt = (Note.TILT,) if arrangement.tilt else ()
    pet = (Note.NO_SUV,) if modality == "PT" else ()
    stack = Stack(
        series=uid,
        frame_of_reference=group[0].shared[0],
        modality=modality,
        slices=tuple(group[index].slice for index in arrangement.order),
        shape=(columns, rows, len(group)),
        affine=arrangement.affine,
        tilt=arrangement.tilt,
        thickness=group[arrangement.order[0]].thickness,
        notes=(*tilt, *pet),
    )
    return Misfit.TOO_LARGE if _voxels(stack) > MAX_VOXELS else stack


def _voxels(stack: Stack) -> float:
    """How many there are once the stack stands upright; a tilt is straightened then, which makes room for its shear."""
    if not stack.tilt:
        return prod(stack.shape)
    order = np.argsort([axis for axis, _ in stack.axes])
    shear = np.abs(np.linalg.qr(stack.affine[:3, :3][:, order]).R)
    extent = shear @ np.subtract(stack.shape, 1)[order] / np.array(stack.spacing)[order]
    return float(np.prod(np.round(extent + 1)))


def _candidates(row: dict[str, str], root: Path) -> Iterator[_Candidate | Misfit]:
    """The slices of one file, or why it has none."""
    if "LOCALIZER" in row["ImageType"].upper().split("\\"):
        yield Misfit.LOCALIZER
        return
    if row["ConcatenationUID"]:  # one image in several files, of which none has all slices (PS3.3 C.7.6.16)
        yield Misfit.CONCATENATION
        return
    shared = (row["FrameOfReferenceUID"],)
    if row["ImagePositionPatient"] and row["NumberOfFrames"] in ("", "1"):
        plane = read_plane(row)
        slice_ = Slice(row["path"], row["SOPInstanceUID"], 1, None)
        yield plane if isinstance(plane, Misfit) else _Candidate(slice_, plane, row["SliceThickness"], shared)
        return
    frames = read_frame_texts(root / row["path"])
    for number, frame in enumerate(frames, start=1):
        plane = read_plane(row | frame)
        slice_ = Slice(row["path"], row["SOPInstanceUID"], number, (frame["RescaleSlope"], frame["RescaleIntercept"]))
        like = (*shared, row["path"], frame["StackID"])
        yield plane if isinstance(plane, Misfit) else _Candidate(slice_, plane, frame["SliceThickness"], like)
    if not frames:
        yield Misfit.NO_POSITION
