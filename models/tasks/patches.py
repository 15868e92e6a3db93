"""Patches of cases: what a segmentation network sees while it trains.

A tumour may be a hundredth of a volume; patches drawn evenly would hardly show it, and a network would learn
to answer "background". Hence a share of the patches is centred on a voxel of a class, each class that the
case holds as often as the others (as in nnU-Net: Isensee et al., Nat Methods 2021).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.tasks.case import Case

DRAWS = 6
"""Random numbers that one patch takes, whatever becomes of them."""


def crop(
    case: Case, patch: Sequence[int], foreground: float, draws: Sequence[float]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """One patch of a case.

    Args:
        case: Prepared, with a mask.
        patch: Its size; two numbers cut one slice (along the last axis) out of a volume.
        foreground: Chance that it is centred on a voxel of a class. Where a class lies near an edge the
            patch stays inside the image.
        draws: `DRAWS` numbers from 0 to below 1.

    Returns:
        Image `(1, *patch)` float32 and mask `(*patch)` uint8; zeros around an image that is smaller, as
        MONAI's sliding window pads it.
    """
    assert case.mask is not None
    shape = case.mask.shape
    window = [*patch, *[1] * (len(shape) - len(patch))]
    room = [max(0, side - length) for side, length in zip(shape, window, strict=True)]
    if draws[0] < foreground and case.places:
        where = case.places[int(draws[1] * len(case.places))]
        voxel = np.unravel_index(where[int(draws[2] * len(where))], shape)
        start = [min(max(0, int(v) - n // 2), r) for v, n, r in zip(voxel, window, room, strict=True)]
    else:
        start = [int(draw * (r + 1)) for draw, r in zip(draws[3:], room, strict=False)]
    part = tuple(slice(at, at + length) for at, length in zip(start, window, strict=True))
    missing = [max(0, length - side) for side, length in zip(shape, window, strict=True)]
    around = [(m // 2, m - m // 2) for m in missing]
    image, mask = np.pad(case.image[0:1, *part][0], around), np.pad(case.mask[part], around)
    return image.reshape(1, *patch), mask.reshape(*patch)
