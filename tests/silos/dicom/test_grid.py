"""On the study's grid a volume shows what it showed, where it showed it, and its mask lies on it still."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from silos.dicom.grid import to_grid

SHAPE = (40, 44, 20)
SPACING = (1.5, 1.2, 2.0)
RISE = np.array([1.0, 2.0, 3.0])  # per mm to the right, front and up


def affine_of(columns: Any) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = np.array(columns).T
    affine[:3, 3] = 30, -20, 10
    return affine


STACKS = {
    "axial": affine_of([(-1, 0, 0), (0, -1, 0), (0, 0, 2)]),
    "upside down": affine_of([(-1, 0, 0), (0, -1, 0), (0, 0, -2)]),
    "sagittal": affine_of([(0, -1, 0), (0, 0, -1), (3, 0, 0)]),
    "coronal": affine_of([(-1, 0, 0), (0, 0, -1), (0, 3, 0)]),
    "oblique": affine_of([(-0.8, 0.3, 0.1), (-0.26, -0.82, 0.38), (0.35, 0.5, 1.3)]),
    "tilted": affine_of([(-1, 0, 0), (0, -1, 0), (0, -0.8, 3)]),
}


def places(affine: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """mm of each voxel, (..., 3)."""
    index = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), axis=-1)
    mm: NDArray[np.float64] = index @ affine[:3, :3].T + affine[:3, 3]
    return mm


@pytest.mark.parametrize("name", STACKS)
def test_what_was_at_a_place_in_the_patient_is_there_still(name: str) -> None:
    affine = STACKS[name]
    # A ramp is its own linear interpolation, so that every voxel can be told.
    pixels = (places(affine, SHAPE) @ RISE).astype(np.float32)
    turned, new = to_grid(pixels, affine, SPACING)
    assert turned.dtype == np.float32
    assert turned.flags.c_contiguous
    np.testing.assert_allclose(np.linalg.norm(new[:3, :3], axis=0), SPACING)
    assert (np.argmax(np.abs(new[:3, :3]), axis=0) == [0, 1, 2]).all()
    assert (np.diagonal(new[:3, :3]) > 0).all()
    mm = places(new, turned.shape)
    old = (mm - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    inside = ((old >= 0) & (old <= np.array(SHAPE) - 1)).all(-1)
    assert inside.mean() > 0.4
    np.testing.assert_allclose(turned[inside], (mm @ RISE)[inside], atol=1e-3)


@pytest.mark.parametrize("name", STACKS)
def test_the_whole_stack_is_on_the_grid(name: str) -> None:
    affine = STACKS[name]
    turned, new = to_grid(np.zeros(SHAPE, np.float32), affine, SPACING)
    corners = places(affine, SHAPE)[:: SHAPE[0] - 1, :: SHAPE[1] - 1, :: SHAPE[2] - 1].reshape(-1, 3)
    index = (corners - new[:3, 3]) @ np.linalg.inv(new[:3, :3]).T
    assert index.min() > -1
    assert (index.max(0) < turned.shape).all()


@pytest.mark.parametrize("name", ["axial", "oblique", "tilted"])
def test_a_mask_lies_where_its_volume_lies_and_stays_whole_numbers(name: str) -> None:
    affine = STACKS[name]
    middle = places(affine, SHAPE).reshape(-1, 3).mean(0)
    ball = np.linalg.norm(places(affine, SHAPE) - middle, axis=-1) < 12
    mask, of_mask = to_grid((ball * 3).astype(np.uint8), affine, SPACING)
    volume, of_volume = to_grid(ball.astype(np.float32), affine, SPACING)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 3}
    np.testing.assert_array_equal(of_mask, of_volume)
    np.testing.assert_array_equal(mask[volume == 1], 3)
    np.testing.assert_array_equal(mask[volume == 0], 0)
    size = np.prod(SPACING) * (mask > 0).sum()
    assert size == pytest.approx(4 / 3 * np.pi * 12**3, rel=0.05)


def test_nothing_is_drawn_beyond_the_edge_of_a_tilted_stack() -> None:
    affine = STACKS["tilted"]
    mask, new = to_grid(np.ones(SHAPE, np.uint8), affine, SPACING)
    old = (places(new, mask.shape) - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    outside = ((old < -0.51) | (old > np.array(SHAPE) - 0.49)).any(-1)
    assert outside.any()
    assert not mask[outside].any()


def test_a_volume_that_is_on_the_grid_already_is_not_touched() -> None:
    pixels = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    affine = np.diag([1.5, 1.2, 2.0, 1.0])
    turned, new = to_grid(pixels, affine, SPACING)
    np.testing.assert_array_equal(turned, pixels)
    np.testing.assert_array_equal(new, affine)
    flipped, _ = to_grid(pixels[::-1, ::-1], np.diag([-1.5, -1.2, 2.0, 1.0]), SPACING)
    np.testing.assert_array_equal(flipped, pixels)


def test_the_same_volume_gives_the_same_bytes_however_many_threads_compute() -> None:
    pixels = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            results.append(to_grid(pixels, STACKS["oblique"], SPACING)[0].tobytes())
    finally:
        torch.set_num_threads(threads)
    assert len(set(results)) == 1
