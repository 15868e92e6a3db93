"""Random variations of training images that a study may ask for, by their names in MONAI.

    [task]
    augment = [
      { name = "RandFlip", arguments = { prob = 0.5, spatial_axis = 0 } },
      { name = "RandGaussianNoise", arguments = { prob = 0.2, std = 0.05 } },
    ]

They are applied in this order. The table at the end is all there is; MONAI's documentation explains the
arguments (angles are in radians). An image and its mask are moved together; what changes intensities leaves
the mask alone. Chance comes from one seed per image and from nothing else.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, cast

import torch
from monai.transforms.compose import Compose
from monai.transforms.intensity.dictionary import (
    RandAdjustContrastd,
    RandBiasFieldd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandShiftIntensityd,
)
from monai.transforms.spatial.dictionary import RandAffined, RandFlipd, RandRotated, RandZoomd
from monai.transforms.transform import Transform
from monai.utils.type_conversion import convert_to_tensor
from pydantic import AfterValidator, Field

from models.errors import ConfigError
from models.plan import Augmentation
from models.tasks.arguments import checked, find

_IMAGE, _BOTH = ["image"], ["image", "mask"]

Chance = Annotated[float, Field(ge=0, le=1)]
Angle = Annotated[float, Field(ge=0, le=math.pi)]
Axis = Annotated[int, Field(ge=0, le=2)]
Zoom = Annotated[float, Field(ge=0.1, le=10)]
Sd = Annotated[float, Field(ge=0, le=1000)]
Factor = Annotated[float, Field(ge=-0.99, le=10)]
Offset = Annotated[float, Field(ge=-1000, le=1000)]
Gamma = Annotated[float, Field(ge=0.05, le=20)]
Blur = Annotated[float, Field(ge=0, le=10)]
Coefficient = Annotated[float, Field(ge=-2, le=2)]
Shear = Annotated[float, Field(ge=0, le=2)]
Shift = Annotated[float, Field(ge=0, le=512)]
Stretch = Annotated[float, Field(ge=0, lt=1)]


def _rising(bounds: Sequence[float]) -> Sequence[float]:
    if bounds[0] > bounds[1]:
        raise ValueError("must be two rising numbers")
    return bounds


def _pair(bounds: Sequence[float]) -> tuple[float, float]:
    low, high = bounds
    return low, high


_Pair = Field(min_length=2, max_length=2)
_Rising = AfterValidator(_rising)
_PerAxis = Field(min_length=2, max_length=3)


def rand_flip(dimensions: int, *, prob: Chance = 0.1, spatial_axis: Axis | None = None) -> Transform:
    """Mirror; all axes at once if none is named."""
    return RandFlipd(_BOTH, prob=prob, spatial_axis=spatial_axis)


def rand_rotate(
    dimensions: int, *, prob: Chance = 0.1, range_x: Angle = 0.0, range_y: Angle = 0.0, range_z: Angle = 0.0
) -> Transform:
    """Turn by up to an angle either way; a 2-D image turns by `range_x`."""
    mode = ["bilinear", "nearest"]
    return RandRotated(_BOTH, range_x, range_y, range_z, prob=prob, mode=mode, padding_mode="border")


def rand_zoom(dimensions: int, *, prob: Chance = 0.1, min_zoom: Zoom = 0.9, max_zoom: Zoom = 1.1) -> Transform:
    """Enlarge or reduce about the middle; the size stays."""
    if min_zoom > max_zoom:
        raise ValueError("min_zoom is above max_zoom")
    mode = ["bilinear" if dimensions == 2 else "trilinear", "nearest-exact"]
    return RandZoomd(_BOTH, prob=prob, min_zoom=min_zoom, max_zoom=max_zoom, mode=mode, padding_mode="edge")


def rand_affine(
    dimensions: int,
    *,
    prob: Chance = 0.1,
    rotate_range: Annotated[Sequence[Angle], Field(min_length=1, max_length=3)] | None = None,
    shear_range: Annotated[Sequence[Shear], Field(min_length=2, max_length=6)] | None = None,
    translate_range: Annotated[Sequence[Shift], _PerAxis] | None = None,
    scale_range: Annotated[Sequence[Stretch], _PerAxis] | None = None,
) -> Transform:
    """Turn, shear, move and scale, each axis by up to so much either way."""
    return RandAffined(
        _BOTH,
        prob=prob,
        rotate_range=rotate_range,
        shear_range=shear_range,
        translate_range=translate_range,
        scale_range=scale_range,
        mode=["bilinear", "nearest"],
        padding_mode="border",
    )


def rand_gaussian_noise(dimensions: int, *, prob: Chance = 0.1, mean: Offset = 0.0, std: Sd = 0.1) -> Transform:
    """Add Gaussian noise."""
    return RandGaussianNoised(_IMAGE, prob=prob, mean=mean, std=std)


def rand_gaussian_smooth(
    dimensions: int,
    *,
    prob: Chance = 0.1,
    sigma_x: Annotated[Sequence[Blur], _Pair, _Rising] = (0.25, 1.5),
    sigma_y: Annotated[Sequence[Blur], _Pair, _Rising] = (0.25, 1.5),
    sigma_z: Annotated[Sequence[Blur], _Pair, _Rising] = (0.25, 1.5),
) -> Transform:
    """Blur."""
    return RandGaussianSmoothd(_IMAGE, _pair(sigma_x), _pair(sigma_y), _pair(sigma_z), prob=prob)


def rand_scale_intensity(
    dimensions: int, *, prob: Chance = 0.1, factors: Annotated[Sequence[Factor], _Pair, _Rising]
) -> Transform:
    """Multiply by 1 + a factor."""
    return RandScaleIntensityd(_IMAGE, _pair(factors), prob=prob)


def rand_shift_intensity(
    dimensions: int, *, prob: Chance = 0.1, offsets: Annotated[Sequence[Offset], _Pair, _Rising]
) -> Transform:
    """Add an offset."""
    return RandShiftIntensityd(_IMAGE, _pair(offsets), prob=prob)


def rand_adjust_contrast(
    dimensions: int, *, prob: Chance = 0.1, gamma: Annotated[Sequence[Gamma], _Pair, _Rising] = (0.5, 4.5)
) -> Transform:
    """Raise intensities to a power, between the image's extremes."""
    return RandAdjustContrastd(_IMAGE, prob=prob, gamma=_pair(gamma))


