"""Augmentation by name: what a study may ask for, and that image and mask stay together."""

from typing import Any

import numpy as np
import pytest
import torch

from models.errors import ConfigError
from models.plan import Augmentation
from models.tasks.augmentation import TRANSFORMS, Augmenter

NEEDED: dict[str, dict[str, Any]] = {
    "RandAffine": {"rotate_range": [0.5], "translate_range": [2, 2], "scale_range": [0.1, 0.1]},
    "RandRotate": {"range_x": 0.5},
    "RandScaleIntensity": {"factors": [-0.3, -0.1]},
    "RandShiftIntensity": {"offsets": [0.1, 0.3]},
}
MOVES = {"RandAffine", "RandFlip", "RandRotate", "RandZoom"}

each_transform = pytest.mark.parametrize("name", sorted(TRANSFORMS))
each_dimension = pytest.mark.parametrize("dimensions", [2, 3])


def chosen(name: str, **arguments: Any) -> list[Augmentation]:
    return [Augmentation(name=name, arguments=arguments)]


def certain(name: str, dimensions: int) -> Augmenter:
    arguments = {
        key: (value * 2)[:dimensions] if "_range" in key and key != "rotate_range" else value
        for key, value in NEEDED.get(name, {}).items()
    }
    return Augmenter(chosen(name, prob=1.0, **arguments), dimensions)


def pair(dimensions: int, count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Off-centre blocks, on a ground that is nowhere flat, and their masks."""
    side = (20,) * dimensions
    mask = torch.zeros(count, 1, *side, dtype=torch.int64)
    mask[(slice(None), 0, slice(3, 11), slice(6, 14))] = 1
    mask[(slice(None), 0, slice(4, 8), slice(8, 12))] = 2
    ground = 0.05 * torch.rand(count, 1, *side, generator=torch.Generator().manual_seed(1))
    return mask.float() / 2 + ground, mask


@each_dimension
@each_transform
def test_every_transform_varies_images_the_same_way_for_the_same_seed_and_no_other(name: str, dimensions: int) -> None:
    images, masks = pair(dimensions)
    vary = certain(name, dimensions)
    before, state = images.clone(), torch.get_rng_state()
    np.random.seed(1)
    first, first_masks = vary(images, masks, torch.Generator().manual_seed(9))
    np.random.seed(2)
    again, again_masks = vary(images, masks, torch.Generator().manual_seed(9))
    assert first_masks is not None
    assert again_masks is not None
    assert (first.shape, first.dtype, type(first)) == (images.shape, torch.float32, torch.Tensor)
    assert (first_masks.shape, first_masks.dtype) == (masks.shape, torch.int64)
    assert torch.equal(first, again)
    assert torch.equal(first_masks, again_masks)
    assert not torch.equal(first, images)
    assert first.isfinite().all()
    assert set(first_masks.unique().tolist()) <= {0, 1, 2}
    if name != "RandFlip":
        assert not torch.equal(first, vary(images, masks, torch.Generator().manual_seed(10))[0])
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


@each_dimension
@each_transform
def test_an_image_and_its_mask_move_together(name: str, dimensions: int) -> None:
    images, masks = pair(dimensions)
    varied, moved = certain(name, dimensions)(images, masks, torch.Generator().manual_seed(4))
    assert moved is not None
    if name not in MOVES:
        assert torch.equal(moved, masks)
        return
    assert not torch.equal(moved, masks)
    inside, outside = varied[moved > 0].mean(), varied[moved == 0].mean()
    assert inside > 0.45
    assert outside < 0.1


def test_transforms_follow_each_other_and_images_without_masks_are_varied_alike() -> None:
    images, masks = pair(2)
    both = Augmenter([*chosen("RandFlip", prob=1, spatial_axis=0), *chosen("RandFlip", prob=1, spatial_axis=1)], 2)
    found, none = both(images, None, torch.Generator().manual_seed(1))
    assert none is None
    assert torch.equal(found, images.flip(2, 3))
    assert torch.equal(both(images, masks, torch.Generator().manual_seed(1))[0], found)


def test_no_transform_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    state = generator.get_state()
    images, masks = pair(2)
    found, same = Augmenter([], 2)(images, masks, generator)
    assert found is images
    assert same is masks
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("Lambda", {"func": "print"}, r"task\.augment\.0\.name: no transform is called 'Lambda'"),
        ("LoadImage", {}, r"task\.augment\.0\.name: no transform is called 'LoadImage'"),
        ("RandFlip", {"probability": 0.5}, r"arguments\.probability: is not an argument of RandFlip \(got 0\.5\)"),
        ("RandFlip", {"keys": "image"}, r"arguments\.keys: is not an argument"),
        ("RandFlip", {"prob": "1"}, r"arguments\.prob: Input should be a valid number \(got '1'\)"),
        ("RandFlip", {"prob": 1.5}, r"arguments\.prob: Input should be less than or equal to 1 \(got 1\.5\)"),
        ("RandFlip", {"prob": True}, r"arguments\.prob: .*\(got True\)"),
        ("RandFlip", {"spatial_axis": 2}, r"arguments: RandFlip cannot do this with 2-D images"),
        ("RandZoom", {"min_zoom": 2.0, "max_zoom": 1.0}, r"RandZoom cannot do this with 2-D images: min_zoom"),
        ("RandGaussianNoise", {"std": -1.0}, r"arguments\.std: "),
        ("RandScaleIntensity", {"factors": [0.3, -0.3]}, r"arguments\.factors: .*two rising numbers"),
        ("RandScaleIntensity", {}, r"arguments: RandScaleIntensity cannot do this .*factors"),
        ("RandBiasField", {"degree": 50}, r"arguments\.degree: "),
        ("RandAffine", {"rotate_range": [9.0]}, r"arguments\.rotate_range: "),
    ],
)
def test_what_is_not_on_the_list_or_not_of_its_type_is_refused_by_its_key(
    name: str, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        Augmenter(chosen(name, **arguments), 2)
    assert str(caught.value).startswith("task.augment.0.")
    assert caught.value.hint
