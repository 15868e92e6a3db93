"""What the one door promises: only what the policy names may leave, and the manifest says all of it."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import (
    ConfigError,
    DataError,
    DigestMismatch,
    IntramuralError,
    PolicyError,
    Replayed,
    Rule,
    Unusable,
)
from models.exchange.documents import MAX_METRIC, Agreement, Filter, Manifest, Refusal
from models.exchange.encoding import BOUND, Encoding, EncodingName
from models.exchange.spec import Spec, tensor_digests, update_digest
from models.exchange.survey import BANDS, band
from models.plan import Plan
from silos import gate, privacy
from silos.config import Policy
from silos.gate import Standing

POLICY: dict[str, Any] = {
    "studies": ["demo"],
    "tasks": ["classification"],
    "metrics": ["loss", "auc"],
    "min_patients": 6,
    "max_rounds": 3,
    "max_bytes": 10_000,
    "clip": 1.0,
}
SPEC = Spec.of({"head.weight": (3, 4), "head.bias": (3,), "scale": (), "nothing": (0, 2)})
SECRET = b"only this hospital knows it......"
PATIENT = "Hollowbrook^Perpetua"

MakePlan = Callable[..., Plan]
Agree = Callable[..., Agreement]


def policy(**changes: Any) -> Policy:
    return Policy.model_validate(POLICY | changes)


@pytest.fixture(scope="session")
def agree(make_plan: MakePlan) -> Agree:
    def make(coordinator_key: str = "key", initial: str = "1" * 64, **changes: Any) -> Agreement:
        return Agreement(plan=make_plan(**changes), coordinator_key=coordinator_key, initial=initial, spec=SPEC.digest)

    return make


def delta(scale: float = 0.1) -> np.ndarray:
    return (scale * np.random.default_rng(0).standard_normal(SPEC.size)).astype(np.float32)


def update(**changes: Any) -> gate.Update:
    usual: dict[str, Any] = {
        "base": "2" * 64,
        "delta": delta(),
        "patients": 12,
        "seen": 12,
        "images": 321,
        "evaluated_patients": 6,
        "rarest": 6,
        "evaluated_images": 61,
        "metrics": {"loss": 0.4567891, "auc": 0.8765432, "accuracy": 0.7654321},
    }
    return gate.Update(**usual | changes)


def release(
    what: gate.Update,
    agreement: Agreement,
    rules: Policy | None = None,
    released: Mapping[str, float] = MappingProxyType({}),
) -> gate.Release:
    return gate.release(
        rules or policy(), agreement, what, SPEC, released=released, secret=SECRET, software={"python": "3.11"}
    )


def refused(rules: Policy, agreement: Agreement, said: Standing | None = None, released: Sequence[float] = ()) -> str:
    """The word that would leave."""
    with pytest.raises(PolicyError) as caught:
        gate.permit(rules, agreement, said, released)
    return gate.refusal(caught.value).code


# --- which orders are followed ------------------------------------------------------------------------


@pytest.mark.parametrize("key", [key for key in POLICY if key != "studies"])
def test_a_policy_that_leaves_a_permission_out_is_no_policy(key: str) -> None:
    with pytest.raises(ConfigError, match=f"policy.toml: {key}: is required but missing"):
        Policy.parse({k: v for k, v in POLICY.items() if k != key}, source="policy.toml")


@pytest.mark.parametrize("key", ["min_patients", "min_evaluated"])
@pytest.mark.parametrize(
    ("least", "told"), [(10, "6 to 10 would then say exactly 10: take 11"), (2, "1 to 5 would then say 2 to 5: take 6")]
)
def test_a_limit_that_would_narrow_the_bands_in_which_counts_are_told_is_refused(
    key: str, least: int, told: str
) -> None:
    with pytest.raises(ConfigError, match=rf"policy.toml: {key}: must be 1, 6, 11, 20, 50 .* {told} \(got {least}\)"):
        Policy.parse(POLICY | {key: least}, source="policy.toml")
    for least_of_band in BANDS:
        assert Policy.parse(POLICY | {key: least_of_band}, source="policy.toml")


def test_a_policy_that_names_no_study_lets_none_in(agree: Agree) -> None:
    rules = Policy.model_validate({k: v for k, v in POLICY.items() if k != "studies"})
    assert refused(rules, agree()) == Rule.STUDY_NOT_APPROVED.value


def test_an_order_that_the_policy_names_in_every_respect_is_followed(agree: Agree) -> None:
    gate.permit(policy(), agree(), None, ())


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"studies": []}, Rule.STUDY_NOT_APPROVED),
        ({"studies": ["demo-2", "dem"]}, Rule.STUDY_NOT_APPROVED),
        ({"studies": ["demo@" + "0" * 64]}, Rule.STUDY_CHANGED),
        ({"tasks": []}, Rule.TASK),
        ({"tasks": ["segmentation", "classification-3d"]}, Rule.TASK),
        ({"max_epsilon": 1000.0}, Rule.EPSILON),
        ({"max_epsilon": 0.5, "noise": 1.0}, Rule.EPSILON),
    ],
)
def test_what_the_policy_does_not_name_is_refused_with_the_rules_word(
    agree: Agree, changes: dict[str, Any], rule: Rule
) -> None:
    assert refused(policy(**changes), agree()) == rule.value


def test_the_last_allowed_round_is_followed_and_the_next_is_not(agree: Agree) -> None:
    gate.permit(policy(max_rounds=3), agree(), None, [0.0] * 2)
    assert refused(policy(max_rounds=3), agree(), released=[0.0] * 3) == Rule.MAX_ROUNDS.value


def test_rounds_are_followed_until_the_next_would_spend_more_epsilon_than_allowed(agree: Agree) -> None:
    limit = privacy.epsilon([4.0] * 3, 1e-5) + 1e-6
    rules = policy(noise=4.0, max_epsilon=limit, max_rounds=100)
    gate.permit(rules, agree(), None, [4.0] * 2)
    assert refused(rules, agree(), released=[4.0] * 3) == Rule.EPSILON.value


def test_a_pinned_digest_lets_in_that_study_and_no_other_of_its_name(agree: Agree) -> None:
    pinned = policy(studies=[f"demo@{agree().study}"])
    gate.permit(pinned, agree(), None, ())
    assert refused(pinned, agree(rounds=6)) == Rule.STUDY_CHANGED.value


def test_a_pinned_digest_holds_even_if_the_bare_name_stands_beside_it(agree: Agree) -> None:
    rules = policy(studies=["demo", f"demo@{agree().study}"])
    assert refused(rules, agree(rounds=6)) == Rule.STUDY_CHANGED.value


def test_pinning_the_new_digest_approves_a_study_that_changed(agree: Agree) -> None:
    old, new = agree(), agree(rounds=6)
    said = Standing(first=old.study)
    assert refused(policy(), new, said) == Rule.STUDY_CHANGED.value
    gate.permit(policy(studies=[f"demo@{new.study}"]), new, said, ())
    gate.permit(policy(studies=[f"demo@{old.study}", f"demo@{new.study}"]), new, said, ())


@pytest.mark.parametrize(
    "changes",
    [
        {"coordinator_key": "another"},
        {"initial": "3" * 64},
        {"rounds": 4},
        {"seed": 1},
        {"purpose": "find something else"},
        {"metrics": ["loss", "accuracy"]},
        {"max_norm": 200.0},
        {"training": {"learning_rate": 0.2}},
        {"task": {"classes": ["lesion", "none"]}},
        {"strategy": {"name": "fedprox", "mu": 0.1}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_study_approved_once_and_changed_later_is_refused(agree: Agree, changes: dict[str, Any]) -> None:
    for rules, said in (
        (policy(), Standing(first=agree().study)),
        (policy(studies=[]), Standing(first=agree().study, approved=frozenset({agree().study}))),
    ):
        gate.permit(rules, agree(), said, ())
        assert refused(rules, agree(**changes), said) == Rule.STUDY_CHANGED.value


def test_another_study_has_its_own_approval(agree: Agree) -> None:
    rules = policy(studies=["demo", "other@" + "0" * 64])
    gate.permit(rules, agree(), None, ())
    assert refused(rules, agree(name="other")) == Rule.STUDY_CHANGED.value


def test_a_persons_yes_lets_in_exactly_that_study_whatever_the_policy_names(agree: Agree) -> None:
    old, new = agree(), agree(rounds=6)
    said = Standing(first=old.study, approved=frozenset({new.study}))
    for studies in ([], ["demo"], ["other"], [f"demo@{old.study}"]):
        gate.permit(policy(studies=studies), new, said, ())
    assert refused(policy(studies=[]), old, said) == Rule.STUDY_CHANGED.value
    gate.permit(policy(), old, said, ())  # let in by its name before


def test_a_persons_no_shuts_a_study_out_whatever_the_policy_names(agree: Agree) -> None:
    old, new = agree(), agree(rounds=6)
    said = Standing(first=old.study, revoked=frozenset({old.study}))
    for studies in ([], ["demo"], [f"demo@{old.study}"]):
        assert refused(policy(studies=studies), old, said) == Rule.STUDY_REVOKED.value
    assert refused(policy(), new, said) == Rule.STUDY_CHANGED.value  # the name does not pass on to the next one
    assert refused(policy(studies=[]), new, said) == Rule.STUDY_NOT_APPROVED.value


def test_a_persons_yes_lifts_no_limit_of_the_policy(agree: Agree) -> None:
    said = Standing(approved=frozenset({agree().study}))
    assert refused(policy(tasks=[]), agree(), said) == Rule.TASK.value
    assert refused(policy(max_rounds=3), agree(), said, released=[0.0] * 3) == Rule.MAX_ROUNDS.value


# --- which numbers leave ------------------------------------------------------------------------------


def test_only_allowed_metrics_that_were_asked_for_leave_and_the_others_are_named(agree: Agree) -> None:
    manifest = release(update(), agree(metrics=["accuracy", "auc"]), policy(metrics=["loss", "auc"])).manifest
    assert manifest.metrics == {"auc": 0.877}
    assert manifest.withheld == ["accuracy"]


def test_a_policy_without_metrics_tells_none_and_not_how_many_were_evaluated(agree: Agree) -> None:
    manifest = release(update(), agree(), policy(metrics=[])).manifest
    assert (manifest.metrics, manifest.withheld, manifest.evaluated) == ({}, ["auc", "loss"], None)


@pytest.mark.parametrize(("changes", "least"), [({}, 6), ({"min_evaluated": 1}, 1), ({"min_evaluated": 11}, 11)])
def test_metrics_of_too_few_patients_are_withheld(agree: Agree, changes: dict[str, int], least: int) -> None:
    few = release(update(evaluated_patients=least - 1, rarest=least - 1), agree(), policy(**changes)).manifest
    enough = release(update(evaluated_patients=least, rarest=least), agree(), policy(**changes)).manifest
    assert (few.metrics, few.withheld, few.evaluated) == ({}, ["auc", "loss"], None)
    assert (set(enough.metrics), enough.withheld) == ({"auc", "loss"}, [])


def test_auc_is_withheld_if_few_patients_or_none_have_one_of_the_classes(agree: Agree) -> None:
    few, none = (release(update(evaluated_patients=100, rarest=n), agree()).manifest for n in (5, 0))
    assert (set(few.metrics), few.withheld) == ({"loss"}, ["auc"])
    measured = update(evaluated_patients=100, rarest=0, metrics={"loss": 0.4567891})
    assert few == none == release(measured, agree()).manifest
    assert set(release(update(rarest=6), agree()).manifest.metrics) == {"auc", "loss"}


@given(
    measured=st.dictionaries(st.sampled_from(["loss", "auc", "accuracy", "secret"]), st.floats(), max_size=4),
    allowed=st.sets(st.sampled_from(["loss", "auc", "accuracy"])),
    wanted=st.lists(st.sampled_from(["loss", "auc", "accuracy"]), min_size=1),
    decimals=st.integers(0, 6),
)
def test_every_metric_is_told_rounded_or_withheld_and_none_is_nan(
    agree: Agree, measured: dict[str, float], allowed: set[str], wanted: list[str], decimals: int
) -> None:
    rules = policy(metrics=sorted(allowed), decimals=decimals)
    manifest = release(update(metrics=measured), agree(metrics=wanted), rules).manifest
    usable = {name for name, value in measured.items() if abs(value) <= 1e9}
    assert set(manifest.metrics) == usable & allowed & set(wanted)
    assert manifest.withheld == sorted(set(wanted) - set(manifest.metrics))
    for name, told in manifest.metrics.items():
        size = max(1.0, 10.0 ** math.floor(math.log10(max(1.0, abs(measured[name])))))
        assert abs(told - measured[name]) <= 0.500001 * size / 10**decimals
    assert Manifest.decode(manifest.encode()) == manifest  # its JSON has no place for NaN


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_no_number_is_withheld(agree: Agree, wrong: float) -> None:
    manifest = release(update(metrics={"loss": wrong, "auc": 0.5}), agree()).manifest
    assert (manifest.metrics, manifest.withheld) == ({"auc": 0.5}, ["loss"])


def test_what_was_measured_beyond_the_studys_metrics_is_in_no_byte(agree: Agree) -> None:
    encoded = release(update(metrics={"loss": 0.5, PATIENT: 0.1}), agree()).manifest.encode()
    assert PATIENT.encode() not in encoded


# --- how counts are told ------------------------------------------------------------------------------


def bands() -> Iterator[tuple[int, int]]:
    low = 1
    while low <= 1_000_000:
        ends = band(low)
        assert ends[0] <= low <= ends[1]
        yield ends
        low = ends[1] + 1


def test_bands_are_disjoint_and_cover_every_count_up_to_a_million() -> None:
    ends = list(bands())
    assert ends[0][0] == 1
    assert ends[-1][1] == 1_000_000
    assert [low for low, _ in ends] == list(BANDS)
    assert all(band(low) == band(high) == (low, high) for low, high in ends)


def test_no_band_is_so_narrow_that_it_tells_the_count() -> None:
    assert min(high - low + 1 for low, high in bands()) >= 5


@given(st.integers(1, 1_000_000))
def test_every_count_lies_in_its_band(count: int) -> None:
    low, high = band(count)
    assert low <= count <= high
    assert band(low) == band(high) == (low, high)


def test_nothing_is_a_band_of_its_own() -> None:
    assert band(0) == (0, 0)


@pytest.mark.parametrize(
    ("weights", "unit", "low", "high"),
    [("patients", "patients", 11, 19), ("images", "images", 200, 499), ("equal", "silos", 1, 1)],
)
def test_counts_are_told_as_bands_in_the_studys_unit(
    agree: Agree, weights: str, unit: str, low: int, high: int
) -> None:
    manifest = release(update(patients=12, images=321), agree(weights=weights)).manifest
    assert manifest.examples is not None
    assert (manifest.examples.unit, manifest.examples.low, manifest.examples.high) == (unit, low, high)
    assert manifest.evaluated is not None
    assert (manifest.evaluated.low, manifest.evaluated.high) == (50, 99)


def test_counts_are_exact_only_if_the_policy_says_exact(agree: Agree) -> None:
    manifest = release(update(), agree(), policy(counts="exact")).manifest
    assert manifest.examples is not None
    assert manifest.evaluated is not None
    assert (manifest.examples.low, manifest.examples.high) == (321, 321)
    assert (manifest.evaluated.low, manifest.evaluated.high) == (61, 61)
    banded = release(update(), agree()).manifest.encode()
    assert b"321" not in banded.replace(manifest.spec.encode(), b"")


def test_the_same_band_gives_the_same_manifest_whatever_the_count(agree: Agree) -> None:
    manifests = {
        release(update(patients=p, images=i, evaluated_patients=e, evaluated_images=j), agree()).manifest.encode()
        for p, i, e, j in ((11, 200, 6, 50), (19, 499, 7, 99), (12, 321, 8, 61))
    }
    assert len(manifests) == 1


# --- what leaves of an update -------------------------------------------------------------------------


def test_an_update_of_too_few_patients_stays(agree: Agree) -> None:
    for patients in range(6):
        with pytest.raises(PolicyError, match="can be trained on") as caught:
            release(update(patients=patients, seen=patients), agree())
        assert gate.refusal(caught.value).code == Rule.MIN_PATIENTS.value
    assert release(update(patients=6, seen=6), agree()).vector is not None


def test_an_update_of_steps_that_looked_at_too_few_patients_stays_whoever_else_is_there(agree: Agree) -> None:
    with pytest.raises(PolicyError, match="took images of 5 patients only, at least 6") as caught:
        release(update(patients=1000, seen=5), agree())
    assert gate.refusal(caught.value).code == Rule.MIN_PATIENTS.value
    assert "more steps, larger batches or a longer deadline" in caught.value.hint


def test_a_study_whose_steps_take_fewer_images_than_patients_are_required_is_refused_at_once(agree: Agree) -> None:
    rules, few = policy(min_patients=20), {"epochs": None, "steps": 2, "batch_size": 9}
    assert refused(rules, agree(training=few)) == Rule.MIN_PATIENTS.value
    gate.permit(rules, agree(training=few | {"batch_size": 10}), None, ())
    gate.permit(rules, agree(training={"epochs": 1, "batch_size": 1}), None, ())  # takes everybody


QFEDAVG = {"name": "qfedavg", "client_learning_rate": 0.1}


def test_a_study_that_weighs_by_loss_is_refused_at_once_where_the_policy_names_none(agree: Agree) -> None:
    rules = policy(metrics=["auc"])
    assert refused(rules, agree(strategy=QFEDAVG)) == "metric-not-allowed"
    gate.permit(rules, agree(), None, ())
    gate.permit(policy(), agree(strategy=QFEDAVG), None, ())


def test_an_update_that_cannot_be_used_for_want_of_a_loss_stays(agree: Agree) -> None:
    few = update(evaluated_patients=5)
    told = r"min_evaluated: 5 patients are held out, at least 6 are required to tell `loss`, by which qfedavg weighs"
    with pytest.raises(PolicyError, match=told) as caught:
        release(few, agree(strategy=QFEDAVG))
    assert gate.refusal(caught.value).code == Rule.METRIC.value
    with pytest.raises(PolicyError, match="loss: is no number that can be told, by which qfedavg weighs"):
        release(update(metrics={"loss": 2 * MAX_METRIC, "auc": 0.5}), agree(strategy=QFEDAVG))
    assert release(update(), agree(strategy=QFEDAVG)).vector is not None
    assert release(few, agree()).manifest.withheld == ["loss"]


@pytest.mark.parametrize(("decimals", "told"), [(0, 0.5), (3, 0.0005), (6, 5e-7)])
def test_a_loss_that_weighs_is_never_rounded_to_0(agree: Agree, decimals: int, told: float) -> None:
    nearly = update(metrics={"loss": 1e-7, "auc": 0.5})
    rules = policy(decimals=decimals)
    assert release(nearly, agree(strategy=QFEDAVG), rules).manifest.metrics["loss"] == told
    assert release(nearly, agree(), rules).manifest.metrics["loss"] == 0
    assert release(update(metrics={"loss": 0.6, "auc": 0.5}), agree(strategy=QFEDAVG)).manifest.metrics["loss"] == 0.6


def test_too_few_patients_are_refused_before_anything_is_trained() -> None:
    gate.require_patients(policy(), 6)
    with pytest.raises(PolicyError) as caught:
        gate.require_patients(policy(), 5)
    assert caught.value.rule is Rule.MIN_PATIENTS


def test_an_update_of_more_bytes_than_allowed_stays(agree: Agree) -> None:
    size = Encoding("bfloat16", SPEC).nbytes
    assert size == 2 * SPEC.size
    assert release(update(), agree(), policy(max_bytes=size)).vector is not None
    with pytest.raises(PolicyError) as caught:
        release(update(), agree(), policy(max_bytes=size - 1))
    assert gate.refusal(caught.value).code == Rule.MAX_BYTES.value


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_an_update_with_nan_or_infinity_is_unusable(agree: Agree, wrong: float) -> None:
    vector = delta()
    vector[7] = wrong
    with pytest.raises(Unusable) as caught:
        release(update(delta=vector), agree())
    assert gate.refusal(caught.value).code == "unusable"


@pytest.mark.parametrize(("noise", "scale"), [(0.0, 0.1), (0.0, 100.0), (0.5, 0.1), (0.5, 100.0)])
def test_the_manifest_lists_every_array_that_leaves_and_no_other(agree: Agree, noise: float, scale: float) -> None:
    released = release(update(delta=delta(scale)), agree(), policy(noise=noise))
    manifest, vector = released.manifest, released.vector
    assert vector is not None
    assert vector.dtype == np.float32
    assert manifest.matches(SPEC)
    assert manifest.spec == SPEC.digest
    assert manifest.digest == update_digest(SPEC, tensor_digests(SPEC, vector))
    assert [t.name for t in manifest.tensors] == ["head.bias", "head.weight", "nothing", "scale"]
    assert sum(t.bytes for t in manifest.tensors) == vector.nbytes
    raw, start = vector.astype("<f4").tobytes(), 0
    for tensor in manifest.tensors:
        part = raw[start : start + 4 * math.prod(tensor.shape)]
        start += len(part)
        assert tensor.bytes == len(part)
        assert tensor.sha256 == hashlib.sha256(part).hexdigest()
        values = np.frombuffer(part, "<f4").astype(np.float64)
        assert tensor.l2 == pytest.approx(math.sqrt(math.fsum(values**2)), rel=1e-12)
    assert manifest.norm == pytest.approx(np.linalg.norm(vector.astype(np.float64)), rel=1e-12)


def test_without_noise_no_update_is_longer_than_the_clip_and_a_short_one_is_untouched(agree: Agree) -> None:
    exact = agree(encoding="float32")
    long, short = release(update(delta=delta(100)), exact), release(update(delta=delta(0.01)), exact)
    assert long.vector is not None
    assert np.linalg.norm(long.vector.astype(np.float64)) == pytest.approx(1.0)
    assert long.manifest.norm is not None
    assert long.manifest.norm <= 1.0
    assert short.vector is not None
    assert short.vector.tobytes() == delta(0.01).tobytes()
    assert long.manifest.filters == short.manifest.filters == [Filter(name="clip", bound=1.0)]
    assert long.manifest.privacy is None


@pytest.mark.parametrize("name", ["bfloat16", "compact"])
def test_an_update_is_rounded_as_the_study_says_and_no_longer_than_the_clip(agree: Agree, name: EncodingName) -> None:
    agreement, encoding = agree(encoding=name), Encoding(name, SPEC)
    short, bound = release(update(delta=delta(0.01)), agreement), BOUND if name == "compact" else None
    assert short.vector is not None
    assert short.vector.tobytes() == encoding.rounded(delta(0.01)).tobytes()
    assert short.manifest.filters == [Filter(name="clip", bound=1.0), Filter(name=name, bound=bound)]
    for seed in range(20):
        scale = np.random.default_rng(seed).uniform(0.5, 2)
        long = release(update(delta=delta(scale)), agreement)
        assert long.manifest.norm is not None
        assert 0.9 * min(scale, 1) < long.manifest.norm <= 1
        assert encoding.pack(long.vector)


def test_noise_comes_after_the_clip_and_the_epsilon_of_all_rounds_is_told(agree: Agree) -> None:
    rules = policy(clip=2.0, noise=1.5, delta=1e-6)
    released = release(update(delta=delta(100)), agree(encoding="float32"), rules, {"a" * 64: 1.5, "b" * 64: 1.5})
    clipped = privacy.clip(delta(100), 2.0)
    assert released.vector is not None
    assert released.vector.tobytes() == privacy.add_noise(clipped, 3.0, SECRET).tobytes()
    assert released.manifest.filters == [Filter(name="clip", bound=2.0), Filter(name="noise", sd=3.0)]
    assert released.manifest.privacy is not None
    assert released.manifest.privacy.delta == 1e-6
    assert released.manifest.privacy.epsilon == pytest.approx(privacy.epsilon([1.5] * 3, 1e-6), abs=1e-6)
    assert gate.noise_of(released.manifest) == pytest.approx(1.5)


def test_an_update_that_is_told_again_costs_no_epsilon_and_after_one_without_noise_none_is_told(agree: Agree) -> None:
    rules = policy(noise=1.5)
    first = release(update(), agree(), rules).manifest
    assert first.digest is not None
    assert release(update(), agree(), rules, {first.digest: 1.5}).manifest == first
    other = release(update(delta=delta(0.2)), agree(), rules, {first.digest: 1.5}).manifest
    assert other.privacy is not None
    assert other.privacy.epsilon == pytest.approx(privacy.epsilon([1.5] * 2, rules.delta), abs=1e-6)
    bare = release(update(), agree()).manifest
    assert bare.digest is not None
    assert gate.noise_of(bare) == 0
    assert release(update(), agree(), rules, {bare.digest: 0.0}).manifest.privacy is None
    assert refused(policy(noise=1.5, max_epsilon=1e6), agree(), released=[0.0]) == Rule.EPSILON.value


@pytest.mark.parametrize(
    ("value", "told"), [(0.6931472, 0.693), (9.87654, 9.877), (12.34567, 12.35), (650123.4, 650100)]
)
def test_a_large_number_is_told_with_hardly_more_digits_than_a_small_one(
    agree: Agree, value: float, told: float
) -> None:
    measured = update(metrics={"loss": value})
    assert release(measured, agree()).manifest.metrics["loss"] == told


def test_the_gate_leaves_the_hospitals_own_update_as_it_was(agree: Agree) -> None:
    vector = delta(100)
    before = vector.tobytes()
    release(update(delta=vector), agree(), policy(noise=1.0))
    assert vector.tobytes() == before


def test_a_report_has_metrics_and_no_array_and_tells_nothing_of_training(agree: Agree) -> None:
    released = release(update(delta=None, patients=1, images=3), agree())
    manifest = released.manifest
    assert released.vector is None
    assert (manifest.digest, manifest.norm, manifest.tensors, manifest.filters) == (None, None, [], [])
    assert (manifest.examples, manifest.privacy) == (None, None)
    assert manifest.metrics == {"auc": 0.877, "loss": 0.457}
    assert manifest.evaluated is not None


# --- what is said when something is not done ----------------------------------------------------------


@pytest.mark.parametrize(
    "error", [ValueError(PATIENT), KeyError(PATIENT), OSError(2, "no such file", f"/dicom/{PATIENT}")]
)
def test_of_a_foreign_error_that_names_a_patient_one_word_leaves(error: Exception) -> None:
    assert json.loads(gate.refusal(error).encode()) == {"code": "internal", "v": 1}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError(f"/dicom/{PATIENT}", PATIENT), "data"),
        (ConfigError(PATIENT, PATIENT), "config"),
        (PolicyError(Rule.TASK, PATIENT, PATIENT), "task-not-allowed"),
        (DigestMismatch(PATIENT, PATIENT), "digest-mismatch"),
        (Replayed(PATIENT, PATIENT, detail="round"), "replayed.round"),
        (IntramuralError(PATIENT), "internal"),
    ],
)
def test_of_our_own_errors_only_the_classs_word_leaves(error: IntramuralError, code: str) -> None:
    error.__cause__ = ValueError(PATIENT)
    assert json.loads(gate.refusal(error).encode()) == {"code": code, "v": 1}


def kinds(kind: type[IntramuralError] = IntramuralError) -> Iterator[type[IntramuralError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from kinds(child)


def test_every_error_and_every_rule_has_a_word_that_a_refusal_can_carry() -> None:
    words = [kind.code for kind in kinds()] + [rule.value for rule in Rule]
    assert len(words) > 20
    for word in words:
        assert Refusal(code=word).code == word


def test_training_in_less_than_float32_is_told_and_nothing_else_changes_the_manifest(agree: Agree) -> None:
    agreement = agree()
    half = release(update(precision="bfloat16"), agreement).manifest
    full = release(update(), agreement).manifest
    assert half.precision == "bfloat16"
    assert b"precision" not in full.encode()
    assert half.model_copy(update={"precision": None}) == full


def test_a_survey_that_tells_the_sides_hides_what_their_sum_would_give_away() -> None:
    # 31 patients or more are on the two sides, and at most 29 in the two classes that could be told.
    totals = dict.fromkeys(("patients", "studies", "series", "images"), 31)
    tables = {"classes": {"a": 19, "b": 10, "c": 2}, "sides": {"train": 20, "held out": 11}}
    alone = gate.survey(policy(survey=["classes"]), totals, tables).tables["classes"]  # type: ignore[arg-type]
    assert {cell: str(told) for cell, told in alone.items()} == {"a": "11-19", "b": "6-10", "c": "None"}
    both = gate.survey(policy(survey=["classes", "sides"]), totals, tables).tables  # type: ignore[arg-type]
    assert {cell: str(told) for cell, told in both["sides"].items()} == {"train": "20-49", "held out": "11-19"}
    assert both["classes"] == dict.fromkeys("abc")
