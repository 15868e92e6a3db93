"""Brings volumes and masks to a study's grid: axes to the right, front and up (RAS), at the study's spacing.

    pixels, affine = to_grid(volume.pixels, volume.affine, (1.0, 1.0, 3.0))
    mask, _ = to_grid(mask, volume.affine, (1.0, 1.0, 3.0))         # whole numbers: nearest neighbour

The same call for a volume and for the mask drawn on it gives the same grid. Axes are turned to the nearest of
right, front and up; an oblique stack stays oblique, and a gantry tilt is straightened. Nothing is smoothed before
it is made coarser. The same input gives the same bytes.

MONAI is loaded by the first call, and not before: to load it takes more time and memory than torch.
"""

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from silos.dicom.geometry import Floats

Number = TypeVar("Number", np.float32, np.uint8)


def to_grid(
    pixels: NDArray[Number], affine: Floats, spacing: tuple[float, float, float]
) -> tuple[NDArray[Number], Floats]:
    """Turn to RAS and resample, with MONAI's `Orientation` and `Spacing`.

    Args:
        pixels: (columns, rows, slices); float32 is interpolated linearly, uint8 (classes) to the nearest.
        affine: (4, 4), from the indices of `pixels` to mm in RAS.
        spacing: mm to the right, to the front and up.

    Returns:
        The pixels on the new grid, and its affine, (4, 4) float64.
    """
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms.spatial.array import Orientation, Spacing

    classes = pixels.dtype == np.uint8
    # A copy in C order: a view would be copied by each step.
    data = MetaTensor(torch.from_numpy(np.ascontiguousarray(pixels, np.float32))[None], affine=torch.from_numpy(affine))
    turned = Orientation(axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S")))(data)
    # Beyond the edge an image goes on as it ended; nothing is drawn there.
    mode, beyond = ("nearest", "zeros") if classes else ("bilinear", "border")
    result = Spacing(spacing, mode=mode, padding_mode=beyond, dtype=np.float32)(turned)
    assert isinstance(result, MetaTensor)
    array = result.numpy()[0].astype(pixels.dtype, copy=False)
    return np.ascontiguousarray(array), result.affine.numpy().astype(np.float64)


def on_grid(
    values: NDArray[np.float32], affine: Floats, to: Floats, shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Bring values to any grid, with MONAI's `SpatialResample`: interpolated linearly, 0 beyond the edge.

    Args:
        values: (x, y, z).
        affine: (4, 4), from the indices of `values` to mm in RAS.
        to: (4, 4), from the indices of the result to mm in RAS.
        shape: Of the result.
    """
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms.spatial.array import SpatialResample

    data = MetaTensor(torch.from_numpy(np.ascontiguousarray(values))[None], affine=torch.from_numpy(affine))
    resample = SpatialResample(mode="bilinear", padding_mode="zeros", dtype=np.float32)
    result = resample(data, dst_affine=torch.from_numpy(to), spatial_size=shape)
    assert isinstance(result, MetaTensor)
    return np.ascontiguousarray(result.numpy()[0])
