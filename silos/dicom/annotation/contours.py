"""Paints the closed planar contours of an RTSTRUCT (PS3.3 C.8.8.6).

A voxel is inside where its centre is. Contours of one structure in one slice are filled by the even-odd rule, so
that a contour within another is a hole, and so is where two overlap. A contour lies in the slice in which its
points lie; if it names one of the stack's images, it must be that one. Slices between contours stay empty.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from silos.dicom.annotation.reference import Annotation
from silos.dicom.annotation.unfit import Unfit, UnfitAnnotation
from silos.dicom.geometry import TO_RAS, Floats
from silos.dicom.series import Stack

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
        UnfitAnnotation: `OPEN`, `OTHER_GRID` or `CONTRADICTION`.
    """
    frames = {segment.number: segment.frame_of_reference for segment in annotation.segments}
    to_voxels = np.linalg.inv(stack.affine) @ TO_RAS
    for roi in dataset.ROIContourSequence:  # without it the file is cut short
        number = int(roi.ReferencedROINumber)
        elsewhere = stack.frame_of_reference and frames.get(number, "") not in ("", stack.frame_of_reference)
        if number not in wanted or elsewhere:
            continue
        polygons: dict[int, list[Floats]] = {}
        for contour in roi.get("ContourSequence") or ():
            if contour.ContourGeometricType not in CLOSED:
                raise UnfitAnnotation(Unfit.OPEN)
            voxels = _points(contour) @ to_voxels[:3, :3].T + to_voxels[:3, 3]
            polygons.setdefault(_slice(contour, voxels, stack), []).append(voxels[:, :2])
        for slice_, several in polygons.items():
            inside = fill(several, stack.shape[:2])
            mask[inside, slice_] = np.maximum(mask[inside, slice_], np.uint8(wanted[number]))


def _points(contour: Dataset) -> Floats:
    """The points of a contour, (n, 3) mm, LPS."""
    written = contour.get_item("ContourData").value  # pydicom's own numbers would take most of the time
    words = written.rstrip(b"\0 ").split(b"\\") if isinstance(written, bytes) else written
    return np.array(words, dtype=np.float64).reshape(-1, 3)


def _slice(contour: Dataset, voxels: Floats, stack: Stack) -> int:
    place = round(float(voxels[:, 2].mean()))
    if np.abs(voxels[:, 2] - place).max() > OFF or not 0 <= place < stack.shape[2]:
        raise UnfitAnnotation(Unfit.OTHER_GRID)
    images = contour.get("ContourImageSequence") or ()
    named = {
        stack.places.get((str(image.ReferencedSOPInstanceUID), int(image.get("ReferencedFrameNumber") or 1)))
        for image in images
    } - {None}
    if named and place not in named:
        raise UnfitAnnotation(Unfit.CONTRADICTION)
    return place


def fill(polygons: Sequence[Floats], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Which points of a grid lie inside, by the even-odd rule.

    Args:
        polygons: Closed polygons, each (n, 2), in indices of the grid.
        shape: (n0, n1) of the grid.

    Returns:
        Array of that shape; a point with an odd number of edges before it is inside.
    """
    toggles = np.zeros((shape[0] + 1, shape[1]), np.bool_)
    for polygon in polygons:
        start, end = polygon, np.roll(polygon, -1, axis=0)
        low, high = np.sort([start[:, 1], end[:, 1]], axis=0)
        # An edge crosses the lines from its lower end up to, but without, its upper end.
        first, last = (np.clip(np.ceil(each), 0, shape[1]).astype(np.int64) for each in (low, high))
        edge = np.repeat(np.arange(len(polygon)), last - first)
        line = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)])
        part = (line - start[edge, 1]) / (end[edge, 1] - start[edge, 1])
        crossing = start[edge, 0] + part * (end[edge, 0] - start[edge, 0])
        np.logical_xor.at(toggles, (np.clip(np.ceil(crossing), 0, shape[0]).astype(np.int64), line), True)
    inside: NDArray[np.bool_] = np.logical_xor.accumulate(toggles, axis=0)[:-1]
    return inside
