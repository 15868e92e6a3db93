"""A make-believe volume as one file of many frames: Enhanced MR (PS3.3 A.36)."""

from collections.abc import Sequence

import numpy as np
from pydicom import Dataset
from pydicom.uid import EnhancedMRImageStorage

from silos.phantom.drawing import item

_EACH = ("ImagePositionPatient", "SliceLocation", "WindowCenter", "WindowWidth")
_SHARED = ("ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices")
_RESCALE = ("RescaleSlope", "RescaleIntercept", "RescaleType")


def enhanced(slices: Sequence[Dataset], order: Sequence[int]) -> Dataset:
    """The same slices as frames; geometry and rescaling stand in functional groups alone.

    Args:
        slices: Images of one frame, uncompressed, along the patient.
        order: In which they are stored.
    """
    head = slices[0]
    pixels = np.stack([slices[place].pixel_array for place in order])
    image = Dataset()
    image.update({tag: head[tag] for tag in head.keys()})  # noqa: SIM118 - of a data set, keys are not what it yields
    image.file_meta = head.file_meta
    for keyword in (*_EACH, *_SHARED, *_RESCALE, "PixelData"):
        delattr(image, keyword)
    image.SOPClassUID, image.InstanceNumber = EnhancedMRImageStorage, 1
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=head.ImageOrientationPatient)],
        PixelMeasuresSequence=[item(**{keyword: head[keyword].value for keyword in _SHARED[1:]})],
        PixelValueTransformationSequence=[item(**{keyword: head[keyword].value for keyword in _RESCALE})],
    )
    image.SharedFunctionalGroupsSequence = [shared]
    image.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=slices[place].ImagePositionPatient)],
            FrameContentSequence=[item(StackID="1", InStackPositionNumber=place + 1)],
        )
        for place in map(int, order)
    ]
    image.set_pixel_data(pixels, "MONOCHROME2", 12, generate_instance_uid=False)
    return image
