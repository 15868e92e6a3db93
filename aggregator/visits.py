"""One visit to the hospitals of a study: an order to each, and one ledger line for whatever comes back.

Not all need be asked for the same: where a study draws who trains, the others are asked to evaluate, and all are shown
one head of the ledger, so that they are each other's witnesses however few train.

A visit ends when every hospital has answered or the round's deadline has passed. Two kinds of hospital get
their order once more: one that went away with it, as one that is started again does, when it is back; and one
that refused because too few others were known to have seen what it saw, when enough are.
"""

import logging
import time
from collections.abc import Iterable, Mapping

from flwr.app import Message, MessageType

from aggregator import intake, witnesses
from aggregator.grid import StudyGrid
from aggregator.intake import Asked
from aggregator.study import Position, Study
from models.errors import IntramuralError, Malformed, NotWitnessed, is_wire_code
from models.exchange import wire
from models.exchange.channel import Channel, offer
from models.exchange.documents import Manifest, Order, Refusal, VisitKind
from models.exchange.statement import Kind
from models.exchange.witness import Testimony
from models.ledger import Entry, Event

log = logging.getLogger("intramural.aggregator")

POLL = 0.2
"""Seconds between two looks at the hospitals."""

_SLOWEST = 2.0  # seconds between two looks, at most
_PATIENCE = 20  # a look for replies is due when a twentieth of the time waited so far has passed
_RETURN = 90.0  # seconds that a hospital which went away with an order is waited for; Flower refuses it for 60
_LEAVE = 30.0  # seconds that a hospital's farewell is waited for
_MESSAGE_TYPE = {
    "survey": MessageType.QUERY,
    "train": MessageType.TRAIN,
    "evaluate": MessageType.EVALUATE,
    "close": MessageType.QUERY,
}

_LATE = (3, 4)  # Flower's codes for "the order, or the reply, came too late"
_AWAY = 5  # Flower's code for "the node is gone": no answer to that order will come
_FLOWER = {2: "app-failed", _AWAY: "node-gone", 8: "executor-stopped"}
"""What Flower answers for a hospital that does not, by its code."""


def take_leave(grid: StudyGrid, channels: Mapping[int, Channel], nodes: Iterable[int]) -> None:
    """Exchange the last heads at the end of a study; a hospital that does not answer keeps what it has."""
    waiting: dict[str, int] = {}
    for node in nodes:
        records = wire.pack_farewell(channels[node].farewell())
        waiting |= dict.fromkeys(grid.push_messages([Message(records, node, MessageType.QUERY, ttl=_LEAVE)]), node)
    end = time.monotonic() + _LEAVE
    while waiting and time.monotonic() < end:
        for reply in grid.pull_messages(list(waiting)):
            if (message_id := reply.metadata.reply_to_message_id) not in waiting:
                continue
            node = waiting.pop(message_id)
            try:
                if not reply.has_error():
                    channels[node].part(wire.unpack_farewell(reply.content))
                    continue
                code = _error_code(reply)
            except Exception as error:  # whatever a stranger sends
                code = _own_code(error)
            log.warning("%s did not take its leave: %s", channels[node].peer.name, code)
        if waiting:
            time.sleep(POLL)


