"""The mean is the formula, in a fixed order, to the bit; and one model of memory however many silos."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from aggregator import mean as module
from models.exchange.spec import Vector

CHUNK = module._PIECE


def weighted_mean(weights: list[float], vectors: list[Vector]) -> Vector:
    parts = [lambda start, stop, v=vector: v[start:stop] for vector in vectors]
    return module.weighted_mean(weights, parts, vectors[0].size if vectors else 0)


weights = st.floats(0.5, 1e6)
elements = st.floats(-1e6, 1e6, width=32)


@st.composite
def updates(draw: st.DrawFn) -> tuple[list[float], list[Vector]]:
    size = draw(st.integers(0, 20))
    count = draw(st.integers(1, 8))
    vectors = [draw(arrays.arrays(np.float32, size, elements=elements)) for _ in range(count)]
    return [draw(weights) for _ in vectors], vectors


@settings(deadline=None)
@given(updates())
def test_the_mean_is_that_of_double_precision_within_single_precision(
    update: tuple[list[float], list[Vector]],
) -> None:
    weights, vectors = update
    exact = np.average(np.array(vectors, np.float64), axis=0, weights=weights)
    found = weighted_mean(weights, vectors)
    assert found.dtype == np.float32
    # A float32 operation is off by half a unit in the last place of its operands: two per silo.
    scale = np.abs(np.array(vectors, np.float64)).max(axis=0, initial=0.0)
    assert (np.abs(found - exact) <= 4 * len(vectors) * np.finfo(np.float32).eps * scale + 1e-38).all()


@settings(deadline=None)
@given(
    bits=arrays.arrays(np.uint32, st.integers(0, 30)),
    weight=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
)
def test_the_mean_of_one_update_is_that_update_to_the_bit(bits: np.ndarray, weight: float) -> None:
    vector = bits.view(np.float32)
    vector = vector[np.isfinite(vector)]
    assert weighted_mean([weight], [vector]).tobytes() == vector.tobytes()


@settings(deadline=None)
@given(updates(), st.sampled_from([0.125, 0.5, 2.0, 1024.0]))
def test_only_the_ratio_of_the_weights_counts(update: tuple[list[float], list[Vector]], factor: float) -> None:
    weights, vectors = update
    scaled = weighted_mean([weight * factor for weight in weights], vectors)
    assert scaled.tobytes() == weighted_mean(weights, vectors).tobytes()


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 3])
def test_a_boundary_between_chunks_changes_no_bit(size: int) -> None:
    random = np.random.default_rng(size)
    vectors = [random.standard_normal(size).astype(np.float32) for _ in range(3)]
    weights = [3.0, 17.5, 204.0]
    factors = [np.float32(weight / math.fsum(weights)) for weight in weights]
    whole = vectors[0] * factors[0] + vectors[1] * factors[1] + vectors[2] * factors[2]
    assert weighted_mean(weights, vectors).tobytes() == whole.tobytes()


def test_an_update_that_may_only_be_read_is_read_and_not_changed() -> None:
    content = np.arange(5, dtype=np.float32).tobytes()
    vectors = [np.frombuffer(content, np.float32), np.frombuffer(content, np.float32)]
    assert weighted_mean([1, 1], vectors).tolist() == [0, 1, 2, 3, 4]
    assert vectors[0].tobytes() == content


def test_the_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no update"):
        weighted_mean([], [])


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0, 1.0]])
def test_a_weight_too_few_or_too_many_is_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        weighted_mean(weights, [np.ones(2, np.float32)] * 2)


def test_updates_are_read_in_their_order_a_piece_of_each_at_a_time() -> None:
    asked: list[tuple[int, int, int]] = []

    def reads(number: int) -> module.Part:
        def part(start: int, stop: int) -> Vector:
            asked.append((number, start, stop))
            return np.full(stop - start, number, np.float32)

        return part

    found = module.weighted_mean([1.0] * 5, [reads(number) for number in range(5)], CHUNK + 3)
    assert set(found.tolist()) == {2.0}
    assert asked == [*((n, 0, CHUNK) for n in range(5)), *((n, CHUNK, CHUNK + 3) for n in range(5))]


def peak(count: int) -> int:
    size = 1_000_000
    parts = [lambda start, stop, n=number: np.full(stop - start, n, np.float32) for number in range(count)]
    tracemalloc.start()
    try:
        module.weighted_mean([1.0] * count, parts, size)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_thirty_two_silos_take_no_more_memory_than_four() -> None:
    few, many = peak(4), peak(32)
    assert many < 1.05 * few
    assert many < 1.5 * 4_000_000  # the sum, and a piece of an update and of its product
