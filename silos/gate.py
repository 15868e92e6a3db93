"""The one door: everything that says anything of a hospital's data is made here, from what its own policy allows.

Pure functions, no files and no network. `permit` decides whether an order may be followed at all;
`release` turns an update (or only metrics) into exactly what may leave, with the manifest that lists
it; `survey` tells in bands what could be trained on; `refusal` is all that is said when something is not
done. Deny by default: a metric, a study, a task or a field of a survey that the policy does not name stays
inside.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from models.errors import IntramuralError, PolicyError, Rule
from models.exchange.documents import (
    MAX_METRIC,
    Agreement,
    Band,
    Examples,
    Filter,
    Manifest,
    Privacy,
    Refusal,
    Survey,
    Tensor,
)
from models.exchange.encoding import BOUND, Encoding
from models.exchange.spec import Spec, Vector, norm, tensor_digests, update_digest
from models.exchange.survey import TableName, Total, band
from models.plan import MetricName, Plan
from silos import privacy
from silos.config import Policy
from silos.suppression import suppress

_LONGER = "ask the coordinator for more steps, larger batches or a longer deadline"


@dataclass(frozen=True)
class Update:
    """What a visit produced, before the policy. Never leaves as it is.

    Attributes:
        base: Digest of the model that it starts from.
        delta: Difference to the base, `(spec.size,)` float32; None when nothing was trained.
        patients: Patients that can be trained on.
        seen: Those of them of whom an image was in a step that was done; 0 when nothing was trained.
        images: Images that can be trained on.
        work: Share of the planned steps that were done, if the study asks.
        precision: In which the training was done, if in less than float32.
        batched: Whether the training was one computation with that of other hospitals, in a simulation.
        evaluated_patients: Patients behind the metrics; of masks, those in whom something is drawn.
        rarest: Held-out patients of the class that the fewest of them have.
        evaluated_images: Images behind the metrics.
        metrics: Every number that was measured.
    """

    base: str
    delta: Vector | None
    patients: int
    seen: int
    images: int
    evaluated_patients: int
    rarest: int
    evaluated_images: int
    metrics: Mapping[str, float]
    work: float | None = None
    precision: Literal["bfloat16"] | None = None
    batched: bool = False


@dataclass(frozen=True)
class Release:
    """What may leave: the manifest, and the arrays that it lists."""

    manifest: Manifest
    vector: Vector | None


@dataclass(frozen=True)
class Standing:
    """What this hospital said before of the studies of one name, each by its digest.

    Attributes:
        first: The first that was let in, by whomever.
        approved: Those of which a person's yes is the newest word.
        revoked: Those of which a no is the newest word.
    """

    first: str | None = None
    approved: frozenset[str] = frozenset()
    revoked: frozenset[str] = frozenset()


def permit(policy: Policy, agreement: Agreement, said: Standing | None, released: Sequence[float]) -> None:
    """Whether an order under this agreement may be followed.

    A person's word on exactly this study decides. Where nobody said anything, `policy.studies` does.

    Args:
        policy: This hospital's.
        agreement: What the order comes with.
        said: What was said before of studies of this name, if anything.
        released: The noise of each other update of this study that this hospital released; see `noise_of`.

    Raises:
        PolicyError: It may not.
    """
    plan, study, said = agreement.plan, agreement.study, said or Standing()
    if study in said.revoked:
        raise PolicyError(
            Rule.STUDY_REVOKED,
            f"study {plan.name}@{study} was revoked here",
            "to take part again, approve it again: intramural-silo approve SITE.toml AGREEMENT.json",
        )
    if study not in said.approved:
        _require_named(policy, plan.name, study, said)
    require_allowed(policy, plan, released)


def require_allowed(policy: Policy, plan: Plan, released: Sequence[float]) -> None:
    """Whether the policy lets the next update of such a study be made, once the study is approved.

    Args:
        policy: This hospital's.
        plan: What the study asks for.
        released: The noise of each update of it that was released already; see `noise_of`.

    Raises:
        PolicyError: It does not.
    """
    if plan.task.name not in policy.tasks:
        raise PolicyError(
            Rule.TASK, f"policy.tasks: does not name {plan.task.name!r}", "name it there if the hospital agrees"
        )
    if plan.strategy.weighs_by_loss and "loss" not in policy.metrics:
        raise _no_loss(plan, "policy.metrics: does not name `loss`", "name it there if the hospital agrees")
    if len(released) >= policy.max_rounds:
        raise PolicyError(
            Rule.MAX_ROUNDS,
            f"policy.max_rounds: {len(released)} updates were released, the limit is {policy.max_rounds}",
            "raise policy.max_rounds if the hospital agrees to share more of this study",
        )
    spent = privacy.epsilon([*released, policy.noise], policy.delta)
    if policy.max_epsilon is not None and spent > policy.max_epsilon:
        raise PolicyError(
            Rule.EPSILON,
            f"policy.max_epsilon: the next round would spend {spent:g}, the limit is {policy.max_epsilon}",
            "raise policy.noise or policy.max_epsilon, or end the study here",
        )
    if plan.training.cases < policy.min_patients:
        raise _too_few(policy, f"the steps of a round take at most {plan.training.cases:g} images", _LONGER)


def _require_named(policy: Policy, name: str, study: str, said: Standing) -> None:
    """Refuse a study that no person approved and `policy.studies` does not name."""
    entries = [entry.partition("@") for entry in policy.studies]
    digests = [pinned for named, _, pinned in entries if named == name]
    if not digests and not said.approved:
        raise PolicyError(
            Rule.STUDY_NOT_APPROVED,
            f"study {name}@{study} was not approved here, and policy.studies does not name it",
            "to take part, approve it: intramural-silo approve SITE.toml AGREEMENT.json",
        )
    pinned = [value for value in digests if value]
    by_name = [said.first or study] if digests else sorted(said.approved)
    allowed = pinned or by_name
    if study not in allowed:
        raise PolicyError(
            Rule.STUDY_CHANGED,
            f"study {name!r} has digest {study}, approved was {allowed[0]}",
            "ask the coordinator what changed; approve the new one if the hospital agrees",
        )


def require_patients(policy: Policy, patients: int) -> None:
    """Refuse to train on fewer patients than the policy says.

    Raises:
        PolicyError: Too few.
    """
    if patients < policy.min_patients:
        raise _too_few(policy, f"{patients} patients can be trained on", "wait for more patients")


def _require_seen(policy: Policy, update: Update) -> None:
    """Refuse an update of steps that looked at fewer patients than the policy says, whoever else is there."""
    if update.seen < policy.min_patients:
        raise _too_few(policy, f"the steps that were done took images of {update.seen} patients only", _LONGER)


def _too_few(policy: Policy, what: str, remedy: str) -> PolicyError:
    return PolicyError(
        Rule.MIN_PATIENTS,
        f"policy.min_patients: {what}, at least {policy.min_patients} are required",
        f"{remedy}; a lower limit makes each of them easier to recognise in the update",
    )


def _no_loss(plan: Plan, what: str, remedy: str) -> PolicyError:
    return PolicyError(
        Rule.METRIC,
        f"{what}, by which {plan.strategy.name} weighs each update",
        f"{remedy}; or decline: no update can be used without",
    )


def tellable(policy: Policy, wanted: Sequence[MetricName], patients: int, rarest: int) -> set[MetricName]:
    """The metrics that may be told; no other needs to be measured.

    Args:
        policy: This hospital's.
        wanted: What the study asks for.
        patients: Those behind the metrics; see `Update.evaluated_patients`.
        rarest: Held-out patients of the class that the fewest of them have.
    """
    # The area under the curve says where the few stand among the many, so it rests on the few; and where it is missing,
    # nobody must see whether they are few or none.
    behind = {name: rarest if name == "auc" else patients for name in wanted}
    return {name for name in wanted if name in policy.metrics and behind[name] >= policy.least_evaluated}


def release(
    policy: Policy,
    agreement: Agreement,
    update: Update,
    spec: Spec,
    *,
    released: Mapping[str, float],
    secret: bytes,
    software: Mapping[str, str],
) -> Release:
    """Make of an update exactly what may leave.

    Args:
        policy: This hospital's.
        agreement: The approved study.
        update: What the visit produced.
        spec: Layout of the arrays.
        released: By digest, the noise of each update of this study that was released before; see `noise_of`.
        secret: Key of the noise.
        software: Names and versions to report.

    Raises:
        PolicyError: Too few patients, more bytes than allowed, or no loss where the study weighs by it.
        Unusable: The update holds NaN or infinity.
    """
    plan = agreement.plan
    metrics, withheld = _metrics(policy, update, plan)
    told = Manifest(
        base=update.base,
        spec=spec.digest,
        metrics=metrics,
        withheld=withheld,
        evaluated=_count(policy, "images", update.evaluated_images) if metrics else None,
        software=dict(software),
    )
    if update.delta is None:
        return Release(told, None)

    require_patients(policy, update.patients)
    _require_seen(policy, update)
    if plan.strategy.weighs_by_loss and "loss" not in metrics:
        behind, least = update.evaluated_patients, policy.least_evaluated
        if behind >= least:
            raise _no_loss(plan, "loss: is no number that can be told", "ask the coordinator for a lower learning rate")
        what = f"policy.min_evaluated: {behind} patients are held out, at least {least} are required to tell `loss`"
        raise _no_loss(plan, what, "wait for more patients")
    vector = privacy.clip(update.delta, policy.clip)
    filters = [Filter(name="clip", bound=policy.clip)]
    if policy.noise > 0:
        sd = policy.noise * policy.clip
        vector = privacy.add_noise(vector, sd, secret)
        filters.append(Filter(name="noise", sd=sd))
    encoding = Encoding(plan.encoding, spec)
    vector, length = privacy.tell(vector, encoding, policy.clip if policy.noise == 0 else math.inf)
    if plan.encoding != "float32":
        filters.append(Filter(name=plan.encoding, bound=BOUND if plan.encoding == "compact" else None))
    if encoding.nbytes > policy.max_bytes:
        raise PolicyError(
            Rule.MAX_BYTES,
            f"policy.max_bytes: the update has {encoding.nbytes} bytes, the limit is {policy.max_bytes}",
            "raise policy.max_bytes if the hospital agrees, or decline this network",
        )
    tensors = tensors_of(spec, vector)
    digest = update_digest(spec, (tensor.sha256 for tensor in tensors))
    spent = privacy.epsilon([*others(released, digest), policy.noise], policy.delta)
    manifest = told.model_copy(
        update={
            "digest": digest,
            "norm": length,
            "tensors": tensors,
            "filters": filters,
            "examples": _weight(policy, plan.weights, update),
            "work": None if update.work is None else _tenths(update.work),
            "precision": update.precision,
            "batched": update.batched,
            "privacy": Privacy(epsilon=round(spent, 6), delta=policy.delta) if math.isfinite(spent) else None,
        }
    )
    return Release(manifest, vector)


def require_survey(policy: Policy, said: Survey | None) -> None:
    """Whether anything may be told before a study starts.

    Args:
        policy: This hospital's.
        said: The survey of the same study that was released before, if any: what was told may be told again
            as it was, and nothing else, since two surveys could be subtracted from each other.

    Raises:
        PolicyError: It may not.
    """
    forbidden = sorted(set(said.fields) - set(policy.survey)) if said else []
    if not policy.survey or forbidden:
        what = f"does not name {', '.join(forbidden)} any more" if forbidden else "names nothing"
        raise PolicyError(
            Rule.SURVEY,
            f"policy.survey: {what}, so nothing is told of the data before the study",
            "name there what the hospital agrees to tell, in bands",
        )


def survey(policy: Policy, totals: Mapping[Total, int], tables: Mapping[TableName, Mapping[str, int]]) -> Survey:
    """Make of exact counts what may be told of them.

    Args:
        policy: This hospital's.
        totals: All of them.
        tables: Patients in each cell of each table; each patient is in at least one cell of every table, and in exactly
            one of `sides`.

    Raises:
        PolicyError: Nothing may be told, or of too few patients.
    """
    require_survey(policy, None)
    require_patients(policy, totals["patients"])
    least, allowed, count = policy.min_patients, set(policy.survey), totals["patients"]
    known = (count, count) if policy.counts == "exact" else band(count)  # updates may tell it too
    sides = list(suppress(tables["sides"], known, least).values()) if "sides" in allowed else []
    if sides and all(sides):  # each patient is on one of them, and their sum may tell more closely how many there are
        lows, highs = zip(*filter(None, sides), strict=True)
        known = max(known[0], sum(lows)), min(known[1], sum(highs))
    told = {
        name: {cell: None if ends is None else _band(ends) for cell, ends in suppress(cells, known, least).items()}
        for name, cells in tables.items()
        if name in allowed
    }
    return Survey(
        least=least, totals={name: _band(band(n)) for name, n in totals.items() if name in allowed}, tables=told
    )


def refusal(error: BaseException) -> Refusal:
    """All that is said of an error: its class's word. A foreign exception has none but "internal"."""
    return Refusal(code=error.wire_code if isinstance(error, IntramuralError) else IntramuralError.code)


