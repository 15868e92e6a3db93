"""What a study asks of this hospital, in plain words, and what the hospital's policy makes of it.

The coordinator's `agreement.json` says all that a study will ever be: any change makes it another study.
Hospital IT reads it here, row by row, before it says yes. Nothing is sent and nothing is written down.
"""

from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path

from models import tasks
from models.console import human_bytes, printable
from models.errors import ConfigError, IntramuralError, Malformed, PolicyError, Rule
from models.exchange.documents import Agreement
from models.exchange.encoding import BOUND, Encoding
from models.exchange.enrolment import Invitation, fingerprint
from models.exchange.spec import Spec
from models.ledger import Verifier
from models.plan import Plan
from silos import gate, privacy
from silos.config import Policy, Site
from silos.network.enrolment import invitation

Row = tuple[str, str]
"""What, and its value."""

_TOLD = {
    "float32": "every number in full",
    "bfloat16": "every number rounded to 8 significant bits",
    "compact": f"every number rounded by at most {BOUND:.0%} of its array's range",
}

REFUSED = "refused here"
"""Stands before what this hospital would not do."""


def read_agreement(path: Path | str) -> Agreement:
    """Read the file that a coordinator gives out.

    Args:
        path: `agreement.json` of the study's folder.

    Raises:
        ConfigError: It cannot be read, or is no agreement.
    """
    hint = "give the agreement.json that the coordinator sent"
    try:
        return Agreement.decode(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint) from error
    except Malformed as error:
        raise ConfigError(f"{path}: {error}", hint) from error


def explain(site: Site, agreement: Agreement) -> list[Row]:
    """Say in words what a study asks for, what would leave, and what this hospital would refuse about it.

    Args:
        site: This hospital.
        agreement: The study.

    Returns:
        Rows in the order in which to read them; one `REFUSED` row for each thing that would not be done.

    Raises:
        ConfigError: The network cannot be built here, or the coordinator's invitation cannot be read.
    """
    plan, policy, spec = agreement.plan, site.policy, _spec(agreement.plan)
    invited = _invitation(site)
    ours = invited and invited.key == agreement.coordinator_key
    known = [("known by", f"the invitation {invited.fingerprint}")] if invited and ours else []
    refused = [str(error) for error in objections(site, agreement, spec)] or _later(policy, plan)
    rows = [
        ("study", f"{plan.name}@{agreement.study}"),
        ("purpose", plan.purpose),
        ("who asks", f"{plan.coordinator}, key {fingerprint(agreement.coordinator_key.encode())}"),
        *known,
        ("task", f"{plan.task.name}: {', '.join(plan.task.classes)}"),
        ("images", f"{', '.join(plan.task.modality)}; {plan.task.extent}"),
        ("network", _call(plan.task.network.name, plan.task.network.arguments)),
        ("rounds", _rounds(plan)),
        ("work in each round", _work(plan)),
        ("learning", _learning(plan)),
        ("combined by", _call(plan.strategy.name, plan.strategy.model_dump(exclude={"name"}, exclude_defaults=True))),
        ("leaves in each round", _update(policy, plan, spec)),
        *_measured(policy, plan),
        ("changed before it leaves", _filters(policy, plan)),
        ("goes to", f"{plan.coordinator} at {invited.address}" if invited else plan.coordinator),
        ("kept there", "every update, for good" if plan.keep_updates else "each update until its round is over"),
        *((REFUSED, reason) for reason in refused),
    ]
    return [(what, printable(value)) for what, value in rows]


def objections(site: Site, agreement: Agreement, spec: Spec | None = None) -> list[IntramuralError]:
    """Why this hospital could not follow even the first order of a study; empty if it could.

    Args:
        site: This hospital.
        agreement: The study.
        spec: The arrays of its network, if they are known already.

    Raises:
        ConfigError: The network cannot be built here, or the coordinator's invitation cannot be read.
    """
    plan, spec = agreement.plan, spec or _spec(agreement.plan)
    found: list[IntramuralError] = [*_wrong_coordinator(site, agreement)]
    if spec.digest != agreement.spec:
        found.append(
            ConfigError(
                f"task.network: {plan.task.network.name} has other arrays here than in the study",
                "install the version of intramural that the coordinator has",
            )
        )
    first = _refusal(site.policy, plan, 0)
    if first:
        found.append(first)
    nbytes = Encoding(plan.encoding, spec).nbytes
    if nbytes > site.policy.max_bytes:
        text = f"an update has {nbytes} bytes, the limit is {site.policy.max_bytes}"
        found.append(PolicyError(Rule.MAX_BYTES, f"policy.max_bytes: {text}", "raise it if the hospital agrees"))
    return found


