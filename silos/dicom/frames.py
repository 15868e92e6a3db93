"""What an image of several frames says of each of them: its functional groups (PS3.3 C.7.6.16).

    for texts in read_frame_texts(path): texts["ImagePositionPatient"]

Enhanced CT, MR and PET keep position, orientation, spacing and rescaling of a frame in two sequences: one for
all frames together, one with an item for each. Here they become the words that an image of one frame has.
"""

from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from silos.dicom.header import Flaw, Reason, number, open_header

SEQUENCES = _SHARED, _EACH = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
_GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "StackID": "FrameContentSequence",
}


def read_frame_texts(path: Path) -> list[dict[str, str]]:
    """The place and rescaling of each frame.

    Args:
        path: An image, of any number of frames.

    Returns:
        One dict per frame, in the order of the file, of ImagePositionPatient, ImageOrientationPatient, PixelSpacing,
        SliceThickness, RescaleSlope, RescaleIntercept and StackID, "" where absent; empty if the file has no functional
        groups.

    Raises:
        UnreadableFile: The file cannot be read, or describes more or fewer frames than it has.
        OSError: The file cannot be opened.
    """
    with open_header(path, (_SHARED, _EACH)) as header:
        try:
            frames = frame_texts(header.dataset)
        except Exception as error:
            raise Flaw(Reason.UNREADABLE, type(error).__name__) from None
        if frames and len(frames) != number(header.texts, "NumberOfFrames", 1):
            raise Flaw(Reason.UNREADABLE, "more or fewer functional groups than frames")
        return frames


def frame_texts(dataset: Dataset) -> list[dict[str, str]]:
    """The same of a data set that has been read."""
    shared = (dataset.get(_SHARED) or [Dataset()])[0]
    return [{keyword: _word(keyword, frame, shared) for keyword in _GROUPS} for frame in dataset.get(_EACH) or ()]


def _word(keyword: str, *groups: Dataset) -> str:
    for group in groups:
        if items := group.get(_GROUPS[keyword]):
            value = items[0].get(keyword, "")
            several = value if isinstance(value, MultiValue) else [value]
            return "\\".join("" if each is None else str(each) for each in several)
    return ""
