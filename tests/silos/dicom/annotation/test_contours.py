"""Contours of an RTSTRUCT fill the voxels whose centres they enclose, on the slices on which they were drawn."""

import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom import dcmread, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence

from models.errors import ConfigError
from silos.dicom.annotation import Unfit, UnfitAnnotation, match, read_annotation, read_mask
from silos.dicom.annotation.contours import fill
from silos.dicom.header import Flaw, Reason, UnreadableFile

Make = Callable[..., Any]
Outline = NDArray[np.float64]

STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
CLASSES = ["none", "organ", "tumour"]
WORDS = {"Organ": "organ", "GTV": "tumour", "*": ""}
AXES = np.array([(0.8, 0.6, 0), (0, 0, -1)])
STEP = np.array([-1.8, 2.4, 0])
CORNER = np.array([-10.0, 20.0, 30.0])
ROWS, COLUMNS, SLICES = 36, 40, 5


@pytest.fixture
def stack(make_stack: Make, hospital: Any) -> Any:
    """A stack with an oblique direction; slice n is image `1.2.3.4.n+1`, up to its order along the normal."""
    pixels = np.zeros((SLICES, ROWS, COLUMNS), np.uint16)
    make_stack(hospital.root / "images", pixels, axes=AXES, step=STEP)
    (found,) = hospital.stacks().stacks
    return found


def circle(column: float, row: float, radius: float, points: int = 400) -> Outline:
    turn = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([column + radius * np.cos(turn), row + radius * np.sin(turn)], axis=1)


def square(left: float, top: float, right: float, bottom: float) -> Outline:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def contour(outline: Outline, slice_: float, kind: str = "CLOSED_PLANAR", image: int | None = None) -> Dataset:
    """A contour of points (column, row) in pixels, written in mm in the patient."""
    item = Dataset()
    mm = CORNER + slice_ * STEP + outline[:, :1] * 1.5 * AXES[0] + outline[:, 1:] * 2.0 * AXES[1]
    item.ContourGeometricType = kind
    item.NumberOfContourPoints = len(outline)
    item.ContourData = [round(float(each), 4) for each in mm.ravel()]
    if image is not None:
        named = Dataset()
        named.ReferencedSOPClassUID, named.ReferencedSOPInstanceUID = (
            "1.2.840.10008.5.1.4.1.1.4",
            f"1.2.3.4.{image + 1}",
        )
        item.ContourImageSequence = Sequence([named])
    return item


def write(
    hospital: Any, rois: dict[str, list[Dataset]], *, images: int = SLICES, code: str = "", **settings: Any
) -> None:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = STRUCTURES, "1.2.3.98.1"
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = "1.2.3.98", "1.2.3"
    dataset.Modality, dataset.PatientID, dataset.StructureSetLabel = "RTSTRUCT", "MRN1", "label"
    frame, study, series = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = settings.get("series", "1.2.3.4")
    series.ContourImageSequence = Sequence()
    for number in range(images):
        image = Dataset()
        image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = (
            "1.2.840.10008.5.1.4.1.1.4",
            f"1.2.3.4.{number + 1}",
        )
        series.ContourImageSequence.append(image)
    study.RTReferencedSeriesSequence = Sequence([series])
    frame.FrameOfReferenceUID = settings.get("frame", "1.2.9")
    frame.RTReferencedStudySequence = Sequence([study] if settings.get("series", "1.2.3.4") else [])
    dataset.ReferencedFrameOfReferenceSequence = Sequence([frame])
    dataset.StructureSetROISequence = Sequence()
    dataset.ROIContourSequence = Sequence()
    dataset.RTROIObservationsSequence = Sequence()
    for number, (name, contours) in enumerate(rois.items(), start=1):
        roi, drawn, seen = Dataset(), Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        roi.ReferencedFrameOfReferenceUID = frame.FrameOfReferenceUID
        drawn.ReferencedROINumber, drawn.ContourSequence = number, Sequence(contours)
        seen.ObservationNumber, seen.ReferencedROINumber = number, number
        if code:
            item = Dataset()
            item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code, "SCT", "x"
            seen.RTROIIdentificationCodeSequence = Sequence([item])
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(drawn)
        dataset.RTROIObservationsSequence.append(seen)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    (hospital.root / "contours").mkdir(exist_ok=True)
    dataset.save_as(hospital.root / "contours" / "x", enforce_file_format=True)


