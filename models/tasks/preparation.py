"""From an image in modality units to the network's input: comparable intensities, the study's grid.

Everything here is the same for the same pixels, everywhere; there is no chance in it.
"""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate

from models.errors import DataError
from models.plan import Imaging, Landmarks

Image = npt.NDArray[np.float32]

_LARGEST = 2**28  # voxels of a resampled image; 1 GiB


def normalise(image: Image, settings: Imaging) -> Image:
    """Make the intensities of one image comparable with those of others, as the study says.

    Args:
        image: `(H, W)` or `(X, Y, Z)` float32 in modality units.
        settings: Names one of four ways. `percentiles` and `window`: mapped to 0..1, what lies beyond is
            clipped; if both percentiles are the same value (a small structure on an empty ground), the image's
            extremes take their place. `zscore`: mean 0 and deviation 1; with "nonzero", zeros stay zeros and do
            not count. `landmarks`: see `to_landmarks`.

    Returns:
        Of the same shape, float32; all zeros if the image has no contrast.

    Raises:
        DataError: The image holds NaN or infinity.
    """
    if not np.isfinite(image).all():
        raise DataError("an image holds NaN or infinity", "look at its rescale slope and intercept")
    if settings.zscore:
        return _zscore(image, image != 0 if settings.zscore == "nonzero" else np.ones(image.shape, bool))
    if settings.landmarks:
        return to_landmarks(image, settings.landmarks)
    low, high = _range(image, settings)
    if high - low < np.finfo(np.float32).tiny:  # a processor may take what is smaller for 0
        return np.zeros(image.shape, np.float32)
    return ((image.astype(np.float32) - low) / (high - low)).clip(0, 1)


def _zscore(image: Image, counted: npt.NDArray[np.bool_]) -> Image:
    """MONAI's NormalizeIntensity, which however writes into its argument and sums in float32."""
    values, found = image[counted].astype(np.float64), np.zeros(image.shape, np.float32)
    if values.size and values.min() < values.max():
        found[counted] = (values - values.mean()) / values.std()
    return found


def _range(image: Image, settings: Imaging) -> tuple[float, float]:
    """The values that become 0 and 1."""
    if settings.window:
        centre, width = settings.window
        return centre - width / 2, centre + width / 2
    # numpy partitions where MONAI's ScaleIntensityRangePercentiles sorts: 20 times as fast, same values.
    low, high = np.percentile(image, settings.percentiles or (0, 100))
    if low == high:
        low, high = image.min(), image.max()
    return float(low), float(high)


def to_landmarks(image: Image, landmarks: Landmarks) -> Image:
    """Map an image's histogram to a standard one, linearly between landmarks.

    Nyul and Udupa, Magn Reson Med 1999; Nyul, Udupa and Zhang, IEEE Trans Med Imaging 2000. The foreground is
    what lies above the image's mean; beyond the outer landmarks the outer pieces go on.

    Args:
        image: Float32 of any shape.
        landmarks: Percentiles of the foreground, and the standard values that they become.

    Returns:
        Of the same shape, float32; all zeros if the image has no contrast.
    """
    found = _foreground_percentiles(image, landmarks.percentiles)
    keep = np.append(True, found[1:] > found[:-1])  # two landmarks may be the same value: the first one stands
    found, standard = found[keep], np.asarray(landmarks.values)[keep]
    if len(found) < 2:
        return np.zeros(image.shape, np.float32)
    slopes = np.diff(standard) / np.diff(found)
    piece = np.clip(np.searchsorted(found, image, side="right") - 1, 0, len(slopes) - 1)
    return cast(Image, (standard[piece] + (image - found[piece]) * slopes[piece]).astype(np.float32))


