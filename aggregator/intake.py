"""Whether a reply may be used: pure checks, one refusal code each, nothing believed.

By the time a reply is here, its signature, its place in the sender's chain and the digests of document
and arrays have been verified. What is left is what a signed reply can still be wrong about: another
round, another model, other arrays, numbers that would poison the mean.
"""

import math
from dataclasses import dataclass

import numpy as np

from models.errors import (
    BadWeight,
    DigestMismatch,
    Malformed,
    NotFinite,
    Replayed,
    SpecMismatch,
    StaleBase,
    TooLarge,
)
from models.exchange.channel import Received
from models.exchange.documents import MAX_METRIC, Closing, Examples, Manifest, Refusal, Survey
from models.exchange.encoding import Encoding
from models.exchange.spec import Spec, norm
from models.exchange.statement import Kind
from models.plan import Plan

MAX_EXAMPLES = 1_000_000
"""No hospital has more images or patients in one study."""

LEAST_LOSS = 5e-7
"""No hospital tells a smaller one where it weighs: half of the last decimal that a policy can ask for."""

_ANSWERS = {"survey": Kind.SURVEY, "train": Kind.UPDATE, "evaluate": Kind.REPORT, "close": Kind.CLOSING}
_UNITS = {"patients": "patients", "images": "images", "equal": "silos"}


@dataclass(frozen=True)
class Asked:
    """What the reply must answer.

    Attributes:
        visit: `survey`, `train`, `evaluate` or `close`.
        round: The study's round.
        order: xid of the order.
        base: Digest of the model that was sent.
    """

    visit: str
    round: int
    order: str
    base: str


def check(received: Received, asked: Asked, plan: Plan, spec: Spec) -> Manifest | Survey | Refusal | Closing:
    """Read a verified reply.

    Args:
        received: The reply.
        asked: What it must answer.
        plan: The study's plan.
        spec: The study's arrays.

    Returns:
        The manifest of an update or report, a survey, a silo's refusal, or its closing.

    Raises:
        ProtocolError: It may not be used; its wire code says why.
    """
    statement, envelope = received.statement, received.envelope
    if (statement.round, statement.answers) != (asked.round, asked.order):
        raise Replayed(f"answers another order than that of round {asked.round}", detail="round")
    if statement.kind is Kind.REFUSAL:
        return Refusal.decode(envelope.body)
    expected = _ANSWERS[asked.visit]
    if statement.kind is not expected:
        raise Malformed(f"is {statement.kind}, not {expected}", detail="kind")
    if statement.kind is Kind.CLOSING:
        return Closing.decode(envelope.body)
    if statement.kind is Kind.SURVEY:
        return _survey(envelope.body, plan)

    manifest = Manifest.decode(envelope.body)
    if manifest.base != asked.base:
        raise StaleBase("was made from another model than this round's")
    if manifest.spec != spec.digest:
        raise SpecMismatch("names another layout than the study's", detail="spec")
    if manifest.evaluated is not None:
        _check_examples(manifest.evaluated, "images")
    if any(abs(value) > MAX_METRIC for value in manifest.metrics.values()):
        raise Malformed("tells a number that no metric has", detail="metric")
    if statement.kind is Kind.UPDATE:
        loss = manifest.metrics.get("loss", 0.0) if manifest.evaluated else 0.0
        if plan.strategy.weighs_by_loss and loss < LEAST_LOSS:
            raise Malformed(f"tells no loss of at least {LEAST_LOSS}, by which qfedavg weighs", detail="metric")
        _check_update(manifest, received, plan, spec)
    elif manifest.digest is not None or envelope.vector is not None:
        raise Malformed("is a report, but names arrays", detail="report")
    return manifest


def _survey(body: bytes, plan: Plan) -> Survey:
    survey = Survey.decode(body)
    classes = survey.tables.get("classes")
    if classes is not None and set(classes) != set(plan.task.classes):
        raise Malformed("tells other classes than the study's", detail="survey")
    return survey


def _check_update(manifest: Manifest, received: Received, plan: Plan, spec: Spec) -> None:
    vector, tensors = received.envelope.vector, received.tensors
    if vector is None or manifest.digest != received.statement.payload:
        raise DigestMismatch("the manifest lists other arrays than those that came", detail="manifest")
    if not manifest.matches(spec):
        raise SpecMismatch("the manifest lists other arrays than the study's", detail="tensors")
    for listed, tensor, came in zip(manifest.tensors, spec.tensors, tensors, strict=True):
        if listed.bytes != 4 * tensor.size or listed.sha256 != came:
            raise DigestMismatch(f"{listed.name} is not the array that the manifest lists", detail="tensor")
    length = norm(vector)
    if not math.isfinite(length):
        nan = bool(np.isnan(vector).any())
        raise NotFinite("the update holds NaN or infinity", detail="nan" if nan else "infinite")
    nbytes = Encoding(plan.encoding, spec).nbytes
    if nbytes > plan.max_bytes:
        raise TooLarge(f"{nbytes} bytes are above max_bytes = {plan.max_bytes}", detail="bytes")
    if length > plan.max_norm:
        raise TooLarge(f"a norm of {length:.3g} is above max_norm = {plan.max_norm}", detail="norm")
    if (manifest.work is None) != (plan.stragglers == "drop"):
        raise Malformed("tells of partial work in a study that takes none, or does not in one that does", detail="work")
    if manifest.examples is None:
        raise BadWeight("the update names no number of examples", detail="missing")
    _check_examples(manifest.examples, _UNITS[plan.weights])


def _check_examples(examples: Examples, unit: str) -> None:
    low, high = examples.low, examples.high
    if not (math.isfinite(low) and math.isfinite(high)):
        raise BadWeight("the number of examples is not a number", detail="not-a-number")
    if examples.unit != unit:
        raise BadWeight(f"counts {examples.unit}, not {unit}", detail="unit")
    if low <= 0 or high < low:
        raise BadWeight(f"{low} to {high} is no number of examples", detail="not-positive")
    if high > MAX_EXAMPLES or (unit == "silos" and (low, high) != (1, 1)):
        raise BadWeight(f"{high} {unit} are more than one silo has", detail="too-many")
