"""A model's digest comes out of its file with the standard library as it does with numpy; nothing hides in a file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import Malformed
from models.exchange.model_file import file_digests
from models.exchange.spec import Spec, save_vector, vector_digest

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6).filter(lambda n: n != "__metadata__")
shapes = st.lists(st.integers(0, 4), max_size=3)


@given(layout=st.dictionaries(names, shapes, min_size=1, max_size=5), seed=st.integers(0, 99))
def test_the_file_of_any_model_gives_its_layouts_and_its_vectors_digest(
    tmp_path_factory: pytest.TempPathFactory, layout: dict[str, list[int]], seed: int
) -> None:
    spec = Spec.of(layout)
    vector = np.random.default_rng(seed).standard_normal(spec.size).astype(np.float32)
    path = tmp_path_factory.mktemp("file") / "model.safetensors"
    save_vector(path, spec, vector)
    assert file_digests(path) == (spec.digest, vector_digest(spec.digest, vector))


A, B = ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]})
BAD: dict[str, Any] = {
    "metadata besides": {"__metadata__": {"note": "x"}, "a": A, "b": B},
    "another type": {"a": {**A, "dtype": "F16"}, "b": B},
    "a lying shape": {"a": {**A, "shape": [3]}, "b": B},
    "a negative shape": {"a": {**A, "shape": [-1, -2]}, "b": B},
    "an endless shape": {"a": {**A, "shape": [2] * 10**6}, "b": B},
    "a huge length": {"a": {**A, "shape": [0, 2**60]}, "b": B},
    "a name that is no text": {"\ud800": A, "z": B},
    "no shape": {"a": {**A, "shape": None}, "b": B},
    "a shape of truth": {"a": {**A, "shape": [2, True]}, "b": B},
    "an overlap": {"a": A, "b": {**B, "data_offsets": [4, 8]}},
    "a gap": {"a": A, "b": {**B, "data_offsets": [12, 16]}},
    "another order": {"b": A, "a": B},
    "too few": {"a": A},
    "no object": [A, B],
    "another key": {"a": {**A, "note": "x"}, "b": B},
}


@pytest.mark.parametrize("what", BAD)
def test_a_file_that_is_not_exactly_its_arrays_is_refused(tmp_path: Path, what: str) -> None:
    with pytest.raises(Malformed, match="is no model of a study"):
        file_digests(written(tmp_path, json.dumps(BAD[what]).encode()))


@pytest.mark.parametrize("header", [b"", b"{", b"\xff", b"[" * 5000, b"null"])
def test_a_header_that_is_none_is_refused(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(Malformed):
        file_digests(written(tmp_path, header))


def test_a_name_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    twice = f'{{"a": {json.dumps(A)}, "a": {json.dumps(A)}, "b": {json.dumps(B)}}}'
    file_digests(written(tmp_path, json.dumps({"a": A, "b": B}).encode()))
    with pytest.raises(Malformed, match="twice"):
        file_digests(written(tmp_path, twice.encode()))


@pytest.mark.parametrize("content", [b"", b"\x01", b"\xff" * 8, (2**63).to_bytes(8, "little") + bytes(40)])
def test_a_length_beyond_the_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(Malformed):
        file_digests(tmp_path / "model.safetensors")


def written(folder: Path, header: bytes) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))
    return path