def _band(ends: tuple[int, int]) -> Band:
    return Band(low=ends[0], high=ends[1])


def _weight(policy: Policy, weights: str, update: Update) -> Examples:
    if weights == "equal":
        return Examples(unit="silos", low=1, high=1)
    return _count(policy, weights, update.patients if weights == "patients" else update.images)


def _count(policy: Policy, unit: str, count: int) -> Examples:
    low, high = (count, count) if policy.counts == "exact" else band(count)
    return Examples.model_validate({"unit": unit, "low": low, "high": high})


def _tenths(share: float) -> float:
    """A share of steps in whole tenths, rounded down; the steps themselves would tell how many images there are."""
    return math.floor(share * 10) / 10


def _metrics(policy: Policy, update: Update, plan: Plan) -> tuple[dict[MetricName, float], list[MetricName]]:
    """The metrics that may leave, rounded, and the names of those asked for that may not."""
    allowed = tellable(policy, plan.metrics, update.evaluated_patients, update.rarest)
    metrics: dict[MetricName, float] = {}
    withheld: list[MetricName] = []
    for name in sorted(set(plan.metrics)):
        value = update.metrics.get(name)
        if name in allowed and value is not None and abs(value) <= MAX_METRIC:
            metrics[name] = _rounded(float(value), policy.decimals)
        else:
            withheld.append(name)
    if plan.strategy.weighs_by_loss and "loss" in metrics:
        # One that is rounded to 0 would be taken for a millionth of what it is, and stop the whole federation.
        metrics["loss"] = max(metrics["loss"], 0.5 * 10.0**-policy.decimals)
    return metrics, withheld