def _wrong_coordinator(site: Site, agreement: Agreement) -> list[ConfigError]:
    hint = "ask the coordinator whose agreement this is; do not approve it"
    try:
        named = Verifier.parse(agreement.coordinator_key).name
    except Malformed:
        return [ConfigError("coordinator_key: is no key", hint)]
    if named != agreement.plan.coordinator:
        return [ConfigError(f"coordinator_key: is the key of {named!r}, not of {agreement.plan.coordinator!r}", hint)]
    invited = _invitation(site)
    if invited and invited.key != agreement.coordinator_key:
        return [ConfigError(f"coordinator_key: is not the one of run.coordinator ({site.run.coordinator})", hint)]
    return []


def _invitation(site: Site) -> Invitation | None:
    return invitation(site) if site.run.coordinator else None


def _spec(plan: Plan) -> Spec:
    return tasks.network(plan).spec


def _refusal(policy: Policy, plan: Plan, done: int) -> PolicyError | None:
    try:
        gate.require_allowed(policy, plan, [policy.noise] * done)
    except PolicyError as error:
        return error
    return None


def _later(policy: Policy, plan: Plan) -> list[str]:
    """What stops a study that can begin: every limit on rounds is only ever passed once."""
    followed = bisect_left(range(plan.rounds), True, key=lambda done: _refusal(policy, plan, done) is not None)
    error = _refusal(policy, plan, followed) if followed < plan.rounds else None
    return [f"round {followed + 1} and all after it: {error}"] if error else []


def _call(name: str, arguments: Mapping[str, object]) -> str:
    told = ", ".join(f"{key} = {value}" for key, value in sorted(arguments.items()))
    return f"{name} ({told})" if told else name


def _rounds(plan: Plan) -> str:
    if plan.silos_per_round is None:
        return f"{plan.rounds}"
    return f"{plan.rounds}; {plan.silos_per_round} hospitals, drawn anew for each, train; the others only evaluate"


def _work(plan: Plan) -> str:
    training = plan.training
    count, unit = (training.steps, "step") if training.epochs is None else (training.epochs, "epoch")
    late = f"; what is done of it when {plan.deadline:g} s are nearly over is shared"
    late = late if plan.stragglers == "partial" else ""
    return f"{count} {unit}{'' if count == 1 else 's'}, batches of {training.batch_size}{late}"


def _learning(plan: Plan) -> str:
    training = plan.training
    told = [training.optimizer, f"learning rate {training.learning_rate:g}"]
    told += [f"times {training.decay:g} after every round"] if training.decay != 1 else []
    told += [f"momentum {training.momentum:g}"] if training.momentum else []
    told += [f"weight decay {training.weight_decay:g}"] if training.weight_decay else []
    told += ["in bfloat16 where the processor has it"] if training.mixed_precision else []
    return ", ".join(told)


def _update(policy: Policy, plan: Plan, spec: Spec) -> str:
    asked, allowed = human_bytes(plan.max_bytes), human_bytes(policy.max_bytes)
    limits = f"the study takes at most {asked}, this hospital lets out at most {allowed}"
    nbytes = human_bytes(Encoding(plan.encoding, spec).nbytes)
    return f"one update of the network's weights, {nbytes} ({limits}); its digests and lengths"


def _measured(policy: Policy, plan: Plan) -> list[Row]:
    told = sorted(set(plan.metrics) & set(policy.metrics))
    withheld = sorted(set(plan.metrics) - set(policy.metrics))
    least = f"at least {policy.least_evaluated} held-out patient{'' if policy.least_evaluated == 1 else 's'}"
    least += ", auc of every class" if "auc" in told else ""
    counted = [] if plan.weights == "equal" else [f"{plan.weights} trained on"]
    counted += ["images evaluated on"] if told else []
    done = ["the share of the work that was done, in tenths"] if plan.stragglers == "partial" else []
    how = "exactly" if policy.counts == "exact" else "as ranges"
    return [
        ("metrics told", f"{', '.join(told)}; with {least}" if told else "none"),
        ("metrics withheld", ", ".join(withheld) or "none"),
        ("counts told", f"{', '.join(counted)}: {how}" if counted else "none"),
        ("also told", ", ".join([*done, "names and versions of the software"])),
        ("told before training, if asked", f"{', '.join(policy.survey)}: as ranges" if policy.survey else "nothing"),
    ]


def _filters(policy: Policy, plan: Plan) -> str:
    told = f"shortened to a length of {policy.clip:g}"
    if policy.noise == 0:
        return f"{told}; no noise; {_TOLD[plan.encoding]}"
    spent = privacy.epsilon([policy.noise] * plan.rounds, policy.delta)
    noise = f"noise of standard deviation {policy.noise * policy.clip:g} on every number"
    spent_in_all = f"epsilon {spent:.3g} after all rounds (delta {policy.delta:g})"
    return f"{told}, then {noise}; {spent_in_all}; {_TOLD[plan.encoding]}"
