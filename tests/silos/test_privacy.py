"""What the filters promise: a bound that holds to the last bit, and noise that is what it says."""

import hmac
import math
import struct
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nst

from models.exchange.spec import norm
from silos import privacy

SECRET = b"0123456789abcdef0123456789abcdef"
N = 200_001  # odd, so that the last pair of normal deviates is cut


def vectors(limit: float) -> st.SearchStrategy[np.ndarray]:
    largest = float(np.float32(limit))
    sizes = st.integers(1, 100)
    return nst.arrays(np.float32, sizes, elements=st.floats(-largest, largest, width=32))


def length(vector: np.ndarray) -> float:
    return float(np.linalg.norm(vector.astype(np.float64)))


# --- clip ---------------------------------------------------------------------------------------------


@given(vectors(3e38), st.floats(1e-3, 1e6))
def test_no_clipped_update_is_longer_than_the_bound(vector: np.ndarray, bound: float) -> None:
    clipped = privacy.clip(vector, bound)
    assert norm(clipped) <= bound
    assert length(clipped) <= bound * (1 + 1e-12)  # however the squares are summed
    assert (clipped.dtype, clipped.shape) == (np.float32, vector.shape)


@given(vectors(1e30), st.floats(1e-3, 1e6))
def test_clipping_keeps_the_direction_and_as_much_of_the_length_as_is_allowed(vector: np.ndarray, bound: float) -> None:
    clipped = privacy.clip(vector, bound)
    before, after = vector.astype(np.float64), clipped.astype(np.float64)
    if norm(vector) <= bound:
        assert clipped is vector
        return
    np.testing.assert_allclose(after, before * (bound / length(vector)), rtol=1e-5, atol=1e-6 * bound)
    assert length(clipped) >= bound * (1 - 1e-5)


def test_a_short_update_is_the_very_same_array() -> None:
    vector = np.array([3, 4], np.float32)
    assert privacy.clip(vector, 5.0) is vector
    assert privacy.clip(np.zeros(4, np.float32), 1e-3).tobytes() == bytes(16)


def test_the_update_itself_is_not_changed() -> None:
    vector = np.array([30, 40], np.float32)
    np.testing.assert_array_equal(privacy.clip(vector, 5.0), np.array([3, 4], np.float32))
    np.testing.assert_array_equal(vector, np.array([30, 40], np.float32))


@pytest.mark.parametrize("size", [10, 1000, 1_000_000])
def test_rounding_to_float32_never_lengthens_an_update_past_the_bound(size: int) -> None:
    rng = np.random.default_rng(size)
    for bound in (0.1, 1.0, 10.0):
        vector = (100 * rng.standard_normal(size)).astype(np.float32)
        assert norm(privacy.clip(vector, bound)) <= bound


def test_the_norm_is_summed_in_double_precision() -> None:
    vector = np.full(1_000_000, 1e25, np.float32)  # its squares are beyond float32
    assert norm(vector) == pytest.approx(1e28, rel=1e-6)


# --- noise --------------------------------------------------------------------------------------------


def noise(vector: np.ndarray, sd: float = 1.0, secret: bytes = SECRET) -> np.ndarray:
    return (privacy.add_noise(vector, sd, secret).astype(np.float64) - vector) / sd


@pytest.fixture(scope="module")
def zeros() -> np.ndarray:
    return np.zeros(N, np.float32)


@pytest.fixture(scope="module")
def drawn(zeros: np.ndarray) -> np.ndarray:
    return noise(zeros)


def test_the_same_update_gets_the_same_noise_so_that_asking_again_averages_nothing_away(
    zeros: np.ndarray,
) -> None:
    again = privacy.add_noise(zeros.copy(), 1.0, bytes(SECRET))
    assert again.tobytes() == privacy.add_noise(zeros, 1.0, SECRET).tobytes()


def test_another_secret_another_update_and_another_strength_each_get_independent_noise(
    zeros: np.ndarray, drawn: np.ndarray
) -> None:
    nearly = zeros.copy()
    nearly[-1] = np.nextafter(np.float32(0), np.float32(1))
    others = [noise(zeros, secret=SECRET[:-1] + b"!"), noise(nearly), noise(zeros, sd=np.nextafter(1.0, 2.0))]
    for first, second in [(drawn, other) for other in others] + [(others[0], others[1])]:
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(N)
        assert not (first == second).any()


