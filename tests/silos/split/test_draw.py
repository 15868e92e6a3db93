"""How patients are dealt out to make-believe hospitals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ConfigError
from silos.split.draw import Homes, draw, sort_out

LABELS = np.arange(400) % 2
SIDES = np.arange(400) // 2 % 4 == 3


def share_of_class(homes: Homes) -> list[float]:
    """The share of class 1 in each hospital."""
    return [float(LABELS[homes == home].mean()) for home in np.unique(homes)]


def spread(homes: Homes) -> float:
    shares = share_of_class(homes)
    return max(shares) - min(shares)


@given(
    by=st.sampled_from(["iid", "labels", "sizes"]),
    alpha=st.floats(0.01, 100),
    into=st.integers(1, 12),
    seed=st.integers(0, 10**6),
    sides=st.lists(st.booleans(), min_size=30, max_size=60).filter(lambda sides: 12 <= sum(sides) <= len(sides) - 12),
)
def test_every_hospital_has_patients_on_both_sides(by, alpha, into, seed, sides):  # type: ignore[no-untyped-def]
    homes = draw(np.arange(len(sides)) % 3, sides, into, by, alpha=alpha, seed=seed)
    for side in (False, True):
        assert set(homes[np.array(sides) == side]) == set(range(into))


def test_a_small_alpha_skews_the_classes_and_a_large_one_does_not() -> None:
    skewed, even = (
        np.mean([spread(draw(LABELS, SIDES, 5, "labels", alpha=alpha, seed=seed)) for seed in range(5)])
        for alpha in (0.1, 1000)
    )
    assert skewed > 0.6
    assert even < 0.1


def test_a_small_alpha_skews_the_sizes_and_a_large_one_does_not() -> None:
    small, large = (np.bincount(draw(LABELS, SIDES, 5, "sizes", alpha=alpha, seed=3)) for alpha in (0.1, 1000))
    assert small.max() > 10 * small.min()
    assert large.max() < 1.2 * large.min()


def test_hospitals_by_chance_alone_are_of_one_size() -> None:
    sizes = np.bincount(draw(LABELS, SIDES, 7, "iid"))
    assert sizes.max() - sizes.min() <= 2  # one of each side


def test_the_held_out_patients_are_like_those_to_train_on() -> None:
    homes = draw(LABELS, SIDES, 4, "labels", alpha=5, seed=1)
    for home in range(4):
        here = homes == home
        assert LABELS[here & SIDES].mean() == pytest.approx(LABELS[here & ~SIDES].mean(), abs=0.1)


def test_the_same_seed_draws_the_same_and_another_seed_something_else() -> None:
    once, again, other = (draw(LABELS, SIDES, 4, "labels", seed=seed) for seed in (1, 1, 2))
    assert (once == again).all()
    assert (once != other).any()


def test_more_hospitals_than_patients_held_out_are_impossible() -> None:
    with pytest.raises(
        ConfigError, match="12 hospitals need 12 patients to train on and 12 held out; there are 30 and 10"
    ):
        draw(np.zeros(40), SIDES[:40], 12, "iid")


def test_each_value_makes_a_hospital_and_neighbours_one_together_where_fewer_are_wanted() -> None:
    years = ["2015"] * 10 + ["2012"] * 10 + ["2013"] * 5 + ["2014"] * 5
    assert sort_out(years).tolist() == [3] * 10 + [0] * 10 + [1] * 5 + [2] * 5
    assert sort_out(years, 3).tolist() == [2] * 10 + [0] * 10 + [1] * 10
    assert sort_out([100, 9, 55, float("nan"), 20, 70], 2).tolist() == [1, 0, 0, 1, 0, 1]
    with pytest.raises(ConfigError, match="4 values, some of many patients, cannot make 5 hospitals"):
        sort_out(years, 5)
