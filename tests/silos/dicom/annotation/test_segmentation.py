"""A DICOM SEG that highdicom wrote comes back as it was drawn, on the images that it names and on no others."""

import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pandas as pd
import pytest
from highdicom.seg import SegmentationTypeValues as Kind
from highdicom.sr.coding import CodedConcept
from numpy.typing import NDArray
from pydicom import dcmread, uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from models.errors import ConfigError
from silos.dicom import apart
from silos.dicom.annotation import Unfit, UnfitAnnotation, match, read_annotation, read_mask, segmentation
from silos.dicom.header import Reason, UnreadableFile, items
from silos.dicom.scan import scan
from silos.dicom.series import find_stacks

Make = Callable[..., Any]
CLASSES = ["none", "oedema", "core"]
WORDS = {"Oedema": "oedema", "Core": "core"}
SHAPE = (6, 36, 33)  # slices, rows, columns


def drawn() -> NDArray[np.uint8]:
    """Two segments of three slices, one within the other: (slices, rows, columns, segments)."""
    mask = np.zeros((*SHAPE, 2), np.uint8)
    mask[1:4, 3:20, 2:15, 0] = 1
    mask[2, 5:9, 4:20, 1] = 1
    return mask


def classes(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What a mask of two segments is on the stack's grid."""
    label = np.maximum(mask[..., 0], 2 * mask[..., 1])
    return label.transpose(2, 1, 0)


def write(path: Path, images: list[Dataset], mask: NDArray[Any], kind: Kind = Kind.BINARY, **settings: Any) -> Dataset:
    property_ = {"segmented_property_category": CodedConcept("91723000", "SCT", "Anatomical structure")}
    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_type=CodedConcept(code, "SCT", name),
            algorithm_type="MANUAL",
            **property_,
        )
        for number, (name, code) in enumerate([("Oedema", "79654002"), ("Core", "86049000")], start=1)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        segmentation = hd.seg.Segmentation(
            source_images=images,
            pixel_array=mask,
            segmentation_type=kind,
            segment_descriptions=descriptions,
            series_instance_uid="1.2.3.99",
            series_number=2,
            sop_instance_uid=uid.generate_uid(entropy_srcs=[str(path)]),
            instance_number=1,
            manufacturer="m",
            manufacturer_model_name="m",
            software_versions="1",
            device_serial_number="1",
            **settings,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    segmentation.save_as(path)
    return segmentation


@pytest.fixture
def images(make_stack: Make, hospital: Any) -> list[Dataset]:
    """A stack, oblique and in no order."""
    pixels = np.random.default_rng(0).integers(0, 4096, SHAPE).astype(np.uint16)
    axes = ((0.8, 0.6, 0), (0, 0, -1))
    paths = make_stack(hospital.root / "images", pixels, axes=axes, step=(-0.6 * 3, 0.8 * 3, 0))
    found = [dcmread(path) for path in paths]
    for image in found:  # highdicom copies these
        for keyword in ("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "PatientBirthDate", "PatientSex"):
            setattr(image, keyword, "")
        image.PositionReferenceIndicator, image.SliceThickness = "", 3.0
    normal = np.cross(*axes)
    return sorted(found, key=lambda image: float(np.dot(normal, image.ImagePositionPatient)))


def read(hospital: Any, words: dict[str, str] = WORDS) -> NDArray[np.uint8]:
    found = hospital.scan()
    ((stack, annotations),) = match(found.annotations, hospital.stacks().stacks, hospital.root).by_stack.items()
    return read_mask(annotations, stack, hospital.root, words, CLASSES)


def test_what_was_drawn_is_read_wherever_its_file_lies(images: list[Dataset], hospital: Any) -> None:
    write(hospital.root / "far" / "away" / "x", images, drawn())
    assert len(images) == 6
    mask = read(hospital)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, classes(drawn()))


def test_the_stack_s_pixels_and_its_mask_lie_on_one_grid(images: list[Dataset], hospital: Any) -> None:
    bright = np.stack([image.pixel_array > 2000 for image in images]).astype(np.uint8)
    write(hospital.root / "x", images, np.stack([bright, 0 * bright], axis=-1))
    np.testing.assert_array_equal(read(hospital) == 1, hospital.volume().pixels > 2000)


@pytest.mark.parametrize("order", list(permutations(range(6)))[::97], ids=str)
def test_images_may_be_named_and_frames_stored_in_any_order(
    order: tuple[int, ...], images: list[Dataset], hospital: Any
) -> None:
    write(hospital.root / "x", [images[number] for number in order], drawn()[list(order)])
    shuffled(hospital.root / "x", seed=sum(order))
    np.testing.assert_array_equal(read(hospital), classes(drawn()))


def shuffled(path: Path, seed: int) -> None:
    """Store the frames of a binary SEG in another order."""
    dataset = dcmread(path)
    frames = int(dataset.NumberOfFrames)
    pixels = dataset.pixel_array.reshape(frames, -1)
    order = np.random.default_rng(seed).permutation(frames)
    dataset.PerFrameFunctionalGroupsSequence = Sequence([dataset.PerFrameFunctionalGroupsSequence[i] for i in order])
    bits = np.packbits(pixels[order].ravel(), bitorder="little").tobytes()
    dataset.PixelData = bits + bytes(len(bits) % 2)
    dataset.save_as(path)


@pytest.mark.parametrize("omit", [True, False])
def test_frames_left_out_as_empty_are_empty(omit: bool, images: list[Dataset], hospital: Any) -> None:
    written = write(hospital.root / "x", images, drawn(), omit_empty_frames=omit)
    assert int(written.NumberOfFrames) == (4 if omit else 12)
    np.testing.assert_array_equal(read(hospital), classes(drawn()))


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless, uid.JPEG2000Lossless])
@pytest.mark.parametrize("maximum", [255, 100])
def test_half_of_the_maximum_is_in_and_less_is_not(
    maximum: int, syntax: uid.UID, images: list[Dataset], hospital: Any
) -> None:
    fraction = np.zeros((*SHAPE, 2))
    fraction[2, :8, 1:9, 0] = np.linspace(0, 1, 64).reshape(8, 8)
    with_ends = np.where(fraction == 0, 0, fraction)
    settings = {"max_fractional_value": maximum, "fractional_type": "PROBABILITY", "transfer_syntax_uid": syntax}
    write(hospital.root / "x", images, with_ends, Kind.FRACTIONAL, **settings)
    stored = np.rint(fraction * maximum)
    np.testing.assert_array_equal(read(hospital), classes((stored >= maximum / 2).astype(np.uint8)))


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless, uid.JPEGLSLossless])
def test_a_label_map_is_read(syntax: uid.UID, images: list[Dataset], hospital: Any) -> None:
    label = np.maximum(drawn()[..., 0], 2 * drawn()[..., 1])
    write(hospital.root / "x", images, label, Kind.LABELMAP, transfer_syntax_uid=syntax)
    np.testing.assert_array_equal(read(hospital), label.transpose(2, 1, 0))


