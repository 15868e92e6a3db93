"""Paints a DICOM SEG (PS3.3 A.51), read by highdicom; compressed frames are decoded in a process apart, as images are.

Each frame is put where it says that it lies, in any order; frames that were left out as empty stay empty. Its
pixels must be the stack's voxels: flipped, turned and cropped masks are put right, a mask of another resolution
is refused. A frame that names the one image it was drawn on must also lie there; where that is an image of another
stack of the series, the frame is that one's, and where it is none of the series, the mask is refused. Of a fractional
segmentation, what is at least a given fraction of its maximum is in.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from silos.dicom.annotation.unfit import Unfit, UnfitAnnotation
from silos.dicom.apart import DecoderFailed, decode_apart
from silos.dicom.decode import MAX_PIXELS, PLUGINS, check_code
from silos.dicom.frames import frame_texts
from silos.dicom.geometry import Misfit, Plane, read_plane
from silos.dicom.header import Flaw, Reason
from silos.dicom.series import Stack

if TYPE_CHECKING:
    from highdicom.seg import Segmentation

OFF = 0.25  # of a voxel, by which a mask may lie beside the stack's voxels


def paint_segmentation(
    dataset: Dataset, wanted: Mapping[int, int], stack: Stack, mask: NDArray[np.uint8], fraction: float
) -> None:
    """Paint the wanted segments into a mask; a larger class stays over a smaller one.

    Args:
        dataset: The whole file.
        wanted: Segment number -> index of the class.
        stack: The stack that it was drawn on.
        mask: (columns, rows, slices), painted in place.
        fraction: Above 0, at most 1.

    Raises:
        UnfitAnnotation: `NO_IMAGES`, `OTHER_GRID` or `CONTRADICTION`; `OTHER_GRID` also where a class was drawn on the
            series' other stacks and never on this one, of which nobody knows then whether it shows it.
        Flaw: Its pixels cannot be decoded.
    """
    from highdicom.seg import Segmentation, SegmentationTypeValues  # slow to load, and most studies draw nothing

    syntax = dataset.file_meta.TransferSyntaxUID
    shape = int(dataset.Rows), int(dataset.Columns)
    if syntax not in PLUGINS or not 0 < shape[0] * shape[1] <= MAX_PIXELS:
        raise Flaw(Reason.PIXELS)
    segmentation = Segmentation.from_dataset(dataset, copy=False)
    kind = segmentation.segmentation_type
    texts = frame_texts(dataset)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    here, elsewhere = set[int](), set[int]()
    for index, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        numbers = wanted
        if kind != SegmentationTypeValues.LABELMAP:
            number = int(_group("SegmentIdentificationSequence", frame, shared)[0].ReferencedSegmentNumber)
            numbers = {number: wanted[number]} if number in wanted else {}
        if not numbers:
            continue
        source = _source(frame, shared, stack)
        if source and source <= stack.others:
            elsewhere |= set(numbers.values())
            continue
        here |= set(numbers.values())
        pixels = _stored(segmentation, index, syntax, shape)
        plane = read_plane({"Rows": str(shape[0]), "Columns": str(shape[1])} | texts[index])
        for number, class_ in numbers.items():
            if kind == SegmentationTypeValues.LABELMAP:
                inside = pixels == number
            elif kind == SegmentationTypeValues.FRACTIONAL:
                inside = pixels >= fraction * int(dataset.MaximumFractionalValue)
            else:
                inside = pixels != 0
            where = tuple(_voxels(inside, plane, source, stack))
            mask[where] = np.maximum(mask[where], np.uint8(class_))
    if elsewhere - here:
        raise UnfitAnnotation(Unfit.OTHER_GRID)


def _stored(segmentation: "Segmentation", index: int, syntax: str, shape: tuple[int, int]) -> NDArray[Any]:
    """The stored values of a frame, (rows, columns) of integers."""
    if not PLUGINS[syntax]:
        return segmentation.get_stored_frame(index, as_index=True)
    code = segmentation.get_raw_frame(index, as_index=True)
    check_code(code, syntax, shape)
    bits = int(segmentation.BitsAllocated)
    options = {
        "rows": shape[0],
        "columns": shape[1],
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "photometric_interpretation": str(segmentation.PhotometricInterpretation),
        "bits_allocated": bits,
        "bits_stored": bits,
        "pixel_representation": 0,
        "pixel_keyword": "PixelData",
    }
    try:
        return decode_apart(syntax, encapsulate([code], has_bot=False), PLUGINS[syntax], options)
    except DecoderFailed as error:
        raise Flaw(Reason.PIXELS, str(error)) from None


def _voxels(
    inside: NDArray[np.bool_], plane: Plane | Misfit, source: frozenset[tuple[str, int]], stack: Stack
) -> NDArray[np.int64]:
    """The voxels, (3, n), of the pixels that are inside."""
    rows, columns = np.nonzero(inside)
    if isinstance(plane, Misfit):
        raise UnfitAnnotation(Unfit.OTHER_GRID)
    if rows.size and source and not stack.has(source):
        raise UnfitAnnotation(Unfit.NO_IMAGES)
    to_voxels = np.linalg.inv(stack.affine) @ plane.affine(plane.normal)
    steps, first = to_voxels[:3, :2], to_voxels[:3, 3]
    whole = np.rint(steps)
    aligned = (np.abs(whole).sum(0) == 1).all() and (np.abs(whole).sum(1) <= 1).all()
    drift = np.abs(steps - whole).max() * max(inside.shape) + np.abs(first - np.rint(first)).max()
    if not aligned or drift > OFF:
        raise UnfitAnnotation(Unfit.OTHER_GRID)
    found = (whole @ np.stack([columns, rows]) + np.rint(first)[:, None]).astype(np.int64)
    if (found < 0).any() or (found >= np.array(stack.shape)[:, None]).any():
        raise UnfitAnnotation(Unfit.OTHER_GRID)
    slices = [stack.places[each] for each in source if each in stack.places]
    if slices and not np.isin(found[2], slices).all():
        raise UnfitAnnotation(Unfit.CONTRADICTION)
    return found


def _source(frame: Dataset, shared: Dataset, stack: Stack) -> frozenset[tuple[str, int]]:
    """(SOPInstanceUID, frame from 1) of the one image, or some of its frames, that this frame was drawn on."""
    items = [
        item
        for derivation in frame.get("DerivationImageSequence") or shared.get("DerivationImageSequence") or ()
        for item in derivation.get("SourceImageSequence") or ()
    ]
    return stack.named(items[0]) if len(items) == 1 else frozenset()


def _group(keyword: str, *groups: Dataset) -> Any:
    return next(items for group in groups if (items := group.get(keyword)))