def test_the_noise_is_normal_with_the_declared_standard_deviation(drawn: np.ndarray) -> None:
    error = 5 / np.sqrt(N)
    assert abs(drawn.mean()) < error
    assert abs((drawn**2).mean() - 1) < error * np.sqrt(2)
    assert abs((drawn**3).mean()) < error * np.sqrt(15)
    assert abs((drawn**4).mean() - 3) < error * np.sqrt(96)
    shares = np.arange(1, 1000) / 1000
    quantiles = np.array([NormalDist().inv_cdf(share) for share in shares])
    below = np.searchsorted(np.sort(drawn), quantiles) / N
    assert np.abs(below - shares).max() < 1.95 / np.sqrt(N)  # Kolmogorov-Smirnov at 0.1 %
    assert 4 < np.abs(drawn).max() < 6.5


def test_no_element_of_the_noise_tells_another(drawn: np.ndarray) -> None:
    half = (N + 1) // 2
    for lag in (1, 2, 16, half - 1, half):  # the two deviates of one pair are `half` apart
        first, second = drawn[:-lag], drawn[lag:]
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(len(first))
        assert abs(np.corrcoef(first**2, second**2)[0, 1]) < 5 / np.sqrt(len(first))


@pytest.mark.parametrize("sd", [1e-4, 0.3, 50.0])
def test_noise_is_added_in_the_declared_size_whatever_the_update(sd: float) -> None:
    vector = np.random.default_rng(0).standard_normal(N).astype(np.float32)
    noised = privacy.add_noise(vector, sd, SECRET)
    assert (noised.dtype, noised.shape) == (np.float32, vector.shape)
    added = noised.astype(np.float64) - vector
    assert added.std() == pytest.approx(sd, rel=0.01)
    assert abs(np.corrcoef(added, vector)[0, 1]) < 5 / np.sqrt(N)


@pytest.mark.parametrize("size", [1, 2, 3, 4097])
def test_a_vector_of_any_length_gets_noise_in_every_element(size: int) -> None:
    vector = np.zeros(size, np.float32)
    noised = privacy.add_noise(vector, 1.0, SECRET)
    assert noised.shape == (size,)
    assert (noised != 0).all()
    assert len(set(noised.tolist())) == size
    assert (vector == 0).all()


def test_no_noise_is_no_change() -> None:
    vector = np.array([1, 2, 3], np.float32)
    assert privacy.add_noise(vector, 0.0, SECRET) is vector


def chacha20(key: bytes, blocks: int) -> bytes:
    """The keystream of RFC 8439 from counter 0 with a nonce of zeros, written out."""

    def quarter(s: list[int], a: int, b: int, c: int, d: int) -> None:
        for to, add, turn, by in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            s[to] = (s[to] + s[add]) % 2**32
            mixed = s[turn] ^ s[to]
            s[turn] = (mixed << by | mixed >> (32 - by)) % 2**32

    stream = b""
    for counter in range(blocks):
        start = [*struct.unpack("<4L", b"expand 32-byte k"), *struct.unpack("<8L", key), counter, 0, 0, 0]
        state = start.copy()
        for _ in range(10):
            for column in range(4):
                quarter(state, column, 4 + column, 8 + column, 12 + column)
            for shift in range(4):
                quarter(state, shift, 4 + (shift + 1) % 4, 8 + (shift + 2) % 4, 12 + (shift + 3) % 4)
        stream += struct.pack("<16L", *((x + y) % 2**32 for x, y in zip(state, start, strict=True)))
    return stream


