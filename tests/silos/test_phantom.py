"""What a make-believe hospital promises: real DICOM, the same bytes again, and a task worth learning."""

import csv
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom import Dataset, dcmread
from pydicom.pixels import apply_rescale
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
)
from torch import nn

from models.errors import ConfigError
from models.ledger import Signer, Verifier
from silos import cohort
from silos.config import Site
from silos.phantom import STYLES, write_hospital

Array = np.ndarray
ALL_STYLES = range(len(STYLES))


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "dicom").rglob("*") if path.is_file())


def read_all(folder: Path) -> dict[Path, Dataset]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return {path: dcmread(path) for path in files_of(folder)}


def label_rows(site: Site) -> list[dict[str, str]]:
    with site.data.labels.file.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=site.data.labels.delimiter))


def joined(folder: Path) -> list[tuple[Dataset, str]]:
    """Every image with the study's word for it, found as the site's own configuration says."""
    site = Site.load(folder / "site.toml")
    labels = site.data.labels
    words = {
        tuple(row[column] for column in labels.join.values()): labels.words[row[labels.value]]
        for row in label_rows(site)
    }
    return [
        (image, words[tuple(str(image[keyword].value) for keyword in labels.join)])
        for image in read_all(folder).values()
    ]


@pytest.fixture(scope="module", params=ALL_STYLES)
def hospital(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "north"
    write_hospital(folder, name="north", seed=5, patients=4, images=3, size=32, style=request.param)
    return folder


def test_every_file_is_an_mr_image_that_reads_and_decodes_without_a_warning(hospital: Path) -> None:
    images = read_all(hospital)
    assert len(images) == 4 * 3
    for image in images.values():
        assert image.SOPClassUID == image.file_meta.MediaStorageSOPClassUID == MRImageStorage
        assert image.file_meta.MediaStorageSOPInstanceUID == image.SOPInstanceUID
        assert (image.BitsAllocated, image.BitsStored, image.HighBit) == (16, 12, 11)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pixels = image.pixel_array
        assert (pixels.shape, pixels.dtype) == ((32, 32), np.uint16)
        assert 200 < pixels.max() <= 4095
        assert pixels.std() > 50


def test_the_slices_of_a_patient_lie_one_above_the_other(hospital: Path) -> None:
    stacks: dict[str, list[Dataset]] = {}
    for image in read_all(hospital).values():
        stacks.setdefault(image.SeriesInstanceUID, []).append(image)
    assert len(stacks) == 4
    for stack in stacks.values():
        stack.sort(key=lambda image: int(image.InstanceNumber))
        positions = np.array([image.ImagePositionPatient for image in stack], float)
        steps = np.diff(positions, axis=0)
        assert np.allclose(steps, [0, 0, float(stack[0].SpacingBetweenSlices)])
        row, column = np.reshape(np.array(stack[0].ImageOrientationPatient, float), (2, 3))
        assert np.allclose(np.cross(row, column), [0, 0, 1])
        assert len({(image.PatientID, image.StudyInstanceUID, image.FrameOfReferenceUID) for image in stack}) == 1


def test_site_toml_loads_and_its_key_signs_in_the_hospitals_name(hospital: Path) -> None:
    site = Site.load(hospital / "site.toml")
    assert (site.name, site.data.root) == ("north", hospital.absolute() / "dicom")
    assert (site.policy.studies, site.policy.min_patients, site.policy.min_evaluated) == (["demo"], 11, 1)
    signer = Signer.load(site.key)
    verifier = Verifier.parse(site.key.with_suffix(".pub").read_text().strip())
    verifier.verify(b"text", signer.sign(b"text"))
    assert verifier.name == "north"


def test_every_label_row_belongs_to_exactly_one_image_and_every_image_to_one_row(hospital: Path) -> None:
    site = Site.load(hospital / "site.toml")
    labels, rows = site.data.labels, label_rows(Site.load(hospital / "site.toml"))
    images = [tuple(str(i[keyword].value) for keyword in labels.join) for i in read_all(hospital).values()]
    assert sorted(images) == sorted(tuple(row[column] for column in labels.join.values()) for row in rows)
    assert len(set(images)) == len(images)
    assert {labels.words[row[labels.value]] for row in rows} == {"lesion", "none"}


def test_every_canary_is_in_the_images_or_their_names(hospital: Path) -> None:
    canaries = (hospital / "canaries.txt").read_text(encoding="utf-8").splitlines()
    assert canaries == sorted(set(canaries))
    assert min(map(len, canaries)) >= 6
    content = b""
    for path, image in read_all(hospital).items():
        content += str(path.relative_to(hospital)).encode() + b"\n"
        if image.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
            image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            plain = io.BytesIO()
            image.save_as(plain)
            content += plain.getvalue()
        else:
            content += path.read_bytes()
    assert [canary for canary in canaries if canary.encode() not in content] == []


def test_no_identifier_is_missing_from_the_canaries(hospital: Path) -> None:
    canaries = set((hospital / "canaries.txt").read_text(encoding="utf-8").splitlines())
    for image in read_all(hospital).values():
        family, given = str(image.PatientName).split("^")
        assert {family, given, family.split("-")[0], str(image.PatientName)} <= canaries
        assert {image.PatientID, image.AccessionNumber, image.PatientBirthDate, image.StudyDate} <= canaries
        assert {str(element.value) for element in image if element.VR == "PN"} <= canaries
        standard = {MRImageStorage}
        assert {str(element.value) for element in image if element.VR == "UI"} - standard <= canaries
        assert family in image.StudyDescription
        assert given in image.ImageComments
        assert image.InstitutionName in canaries
        assert image.StationName in canaries


def test_the_styles_bring_every_lossless_transfer_syntax_and_several_ways_to_name_and_label(
    tmp_path: Path,
) -> None:
    syntaxes: set[UID] = set()
    joins, delimiters, words, depths, endings = set(), set(), set(), set(), set()
    for style in ALL_STYLES:
        write_hospital(tmp_path / str(style), name="north", patients=1, images=1, size=32, style=style)
        labels = Site.load(tmp_path / str(style) / "site.toml").data.labels
        joins.add(tuple(labels.join))
        delimiters.add(labels.delimiter)
        words.add(tuple(labels.words))
        for path, image in read_all(tmp_path / str(style)).items():
            syntaxes.add(image.file_meta.TransferSyntaxUID)
            depths.add(len(path.relative_to(tmp_path / str(style) / "dicom").parts))
            endings.add(path.name.endswith(".dcm"))
    assert syntaxes == {
        ExplicitVRLittleEndian,
        RLELossless,
        JPEG2000Lossless,
        JPEGLSLossless,
        DeflatedExplicitVRLittleEndian,
    }
    assert joins == {
        ("SOPInstanceUID",),
        ("AccessionNumber", "InstanceNumber"),
        ("PatientID", "InstanceNumber"),
    }
    assert (delimiters, endings) == ({",", ";"}, {True, False})
    assert len(words) >= 3
    assert len(depths) >= 3


def test_the_style_changes_the_wrapping_and_never_a_pixel_or_a_label(tmp_path: Path) -> None:
    contents = []
    for style in ALL_STYLES:
        folder = tmp_path / str(style)
        write_hospital(folder, name="north", patients=2, images=2, size=32, style=style)
        contents.append({i.SOPInstanceUID: (i.pixel_array.tobytes(), label) for i, label in joined(folder)})
    assert all(content == contents[0] for content in contents)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("style", ALL_STYLES)
def test_the_same_name_and_seed_write_the_same_bytes_key_included(tmp_path: Path, style: int) -> None:
    for folder in ("one", "two"):
        write_hospital(tmp_path / folder, name="north", seed=3, patients=2, images=2, size=32, style=style)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")


@pytest.mark.parametrize("other", [{"name": "north", "seed": 4}, {"name": "south", "seed": 3}])
def test_another_seed_or_name_shares_no_person_uid_image_key_or_salt(tmp_path: Path, other: dict) -> None:
    write_hospital(tmp_path / "a", name="north", seed=3, patients=3, images=2, size=32, style=0)
    write_hospital(tmp_path / "b", patients=3, images=2, size=32, style=0, **other)
    kept = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        site = Site.load(folder / "site.toml")
        images = list(read_all(folder).values())
        uids = {str(e.value) for image in images for e in image if e.VR == "UI"} - {MRImageStorage}
        people = {str(image[k].value) for image in images for k in ("PatientName", "PatientID", "AccessionNumber")}
        pixels = {image.pixel_array.tobytes() for image in images}
        kept.append(uids | people | pixels | {site.data.salt, Signer.load(site.key).verifier.key})
    assert len(kept[0]) == len(kept[1]) > 20
    assert not kept[0] & kept[1]


def test_the_name_and_seed_choose_a_style_when_none_is_given(tmp_path: Path) -> None:
    makers = set()
    for seed in range(12):
        folder = tmp_path / str(seed)
        write_hospital(folder, name="north", seed=seed, patients=1, images=1, size=32)
        makers |= {image.ManufacturerModelName for image in read_all(folder).values()}
    assert len(makers) >= 3


def test_the_policy_allows_the_studies_that_were_named_and_no_other(tmp_path: Path) -> None:
    path = write_hospital(tmp_path / "a", name="a", patients=1, images=1, size=32, studies=["one", "two"])
    assert Site.load(path).policy.studies == ["one", "two"]


@pytest.mark.parametrize("seed", range(8))
def test_a_quarter_of_the_patients_is_held_out_so_that_a_demo_can_always_evaluate(tmp_path: Path, seed: int) -> None:
    site = Site.load(write_hospital(tmp_path / "a", name="a", seed=seed, images=1, size=32, style=0))
    people = {image.PatientID for image in read_all(tmp_path / "a").values()}
    hashes = [cohort.patient_hash(site.data.salt, patient) for patient in people]
    assert sum(cohort.is_held_out(patient, site.data.held_out) for patient in hashes) == 6
    assert len(people) == 24


def test_a_folder_that_holds_something_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not an empty folder") as caught:
        write_hospital(tmp_path, name="north", patients=1)
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "North Hospital"},
        {"name": 'north"'},
        {"studies": ["Not A Study"]},
        {"patients": 0},
        {"images": 0},
        {"size": 16},
        {"style": len(STYLES)},
        {"style": -1},
    ],
)
def test_an_impossible_argument_is_refused_before_anything_is_written(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(ConfigError):
        write_hospital(tmp_path / "new", **{"name": "north", **wrong})
    assert not (tmp_path / "new").exists()


def test_nearly_half_of_the_images_show_a_lesion_and_some_patients_have_none(tmp_path: Path) -> None:
    write_hospital(tmp_path / "north", name="north", style=0, size=32)
    ill = {}
    for image, label in joined(tmp_path / "north"):
        ill.setdefault(image.PatientID, []).append(label == "lesion")
    assert 0.4 <= np.mean(list(ill.values())) <= 0.5
    assert sum(not any(slices) for slices in ill.values()) >= 3
    assert sum(any(slices) and not all(slices) for slices in ill.values()) >= 15


def auc(score: Array, ill: Array) -> float:
    rank = np.argsort(np.argsort(score)) + 1
    positive, negative = ill.sum(), (~ill).sum()
    return float((rank[ill].sum() - positive * (positive + 1) / 2) / (positive * negative))


def logistic(features: Array, ill: Array, others: Array) -> Array:
    mean, sd = features.mean(0), features.std(0)
    x, weights, bias = (features - mean) / sd, np.zeros(features.shape[1]), 0.0
    for _ in range(2000):
        wrong = 1 / (1 + np.exp(-x @ weights - bias)) - ill
        weights, bias = weights - 0.3 * x.T @ wrong / len(x), bias - 0.3 * wrong.mean()
    return (others - mean) / sd @ weights


def small_cnn(images: Array, ill: Array, others: Array, epochs: int = 12) -> Array:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers, width = [], 1
        for channels, stride in ((8, 2), (16, 2), (32, 2), (32, 1)):
            layers += [nn.Conv2d(width, channels, 3, stride, 1), nn.GroupNorm(8, channels), nn.ReLU()]
            width = channels
        network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1))
        step = torch.optim.Adam(network.parameters(), 4e-3)
        x, y = torch.from_numpy(images), torch.from_numpy(ill.astype(np.float32))
        for _ in range(epochs):
            for batch in torch.randperm(len(x)).split(8):
                step.zero_grad()
                loss = nn.functional.binary_cross_entropy_with_logits(network(x[batch])[:, 0], y[batch])
                loss.backward()
                step.step()
        with torch.no_grad():
            return network(torch.from_numpy(others))[:, 0].numpy()


def test_the_lesions_are_learnt_from_their_shape_and_not_from_brightness(tmp_path: Path) -> None:
    write_hospital(tmp_path / "north", name="north", patients=80, style=0)
    found = joined(tmp_path / "north")
    images = np.stack([apply_rescale(image.pixel_array, image) for image, _ in found]).astype(np.float32)
    ill = np.array([label == "lesion" for _, label in found])
    patients = np.unique([image.PatientID for image, _ in found])
    train = np.isin([image.PatientID for image, _ in found], patients[:56])

    flat = images.reshape(len(images), -1)
    features = np.stack([flat.mean(1), flat.std(1), flat.max(1), np.percentile(flat, 99, axis=1)], axis=1)
    assert auc(logistic(features[train], ill[train], features[~train]), ill[~train]) < 0.8

    low, high = np.percentile(images, [1, 99], axis=(1, 2), keepdims=True).astype(np.float32)
    scaled = ((images - low) / (high - low)).clip(0, 1)[:, None]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        score = small_cnn(scaled[train], ill[train], scaled[~train])
    finally:
        torch.set_num_threads(threads)
    assert auc(score, ill[~train]) >= 0.85
