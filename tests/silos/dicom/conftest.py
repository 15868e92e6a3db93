"""Makes DICOM files for the tests of this folder."""

import os
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from silos.dicom.scan import Scan, scan
from silos.dicom.series import Found, Volume, find_stacks, read_volume

REPOSITORY = Path(__file__).parents[3]
MR = "1.2.840.10008.5.1.4.1.1.4"
PLUGINS = {uid.RLELossless: "pylibjpeg", uid.JPEG2000Lossless: "pylibjpeg", uid.JPEGLSLossless: "pyjpegls"}
NAME = "Hollowbrook^Perpetua"

Make = Callable[..., Path]


def make(
    path: Path, array: NDArray[Any] | None = None, syntax: str = uid.ExplicitVRLittleEndian, **attributes: Any
) -> Path:
    """Write an MR image of random 12-bit pixels; `attributes` replace or (None) remove what is in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if array is None:
        array = np.random.default_rng(0).integers(0, 4096, (32, 48)).astype(np.uint16)
    dataset = Dataset()
    dataset.SOPClassUID = MR
    dataset.SOPInstanceUID = uid.generate_uid(entropy_srcs=[ascii(path)])
    dataset.StudyInstanceUID = "1.2.3"
    dataset.SeriesInstanceUID = "1.2.3.4"
    dataset.Modality = "MR"
    dataset.PatientName = NAME
    dataset.PatientID = "MRN1"
    dataset.InstanceNumber = 1
    dataset.Rows, dataset.Columns = array.shape[:2]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = 8 * array.dtype.itemsize
    dataset.BitsStored = 12 if array.dtype == np.uint16 else dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(array.dtype.kind == "i")
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    big = syntax == uid.ExplicitVRBigEndian
    if syntax in PLUGINS:
        dataset.compress(syntax, array, encoding_plugin=PLUGINS[uid.UID(syntax)], generate_instance_uid=False)
    else:
        dataset.PixelData = array.astype(array.dtype.newbyteorder(">" if big else "<")).tobytes()
        dataset["PixelData"].VR = "OB" if array.dtype.itemsize == 1 else "OW"
    for keyword, value in attributes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture(name="make")
def make_fixture() -> Make:
    return make


def make_stack(
    folder: Path,
    pixels: NDArray[Any],
    *,
    axes: Any = ((1, 0, 0), (0, 1, 0)),
    position: Any = (-10.0, 20.0, 30.0),
    step: Any = (0, 0, 3.0),
    spacing: tuple[float, float] = (2.0, 1.5),
    seed: int = 0,
    **attributes: Any,
) -> list[Path]:
    """Write slices (slices, rows, columns) whose file names and instance numbers say nothing; returns their paths."""
    names = np.random.default_rng(seed).permutation(len(pixels))
    words = {"SeriesInstanceUID": "1.2.3.4", "FrameOfReferenceUID": "1.2.9"} | attributes
    return [
        make(
            folder / f"{name:03}",
            array,
            SOPInstanceUID=f"{words['SeriesInstanceUID']}.{number + 1}",
            InstanceNumber=int(name),
            ImageOrientationPatient=[round(float(each), 8) for each in np.ravel(axes)],
            ImagePositionPatient=[round(float(each), 6) for each in np.add(position, np.multiply(number, step))],
            PixelSpacing=list(spacing),
            **words,
        )
        for number, (name, array) in enumerate(zip(names, pixels, strict=True))
    ]


@pytest.fixture(name="make_stack")
def make_stack_fixture() -> Make:
    return make_stack


def join(slices: Sequence[Dataset], path: Path, *, shared: bool = True) -> Dataset:
    """Write slices as the frames of one image, `1.2.7`; what they share is said once for all, or with each of them."""
    image, each = deepcopy(slices[0]), list[Dataset]()
    for slice_ in slices:
        position, orientation, measures, frame = (Dataset() for _ in range(4))
        position.ImagePositionPatient = slice_.ImagePositionPatient
        orientation.ImageOrientationPatient = slice_.ImageOrientationPatient
        measures.PixelSpacing, measures.SliceThickness = slice_.PixelSpacing, 3.0
        frame.PlanePositionSequence = [position]
        frame.PlaneOrientationSequence, frame.PixelMeasuresSequence = [orientation], [measures]
        each.append(frame)
    common = Dataset()
    for keyword in ("PlaneOrientationSequence", "PixelMeasuresSequence") if shared else ():
        common[keyword] = each[0][keyword]
        for frame in each:
            del frame[keyword]
    image.SharedFunctionalGroupsSequence, image.PerFrameFunctionalGroupsSequence = [common], each
    del image.ImagePositionPatient, image.ImageOrientationPatient, image.PixelSpacing
    image.SOPClassUID, image.SOPInstanceUID = uid.EnhancedMRImageStorage, "1.2.7"
    image.NumberOfFrames, image.PixelData = len(slices), b"".join(slice_.PixelData for slice_ in slices)
    image.save_as(path)
    return image


@pytest.fixture(name="join")
def join_fixture() -> Callable[..., Dataset]:
    return join


class Hospital:
    """A folder of DICOM files, and what is found in it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "dicom"
        self.index = folder / "index.sqlite"

    def scan(self, *modality: str) -> Scan:
        return scan(self.root, self.index, modality=modality or ["MR"], several_frames=True)

    def stacks(self, *modality: str) -> Found:
        return find_stacks(self.scan(*modality).instances, self.root)

    def volume(self, *modality: str) -> Volume:
        (stack,) = self.stacks(*modality).stacks
        return read_volume(stack, self.root)


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital(tmp_path)


def _data(variable: str, folder: str) -> Path:
    path = Path(os.environ.get(variable, REPOSITORY.parent / "shared" / "data" / folder))
    if not path.is_dir():
        pytest.skip(f"{variable} names no folder: {path}")
    return path


@pytest.fixture
def zoo() -> Path:
    return _data("INTRAMURAL_ZOO", "zoo")


@pytest.fixture
def lgg() -> Path:
    return _data("INTRAMURAL_LGG", "lgg")
