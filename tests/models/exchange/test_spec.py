"""A model is one vector with a layout: the same bytes in memory, on disk and under the digest."""

import hashlib
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from models.errors import DataError, DigestMismatch, SpecMismatch
from models.exchange.spec import (
    Spec,
    TensorSpec,
    Vector,
    load_vector,
    norm,
    save_vector,
    tensor_digests,
    update_digest,
    vector_digest,
)

SPEC = Spec.of({"head.weight": (2, 3), "conv.bias": (2,), "conv.weight": (1, 2, 2)})

names = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=12)
shapes = st.dictionaries(
    names.filter(lambda name: name != "__metadata__"),
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    min_size=1,
    max_size=6,
)


def filled(spec: Spec, seed: int = 0) -> Vector:
    return np.random.default_rng(seed).standard_normal(spec.size).astype(np.float32)


def test_a_spec_sorts_its_arrays_by_name_and_counts_their_elements() -> None:
    assert [tensor.name for tensor in SPEC.tensors] == ["conv.bias", "conv.weight", "head.weight"]
    assert [tensor.size for tensor in SPEC.tensors] == [2, 4, 6]
    assert SPEC.size == 12
    assert TensorSpec("scale", ()).size == 1
    assert TensorSpec("empty", (3, 0)).size == 0


@pytest.mark.parametrize("names", [("b", "a"), ("a", "a")], ids=["unsorted", "twice"])
def test_a_spec_whose_arrays_are_not_in_order_is_refused(names: tuple[str, str]) -> None:
    with pytest.raises(SpecMismatch):
        Spec(tuple(TensorSpec(name, (1,)) for name in names))


@pytest.mark.parametrize(
    "other",
    [
        {"head.weight": (3, 2), "conv.bias": (2,), "conv.weight": (1, 2, 2)},
        {"head.weight": (6,), "conv.bias": (2,), "conv.weight": (1, 2, 2)},
        {"head.bias": (2, 3), "conv.bias": (2,), "conv.weight": (1, 2, 2)},
        {"head.weight": (2, 3), "conv.bias": (2,)},
    ],
    ids=["transposed", "flattened", "renamed", "one less"],
)
def test_another_layout_has_another_digest(other: dict[str, tuple[int, ...]]) -> None:
    assert Spec.of(other).digest != SPEC.digest


def test_the_order_in_which_a_network_lists_its_arrays_does_not_change_the_digest() -> None:
    shapes = {tensor.name: tensor.shape for tensor in reversed(SPEC.tensors)}
    assert Spec.of(shapes).digest == SPEC.digest


def test_the_named_arrays_are_views_of_the_vector_and_cover_it() -> None:
    vector = filled(SPEC)
    named = SPEC.named(vector)

    assert {name: array.shape for name, array in named.items()} == {
        tensor.name: tensor.shape for tensor in SPEC.tensors
    }
    assert all(np.shares_memory(array, vector) for array in named.values())
    assert np.concatenate([array.ravel() for array in named.values()]).tobytes() == vector.tobytes()


def test_an_updates_digest_is_made_of_those_of_its_arrays_and_of_its_layout() -> None:
    vector = filled(SPEC, 1)
    tensors = tensor_digests(SPEC, vector)
    assert tensors == tuple(hashlib.sha256(part.astype("<f4").tobytes()).hexdigest() for _, part in SPEC.split(vector))
    by_hand = b"intramural update v2\n" + bytes.fromhex(SPEC.digest) + b"".join(map(bytes.fromhex, tensors))
    assert update_digest(SPEC, tensors) == hashlib.sha256(by_hand).hexdigest()
    other = Spec.of({f"other.{tensor.name}": tensor.shape for tensor in SPEC.tensors})
    assert update_digest(other, tensors) != update_digest(SPEC, tensors) != vector_digest(SPEC.digest, vector)
    strided = np.repeat(vector, 2)[::2]
    assert tensor_digests(SPEC, strided) == tensors


@given(st.lists(st.integers(0, 2**32 - 1), max_size=9))
def test_a_norm_is_finite_if_and_only_if_every_number_is(bits: list[int]) -> None:
    vector = np.array(bits, np.uint32).view(np.float32)
    assert np.isfinite(norm(vector)) == np.isfinite(vector).all()


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FC00000, 0x7F800000, 0xFF800000], ids=["snan", "nan", "inf", "-inf"])
def test_one_number_that_is_none_makes_a_norm_that_is_none(bits: int) -> None:
    vector = np.full(100_000, np.finfo(np.float32).max)
    assert np.isfinite(norm(vector))
    vector.view(np.uint32)[77_777] = bits
    assert not np.isfinite(norm(vector))


def test_a_vector_digest_can_be_recomputed_by_hand() -> None:
    vector = filled(SPEC)
    by_hand = b"intramural vector v1\n" + bytes.fromhex(SPEC.digest) + vector.astype("<f4").tobytes()
    assert vector_digest(SPEC.digest, vector) == hashlib.sha256(by_hand).hexdigest()


