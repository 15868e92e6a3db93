"""Documents are read strictly, and an error about one never repeats what stood in it."""

import json
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import Malformed
from models.exchange import documents
from models.exchange.documents import (
    MAX_DOCUMENT,
    Agreement,
    Closing,
    Document,
    Examples,
    Manifest,
    Order,
    Refusal,
)
from models.exchange.spec import Spec
from models.plan import Plan

PATIENT = "DOE^JOHN"
SPEC = Spec.of({"bias": (2,), "weight": (2, 2)})
PLAN = Plan.model_validate(
    {
        "name": "toy",
        "purpose": "Test.",
        "rounds": 2,
        "task": {
            "name": "classification",
            "classes": ["none", "lesion"],
            "modality": ["MR"],
            "size": [8, 8],
            "percentiles": [1.0, 99.0],
            "network": {"name": "cnn"},
        },
        "training": {"steps": 1, "learning_rate": 0.1},
    }
)
AGREEMENT = Agreement(plan=PLAN, coordinator_key="aggregator+0+key", initial="1" * 64, spec=SPEC.digest)
MANIFEST = Manifest.model_validate(
    {
        "base": "1" * 64,
        "spec": SPEC.digest,
        "digest": "2" * 64,
        "norm": 1.5,
        "tensors": [
            {"name": t.name, "shape": t.shape, "bytes": 4 * t.size, "sha256": "3" * 64, "l2": 1.0} for t in SPEC.tensors
        ],
        "filters": [{"name": "clip", "bound": 10.0}],
        "examples": {"unit": "images", "low": 20, "high": 49},
        "metrics": {"auc": 0.9},
        "withheld": ["loss"],
        "software": {"python": "3.11"},
    }
)
FIRST = Agreement(
    plan=PLAN.model_copy(update={"encoding": "float32"}),
    coordinator_key="aggregator+0+key",
    initial="1" * 64,
    spec=SPEC.digest,
)
EVERY = [
    AGREEMENT,
    Order(agreement=AGREEMENT, round=1, visit="train", base="1" * 64),
    MANIFEST,
    Refusal(code="too-few-patients"),
    Closing(orders=3, replies=2, records=17),
]
each = pytest.mark.parametrize("document", EVERY, ids=lambda document: type(document).__name__)


def test_an_order_says_of_control_variates_only_where_there_are_some() -> None:
    order = Order(agreement=AGREEMENT, round=3, visit="train", base="1" * 64)
    assert b"counted" not in order.encode()
    assert b'"counted":2' in order.model_copy(update={"counted": 2}).encode()
    with pytest.raises(Malformed):
        Order.decode(order.model_copy(update={"counted": 3}).encode())  # its own round


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def changed(document: Document, **changes: Any) -> bytes:
    return json.dumps({**document.model_dump(mode="json"), **changes}).encode()


@each
def test_a_document_that_was_encoded_reads_as_itself(document: Document) -> None:
    again = type(document).decode(document.encode())
    assert again == document
    assert again.encode() == document.encode()


@each
def test_an_unknown_key_is_refused(document: Document) -> None:
    with pytest.raises(Malformed):
        type(document).decode(changed(document, note="also"))


@each
@pytest.mark.parametrize("version", [0, 2, "1.1", None])
def test_another_version_is_refused(document: Document, version: object) -> None:
    with pytest.raises(Malformed):
        type(document).decode(changed(document, v=version))


@each
def test_a_document_above_the_limit_is_not_even_parsed(document: Document, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents.json, "loads", lambda content: pytest.fail("it was parsed"))
    with pytest.raises(Malformed, match="above the limit"):
        type(document).decode(b" " * (MAX_DOCUMENT + 1))


@each
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no JSON",
        b"{",
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b"1",
        b"[" * 100_000,
        b'{"v":' * 100_000,
        b"1" * 5000,
        b'{"v":1' + b"0" * 5000 + b"}",
    ],
    ids=lambda content: content[:10].decode("latin-1"),
)
def test_what_is_no_document_is_refused(document: Document, content: bytes) -> None:
    with pytest.raises(Malformed):
        type(document).decode(content)


@given(content=st.binary(max_size=64) | json_values.map(lambda value: json.dumps(value).encode()))
@pytest.mark.parametrize("kind", [Manifest, Order, Refusal, Closing, Agreement])
def test_a_stranger_can_send_anything_and_get_nothing_but_a_refusal(kind: type[Document], content: bytes) -> None:
    with pytest.raises(Malformed):
        kind.decode(content)


