r"""The digest of a model straight from its safetensors file, with the standard library alone.

A study's model file holds its arrays one after the other, sorted by name, float32; its data section is
the very vector that the hospitals' and the coordinator's ledgers name by digest. So a stranger needs neither
numpy nor safetensors to see that a file is the model of a ledger's line:

    layout, model = file_digests(Path("models/model.safetensors"))

Nothing is believed: every name, shape and offset of the header is checked before the data are hashed, and
no byte of the file stays unaccounted for.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, BinaryIO

from models.canonical import canonical, digest, object_once
from models.errors import Malformed

MODEL_DOMAIN = b"intramural vector v1\n"
"""What a model's digest begins with, so that it is the digest of nothing else."""

_LARGEST_HEADER = 100 * 2**20  # bytes, as in the safetensors library
_PIECE = 2**20  # bytes that are hashed at a time
_AXES = 64  # of an array, at most, as in numpy
_ITEM = 4  # bytes of a float32


def file_digests(path: Path) -> tuple[str, str]:
    """The layout and the content of a model's file.

    Args:
        path: A safetensors file of float32 arrays that lie sorted by name and without gaps.

    Returns:
        Digest of the layout, as `Spec.digest`, and of the model, as `vector_digest`; 64 hex digits each.

    Raises:
        Malformed: It is no such file.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        try:
            listing, expected = _layout(file, size)
            layout = digest(canonical(listing))
        except (ValueError, RecursionError) as error:
            raise Malformed(f"{path.name}: is no model of a study: {error}", "ask for the file again") from None
        state = hashlib.sha256(MODEL_DOMAIN + bytes.fromhex(layout))
        while piece := file.read(_PIECE):
            state.update(piece)
            expected -= len(piece)
    if expected:
        raise Malformed(f"{path.name}: changed while it was read", "see who writes there")
    return layout, state.hexdigest()


def _layout(file: BinaryIO, size: int) -> tuple[list[dict[str, Any]], int]:
    """The arrays that the header lists, and how many bytes of data follow it."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _LARGEST_HEADER):
        raise ValueError("its header is longer than the file")
    header = json.loads(file.read(length).decode(), object_pairs_hook=object_once)
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    listing, place = [], 0
    for name in sorted(header):
        shape, end = _array(header[name], place)
        listing.append({"name": name, "shape": shape, "dtype": "float32"})
        place = end
    if place != size - 8 - length:
        raise ValueError("its arrays are not all of its data")
    return listing, place


def _array(value: Any, place: int) -> tuple[list[int], int]:
    """Shape of one array, and where it ends; it must begin at `place`."""
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"} or value["dtype"] != "F32":
        raise ValueError("an array is not float32")
    shape = value["shape"]
    if (
        not isinstance(shape, list)
        or len(shape) > _AXES
        or not all(type(length) is int and 0 <= length < 2**53 for length in shape)
    ):
        raise ValueError("an array has an impossible shape")
    end = place + _ITEM * math.prod(shape)
    if value["data_offsets"] != [place, end]:
        raise ValueError("its arrays are not in the order of their names")
    return shape, end
