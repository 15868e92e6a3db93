"""How well a predicted mask agrees with the true one, class by class.

Two questions: how much of the two overlaps (Dice, 1 at best), and how far apart their surfaces lie (Hausdorff,
0 mm at best). A class that the truth has not is not judged: its answer is NaN, and a mean passes over it.

MONAI is loaded by the first call, and not before: to load it takes more time and memory than torch.
"""

import math
import warnings
from collections.abc import Sequence

import torch


def overlaps(predicted: torch.Tensor, truth: torch.Tensor, outputs: int) -> torch.Tensor:
    """Dice's coefficient (Ecology 1945), 2 |A and B| / (|A| + |B|).

    Args:
        predicted: `(*spatial)` int64; 0 is background.
        truth: The same.
        outputs: Classes, background included.

    Returns:
        `(outputs - 1,)` float64 from 0 to 1; NaN for a class that the truth has not.
    """
    from monai.metrics.meandice import compute_dice

    pairs = [_pair(predicted == index, truth == index) for index in range(1, outputs)]
    return torch.tensor([float(compute_dice(*pair)) for pair in pairs], dtype=torch.float64)


def distances(
    predicted: torch.Tensor, truth: torch.Tensor, outputs: int, spacing: Sequence[float] | None
) -> torch.Tensor:
    """The 95th percentile of the distances from each surface to the other, the larger of the two.

    Huttenlocher et al., IEEE TPAMI 1993. Where the truth has a class that the prediction has not, no distance
    exists, and the longest one that the image could hold stands for it: a network must not gain by saying nothing.

    Args:
        predicted: `(*spatial)` int64; 0 is background.
        truth: The same.
        outputs: Classes, background included.
        spacing: mm along each axis; 1 if nobody knows.

    Returns:
        mm, `(outputs - 1,)` float64; NaN for a class that the truth has not.
    """
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance

    sides = spacing or (1.0,) * truth.ndim
    found = []
    for index in range(1, outputs):
        given, asked = predicted == index, truth == index
        if not asked.any():
            found.append(math.nan)
        elif not given.any():
            found.append(math.hypot(*(mm * (n - 1) for mm, n in zip(sides, truth.shape, strict=True))))
        else:
            with warnings.catch_warnings():  # MONAI 1.6.1 calls itself with an argument that it deprecates
                warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)
                found.append(
                    float(compute_hausdorff_distance(*_pair(given, asked), True, percentile=95, spacing=sides))
                )
    return torch.tensor(found, dtype=torch.float64)


def _pair(predicted: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As MONAI takes them: a batch of one, with one channel."""
    return predicted[None, None].float(), truth[None, None].float()
