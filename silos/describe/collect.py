"""Counts what a hospital has: pure functions from the index, the cohort and what was seen of the pixels.

Exact, with the scanners' own words: for the hospital's own eyes. What may be told to others is another count,
in `silos/tally.py`, and passes the gate.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pandas as pd

from models.exchange.survey import CELLS, TableName
from silos import tally
from silos.cohort import Cohort
from silos.dicom.scan import OFTEN_BURNED_IN

_HEAD = ("HEAD", "BRAIN", "SKULL", "FACE", "ORBIT", "SINUS", "JAW", "MAXILLA", "MANDIBLE", "EAR", "NOSE")
_FACE_IMAGES = 40  # of a series from which a face can be drawn
_FACE_THICKNESS = 3.0  # mm, at most

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of which the distribution of a number over images is told."""


@dataclass(frozen=True)
class Count:
    """How much there is of one thing."""

    what: str
    patients: int
    series: int
    images: int


@dataclass(frozen=True)
class Balance:
    """How much there is of one class on one side of the split; a case is an image or a volume."""

    label: str
    side: str
    patients: int
    cases: int


@dataclass(frozen=True)
class Levels:
    """Intensities of one kind of image, in modality units.

    Attributes:
        what: Modality and manufacturer.
        images: How many were looked at.
        low, median, high: `QUANTILES`, over these images, of each one's 1st, 50th and 99th percentile.
    """

    what: str
    images: int
    low: list[float]
    median: list[float]
    high: list[float]


@dataclass(frozen=True)
class Duplicate:
    """The same picture in several files that say to be different ones.

    Attributes:
        paths: The files, below the root.
        patients: How many patients they claim to be of.
        sides: On which sides of the split they are.
    """

    paths: list[str]
    patients: int
    sides: list[str]


@dataclass(frozen=True)
class Faces:
    """Series that may show who somebody is.

    Attributes:
        marked: Images that say so themselves (RecognizableVisualFeatures is YES).
        likely: Head CT or MR series with enough thin slices to draw the face from.
        unknown: CT or MR series like these that do not say which part of the body they show.
    """

    marked: int
    likely: int
    unknown: int


@dataclass(frozen=True)
class Description:
    """What a hospital has. Hospital data: it must not leave.

    Attributes:
        site: The hospital.
        totals: Files; of the usable images: patients, studies, series, images; and annotations (DICOM SEG, RTSTRUCT).
        kinds: By attribute, its values with how much there is of each.
        shapes: By measure (spacing, thickness, matrix), series in each step.
        balance: Labelled or annotated cases by class and side.
        labels: Why there are no labels, if so.
        left_out: Files, or rows of the label table, that cannot be used, by reason.
        burned_in: Usable images of modalities that often have text in the picture and do not deny it.
        unmarked: Usable images that do not say whether they have.
        faces: Series that may show who somebody is.
        looked: Images of which the pixels were read.
        levels: Their intensities.
        unreadable: Why some could not be read.
        blank: Images of one single value.
        duplicates: The same pixels under other UIDs.
        notes: What one should know about volumes, with how many it is true of.
    """

    site: str
    totals: dict[str, int]
    kinds: dict[str, list[Count]]
    shapes: dict[str, dict[str, int]]
    left_out: dict[str, int]
    burned_in: int
    unmarked: int
    faces: Faces
    balance: list[Balance] = field(default_factory=list)
    labels: str = ""
    looked: int = 0
    levels: list[Levels] = field(default_factory=list)
    unreadable: dict[str, int] = field(default_factory=dict)
    blank: int = 0
    duplicates: list[Duplicate] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)


_KINDS: Mapping[str, tuple[str, Callable[[str], str]]] = {
    "modality": ("Modality", str),
    "manufacturer": ("Manufacturer", str),
    "model": ("ManufacturerModelName", str),
    "transfer syntax": ("TransferSyntaxUID", lambda value: f"{tally.transfer_syntax(value)} ({value})"),
    "year": ("StudyDate", tally.year),
}
_SHAPES: Mapping[TableName, Callable[[pd.Series], str]] = {
    "spacing": lambda row: tally.spacing(row["PixelSpacing"]),
    "thickness": lambda row: tally.thickness(row["SliceThickness"]),
    "matrix": lambda row: tally.matrix(row["Rows"], row["Columns"]),
}


def totals(files: int, instances: pd.DataFrame, annotations: int) -> dict[str, int]:
    """Files; patients, studies, series and images of those that can be used; and annotations."""
    told = {"patients": "PatientID", "studies": "StudyInstanceUID", "series": "SeriesInstanceUID"}
    counts = {name: _distinct(instances[keyword]) for name, keyword in told.items()}
    return {"files": files, **counts, "images": len(instances), "annotations": annotations}


