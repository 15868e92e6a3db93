"""Writes the folder of a make-believe hospital: images, labels, key, `site.toml` and the canaries."""

import csv
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from models.errors import ConfigError
from models.ledger import Signer
from silos.cohort import is_held_out, patient_hash
from silos.config import Site
from silos.phantom import paperwork
from silos.phantom.anatomy import examine, install
from silos.phantom.drawing import contours, segmentation
from silos.phantom.enhanced import enhanced
from silos.phantom.people import Clinic, Patient, identifiers, populate
from silos.phantom.style import STYLES, Style

_FIELD_OF_VIEW = 230.0  # mm
_SLICE = 5.0  # mm
_GAP = 1.5  # mm between slices
_ILL = 0.85  # share of the patients who have a lesion
_ILL_VOLUMES = 0.65  # the same where a volume has one label
_BURDEN = (0.25, 0.8)  # share of an ill patient's slices that show it, lowest and highest


def write_hospital(
    folder: Path,
    *,
    name: str,
    seed: int = 0,
    patients: int = 24,
    images: int | None = None,
    size: int | None = None,
    volumes: bool = False,
    style: int | None = None,
    studies: Sequence[str] = ("demo",),
    coordinator: Path | None = None,
) -> Path:
    """Write a make-believe hospital.

    About 44 % of the images show a lesion; 15 % of the patients have none in any image. Two hospitals of
    different names differ in their patients and in how their scanners see them; the style changes only the
    wrapping, never a pixel.

    With `volumes`, the slices of a patient make a volume, which has one label; every volume has an annotation (a
    DICOM SEG, or an RTSTRUCT), which is empty where there is no lesion; and the names and numbers of files say nothing
    of the order of slices. About two thirds of the patients have a lesion.

    Args:
        folder: Where to write; made if missing, never overwritten.
        name: The silo's name, lower-case letters, digits and hyphens.
        seed: Another seed gives other people, images, UIDs, key and salt.
        patients: How many, one study each.
        images: Axial slices per patient; 6, of volumes 16 by default.
        size: Rows and columns of a slice, 32 (JPEG 2000 needs as many) to 1024; 64, of volumes 40 by default.
        volumes: Whether the slices make volumes, on which lesions are drawn.
        style: Index into `STYLES`; from the name and the seed by default.
        studies: Studies that its policy allows.
        coordinator: The coordinator's public file, to take part over the network.

    Returns:
        The path of the written `site.toml`.

    Raises:
        ConfigError: The folder holds something already, or an argument is impossible.
    """
    folder = Path(folder)
    if images is None:
        images = 16 if volumes else 6
    if size is None:
        size = 40 if volumes else 64
    _require_within("patients", patients, 1, 100_000)
    _require_within("images", images, 1, 1000)
    _require_within("size", size, 32, 1024)
    style = _secret("style", name, seed)[0] % len(STYLES) if style is None else style
    _require_within("style", style, 0, len(STYLES) - 1)
    habits = STYLES[style]
    clinic, people = populate(_rng("people", name, seed), patients)
    salt = _salt(name, seed, [patient.mrn for patient in people])
    if coordinator is not None:
        coordinator = coordinator.absolute()
    site = paperwork.site_toml(
        name=name, seed=seed, style=habits, salt=salt, studies=studies, coordinator=coordinator, volumes=volumes
    )
    Site.parse(paperwork.parse(site), source=f"phantom of {name!r}", folder=folder)  # before anything is written
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{folder}: exists and is not an empty folder",
            "a phantom overwrites nothing; name another folder",
        )
    (folder / "dicom").mkdir(parents=True)
    (folder / "keys").mkdir()

    rows: list[list[str]] = []
    canaries: set[str] = set()
    join = habits.join_volumes if volumes else habits.join
    for study in _studies(name, seed, clinic, people, habits, images, size, volumes):
        for dataset, path in study.files:
            _save(dataset, folder / "dicom" / path, habits)
            canaries |= identifiers(dataset, path)
        for (dataset, _), ill in zip(study.files, study.ill, strict=False):  # the last file may be what was drawn
            keys = [str(dataset[keyword].value) for keyword in join]
            rows.append([*keys, habits.words[0 if ill else 1]])

    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter=habits.delimiter, lineterminator="\n")
        table.writerow([*join.values(), habits.value])
        table.writerows(rows)
    (folder / "canaries.txt").write_text("".join(f"{line}\n" for line in sorted(canaries)), encoding="utf-8")
    Signer.create(folder / "keys" / f"{name}.key", name, seed=_secret("key", name, seed))
    (folder / "README.md").write_text(paperwork.readme(name, seed), encoding="utf-8")
    (folder / "site.toml").write_text(site, encoding="utf-8")
    return folder / "site.toml"


