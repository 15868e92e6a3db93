"""Masks judged: overlap, and distance in millimetres."""

import numpy as np
import pytest
import torch

from models.tasks.masks import distances, overlaps


def box(side: tuple[int, ...], *corners: tuple[int, int]) -> torch.Tensor:
    mask = torch.zeros(side, dtype=torch.int64)
    mask[tuple(slice(*corner) for corner in corners)] = 1
    return mask


def apart(predicted: torch.Tensor, truth: torch.Tensor, spacing: tuple[float, ...] | None) -> float:
    return distances(predicted, truth, 2, spacing).item()


def test_the_overlap_is_twice_what_is_shared_by_what_there_is() -> None:
    truth, said = box((20, 20), (5, 15), (5, 15)), box((20, 20), (5, 15), (10, 20))
    assert overlaps(said, truth, 2).tolist() == [0.5]
    assert overlaps(truth, truth, 2).tolist() == [1.0]
    assert overlaps(torch.zeros_like(truth), truth, 2).tolist() == [0.0]
    assert overlaps(2 * said, truth, 3)[0] == 0
    assert overlaps(said, 2 * truth, 3).isnan().tolist() == [True, False]


def test_hausdorff_distances_of_known_shapes_are_in_millimetres() -> None:
    side = (30, 30, 12)
    truth = box(side, (5, 15), (5, 15), (2, 8))
    assert apart(truth, truth, (1.0, 1.0, 1.0)) == 0
    moved = box(side, (5, 15), (5, 15), (4, 10))  # two slices further
    assert apart(moved, truth, (1.0, 1.0, 5.0)) == pytest.approx(10)
    assert apart(moved, truth, (1.0, 1.0, 0.5)) == pytest.approx(1)
    wide = box(side, (5, 24), (5, 15), (2, 8))  # 9 rows longer: the far face is more than 5 % of the surface
    assert apart(wide, truth, (2.0, 1.0, 1.0)) == pytest.approx(18)
    assert apart(wide, truth, None) == pytest.approx(9)
    assert apart(truth, wide, (2.0, 1.0, 1.0)) == pytest.approx(18)


def test_one_wild_voxel_does_not_decide_the_distance() -> None:
    truth = box((60, 60), (10, 50), (10, 50))
    wild = truth.clone()
    wild[0, 0] = 1
    assert apart(wild, truth, (1.0, 1.0)) == 0


def test_saying_nothing_is_as_bad_as_can_be_and_what_is_not_there_is_not_judged() -> None:
    truth, nothing = box((31, 41), (5, 15), (5, 15)), box((31, 41), (0, 0), (0, 0))
    assert apart(nothing, truth, (2.0, 1.5)) == pytest.approx(np.hypot(60, 60))
    assert np.isnan(apart(truth, nothing, (2.0, 1.5)))