def read(hospital: Any, words: dict[str, str] = WORDS) -> dict[int, NDArray[np.uint8]]:
    """Number of the image -> its mask (rows, columns), where anything is drawn."""
    found = hospital.scan()
    assert list(found.annotations["path"]) == ["contours/x"]
    ((stack, annotations),) = match(found.annotations, hospital.stacks().stacks, hospital.root).by_stack.items()
    mask = read_mask(annotations, stack, hospital.root, words, CLASSES)
    assert (mask.shape, mask.dtype) == (stack.shape, np.uint8)
    images = {number: mask[:, :, stack.places[f"1.2.3.4.{number + 1}", 1]].T for number in range(SLICES)}
    return {number: image for number, image in images.items() if image.any()}


def disc(column: float, row: float, radius: float) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:ROWS, :COLUMNS]
    inside: NDArray[np.bool_] = (columns - column) ** 2 + (rows - row) ** 2 < radius**2
    return inside


def test_a_circle_is_a_disc(stack: Any, hospital: Any) -> None:
    write(hospital, {"GTV": [contour(circle(17.3, 14.6, 9.35), 3)]})
    found = read(hospital)
    assert list(found) == [3]
    np.testing.assert_array_equal(found[3], 2 * disc(17.3, 14.6, 9.35))


def test_a_square_has_as_many_voxels_as_centres_lie_in_it(stack: Any, hospital: Any) -> None:
    write(hospital, {"GTV": [contour(square(2.5, 5.5, 12.5, 9.5), 0)]})
    found = read(hospital)
    assert list(found) == [0]
    expected = np.zeros((ROWS, COLUMNS), np.uint8)
    expected[6:10, 3:13] = 2
    np.testing.assert_array_equal(found[0], expected)


def test_a_contour_within_another_is_a_hole_and_one_within_that_an_island(stack: Any, hospital: Any) -> None:
    radii = (12.3, 8.4, 3.6)
    write(hospital, {"GTV": [contour(circle(18, 17, radius), 2, image=2) for radius in radii]})
    outer, hole, island = (disc(18, 17, radius) for radius in radii)
    np.testing.assert_array_equal(read(hospital)[2], 2 * (outer & ~hole | island))


def test_a_hole_drawn_as_a_keyhole_is_a_hole(stack: Any, hospital: Any) -> None:
    outer, inner = square(4.5, 4.5, 20.5, 20.5), square(8.5, 8.5, 12.5, 12.5)
    keyhole = np.concatenate([outer, outer[:1], inner[:1], inner[::-1], outer[:1]])
    write(hospital, {"GTV": [contour(keyhole, 1)]})
    expected = np.zeros((ROWS, COLUMNS), np.uint8)
    expected[5:21, 5:21] = 2
    expected[9:13, 9:13] = 0
    np.testing.assert_array_equal(read(hospital)[1], expected)


def test_structures_overlap_in_the_order_of_the_classes_and_unwanted_ones_are_not_painted(
    stack: Any, hospital: Any
) -> None:
    write(
        hospital,
        {
            "GTV": [contour(circle(18, 17, 4.4), 2)],
            "Couch": [contour(square(0, 30, 39, 35), 2), contour(circle(5, 5, 2), 2, kind="OPEN_PLANAR")],
            "Organ": [contour(circle(18, 17, 10.2), number) for number in (1, 2)],
        },
    )
    found = read(hospital)
    assert list(found) == [1, 2]
    np.testing.assert_array_equal(found[2], np.where(disc(18, 17, 4.4), 2, disc(18, 17, 10.2)))


def test_a_contour_beyond_the_picture_is_cut_at_its_edge(stack: Any, hospital: Any) -> None:
    write(hospital, {"GTV": [contour(circle(0, 35, 6.3), 2)]})
    np.testing.assert_array_equal(read(hospital)[2], 2 * disc(0, 35, 6.3))


def refusal(hospital: Any) -> Unfit:
    with pytest.raises(UnfitAnnotation) as caught:
        read(hospital)
    return caught.value.reason


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (contour(circle(18, 17, 5), 2.5), Unfit.OTHER_GRID),
        (contour(circle(18, 17, 5), 5), Unfit.OTHER_GRID),
        (contour(circle(18, 17, 5), 2, image=3), Unfit.CONTRADICTION),
        (contour(circle(18, 17, 5), 2, kind="OPEN_PLANAR"), Unfit.OPEN),
        (contour(circle(18, 17, 5, points=1), 2, kind="POINT"), Unfit.OPEN),
    ],
    ids=["between slices", "beyond the stack", "another image", "open", "point"],
)
def test_a_contour_that_does_not_fit_is_refused(item: Dataset, reason: Unfit, stack: Any, hospital: Any) -> None:
    write(hospital, {"GTV": [item]})
    assert refusal(hospital) == reason


