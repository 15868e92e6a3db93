"""A stack as a network sees it, its axes to the right, front and up (RAS).

    pixels, affine = upright(volume.pixels, stack)
    mask, _ = upright(mask, stack)                      # the same grid

Axes are turned and nothing is resampled, so that every voxel keeps its value; only where the gantry was tilted the
stack is straightened, at its own spacing.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from silos.dicom.geometry import Floats
from silos.dicom.grid import to_grid
from silos.dicom.series import Stack

Number = TypeVar("Number", np.float32, np.uint8)
Value = TypeVar("Value")


def upright(pixels: NDArray[Number], stack: Stack, *, slices_last: bool = False) -> tuple[NDArray[Number], Floats]:
    """Turn a stack's pixels, or the mask drawn on it, to RAS.

    Args:
        pixels: (columns, rows, slices) of the stack.
        stack: The stack.
        slices_last: Whether the axis along which the slices follow each other is put last, wherever it points to.

    Returns:
        The pixels, in C order, and their affine (4, 4), from their indices to mm in RAS.
    """
    # For each axis: which of RAS it is nearest to, and whether it points the same way.
    axes = [(int(axis), int(sign)) for axis, sign in io_orientation(stack.affine)]  # type: ignore[no-untyped-call]
    affine = stack.affine
    if stack.tilt:
        x, y, z = _ordered(stack.spacing, axes)
        pixels, affine = to_grid(pixels, affine, (x, y, z))
    else:
        order = _ordered((0, 1, 2), axes)
        flipped = tuple(place for place, axis in enumerate(order) if axes[axis][1] < 0)
        pixels, affine = _turned(np.flip(pixels, tuple(order[axis] for axis in flipped)), affine, order)
        for axis in flipped:
            affine[:, 3] += affine[:, axis] * (pixels.shape[axis] - 1)
            affine[:, axis] *= -1
    if slices_last:
        last: int = axes[2][0]
        pixels, affine = _turned(pixels, affine, [*({0, 1, 2} - {last}), last])
    return np.ascontiguousarray(pixels), affine


def _turned(pixels: NDArray[Number], affine: Floats, order: Sequence[int]) -> tuple[NDArray[Number], Floats]:
    """With the axes in another order; the affine is a copy."""
    columns = np.array([*order, 3])
    return pixels.transpose(order), affine[:, columns]


def _ordered(values: Sequence[Value], axes: Sequence[tuple[int, int]]) -> list[Value]:
    """What belongs to a stack's axes, in the order of RAS."""
    return [values[axis] for axis in sorted(range(3), key=lambda axis: axes[axis][0])]


def spacing_of(affine: Floats) -> tuple[float, float, float]:
    """How many mm lie from voxel to voxel along each axis."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return float(x), float(y), float(z)