@given(key=st.sampled_from(sorted(Manifest.model_fields)), value=json_values)
def test_any_value_in_any_place_of_a_manifest_is_read_or_refused(key: str, value: Any) -> None:
    try:
        manifest = Manifest.decode(changed(MANIFEST, **{key: value}))
    except Malformed:
        return
    manifest.matches(SPEC)  # what was read can be used


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("place", ['"norm":1.5', '"auc":0.9', '"l2":1', '"bound":10'])
def test_a_manifest_with_a_number_that_is_none_is_refused(place: str, number: str) -> None:
    content = MANIFEST.encode().decode()
    assert place in content
    key = place.partition(":")[0]
    with pytest.raises(Malformed):
        Manifest.decode(content.replace(place, f"{key}:{number}").encode())


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (Refusal, {"code": PATIENT}),
        (Refusal, {"code": "internal", PATIENT: 1}),
        (Manifest, {**MANIFEST.model_dump(mode="json"), "base": PATIENT}),
        (Manifest, {**MANIFEST.model_dump(mode="json"), "software": {PATIENT: 1}}),
        (Manifest, {**MANIFEST.model_dump(mode="json"), "metrics": {PATIENT: 0.5}}),
        (Manifest, {**MANIFEST.model_dump(mode="json"), "tensors": [{PATIENT: "x"}]}),
        (Order, PATIENT),
    ],
    ids=["a value", "a key", "a digest", "a package", "a metric", "an array", "all of it"],
)
def test_an_error_about_a_document_repeats_nothing_of_its_content(kind: type[Document], content: object) -> None:
    with pytest.raises(Malformed) as caught:
        kind.decode(json.dumps(content).encode())
    assert PATIENT not in str(caught.value)
    assert PATIENT not in caught.value.wire_code


def test_not_even_the_traceback_of_an_error_repeats_what_a_stranger_sent() -> None:
    with pytest.raises(Malformed) as caught:
        Refusal.decode(json.dumps({"code": PATIENT}).encode())
    assert PATIENT not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("code", ["", "Upper", "two words", "line\n", "ü", "a" * 64, "../x", "x/y"])
def test_a_refusal_is_one_plain_word(code: str) -> None:
    with pytest.raises(Malformed):
        Refusal.decode(json.dumps({"code": code}).encode())


def test_the_identity_of_a_study_changes_with_every_part_of_what_is_agreed() -> None:
    others = [
        AGREEMENT.model_copy(update={"plan": PLAN.model_copy(update={"min_silos": 1})}),
        AGREEMENT.model_copy(update={"coordinator_key": "other"}),
        AGREEMENT.model_copy(update={"initial": "4" * 64}),
        AGREEMENT.model_copy(update={"spec": "5" * 64}),
    ]
    assert len({item.study for item in [AGREEMENT, *others]}) == 5


def test_the_weight_of_a_band_is_its_middle_and_of_a_count_the_count() -> None:
    assert Examples(unit="images", low=20, high=49).weight == 34.5
    assert Examples(unit="images", low=37, high=37).weight == 37


@pytest.mark.parametrize(
    "other",
    [{"bias": (2,)}, {"bias": (2,), "weight": (4,)}, {"bias": (2,), "weights": (2, 2)}, {}],
    ids=["one less", "another shape", "another name", "none"],
)
def test_a_manifest_matches_the_layout_that_it_lists_and_no_other(other: dict[str, tuple[int, ...]]) -> None:
    assert MANIFEST.matches(SPEC)
    assert not MANIFEST.matches(Spec.of(other))


@pytest.mark.parametrize("content", [b'{"v":1,"code":"a","code":"b"}', b'{"code":"b","code":"b"}'])
def test_a_document_that_says_a_thing_twice_is_refused(content: bytes) -> None:
    with pytest.raises(Malformed):
        Refusal.decode(content)


def test_an_agreement_that_is_older_than_encodings_keeps_its_digest_and_its_meaning() -> None:
    assert b"encoding" not in FIRST.encode()
    assert Agreement.decode(FIRST.encode()) == FIRST
    assert Agreement.decode(FIRST.encode()).plan.encoding == "float32"
    assert b'"encoding":"bfloat16"' in AGREEMENT.encode()
