"""Intensities made comparable between scanners, and images brought to the study's grid."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.errors import DataError
from models.plan import Landmarks, Segmentation
from models.tasks.preparation import grid, normalise, resize, resize_mask, standard_landmarks, to_landmarks


def settings(**changes: Any) -> Segmentation:
    content: dict[str, Any] = {
        "name": "segmentation",
        "classes": ["tumour"],
        "modality": ["MR"],
        "dimensions": 3,
        "patch": [16, 16, 16],
        "network": {"name": "unet"},
    }
    return Segmentation.parse(content | changes, source="test")


# The mean of these ten is 40; the foreground above it is 60, 70, ..., 100.
TEN = np.array([0, 0, 0, 0, 0, 60, 70, 80, 90, 100], np.float32).reshape(1, 2, 5)
THREE = Landmarks(percentiles=[0, 50, 100], values=[10, 20, 60])


def test_landmarks_are_those_of_a_hand_computed_example() -> None:
    # Foreground landmarks: 60 -> 10, 80 -> 20, 100 -> 60. Between: 70 -> 15, 90 -> 40. Below 60 the first piece
    # (slope 10 / 20) goes on: 0 -> 10 - 60 / 2 = -20.
    expected = [-20, -20, -20, -20, -20, 10, 15, 20, 40, 60]
    found = to_landmarks(TEN, THREE)
    np.testing.assert_allclose(found.ravel(), expected, atol=1e-6)
    assert found.dtype == np.float32
    # Beyond the last landmark the last piece (slope 2) goes on.
    half = Landmarks(percentiles=[0, 50], values=[10, 20])
    np.testing.assert_allclose(to_landmarks(TEN, half).ravel()[-2:], [25, 30], atol=1e-6)


@pytest.mark.parametrize(("scale", "offset"), [(3.0, 0.0), (0.25, 100.0)])
def test_landmarks_forget_a_scanner_s_scale_and_offset(scale: float, offset: float) -> None:
    image = np.random.default_rng(1).gamma(2, 100, (12, 13, 14)).astype(np.float32)
    marks = Landmarks(percentiles=[1, 25, 50, 75, 99], values=[0, 0.2, 0.5, 0.8, 1])
    np.testing.assert_allclose(to_landmarks(image * scale + offset, marks), to_landmarks(image, marks), atol=1e-3)


def test_landmarks_that_fall_together_and_images_without_contrast_stay_finite() -> None:
    two = np.array([[0, 0, 0, 5, 5, 5, 5, 5]], np.float32)
    assert not to_landmarks(two, THREE).any()
    steps = np.array([[0, 0, 0, 5, 5, 5, 5, 9]], np.float32)  # the first two landmarks are both 5
    np.testing.assert_allclose(to_landmarks(steps, THREE)[0, [3, 7]], [10, 60])
    assert not to_landmarks(np.full((3, 4), 7, np.float32), THREE).any()


def test_standard_landmarks_are_the_mean_of_scaled_histograms() -> None:
    other = TEN * 2 + 10
    other[other == 170] = 190  # 80 of 60..100 lies at 1/2, 95 would lie at 7/8 of the way
    found = standard_landmarks([TEN, other], [0, 50, 100], low=0, high=8)
    assert found.values == pytest.approx([0, 8 * (1 / 2 + 60 / 80) / 2, 8])
    with pytest.raises(DataError):
        standard_landmarks([np.zeros((3, 3), np.float32)], [0, 100])


def test_zscore_counts_the_voxels_that_are_not_0_and_leaves_the_others() -> None:
    found = normalise(TEN, settings(zscore="nonzero")).ravel()
    assert not found[:5].any()
    np.testing.assert_allclose(found[5:], (np.arange(60, 101, 10) - 80) / np.sqrt(200), rtol=1e-5)
    everything = normalise(TEN, settings(zscore="all"))
    np.testing.assert_allclose([everything.mean(), everything.std()], [0, 1], atol=1e-6)


@pytest.mark.parametrize("way", [{"zscore": "nonzero"}, {"zscore": "all"}, {"landmarks": THREE.model_dump()}])
@given(image=arrays(np.float32, (5, 6, 3), elements=st.floats(-2000, 4000, width=16)))
def test_whatever_the_pixels_the_result_is_finite_and_the_same_again(way: dict[str, Any], image: np.ndarray) -> None:
    before = image.copy()
    found = normalise(image, settings(**way))
    assert found.shape == image.shape
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(normalise(image, settings(**way)), found)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_voxel_that_is_no_number_is_refused(bad: float) -> None:
    image = TEN.copy()
    image[0, 0, 0] = bad
    with pytest.raises(DataError, match="NaN or infinity"):
        normalise(image, settings(zscore="all"))


def test_a_grid_covers_the_same_millimetres() -> None:
    assert grid((240, 240, 20), (0.9, 0.9, 6.0), (1.0, 1.0, 3.0)) == ((216, 216, 40), (1.0, 1.0, 3.0))
    shape, spacing = grid((10, 7), (1.0, 1.0), (3.0, 3.0))
    assert shape == (3, 2)
    assert spacing == pytest.approx((10 / 3, 7 / 2))
    assert grid((64, 64, 5), (0.5, 0.5, 7.0), (1.0, 1.0)) == ((32, 32, 5), (1.0, 1.0, 7.0))
    assert grid((64, 64), None, None) == ((64, 64), None)


@pytest.mark.parametrize("spacing", [None, (1.0, 0.0), (1.0, float("nan"))])
def test_an_image_of_unknown_spacing_is_refused_where_the_study_needs_it(spacing: tuple[float, ...] | None) -> None:
    with pytest.raises(DataError, match="spacing of an image is not known"):
        grid((64, 64), spacing, (1.0, 1.0))


def test_a_spacing_that_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(DataError, match="10240 x 10240 x 6000 voxels"):
        grid((512, 512, 300), (1.0, 1.0, 1.0), (0.05, 0.05, 0.05))


@pytest.mark.parametrize("size", [(24, 20, 10), (11, 9, 5), (16, 30, 4)])
def test_an_image_and_its_mask_stay_in_register(size: tuple[int, int, int]) -> None:
    axes = [np.linspace(-1, 1, n) for n in (22, 18, 10)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    ball = ((x - 0.2) ** 2 + y**2 + z**2 < 0.4).astype(np.uint8)
    image, mask = resize(ball.astype(np.float32), size), resize_mask(ball, size)
    assert image.shape == mask.shape == size
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    for axis in range(3):
        along = [np.average(np.arange(n), weights=w) for n in (size[axis],) for w in _profiles(image, mask, axis)]
        assert along[0] == pytest.approx(along[1], abs=0.3)


def _profiles(image: np.ndarray, mask: np.ndarray, axis: int) -> list[np.ndarray]:
    others = tuple(other for other in range(3) if other != axis)
    return [image.sum(others), mask.sum(others, dtype=float)]