def _rounded(value: float, decimals: int) -> float:
    """To so many decimals, and from 10 on to fewer.

    Who chooses the model can make a loss as large as it likes, and read exact counts in its digits.
    """
    before_point = math.floor(math.log10(abs(value))) if value else 0
    return round(value, decimals - max(0, before_point))


def tensors_of(spec: Spec, vector: Vector) -> list[Tensor]:
    """Every array of a vector, as a manifest lists it."""
    return [
        Tensor(
            name=tensor.name,
            shape=list(tensor.shape),
            bytes=part.nbytes,
            sha256=sha256,
            l2=norm(part),
        )
        for (tensor, part), sha256 in zip(spec.split(vector), tensor_digests(spec, vector), strict=True)
    ]


def noise_of(manifest: Manifest) -> float:
    """The noise of an update that was released, in units of its bound; 0 if it had none."""
    filters = {item.name: item for item in manifest.filters}
    if "noise" not in filters:
        return 0.0
    sd, bound = filters["noise"].sd, filters["clip"].bound
    assert sd
    assert bound
    return sd / bound


def others(released: Mapping[str, float], digest: str | None) -> list[float]:
    """The noises of all updates but one, by its digest: what was told before is told again for nothing."""
    return [noise for known, noise in released.items() if known != digest]
