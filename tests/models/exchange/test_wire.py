"""An envelope goes into a Flower message and comes out whole; a stranger's message costs nothing to refuse."""

import io
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import Malformed, SpecMismatch, TooLarge
from models.exchange import wire
from models.exchange.encoding import Encoding
from models.exchange.spec import Spec, Vector
from models.exchange.statement import Envelope, Evidence

SIZE = 12
VECTOR = np.linspace(-1, 1, SIZE, dtype=np.float32)

hashes = st.binary(min_size=32, max_size=32)
evidences = st.builds(
    Evidence,
    receipt=st.none() | st.tuples(st.text("0123456789abcdef", min_size=64, max_size=64), st.binary(max_size=64)),
    note=st.text(st.characters(codec="utf-8"), max_size=80),
    proofs=st.dictionaries(st.integers(1, 2**40), st.lists(hashes, max_size=20).map(tuple), max_size=5),
    seen=st.integers(0, 2**40),
)


def envelope(vector: Vector | None = VECTOR) -> Envelope:
    evidence = Evidence(("a" * 64, b"r" * 64), "note\n", {3: (b"h" * 32,), 5: ()}, 7)
    return Envelope(b"{}", b"s" * 64, b"{}", evidence, vector)


def same(one: Envelope, other: Envelope) -> bool:
    def rest(item: Envelope) -> tuple[object, ...]:
        return item.statement, item.signature, item.body, item.evidence

    if one.vector is None or other.vector is None:
        return rest(one) == rest(other) and one.vector is other.vector
    return rest(one) == rest(other) and one.vector.tobytes() == other.vector.tobytes()


