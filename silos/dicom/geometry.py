"""Where slices lie in the patient, and whether they make a volume.

    plane = read_plane(texts)               # a Plane, or the reason why a slice is none
    for group in alike(planes): ...         # slices of one size, spacing and direction
    arrangement = arrange(planes)           # their order and affine, or the reason why there is none

Position and orientation in the patient (PS3.3 C.7.6.2) decide alone; file names and instance numbers can be
anything. Slices are sorted along their normal, and the distance between them is that of their positions,
never a thickness that somebody typed. A gantry tilt is kept in the affine, as a shear. What would make a
volume wrong (a missing or doubled slice, uneven gaps, slices beside one another) is a reason, not a guess.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SAME_PLACE = 0.01  # mm between two slices that lie at one position
UNEVEN = 0.1  # of the distance between slices, by which one may lie off its place
BESIDE = 0.5  # of a pixel, by which one may lie off the line through the others
MAX_TILT = 30.0  # degrees; no gantry tilts further
SAME_DIRECTION = 2e-3  # between direction cosines of slices that are parallel
SAME_SPACING = 1e-3  # relative
MAX_GROUPS = 64  # groups of like slices that are looked for in one series

TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM counts to the left and back, NIfTI and MONAI to the right and front


class Misfit(StrEnum):
    """Why slices are no volume, in the words of the report."""

    NO_SERIES = "no series"
    SEVERAL_PATIENTS = "several PatientIDs in a study"
    LOCALIZER = "localizer"
    PET_UNITS = "PET in other units"
    CONCATENATION = "one image in several files"
    NO_POSITION = "no position, orientation or spacing"
    MANY_DIRECTIONS = "too many orientations or sizes in a series"
    SINGLE = "single slice"
    SAME_POSITION = "several slices at one position"
    REPEATED = "each position several times (over time, echoes or b-values)"
    MISSING = "missing slices"
    UNEVEN = "uneven distances between slices"
    BESIDE = "slices beside one another"
    TOO_LARGE = "volume too large"


@dataclass(frozen=True, eq=False)
class Plane:
    """One slice in the patient.

    Attributes:
        shape: (rows, columns).
        spacing: mm between the centres of (rows, columns).
        axes: Directions (2, 3) in which (columns, rows) are counted, of length 1, at right angles, LPS.
        position: Centre of the first pixel, (3,) mm, LPS.
    """

    shape: tuple[int, int]
    spacing: tuple[float, float]
    axes: Floats
    position: Floats

    @property
    def normal(self) -> Floats:
        """The direction at right angles to the slice."""
        return np.cross(self.axes[0], self.axes[1])

    def affine(self, step: Floats) -> Floats:
        """(4, 4), from (column, row, slice) to mm in RAS; the next slice lies a `step` (mm, LPS) further."""
        lps = np.eye(4)
        lps[:3, 0] = self.axes[0] * self.spacing[1]
        lps[:3, 1] = self.axes[1] * self.spacing[0]
        lps[:3, 2] = step
        lps[:3, 3] = self.position
        return TO_RAS @ lps


@dataclass(frozen=True, eq=False)
class Arrangement:
    """How slices make a volume.

    Attributes:
        order: The slices along their normal.
        affine: (4, 4) float64, from (column, row, slice) to mm in RAS.
        tilt: Degrees between the normal and the line through the slices; 0 where it shifts no slice by a pixel.
    """

    order: NDArray[np.int64]
    affine: Floats
    tilt: float


def read_plane(texts: Mapping[str, str]) -> Plane | Misfit:
    """A slice's place, from its header.

    Args:
        texts: Rows, Columns, PixelSpacing, ImageOrientationPatient and ImagePositionPatient, as DICOM
            writes them; "" where absent.

    Returns:
        The plane, or `NO_POSITION`: something is absent, no number, or no two directions at right angles.
    """
    try:
        shape = int(texts["Rows"]), int(texts["Columns"])
        rows, columns = (float(word) for word in texts["PixelSpacing"].split("\\"))
        axes = np.array(texts["ImageOrientationPatient"].split("\\"), float).reshape(2, 3)
        position = np.array(texts["ImagePositionPatient"].split("\\"), float).reshape(3)
    except ValueError:
        return Misfit.NO_POSITION
    near = np.isfinite(axes).all() and np.abs(position).max() < 1e6 and 1e-6 < min(rows, columns) <= max(rows, columns)
    if not (near and max(rows, columns) < 1e6 and np.abs(axes @ axes.T - np.eye(2)).max() < 0.01):
        return Misfit.NO_POSITION
    # The cosines were rounded when they were written.
    first = axes[0] / np.linalg.norm(axes[0])
    second = axes[1] - (axes[1] @ first) * first
    return Plane(shape, (rows, columns), np.stack([first, second / np.linalg.norm(second)]), position)


def alike(planes: Sequence[Plane]) -> Iterator[NDArray[np.int64]]:
    """Which slices are of one size, spacing and direction, up to rounding; at most `MAX_GROUPS` groups."""
    shapes = np.array([plane.shape for plane in planes])
    spacings = np.array([plane.spacing for plane in planes])
    axes = np.array([plane.axes for plane in planes]).reshape(-1, 6)
    left = np.arange(len(planes))
    for _ in range(MAX_GROUPS):
        if not len(left):
            return
        first = left[0]
        same = (
            (shapes[left] == shapes[first]).all(1)
            & (np.abs(spacings[left] / spacings[first] - 1) < SAME_SPACING).all(1)
            & (np.abs(axes[left] - axes[first]) < SAME_DIRECTION).all(1)
        )
        yield left[same]
        left = left[~same]


def alone(plane: Plane) -> Arrangement:
    """One slice as a volume of its own, 1 mm thick."""
    return Arrangement(np.zeros(1, np.int64), plane.affine(plane.normal), 0.0)


def arrange(planes: Sequence[Plane]) -> Arrangement | Misfit:
    """Sort like slices along their normal, and see whether they make a volume.

    Args:
        planes: Slices of one group of `alike`.

    Returns:
        The arrangement, or `SINGLE`, `SAME_POSITION`, `REPEATED`, `MISSING`, `UNEVEN` or `BESIDE`.
    """
    if len(planes) < 2:
        return Misfit.SINGLE
    normal = planes[0].normal
    positions = np.stack([plane.position for plane in planes])
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    gaps = np.diff(positions @ normal)
    if gaps.min() < SAME_PLACE:
        often = np.diff(np.flatnonzero(np.concatenate([[True], gaps >= SAME_PLACE, [True]])))
        return Misfit.REPEATED if len(often) > 1 and (often == often[0]).all() else Misfit.SAME_POSITION
    # The line that fits all slices best: each position was rounded when it was written.
    places = np.arange(len(planes)) - (len(planes) - 1) / 2
    step = places @ positions / (places @ places)
    line = positions.mean(0) + places[:, None] * step
    distance, off = float(step @ normal), positions - line
    if np.abs(off @ normal).max() > UNEVEN * distance:
        return Misfit.MISSING if gaps.max() > 1.5 * np.median(gaps) else Misfit.UNEVEN
    drift = step - distance * normal
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(drift), distance)))
    pixel = min(planes[0].spacing)
    if np.linalg.norm(off - np.outer(off @ normal, normal), axis=1).max() > BESIDE * pixel or tilt > MAX_TILT:
        return Misfit.BESIDE
    shifted = np.linalg.norm(drift) * (len(planes) - 1) > pixel
    return Arrangement(order, replace(planes[order[0]], position=line[0]).affine(step), tilt if shifted else 0.0)