def rand_bias_field(
    dimensions: int,
    *,
    prob: Chance = 0.1,
    degree: Annotated[int, Field(ge=1, le=5)] = 3,
    coeff_range: Annotated[Sequence[Coefficient], _Pair, _Rising] = (0.0, 0.1),
) -> Transform:
    """A slow change of brightness over the image, as MR coils make it."""
    return RandBiasFieldd(_IMAGE, degree=degree, coeff_range=_pair(coeff_range), prob=prob)


TRANSFORMS: Mapping[str, Callable[..., Transform]] = MappingProxyType(
    {
        "RandAdjustContrast": rand_adjust_contrast,
        "RandAffine": rand_affine,
        "RandBiasField": rand_bias_field,
        "RandFlip": rand_flip,
        "RandGaussianNoise": rand_gaussian_noise,
        "RandGaussianSmooth": rand_gaussian_smooth,
        "RandRotate": rand_rotate,
        "RandScaleIntensity": rand_scale_intensity,
        "RandShiftIntensity": rand_shift_intensity,
        "RandZoom": rand_zoom,
    }
)
"""All that a study may name."""


class Augmenter:
    """A study's random transforms, in order.

    Args:
        chosen: What the study lists.
        dimensions: Of the images, 2 or 3.

    Raises:
        ConfigError: An unknown transform; an unknown argument or a value out of its range; or one that the
            transform cannot do with images of these dimensions.
    """

    def __init__(self, chosen: Sequence[Augmentation], dimensions: int) -> None:
        self._chain = Compose([_transform(item, f"task.augment.{i}", dimensions) for i, item in enumerate(chosen)])
        self._empty = not chosen

    def __call__(
        self, images: torch.Tensor, masks: torch.Tensor | None, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Vary each image, and its mask with it.

        Args:
            images: `(B, 1, *spatial)` float32; not changed.
            masks: `(B, 1, *spatial)` int64, if there are any.
            generator: The only source of chance; it advances by one number an image, if the study varies any.

        Returns:
            As they came.
        """
        if self._empty:
            return images, masks
        moved = torch.zeros_like(images) if masks is None else masks.float()
        seeds = torch.randint(2**32, (len(images),), generator=generator, device=generator.device).tolist()
        found = []
        for image, mask, seed in zip(images, moved, seeds, strict=True):
            self._chain.set_random_state(seed)
            found.append(self._chain({"image": image, "mask": mask}))
        varied, moved = (torch.stack([_plain(item[key]) for item in found]) for key in _BOTH)
        return varied, None if masks is None else moved.round().to(masks.dtype)


def _plain(tensor: Any) -> torch.Tensor:
    return cast(torch.Tensor, convert_to_tensor(tensor, track_meta=False))


def _transform(chosen: Augmentation, key: str, dimensions: int) -> Any:
    builder = find(TRANSFORMS, chosen, key, "transform")
    arguments: dict[str, Any] = checked(builder, chosen, key)
    trial = {name: torch.zeros(1, *[8] * dimensions) for name in _BOTH}
    try:
        certain = builder(dimensions, **(arguments | {"prob": 1.0}))
        certain.set_random_state(0)
        certain(trial)
        return builder(dimensions, **arguments)
    except Exception as error:  # whatever MONAI says to arguments that do not go together
        raise ConfigError(
            f"{key}.arguments: {chosen.name} cannot do this with {dimensions}-D images: {error}",
            "see MONAI's documentation of the transform",
        ) from error
