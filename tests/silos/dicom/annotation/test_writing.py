"""A mask that is written as a DICOM SEG is read back as it was, by highdicom and by our own reader."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import config, dcmread

from silos.dicom.annotation import read_annotation, read_mask
from silos.dicom.annotation.writing import NO_FRAME, UNWRITABLE, Drawn, Unwritable, write_mask
from silos.dicom.series import Stack
from silos.dicom.upright import as_acquired, upright

Make = Callable[..., Any]
SHAPE = (5, 12, 9)  # slices, rows, columns
MADE_BY = {"model": "ab" * 32}
CLASSES = [Drawn("oedema", "SCT:49755003", "SCT:79654002"), Drawn("a-class-with-a-very-long-name")]

WAYS = {
    "axial": (((1, 0, 0), (0, 1, 0)), (0, 0, 3)),
    "from above": (((1, 0, 0), (0, 1, 0)), (0, 0, -3)),
    "sagittal": (((0, 1, 0), (0, 0, -1)), (3, 0, 0)),
    "oblique": (((0.8, 0.6, 0), (0, 0, -1)), (-1.8, 2.4, 0)),
    "tilted": (((1, 0, 0), (0, 1, 0)), (0, 0.9, 3)),
}


def stack_of(make_stack: Make, hospital: Any, way: str = "axial", **attributes: Any) -> Stack:
    axes, step = WAYS[way]
    pixels = np.random.default_rng(0).integers(0, 4096, SHAPE).astype(np.uint16)
    make_stack(hospital.root / "images", pixels, axes=axes, step=step, **attributes)
    (stack,) = hospital.stacks().stacks
    assert isinstance(stack, Stack)
    return stack


def drawn(stack: Stack) -> NDArray[np.uint8]:
    mask = np.zeros(stack.shape, np.uint8)
    mask[2:6, 3:9, 1:3] = 1
    mask[4:5, 5:7, 2:4] = 2
    return mask


@pytest.mark.parametrize("way", WAYS)
def test_a_written_mask_comes_back_on_the_very_voxels(way: str, make_stack: Make, hospital: Any) -> None:
    stack = stack_of(make_stack, hospital, way)
    assert bool(stack.tilt) == (way == "tilted")
    mask = drawn(stack)
    write_mask(hospital.root / "mask.dcm", mask, stack, hospital.root, CLASSES, MADE_BY, "found")
    written = hd.seg.segread(hospital.root / "mask.dcm")
    named = {uid for _, _, uid in written.get_source_image_uids()}
    assert named == {each.instance for each in stack.slices}
    pixels = written.get_pixels_by_source_instance(
        [each.instance for each in stack.slices], combine_segments=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(pixels.transpose(2, 1, 0), mask)
    words = {"SCT:79654002": "oedema", "99INTRAMURAL:a-class-with-a-very-long-name": "other"}
    annotations = [read_annotation(hospital.root, "mask.dcm")]
    read = read_mask(annotations, stack, hospital.root, words, ["none", "oedema", "other"])
    np.testing.assert_array_equal(read, mask)


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_a_mask_names_frames_as_their_file_counts_them_wherever_it_says_what_they_share(
    shared: bool, marked: bool, make_stack: Make, hospital: Any, join: Make
) -> None:
    paths = []
    for way in ("sagittal", "axial")[shared:]:  # stacks of several directions share nothing
        axes, step = WAYS[way]
        paths += make_stack(hospital.root / way, np.zeros(SHAPE, np.uint16), axes=axes, step=step)[::-1]
    join([dcmread(path) for path in paths], hospital.root / "image", shared=shared)
    for path in paths:
        path.unlink()
    stack = hospital.stacks().stacks[-1]
    assert [each.frame for each in stack.slices] == list(range(len(paths), len(paths) - 5, -1))
    mask = drawn(stack) * np.uint8(marked)
    write_mask(hospital.root / "mask.dcm", mask, stack, hospital.root, CLASSES, MADE_BY, "found")
    written = hd.seg.segread(hospital.root / "mask.dcm")
    pixels = written.get_pixels_by_source_frame(
        "1.2.7", [each.frame for each in stack.slices], combine_segments=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(pixels.transpose(2, 1, 0), mask)
    annotations = [read_annotation(hospital.root, "mask.dcm")]
    words = {"oedema": "oedema", "*": "other"}
    read = read_mask(annotations, stack, hospital.root, words, ["none", "oedema", "other"])
    np.testing.assert_array_equal(read, mask)


def test_it_says_whose_it_is_what_it_shows_and_that_a_program_made_it(make_stack: Make, hospital: Any) -> None:
    stack = stack_of(make_stack, hospital, SeriesNumber=4)
    write_mask(hospital.root / "mask.dcm", drawn(stack), stack, hospital.root, CLASSES, MADE_BY, "found")
    written = hd.seg.segread(hospital.root / "mask.dcm")
    assert (written.PatientID, written.StudyInstanceUID, written.FrameOfReferenceUID) == ("MRN1", "1.2.3", "1.2.9")
    assert (written.SeriesDescription, written.SeriesNumber) == ("found", 904)
    oedema, other = written.SegmentSequence
    assert oedema.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Morphologically Abnormal Structure"
    assert oedema.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Edema"
    assert other.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "99INTRAMURAL"
    for segment in (oedema, other):
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        assert "ab" * 32 in segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters
    assert "not checked" in written.ContentDescription


def test_nothing_found_is_written_too(make_stack: Make, hospital: Any) -> None:
    stack = stack_of(make_stack, hospital)
    empty = np.zeros(stack.shape, np.uint8)
    write_mask(hospital.root / "mask.dcm", empty, stack, hospital.root, CLASSES, MADE_BY, "found")
    assert not hd.seg.segread(hospital.root / "mask.dcm").pixel_array.any()


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        ("ISO_IR 100", "Müller^Jürgen"),
    ],
    ids=["japanese", "korean", "latin"],
)
def test_a_patient_keeps_the_name_whatever_it_was_written_in(
    charset: Any, name: str, make_stack: Make, hospital: Any
) -> None:
    stack = stack_of(make_stack, hospital, SpecificCharacterSet=charset, PatientName=name)
    write_mask(hospital.root / "mask.dcm", drawn(stack), stack, hospital.root, CLASSES, MADE_BY, "found")
    assert hd.seg.segread(hospital.root / "mask.dcm").PatientName == name


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientBirthDate", "00000000"),
        ("PatientSex", "MALE"),
        ("StudyDate", "long ago"),
        ("StudyTime", "12:16:24"),
    ],
)
def test_what_dicom_forbids_is_not_repeated(keyword: str, value: str, make_stack: Make, hospital: Any) -> None:
    with config.disable_value_validation():
        stack = stack_of(make_stack, hospital, **{keyword: value})
    write_mask(hospital.root / "mask.dcm", drawn(stack), stack, hospital.root, CLASSES, MADE_BY, "found")
    written = hd.seg.segread(hospital.root / "mask.dcm")
    assert (written.PatientID, written[keyword].value) == ("MRN1", "")


def test_images_without_preamble_are_good_enough_to_draw_on(make_stack: Make, hospital: Any) -> None:
    stack = stack_of(make_stack, hospital)
    for path in (hospital.root / "images").iterdir():
        content = path.read_bytes()
        path.write_bytes(content[content.index(b"\x08\x00\x16\x00UI") :])
    assert [each.shape for each in hospital.stacks().stacks] == [stack.shape]
    write_mask(hospital.root / "mask.dcm", drawn(stack), stack, hospital.root, CLASSES, MADE_BY, "found")
    assert hd.seg.segread(hospital.root / "mask.dcm").PatientID == "MRN1"


def test_images_without_what_a_segmentation_needs_are_a_reason_and_no_file(make_stack: Make, hospital: Any) -> None:
    stack = stack_of(make_stack, hospital)
    path = hospital.root / "mask.dcm"
    with pytest.raises(Unwritable, match=NO_FRAME):
        write_mask(path, drawn(stack), replace(stack, frame_of_reference=""), hospital.root, CLASSES, MADE_BY, "found")
    with pytest.raises(Unwritable) as error:
        write_mask(path, drawn(stack), stack, Path("nowhere"), CLASSES, MADE_BY, "found")
    assert error.value.reason == UNWRITABLE
    assert not path.exists()


@pytest.mark.parametrize("slices_last", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_worked_out_upright_goes_back_to_where_it_was_acquired(
    way: str, slices_last: bool, make_stack: Make, hospital: Any
) -> None:
    stack = stack_of(make_stack, hospital, way)
    # A ramp in the patient is its own linear interpolation, so that every voxel can be told.
    index = np.stack(np.meshgrid(*map(np.arange, stack.shape), indexing="ij"), axis=-1)
    ramp = ((index @ stack.affine[:3, :3].T + stack.affine[:3, 3]) @ [1.0, 2.0, 3.0] + 500).astype(np.float32)
    there, affine = upright(ramp, stack, slices_last=slices_last)
    back = as_acquired(there, affine, stack, slices_last=slices_last)
    if not stack.tilt:
        np.testing.assert_array_equal(back, ramp)
        return
    inside = (slice(1, -1), slice(3, -3), slice(1, -1))  # beyond the edge the straightened stack has no ramp
    np.testing.assert_allclose(back[inside], ramp[inside], rtol=1e-4)
