"""A stack as a network sees it, its axes to the right, front and up (RAS).

    pixels, affine = upright(volume.pixels, stack)
    mask, _ = upright(mask, stack)                      # the same grid
    found = as_acquired(found, affine, stack)           # and back, on the stack's own grid

Axes are turned and nothing is resampled, so that every voxel keeps its value; only where the gantry was tilted the
stack is straightened, at its own spacing.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from silos.dicom.geometry import Floats
from silos.dicom.grid import on_grid, to_grid
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
    axes = stack.axes
    affine = stack.affine
    if stack.tilt:
        x, y, z = _ordered(stack.spacing, axes)
        pixels, affine = to_grid(pixels, affine, (x, y, z))
    else:
        order, flipped = _turn(axes)
        pixels, affine = _turned(np.flip(pixels, tuple(order[axis] for axis in flipped)), affine, order)
        for axis in flipped:
            affine[:, 3] += affine[:, axis] * (pixels.shape[axis] - 1)
            affine[:, axis] *= -1
    if slices_last:
        pixels, affine = _turned(pixels, affine, _last(axes))
    return np.ascontiguousarray(pixels), affine


def as_acquired(
    values: NDArray[np.float32], affine: Floats, stack: Stack, *, slices_last: bool = False
) -> NDArray[np.float32]:
    """What was worked out on a stack's upright grid, on the stack's own.

    Args:
        values: On the grid that `upright` gave.
        affine: As `upright` gave it.
        stack: The stack.
        slices_last: As for `upright`.

    Returns:
        (columns, rows, slices): the same numbers turned back, or, of a tilted stack, interpolated linearly, with 0
        beyond the edge.
    """
    if stack.tilt:
        return on_grid(values, affine, stack.affine, stack.shape)
    axes = stack.axes
    order, flipped = _turn(axes)
    if slices_last:
        values = values.transpose(np.argsort(_last(axes)))
    return np.ascontiguousarray(np.flip(values, flipped).transpose(np.argsort(order)))


def _turn(axes: list[tuple[int, int]]) -> tuple[list[int], tuple[int, ...]]:
    """The stack's axes in the order of RAS, and which of these run the other way."""
    order = _ordered((0, 1, 2), axes)
    return order, tuple(place for place, axis in enumerate(order) if axes[axis][1] < 0)


def _last(axes: list[tuple[int, int]]) -> list[int]:
    """The axes of RAS, that of the slices last."""
    last = axes[2][0]
    return [*({0, 1, 2} - {last}), last]


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