def test_the_noise_can_be_recomputed_by_the_holder_of_the_secret_with_other_software() -> None:
    vector, sd = np.arange(99, dtype=np.float32), 2.0
    key = hmac.new(SECRET, b"intramural noise v1\n" + struct.pack("<d", sd) + vector.tobytes(), "sha256")
    words = struct.unpack("<100Q", chacha20(key.digest(), 13)[:800])
    uniform = [((word >> 11) + 0.5) / 2**53 for word in words]
    pairs = [(math.sqrt(-2 * math.log(u)), 2 * math.pi * v) for u, v in zip(uniform[:50], uniform[50:], strict=True)]
    deviates = [r * math.cos(angle) for r, angle in pairs] + [r * math.sin(angle) for r, angle in pairs]
    expected = vector + sd * np.array(deviates[:99])
    np.testing.assert_allclose(privacy.add_noise(vector, sd, SECRET), expected, rtol=1e-6, atol=1e-6)


# --- epsilon ------------------------------------------------------------------------------------------


def delta_of(epsilon: float, noise: float, rounds: int) -> float:
    """The hockey-stick divergence of `rounds` Gaussians 1/noise apart, by numerical integration.

    The integral of max(0, p - e^epsilon q) with p = N(mu, 1), q = N(0, 1): the integrand is positive
    beyond x0 = epsilon/mu + mu/2, where e^epsilon q / p = exp(-mu (x - x0)).
    """
    mu = np.sqrt(rounds) / noise
    t = np.linspace(0, 14, 400_001) + max(0.0, mu / 2 - epsilon / mu - 7)
    beyond = np.concatenate([np.linspace(0, t[0], 20_001)[:-1], t]) if t[0] > 0 else t
    density = np.exp(-0.5 * (epsilon / mu - mu / 2 + beyond) ** 2) / np.sqrt(2 * np.pi)
    return float(np.trapezoid(-np.expm1(-mu * beyond) * density, beyond))


@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-9])
@pytest.mark.parametrize("rounds", [1, 10, 1000])
@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0, 30.0])
def test_epsilon_is_the_one_at_which_numerical_integration_gives_delta(noise: float, rounds: int, delta: float) -> None:
    epsilon = privacy.epsilon([noise] * rounds, delta)
    if epsilon < 1e-8:  # so much noise that delta alone is enough
        assert delta_of(0.0, noise, rounds) <= delta
    else:
        assert delta_of(epsilon, noise, rounds) == pytest.approx(delta, rel=1e-5)


@pytest.mark.parametrize(("noise", "rounds"), [(0.1, 1), (0.03, 1), (0.01, 100), (0.001, 1)])
def test_epsilon_is_right_where_there_is_hardly_any_noise(noise: float, rounds: int) -> None:
    assert delta_of(privacy.epsilon([noise] * rounds, 1e-5), noise, rounds) == pytest.approx(1e-5, rel=1e-4)


@given(st.floats(0.2, 50), st.floats(1.01, 4), st.integers(1, 2000), st.integers(1, 500), st.floats(1e-9, 1e-2))
def test_epsilon_rises_with_rounds_and_falls_with_noise_and_delta(
    noise: float, factor: float, rounds: int, more: int, delta: float
) -> None:
    epsilon = privacy.epsilon([noise] * rounds, delta)
    slack = 1e-8 * max(1.0, epsilon)
    assert privacy.epsilon([noise] * (rounds + more), delta) >= epsilon - slack
    assert privacy.epsilon([noise * factor] * rounds, delta) <= epsilon + slack
    assert privacy.epsilon([noise] * rounds, delta * factor) <= epsilon + slack


def test_four_rounds_with_twice_the_noise_cost_as_much_as_one() -> None:
    assert privacy.epsilon([2.0] * 4, 1e-5) == pytest.approx(privacy.epsilon([1.0], 1e-5), abs=1e-7)
    assert privacy.epsilon([1.0] * 5, 1e-5) > privacy.epsilon([1.0] * 4, 1e-5) + 0.1


def test_releases_of_different_noise_compose_and_one_without_noise_spends_everything() -> None:
    # 1 / 0.6**2 + 1 / 0.8**2 is 1 / 0.48**2
    assert privacy.epsilon([0.6, 0.8], 1e-5) == pytest.approx(privacy.epsilon([0.48], 1e-5), abs=1e-7)
    assert privacy.epsilon([2.0, 0.0], 1e-5) == math.inf
