"""An envelope inside a Flower message, and back. Who else imports Flower, the contract in `pyproject.toml` lists.

The arrays travel as one Flower `Array`, the rest as bytes in one `ConfigRecord`. Models are in NumPy's format; updates
are packed in the study's encoding where they travel to another machine, and are read in either form.
What arrives is a stranger's until it is verified, so nothing is parsed that could run code, allocate
by a declared size, or be read in two ways.
"""

import io
from functools import cached_property
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import InflatableObject  # not public; only for its name

from models.errors import Malformed, SpecMismatch, TooLarge
from models.exchange.documents import MAX_DOCUMENT
from models.exchange.encoding import Encoding
from models.exchange.spec import Vector
from models.exchange.statement import Envelope, Evidence

ENVELOPE = "intramural"  # the ConfigRecord's key
FAREWELL = "farewell"  # its key if it holds evidence alone
ARRAYS = "arrays"  # the ArrayRecord's key, as in Flower's own strategies
VECTOR = "vector"  # the only array in it

_STYPE = "numpy.ndarray"
_PACKED = "intramural.packed"
_MESSAGE = ("statement", "signature", "body")
_EVIDENCE = ("note", "receipt_xid", "receipt", "cosignature", "testimony")
_OTHERS = ("heads", "proofs", "seen")
_MAX_NOTE = 4096  # bytes; the note becomes part of a ledger line
_MAX_NUMBER = 2**53 - 1  # what canonical JSON can hold, and so a ledger line
_MAX_PROOFS = 4096  # more than from all heads that a channel remembers to have shown, and all that witnesses cosigned
_MAX_PROOF = 64 * 32  # bytes; a ledger of 2**60 lines needs fewer


class VectorArray(Array):
    """A vector as Flower's array; its bytes are made when it leaves this machine, and not before.

    Args:
        vector: 1-D float32; must not change any more.
        encoding: In which it is packed then; by default it is not packed.

    Attributes:
        vector: The same numbers, read-only.
    """

    def __init__(self, vector: Vector, encoding: Encoding | None = None) -> None:
        self._encoding = None if encoding is None or encoding.name == "float32" else encoding
        self.dtype, self.stype = ("float32", _STYPE) if self._encoding is None else (self._encoding.name, _PACKED)
        self.shape = vector.shape
        self.vector = vector.view()
        self.vector.flags.writeable = False

    def __reduce__(self) -> tuple[type["VectorArray"], tuple[Vector]]:
        """To another process of this machine, the numbers alone."""
        return VectorArray, (self.vector,)

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The vector in NumPy's file format, or packed."""
        return self._flowers.data

    @property
    def children(self) -> dict[str, InflatableObject]:
        """As Flower's own array has them."""
        return self._flowers.children

    def deflate(self) -> bytes:
        """What travels names the class, and Flower at the other end knows only its own."""
        return self._flowers.deflate()

    @cached_property
    def _flowers(self) -> Array:
        if self._encoding is not None:
            return Array(self.dtype, self.shape, self.stype, self._encoding.pack(self.vector))
        header = _header(self.vector.size)
        data = b"".join([header, self.vector.astype("<f4", copy=False).data])
        self.vector = _numbers(data, len(header))  # one of the two is enough
        return Array("float32", self.vector.shape, _STYPE, data)


def pack(envelope: Envelope, array: Array | None = None) -> RecordDict:
    """Put an envelope into Flower records.

    Args:
        envelope: What is to travel.
        array: Its vector, if it is packed already; several messages can share one.
    """
    fields = _fields(envelope.evidence)
    fields.update(statement=envelope.statement, signature=envelope.signature, body=envelope.body)
    records = RecordDict({ENVELOPE: fields})
    if envelope.vector is not None:
        records[ARRAYS] = arrays = ArrayRecord()
        # Given to the constructor, it would be copied.
        arrays[VECTOR] = array or pack_vector(envelope.vector, envelope.encoding)
    return records


def unpack(records: RecordDict, size: int | None = None, encoding: Encoding | None = None) -> Envelope:
    """Take an envelope out of Flower records.

    Args:
        records: What a Flower message carries.
        size: Number of float32 elements that arrays, if any, must have; any by default.
        encoding: How arrays are told, if not as they are.

    Raises:
        Malformed: Not an envelope.
        SpecMismatch: The array is not a vector of this size, in float32 or packed in this encoding.
        TooLarge: A document above the limit.
    """
    fields = records.get(ENVELOPE)
    if not isinstance(fields, ConfigRecord) or set(records) - {ENVELOPE, ARRAYS}:
        raise Malformed("the message is not an envelope", detail="records")
    texts = _texts(fields, _MESSAGE)
    return Envelope(
        **texts, evidence=_evidence(fields, _MESSAGE), vector=_vector(records, size, encoding), encoding=encoding
    )


def pack_farewell(evidence: Evidence) -> RecordDict:
    """Put evidence alone into Flower records."""
    return RecordDict({FAREWELL: _fields(evidence)})


def unpack_farewell(records: RecordDict) -> Evidence:
    """Take evidence alone out of Flower records.

    Raises:
        Malformed: There is none, or there is more.
        TooLarge: Above the limit.
    """
    fields = records.get(FAREWELL)
    if not isinstance(fields, ConfigRecord) or set(records) != {FAREWELL}:
        raise Malformed("the message is no farewell", detail="records")
    return _evidence(fields)


