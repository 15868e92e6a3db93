"""Which images an annotation was drawn on, and what it calls the things that it shows.

Reads headers only; of an annotation whose header names no images, its frames or contours too. References decide, never
folders: the images that an annotation names; where it names none, its series; where it names nothing at all, the one
stack of its frame of reference (PS3.3 C.7.4.1). A DICOM SEG of which a program made every segment is no annotation of
anybody's, and is left out.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from pydicom.dataset import Dataset

from silos.dicom.annotation.opening import open_annotation
from silos.dicom.annotation.unfit import Unfit
from silos.dicom.header import Flaw, Reason, UnreadableFile, open_header
from silos.dicom.scan import ANNOTATIONS
from silos.dicom.series import Stack

_KEYWORDS = (
    "FrameOfReferenceUID",
    "ReferencedSeriesSequence",
    "SegmentSequence",
    "ReferencedFrameOfReferenceSequence",
    "StructureSetROISequence",
    "RTROIObservationsSequence",
)
BACKGROUND = "DCM:125040"  # the code of what no segment is, which label maps list among their segments


@dataclass(frozen=True)
class Segment:
    """One thing that an annotation shows.

    Attributes:
        number: By which its pixels or contours are found in the file.
        name: What the hospital calls it: SegmentLabel or ROIName.
        codes: What it is by its codes, as `scheme:value`, such as `SCT:4147007`.
        frame_of_reference: In which it was drawn, "" if the file does not say so for each.
        automatic: Whether a DICOM SEG says that a program made it alone (SegmentAlgorithmType, PS3.3 C.8.20).
    """

    number: int
    name: str
    codes: tuple[str, ...] = ()
    frame_of_reference: str = ""
    automatic: bool = False


@dataclass(frozen=True)
class Annotation:
    """One DICOM SEG or RTSTRUCT.

    Attributes:
        path: Below the root.
        kind: `SEG` or `RTSTRUCT`.
        segments: What it shows.
        instances: SOPInstanceUIDs of the images that it names.
        series: SeriesInstanceUIDs that it names.
        frames_of_reference: In which it was drawn.
    """

    path: str
    kind: str
    segments: tuple[Segment, ...]
    instances: frozenset[str]
    series: frozenset[str]
    frames_of_reference: frozenset[str]


@dataclass(frozen=True)
class Matches:
    """The annotations of each stack that has any, and how many others there are, by reason."""

    by_stack: dict[Stack, tuple[Annotation, ...]]
    left_out: dict[str, int]


def match(annotations: pd.DataFrame, stacks: Iterable[Stack], root: Path) -> Matches:
    """Find the stacks that annotations were drawn on.

    Args:
        annotations: Those of a scan.
        stacks: What `find_stacks` found.
        root: Folder that their paths are relative to.

    Returns:
        The annotations by stack, and the number of others by reason (`Unfit`, or `Reason` where a file could not
        be read).
    """
    stacks = list(stacks)
    by_instance: dict[str, list[Stack]] = {}
    for stack in stacks:
        for instance in stack.instances:
            by_instance.setdefault(instance, []).append(stack)
    by_stack: dict[Stack, list[Annotation]] = {}
    left_out: Counter[str] = Counter()
    for path in annotations["path"]:
        try:
            annotation = read_annotation(root, path)
        except UnreadableFile as error:
            left_out[error.reason.value] += 1
            continue
        except OSError:
            left_out[Reason.UNREADABLE.value] += 1
            continue
        found = _stacks_of(annotation, stacks, by_instance)
        if isinstance(found, Unfit):
            left_out[found.value] += 1
        else:
            for stack in found:
                by_stack.setdefault(stack, []).append(annotation)
    return Matches({stack: tuple(several) for stack, several in by_stack.items()}, dict(sorted(left_out.items())))


def read_annotation(root: Path, path: str) -> Annotation:
    """What an annotation shows, and of which images.

    Args:
        root: Folder that the path is relative to.
        path: A DICOM SEG or RTSTRUCT.

    Raises:
        UnreadableFile: It is neither, or damaged.
        OSError: The file cannot be opened.
    """
    with open_header(root / path, _KEYWORDS) as header:
        kind = ANNOTATIONS.get(header.texts["SOPClassUID"])
        if kind is None:
            raise Flaw(Reason.UNREADABLE, "no annotation")
        try:
            read = _contours if kind == "RTSTRUCT" else _segmentation
            annotation = read(path, header.dataset)
        except Exception as error:
            raise Flaw(Reason.UNREADABLE, type(error).__name__) from None
    if annotation.instances:
        return annotation
    with open_annotation(root / path, pixels=False) as dataset:
        return replace(
            annotation, instances=frozenset(str(each.ReferencedSOPInstanceUID) for each in _drawn_on(dataset))
        )


def _stacks_of(
    annotation: Annotation, stacks: Sequence[Stack], by_instance: Mapping[str, list[Stack]]
) -> list[Stack] | Unfit:
    if annotation.segments and all(segment.automatic for segment in annotation.segments):
        return Unfit.AUTOMATIC  # such as what `predict` wrote: a model must not learn from models
    if annotation.instances:
        named = (by_instance.get(instance, ()) for instance in sorted(annotation.instances))
        found = list(dict.fromkeys(chain.from_iterable(named)))
    elif annotation.series:
        found = [stack for stack in stacks if stack.series in annotation.series]
    else:
        found = [stack for stack in stacks if stack.frame_of_reference in annotation.frames_of_reference]
        if len(found) > 1:
            return Unfit.SEVERAL_SERIES
    if not found:
        return Unfit.NO_IMAGES
    known = annotation.frames_of_reference
    agreeing = [
        stack for stack in found if not (known and stack.frame_of_reference) or stack.frame_of_reference in known
    ]
    return agreeing or Unfit.CONTRADICTION


def _segmentation(path: str, dataset: Dataset) -> Annotation:
    series, instances = _references(dataset.get("ReferencedSeriesSequence"), "ReferencedInstanceSequence")
    segments = tuple(
        Segment(
            int(item.SegmentNumber),
            str(item.get("SegmentLabel", "")).strip(),
            _codes(item.get("SegmentedPropertyTypeCodeSequence")),
            automatic=item.get("SegmentAlgorithmType") == "AUTOMATIC",
        )
        for item in dataset.SegmentSequence
    )
    segments = tuple(segment for segment in segments if BACKGROUND not in segment.codes)
    frame = str(dataset.get("FrameOfReferenceUID") or "")
    return Annotation(path, "SEG", segments, instances, series, frozenset({frame} - {""}))


def _contours(path: str, dataset: Dataset) -> Annotation:
    frames = dataset.get("ReferencedFrameOfReferenceSequence") or ()
    referenced = [
        series
        for frame in frames
        for study in frame.get("RTReferencedStudySequence") or ()
        for series in study.get("RTReferencedSeriesSequence") or ()
    ]
    series, instances = _references(referenced, "ContourImageSequence")
    codes = {
        int(item.ReferencedROINumber): _codes(item.get("RTROIIdentificationCodeSequence"))
        for item in dataset.get("RTROIObservationsSequence") or ()
    }
    segments = tuple(
        Segment(
            int(item.ROINumber),
            str(item.get("ROIName") or "").strip(),
            codes.get(int(item.ROINumber), ()),
            str(item.get("ReferencedFrameOfReferenceUID") or ""),
        )
        for item in dataset.StructureSetROISequence
    )
    own = {str(frame.get("FrameOfReferenceUID") or "") for frame in frames}
    drawn = {segment.frame_of_reference for segment in segments}
    return Annotation(path, "RTSTRUCT", segments, instances, series, frozenset((own | drawn) - {""}))


def _drawn_on(dataset: Dataset) -> Iterator[Dataset]:
    """The images that frames or contours name."""
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for frame in dataset.get(keyword) or ():
            for derivation in frame.get("DerivationImageSequence") or ():
                yield from derivation.get("SourceImageSequence") or ()
    for roi in dataset.get("ROIContourSequence") or ():
        for contour in roi.get("ContourSequence") or ():
            yield from contour.get("ContourImageSequence") or ()


def _references(several: Any, images: str) -> tuple[frozenset[str], frozenset[str]]:
    """The SeriesInstanceUIDs and SOPInstanceUIDs that a sequence of series names."""
    series = list(several or ())
    instances = (image for item in series for image in item.get(images) or ())
    return (
        frozenset(str(item.SeriesInstanceUID) for item in series),
        frozenset(str(image.ReferencedSOPInstanceUID) for image in instances),
    )


def _codes(sequence: Any) -> tuple[str, ...]:
    return tuple(_code(item) for item in sequence or ())


def _code(item: Dataset) -> str:
    value = item.get("CodeValue") or item.get("LongCodeValue") or ""
    return f"{item.get('CodingSchemeDesignator', '')}:{value}"