def kinds(instances: pd.DataFrame) -> dict[str, list[Count]]:
    """Usable images by modality, manufacturer, model, transfer syntax and years, most series first."""
    found = {}
    for name, (keyword, read) in _KINDS.items():
        groups = instances.groupby(instances[keyword].map(read), sort=True)
        counts = [
            Count(
                str(what) or "(not told)", _distinct(part["PatientID"]), _distinct(part["SeriesInstanceUID"]), len(part)
            )
            for what, part in groups
        ]
        found[name] = sorted(counts, key=lambda count: -count.series)
    return found


def shapes(instances: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Series by pixel spacing, slice thickness and size, as the first image of each says."""
    first = instances.drop_duplicates("SeriesInstanceUID")
    found: dict[str, dict[str, int]] = {}
    for name, read in _SHAPES.items():
        counts = pd.Series([read(row) for _, row in first.iterrows()], dtype=object).value_counts()
        found[name] = {cell: int(counts.get(cell, 0)) for cell in CELLS[name]}
    return found


def balance(cohort: Cohort) -> list[Balance]:
    """Patients and cases of each class on each side."""
    train, held_out = CELLS["sides"]
    found = []
    for side, name in ((False, train), (True, held_out)):
        for index, label in enumerate(cohort.classes):
            part = cohort.of_class(index, side)
            found.append(Balance(label, name, int(part["patient"].nunique()), len(part)))
    return found


def notes(cohort: Cohort) -> dict[str, int]:
    """What one should know about volumes, with how many it is true of."""
    stacks = cohort.cases.get("stack", ())
    return dict(Counter(note.value for stack in stacks for note in stack.notes))


def burned_in(instances: pd.DataFrame) -> tuple[int, int]:
    """Usable images that do not say whether text is burned in: of modalities that often have it, and all."""
    unmarked = ~instances["BurnedInAnnotation"].str.upper().isin(["YES", "NO"])
    return int((unmarked & instances["Modality"].isin(OFTEN_BURNED_IN)).sum()), int(unmarked.sum())


def faces(instances: pd.DataFrame) -> Faces:
    """Series that may show who somebody is.

    A face drawn from thin slices of a head is recognised by software (Schwarz et al., NEJM 2019; 381:1684).
    Which series are such is guessed here, from the part of the body and the number and thickness of images.
    """
    marked = int((instances["RecognizableVisualFeatures"].str.upper() == "YES").sum())
    scans = instances[instances["Modality"].isin(["CT", "MR"])]
    likely = unknown = 0
    for _, series in scans.groupby("SeriesInstanceUID", sort=False):
        frames = pd.to_numeric(series["NumberOfFrames"], errors="coerce").fillna(1).clip(lower=1).sum()
        thickness = tally.millimetres(series["SliceThickness"].iloc[0])
        if frames < _FACE_IMAGES or (thickness or 0) > _FACE_THICKNESS:
            continue
        part = series["BodyPartExamined"].iloc[0].upper().strip()
        likely += any(word in part for word in _HEAD)
        unknown += not part
    return Faces(marked, likely, unknown)


def levels(seen: pd.DataFrame) -> list[Levels]:
    """Intensities by modality and manufacturer.

    Args:
        seen: One row per image that was looked at: `low`, `median`, `high`, and what the scan read.
    """
    found = []
    for (modality, manufacturer), part in seen.groupby(["Modality", "Manufacturer"], sort=True):
        spread = [[float(x) for x in part[name].quantile(list(QUANTILES))] for name in ("low", "median", "high")]
        found.append(Levels(f"{modality} {manufacturer}".strip(), len(part), *spread))
    return found


def duplicates(seen: pd.DataFrame) -> list[Duplicate]:
    """Images of the same pixels, largest group first; blank images are not compared.

    Args:
        seen: One row per image that was looked at: `path`, `digest`, `blank`, `PatientID`, and `held_out` (None
            of an image without a label).
    """
    found = []
    for _, part in seen[~seen["blank"]].groupby("digest", sort=False):
        if len(part) > 1:
            sides = {CELLS["sides"][int(side)] for side in part["held_out"] if side is not None}
            found.append(Duplicate(sorted(part["path"]), _distinct(part["PatientID"]), sorted(sides)))
    return sorted(found, key=lambda group: (-len(group.paths), group.paths))


def _distinct(values: pd.Series) -> int:
    return int(values[values != ""].nunique())
