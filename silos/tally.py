"""Counts a cohort's patients in the words of a survey; whatever was written by a person or a machine ends here.

A manufacturer's name in DICOM is free text, and so may anything be that a header holds: each value is put
into a cell of a closed list, "other" if it fits none, and the text itself goes no further. Headers only.
"""

import itertools
import re
from collections.abc import Callable, Mapping

import pandas as pd
from pydicom import uid

from models.exchange.survey import CELLS, MATRIX, OTHER, SPACING, THICKNESS, UNKNOWN, YEAR, TableName, Total, step
from silos.cohort import Cohort

_MAKERS = {
    "agfa": "agfa",
    "bruker": "bruker",
    "canon": "canon",
    "toshiba": "canon",
    "carestream": "carestream",
    "kodak": "carestream",
    "esaote": "esaote",
    "fuji": "fujifilm",
    "fujifilm": "fujifilm",
    "ge": "ge",
    "gems": "ge",
    "general electric": "ge",
    "hitachi": "hitachi",
    "hologic": "hologic",
    "lorad": "hologic",
    "konica": "konica-minolta",
    "minolta": "konica-minolta",
    "mindray": "mindray",
    "neusoft": "neusoft",
    "philips": "philips",
    "picker": "philips",
    "marconi": "philips",
    "adac": "philips",
    "samsung": "samsung",
    "medison": "samsung",
    "neurologica": "samsung",
    "shimadzu": "shimadzu",
    "siemens": "siemens",
    "uih": "united-imaging",
    "united imaging": "united-imaging",
    "varian": "varian",
}
"""What a maker calls itself, or what it bought did, as whole words in lower case -> its cell."""

_SYNTAXES: Mapping[str, str] = {
    uid.ImplicitVRLittleEndian: "uncompressed",
    uid.ExplicitVRLittleEndian: "uncompressed",
    uid.ExplicitVRBigEndian: "uncompressed",
    uid.DeflatedExplicitVRLittleEndian: "deflated",
    uid.RLELossless: "rle",
    uid.JPEGBaseline8Bit: "jpeg",
    uid.JPEGExtended12Bit: "jpeg",
    uid.JPEGLossless: "jpeg-lossless",
    uid.JPEGLosslessSV1: "jpeg-lossless",
    uid.JPEGLSLossless: "jpeg-ls",
    uid.JPEGLSNearLossless: "jpeg-ls",
    uid.JPEG2000Lossless: "jpeg-2000",
    uid.JPEG2000: "jpeg-2000",
    uid.HTJ2KLossless: "jpeg-2000",
    uid.HTJ2KLosslessRPCL: "jpeg-2000",
    uid.HTJ2K: "jpeg-2000",
}


def totals(images: pd.DataFrame) -> dict[Total, int]:
    """Count what a cohort has.

    Args:
        images: What `labelled` gives.
    """
    return {
        "patients": int(images["patient"].nunique()),
        "studies": int(images["StudyInstanceUID"].nunique()),
        "series": int(images["SeriesInstanceUID"].nunique()),
        "images": len(images),
    }


def tables(images: pd.DataFrame, classes: tuple[str, ...]) -> dict[TableName, dict[str, int]]:
    """Count patients in every cell of every table.

    Args:
        images: What `labelled` gives.
        classes: The study's classes.

    Returns:
        By table and cell, patients with at least one such image.
    """
    cells: dict[TableName, pd.Series] = {name: images[word].map(read) for name, (word, read) in _READ.items()}
    cells["sides"] = images["held_out"].map(dict(zip((False, True), CELLS["sides"], strict=True)))
    sides = zip(images["Rows"], images["Columns"], strict=True)
    cells["matrix"] = pd.Series([matrix(*each) for each in sides], images.index, dtype=object)
    names = {**CELLS, "classes": classes}
    counts = {name: images["patient"].groupby(column).nunique() for name, column in cells.items()}
    several = images[["patient", "classes"]].explode("classes")  # a case with a mask may be of several
    counts["classes"] = several["patient"].groupby(several["classes"].map(dict(enumerate(classes)))).nunique()
    return {name: {cell: int(counts[name].get(cell, 0)) for cell in names[name]} for name in counts}


def labelled(instances: pd.DataFrame, cohort: Cohort) -> pd.DataFrame:
    """A cohort's cases with what the scan read of their headers, one row per case; of a volume, of its first slice."""
    return cohort.cases[["path", "classes", "patient", "held_out"]].merge(instances, on="path", validate="many_to_one")


def manufacturer(text: str) -> str:
    """The cell of a Manufacturer; the text itself is not repeated."""
    words = re.findall(r"[a-z]+", text.lower())
    if not words:
        return UNKNOWN
    pairs = [f"{first} {second}" for first, second in itertools.pairwise(words)]
    return next((_MAKERS[word] for word in [*pairs, *words] if word in _MAKERS), OTHER)


def modality(text: str) -> str:
    """The cell of a Modality."""
    return (text if text in CELLS["modality"][:-2] else OTHER) if text else UNKNOWN


def transfer_syntax(text: str) -> str:
    """The cell of a transfer syntax UID."""
    return _SYNTAXES.get(text, OTHER)


def year(text: str) -> str:
    """The cell of a StudyDate (DA: YYYYMMDD; before DICOM 3.0, YYYY.MM.DD)."""
    return step(int(text[:4]), YEAR) if re.match(r"(19|20)\d\d", text, re.ASCII) else UNKNOWN


def spacing(text: str) -> str:
    """The cell of a PixelSpacing, by its first value (between rows)."""
    return _millimetres(text.partition("\\")[0], SPACING)


def thickness(text: str) -> str:
    """The cell of a SliceThickness."""
    return _millimetres(text, THICKNESS)


def matrix(rows: str, columns: str) -> str:
    """The cell of an image's longer side."""
    sides = [int(text) for text in (rows, columns) if text.isascii() and text.isdigit()]
    return step(max(sides), MATRIX) if sides else UNKNOWN


def millimetres(text: str) -> float | None:
    """A positive length in mm; None if the text is none."""
    number = re.fullmatch(r"\d{1,6}(\.\d*)?([eE][+-]?\d{1,3})?|\.\d+", text.strip(), re.ASCII)
    return (float(number[0]) or None) if number else None


def _millimetres(text: str, edges: tuple[float, ...]) -> str:
    value = millimetres(text)
    return UNKNOWN if value is None else step(value, edges)


_READ: Mapping[TableName, tuple[str, Callable[[str], str]]] = {
    "modality": ("Modality", modality),
    "manufacturer": ("Manufacturer", manufacturer),
    "transfer_syntax": ("TransferSyntaxUID", transfer_syntax),
    "year": ("StudyDate", year),
    "spacing": ("PixelSpacing", spacing),
    "thickness": ("SliceThickness", thickness),
}