def test_a_contour_that_names_no_frame_of_an_image_means_all_of_them(stack: Any, hospital: Any, join: Make) -> None:
    slices = [dcmread(path) for path in (hospital.root / "images").iterdir()]
    join(sorted(slices, key=lambda each: str(each.SOPInstanceUID)), hospital.root / "image")
    shutil.rmtree(hospital.root / "images")
    item = contour(circle(17.3, 14.6, 9.35), 3, image=3)
    item.ContourImageSequence[0].ReferencedSOPInstanceUID = "1.2.7"
    write(hospital, {"GTV": [item]}, images=0)
    (whole,) = hospital.stacks().stacks
    matches = match(hospital.scan().annotations, [whole], hospital.root)
    mask = read_mask(matches.by_stack[whole], whole, hospital.root, WORDS, CLASSES)
    np.testing.assert_array_equal(mask[:, :, whole.places["1.2.7", 4]].T, 2 * disc(17.3, 14.6, 9.35))
    item.ContourImageSequence[0].ReferencedFrameNumber = 5
    write(hospital, {"GTV": [item]}, images=0)
    with pytest.raises(UnfitAnnotation) as caught:
        read_mask(matches.by_stack[whole], whole, hospital.root, WORDS, CLASSES)
    assert caught.value.reason == Unfit.CONTRADICTION


def test_a_contour_across_slices_is_refused(stack: Any, hospital: Any) -> None:
    item = contour(circle(18, 17, 5), 2)
    item.ContourData = [float(each) for each in item.ContourData[:-3]] + [-10.0, 20.0, 30.0]
    write(hospital, {"GTV": [item]})
    assert refusal(hospital) == Unfit.OTHER_GRID


def test_each_stack_of_a_series_gets_what_was_drawn_on_it(stack: Any, hospital: Any, make_stack: Make) -> None:
    pixels = np.zeros((3, 30, COLUMNS), np.uint16)
    paths = make_stack(hospital.root / "second", pixels, axes=AXES, step=STEP, position=CORNER + 20 * STEP)
    for number, path in enumerate(paths):
        image = dcmread(path)
        image.SOPInstanceUID = f"1.2.3.4.{number + 101}"
        image.save_as(path)
    first, second = contour(circle(17.3, 14.6, 9.35), 3, image=3), contour(circle(11, 9, 5.3), 21, image=101)
    write(hospital, {"GTV": [first, second], "Organ": [contour(circle(9, 9, 3), 2, image=2)]}, images=103)

    def masks(words: dict[str, str]) -> Iterator[NDArray[np.uint8]]:
        matches = match(hospital.scan().annotations, hospital.stacks().stacks, hospital.root)
        for each, annotations in sorted(matches.by_stack.items(), key=lambda item: item[0].shape[1], reverse=True):
            yield read_mask(annotations, each, hospital.root, words, CLASSES)

    whole, part = masks(WORDS | {"Organ": ""})
    assert whole.any(axis=(0, 1)).sum() == part.any(axis=(0, 1)).sum() == 1
    assert (whole == 2).sum() == disc(17.3, 14.6, 9.35).sum()
    assert (part == 2).sum() == disc(11, 9, 5.3).sum()
    both = masks(WORDS)
    assert set(np.unique(next(both))) == {0, 1, 2}
    with pytest.raises(UnfitAnnotation) as caught:  # nobody drew the organ on the second, which may well show it
        next(both)
    assert caught.value.reason == Unfit.OTHER_GRID


def test_structures_are_known_by_their_codes(stack: Any, hospital: Any) -> None:
    write(hospital, {"Schaeffer 3": [contour(circle(18, 17, 5.3), 2)]}, code="4147007")
    np.testing.assert_array_equal(read(hospital, {"SCT:4147007": "tumour"})[2], 2 * disc(18, 17, 5.3))


def test_a_structure_that_no_word_knows_is_named(stack: Any, hospital: Any) -> None:
    write(hospital, {"PTV": [contour(circle(18, 17, 5), 2)]})
    with pytest.raises(ConfigError, match=r"data\.annotations\.words: .*'PTV'; known words are GTV"):
        read(hospital, {"GTV": "tumour"})


