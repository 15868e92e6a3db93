"""The words of a survey: what may be told of a hospital's images before a study starts, and in which steps.

A survey counts patients in tables of fixed cells, each count as a band. Nothing in it was written by a
hospital, a scanner or a person: every word stands in the lists below, and what is in no list is "other".
A class of the study is the only other word, and both sides know it from the plan.
"""

import itertools
from collections.abc import Mapping
from typing import Literal

Total = Literal["patients", "studies", "series", "images"]
"""What is counted as a whole, of the labelled images that the study could use."""

TableName = Literal[
    "classes", "sides", "modality", "manufacturer", "transfer_syntax", "year", "spacing", "thickness", "matrix"
]
"""What patients are told apart by: each table counts the patients with at least one such image."""

SurveyField = Total | TableName
"""What a hospital's policy can allow a survey to tell."""

BANDS = (1, 6, 11, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000)
"""Lower ends of the bands in which counts are told; the last band is closed at 1,000,000."""

_LAST = 1_000_000

BEYOND = _LAST + 1
"""A count for which a million stands."""

UNKNOWN, OTHER = "unknown", "other"

SPACING = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 4.0)  # mm between pixels
THICKNESS = (0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0)  # mm
MATRIX = (128, 256, 512, 1024, 2048)  # pixels along the longer side
YEAR = (2000, 2005, 2010, 2015, 2020, 2025, 2030)  # of the examination


def band(count: int) -> tuple[int, int]:
    """The closed band that a count lies in; 0 is a band of its own, and a million stands for all above it."""
    if count <= 0:
        return 0, 0
    ends = [*BANDS[1:], BEYOND]
    return next(((low, end - 1) for low, end in zip(BANDS, ends, strict=True) if count < end), (_LAST, _LAST))


def steps(edges: tuple[float, ...]) -> tuple[str, ...]:
    """The cells of a histogram: below the first edge, between each two, from the last one on, and unknown."""
    whole = all(isinstance(edge, int) for edge in edges)  # of whole numbers, a cell ends before the next edge
    between = [f"{low:g} to {high - whole:g}" for low, high in itertools.pairwise(edges)]
    return (f"below {edges[0]:g}", *between, f"from {edges[-1]:g}", UNKNOWN)


def step(value: float, edges: tuple[float, ...]) -> str:
    """The cell of a value; an edge belongs to the cell above it."""
    return steps(edges)[sum(value >= edge for edge in edges)]


CELLS: Mapping[TableName, tuple[str, ...]] = {
    "sides": ("train", "held out"),
    "modality": (
        *("CR", "CT", "DX", "ES", "MG", "MR", "NM", "OP", "OPT", "PT", "RF", "RG", "US", "XA", "XC"),
        *(OTHER, UNKNOWN),
    ),
    "manufacturer": (
        *("agfa", "bruker", "canon", "carestream", "esaote", "fujifilm", "ge", "hitachi", "hologic", "konica-minolta"),
        *("mindray", "neusoft", "philips", "samsung", "shimadzu", "siemens", "united-imaging", "varian"),
        *(OTHER, UNKNOWN),
    ),
    "transfer_syntax": ("uncompressed", "deflated", "rle", "jpeg", "jpeg-lossless", "jpeg-ls", "jpeg-2000", OTHER),
    "year": steps(YEAR),
    "spacing": steps(SPACING),
    "thickness": steps(THICKNESS),
    "matrix": steps(MATRIX),
}
"""The cells of each table, in order; those of `classes` are the plan's."""
