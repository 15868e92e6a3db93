"""Every combined model of a study, made anew from the updates that were kept, to the bit.

    replay("studies/demo")

The study must have been planned with `keep_updates = true`. Nothing is taken from the coordinator's word that
can be computed: the first model is the one that the hospitals approved, every input is an update that a
hospital signed and whose arrays have the digest it signed, the updates are combined with the recorded weights
by the code that combined them first, and the model's digest must be the recorded one. So must be what the
strategy remembers from round to round, the silos that it chose, and the round whose update of it an order of
SCAFFOLD tells a hospital to have counted. A round must combine each update that it accepted, once, or name its
hospital among those excluded. Every model that was offered to a hospital, or released, or with which a void round or
the study ended, must be the newest of these at that line, or the first one.

A sum (FedAvg, FedProx) comes out the same on any machine with IEEE 754 float32. The arithmetic of the other
strategies is Flower's and NumPy's: give their replay the versions with which the study ran. torch is not used.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aggregator.audit import lines
from aggregator.audit.ledgers import verify
from aggregator.folder import model_path, read_agreement, update_path
from aggregator.weighing import Contribution
from models.errors import DataError, DigestMismatch, IntramuralError, LedgerError
from models.exchange.documents import Manifest, Order
from models.exchange.spec import Spec, Vector, load_part, load_vector, tensor_digests, update_digest, vector_digest
from models.ledger import Event, Opened, Record, Verifier, read
from models.plan import Plan

if TYPE_CHECKING:
    from aggregator.strategy import Audited, Combined


_STANDS = (Event.ROUND_VOID, Event.STUDY_CLOSED, Event.MODEL_RELEASED)


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
        orders: Orders that offered the newest model at their time: the first one, or a combined one.
        problems: What differs, by round; empty if nothing does.
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
        LedgerError: The ledger is not the one that was signed, or does not hold what it names.
        DigestMismatch: The agreement or the first model is not the recorded one.
    """
    from aggregator.strategy import build  # here, because the other commands of an auditor do without Flower

    folder = Path(folder)
    agreement = read_agreement(folder)
    opened = read(folder / "ledger", Verifier.parse(agreement.coordinator_key))
    verdict = verify(folder / "ledger", opened.verifier)
    if not verdict.ok:
        raise LedgerError(f"{folder / 'ledger'}: {verdict.problems[0]}", "`intramural-audit verify` shows all of it")
    result = Replay(agreement.study)
    records = [r for r in opened.records if r.study == agreement.study]
    if not any(r.event == Event.STUDY_CREATED and r.body["model"] == agreement.initial for r in records):
        raise DigestMismatch(f"{folder / 'agreement.json'}: is not the agreement that this study was created with")
    sums = [r for r in records if r.event == Event.AGGREGATED]
    _require_kept(folder, sums)
    updates = {lines.statement(r).xid: r for r in records if r.event == Event.UPDATE_RECEIVED}
    keys = lines.peers(records)
    first = model_path(folder, 0)
    spec, model = load_vector(first, agreement.initial)
    if spec.digest != agreement.spec:
        raise DigestMismatch(f"{first}: has other arrays than the study's")
    made = [(0, agreement.initial)]
    strategy, state, before = build(agreement.plan), dict[str, Vector](), 0
    named = agreement.plan.strategy.model_dump(mode="json")
    for record in sums:
        number, body = record.round or 0, record.body
        problems = [] if body["base"] == made[-1][1] else ["it does not start from the model before it"]
        problems += [] if body["strategy"] == named else ["it names another strategy than the agreement"]
        silos = [item["silo"] for item in body["inputs"]]
        problems += [] if silos == sorted(set(silos)) else ["its inputs are not each hospital once, in order of name"]
        problems += _left_out(record, updates.values())
        problems += [what for item in body["inputs"] for what in _unsigned(item, record, updates, keys, opened)]
        try:
            enrolled = sum(r.event == Event.SILO_ENROLLED and r.seq < record.seq for r in records)
            nth, counts = len(result.models) + 1, (before, enrolled)
            combined = _combined(strategy, folder, record, nth, spec, model, state, updates, opened, counts)
        except (DataError, DigestMismatch) as error:
            result.problems.append(f"round {number}: {error}")
            break
        model, state, before = combined.model, dict(combined.state), enrolled
        found = vector_digest(spec.digest, model)
        result.models.append(Remade(number, silos, body["model"], found))
        if found != body["model"]:
            problems.append(f"its updates give the model {found[:16]}, not {body['model'][:16]}")
        if {name: vector_digest(spec.digest, vector) for name, vector in state.items()} != body.get("state", {}):
            problems.append("the strategy remembers something else than what is recorded")
        if body.get("selected") != (None if combined.selected is None else list(combined.selected)):
            problems.append("the strategy chooses other silos than those that are recorded")
        result.problems.extend(f"round {number}: {problem}" for problem in problems)
        if problems:
            break
        made.append((record.seq, found))
    else:
        checked = [*_orders(opened, records, made, agreement.plan), *_standing(records, made)]
        result.problems.extend(problem for problem in checked if problem)
        return Replay(result.study, result.models, checked.count(""), result.problems)
    return result