def stored(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


@settings(deadline=None)
@given(
    statement=st.binary(max_size=80),
    body=st.binary(max_size=200),
    evidence=evidences,
    size=st.none() | st.integers(0, 5000),
)
def test_an_envelope_comes_out_as_it_went_in(
    statement: bytes, body: bytes, evidence: Evidence, size: int | None
) -> None:
    vector = None
    if size is not None:
        vector = np.random.default_rng(size).integers(0, 2**32, size, dtype=np.uint32).view(np.float32)
    sent = Envelope(statement, b"s" * 64, body, evidence, vector)

    assert same(wire.unpack(wire.pack(sent), size), sent)
    # As SuperLink and SuperNode carry it.
    assert same(wire.unpack(recorddict_from_proto(recorddict_to_proto(wire.pack(sent)))), sent)


@pytest.mark.parametrize("size", [SIZE, None])
def test_a_vector_is_read_where_it_lies(size: int | None) -> None:
    array = wire.pack_vector(VECTOR)
    here = wire.unpack_vector(array, size)
    assert np.shares_memory(here, VECTOR)  # nothing was sent, so nothing was made of it

    came = Array("float32", array.shape, "numpy.ndarray", array.data)
    there = wire.unpack_vector(came, size)
    assert np.shares_memory(there, np.frombuffer(came.data, np.uint8))
    assert [vector.dtype for vector in (here, there)] == [np.float32] * 2
    assert not here.flags.writeable
    assert not there.flags.writeable


def test_a_vector_travels_as_flower_s_own_array() -> None:
    array, own = wire.pack_vector(VECTOR), Array(VECTOR)
    assert array.deflate() == own.deflate()
    assert get_all_nested_objects(array).keys() == get_all_nested_objects(own).keys()
    assert array.object_id == own.object_id


def test_a_vector_that_is_sent_lies_in_memory_once() -> None:
    array = wire.VectorArray(VECTOR.copy())
    data = np.frombuffer(array.data, np.uint8)
    assert np.shares_memory(wire.unpack_vector(array, SIZE), data)


def test_reading_a_large_vector_takes_no_memory_of_its_size() -> None:
    array = wire.pack_vector(np.zeros(4_000_000, np.float32))
    tracemalloc.start()
    try:
        vector = wire.unpack_vector(array, 4_000_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert vector.size == 4_000_000
    assert peak < 100_000


def test_what_flower_packs_itself_is_read_too() -> None:
    assert wire.unpack_vector(Array(VECTOR), SIZE).tobytes() == VECTOR.tobytes()


def test_several_messages_can_share_one_packed_vector() -> None:
    array = wire.pack_vector(VECTOR)
    records = [wire.pack(envelope(), array) for _ in range(3)]
    assert all(record["arrays"]["vector"] is array for record in records)


class Spy:
    """Unpickled, it leaves a trace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("declared", ["object", "float32"])
def test_a_pickle_is_refused_and_never_run(tmp_path: Path, declared: str) -> None:
    trace = tmp_path / "trace"
    data = stored(np.array([Spy(trace)] * SIZE, dtype=object), allow_pickle=True)
    with pytest.raises(SpecMismatch) as caught:
        wire.unpack_vector(Array(declared, (SIZE,), "numpy.ndarray", data), SIZE)
    assert (
        caught.value.wire_code
        == {
            "object": "spec-mismatch.pickled",
            "float32": "spec-mismatch.declared",
        }[declared]
    )
    assert not trace.exists()


def lying(shape: str) -> bytes:
    """NumPy's format with a header of that shape and eight bytes of data."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(8)


@pytest.mark.parametrize("size", [None, 10**12])
@pytest.mark.parametrize("shape", ["(1000000000000,)", "(12,)", "(-1,)", "(2,)"])
def test_an_array_that_declares_more_than_it_brings_is_refused_before_anything_is_allocated(
    size: int | None, shape: str
) -> None:
    array = Array("float32", (10**12,), "numpy.ndarray", lying(shape))
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with pytest.raises(SpecMismatch) as caught:
            wire.unpack_vector(array, size)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.wire_code == "spec-mismatch.declared"
    assert peak < 100_000
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    ("array", "code"),
    [
        (Array(VECTOR.astype(np.float64)), "dtype"),
        (Array(VECTOR.astype(np.float16)), "dtype"),
        (Array(VECTOR.astype(np.int8)), "dtype"),
        (Array(VECTOR.astype(">f4")), "dtype"),
        (Array("float32", (SIZE,), "torch.Tensor", stored(VECTOR)), "dtype"),
        (Array(VECTOR[:3]), "shape"),
        (Array(VECTOR.reshape(3, 4)), "shape"),
        (Array(np.zeros(0, np.float32)), "shape"),
        (Array(VECTOR[:1]), "broadcastable"),
        (Array(np.array(1, np.float32)), "broadcastable"),
        (Array("float32", (SIZE,), "numpy.ndarray", stored(VECTOR[:-1])), "declared"),
        (Array("float32", (SIZE,), "numpy.ndarray", stored(VECTOR.astype(">f4"))), "declared"),
        (Array("float32", (SIZE,), "numpy.ndarray", stored(VECTOR.view(np.int32))), "declared"),
        (Array("float32", (SIZE,), "numpy.ndarray", stored(VECTOR) + b"\0"), "declared"),
        (Array("float32", (SIZE,), "numpy.ndarray", stored(VECTOR)[:-1]), "declared"),
        (Array("float32", (SIZE,), "numpy.ndarray", b""), "declared"),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}" if isinstance(value, Array) else value,
)
def test_an_array_of_another_kind_is_refused_by_a_word_of_its_own(array: Array, code: str) -> None:
    with pytest.raises(SpecMismatch) as caught:
        wire.unpack_vector(array, SIZE)
    assert caught.value.wire_code == f"spec-mismatch.{code}"


@given(data=st.binary(max_size=200), shape=st.lists(st.integers(-2, 2**62), max_size=3).map(tuple))
def test_any_bytes_of_any_shape_are_read_or_refused(data: bytes, shape: tuple[int, ...]) -> None:
    with pytest.raises(SpecMismatch):
        wire.unpack_vector(Array("float32", shape, "numpy.ndarray", b"\x93NUMPY" + data), None)


FIELDS = list(wire.pack(envelope())["intramural"])


@pytest.mark.parametrize("field", FIELDS)
def test_an_envelope_that_lacks_a_field_is_refused(field: str) -> None:
    records = wire.pack(envelope())
    del records["intramural"][field]
    with pytest.raises(Malformed) as caught:
        wire.unpack(records, SIZE)
    assert caught.value.wire_code == "malformed.fields"


@pytest.mark.parametrize("value", ["text", 1.5, [1.5], ["text"], -1, [-1], b"", [b"h" * 31]], ids=repr)
@pytest.mark.parametrize("field", FIELDS)
def test_an_envelope_with_a_field_of_another_type_is_refused(field: str, value: Any) -> None:
    records = wire.pack(envelope())
    if type(records["intramural"][field]) is type(value) is bytes:
        return  # empty bytes are bytes; what they stand for is judged by whoever verifies them
    records["intramural"][field] = value
    with pytest.raises(Malformed) as caught:
        wire.unpack(records, SIZE)
    assert caught.value.wire_code == "malformed.fields"


@pytest.mark.parametrize("seen", [2**62, -1, True])
def test_a_number_that_no_ledger_line_could_hold_is_refused(seen: int) -> None:
    records = wire.pack(envelope())
    records["intramural"]["seen"] = seen
    with pytest.raises(Malformed) as caught:
        wire.unpack(records, SIZE)
    assert caught.value.wire_code == "malformed.fields"


def test_an_envelope_with_a_field_that_nobody_reads_is_refused() -> None:
    records = wire.pack(envelope())
    records["intramural"]["remark"] = b"DOE^JOHN"
    with pytest.raises(Malformed) as caught:
        wire.unpack(records, SIZE)
    assert caught.value.wire_code == "malformed.fields"


@pytest.mark.parametrize(
    "records",
    [
        RecordDict(),
        RecordDict({"intramural": MetricRecord({"loss": 1.0})}),
        RecordDict({"intramural": ArrayRecord()}),
        RecordDict({**wire.pack(envelope()), "metrics": MetricRecord({"num-examples": 1})}),
        RecordDict({"arrays": ArrayRecord({"vector": Array(VECTOR)})}),
    ],
    ids=["empty", "metrics", "arrays", "one more", "only arrays"],
)
def test_a_message_of_other_records_is_no_envelope(records: RecordDict) -> None:
    with pytest.raises(Malformed) as caught:
        wire.unpack(records, SIZE)
    assert caught.value.wire_code == "malformed.records"


@pytest.mark.parametrize(
    "arrays",
    [
        ArrayRecord(),
        ArrayRecord({"weights": Array(VECTOR)}),
        ArrayRecord({"vector": Array(VECTOR), "more": Array(VECTOR)}),
        ConfigRecord({"vector": b""}),
    ],
    ids=["none", "another name", "two", "no arrays"],
)
def test_arrays_of_other_names_are_refused(arrays: ArrayRecord | ConfigRecord) -> None:
    records = wire.pack(envelope(None))
    records["arrays"] = arrays
    with pytest.raises(SpecMismatch) as caught:
        wire.unpack(records, SIZE)
    assert caught.value.wire_code == "spec-mismatch.names"


@pytest.mark.parametrize("field", ["statement", "signature", "body", "note", "receipt_xid", "receipt"])
def test_a_field_above_the_limit_is_refused(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_DOCUMENT", 1000)
    records = wire.pack(envelope())
    records["intramural"][field] = b"a" * 1001
    with pytest.raises(TooLarge) as caught:
        wire.unpack(records, SIZE)
    assert caught.value.wire_code == "too-large.document"


def test_more_proofs_than_any_honest_sender_needs_are_refused() -> None:
    records = wire.pack(envelope())
    records["intramural"]["heads"] = list(range(5000))
    records["intramural"]["proofs"] = [b"h" * 32] * 5000
    with pytest.raises(Malformed):
        wire.unpack(records, SIZE)


@pytest.mark.parametrize("field", ["note", "receipt_xid"])
def test_text_that_is_not_unicode_is_refused(field: str) -> None:
    records = wire.pack(envelope())
    records["intramural"][field] = b"\xff\xfe"
    with pytest.raises(Malformed):
        wire.unpack(records, SIZE)


PACKED = Encoding("compact", Spec.of({"a": [2, 3], "b": [6]}))


def test_an_update_travels_packed_or_as_it_is_and_is_the_same() -> None:
    sent = replace(envelope(PACKED.rounded(VECTOR)), encoding=PACKED)
    here = wire.pack(sent)
    away = recorddict_from_proto(recorddict_to_proto(here))
    assert wire.unpack(here, SIZE, PACKED).vector is not None
    assert len(away[wire.ARRAYS][wire.VECTOR].data) < 2 * PACKED.nbytes + 64
    for records in (here, away, wire.pack(replace(sent, encoding=None))):
        came = wire.unpack(records, SIZE, PACKED)
        assert same(came, sent)
        assert came.nbytes == sent.nbytes == len(sent.body) + PACKED.nbytes


def test_a_pack_is_read_only_in_the_studys_encoding_and_of_its_size() -> None:
    here = wire.pack(replace(envelope(PACKED.rounded(VECTOR)), encoding=PACKED))
    records = recorddict_from_proto(recorddict_to_proto(here))
    array = records[wire.ARRAYS][wire.VECTOR]
    for other in (None, Encoding("bfloat16", PACKED.spec), Encoding("float32", PACKED.spec)):
        with pytest.raises(SpecMismatch):
            wire.unpack(records, SIZE, other)
    with pytest.raises(SpecMismatch):
        wire.unpack_vector(Array(array.dtype, (SIZE + 1,), array.stype, array.data), SIZE, PACKED)
    with pytest.raises(Malformed):
        wire.unpack_vector(Array(array.dtype, array.shape, array.stype, array.data[:-1]), SIZE, PACKED)