def standard_landmarks(
    images: Iterable[Image], percentiles: Sequence[float], low: float = 0.0, high: float = 1.0
) -> Landmarks:
    """The standard histogram of some images, for a `study.toml`; the training step of the same papers.

    Args:
        images: Float32 in modality units, of the sequence that the study is about. Use public ones: the
            values become part of the plan.
        percentiles: Of the foreground, rising.
        low: Standard value of the first.
        high: Standard value of the last.

    Returns:
        The mean landmarks, after each image's first and last were mapped to `low` and `high`.

    Raises:
        DataError: No image has contrast.
    """
    rows = [_foreground_percentiles(image, percentiles) for image in images]
    scaled = [(row - row[0]) / (row[-1] - row[0]) for row in rows if row[-1] > row[0]]
    if not scaled:
        raise DataError("no image has contrast", "give images of the study's sequence")
    values = low + (high - low) * np.mean(scaled, axis=0)
    return Landmarks(percentiles=list(percentiles), values=[float(value) for value in values])


def _foreground_percentiles(image: Image, percentiles: Sequence[float]) -> npt.NDArray[np.float64]:
    above = image[image > image.mean(dtype=np.float64)]
    return np.percentile(above if above.size else image, percentiles).astype(np.float64)


def resize(image: Image, size: Sequence[int]) -> Image:
    """Stretch an image to a size: averaged over areas where every axis shrinks, else linearly interpolated.

    Args:
        image: `(H, W)` or `(X, Y, Z)` float32.
        size: As many numbers.

    Returns:
        Of that size, float32; interpolation may round past the image's extremes.
    """
    shrinks = all(new <= old for new, old in zip(size, image.shape, strict=True))
    mode = "area" if shrinks else "bilinear" if image.ndim == 2 else "trilinear"
    return cast(Image, _stretch(torch.as_tensor(image), size, mode))


def resize_mask(mask: npt.NDArray[np.uint8], size: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Stretch a mask to a size by its nearest voxels, in register with `resize`."""
    return cast("npt.NDArray[np.uint8]", _stretch(torch.as_tensor(mask), size, "nearest-exact"))


def _stretch(image: torch.Tensor, size: Sequence[int], mode: str) -> npt.NDArray[Any]:
    return interpolate(image[None, None], tuple(size), mode=mode)[0, 0].numpy()


class VolumeTooLarge(DataError):  # noqa: N818 - it says what it is
    """At the study's spacing an image would have more voxels than can be held."""


def grid(
    shape: Sequence[int], spacing: Sequence[float] | None, wanted: Sequence[float] | None
) -> tuple[tuple[int, ...], tuple[float, ...] | None]:
    """The grid over the same field of view that comes nearest to a spacing.

    Args:
        shape: Voxels along each axis.
        spacing: mm along each axis, if known.
        wanted: mm along the first axes; the others, and all if it is None, stay as they are.

    Returns:
        The new shape; and its spacing, which differs from the wanted one by what makes the voxels fit.

    Raises:
        DataError: The spacing is not known.
        VolumeTooLarge: There would be too many voxels.
    """
    if wanted is None:
        return tuple(shape), None if spacing is None else tuple(spacing)
    if spacing is None or not all(np.isfinite(mm) and mm > 0 for mm in spacing):
        raise DataError("the spacing of an image is not known", "leave it out, or ask for a study without spacing")
    wanted = [*wanted, *spacing[len(wanted) :]]
    new = tuple(max(1, round(n * mm / to)) for n, mm, to in zip(shape, spacing, wanted, strict=True))
    if np.prod(new, dtype=np.float64) > _LARGEST:
        raise VolumeTooLarge(f"at the study's spacing an image would have {' x '.join(map(str, new))} voxels")
    return new, tuple(n * mm / to for n, mm, to in zip(shape, spacing, new, strict=True))


def about_the_middle(image: Image, size: Sequence[int]) -> Image:
    """The voxels about the middle of an image, with zeros where it ends; `size` as the image has axes."""
    from monai.transforms.croppad.array import ResizeWithPadOrCrop  # longer to load than torch

    return cast(Image, ResizeWithPadOrCrop(size)(torch.as_tensor(image[None]))[0].numpy())
