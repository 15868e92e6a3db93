"""The layout of a model: which arrays, in which order, of which shape; and its digest.

Both sides hold a model as one float32 vector. The spec says which part of the vector is which array
of the network's state, sorted by name, so that the vector is also the data section of a safetensors
file, and a digest can be recomputed from either by anyone.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import safetensors
from safetensors import safe_open

from models.canonical import canonical, digest
from models.errors import DataError, DigestMismatch, SpecMismatch
from models.exchange.model_file import MODEL_DOMAIN
from models.ledger.disk import rename

Vector = npt.NDArray[np.float32]
"""All floating arrays of a model in spec order, 1-D float32."""

_UPDATE = b"intramural update v2\n"

_PIECE = 1 << 15  # elements that are turned into float64 at a time; they stay in a core's cache


@dataclass(frozen=True)
class TensorSpec:
    """One floating array of a network's state, float32."""

    name: str
    shape: tuple[int, ...]

    @cached_property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Spec:
    """The arrays of a model, sorted by name.

    Raises:
        SpecMismatch: The names are not distinct and sorted.
    """

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        names = [tensor.name for tensor in self.tensors]
        if names != sorted(set(names)):
            raise SpecMismatch("the arrays of a spec must have distinct names in sorted order")

    @classmethod
    def of(cls, shapes: Mapping[str, Iterable[int]]) -> Self:
        """The spec of named shapes, in any order."""
        return cast(Self, _known(cls(tuple(TensorSpec(name, tuple(shapes[name])) for name in sorted(shapes)))))

    @cached_property
    def size(self) -> int:
        """Number of elements of the whole vector."""
        return sum(tensor.size for tensor in self.tensors)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON of names, shapes and dtypes."""
        return digest(canonical(self.listing))

    @property
    def listing(self) -> list[dict[str, Any]]:
        """Names, shapes and dtypes as JSON values."""
        return [{"name": t.name, "shape": list(t.shape), "dtype": "float32"} for t in self.tensors]

    def split(self, vector: Vector) -> Iterator[tuple[TensorSpec, Vector]]:
        """Each array's part of the vector, as 1-D views."""
        start = 0
        for tensor in self.tensors:
            yield tensor, vector[start : start + tensor.size]
            start += tensor.size

    def named(self, vector: Vector) -> dict[str, Vector]:
        """The arrays by name, in their shapes, as views."""
        return {tensor.name: part.reshape(tensor.shape) for tensor, part in self.split(vector)}


@lru_cache(maxsize=8)  # of equal specs the first one, which has its digest already
def _known(spec: Spec) -> Spec:
    return spec


def norm(vector: Vector) -> float:
    """L2 norm of a vector, summed in float64 piece by piece; finite if and only if every number is."""
    buffer, sums = np.empty(min(_PIECE, vector.size)), []
    for start in range(0, vector.size, _PIECE):
        piece = vector[start : start + _PIECE]
        wide = buffer[: piece.size]
        with np.errstate(invalid="ignore"):  # of a signalling NaN, which the sum shows
            wide[:] = piece
        sums.append(float(np.einsum("i,i->", wide, wide)))  # by one thread, where BLAS may sum by several
    return math.sqrt(math.fsum(sums))


def vector_digest(spec: str, vector: Vector) -> str:
    r"""SHA-256 (hex) of a model.

    Args:
        spec: Digest of the layout; it is hashed first, so equal bytes of another layout differ.
        vector: `(spec.size,)` float32.

    Returns:
        The digest of `"intramural vector v1\n"`, the spec's digest (32 bytes) and the vector's
        little-endian bytes.
    """
    state = hashlib.sha256(MODEL_DOMAIN + bytes.fromhex(spec))
    state.update(np.ascontiguousarray(vector, dtype="<f4").data)
    return state.hexdigest()


