"""Packed images take half the space, and differ from what went in by less than a scanner can tell apart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from silos.packed import Packed, pack, row_type

SHAPE = (1, 3, 4)


def unpack(*images: np.ndarray) -> Packed:
    return Packed(np.frombuffer(b"".join(map(pack, images)), row_type(images[0].shape)))


@given(arrays(np.float32, SHAPE, elements=st.floats(-(2.0**99), 2.0**99, width=32)))
def test_no_value_moves_by_more_than_half_a_step(image: np.ndarray) -> None:
    low, high = float(image.min()), float(image.max())
    found = unpack(image)[0]
    assert found.dtype == np.float32
    rounding = 4 * np.finfo(np.float32).eps * max(abs(low), abs(high))
    assert np.abs(found.astype(float) - image).max() <= (high - low) / 131070 + rounding + 1e-40


@given(arrays(np.float32, SHAPE, elements=st.floats(0, 1, width=32)))
def test_what_was_packed_once_packs_to_nearly_the_same_again(image: np.ndarray) -> None:
    once = unpack(image)[0]
    assert np.abs(unpack(once)[0] - once).max() <= 1 / 131070


def test_the_ends_of_the_scale_stay_where_they_are() -> None:
    image = np.linspace(0, 1, 12, dtype=np.float32).reshape(SHAPE)
    assert unpack(image)[0].min() == 0
    assert unpack(image)[0].max() == 1


@pytest.mark.parametrize("value", [0.0, -3.5, 1e30])
def test_an_image_without_contrast_stays_as_it_is(value: float) -> None:
    image = np.full(SHAPE, value, np.float32)
    assert np.array_equal(unpack(image)[0], image)


def test_images_are_had_one_by_one_or_several_in_any_order() -> None:
    images = np.random.default_rng(0).normal(size=(5, *SHAPE)).astype(np.float32)
    store = unpack(*images)
    assert len(store) == 5
    some = store[np.array([3, 1, 3])]
    assert some.shape == (3, *SHAPE)
    assert np.allclose(some, images[[3, 1, 3]], atol=1e-4)
    assert np.array_equal(some[1], store[1])
    assert store[1].flags.writeable


def test_an_image_takes_half_of_float32() -> None:
    image = np.zeros((1, 64, 64), np.float32)
    assert len(pack(image)) == image.nbytes / 2 + 8
