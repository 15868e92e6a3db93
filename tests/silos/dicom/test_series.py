"""The files of a series become a volume where they lie in the patient, or a reason why they do not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from pydicom import config, dcmread, uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from silos.dicom import series
from silos.dicom.decode import read_image
from silos.dicom.geometry import Misfit, Plane, arrange
from silos.dicom.header import Reason, UnreadableFile
from silos.dicom.scan import scan
from silos.dicom.series import Note, find_stacks, read_volume
from silos.dicom.upright import upright

Make = Callable[..., Any]

ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
LPS_TO_RAS = np.array([-1, -1, 1])


def turned(degrees: float, about: int) -> NDArray[np.float64]:
    """A rotation about one axis of the patient."""
    first, second = (axis for axis in range(3) if axis != about)
    matrix, angle = np.eye(3), np.radians(degrees)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix


OBLIQUE = turned(20, 0) @ turned(-35, 1) @ turned(10, 2)


def noise(slices: int, rows: int = 6, columns: int = 5) -> NDArray[np.uint16]:
    return np.random.default_rng(slices).integers(0, 4096, (slices, rows, columns)).astype(np.uint16)


@pytest.mark.parametrize("sign", [1, -1])
def test_every_voxel_lies_where_its_slice_says_whatever_files_are_called(
    sign: int, make_stack: Make, hospital: Any
) -> None:
    pixels, axes, step = noise(7), OBLIQUE[:, :2].T, sign * 2.5 * OBLIQUE[:, 2]
    make_stack(hospital.root, pixels, axes=axes, step=step, spacing=(0.8, 0.6), position=(4, -5, 60))
    volume = hospital.volume()
    assert volume.pixels.dtype == np.float32
    assert volume.pixels.shape == volume.stack.shape == (5, 6, 7)
    assert volume.stack.notes == ()
    np.testing.assert_allclose(volume.stack.spacing, (0.6, 0.8, 2.5), atol=1e-5)
    for number, row, column in np.ndindex(pixels.shape):
        lps = np.array([4, -5, 60]) + number * step + row * 0.8 * axes[1] + column * 0.6 * axes[0]
        voxel = np.linalg.inv(volume.affine) @ [*(lps * LPS_TO_RAS), 1]
        index = tuple(np.rint(voxel[:3]).astype(int))
        np.testing.assert_allclose(voxel[:3], index, atol=1e-4)
        assert volume.pixels[index] == pixels[number, row, column]
        assert volume.stack.places[f"1.2.3.4.{number + 1}", 1] == index[2]


def test_the_same_series_under_other_names_gives_the_same_volume(
    make_stack: Make, hospital: Any, tmp_path: Path
) -> None:
    make_stack(hospital.root, noise(9), seed=1)
    first = hospital.volume()
    for path in sorted(hospital.root.iterdir()):
        path.rename(hospital.root / f"x{path.name[::-1]}")
    second = hospital.volume()
    np.testing.assert_array_equal(first.pixels, second.pixels)
    np.testing.assert_array_equal(first.affine, second.affine)


def test_a_tilted_gantry_is_reported_and_kept_in_the_affine(make_stack: Make, hospital: Any) -> None:
    make_stack(hospital.root, noise(8), step=(0, 3 * np.tan(np.radians(15)), 3))
    stack = hospital.volume().stack
    assert stack.notes == (Note.TILT,)
    assert stack.tilt == pytest.approx(15, abs=1e-3)
    assert stack.spacing == pytest.approx((1.5, 2.0, 3.0))
    np.testing.assert_allclose(stack.affine[:3, 2], [0, -3 * np.tan(np.radians(15)), 3], atol=1e-6)


def left_out(hospital: Any, *modality: str) -> dict[str, int]:
    found = hospital.stacks(*modality)
    assert found.stacks == ()
    return dict(found.left_out)


@pytest.mark.parametrize("gone", [1, 4, 8])
def test_a_missing_slice_is_noticed(gone: int, make_stack: Make, hospital: Any) -> None:
    make_stack(hospital.root, noise(10))[gone].unlink()
    assert left_out(hospital) == {Misfit.MISSING: 9}


def test_the_end_of_a_series_is_no_missing_slice(make_stack: Make, hospital: Any) -> None:
    make_stack(hospital.root, noise(10))[9].unlink()
    assert hospital.volume().pixels.shape == (5, 6, 9)


def moved(path: Path, **attributes: Any) -> None:
    dataset = dcmread(path)
    with config.disable_value_validation():
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)
        dataset.save_as(path)


@pytest.mark.parametrize(
    ("position", "reason"),
    [
        ((-10, 20, 43), Misfit.UNEVEN),
        ((-10, 20, 39), Misfit.SAME_POSITION),
        ((-10, 20, 39.001), Misfit.SAME_POSITION),
        ((-7, 20, 42), Misfit.BESIDE),
    ],
)
def test_a_slice_off_its_place_is_noticed(
    position: tuple[float, ...], reason: Misfit, make_stack: Make, hospital: Any
) -> None:
    moved(make_stack(hospital.root, noise(10))[4], ImagePositionPatient=list(position))
    assert left_out(hospital) == {reason: 10}


@pytest.mark.parametrize(
    ("heights", "reason"),
    [
        ([0, 3, 6, 9] * 3, Misfit.REPEATED),
        ([0, 0.001, 3, 3.001, 6, 6], Misfit.REPEATED),
        ([0, 3, 6, 9, 9], Misfit.SAME_POSITION),
        ([5, 5, 5], Misfit.SAME_POSITION),
    ],
)
def test_a_series_of_several_times_or_contrasts_is_told_from_a_doubled_slice(
    heights: list[float], reason: Misfit
) -> None:
    axes = np.array([[1.0, 0, 0], [0, 1, 0]])
    planes = [Plane((8, 8), (1.0, 1.0), axes, np.array([0, 0, height])) for height in heights]
    assert arrange(planes) == reason


def test_rounded_positions_are_no_uneven_distances(make_stack: Make, hospital: Any) -> None:
    paths = make_stack(hospital.root, noise(40), step=(0, 0, 0.625))
    for number, path in enumerate(paths):
        moved(path, ImagePositionPatient=[-10, 20, round(30 + 0.625 * number, 1)])
    assert hospital.volume().stack.spacing[2] == pytest.approx(0.625, abs=0.005)


def test_slices_that_slide_further_than_any_gantry_tilts_are_no_volume(make_stack: Make, hospital: Any) -> None:
    make_stack(hospital.root, noise(5), step=(0, 4, 3))
    assert left_out(hospital) == {Misfit.BESIDE: 5}


def test_stacks_of_several_directions_sizes_and_spacings_in_one_series_are_told_apart(
    make_stack: Make, hospital: Any
) -> None:
    kinds: list[tuple[int, int, dict[str, Any]]] = [
        (5, 6, {}),
        (4, 6, {"axes": ((0, 1, 0), (0, 0, -1)), "step": (4.0, 0, 0)}),
        (3, 7, {}),
        (6, 6, {"spacing": (2.0, 1.6)}),
        (2, 6, {"FrameOfReferenceUID": "1.2.10"}),
        (1, 8, {}),
    ]
    for number, (count, rows, settings) in enumerate(kinds):
        for place, path in enumerate(make_stack(hospital.root / str(number), noise(count, rows), **settings)):
            moved(path, SOPInstanceUID=f"1.2.5.{number}.{place}")
    found = hospital.stacks()
    assert sorted(stack.shape for stack in found.stacks) == [(5, 6, 2), (5, 6, 4), (5, 6, 5), (5, 6, 6), (5, 7, 3)]
    assert {stack.notes for stack in found.stacks} == {(Note.PART,)}
    assert found.left_out == {Misfit.SINGLE: 1}


def test_a_localizer_is_left_out_and_the_rest_is_a_volume(make_stack: Make, hospital: Any) -> None:
    paths = make_stack(hospital.root, noise(6))
    moved(paths[0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    found = hospital.stacks()
    assert [stack.shape for stack in found.stacks] == [(5, 6, 5)]
    assert found.left_out == {Misfit.LOCALIZER: 1}


@pytest.mark.parametrize(
    "attributes",
    [
        {"ImagePositionPatient": None},
        {"ImageOrientationPatient": None},
        {"PixelSpacing": None},
        {"PixelSpacing": [0, 1]},
        {"PixelSpacing": [1]},
        {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]},
        {"ImageOrientationPatient": [2, 0, 0, 0, 1, 0]},
        {"ImageOrientationPatient": [1, 0, 0, 0, 1]},
        {"ImagePositionPatient": ["1E300", 0, 0]},
        {"ImagePositionPatient": ["nan", 0, 0]},
    ],
)
def test_what_lies_nowhere_is_no_volume(attributes: dict[str, Any], make_stack: Make, hospital: Any) -> None:
    for path in make_stack(hospital.root, noise(3)):
        if None in attributes.values():
            dataset = dcmread(path)
            delattr(dataset, *attributes)
            dataset.save_as(path)
        else:
            moved(path, **attributes)
    assert left_out(hospital) == {Misfit.NO_POSITION: 3}


def test_a_series_of_two_patients_is_left_out(make_stack: Make, hospital: Any) -> None:
    moved(make_stack(hospital.root, noise(4))[0], PatientID="MRN2")
    assert left_out(hospital) == {Misfit.SEVERAL_PATIENTS: 4}


def test_whoever_has_two_patient_ids_in_a_study_has_them_in_every_study(make_stack: Make, hospital: Any) -> None:
    for number, (study, patient) in enumerate(
        (("1.2.4", "MRN1"), ("1.2.4", "MRN1 "), ("1.2.4", "MRN2"), ("1.2.4", ""), ("1.2.5", " MRN2"), ("1.2.6", "MRN3"))
    ):
        words = {"StudyInstanceUID": study, "SeriesInstanceUID": f"1.2.7.{number}", "PatientID": patient}
        make_stack(hospital.root / str(number), noise(4), **words)
    instances = hospital.scan().instances
    several = series.of_several_patients(instances)
    assert set(instances["SeriesInstanceUID"][~several]) == {"1.2.7.5"}
    assert len(hospital.stacks().stacks) == 6  # each series is of one patient: what is only predicted has no two sides


def test_one_patient_id_is_one_patient_though_some_files_lack_it(make_stack: Make, hospital: Any) -> None:
    for path, patient in zip(make_stack(hospital.root, noise(4)), ("MRN1 ", "", "MRN1", " MRN1"), strict=True):
        moved(path, PatientID=patient)
    assert hospital.volume().pixels.shape == (5, 6, 4)


def test_an_image_without_a_series_is_left_out(make_stack: Make, hospital: Any) -> None:
    for path in make_stack(hospital.root, noise(2)):
        moved(path, SeriesInstanceUID="")
    assert left_out(hospital) == {Misfit.NO_SERIES: 2}


def test_a_volume_too_large_for_memory_is_left_out(
    make_stack: Make, hospital: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_stack(hospital.root, noise(4))
    monkeypatch.setattr(series, "MAX_VOXELS", 4 * 5 * 6 - 1)
    assert left_out(hospital) == {Misfit.TOO_LARGE: 4}


@pytest.mark.parametrize("across", range(3), ids=["axial", "sagittal", "coronal"])
@pytest.mark.parametrize("spacing", [(2.0, 1.5), (0.5, 0.7)], ids=str)
def test_a_tilted_volume_is_as_large_as_it_is_upright(
    across: int, spacing: tuple[float, float], make_stack: Make, hospital: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = np.roll(np.eye(3), across, axis=1) @ turned(10, 2)
    make_stack(hospital.root, noise(8), axes=axes[:2], step=axes[2] * 3 - axes[1] * 1.5, spacing=spacing)
    volume = hospital.volume()
    voxels = upright(volume.pixels, volume.stack)[0].size
    assert voxels != volume.pixels.size
    monkeypatch.setattr(series, "MAX_VOXELS", voxels)
    assert hospital.volume().stack.tilt
    monkeypatch.setattr(series, "MAX_VOXELS", voxels - 1)
    assert left_out(hospital) == {Misfit.TOO_LARGE: 8}


def test_tiny_pixels_and_a_tilt_take_no_memory(make_stack: Make, hospital: Any) -> None:
    make_stack(hospital.root, noise(3), step=(0, 500, 1000), spacing=(1e-5, 1e-5))
    assert left_out(hospital) == {Misfit.TOO_LARGE: 3}


def test_slices_in_more_directions_than_anybody_scans_are_left_out_in_little_time(
    make_stack: Make, hospital: Any
) -> None:
    for number in range(70):
        axes = (turned(2 * number, 0)[:, :2]).T
        path = make_stack(hospital.root / str(number), noise(1), axes=axes)[0]
        moved(path, SOPInstanceUID=f"1.2.6.{number}")
    assert left_out(hospital) == {Misfit.SINGLE: 64, Misfit.MANY_DIRECTIONS: 6}


def test_each_slice_of_a_pet_has_its_own_scale_and_is_in_becquerel(make_stack: Make, hospital: Any) -> None:
    pixels = noise(4)
    for number, path in enumerate(make_stack(hospital.root, pixels, Modality="PT", Units="BQML")):
        moved(path, RescaleSlope=str(number + 0.5), RescaleIntercept="0")
    volume = hospital.volume("PT")
    assert volume.stack.notes == (Note.NO_SUV,)
    for number in range(4):
        np.testing.assert_allclose(volume.pixels[:, :, number], pixels[number].T * (number + 0.5))


@pytest.mark.parametrize("units", ["CNTS", "GML", ""])
def test_a_pet_in_other_units_is_left_out(units: str, make_stack: Make, hospital: Any) -> None:
    paths = make_stack(hospital.root, noise(4), Modality="PT", Units="BQML")
    moved(paths[2], Units=units)
    assert left_out(hospital, "PT") == {Misfit.PET_UNITS: 4}


def test_a_slice_that_cannot_be_decoded_leaves_no_volume(make_stack: Make, hospital: Any) -> None:
    paths = make_stack(hospital.root, noise(4, 48, 64), syntax=uid.JPEGLSLossless)
    (stack,) = hospital.stacks().stacks
    content = paths[1].read_bytes()
    paths[1].write_bytes(content[:-600] + b"\xff" * 550 + content[-50:])
    with pytest.raises(UnreadableFile) as caught:
        read_volume(stack, hospital.root)
    assert caught.value.reason == Reason.PIXELS


def item(**attributes: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def groups(number: int, step: Any, slope: float, **more: Any) -> Dataset:
    position = [round(float(each), 6) for each in np.add((4, -5, 60), np.multiply(number, step))]
    return item(
        PlanePositionSequence=[item(ImagePositionPatient=position)],
        PixelValueTransformationSequence=[item(RescaleSlope=slope, RescaleIntercept=-7, RescaleType="US")],
        **more,
    )


def make_enhanced(make: Make, path: Path, pixels: NDArray[Any], order: Any, **attributes: Any) -> Path:
    """Frames in any order, their orientation and spacing said once for all."""
    axes, step = OBLIQUE[:, :2].T, 2.5 * OBLIQUE[:, 2]
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=[round(float(each), 8) for each in axes.ravel()])],
        PixelMeasuresSequence=[item(PixelSpacing=[0.8, 0.6])],
    )
    settings = {
        "SOPClassUID": ENHANCED_MR,
        "FrameOfReferenceUID": "1.2.9",
        "SharedFunctionalGroupsSequence": Sequence([shared]),
        "PerFrameFunctionalGroupsSequence": Sequence([groups(int(each), step, 1 + 0.5 * int(each)) for each in order]),
    }
    made: Path = make(path, pixels[order][0], **settings)
    dataset = dcmread(made)
    dataset.NumberOfFrames = len(order)
    syntax = attributes.pop("syntax", None)
    if syntax:
        dataset.compress(syntax, pixels[order], generate_instance_uid=False)
    else:
        dataset.PixelData = pixels[order].tobytes()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    dataset.save_as(made)
    return made


@pytest.mark.parametrize("syntax", [None, uid.RLELossless, uid.JPEGLSLossless], ids=["native", "rle", "jls"])
def test_frames_in_any_order_are_put_in_their_places_with_their_own_scale(
    syntax: str | None, make: Make, hospital: Any
) -> None:
    pixels, order = noise(6, 48, 64), np.array([3, 0, 5, 1, 4, 2])
    make_enhanced(make, hospital.root / "a", pixels, order, syntax=syntax, SOPInstanceUID="1.2.7")
    volume = hospital.volume()
    assert volume.stack.notes == ()
    np.testing.assert_allclose(volume.stack.spacing, (0.6, 0.8, 2.5), atol=1e-5)
    np.testing.assert_allclose(volume.affine[:3, 3], [-4, 5, 60], atol=1e-5)
    for number in range(6):
        frame = int(np.flatnonzero(order == number)[0]) + 1
        assert volume.stack.places["1.2.7", frame] == number
        np.testing.assert_allclose(volume.pixels[:, :, number], pixels[number].T * (1 + 0.5 * number) - 7)


def test_enhanced_images_of_one_frame_have_the_scale_that_their_frame_has(make_stack: Make, hospital: Any) -> None:
    pixels = noise(4)
    for number, path in enumerate(make_stack(hospital.root, pixels, SOPClassUID=ENHANCED_MR, RescaleSlope="9")):
        moved(path, PerFrameFunctionalGroupsSequence=[groups(number, (0, 0, 3), 1 + 0.5 * number)])
        np.testing.assert_allclose(read_image(path), pixels[number] * (1 + 0.5 * number) - 7)
    volume = hospital.volume()
    for number in range(4):
        np.testing.assert_allclose(volume.pixels[:, :, number], pixels[number].T * (1 + 0.5 * number) - 7)


def test_frames_without_a_scale_of_their_own_have_the_file_s(make: Make, hospital: Any) -> None:
    pixels, frames = noise(4), [groups(number, 2.5 * OBLIQUE[:, 2], 1) for number in range(4)]
    for frame in frames:
        del frame.PixelValueTransformationSequence
    words = {"RescaleSlope": "2", "RescaleIntercept": "-1024", "PerFrameFunctionalGroupsSequence": Sequence(frames)}
    make_enhanced(make, hospital.root / "a", pixels, np.arange(4), **words)
    np.testing.assert_array_equal(hospital.volume().pixels, pixels.transpose(2, 1, 0) * 2.0 - 1024)


def test_padding_is_as_dark_as_the_darkest_of_the_whole_volume(make_stack: Make, hospital: Any) -> None:
    pixels = np.random.default_rng(1).integers(-1000, 1000, (5, 6, 5)).astype(np.int16)
    pixels[:, 0] = pixels[0] = -2000  # a border, and a slice that lies outside of what was measured
    make_stack(hospital.root, pixels, Modality="CT", PixelPaddingValue=-2000)
    expected = np.where(pixels == -2000, pixels[pixels > -2000].min(), pixels)
    np.testing.assert_array_equal(hospital.volume("CT").pixels, expected.transpose(2, 1, 0))


def test_the_empty_ground_of_a_brain_stays_0_though_it_is_called_padding(make_stack: Make, hospital: Any) -> None:
    pixels = noise(5) + np.uint16(100)
    pixels[:, :2] = pixels[4] = 0
    make_stack(hospital.root, pixels, BitsStored=16, HighBit=15, PixelPaddingValue=0)
    np.testing.assert_array_equal(hospital.volume().pixels, pixels.transpose(2, 1, 0))


def test_padding_of_frames_is_filled_in_modality_units(make: Make, hospital: Any) -> None:
    pixels = noise(4) + np.uint16(100)
    pixels[2, :, :3] = pixels[0] = 0
    path = make_enhanced(make, hospital.root / "a", pixels, np.arange(4), BitsStored=16, HighBit=15)
    dataset = dcmread(path)
    dataset.add_new("PixelPaddingValue", "US", 0)
    dataset.save_as(path)
    scaled = pixels * (1 + 0.5 * np.arange(4)[:, None, None]) - 7
    np.testing.assert_allclose(hospital.volume().pixels, np.where(pixels == 0, 0, scaled).transpose(2, 1, 0))


def test_an_image_in_several_files_is_left_out(make: Make, hospital: Any) -> None:
    for number, part in enumerate((np.arange(3), np.arange(3, 6))):
        make_enhanced(make, hospital.root / str(number), noise(6), part, ConcatenationUID="1.2.8")
    assert left_out(hospital) == {Misfit.CONCATENATION: 2}


def test_two_images_of_several_frames_are_two_stacks_of_their_series(make: Make, hospital: Any) -> None:
    for number in range(2):
        make_enhanced(make, hospital.root / str(number), noise(4), np.arange(4))
    found = hospital.stacks()
    assert [stack.shape for stack in found.stacks] == [(5, 6, 4)] * 2
    assert {stack.notes for stack in found.stacks} == {(Note.PART,)}


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"PerFrameFunctionalGroupsSequence": Sequence([Dataset()])}, Reason.UNREADABLE),
        ({"PerFrameFunctionalGroupsSequence": Sequence([Dataset()] * 4)}, Misfit.NO_POSITION),
        ({"PerFrameFunctionalGroupsSequence": Sequence([])}, Misfit.NO_POSITION),
        ({"SharedFunctionalGroupsSequence": Sequence([])}, Misfit.NO_POSITION),
    ],
)
def test_an_image_of_several_frames_that_does_not_say_where_they_lie_is_left_out(
    attributes: dict[str, Any], reason: str, make: Make, hospital: Any
) -> None:
    make_enhanced(make, hospital.root / "a", noise(4), np.arange(4), **attributes)
    assert left_out(hospital) == {reason: 1}


def test_an_image_of_several_frames_is_no_image_for_two_dimensions(make: Make, hospital: Any) -> None:
    make_enhanced(make, hospital.root / "a", noise(4), np.arange(4))
    found = scan(hospital.root, hospital.index, modality=["MR"])
    assert (len(found.instances), found.left_out) == (0, {Reason.SEVERAL_FRAMES: 1})
    assert len(hospital.scan().instances) == 1


@pytest.mark.zoo
def test_every_series_of_the_zoo_becomes_a_volume_or_a_reason(zoo: Path, tmp_path: Path) -> None:
    modalities = list(pd.read_csv(zoo / "manifest.csv")["Modality"].dropna().unique())
    found = scan(zoo, tmp_path / "index", modality=modalities, burned_in="allow-unmarked", several_frames=True)
    volumes = 0
    for _, rows in found.instances.groupby("SeriesInstanceUID"):
        here = find_stacks(rows, zoo)
        files = {each.path for stack in here.stacks for each in stack.slices}
        assert len(files) + sum(here.left_out.values()) == len(rows)
        assert set(here.left_out) <= {each.value for each in (*Misfit, *Reason)}
        for stack in here.stacks:
            volume = read_volume(stack, zoo)
            assert volume.pixels.shape == stack.shape
            assert np.isfinite(volume.pixels).all()
            assert min(stack.spacing) > 0
            volumes += 1
    assert volumes >= 10


@pytest.mark.lgg
@pytest.mark.parametrize(("name", "patients"), [("north", 13), ("east", 36), ("south", 11), ("west", 27), ("tiny", 1)])
def test_every_patient_of_each_hospital_is_one_volume(name: str, patients: int, lgg: Path, tmp_path: Path) -> None:
    root = lgg / name / "dicom"
    found = scan(root, tmp_path / "index", modality=["MR"], several_frames=True)
    stacks = find_stacks(found.instances, root)
    assert (len(stacks.stacks), stacks.left_out) == (patients, {})
    assert sum(stack.shape[2] for stack in stacks.stacks) == len(found.instances)
    assert {stack.spacing for stack in stacks.stacks} == {(1.875, 1.875, 5.0)}
    heights = [
        [float(dcmread(root / each.path, stop_before_pixels=True).ImagePositionPatient[2]) for each in stack.slices]
        for stack in stacks.stacks[:2]
    ]
    assert all(several == sorted(several) for several in heights)
    assert read_volume(stacks.stacks[0], root).pixels.max() > 100
