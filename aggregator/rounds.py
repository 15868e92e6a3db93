"""The rounds of a study: orders out, replies in, the next model; written down at every step.

`run` is one loop over any Flower Grid. It starts where the ledger says the study is, so a killed run
goes on with the round it was in, with the updates that had already been accepted. A silo that refuses,
fails or stays silent is recorded and the others go on; with fewer than `min_silos` accepted updates the
round is void and the old model stands.
"""

import functools
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flwr.app import Message, MessageType

from aggregator import intake, strategy
from aggregator.grid import StudyGrid
from aggregator.history import History, read_history, write_metrics
from aggregator.intake import Asked
from aggregator.strategy import Audited, Contribution
from aggregator.study import Position, Study
from models.errors import ConfigError, IntramuralError, Malformed, is_wire_code
from models.exchange import wire
from models.exchange.channel import Channel
from models.exchange.documents import Manifest, Order, Refusal
from models.exchange.spec import vector_digest
from models.exchange.statement import Kind, Statement
from models.ledger import Entry, Event

log = logging.getLogger("intramural.aggregator")

Visit = Literal["survey", "train", "evaluate", "close"]

_MESSAGE_TYPE = {
    "survey": MessageType.QUERY,
    "train": MessageType.TRAIN,
    "evaluate": MessageType.EVALUATE,
    "close": MessageType.QUERY,
}
_POLL = (0.2, 2.0)  # seconds between two looks for replies, at first and at most
_PATIENCE = 20  # a look for replies is due when a twentieth of the time waited so far has passed
_GATHER = 10.0  # seconds that a run's first round waits for hospitals that are still connecting
_RETURN = 90.0  # seconds that a hospital which went away with an order is waited for; Flower refuses it for 60
_AWAY = 5  # Flower's code for "the node is gone": no answer to that order will come


@dataclass(frozen=True)
class Outcome:
    """What a study came to.

    Attributes:
        study: The study's digest.
        model: File of the final model.
        digest: Its digest.
        history: Every round.
    """

    study: str
    model: Path
    digest: str
    history: History


def run(study: Study, grid: StudyGrid, on_round: Callable[[History], None] | None = None) -> Outcome:
    """Run a study to its end, or go on with it.

    Args:
        study: Open for work.
        grid: Its hospitals.
        on_round: Called with the history so far when a round is over.

    Returns:
        The final model and the history; of a study that was over before, the same again.

    Raises:
        ConfigError: Fewer silos than `min_silos`, or one with another key than enrolled.
        LedgerError: The ledger cannot be written; nothing was sent after that.
    """
    plan, position = study.plan, study.position
    if not position.closed:
        _Run(study, grid).to_the_end(on_round)
        position = study.position
    history = read_history(study.ledger.records, plan)
    write_metrics(study.folder / "metrics.jsonl", history)
    return Outcome(study.digest, study.model_path(position.model), position.digest, history)


def survey(study: Study, grid: StudyGrid) -> None:
    """Ask every hospital that has not said it yet what it could train on; the answers are in the ledger.

    Args:
        study: Open for work, and not over.
        grid: Its hospitals.

    Raises:
        ConfigError: The study is over, there are fewer silos than `min_silos`, or one has another key.
        LedgerError: The ledger cannot be written; nothing was sent after that.
    """
    if study.position.closed:
        raise ConfigError(f"{study.folder}: the study is over", "survey the hospitals for a new study")
    run = _Run(study, grid)
    said = {r.body["statement"]["src"] for r in study.ledger.records if r.event == Event.SURVEY_RECEIVED}
    there = run.wait_for(len(run.channels), _GATHER)
    run.visit("survey", 0, study.position, [node for node in there if run.name(node) not in said])


