"""Writes a mask as a binary DICOM SEG (PS3.3 A.51), made by highdicom: the way back from `read_mask`.

    write_mask(path, mask, stack, root, [Drawn("lesion", "SCT:49755003", "SCT:52988006")], algorithm, "demo lesion")

The segmentation is of the same patient, study and frame of reference as its images, on their own grid, and every
frame names the image that it was drawn on. It is a series of its own. What nobody has checked says so: its
segments are AUTOMATIC, and name the algorithm.
"""

import importlib.metadata
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from highdicom.seg import Segmentation, SegmentDescription
from highdicom.sr.coding import CodedConcept
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.sr.codedict import codes
from pydicom.valuerep import DA, TM

from models.errors import DataError
from models.ledger.disk import create
from silos.dicom.series import Stack

NO_FRAME = "no frame of reference, which a segmentation needs"
UNWRITABLE = "images of which no segmentation can be written"

_SCHEME = "99INTRAMURAL"  # of classes for which the study gave no codes
_SERIES = 900  # and more: behind what a scanner makes

# Of the patient, the study and the frame of reference; PS3.3 has them present, if empty (type 2).
_REPEATED = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PositionReferenceIndicator",
)
# Those of them of which highdicom takes only what PS3.3 and PS3.5 6.2 allow.
_JUDGED: dict[str, Callable[[Any], object]] = {
    "PatientBirthDate": DA,
    "PatientSex": hd.PatientSexValues,
    "StudyDate": DA,
    "StudyTime": TM,
}


@dataclass(frozen=True)
class Drawn:
    """What one class is called in a segmentation.

    Attributes:
        name: The study's word.
        category: Coded, as `scheme:value`; None where the study gave no code.
        type: Coded, as well.
    """

    name: str
    category: str | None = None
    type: str | None = None