def is_farewell(records: RecordDict) -> bool:
    """Whether a message is a farewell: evidence, and nothing that it accompanies."""
    return FAREWELL in records


def _fields(evidence: Evidence) -> ConfigRecord:
    xid, receipt = evidence.receipt or ("", b"")
    return ConfigRecord(
        {
            "note": evidence.note.encode(),
            "receipt_xid": xid.encode(),
            "receipt": receipt,
            "cosignature": evidence.cosignature,
            "testimony": evidence.testimony,
            "heads": list(evidence.proofs),
            "proofs": [b"".join(proof) for proof in evidence.proofs.values()],
            "seen": evidence.seen,
        }
    )


def _evidence(fields: ConfigRecord, others: tuple[str, ...] = ()) -> Evidence:
    texts = _texts(fields, _EVIDENCE)
    heads, proofs, seen = (fields.get(key) for key in _OTHERS)
    if (
        fields.keys() != {*others, *_EVIDENCE, *_OTHERS}
        or not (type(seen) is int and 0 <= seen <= _MAX_NUMBER)
        or not (isinstance(heads, list) and isinstance(proofs, list) and len(heads) == len(proofs) <= _MAX_PROOFS)
        or not all(isinstance(head, int) and head >= 0 for head in heads)
        or not all(isinstance(proof, bytes) and len(proof) <= _MAX_PROOF and not len(proof) % 32 for proof in proofs)
    ):
        raise Malformed("the evidence lacks a field, or has one of another type", detail="fields")
    if len(texts["note"]) > _MAX_NOTE:
        raise TooLarge("the signed head is above the limit", detail="note")
    try:
        return Evidence(
            receipt=(texts["receipt_xid"].decode("ascii"), texts["receipt"]) if texts["receipt_xid"] else None,
            note=texts["note"].decode(),
            proofs={
                head: tuple(proof[start : start + 32] for start in range(0, len(proof), 32))
                for head, proof in zip(cast(list[int], heads), cast(list[bytes], proofs), strict=True)
            },
            seen=seen,
            cosignature=texts["cosignature"],
            testimony=texts["testimony"],
        )
    except UnicodeDecodeError as error:
        raise Malformed("the evidence's text is not UTF-8", detail="text") from error


def _texts(fields: ConfigRecord, keys: tuple[str, ...]) -> dict[str, bytes]:
    texts = {key: fields.get(key) for key in keys}
    if not all(isinstance(text, bytes) for text in texts.values()):
        raise Malformed("the envelope lacks a field, or has one of another type", detail="fields")
    known = cast(dict[str, bytes], texts)
    if max(map(len, known.values())) > MAX_DOCUMENT:
        raise TooLarge("a field of the envelope is above the limit", detail="document")
    return known


def pack_vector(vector: Vector, encoding: Encoding | None = None) -> Array:
    """A 1-D float32 vector as Flower's array, without a copy; on its way to another machine it is packed."""
    return VectorArray(np.ascontiguousarray(vector, np.float32), encoding)


def unpack_vector(array: Array, size: int | None, encoding: Encoding | None = None) -> Vector:
    """Read Flower's array as a float32 vector, without trusting its header; what is not packed is not copied.

    Args:
        array: In NumPy's file format, or packed in the encoding.
        size: Number of elements it must have; None takes the number that it declares.
        encoding: In which it may be packed.

    Raises:
        SpecMismatch: Another type, shape or length, or a header unlike the declaration.
        Malformed: It cannot be unpacked.
        TooLarge: It is longer than such a vector.
    """
    if encoding is not None and (array.stype, array.dtype) == (_PACKED, encoding.name):
        if tuple(array.shape) != (encoding.spec.size,):
            raise SpecMismatch("the array has another shape", detail="shape")
        return array.vector if isinstance(array, VectorArray) else encoding.unpack(array.data)
    if array.stype != _STYPE or array.dtype != "float32":
        pickled = array.dtype == "object"
        raise SpecMismatch("the array is not float32", detail="pickled" if pickled else "dtype")
    if size is None and len(array.shape) == 1:
        size = array.shape[0]
    if size is None or tuple(array.shape) != (size,):
        alike = tuple(array.shape) in {(1,), ()}
        raise SpecMismatch("the array has another shape", detail="broadcastable" if alike else "shape")
    if isinstance(array, VectorArray):  # it never left this machine
        return array.vector
    header = _header(size)
    if not array.data.startswith(header) or len(array.data) != len(header) + 4 * size:
        raise SpecMismatch("the array's bytes are not what it declares", detail="declared")
    return _numbers(array.data, len(header))


def _vector(records: RecordDict, size: int | None, encoding: Encoding | None) -> Vector | None:
    arrays = records.get(ARRAYS)
    if arrays is None:
        return None
    if not isinstance(arrays, ArrayRecord) or list(arrays) != [VECTOR]:
        raise SpecMismatch("the arrays have other names than the study's", detail="names")
    return unpack_vector(arrays[VECTOR], size, encoding)


def _numbers(data: bytes, start: int) -> Vector:
    return np.frombuffer(data, dtype="<f4", offset=start).astype(np.float32, copy=False)


def _header(size: int) -> bytes:
    """The bytes that NumPy's format puts before a float32 vector of this length."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (size,)})
    return buffer.getvalue()
