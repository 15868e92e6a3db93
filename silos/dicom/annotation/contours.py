"""Paints the closed planar contours of an RTSTRUCT (PS3.3 C.8.8.6).

A voxel is inside where its centre is. Contours of one structure in one slice are filled by the even-odd rule, so
that a contour within another is a hole, and so is where two overlap. A contour lies in the slice in which its
points lie; if it names one of the stack's images, it must be that one. Slices between contours stay empty. A contour
that names only images of another stack of the series was drawn on that one, and is none of this one's; one that names
only images of other series is refused.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from silos.dicom.annotation.reference import Annotation
from silos.dicom.annotation.unfit import Unfit, UnfitAnnotation
from silos.dicom.geometry import TO_RAS, Floats
from silos.dicom.header import Flaw, Reason
from silos.dicom.series import Stack

MAX_CROSSINGS = 2**22  # of one contour with lines of the grid; the longest that anybody draws has thousands
MAX_DRAWN = 2**26  # of all of a file; to fill them takes seconds
OFF = 0.25  # of the distance between slices, by which a contour may lie beside one
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")


def paint_contours(
    dataset: Dataset, annotation: Annotation, wanted: Mapping[int, int], stack: Stack, mask: NDArray[np.uint8]
) -> None:
    """Paint the wanted structures into a mask; a larger class stays over a smaller one.

    Args:
        dataset: The whole file.
        annotation: Its header.
        wanted: ROI number -> index of the class.
        stack: The stack that it was drawn on.
        mask: (columns, rows, slices), painted in place.

    Raises:
        UnfitAnnotation: `NO_IMAGES`, `OPEN`, `OTHER_GRID` or `CONTRADICTION`; `OTHER_GRID` also where a class was drawn
            on the series' other stacks and never on this one, of which nobody knows then whether it shows it.
        Flaw: A contour is of absurd length, or all of them together are.
    """
    frames = {segment.number: segment.frame_of_reference for segment in annotation.segments}
    to_voxels = np.linalg.inv(stack.affine) @ TO_RAS
    here, elsewhere, drawn = set[int](), set[int](), 0
    for roi in dataset.ROIContourSequence:  # without it the file is cut short
        number = int(roi.ReferencedROINumber)
        foreign = stack.frame_of_reference and frames.get(number, "") not in ("", stack.frame_of_reference)
        if number not in wanted or foreign:
            continue
        polygons: dict[int, list[Floats]] = {}
        for contour in roi.get("ContourSequence") or ():
            named = _named(contour, stack)
            if named and not stack.has(named):
                raise UnfitAnnotation(Unfit.NO_IMAGES)
            if named and named <= stack.others:
                elsewhere.add(wanted[number])
                continue
            here.add(wanted[number])
            if contour.ContourGeometricType not in CLOSED:
                raise UnfitAnnotation(Unfit.OPEN)
            voxels = _points(contour) @ to_voxels[:3, :3].T + to_voxels[:3, 3]
            first, last = _crossed(voxels[:, :2], stack.shape[1])
            drawn += int((last - first).sum())
            if drawn > MAX_DRAWN:
                raise Flaw(Reason.UNREADABLE, "contours of absurd length")
            polygons.setdefault(_slice(voxels, named, stack), []).append(voxels[:, :2])
        for slice_, several in polygons.items():
            inside = fill(several, stack.shape[:2])
            mask[inside, slice_] = np.maximum(mask[inside, slice_], np.uint8(wanted[number]))
    if elsewhere - here:
        raise UnfitAnnotation(Unfit.OTHER_GRID)


def _points(contour: Dataset) -> Floats:
    """The points of a contour, (n, 3) mm, LPS."""
    written = contour.get_item("ContourData").value  # pydicom's own numbers would take most of the time
    words = written.rstrip(b"\0 ").split(b"\\") if isinstance(written, bytes) else written
    return np.array(words, dtype=np.float64).reshape(-1, 3)


def _named(contour: Dataset, stack: Stack) -> set[tuple[str, int]]:
    """(SOPInstanceUID, frame from 1) of the images that a contour names."""
    return {each for image in contour.get("ContourImageSequence") or () for each in stack.named(image)}


def _slice(voxels: Floats, named: set[tuple[str, int]], stack: Stack) -> int:
    place = round(float(voxels[:, 2].mean()))
    if np.abs(voxels[:, 2] - place).max() > OFF or not 0 <= place < stack.shape[2]:
        raise UnfitAnnotation(Unfit.OTHER_GRID)
    places = {stack.places[each] for each in named if each in stack.places}
    if places and place not in places:
        raise UnfitAnnotation(Unfit.CONTRADICTION)
    return place


def fill(polygons: Sequence[Floats], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Which points of a grid lie inside, by the even-odd rule.

    Args:
        polygons: Closed polygons, each (n, 2), in indices of the grid.
        shape: (n0, n1) of the grid.

    Returns:
        Array of that shape; a point with an odd number of edges before it is inside.

    Raises:
        Flaw: A polygon crosses more than `MAX_CROSSINGS` lines of the grid.
    """
    toggles = np.zeros((shape[0] + 1, shape[1]), np.bool_)
    for polygon in polygons:
        start, end = polygon, np.roll(polygon, -1, axis=0)
        first, last = _crossed(polygon, shape[1])
        if (last - first).sum() > MAX_CROSSINGS:
            raise Flaw(Reason.UNREADABLE, "a contour of absurd length")
        edge = np.repeat(np.arange(len(polygon)), last - first)
        line = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)])
        part = (line - start[edge, 1]) / (end[edge, 1] - start[edge, 1])
        crossing = start[edge, 0] + part * (end[edge, 0] - start[edge, 0])
        np.logical_xor.at(toggles, (np.clip(np.ceil(crossing), 0, shape[0]).astype(np.int64), line), True)
    inside: NDArray[np.bool_] = np.logical_xor.accumulate(toggles, axis=0)[:-1]
    return inside


def _crossed(polygon: Floats, lines: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each edge, the lines of the grid that it crosses: from its lower end up to, but without, its upper end."""
    low, high = np.sort([polygon[:, 1], np.roll(polygon[:, 1], -1)], axis=0)
    first, last = (np.clip(np.ceil(each), 0, lines).astype(np.int64) for each in (low, high))
    return first, last