def test_a_compressed_mask_that_its_decoder_dies_of_costs_this_mask(
    images: list[Dataset], hospital: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compressed frames are decoded in a process apart, and never in this one."""
    write(hospital.root / "x", images, drawn().astype(float), Kind.FRACTIONAL, transfer_syntax_uid=uid.RLELossless)
    monkeypatch.setattr(hd.seg.Segmentation, "get_stored_frame", None)
    assert read(hospital).any()

    def dies(*_: object) -> None:
        raise apart.DecoderFailed("its decoder died")

    monkeypatch.setattr(segmentation, "decode_apart", dies)
    with pytest.raises(UnreadableFile, match="pixels unreadable"):
        read(hospital)


def test_where_segments_overlap_the_later_class_of_the_study_wins(images: list[Dataset], hospital: Any) -> None:
    write(hospital.root / "x", images, drawn())
    assert (read(hospital) == 2).sum() == drawn()[..., 1].sum()
    swapped = read(hospital, {"Oedema": "core", "Core": "oedema"})
    assert (swapped == 2).sum() == drawn()[..., 0].sum()


@pytest.mark.parametrize("words", [{"Core": "core", "Oedema": ""}, {"SCT:86049000": "core", "*": ""}])
def test_segments_are_known_by_name_or_code_and_can_be_left_out(
    words: dict[str, str], images: list[Dataset], hospital: Any
) -> None:
    write(hospital.root / "x", images, drawn())
    np.testing.assert_array_equal(read(hospital, words), 2 * drawn()[..., 1].transpose(2, 1, 0))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"Oedema": "oedema"}, r"data\.annotations\.words: .*'Core' \(SCT:86049000\); known words are Oedema"),
        ({"Oedema": "oedema", "Core": "kernel"}, r"data\.annotations\.words\.Core: 'kernel' is no class of the study"),
    ],
)
def test_a_word_that_nobody_knows_is_named(
    words: dict[str, str], named: str, images: list[Dataset], hospital: Any
) -> None:
    write(hospital.root / "x", images, drawn())
    with pytest.raises(ConfigError, match=named) as caught:
        read(hospital, words)
    assert "MRN1" not in str(caught.value)
    assert "Hollowbrook" not in str(caught.value)
    assert caught.value.hint


def changed(images: list[Dataset], **attributes: Callable[[Dataset], Any]) -> list[Dataset]:
    copies = deepcopy(images)
    for image in copies:
        for keyword, value in attributes.items():
            setattr(image, keyword, value(image))
    return copies


def cropped(images: list[Dataset]) -> list[Dataset]:
    """The same images less some rows and columns, as a tool saw them that wrote the mask."""

    def corner(image: Dataset) -> list[float]:
        axes = np.array(image.ImageOrientationPatient, float).reshape(2, 3)
        place = np.array(image.ImagePositionPatient, float) + 3 * 1.5 * axes[0] + 5 * 2.0 * axes[1]
        return [round(float(each), 6) for each in place]

    small = changed(images, ImagePositionPatient=corner, Rows=lambda _: 20, Columns=lambda _: 16)
    for image in small:
        image.PixelData = bytes(2 * 20 * 16)
    return small


def test_a_mask_of_a_part_of_the_images_is_put_in_its_place(images: list[Dataset], hospital: Any) -> None:
    mask = np.zeros_like(drawn())
    mask[:, 5:25, 3:19] = drawn()[:, 5:25, 3:19]
    write(hospital.root / "x", cropped(images), drawn()[:, 5:25, 3:19])
    np.testing.assert_array_equal(read(hospital), classes(mask))


def flipped(images: list[Dataset]) -> list[Dataset]:
    """The same images with columns counted from the other side."""

    def other_side(image: Dataset) -> list[float]:
        axes = np.array(image.ImageOrientationPatient, float).reshape(2, 3)
        place = np.array(image.ImagePositionPatient, float) + 32 * 1.5 * axes[0]
        return [round(float(each), 6) for each in place]

    def axes(image: Dataset) -> list[float]:
        return [-float(each) for each in image.ImageOrientationPatient[:3]] + [*image.ImageOrientationPatient[3:]]

    positions = changed(images, ImagePositionPatient=other_side)
    return changed(positions, ImageOrientationPatient=axes)


def test_a_mirrored_mask_is_put_right(images: list[Dataset], hospital: Any) -> None:
    write(hospital.root / "x", flipped(images), drawn()[:, :, ::-1])
    np.testing.assert_array_equal(read(hospital), classes(drawn()))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"PixelSpacing": lambda _: [1.0, 0.75]}, Unfit.OTHER_GRID),
        ({"ImagePositionPatient": lambda image: [image.ImagePositionPatient[0] + 500, 0, 0]}, Unfit.OTHER_GRID),
        (
            {"ImagePositionPatient": lambda i: [*i.ImagePositionPatient[:2], i.ImagePositionPatient[2] + 1]},
            Unfit.OTHER_GRID,
        ),
    ],
    ids=["finer", "elsewhere", "between"],
)
def test_a_mask_on_another_grid_is_refused(
    change: dict[str, Any], reason: Unfit, images: list[Dataset], hospital: Any
) -> None:
    write(hospital.root / "x", changed(images, **change), drawn())
    with pytest.raises(UnfitAnnotation) as caught:
        read(hospital)
    assert caught.value.reason == reason


def test_a_frame_that_lies_elsewhere_than_the_image_it_names_is_refused(images: list[Dataset], hospital: Any) -> None:
    write(hospital.root / "x", images, drawn())
    dataset = dcmread(hospital.root / "x")
    frames = dataset.PerFrameFunctionalGroupsSequence
    position = frames[1].PlanePositionSequence
    frames[1].PlanePositionSequence, frames[0].PlanePositionSequence = frames[0].PlanePositionSequence, position
    dataset.save_as(hospital.root / "x")
    with pytest.raises(UnfitAnnotation) as caught:
        read(hospital)
    assert caught.value.reason == Unfit.CONTRADICTION


def test_each_stack_of_a_series_gets_the_frames_that_were_drawn_on_it(
    images: list[Dataset], hospital: Any, make_stack: Make
) -> None:
    write(hospital.root / "x", images, drawn())
    dataset = dcmread(hospital.root / "x")
    frame = next(
        frame
        for frame in dataset.PerFrameFunctionalGroupsSequence
        if frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 1
        and frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID == images[3].SOPInstanceUID
    )
    frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2.3.4.101"
    reference = deepcopy(dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0])
    reference.ReferencedSOPInstanceUID = "1.2.3.4.101"
    dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence.append(reference)
    place = [float(each) + (100 if n == 1 else 0) for n, each in enumerate(images[3].ImagePositionPatient)]
    frame.PlanePositionSequence[0].ImagePositionPatient = place
    dataset.save_as(hospital.root / "x")
    pixels, axes = np.zeros((2, 30, 33), np.uint16), ((0.8, 0.6, 0), (0, 0, -1))
    paths = make_stack(hospital.root / "second", pixels, axes=axes, step=(-0.6 * 3, 0.8 * 3, 0), position=place)
    for number, path in enumerate(paths):
        image = dcmread(path)
        image.SOPInstanceUID = f"1.2.3.4.{number + 101}"
        image.save_as(path)
    first, second = sorted(hospital.stacks().stacks, key=lambda stack: stack.shape[2], reverse=True)
    matches = match(hospital.scan().annotations, [first, second], hospital.root)
    mask = drawn()
    mask[3] = 0
    found = read_mask(matches.by_stack[first], first, hospital.root, WORDS, CLASSES)
    np.testing.assert_array_equal(found, classes(mask))
    found = read_mask(matches.by_stack[second], second, hospital.root, WORDS | {"Core": ""}, CLASSES)
    np.testing.assert_array_equal(found[..., second.places["1.2.3.4.101", 1]], drawn()[3, :30, :, 0].T)
    assert found.any(axis=(0, 1)).sum() == 1
    with pytest.raises(UnfitAnnotation) as caught:  # nobody drew the core on the second, which may well show it
        read_mask(matches.by_stack[second], second, hospital.root, WORDS, CLASSES)
    assert caught.value.reason == Unfit.OTHER_GRID


def test_a_frame_that_names_no_frame_of_an_image_means_all_of_them(
    images: list[Dataset], hospital: Any, join: Make
) -> None:
    shutil.rmtree(hospital.root / "images")
    write(hospital.root / "x", [join(images, hospital.root / "image")], drawn())
    np.testing.assert_array_equal(read(hospital), classes(drawn()))
    dataset = dcmread(hospital.root / "x")
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
    dataset.save_as(hospital.root / "x")
    np.testing.assert_array_equal(read(hospital), classes(drawn()))
    (stack,) = hospital.stacks().stacks
    other = replace(stack, slices=tuple(replace(each, instance="1.2.8") for each in stack.slices))
    other = replace(other, others=frozenset(stack.places))  # of the same series and place, such as another contrast
    with pytest.raises(UnfitAnnotation) as caught:
        read_mask([read_annotation(hospital.root, "x")], other, hospital.root, WORDS, CLASSES)
    assert caught.value.reason == Unfit.OTHER_GRID


def test_a_frame_without_a_position_is_refused(images: list[Dataset], hospital: Any) -> None:
    write(hospital.root / "x", images, drawn())
    dataset = dcmread(hospital.root / "x")
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        del frame.PlanePositionSequence
    dataset.save_as(hospital.root / "x")
    with pytest.raises(UnreadableFile):
        read(hospital)


def test_two_drawings_of_one_class_are_refused_and_of_two_classes_put_together(
    images: list[Dataset], hospital: Any
) -> None:
    for number in range(2):
        only = drawn()
        only[..., 1 - number] = 0
        written = write(hospital.root / str(number), images, only)
        written.SegmentSequence[1 - number].SegmentLabel = "Unused"
        written.save_as(hospital.root / str(number))
    np.testing.assert_array_equal(read(hospital, WORDS | {"Unused": ""}), classes(drawn()))
    with pytest.raises(UnfitAnnotation) as caught:
        read(hospital, WORDS | {"Unused": "core"})
    assert caught.value.reason == Unfit.TWICE


def test_what_a_program_made_alone_is_counted_before_its_words_are_looked_up(
    images: list[Dataset], hospital: Any
) -> None:
    dataset = write(hospital.root / "x", images, drawn())
    first, second = dataset.SegmentSequence
    first.SegmentAlgorithmType, second.SegmentAlgorithmType = "AUTOMATIC", "SEMIAUTOMATIC"
    first.SegmentAlgorithmName = second.SegmentAlgorithmName = "a program"
    dataset.save_as(hospital.root / "x")
    np.testing.assert_array_equal(read(hospital), classes(drawn()))
    second.SegmentAlgorithmType = "AUTOMATIC"
    dataset.save_as(hospital.root / "x")
    assert left_out(hospital) == {Unfit.AUTOMATIC: 1}


def left_out(hospital: Any) -> dict[str, int]:
    matches = match(hospital.scan().annotations, hospital.stacks().stacks, hospital.root)
    assert not matches.by_stack
    return matches.left_out


def test_a_mask_of_images_that_are_not_here_is_counted(images: list[Dataset], hospital: Any) -> None:
    others = changed(images, SOPInstanceUID=lambda image: image.SOPInstanceUID + ".7")
    write(hospital.root / "images" / "beside", others, drawn())
    assert left_out(hospital) == {Unfit.NO_IMAGES: 1}


def test_a_mask_in_another_frame_of_reference_is_counted(images: list[Dataset], hospital: Any) -> None:
    write(hospital.root / "x", changed(images, FrameOfReferenceUID=lambda _: "1.2.77"), drawn())
    assert left_out(hospital) == {Unfit.CONTRADICTION: 1}


def test_a_mask_that_names_nothing_belongs_to_the_one_stack_of_its_frame_of_reference(
    images: list[Dataset], hospital: Any, make_stack: Make
) -> None:
    write(hospital.root / "x", images, drawn())
    dataset = dcmread(hospital.root / "x")
    del dataset.ReferencedSeriesSequence
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence
    dataset.save_as(hospital.root / "x")
    np.testing.assert_array_equal(read(hospital), classes(drawn()))
    make_stack(hospital.root / "second", np.zeros(SHAPE, np.uint16), SeriesInstanceUID="1.2.3.5")
    assert left_out(hospital) == {Unfit.SEVERAL_SERIES: 1}


def test_a_mask_whose_frames_alone_name_its_images_is_of_these_and_of_no_others(
    images: list[Dataset], hospital: Any, make_stack: Make
) -> None:
    write(hospital.root / "x", images, drawn())
    dataset = dcmread(hospital.root / "x")
    del dataset.ReferencedSeriesSequence
    dataset.save_as(hospital.root / "x")
    shutil.copytree(hospital.root / "images", hospital.root / "second")  # another contrast, in the same places
    for path in (hospital.root / "second").iterdir():
        image = dcmread(path)
        image.SeriesInstanceUID, image.SOPInstanceUID = "1.2.3.5", image.SOPInstanceUID + ".7"
        image.save_as(path)
    matches = match(hospital.scan().annotations, hospital.stacks().stacks, hospital.root)
    assert [stack.series for stack in matches.by_stack] == ["1.2.3.4"]
    np.testing.assert_array_equal(read(hospital), classes(drawn()))
    shutil.rmtree(hospital.root / "images")
    assert left_out(hospital) == {Unfit.NO_IMAGES: 1}


def test_a_frame_of_an_image_of_no_stack_of_the_series_is_refused_unless_it_is_empty(
    images: list[Dataset], hospital: Any
) -> None:
    dataset = write(hospital.root / "x", images, drawn(), omit_empty_frames=False)
    for wanted in (False, True):
        frame = next(
            frame
            for number, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence)
            if dataset.pixel_array[number].any() == wanted
        )
        frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2.8"
        dataset.save_as(hospital.root / "x")
        if not wanted:
            np.testing.assert_array_equal(read(hospital), classes(drawn()))
    with pytest.raises(UnfitAnnotation) as caught:
        read(hospital)
    assert caught.value.reason == Unfit.NO_IMAGES


def test_each_of_two_series_gets_its_own_mask(images: list[Dataset], hospital: Any, make_stack: Make) -> None:
    write(hospital.root / "x", images, drawn())
    make_stack(hospital.root / "second", np.zeros(SHAPE, np.uint16), SeriesInstanceUID="1.2.3.5")
    stacks = hospital.stacks().stacks
    matches = match(hospital.scan().annotations, stacks, hospital.root)
    assert len(stacks) == 2
    assert [stack.series for stack in matches.by_stack] == ["1.2.3.4"]
    assert matches.left_out == {}


@pytest.mark.parametrize("cut", [0.3, 0.9])
def test_a_damaged_mask_is_counted_or_refused_and_never_crashes(
    cut: float, images: list[Dataset], hospital: Any
) -> None:
    write(hospital.root / "x", images, drawn())
    content = (hospital.root / "x").read_bytes()
    annotation = read_annotation(hospital.root, "x")
    (stack,) = hospital.stacks().stacks
    (hospital.root / "x").write_bytes(content[: int(cut * len(content))])
    assert hospital.scan().left_out == {Reason.TRUNCATED: 1}
    with pytest.raises(UnreadableFile):
        read_mask([annotation], stack, hospital.root, WORDS, CLASSES)
    random = np.random.default_rng(3)
    for _ in range(40):
        damaged = np.frombuffer(content, np.uint8).copy()
        damaged[random.integers(400, len(content), 6)] ^= random.integers(1, 256, 6, dtype=np.uint8)
        (hospital.root / "x").write_bytes(damaged.tobytes())
        with suppress(UnreadableFile, UnfitAnnotation):
            read_mask([read_annotation(hospital.root, "x")], stack, hospital.root, {"*": "core"}, CLASSES)


@pytest.mark.parametrize("deflated", [False, True])
def test_a_mask_of_more_items_than_anybody_needs_is_refused_before_it_is_read(
    deflated: bool, images: list[Dataset], hospital: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(hospital.root / "x", images, drawn())
    count = items((hospital.root / "x").read_bytes())
    if deflated:
        dataset = dcmread(hospital.root / "x")
        dataset.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
        dataset.save_as(hospital.root / "x")
    monkeypatch.setattr("silos.dicom.annotation.opening.MAX_ITEMS", count - 1)
    with pytest.raises(UnreadableFile, match="absurd"):
        read(hospital)
    monkeypatch.setattr("silos.dicom.annotation.opening.MAX_ITEMS", count)
    np.testing.assert_array_equal(read(hospital), classes(drawn()))


@pytest.mark.zoo
def test_every_annotation_of_the_zoo_is_read_or_counted(zoo: Path, tmp_path: Path) -> None:
    modalities = list(pd.read_csv(zoo / "manifest.csv")["Modality"].dropna().unique())
    found = scan(zoo, tmp_path / "index", modality=modalities, several_frames=True)
    assert set(found.annotations["Modality"]) == {"SEG", "RTSTRUCT"}
    matches = match(found.annotations, find_stacks(found.instances, zoo).stacks, zoo)
    assert sum(matches.left_out.values()) == len(found.annotations)
    assert matches.left_out[Unfit.NO_IMAGES] >= 5
    names = {segment.name for path in found.annotations["path"] for segment in read_quietly(zoo, path)}
    assert "Liver" in names


def read_quietly(zoo: Path, path: str) -> tuple[Any, ...]:
    try:
        return read_annotation(zoo, path).segments
    except UnreadableFile:
        return ()


LABELS: dict[str, tuple[str, list[str], list[str], str, str]] = {
    # hospital: (delimiter, attributes, columns, column of the label, word for a tumour)
    "north": (",", ["SOPInstanceUID"], ["SOPInstanceUID"], "tumour", "1"),
    "east": (",", ["AccessionNumber", "InstanceNumber"], ["AccessionNumber", "InstanceNumber"], "TumorPresent", "yes"),
    "south": (";", ["PatientID", "InstanceNumber"], ["patient", "slice"], "label", "1"),
    "west": (",", ["SOPInstanceUID"], ["SOPInstanceUID"], "diagnosis", "glioma"),
    "tiny": (",", ["SOPInstanceUID"], ["SOPInstanceUID"], "tumour", "1"),
}


@pytest.mark.lgg
@pytest.mark.parametrize("name", LABELS)
def test_masks_of_each_hospital_lie_on_the_slices_that_its_labels_call_tumour(
    name: str, lgg: Path, tmp_path: Path
) -> None:
    delimiter, attributes, columns, label, word = LABELS[name]
    root = lgg / name / "dicom"
    table = pd.read_csv(root.parent / "labels.csv", sep=delimiter, dtype=str)
    tumour = set(table.loc[table[label] == word, columns].itertuples(index=False, name=None))
    found = scan(root, tmp_path / "index", modality=["MR"], several_frames=True)
    keys = found.instances.set_index("SOPInstanceUID", drop=False)[attributes]
    matches = match(found.annotations, find_stacks(found.instances, root).stacks, root)
    assert (matches.left_out, len(matches.by_stack)) == ({}, len(found.annotations))
    seen = agreeing = 0
    for stack, annotations in matches.by_stack.items():
        mask = read_mask(annotations, stack, root, {"tumour": "tumour"}, ["none", "tumour"])
        labelled = [tuple(keys.loc[each.instance]) in tumour for each in stack.slices]
        painted = mask.any(axis=(0, 1))
        assert painted.any()
        assert not (painted & ~np.array(labelled)).any()
        seen, agreeing = seen + sum(labelled), agreeing + int(painted.sum())
        if seen > 300:  # enough to compare slice by slice
            continue
        expected = by_hand(dcmread(root / annotations[0].path))
        for place, each in enumerate(stack.slices):
            np.testing.assert_array_equal(mask[:, :, place].T, expected.get(each.instance, 0 * mask[:, :, place].T))
    assert agreeing > 0.95 * seen  # a lesion under two pixels has a label and no mask


def by_hand(dataset: Dataset) -> dict[str, NDArray[np.uint8]]:
    """SOPInstanceUID -> mask (rows, columns), without any of our code."""
    frames = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    sources = [
        frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        for frame in dataset.PerFrameFunctionalGroupsSequence
    ]
    return dict(zip(sources, frames, strict=True))


@pytest.mark.lgg
def test_a_real_mask_with_its_frames_in_another_order_is_the_same_mask(lgg: Path, tmp_path: Path) -> None:
    root = lgg / "north" / "dicom"
    found = scan(root, tmp_path / "index", modality=["MR"], several_frames=True)
    matches = match(found.annotations, find_stacks(found.instances, root).stacks, root)
    for stack, annotations in list(matches.by_stack.items())[:3]:
        expected = read_mask(annotations, stack, root, {"*": "tumour"}, ["none", "tumour"])
        (tmp_path / "copy").write_bytes((root / annotations[0].path).read_bytes())
        shuffled(tmp_path / "copy", seed=1)
        again = read_mask([read_annotation(tmp_path, "copy")], stack, tmp_path, {"*": "tumour"}, ["none", "tumour"])
        np.testing.assert_array_equal(again, expected)
        assert expected.any()