def tensor_digests(spec: Spec, vector: Vector) -> tuple[str, ...]:
    """SHA-256 (hex) of each array's little-endian bytes, in the order of the spec.

    Args:
        spec: The layout.
        vector: `(spec.size,)` float32.
    """
    parts = spec.split(np.ascontiguousarray(vector, dtype="<f4"))
    return tuple(hashlib.sha256(part.data).hexdigest() for _, part in parts)


def update_digest(spec: Spec, tensors: Iterable[str]) -> str:
    r"""SHA-256 (hex) of an update, made of those of its arrays, which its manifest lists; so no byte is hashed twice.

    Args:
        spec: The layout.
        tensors: As `tensor_digests` gives them.

    Returns:
        The digest of `"intramural update v2\n"`, the spec's digest and the arrays' digests (32 bytes each).
    """
    return hashlib.sha256(_UPDATE + bytes.fromhex("".join((spec.digest, *tensors)))).hexdigest()


def save_vector(path: Path, spec: Spec, vector: Vector) -> None:
    """Write a vector as a safetensors file of named arrays, durable before it has its name.

    Args:
        path: The file; its folder must exist.
        spec: The layout.
        vector: `(spec.size,)` float32.
    """
    listing, start = {}, 0
    for tensor in spec.tensors:
        end = start + 4 * tensor.size
        listing[tensor.name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [start, end]}
        start = end
    header = json.dumps(listing, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the data is aligned, as the format recommends
    draft = path.with_name(f"{path.name}.new")
    with draft.open("wb") as file:  # safetensors' own `save` would hold the model twice more
        file.write(len(header).to_bytes(8, "little") + header)
        file.write(np.ascontiguousarray(vector, "<f4").data)
        file.flush()
        os.fsync(file.fileno())
    rename(draft, path)


def load_part(path: Path, start: int, stop: int) -> Vector:
    """Read some elements of a vector that `save_vector` wrote; nothing is checked but that they are there.

    Args:
        path: The file.
        start: First element.
        stop: One after the last.

    Raises:
        DataError: The file cannot be read, or is shorter.
    """
    part = np.empty(stop - start, "<f4")
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(8 + int.from_bytes(file.read(8), "little") + 4 * start)
            read = file.readinto(part.data)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", "restore the file") from error
    if read != part.nbytes:
        raise DataError(f"{path}: has fewer than {stop} numbers", "restore the file")
    return part.astype(np.float32, copy=False)


def load_vector(path: Path, expected: str | None = None) -> tuple[Spec, Vector]:
    """Read a safetensors file of float32 arrays.

    Args:
        path: The file.
        expected: The digest that the content must have, if known.

    Returns:
        The layout and the `(spec.size,)` float32 vector.

    Raises:
        DataError: The file is missing or is no safetensors file.
        SpecMismatch: An array is not float32.
        DigestMismatch: The content is not the expected one.
    """
    try:
        with safe_open(path, "numpy") as file:
            shapes = {}
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                part = file.get_slice(name)
                if part.get_dtype() != "F32":
                    raise SpecMismatch(f"{path}: {name}: is {part.get_dtype()}, not F32", "save it as float32")
                shapes[name] = part.get_shape()
            spec = Spec.of(shapes)
            vector = np.zeros(spec.size, "<f4")
            parts = {tensor.name: part for tensor, part in spec.split(vector)}
            order = file.offset_keys()
        # Read and not mapped: a mapped file counts as this process's memory once more.
        with path.open("rb") as content:
            content.seek(8 + int.from_bytes(content.read(8), "little"))
            for name in order:
                if content.readinto(parts[name].data) != parts[name].nbytes:
                    raise OSError("it was cut short meanwhile")
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"{path}: cannot be read as safetensors: {error}", "restore the file") from error
    if expected is not None and vector_digest(spec.digest, vector) != expected:
        raise DigestMismatch(f"{path}: is not the model of digest {expected}", "restore the file from a copy")
    return spec, vector.astype(np.float32, copy=False)