@dataclass(frozen=True)
class _Study:
    """One patient's.

    Attributes:
        files: Its images, and of a volume what was drawn on it; each with its place in the folder of images.
        ill: Whether there is a lesion in each image; of a volume, in all of it.
    """

    files: list[tuple[Dataset, PurePosixPath]]
    ill: list[bool]


def _studies(
    name: str,
    seed: int,
    clinic: Clinic,
    people: Sequence[Patient],
    habits: Style,
    images: int,
    size: int,
    volumes: bool,
) -> Iterator[_Study]:
    """Examine each patient."""
    rng, order = _rng("anatomy", name, seed), _rng("order", name, seed)
    scanner = install(rng)
    files = 0
    for patient, burden in zip(people, _burdens(rng, len(people), volumes), strict=True):
        slices, spots = examine(rng, scanner, count=images, size=size, burden=burden)
        uids = {kind: _uid(name, seed, patient.mrn, kind) for kind in ("study", "series", "frame")}
        numbers = order.permutation(images) + 1 if volumes else np.arange(1, images + 1)
        found: list[Dataset] = []
        for place, (number, stored) in enumerate(zip(numbers, slices, strict=True), start=1):
            dataset = _header(clinic, patient, habits, uids, place, images)
            dataset.InstanceNumber = int(number)
            dataset.SOPInstanceUID = _uid(name, seed, patient.mrn, "image", place)
            _add_pixels(dataset, stored, scanner.slope)
            found.append(dataset)
        if volumes and habits.enhanced:
            found = [enhanced(found, list(numbers - 1))]
            spots = spots[numbers - 1]
        places = [_place(dataset, patient, habits, files + n) for n, dataset in enumerate(found, start=1)]
        if volumes:
            draw = contours if habits.draws == "RTSTRUCT" else segmentation
            more = [_uid(name, seed, patient.mrn, "drawn", part) for part in ("series", "file", "dimensions")]
            found.append(draw(found, spots, habits.segment, more))
            places.append(PurePosixPath(f"drawn/{files:05d}"))
        files += len(found)
        yield _Study(
            list(zip(found, places, strict=True)), [bool(spots.any())] if volumes else [s.any() for s in spots]
        )


def _require_within(key: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"phantom: {key}: must be from {low} to {high} (got {value})", "choose another")


def _burdens(rng: np.random.Generator, patients: int, volumes: bool) -> NDArray[np.float64]:
    """Each patient's share of slices with a lesion: spread evenly, so that every hospital is balanced."""
    ill = round((_ILL_VOLUMES if volumes else _ILL) * patients)
    return rng.permutation(np.concatenate([np.zeros(patients - ill), np.linspace(*_BURDEN, ill)]))


def _header(clinic: Clinic, patient: Patient, style: Style, uids: dict[str, UID], number: int, images: int) -> Dataset:
    """The header of an MR Image (DICOM PS3.3, A.4) but for its pixels and its own UID."""
    day, time = f"{patient.scanned:%Y%m%d}", f"{patient.scanned:%H%M%S}"
    born = f"{patient.born:%Y%m%d}"
    head = Dataset()
    head.SpecificCharacterSet = "ISO_IR 192"
    head.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
    head.SOPClassUID = MRImageStorage

    head.PatientName, head.PatientID = patient.name, patient.mrn
    head.PatientBirthDate, head.PatientSex = born, patient.sex
    head.ImageComments = (
        f"Discussed with {patient.physician.replace('^', ' ')}; {patient.given} {patient.family} "
        f"(born {born}) comes back in six months"
    )

    head.StudyInstanceUID, head.StudyID, head.AccessionNumber = uids["study"], patient.mrn, patient.accession
    head.StudyDate = head.SeriesDate = head.AcquisitionDate = head.ContentDate = day
    head.StudyTime = head.SeriesTime = head.AcquisitionTime = head.ContentTime = time
    head.ReferringPhysicianName, head.OperatorsName = patient.physician, patient.operator
    head.StudyDescription = f"Brain of {patient.family}"

    head.SeriesInstanceUID, head.SeriesNumber, head.Modality = uids["series"], 1, "MR"
    head.SeriesDescription, head.BodyPartExamined, head.PatientPosition = "ax T2 FLAIR", "BRAIN", "HFS"
    head.FrameOfReferenceUID, head.PositionReferenceIndicator = uids["frame"], ""

    head.Manufacturer, head.ManufacturerModelName = style.manufacturer, style.model
    head.InstitutionName, head.StationName = clinic.institution, clinic.station
    head.DeviceSerialNumber, head.SoftwareVersions = clinic.serial, "1.0"

    head.ScanningSequence, head.SequenceVariant, head.ScanOptions = ["SE", "IR"], "SK", ""
    head.MRAcquisitionType, head.MagneticFieldStrength = "2D", style.tesla
    head.RepetitionTime, head.EchoTime, head.InversionTime, head.EchoTrainLength = 9000, 120, 2500, 16

    head.InstanceNumber, head.AcquisitionNumber = number, 1
    head.SliceThickness, head.SpacingBetweenSlices = _SLICE, _SLICE + _GAP
    head.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    head.SliceLocation = round((number - (images + 1) / 2) * (_SLICE + _GAP), 4)
    head.BurnedInAnnotation = "NO"
    vendor = head.private_block(0x0029, style.manufacturer.upper(), create=True)
    vendor.add_new(0x10, "LO", f"{patient.mrn} {patient.family}")  # vendors repeat identifiers where few look
    return head