def _left_out(sum_: Record, updates: Iterable[Record]) -> Iterator[str]:
    """Hospitals whose accepted update a round neither combined nor excluded by name."""
    body = sum_.body
    told = {*(item["silo"] for item in body["inputs"]), *body["excluded"]}
    accepted = {
        update.body["statement"]["src"]
        for update in updates
        if (update.round, update.body["base"]) == (sum_.round, body["base"]) and update.seq < sum_.seq
    }
    for silo in sorted(accepted - told):
        yield f"it says nothing of the update of {silo}, which was accepted"


def _require_kept(folder: Path, sums: Iterable[Record]) -> None:
    inputs = [update_path(folder, record.round or 0, item["silo"]) for record in sums for item in record.body["inputs"]]
    missing = [path for path in inputs if not path.is_file()]
    if missing:
        raise DataError(
            f"{missing[0]}: was not kept, nor were {len(missing) - 1} more of {len(inputs)} updates",
            "only a study whose plan says keep_updates = true can be replayed",
        )


def _unsigned(
    item: Mapping[str, Any],
    sum_: Record,
    updates: Mapping[str, Record],
    keys: Mapping[lines.Peer, Verifier],
    opened: Opened,
) -> Iterator[str]:
    """What keeps an input from being an accepted update that its hospital signed; `verify` saw the signatures."""
    silo, record = item["silo"], updates.get(item["xid"])
    if record is None or record.seq > sum_.seq:
        yield f"the input of {silo} is no accepted update"
        return
    statement, body = lines.statement(record), record.body
    manifest = Manifest.decode(opened.manifest(statement.body))
    if statement.src != silo or (sum_.study, silo) not in keys:
        yield f"the input of {silo} was not signed by {silo}"
    if {item["digest"], body["digest"], manifest.digest} != {statement.payload}:
        yield f"the input of {silo} has other arrays than those it signed"
    if record.round != sum_.round or {body["base"], manifest.base} != {sum_.body["base"]}:
        yield f"the input of {silo} is of another round or another model"
    if manifest.examples is None or {item["weight"], body["weight"]} != {manifest.examples.weight}:
        yield f"the input of {silo} has another weight than the one it signed"


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


def _standing(records: Iterable[Record], made: Sequence[tuple[int, str]]) -> Iterator[str]:
    """How a model that is said to stand, or that was handed out, is not the newest one at that line."""
    for record in records:
        if record.event in _STANDS and record.body["model"] != _newest(made, record):
            yield f"round {record.round}: {record.event} names another model than the newest one"


def _newest(made: Sequence[tuple[int, str]], record: Record) -> str:
    return [model for seq, model in made if seq < record.seq][-1]


def _orders(opened: Opened, records: Iterable[Record], made: Sequence[tuple[int, str]], plan: Plan) -> Iterator[str]:
    """For each order, nothing; or how what it offers is not what the lines before it say.

    Offered are the newest model, and in SCAFFOLD the round whose model took this hospital's update last.
    """
    orders: dict[str, Order] = {}
    counted: dict[str, int | None] = {}
    for record in records:
        if record.event == Event.AGGREGATED and plan.strategy.name == "scaffold":
            counted |= {item["silo"]: record.round for item in record.body["inputs"]}
        if record.event != Event.ORDER_OFFERED:
            continue
        statement = lines.statement(record)
        newest = _newest(made, record)
        try:
            if statement.body not in orders:
                orders[statement.body] = Order.decode(opened.manifest(statement.body))
        except IntramuralError as error:
            yield f"round {record.round}: the order to {statement.dst}: {error}"
            continue
        order = orders[statement.body]
        if (order.agreement.study, order.round) != (record.study, record.round):
            yield f"round {record.round}: the order to {statement.dst} is of another study or round"
        elif order.base != newest or statement.payload != (newest if order.visit in ("train", "evaluate") else None):
            yield f"round {record.round}: the order to {statement.dst} offers another model than the newest one"
        elif order.counted != (last := counted.get(statement.dst) if order.visit == "train" else None):
            what = f"round {order.counted} as the last that counted its update, not {last}"
            yield f"round {record.round}: the order to {statement.dst} names {what}"
        else:
            yield ""
