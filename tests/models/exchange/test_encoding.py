"""What an update's numbers are rounded to; packing them loses nothing, and a stranger's pack costs nothing."""

import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import Malformed, TooLarge
from models.exchange.encoding import BOUND, Encoding, EncodingName
from models.exchange.spec import Spec, Vector
from models.plan import Plan

SPEC = Spec.of({"bias": [7], "conv.0": [6, 3, 3], "conv.1": [40, 2], "empty": [0, 4], "gain": [5], "scale": []})
SMALL: list[EncodingName] = ["bfloat16", "compact"]

finite = st.floats(-(2.0**100), 2.0**100, width=32)
vectors = st.lists(finite, min_size=SPEC.size, max_size=SPEC.size).map(lambda row: np.array(row, np.float32))


def normal(seed: int = 0, spec: Spec = SPEC) -> Vector:
    return np.random.default_rng(seed).standard_normal(spec.size).astype(np.float32)


@settings(deadline=None, max_examples=50)
@given(vector=vectors, name=st.sampled_from(SMALL))
def test_what_was_rounded_comes_out_of_its_pack_to_the_bit(vector: Vector, name: EncodingName) -> None:
    encoding = Encoding(name, SPEC)
    rounded = encoding.rounded(vector)
    assert encoding.unpack(encoding.pack(rounded)).tobytes() == rounded.tobytes()


@settings(deadline=None, max_examples=50)
@given(vector=vectors)
def test_bfloat16_is_torchs(vector: Vector) -> None:
    torch = pytest.importorskip("torch")
    expected = torch.from_numpy(vector).to(torch.bfloat16).to(torch.float32).numpy()
    assert Encoding("bfloat16", SPEC).rounded(vector).tobytes() == expected.tobytes()


@settings(deadline=None, max_examples=50)
@given(vector=vectors)
def test_compact_moves_no_number_by_more_than_it_says(vector: Vector) -> None:
    told = Encoding("compact", SPEC).rounded(vector)
    fine = Encoding("bfloat16", SPEC).rounded(vector)
    for tensor, before in SPEC.split(vector):
        after, finely = SPEC.named(told)[tensor.name].ravel(), SPEC.named(fine)[tensor.name].ravel()
        if len(tensor.shape) < 2:
            assert after.tobytes() == finely.tobytes()
        elif tensor.size and (width := max(before.max(), 0.0) - min(before.min(), 0.0)) > 1e-30:
            assert np.abs(after.astype(np.float64) - before).max() <= BOUND * float(width)


def test_float32_is_told_as_it_is() -> None:
    vector, encoding = normal(), Encoding("float32", SPEC)
    assert encoding.rounded(vector) is vector
    assert encoding.nbytes == vector.nbytes


@pytest.mark.parametrize("name", SMALL)
def test_what_was_not_rounded_is_not_packed(name: EncodingName) -> None:
    with pytest.raises(ValueError, match="than its encoding"):
        Encoding(name, SPEC).pack(normal())


@pytest.mark.parametrize(("name", "most"), [("bfloat16", 0.4), ("compact", 1 / 6)])
def test_a_pack_is_small(name: EncodingName, most: float) -> None:
    spec = Spec.of({"a": [512, 512], "b": [512]})
    vector = np.random.default_rng(1).laplace(size=spec.size).astype(np.float32) * np.float32(1e-3)
    encoding = Encoding(name, spec)
    pack = encoding.pack(encoding.rounded(vector))
    assert len(pack) <= most * vector.nbytes
    assert len(pack) < encoding.nbytes < vector.nbytes


@settings(deadline=None, max_examples=50)
@given(data=st.binary(max_size=400), name=st.sampled_from(SMALL), place=st.integers(0, 200), cut=st.booleans())
def test_no_strangers_pack_does_more_than_be_refused(data: bytes, name: EncodingName, place: int, cut: bool) -> None:
    encoding = Encoding(name, SPEC)
    good = encoding.pack(encoding.rounded(normal()))
    for hostile in (data, good[:place] + data, good[:place] if cut else good[:place] + b"\xff" + good[place + 1 :]):
        with suppress(Malformed, TooLarge):  # any other exception is the failure
            vector = encoding.unpack(hostile)
            assert (vector.shape, vector.dtype) == ((SPEC.size,), np.float32)


def bomb(declared: int | None) -> bytes:
    """Sixty-four megabytes of zeros; with a size, in a frame that declares it."""
    packer = zstandard.ZstdCompressor(level=1).compressobj(size=-1 if declared is None else declared)
    pieces = [packer.compress(bytes(2**20)) for _ in range(64)]
    return b"".join([*pieces, packer.flush()])


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("declared", [None, 2**26])
def test_a_bomb_is_never_unpacked(name: EncodingName, declared: int | None) -> None:
    spec = Spec.of({"a": [300, 300]})  # large enough for the bomb to pass for its pack
    lower = spec.size if name == "bfloat16" else 0
    hostile = bytes(lower) + bomb(declared)
    tracemalloc.start()
    with pytest.raises(Malformed, match="another size"):
        Encoding(name, spec).unpack(hostile)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("name", SMALL)
def test_what_follows_a_pack_or_is_longer_than_any_is_refused(name: EncodingName) -> None:
    encoding = Encoding(name, SPEC)
    good = encoding.pack(encoding.rounded(normal()))
    with pytest.raises(Malformed):
        encoding.unpack(good + b"more")
    with pytest.raises(Malformed):
        encoding.unpack(good + good)
    with pytest.raises(TooLarge):
        encoding.unpack(good + bytes(4096))


def test_an_infinite_step_gives_numbers_that_intake_refuses() -> None:
    spec = Spec.of({"a": [2, 2]})
    plain = b"\x80\x7f" + bytes([0, 1, 2, 255])  # bfloat16's infinity, and four multiples of it
    pack = zstandard.ZstdCompressor(write_content_size=True).compress(plain)
    assert not np.isfinite(Encoding("compact", spec).unpack(pack)).all()


def test_a_plan_says_bfloat16_unless_told_otherwise() -> None:
    assert Plan.load("configs/study-fedprox.toml").encoding == "bfloat16"


def test_a_compact_update_is_packed_whichever_way_its_ends_were_rounded() -> None:
    encoding = Encoding("compact", Spec.of({"w": (2, 2)}))
    # 51 steps of 50 are as wide as 50 steps of 51; and of 1e-38 nothing can be told in eight bits.
    for numbers in ([1275.5, -1229, 3, 4], [1e-38, -7e-39, 3e-39, 0]):
        rounded = encoding.rounded(np.array(numbers, np.float32))
        assert encoding.unpack(encoding.pack(rounded)).tobytes() == rounded.tobytes()
    for seed in range(2000):
        rounded = encoding.rounded(normal(seed, encoding.spec) * np.float32(10.0 ** (seed % 13 - 6)))
        assert encoding.unpack(encoding.pack(rounded)).tobytes() == rounded.tobytes()
