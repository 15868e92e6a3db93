"""Every combined model of a study, made anew from the updates that were kept, to the bit.

    replay("studies/demo")

The study must have been planned with `keep_updates = true`. Nothing is taken from the coordinator's word that
can be computed: the ledger must verify, so that the inputs of each model are what the hospitals signed and every
order offers the newest one (see `course`); the first model is the one that the hospitals approved, every kept update
has the arrays that its hospital signed, the updates are combined with the recorded weights by the code that combined
them first, and the model's digest must be the recorded one. So must be what the strategy remembers from round to
round, and the silos that it chose.

A sum (FedAvg, FedProx) comes out the same on any machine with IEEE 754 float32. The arithmetic of the other
strategies is Flower's and NumPy's: give their replay the versions with which the study ran. torch is not used.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aggregator.audit import lines
from aggregator.audit.ledgers import verify
from aggregator.folder import model_path, read_agreement, update_path
from aggregator.weighing import Contribution
from models.errors import DataError, DigestMismatch
from models.exchange.documents import Manifest
from models.exchange.spec import Spec, Vector, load_part, load_vector, tensor_digests, update_digest, vector_digest
from models.ledger import Event, Opened, Record, Verifier, read

if TYPE_CHECKING:
    from aggregator.strategy import Audited, Combined


@dataclass(frozen=True)
class Remade:
    """One combined model, made anew.

    Attributes:
        round: The round that made it.
        inputs: The silos whose updates the strategy was given, in the recorded order.
        recorded: The digest in the ledger.
        found: The digest of what came out here.
    """

    round: int
    inputs: list[str]
    recorded: str
    found: str


@dataclass(frozen=True)
class Replay:
    """What came of making every model anew.

    Attributes:
        study: The study's digest.
        models: Every combined model, up to the first one that could not be made.
        orders: Orders that offered one of these models, or the first one.
        problems: What differs, by round; or what is wrong with the ledger, by line. Empty if nothing is.
    """

    study: str
    models: list[Remade] = field(default_factory=list)
    orders: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every model is what the ledger says."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {**vars(self), "models": [vars(model) for model in self.models], "ok": self.ok}


def replay(folder: Path | str) -> Replay:
    """Make every combined model of a study anew, in as little memory as the study itself took.

    Args:
        folder: The study's folder; another process may be at work on it.

    Raises:
        ConfigError: It is no study folder.
        Malformed: The agreement cannot be read.
        DataError: An update was not kept, or the first model is missing.
        LedgerError: The ledger is not the one that was signed, or cannot be read.
        DigestMismatch: The agreement or the first model is not the recorded one.
    """
    from aggregator.strategy import build  # here, because the other commands of an auditor do without Flower

    folder = Path(folder)
    agreement = read_agreement(folder)
    opened = read(folder / "ledger", Verifier.parse(agreement.coordinator_key))
    verdict = verify(folder / "ledger", opened.verifier)
    result = Replay(agreement.study, problems=list(verdict.problems))
    if not verdict.ok:
        return result
    records = [r for r in opened.records if r.study == agreement.study]
    if not any(r.event == Event.STUDY_CREATED and r.body["model"] == agreement.initial for r in records):
        raise DigestMismatch(f"{folder / 'agreement.json'}: is not the agreement that this study was created with")
    sums = [r for r in records if r.event == Event.AGGREGATED]
    _require_kept(folder, sums)
    updates = {lines.statement(r).xid: r for r in records if r.event == Event.UPDATE_RECEIVED}
    first = model_path(folder, 0)
    spec, model = load_vector(first, agreement.initial)
    if spec.digest != agreement.spec:
        raise DigestMismatch(f"{first}: has other arrays than the study's")
    strategy, state, before = build(agreement.plan), dict[str, Vector](), 0
    for record in sums:
        number, body = record.round or 0, record.body
        try:
            enrolled = sum(r.event == Event.SILO_ENROLLED and r.seq < record.seq for r in records)
            nth, counts = len(result.models) + 1, (before, enrolled)
            combined = _combined(strategy, folder, record, nth, spec, model, state, updates, opened, counts)
        except (DataError, DigestMismatch) as error:
            result.problems.append(f"round {number}: {error}")
            return result
        model, state, before = combined.model, dict(combined.state), enrolled
        found = vector_digest(spec.digest, model)
        silos = [item["silo"] for item in body["inputs"]]
        result.models.append(Remade(number, silos, body["model"], found))
        problems = []
        if found != body["model"]:
            problems.append(f"its updates give the model {found[:16]}, not {body['model'][:16]}")
        if {name: vector_digest(spec.digest, vector) for name, vector in state.items()} != body.get("state", {}):
            problems.append("the strategy remembers something else than what is recorded")
        if body.get("selected") != (None if combined.selected is None else list(combined.selected)):
            problems.append("the strategy chooses other silos than those that are recorded")
        result.problems.extend(f"round {number}: {problem}" for problem in problems)
        if problems:
            return result
    return replace(result, orders=sum(r.event == Event.ORDER_OFFERED for r in records))


def _require_kept(folder: Path, sums: Iterable[Record]) -> None:
    inputs = [update_path(folder, record.round or 0, item["silo"]) for record in sums for item in record.body["inputs"]]
    missing = [path for path in inputs if not path.is_file()]
    if missing:
        raise DataError(
            f"{missing[0]}: was not kept, nor were {len(missing) - 1} more of {len(inputs)} updates",
            "only a study whose plan says keep_updates = true can be replayed",
        )


def _combined(
    strategy: "Audited",
    folder: Path,
    record: Record,
    number: int,
    spec: Spec,
    base: Vector,
    state: Mapping[str, Vector],
    updates: Mapping[str, Record],
    opened: Opened,
    enrolled: tuple[int, int],
) -> "Combined":
    contributions = []
    for item in record.body["inputs"]:
        path = update_path(folder, record.round or 0, item["silo"])
        found, vector = load_vector(path)
        if found != spec or update_digest(spec, tensor_digests(spec, vector)) != item["digest"]:
            raise DigestMismatch(f"{path}: is not the update of digest {item['digest']}", "restore the file")
        update = updates.get(item["xid"])
        loss = Manifest.decode(opened.manifest(lines.statement(update).body)).metrics.get("loss") if update else None
        load, part = functools.partial(_load, path), functools.partial(load_part, path)
        contributions.append(Contribution(item["silo"], item["weight"], load, part, loss))
    return strategy.combine(number, lambda: base, contributions, state, enrolled)


def _load(path: Path) -> Vector:
    return load_vector(path)[1]
