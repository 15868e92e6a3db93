"""What somebody drew on a make-believe volume: a DICOM SEG, or the contours of an RTSTRUCT."""

import warnings
from collections.abc import Sequence

import highdicom as hd
import numpy as np
from highdicom.sr.coding import CodedConcept
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, RTStructureSetStorage

_MAKER = "Aurelia Imaging"


def segmentation(images: Sequence[Dataset], spots: NDArray[np.bool_], segment: str, uids: Sequence[UID]) -> Dataset:
    """A binary DICOM SEG (PS3.3 A.51) of one segment; empty frames are omitted, unless all are empty.

    Args:
        images: The slices, or the one image of several frames.
        spots: (slices, rows, columns), in the order of the images or frames.
        segment: What the hospital calls it.
        uids: Of the series, the file and its dimensions.
    """
    description = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label=segment,
        segmented_property_category=CodedConcept("49755003", "SCT", "Morphologically abnormal structure"),
        segmented_property_type=CodedConcept("52988006", "SCT", "Lesion"),
        algorithm_type="MANUAL",
    )
    series, own, dimensions = uids
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are not as DICOM would have them, and of an empty mask
        dataset = hd.seg.Segmentation(
            source_images=list(images),
            pixel_array=spots.astype(np.uint8),
            segmentation_type="BINARY",
            segment_descriptions=[description],
            series_instance_uid=series,
            series_number=2,
            sop_instance_uid=own,
            instance_number=1,
            device_serial_number=str(images[0].DeviceSerialNumber),
            omit_empty_frames=bool(spots.any()),
            manufacturer=_MAKER,
            manufacturer_model_name="Pencil",
            software_versions="1.0",
        )
    # Where highdicom takes the hour and chance, so that the same seed writes the same bytes.
    dataset.ContentDate = dataset.InstanceCreationDate = images[0].StudyDate
    dataset.ContentTime = dataset.InstanceCreationTime = images[0].StudyTime
    dataset.DimensionOrganizationSequence[0].DimensionOrganizationUID = dimensions
    for item in dataset.DimensionIndexSequence:
        item.DimensionOrganizationUID = dimensions
    return dataset


def contours(images: Sequence[Dataset], spots: NDArray[np.bool_], segment: str, uids: Sequence[UID]) -> Dataset:
    """An RTSTRUCT (PS3.3 A.19) of one structure, whose contours run along the edges of its pixels.

    Args:
        images: The slices.
        spots: (slices, rows, columns), in the order of the images.
        segment: What the hospital calls it.
        uids: Of the series, the file and its dimensions (which contours have not).
    """
    first = images[0]
    series, own, _ = uids
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID"):
        setattr(dataset, keyword, first[keyword].value)
    for keyword in ("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "SpecificCharacterSet"):
        setattr(dataset, keyword, first[keyword].value)
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.SeriesInstanceUID = RTStructureSetStorage, own, series
    dataset.Modality, dataset.SeriesNumber, dataset.StructureSetLabel = "RTSTRUCT", 2, "drawn"
    dataset.StructureSetDate, dataset.StructureSetTime = first.StudyDate, first.StudyTime
    dataset.Manufacturer = _MAKER
    named = [item(ReferencedSOPClassUID=i.SOPClassUID, ReferencedSOPInstanceUID=i.SOPInstanceUID) for i in images]
    of_series = item(SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=named)
    of_study = item(
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",
        ReferencedSOPInstanceUID=first.StudyInstanceUID,
        RTReferencedSeriesSequence=[of_series],
    )
    frame = first.FrameOfReferenceUID
    dataset.ReferencedFrameOfReferenceSequence = [item(FrameOfReferenceUID=frame, RTReferencedStudySequence=[of_study])]
    dataset.StructureSetROISequence = [
        item(ROINumber=1, ReferencedFrameOfReferenceUID=frame, ROIName=segment, ROIGenerationAlgorithm="MANUAL")
    ]
    drawn = [_contour(image, outline) for image, spot in zip(images, spots, strict=True) for outline in outlines(spot)]
    roi = item(ReferencedROINumber=1, **({"ContourSequence": drawn} if drawn else {}))
    dataset.ROIContourSequence = [roi]
    dataset.RTROIObservationsSequence = [
        item(ObservationNumber=1, ReferencedROINumber=1, RTROIInterpretedType="", ROIInterpreter="")
    ]
    return dataset


def outlines(spot: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Closed lines along the edges of marked pixels, each (points, 2) of (column, row); pixel centres are whole."""
    padded = np.pad(spot, 1)
    ways: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for row, column in np.argwhere(padded):
        r, c = int(row), int(column)
        for (dr, dc), start, end in (
            ((-1, 0), (c, r), (c + 1, r)),
            ((0, 1), (c + 1, r), (c + 1, r + 1)),
            ((1, 0), (c + 1, r + 1), (c, r + 1)),
            ((0, -1), (c, r + 1), (c, r)),
        ):
            if not padded[r + dr, c + dc]:
                ways.setdefault(start, []).append(end)
    found = []
    while ways:
        line = [next(iter(ways))]
        while line[-1] in ways:
            ends = ways[line[-1]]
            end = ends.pop()
            if not ends:
                del ways[line[-1]]
            line.append(end)
        found.append(np.array(line[:-1], float) - 1.5)  # the padding, and half a pixel from corner to centre
    return found


def _contour(image: Dataset, outline: NDArray[np.float64]) -> Dataset:
    axes = np.array(image.ImageOrientationPatient, float).reshape(2, 3)
    rows, columns = (float(each) for each in image.PixelSpacing)
    points = np.array(image.ImagePositionPatient, float) + outline * [columns, rows] @ axes
    named = item(ReferencedSOPClassUID=image.SOPClassUID, ReferencedSOPInstanceUID=image.SOPInstanceUID)
    return item(
        ContourImageSequence=[named],
        ContourGeometricType="CLOSED_PLANAR",
        NumberOfContourPoints=len(points),
        ContourData=[round(float(each), 3) for each in points.ravel()],
    )


def item(**elements: object) -> Dataset:
    """An item of a sequence."""
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made