@given(bit=st.integers(0, 12 * 32 - 1))
def test_every_bit_of_a_vector_counts_for_its_digest(bit: int) -> None:
    vector = filled(SPEC)
    changed = vector.copy()
    changed.view(np.uint32)[bit // 32] ^= np.uint32(1 << bit % 32)
    assert vector_digest(SPEC.digest, changed) != vector_digest(SPEC.digest, vector)


def test_equal_bytes_of_another_layout_have_another_digest() -> None:
    vector, other = filled(SPEC), Spec.of({"all": (12,)})
    assert vector_digest(other.digest, vector) != vector_digest(SPEC.digest, vector)


def test_a_vector_that_is_not_contiguous_has_the_digest_of_its_values() -> None:
    vector = filled(SPEC)
    strided = np.repeat(vector, 2)[::2]
    assert not strided.flags.c_contiguous
    assert vector_digest(SPEC.digest, strided) == vector_digest(SPEC.digest, vector)


@settings(deadline=None, max_examples=60)
@given(shapes=shapes, seed=st.integers(0, 99))
def test_a_model_read_from_its_file_is_the_one_that_was_saved_to_the_bit(
    shapes: dict[str, tuple[int, ...]], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    spec = Spec.of(shapes)
    bits = np.random.default_rng(seed).integers(0, 2**32, spec.size, dtype=np.uint32)  # NaN and -0.0 too
    vector = bits.view(np.float32)
    save_vector(path, spec, vector)

    found, read = load_vector(path, vector_digest(spec.digest, vector))

    assert found == spec
    assert read.dtype == np.float32
    assert read.tobytes() == vector.tobytes()


def test_the_vector_is_the_data_section_of_its_file(tmp_path: Path) -> None:
    vector = filled(SPEC)
    save_vector(tmp_path / "model.safetensors", SPEC, vector)
    assert (tmp_path / "model.safetensors").read_bytes()[-vector.nbytes :] == vector.tobytes()


@settings(deadline=None, max_examples=60)
@given(shapes=shapes)
def test_a_file_is_the_one_that_safetensors_itself_would_write(
    shapes: dict[str, tuple[int, ...]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    spec = Spec.of(shapes)
    vector = filled(spec)
    save_vector(path, spec, vector)
    assert path.read_bytes() == save({name: np.asarray(part, order="C") for name, part in spec.named(vector).items()})


def test_a_file_whose_arrays_lie_in_another_order_is_read_all_the_same(tmp_path: Path) -> None:
    header = (
        b'{"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]},"__metadata__":{"by":"hand"}}'
    )
    content = len(header).to_bytes(8, "little") + header + np.array([3, 1, 2], "<f4").tobytes()
    (tmp_path / "model.safetensors").write_bytes(content)
    spec, vector = load_vector(tmp_path / "model.safetensors")
    assert [tensor.name for tensor in spec.tensors] == ["a", "b"]
    assert vector.tolist() == [1, 2, 3]


def test_a_model_is_in_memory_once_while_it_is_read_and_not_again_while_it_is_written(tmp_path: Path) -> None:
    spec = Spec.of({"large": (999_000,), "small": (1000,)})
    vector = filled(spec)
    tracemalloc.start()
    try:
        save_vector(tmp_path / "model.safetensors", spec, vector)
        writing = tracemalloc.get_traced_memory()[1]
        load_vector(tmp_path / "model.safetensors", vector_digest(spec.digest, vector))
        reading = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert writing < 0.1 * vector.nbytes
    assert reading < 1.1 * vector.nbytes


def test_a_model_of_another_digest_is_refused_and_its_file_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_vector(path, SPEC, filled(SPEC, 1))
    with pytest.raises(DigestMismatch, match=r"model\.safetensors"):
        load_vector(path, vector_digest(SPEC.digest, filled(SPEC, 2)))


@pytest.mark.parametrize("content", [None, b"", b"no safetensors", b"\xff" * 64], ids=repr)
def test_a_file_that_is_no_model_is_refused_and_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"model\.safetensors"):
        load_vector(path)


def test_a_model_of_double_precision_is_refused_and_its_array_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(save({"head.weight": np.zeros(3, np.float64)}))
    with pytest.raises(SpecMismatch, match=r"model\.safetensors.*head\.weight.*F64"):
        load_vector(path)


def test_a_model_whose_writing_was_cut_short_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, old = tmp_path / "model.safetensors", filled(SPEC, 1)
    save_vector(path, SPEC, old)

    def die(*_: object) -> None:
        raise OSError("the power went")

    for call in ("rename", "replace"):
        monkeypatch.setattr(os, call, die)
    with pytest.raises(OSError, match="power"):
        save_vector(path, SPEC, filled(SPEC, 2))

    assert load_vector(path)[1].tobytes() == old.tobytes()