class _Run:
    """One run over one grid: the channels to its hospitals."""

    def __init__(self, study: Study, grid: StudyGrid) -> None:
        self.study, self.grid, self.plan = study, grid, study.plan
        self.strategy: Audited = strategy.build(study.plan)
        if len(grid.roster) < study.plan.min_silos:
            raise ConfigError(
                f"min_silos: {study.plan.min_silos} are required, {len(grid.roster)} silos take part",
                "let more silos take part, or lower min_silos in a new study",
            )
        self.channels: dict[int, Channel] = {}
        self.enrol()

    def enrol(self) -> None:
        """Open a channel to every hospital that was admitted since."""
        study = self.study
        for node, silo in sorted(self.grid.roster.items(), key=lambda item: item[1].name):
            if node not in self.channels:
                study.enrol(silo)
                self.channels[node] = Channel(study.ledger, study.signer, silo, study.digest)

    def to_the_end(self, on_round: Callable[[History], None] | None) -> None:
        study, plan = self.study, self.plan
        self.wait_for(len(self.channels), _GATHER)
        while (position := study.position).round < plan.rounds:
            self.train(position)
            history = read_history(study.ledger.records, plan)
            write_metrics(study.folder / "metrics.jsonl", history)
            if on_round:
                on_round(history)
        self.visit("evaluate", plan.rounds, position, self.wait_for(0, 0))
        self.visit("close", plan.rounds, position, self.wait_for(0, 0))
        study.ledger.append(Entry(Event.STUDY_CLOSED, {"model": position.digest}, study.digest, plan.rounds))

    def wait_for(self, count: int, seconds: float, done: Collection[str] = ()) -> list[int]:
        """The hospitals that are connected, once they and those that are done are so many or the time is over."""
        deadline = time.monotonic() + seconds
        while True:
            self.enrol()
            there = [node for node in self.grid.get_node_ids() if node in self.channels]
            if len({*done, *map(self.name, there)}) >= count or time.monotonic() >= deadline:
                return there
            time.sleep(_POLL[0])

    def train(self, position: Position) -> None:
        """One round: updates that are still missing are asked for, then all are combined."""
        study, ledger, round_, digest = self.study, self.study.ledger, position.round + 1, position.digest
        accepted = self.accepted(round_, digest)
        there = self.wait_for(self.plan.min_silos, self.plan.deadline, accepted)
        chosen = self.strategy.choose(round_, self.grid)
        nodes = [node for node in chosen if node in there and self.name(node) not in accepted]
        self.visit("train", round_, position, nodes)
        accepted = self.accepted(round_, digest)
        names = {self.name(node) for node in self.channels}
        excluded = sorted(names - set(accepted))
        if len(accepted) < self.plan.min_silos:
            body = {
                "accepted": sorted(accepted),
                "excluded": excluded,
                "required": self.plan.min_silos,
                "model": digest,
            }
            ledger.append(Entry(Event.ROUND_VOID, body, study.digest, round_))
            log.warning("round %d is void: %d of %d required updates", round_, len(accepted), self.plan.min_silos)
            study.drop_updates(round_)
            return
        base = functools.partial(study.load_model, position.model, digest)
        model = self.strategy.combine(round_, base, [item.contribution for item in accepted.values()])
        output = vector_digest(study.spec.digest, model)
        study.save_model(round_, model)
        body = {
            "inputs": [
                {"silo": name, "xid": item.xid, "digest": item.digest, "weight": item.contribution.weight}
                for name, item in sorted(accepted.items())
            ],
            "excluded": excluded,
            "strategy": self.plan.strategy.model_dump(mode="json"),
            "base": digest,
            "model": output,
        }
        ledger.append(Entry(Event.AGGREGATED, body, study.digest, round_))
        study.drop_updates(round_)

    def visit(self, visit: Visit, round_: int, position: Position, nodes: list[int]) -> None:
        """Send an order to each node and take in what comes back; each reply ends as one ledger line.

        A hospital that goes away with its order, as one that is started again does, gets it once more when it
        is back.
        """
        waiting = self.send(visit, round_, position, nodes)
        away: dict[int, tuple[Asked, float]] = {}  # since when, by node
        again: set[int] = set()
        started = time.monotonic()
        while waiting or away:
            for reply in self.grid.pull_messages(list(waiting)):
                node, asked = waiting.pop(reply.metadata.reply_to_message_id, (None, None))
                if node is None or asked is None:
                    continue
                if node not in again and reply.has_error() and reply.error.code == _AWAY:
                    log.warning("round %d: %s went away", round_, self.name(node))
                    away[node] = (asked, time.monotonic())
                else:
                    self.take(reply, node, asked)
                del reply  # before the next one comes: one model is in memory, not two
            waited = time.monotonic() - started
            if waited > self.plan.deadline:
                break
            there = set(self.grid.get_node_ids()) if away else set()
            for node, (asked, since) in list(away.items()):
                if node in there:
                    log.info("round %d: %s is back, and is asked again", round_, self.name(node))
                    del away[node]
                    again.add(node)
                    waiting |= self.send(visit, round_, position, [node])
                elif node not in self.grid.roster or time.monotonic() - since > _RETURN:
                    del away[node]
                    self.silent(node, asked)
            if waiting or away:
                time.sleep(min(max(waited / _PATIENCE, _POLL[0]), _POLL[1]))
        for node, asked in [*waiting.values(), *((node, asked) for node, (asked, _) in away.items())]:
            self.silent(node, asked)

    def send(self, visit: Visit, round_: int, position: Position, nodes: list[int]) -> "dict[str, tuple[int, Asked]]":
        """Send an order to each node; what is waited for, by Flower's number of the message."""
        order = Order(agreement=self.study.agreement, round=round_, visit=visit, base=position.digest)
        array = model = None
        if visit in ("train", "evaluate"):
            array = wire.pack_vector(self.study.load_model(position.model, position.digest))
            model = wire.unpack_vector(array, self.study.spec.size)  # a view: one model is in memory, not two
        waiting: dict[str, tuple[int, Asked]] = {}
        for node in sorted(nodes, key=self.name):
            envelope = self.channels[node].offer(
                Kind.ORDER,
                round_,
                order,
                spec=None if model is None else self.study.spec.digest,
                vector=model,
            )
            asked = Asked(visit, round_, self.channels[node].sent[-1], position.digest)
            records = wire.pack(envelope, array)
            message = Message(records, node, _MESSAGE_TYPE[visit], group_id=str(round_), ttl=self.plan.deadline)
            for message_id in self.grid.push_messages([message]):
                if message_id:
                    waiting[message_id] = (node, asked)
                else:  # the node is gone
                    self.silent(node, asked)
        return waiting

    def take(self, reply: Message, node: int, asked: Asked) -> None:
        """Take in one reply: accepted, refused by the silo, or rejected here; never an exception."""
        name, channel = self.name(node), self.channels[node]
        if reply.has_error():
            self.reject(name, asked, _error_code(reply))
            return
        try:
            envelope = wire.unpack(reply.content, self.study.spec.size)
            received = channel.verify(envelope, None if envelope.vector is None else self.study.spec.digest)
        except Exception as error:  # whatever a stranger sends
            self.reject(name, asked, _own_code(error))
            return
        try:
            document = intake.check(received, asked, self.plan, self.study.spec)
        except Exception as error:
            log.warning("round %d: the reply of %s is rejected: %s", asked.round, name, _own_code(error))
            channel.reject(received, _own_code(error), asked.round)
            return
        facts: dict[str, object] = {}
        if isinstance(document, Manifest):
            if envelope.vector is not None and document.examples is not None:
                self.study.save_update(asked.round, name, envelope.vector)
                facts = {"base": document.base, "digest": document.digest, "weight": document.examples.weight}
            if document.metrics and document.evaluated is not None:
                facts |= {"metrics": document.metrics, "evaluated": document.evaluated.weight}
        elif isinstance(document, Refusal):
            log.warning("round %d: %s refuses: %s", asked.round, name, document.code)
            facts = {"code": document.code}
        channel.accept(received, facts)

    def silent(self, node: int, asked: Asked) -> None:
        """Write down that an order was not answered in time."""
        log.warning("round %d: %s is silent", asked.round, self.name(node))
        body = {"silo": self.name(node), "order": asked.order}
        self.study.ledger.append(Entry(Event.SILO_SILENT, body, self.study.digest, asked.round))

    def reject(self, name: str, asked: Asked, code: str) -> None:
        """Write down a reply that cannot even be traced to its sender."""
        log.warning("round %d: the reply of %s is rejected: %s", asked.round, name, code)
        body = {"silo": name, "order": asked.order, "code": code}
        self.study.ledger.append(Entry(Event.REPLY_REJECTED, body, self.study.digest, asked.round))

    def accepted(self, round_: int, base: str) -> "dict[str, _Accepted]":
        """The updates of a round that the ledger says were accepted and that are still on disk."""
        found: dict[str, _Accepted] = {}
        for record in self.study.ledger.records:
            if record.event != Event.UPDATE_RECEIVED or record.round != round_ or record.body["base"] != base:
                continue
            statement, digest = record.body["statement"], record.body["digest"]
            name = statement["src"]
            if self.study.has_update(round_, name, digest):
                load = functools.partial(self.study.load_update, round_, name, digest)
                xid = Statement.parse(statement).xid
                found[name] = _Accepted(xid, digest, Contribution(name, record.body["weight"], load))
        return found

    def name(self, node: int) -> str:
        """The hospital of a node."""
        return self.channels[node].peer.name


@dataclass(frozen=True)
class _Accepted:
    xid: str
    digest: str
    contribution: Contribution


def _error_code(reply: Message) -> str:
    """Flower's error as one of our words; its text is not repeated, whoever wrote it."""
    reason = reply.error.reason or ""
    return reason if is_wire_code(reason) else f"flower-error-{reply.error.code}"


def _own_code(error: Exception) -> str:
    return error.wire_code if isinstance(error, IntramuralError) else Malformed.code
