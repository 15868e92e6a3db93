"""Prepared images in half the space: 16 bits a value, read from disk only where they are used.

    file.write(pack(image))                     # float32 of any range
    store = Packed(np.memmap(path, row_type(shape), "r"))     # of images of one shape
    store[3], store[[3, 1, 4]]                  # float32 again
    volume = PackedImage.at(data, offset, shape)    # of images of many shapes, one, read where it is indexed

Each image keeps its own lowest value and step, so that no value moves by more than half a step: 1/131070 of
that image's range, a thirty-second of what a scanner's 12 bits can tell apart. What training sees is what
the file holds: the same numbers in the first epoch and in every later run, on every machine.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_STEPS = 2**16 - 1


@dataclass(frozen=True)
class Packed:
    """Images of one shape, one after the other.

    Attributes:
        rows: `(N,)` records of `low` and `step` (float32) and `steps` (uint16, the image's shape).
    """

    rows: npt.NDArray[Any]

    def __len__(self) -> int:
        """How many images."""
        return len(self.rows)

    def __getitem__(self, which: int | npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Copies of an image, or of several in their order, float32."""
        rows = self.rows[which]
        steps = rows["steps"]
        beside = (..., *(None,) * (steps.ndim - rows["low"].ndim))
        images: npt.NDArray[np.float32] = steps.astype(np.float32)
        images *= rows["step"][beside]
        images += rows["low"][beside]
        return images


class PackedImage:
    """One image where it lies in a file: what is indexed is read, and becomes float32.

    Args:
        row: A record of `row_type`, without axes.
    """

    def __init__(self, row: npt.NDArray[Any]) -> None:
        self._steps, self._step, self._low = row["steps"], row["step"], row["low"]
        self.shape: tuple[int, ...] = self._steps.shape
        self.ndim, self.dtype = self._steps.ndim, np.dtype(np.float32)

    @classmethod
    def at(cls, data: npt.NDArray[np.uint8], offset: int, shape: tuple[int, ...]) -> "PackedImage":
        """The image of a shape that begins at an offset of some bytes."""
        return cls(np.ndarray((), row_type(shape), data, offset))

    def __getitem__(self, part: Any) -> npt.NDArray[np.float32]:
        image: npt.NDArray[np.float32] = self._steps[part].astype(np.float32)
        image *= self._step
        image += self._low
        return image

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """The whole image; always a copy."""
        return self[...].astype(dtype or self.dtype, copy=False)


def row_type(shape: tuple[int, ...]) -> np.dtype[Any]:
    """How an image of a shape lies in the file."""
    return np.dtype([("low", "<f4"), ("step", "<f4"), ("steps", "<u2", shape)])


def pack(image: npt.NDArray[np.float32]) -> bytes:
    """One image as it is written.

    Args:
        image: Finite float32 whose range is finite too.
    """
    row = np.zeros((), row_type(image.shape))
    row["low"] = low = image.min()
    row["step"] = (np.float64(image.max()) - low) / _STEPS
    if row["step"] > 0:
        row["steps"] = np.rint((image.astype(np.float64) - low) / np.float64(row["step"])).clip(0, _STEPS)
    return row.tobytes()
