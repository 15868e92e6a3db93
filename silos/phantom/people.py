"""The people and places of a make-believe hospital, and the list of what identifies them.

Names are put together from syllables and carry a number, as in `Quillfeather-3391^Ottoveline`, so that no
living person has them and a search for one finds only itself.
"""

import datetime
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from pydicom import Dataset

_FAMILY = (
    ("Quill", "Thistle", "Bramble", "Copper", "Marrow", "Wickle", "Gossam", "Larken"),
    ("feather", "whistle", "stocking", "bottom", "lantern", "thimble", "button", "saddle"),
)
_GIVEN = (
    ("Otto", "Brani", "Zephi", "Mella", "Quori", "Tavi", "Ulli", "Fenno"),
    ("ve", "ra", "lo", "mi", "ne", "du"),
    ("line", "wick", "belle", "mund", "dora", "thias"),
)
_TOWN = (
    ("Vell", "Brack", "Ostle", "Fenni", "Grim", "Harrow"),
    ("moor", "mere", "wold", "gate", "fell", "by"),
)

IDENTIFYING = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyDescription",
    "ImageComments",
    "ReferringPhysicianName",
    "OperatorsName",
    "InstitutionName",
    "StationName",
    "DeviceSerialNumber",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "SOPInstanceUID",
)
"""Keywords of the elements that a phantom fills with something identifying."""

_SHORTEST = 6
"""Shorter words would be found by chance in any file."""


@dataclass(frozen=True)
class Clinic:
    """The hospital itself."""

    institution: str
    station: str
    serial: str
    physicians: tuple[str, ...]  # DICOM person names
    operators: tuple[str, ...]


@dataclass(frozen=True)
class Patient:
    """One made-up person and their one study."""

    family: str
    given: str
    mrn: str
    accession: str
    sex: str
    born: datetime.date
    scanned: datetime.datetime
    physician: str
    operator: str

    @property
    def name(self) -> str:
        """As DICOM writes it (PS3.5, value representation PN)."""
        return f"{self.family}^{self.given}"


def populate(rng: np.random.Generator, count: int) -> tuple[Clinic, list[Patient]]:
    """Make up a hospital with `count` patients; no two share a name, a number or an examination."""
    staff = 5
    tags = 1000 + rng.choice(9000 + 2 * count, count + staff, replace=False)
    families = [f"{_word(rng, _FAMILY)}-{tag}" for tag in tags]
    physicians = tuple(f"{family}^{_word(rng, _GIVEN)}" for family in families[:3])
    operators = tuple(f"{family}^{_word(rng, _GIVEN)}" for family in families[3:staff])
    town = _word(rng, _TOWN)
    clinic = Clinic(
        institution=f"{town}-{rng.integers(100, 1000)} General Hospital",
        station=f"MR{town.upper()}{rng.integers(10, 100)}",
        serial=f"SN{rng.integers(10**7, 10**8)}",
        physicians=physicians,
        operators=operators,
    )
    mrns = 10**6 + rng.choice(9 * 10**6, count, replace=False)
    accessions = 10**7 + rng.choice(9 * 10**7, count, replace=False)
    patients = [
        Patient(
            family=family,
            given=_word(rng, _GIVEN),
            mrn=f"MRN{mrn}",
            accession=f"ACC{accession}",
            sex=str(rng.choice(["F", "M"])),
            born=datetime.date(1925, 1, 1) + datetime.timedelta(days=int(rng.integers(0, 27_000))),
            scanned=datetime.datetime(2012, 1, 1, tzinfo=datetime.UTC)
            + datetime.timedelta(minutes=int(rng.integers(0, 8 * 365 * 24 * 60))),
            physician=str(rng.choice(physicians)),
            operator=str(rng.choice(operators)),
        )
        for family, mrn, accession in zip(families[staff:], mrns, accessions, strict=True)
    ]
    return clinic, patients


def identifiers(dataset: Dataset, path: PurePosixPath) -> set[str]:
    """What in this image, or in the names of its file and folders, identifies somebody.

    Args:
        dataset: The image's header.
        path: Where its file lies, relative to the folder of the images.

    Returns:
        Whole values and their parts (a family name, a word of a name with its number), each of six
        characters or more; and the names of folders and file stems that hold one of them.
    """
    values = {str(dataset[keyword].value) for keyword in IDENTIFYING if keyword in dataset}
    parts = {part for value in values for part in re.split(r"[\^ ,;()]", value) if re.search(r"\d", part)}
    for keyword in ("PatientName", "ReferringPhysicianName", "OperatorsName"):
        parts |= set(re.split(r"[\^-]", str(dataset.get(keyword, ""))))
    found = {value for value in values | parts if len(value) >= _SHORTEST}
    places = {*path.parts[:-1], path.name.removesuffix(".dcm")}
    return found | {place for place in places if any(value in place for value in found)}


def _word(rng: np.random.Generator, syllables: tuple[tuple[str, ...], ...]) -> str:
    return "".join(str(rng.choice(choices)) for choices in syllables)