class Visit:
    """One visit to hospitals of a study.

    Args:
        study: Open for work.
        grid: Its hospitals.
        channels: The exchange with each, by node.
        kinds: What is asked of whom, by node.
        round_: The study's round.
        position: Where the study is.
    """

    def __init__(
        self,
        study: Study,
        grid: StudyGrid,
        channels: Mapping[int, Channel],
        kinds: Mapping[int, VisitKind],
        round_: int,
        position: Position,
    ) -> None:
        self.study, self.grid, self.channels = study, grid, channels
        self.kinds, self.round, self.position = kinds, round_, position
        self.waiting: dict[str, tuple[int, Asked]] = {}  # by Flower's number of the message
        self.away: dict[int, tuple[Asked, float]] = {}  # since when
        self.unwitnessed: set[int] = set()
        self.returned: set[int] = set()  # asked again for that reason; nobody is asked twice for the same
        self.witnessed: set[int] = set()

    def make(self, *, again: bool = True) -> None:
        """Send the orders and take in what comes back.

        Args:
            again: Whether to ask once more who refused for want of witnesses, when it has them. Its refusal makes it
                one of the witnesses already.

        Raises:
            LedgerError: The ledger cannot be written; nothing was sent after that.
        """
        deadline = self.study.plan.deadline
        started = time.monotonic()
        self.send(self.kinds)
        while self.waiting or self.away:
            for reply in self.grid.pull_messages(list(self.waiting)):
                self.take(reply)
                del reply  # before the next one comes: one model is in memory, not two
            waited = time.monotonic() - started
            if waited > deadline:
                break
            self.send(self.back())
            self.send(self.vouched() if again else [])
            if self.waiting or self.away:
                time.sleep(min(max(waited / _PATIENCE, POLL), _SLOWEST))
        for node, asked in [*self.waiting.values(), *((node, asked) for node, (asked, _) in self.away.items())]:
            self.silent(node, asked)

    def send(self, nodes: Iterable[int]) -> None:
        """Send an order to each node."""
        nodes = sorted(nodes, key=self.name)
        if not nodes:
            return
        study, base = self.study, self.position.digest
        array = model = None
        testimony = Testimony()
        kinds = {self.kinds[node] for node in nodes}
        counted = self.counted() if study.plan.strategy.name == "scaffold" else {}
        asks = {node: (self.kinds[node], counted.get(node)) for node in nodes}
        if kinds & {"train", "evaluate"}:
            array = wire.pack_vector(study.load_model(self.position.model, base))
            model = wire.unpack_vector(array, study.spec.size)  # a view: one model is in memory, not two
            testimony = witnesses.testimony(study)
        orders = {
            (kind, last): Order(
                agreement=study.agreement,
                round=self.round,
                visit=kind,
                base=base,
                witnesses=testimony.roster_digest if testimony.roster else None,
                counted=last,
            )
            for kind, last in set(asks.values())
        }
        spec = None if model is None else study.spec.digest
        drafts = [
            self.channels[node].draft(
                Kind.ORDER,
                self.round,
                orders[asks[node]],
                spec=spec,
                vector=model,
                payload=base,
                testimony=testimony,
            )
            for node in nodes
        ]
        for node, envelope in zip(nodes, offer(drafts), strict=True):
            asked = Asked(self.kinds[node], self.round, self.channels[node].sent[-1], base)
            records = wire.pack(envelope, array)
            ttl = study.plan.deadline
            message = Message(records, node, _MESSAGE_TYPE[asked.visit], group_id=str(self.round), ttl=ttl)
            for message_id in self.grid.push_messages([message]):
                if message_id:
                    self.waiting[message_id] = (node, asked)
                else:  # the node is gone
                    self.silent(node, asked)

    def counted(self) -> dict[int, int | None]:
        """The last round whose model took a hospital's update, by node; of those that are to train."""
        sums = self.study.ledger.of(Event.AGGREGATED)
        rounds = {item["silo"]: record.round for record in sums for item in record.body["inputs"]}
        return {node: rounds.get(self.name(node)) for node, kind in self.kinds.items() if kind == "train"}

    def back(self) -> list[int]:
        """Hospitals that went away with their order and are back; who stays away too long is silent."""
        there = set(self.grid.get_node_ids()) if self.away else set()
        found = []
        for node, (asked, since) in list(self.away.items()):
            if node in there:
                log.info("round %d: %s is back, and is asked again", self.round, self.name(node))
                del self.away[node]
                found.append(node)
            elif node not in self.grid.roster or time.monotonic() - since > _RETURN:
                del self.away[node]
                self.silent(node, asked)
        self.returned.update(found)
        return found

    def vouched(self) -> list[int]:
        """Hospitals that refused for want of witnesses, and now have them."""
        if not self.unwitnessed:
            return []
        shown = {self.name(node): self.channels[node].sizes[-2] for node in self.unwitnessed}
        lacking = witnesses.lacking(self.study, shown)
        found = [node for node in sorted(self.unwitnessed) if self.name(node) not in lacking]
        self.unwitnessed.difference_update(found)
        self.witnessed.update(found)
        return found

    def take(self, reply: Message) -> None:
        """Take in one reply: accepted, refused by the silo, or rejected here; never an exception."""
        node, asked = self.waiting.pop(reply.metadata.reply_to_message_id, (None, None))
        if node is None or asked is None:
            return
        name, channel, study = self.name(node), self.channels[node], self.study
        if reply.has_error():
            if reply.error.code == _AWAY and node not in self.returned:
                log.warning("round %d: %s went away", self.round, name)
                self.away[node] = (asked, time.monotonic())
            elif reply.error.code in _LATE:
                self.silent(node, asked)
            else:
                self.reject(name, asked, _error_code(reply))
            return
        try:
            envelope = wire.unpack(reply.content, study.spec.size, study.encoding)
            received = channel.verify(envelope, None if envelope.vector is None else study.spec)
        except Exception as error:  # whatever a stranger sends
            self.reject(name, asked, _own_code(error))
            return
        try:
            document = intake.check(received, asked, study.plan, study.spec)
        except Exception as error:
            log.warning("round %d: the reply of %s is rejected: %s", self.round, name, _own_code(error))
            channel.reject(received, _own_code(error), self.round)
            return
        facts: dict[str, object] = {}
        if isinstance(document, Manifest):
            if envelope.vector is not None and document.examples is not None and document.digest is not None:
                study.save_update(self.round, name, envelope.vector, document.digest)
                facts = {"base": document.base, "digest": document.digest, "weight": document.examples.weight}
                if document.work is not None:
                    facts["work"] = document.work
            if document.metrics and document.evaluated is not None:
                facts |= {"metrics": document.metrics, "evaluated": document.evaluated.weight}
        elif isinstance(document, Refusal):
            log.warning("round %d: %s refuses: %s", self.round, name, document.code)
            facts = {"code": document.code}
            first = len(channel.sizes) == 1  # it shows a past that nobody can have witnessed
            if document.code == NotWitnessed.code and node not in self.witnessed and not first:
                self.unwitnessed.add(node)
        channel.accept(received, facts)

    def silent(self, node: int, asked: Asked) -> None:
        """Write down that an order was not answered in time."""
        log.warning("round %d: %s is silent", self.round, self.name(node))
        body = {"silo": self.name(node), "order": asked.order}
        self.study.ledger.append(Entry(Event.SILO_SILENT, body, self.study.digest, self.round))

    def reject(self, name: str, asked: Asked, code: str) -> None:
        """Write down a reply that cannot even be traced to its sender."""
        log.warning("round %d: the reply of %s is rejected: %s", self.round, name, code)
        body = {"silo": name, "order": asked.order, "code": code}
        self.study.ledger.append(Entry(Event.REPLY_REJECTED, body, self.study.digest, self.round))

    def name(self, node: int) -> str:
        """The hospital of a node."""
        return self.channels[node].peer.name


def _error_code(reply: Message) -> str:
    """Flower's error as one of our words; its text is not repeated, whoever wrote it."""
    reason = reply.error.reason or ""
    return reason if is_wire_code(reason) else _FLOWER.get(reply.error.code, f"flower-error-{reply.error.code}")


def _own_code(error: Exception) -> str:
    return error.wire_code if isinstance(error, IntramuralError) else Malformed.code