def _add_pixels(dataset: Dataset, stored: NDArray[np.uint16], slope: float) -> None:
    """Pixels, where they lie in the patient, and what a stored value means."""
    spacing = round(_FIELD_OF_VIEW / len(stored), 4)
    corner = round(-spacing * (len(stored) - 1) / 2, 4)
    dataset.PixelSpacing = [spacing, spacing]
    dataset.ImagePositionPatient = [corner, corner, float(dataset.SliceLocation)]
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = slope, 0, "US"
    brightest = round(float(np.percentile(stored, 99)) * slope, 2)
    dataset.WindowCenter, dataset.WindowWidth = round(brightest / 2, 2), max(brightest, 1.0)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.set_pixel_data(stored, "MONOCHROME2", 12, generate_instance_uid=False)


def _place(dataset: Dataset, patient: Patient, style: Style, serial: int) -> PurePosixPath:
    """Where this hospital keeps the image, relative to its folder of images."""
    place = style.path.format(
        family=patient.family,
        given=patient.given,
        mrn=patient.mrn,
        accession=patient.accession,
        study=dataset.StudyInstanceUID,
        series=dataset.SeriesInstanceUID,
        uid=dataset.SOPInstanceUID,
        number=int(dataset.InstanceNumber),
        serial=serial,
    )
    return PurePosixPath(place)


def _save(dataset: Dataset, path: Path, style: Style) -> None:
    if dataset.Modality != "MR":
        pass  # what was drawn stays as it is
    elif style.syntax.is_encapsulated:
        dataset.compress(style.syntax, encoding_plugin=style.encoder, generate_instance_uid=False)
    else:
        dataset.file_meta.TransferSyntaxUID = style.syntax
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True, overwrite=False)


def _salt(name: str, seed: int, mrns: Sequence[str]) -> str:
    """The first salt that holds out close to the share that `site.toml` asks for.

    A patient is held out by chance, so that of 24 patients any number may be. A real hospital lives with
    that; a demo should not fail on it.
    """

    def off(salt: str) -> float:
        held_out = sum(is_held_out(patient_hash(salt, mrn), paperwork.HELD_OUT) for mrn in mrns)
        return abs(held_out - paperwork.HELD_OUT * len(mrns))

    salts = (_secret(f"salt {attempt}", name, seed)[:16].hex() for attempt in count())
    return next(salt for salt in salts if off(salt) <= 0.5 + 0.01 * len(mrns))


def _uid(name: str, seed: int, mrn: str, *parts: str | int) -> UID:
    """A UID that no other hospital, seed or image has, and that is the same each time."""
    return generate_uid(entropy_srcs=["intramural phantom", *(f"|{part}" for part in (name, seed, mrn, *parts))])


def _secret(purpose: str, name: str, seed: int) -> bytes:
    """32 bytes that anybody who knows name and seed can repeat."""
    return hashlib.sha256(f"intramural phantom|{purpose}|{name}|{seed}".encode()).digest()


def _rng(purpose: str, name: str, seed: int) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(_secret(purpose, name, seed), "big"))