class Unwritable(DataError):  # noqa: N818 - named as the errors of models/errors.py are
    """Images of which no segmentation can be written.

    Args:
        reason: The words by which it is counted.
        detail: What was found; local only.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason, "export the series again from the archive")
        self.reason = reason


def write_mask(
    path: Path,
    mask: NDArray[np.uint8],
    stack: Stack,
    root: Path,
    classes: Sequence[Drawn],
    made_by: Mapping[str, str],
    title: str,
) -> None:
    """Write a mask as a DICOM SEG that only its owner can read.

    Args:
        path: The file; nothing is overwritten.
        mask: (columns, rows, slices): 0 for background, k for the k-th class.
        stack: The stack that it is of.
        root: Folder that the stack's paths are relative to.
        classes: What the values 1, 2, ... stand for.
        made_by: What a reader must know of the algorithm, by name, such as the model's digest.
        title: The series' description.

    Raises:
        Unwritable: The images lack what a segmentation must repeat or refer to.
    """
    if not stack.frame_of_reference:
        raise Unwritable(NO_FRAME)
    version = importlib.metadata.version("intramural")
    algorithm = hd.AlgorithmIdentificationSequence(
        "intramural", codes.cid7162.ArtificialIntelligence, version, parameters=dict(made_by)
    )
    segments = [
        SegmentDescription(
            number, each.name, *_coded(each), algorithm_type="AUTOMATIC", algorithm_identification=algorithm
        )
        for number, each in enumerate(classes, start=1)
    ]
    try:
        images, frames = _on_images(mask, stack, root)
        number = getattr(images[0], "SeriesNumber", None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that are not as DICOM would have them, and of an empty mask
            dataset = Segmentation(
                images,
                frames,
                "BINARY",
                segments,
                hd.UID(),
                _SERIES + int(number or 0),
                hd.UID(),
                1,
                manufacturer="Intramural",
                manufacturer_model_name="intramural-silo predict",
                software_versions=version,
                device_serial_number="0",
                omit_empty_frames=bool(mask.any()),
                series_description=title[:64],
                content_label="PREDICTION",
                content_description="Made by a program; not checked by anybody",
            )
            if stack.slices[0].rescale is not None:
                _name_frames(dataset, stack)
            content = DicomBytesIO()
            dataset.save_as(content, enforce_file_format=True)
    except Exception as error:  # whatever highdicom finds wrong with a stranger's images
        raise Unwritable(UNWRITABLE, f"{type(error).__name__}: {error}") from error
    create(path, content.getvalue(), 0o600)


def _on_images(mask: NDArray[np.uint8], stack: Stack, root: Path) -> tuple[list[Dataset], NDArray[np.uint8]]:
    """The source images without pixels, and the mask as (slices, rows, columns) of them."""
    planes = mask.transpose(2, 1, 0)
    if stack.slices[0].rescale is None:
        return [_header(root / each.path, stack) for each in stack.slices], planes
    return [_frames_alone(_header(root / stack.slices[0].path, stack), stack)], planes


def _frames_alone(image: Dataset, stack: Stack) -> Dataset:
    """An image of the stack's frames alone, with their functional groups where highdicom looks for them.

    PS3.3 C.7.6.16 lets a group stand once for all frames or in each of them, and makers differ. The frames of a stack
    have one spacing and orientation; those of the other stacks in the file may have others.
    """
    shared = (image.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    frames = [image.PerFrameFunctionalGroupsSequence[each.frame - 1] for each in stack.slices]
    for keyword in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
        if keyword in frames[0]:
            shared[keyword] = frames[0][keyword]
    for frame in frames:
        if "PlanePositionSequence" not in frame:
            frame["PlanePositionSequence"] = shared["PlanePositionSequence"]
    image.SharedFunctionalGroupsSequence = [shared]
    image.PerFrameFunctionalGroupsSequence, image.NumberOfFrames = frames, len(frames)
    return image


def _name_frames(segmentation: Dataset, stack: Stack) -> None:
    """Count the frames that a segmentation refers to as their file does."""
    frames = segmentation.PerFrameFunctionalGroupsSequence
    sources = (frame.DerivationImageSequence[0].SourceImageSequence[0] for frame in frames)
    for source in {id(source): source for source in sources}.values():  # segments share the item of a source frame
        source.ReferencedFrameNumber = stack.slices[source.ReferencedFrameNumber - 1].frame


def _header(path: Path, stack: Stack) -> Dataset:
    """All but the pixels, with nothing where there should be something that nobody knows, or that DICOM forbids."""
    image = dcmread(path, stop_before_pixels=True, force=True)  # the scan has judged what it is
    image.decode()
    image.SpecificCharacterSet = "ISO_IR 192"  # highdicom takes no empty first value, as Japan and Korea write it
    for keyword in _REPEATED:
        if keyword not in image:
            setattr(image, keyword, "")
    for keyword, allowed in _JUDGED.items():
        try:
            allowed(image[keyword].value)
        except (ValueError, TypeError):
            setattr(image, keyword, "")
    if not image.get("SliceThickness"):
        image.SliceThickness = stack.spacing[2] if len(stack.slices) > 1 else None
    return image


def _coded(each: Drawn) -> tuple[CodedConcept, CodedConcept]:
    """Category and type; a class without codes is told in a scheme of our own, which claims nothing."""
    if each.category is None or each.type is None:
        return (
            CodedConcept("class", _SCHEME, "Class of a study"),
            CodedConcept(each.name, _SCHEME, each.name),
        )
    return _concept(each.category, each.name), _concept(each.type, each.name)


def _concept(code: str, name: str) -> CodedConcept:
    """A code with the meaning that DICOM's dictionaries give it, or else the study's word."""
    scheme, _, value = code.partition(":")
    known = {"SCT": codes.SCT, "DCM": codes.DCM}.get(scheme)
    found = known.concepts.values() if known else ()
    meaning = next((concept.meaning for concept in found if concept.value == value), name)
    return CodedConcept(value, scheme, meaning)