@pytest.mark.parametrize("settings", [{"images": 0}, {"images": 0, "series": ""}])
def test_contours_that_name_no_image_are_matched_by_series_or_frame_of_reference(
    settings: dict[str, Any], stack: Any, hospital: Any
) -> None:
    write(hospital, {"GTV": [contour(circle(18, 17, 5.3), 2)]}, **settings)
    np.testing.assert_array_equal(read(hospital)[2], 2 * disc(18, 17, 5.3))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"images": 0, "series": "1.2.3.5"}, Unfit.NO_IMAGES),
        ({"images": 0, "series": "", "frame": "1.2.8"}, Unfit.NO_IMAGES),
        ({"frame": "1.2.8"}, Unfit.CONTRADICTION),
    ],
)
def test_contours_of_other_images_are_counted(
    settings: dict[str, Any], reason: Unfit, stack: Any, hospital: Any
) -> None:
    write(hospital, {"GTV": [contour(circle(18, 17, 5), 2)]}, **settings)
    matches = match(hospital.scan().annotations, [stack], hospital.root)
    assert (matches.by_stack, matches.left_out) == ({}, {reason: 1})


@pytest.mark.parametrize("settings", [{"images": 0}, {"images": 0, "series": ""}])
def test_contours_that_alone_name_their_images_are_of_these_and_of_no_others(
    settings: dict[str, Any], stack: Any, hospital: Any
) -> None:
    write(hospital, {"GTV": [contour(circle(18, 17, 5.3), 2, image=2)]}, **settings)
    np.testing.assert_array_equal(read(hospital)[2], 2 * disc(18, 17, 5.3))
    write(hospital, {"GTV": [contour(circle(18, 17, 5.3), 2, image=50)]}, **settings)
    matches = match(hospital.scan().annotations, [stack], hospital.root)
    assert (matches.by_stack, matches.left_out) == ({}, {Unfit.NO_IMAGES: 1})


def test_a_contour_of_an_image_of_no_stack_of_the_series_is_refused(stack: Any, hospital: Any) -> None:
    write(hospital, {"GTV": [contour(circle(18, 17, 5), 2, image=2), contour(circle(18, 17, 5), 3, image=50)]})
    assert refusal(hospital) == Unfit.NO_IMAGES


def test_a_file_of_contours_cut_anywhere_is_counted_and_never_crashes(stack: Any, hospital: Any) -> None:
    write(hospital, {"GTV": [contour(circle(18, 17, 5), 2)]})
    path = hospital.root / "contours" / "x"
    content = path.read_bytes()
    for length in range(200, len(content) - 1, 997):
        path.write_bytes(content[:length])
        found = hospital.scan()
        if len(found.annotations):  # cut between two elements
            matches = match(found.annotations, [stack], hospital.root)
            assert matches.by_stack or sum(matches.left_out.values()) == 1
        else:
            assert set(found.left_out) <= {Reason.TRUNCATED, Reason.UNREADABLE, Reason.NOT_DICOM, Reason.NO_IMAGE}


def test_only_contours_may_have_no_pixels(stack: Any, hospital: Any) -> None:
    write(hospital, {"GTV": []})
    annotation = read_annotation(hospital.root, "contours/x")
    assert (annotation.kind, [segment.name for segment in annotation.segments]) == ("RTSTRUCT", ["GTV"])
    assert annotation.instances == {f"1.2.3.4.{number + 1}" for number in range(SLICES)}


def test_a_contour_that_crosses_the_picture_without_end_takes_no_memory() -> None:
    zigzag = np.stack([np.arange(20_000) % 512, np.arange(20_000) % 2 * 511], axis=1).astype(float)
    tracemalloc.start()
    try:
        with pytest.raises(Flaw, match="absurd"):
            fill([zigzag], (512, 512))
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_a_file_of_contours_without_end_is_unreadable(
    stack: Any, hospital: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = contour(square(2, 2, 12, 22), 3)  # 20 rows down, 20 up
    write(hospital, {"GTV": [one] * 10})
    monkeypatch.setattr("silos.dicom.annotation.contours.MAX_DRAWN", 400)
    assert not read(hospital)  # an even number of them leaves nothing
    monkeypatch.setattr("silos.dicom.annotation.contours.MAX_DRAWN", 399)
    with pytest.raises(UnreadableFile, match="absurd"):
        read(hospital)


@given(
    st.lists(st.lists(st.tuples(st.floats(-3, 13), st.floats(-3, 11)), min_size=1, max_size=7), min_size=1, max_size=3)
)
def test_filling_counts_the_edges_that_a_ray_crosses(outlines: list[list[tuple[float, float]]]) -> None:
    polygons = [np.array(outline) for outline in outlines]
    found = fill(polygons, (10, 8))
    for x, y in np.ndindex(10, 8):
        crossed = 0
        for polygon in polygons:
            for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
                if (y0 <= y) != (y1 <= y):
                    crossed += x0 + (y - y0) / (y1 - y0) * (x1 - x0) <= x
        assert found[x, y] == (crossed % 2 == 1)
