"""A hospital at work: an order comes in, an update or a refusal goes out, and both are written down.

Verify, write down, decide, work, decide again, write down, reply. Whatever goes wrong on the way becomes a
refusal of one word; the words of the error stay here. The work itself is `visit`, who decides stands in
`decisions` and `gate`.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from models.errors import (
    BadSignature,
    IntramuralError,
    LedgerError,
    Malformed,
    Replayed,
    Rewritten,
    StaleBase,
)
from models.exchange.channel import Channel, Received
from models.exchange.documents import Agreement, Closing, Manifest, Order, Survey
from models.exchange.encoding import Encoding
from models.exchange.spec import Vector
from models.exchange.statement import Envelope, Evidence, Kind, Statement
from models.ledger import Entry, Event, Record, Verifier
from silos import gate, local_norm, witness
from silos.approval import decisions
from silos.config import Site
from silos.keys import load_signer
from silos.network.enrolment import invitation
from silos.pace import Pace, within
from silos.visit import Bench, Fit, set_up, survey, visit

log = logging.getLogger("intramural.silo")

_WITH_MODEL = ("train", "evaluate")  # orders that bring one


@dataclass(frozen=True)
class _Released:
    """An update that was offered: in which round, from which model, and its noise in units of its bound."""

    round: int
    base: str
    noise: float


class Silo:
    """One hospital, open for work; holds its ledger's lock until closed, and may be opened again.

    Args:
        site: The hospital's configuration.
        hurried: Whether the round's deadline is kept by the clock, where a study takes partial work. In a simulation
            it is not: hospitals there wait for each other.

    Attributes:
        fit: In a simulation, what trains it together with others; see `visit`. Set once it is open.

    Raises:
        ConfigError: A wrong key file.
        LedgerError: The ledger is locked, or is not the one that was signed.
    """

    fit: Fit | None = None

    def __init__(self, site: Site, *, hurried: bool = True) -> None:
        self.site = site
        self.signer = load_signer(site)
        self._hurried = hurried
        self._noises: dict[str, float] = {}  # of updates that were offered, by the manifest's digest
        self._bench: Bench | None = None
        self._coordinator = invitation(site).key if site.run.coordinator else None
        self.wake()

    @classmethod
    def open(cls, path: Path | str, *, hurried: bool = True, threads: int | None = None) -> Self:
        """Open the hospital of a `site.toml`, perhaps with another number of threads than it says."""
        site = Site.load(path)
        if threads is not None:
            site = site.model_copy(update={"run": site.run.model_copy(update={"threads": threads})})
        return cls(site, hurried=hurried)

    def wake(self) -> None:
        """Open the ledger, after `close` again; network and data are still warm then.

        Raises:
            LedgerError: The ledger is locked, or is not the one that was signed.
        """
        self._channels: dict[str, Channel] = {}
        self.ledger = decisions.open_ledger(self.site, self.signer)
        try:
            self.tend()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the ledger's lock back."""
        self.ledger.close()

    def tend(self) -> None:
        """Write down what people said of studies since the last time; cheap, and to be called often.

        Raises:
            LedgerError: It could not be written down.
        """
        decisions.absorb(self.site, self.signer, self.ledger)

    def answer(self, envelope: Envelope, again: bool = False) -> Envelope:
        """Follow an order, or refuse it.

        Args:
            envelope: What arrived.
            again: The process that was at work on it was killed, and nobody knows how far it came. The newest
                order is then followed once more although it was received before; an answer that was written
                down and perhaps never left stays in the ledger, and the new one comes after it.

        Returns:
            An update, a report, a survey, a closing or a refusal; its ledger line is durable.

        Raises:
            ProtocolError: The order cannot be traced to a sender; there is nobody to answer.
            LedgerError: The coordinator's ledger was rewritten, or this one cannot be written.
        """
        came = time.monotonic()
        self.tend()
        try:
            order = Order.decode(envelope.body)
            agreement = order.agreement
            channel = self._channel(agreement)
            received = channel.verify(envelope, agreement.spec if order.visit in _WITH_MODEL else None, again=again)
            if received.statement.kind is not Kind.ORDER:
                raise Malformed("is signed as something else than an order", detail="kind")
            witness.keep_roster(self.ledger, order, envelope.evidence)
        except IntramuralError as error:
            self._reject(error, envelope)
            raise
        if not received.again:
            channel.accept(received)
        try:
            return self._follow(order, received, channel, came)
        except Rewritten as error:
            self._reject(error, envelope)
            raise
        except LedgerError:
            raise
        except Exception as error:  # whatever it is, one word of it leaves
            answer = gate.refusal(error)
            log.warning("round %d of %s: refused: %s", order.round, agreement.plan.name, answer.code)
            log.debug("the reason", exc_info=error)
            return channel.offer(Kind.REFUSAL, order.round, answer, answers=received.statement.xid)

    def part(self, evidence: Evidence) -> Evidence:
        """Take the coordinator's leave at the end of a study, and give this hospital's.

        Raises:
            ProtocolError: It is of no coordinator that this hospital trained for.
            LedgerError: The coordinator's ledger was rewritten, or its leave cannot be kept.
        """
        xid = evidence.receipt and evidence.receipt[0]
        offered = (record for record in reversed(self.ledger.records) if record.event.endswith(".offered"))
        sent = next((record for record in offered if Statement.parse(record.body["statement"]).xid == xid), None)
        approved = [record for record in self.ledger.of(Event.STUDY_APPROVED) if sent and record.study == sent.study]
        if not approved:
            raise Malformed("the farewell is of no study that was taken part in", detail="study")
        channel = self._channel(Agreement.decode(self.ledger.manifest(approved[0].body["agreement"])))
        channel.part(evidence)
        return channel.farewell()

    def _follow(self, order: Order, received: Received, channel: Channel, came: float) -> Envelope:
        agreement, asked, vector = order.agreement, received.statement, received.envelope.vector
        if order.visit == "close":
            closing = Closing(orders=len(channel.received), replies=len(channel.sent), records=len(self.ledger.records))
            return channel.offer(Kind.CLOSING, order.round, closing, answers=asked.xid)
        if order.visit == "survey":
            return self._survey(order, asked, channel)
        released = self._released(agreement.study)
        noises = {digest: update.noise for digest, update in released.items()}
        other_rounds = [update.noise for update in released.values() if update.round != order.round]
        self._permit(agreement, other_rounds)
        witness.require(self.ledger, self.signer.verifier, channel.peer, order, received)
        if asked.payload != order.base:
            raise StaleBase("the model that came is not the one that the order names")
        bases = {update.round: update.base for update in released.values()}
        repeated = order.visit == "train" and bases.get(order.round, order.base) != order.base
        if repeated or order.round < max(bases, default=0):
            raise Replayed(f"round {order.round} was answered before, for another model", detail="round")
        if not 1 <= order.round <= agreement.plan.rounds:
            raise Replayed(f"round {order.round} is none of the plan's", detail="round")
        if len(self._models(agreement.study)) > agreement.plan.rounds + 1:
            raise Replayed("more models came than the plan's rounds can make", detail="round")
        if self._bench is None or self._bench.study != agreement.study:
            self._bench = None  # before the next one is made: two would not fit a small machine
            self._bench = set_up(self.site, agreement)
        kept = self.site.run.work / "local" / agreement.study
        local_norm.recall(kept, self._bench.network, order.round, order.counted, train=order.visit == "train")
        partial = self._hurried and agreement.plan.stragglers == "partial"
        pace = within(agreement.plan.deadline, came) if partial else None
        release = self._work(self._bench, order, vector, noises, pace)
        self._bench.data.rest()
        told = release.manifest.digest
        of_round = {digest for digest, update in released.items() if update.round == order.round}
        if told is not None and of_round - {told}:  # their difference would be of a few steps, and of few patients
            raise Replayed(f"round {order.round} was answered before, with another update", detail="round")
        if order.visit == "train":
            local_norm.remember(kept, self._bench.network, order.round, order.counted)
        self.tend()
        # Who said no meanwhile is obeyed; the work may have taken hours. Done again, it may come out otherwise.
        self._permit(agreement, other_rounds if told is None else gate.others(noises, told))
        if release.vector is None:
            return channel.offer(Kind.REPORT, order.round, release.manifest, answers=asked.xid)
        return channel.offer(
            Kind.UPDATE,
            order.round,
            release.manifest,
            spec=agreement.spec,
            vector=release.vector,
            encoding=Encoding(agreement.plan.encoding, self._bench.network.spec),
            payload=told,
            answers=asked.xid,
            facts={"base": order.base},
        )

    def _work(
        self, bench: Bench, order: Order, model: Vector | None, released: Mapping[str, float], pace: Pace | None
    ) -> gate.Release:
        """Evaluate, train, and pass the gate; a simulation's faults come in here (`silos.faults`)."""
        return visit(self.site, self.signer, bench, order, model, released, pace=pace, fit=self.fit)

    def _survey(self, order: Order, asked: Statement, channel: Channel) -> Envelope:
        """Tell what could be trained on: once, and then always the same."""
        agreement = order.agreement
        self._permit(agreement, ())
        if order.round != 0:
            raise Replayed("a survey is asked for in round 0", detail="round")
        told = [record for record in self.ledger.of(Event.SURVEY_OFFERED) if record.study == agreement.study]
        said = Survey.decode(self.ledger.manifest(told[0].body["statement"]["body"])) if told else None
        document = survey(self.site, agreement.plan, said)
        self.tend()
        self._permit(agreement, ())
        return channel.offer(Kind.SURVEY, order.round, document, answers=asked.xid)

    def _channel(self, agreement: Agreement) -> Channel:
        study = agreement.study
        if study not in self._channels:
            if self._coordinator not in (None, agreement.coordinator_key):
                raise BadSignature("the study is not of the coordinator that this hospital joined")
            coordinator = Verifier.parse(agreement.coordinator_key)
            if coordinator.name != agreement.plan.coordinator:
                raise BadSignature("the coordinator's key has another name than the plan's coordinator")
            self._channels[study] = Channel(self.ledger, self.signer, coordinator, study)
        return self._channels[study]

    def _reject(self, error: IntramuralError, envelope: Envelope) -> None:
        """Write down that what arrived is no order to follow; of a rewritten past, with both signed heads."""
        log.warning("an order was rejected: %s", error.wire_code)
        body = {"code": error.wire_code}
        if isinstance(error, Rewritten):
            channel = self._channel(Order.decode(envelope.body).agreement)
            body["evidence"] = self.ledger.store(channel.against(envelope))
        self.ledger.append(Entry(Event.ORDER_REJECTED, body))

    def _permit(self, agreement: Agreement, released: Sequence[float]) -> None:
        """Refuse what nobody approved; write down, once, that the policy lets a study in."""
        said = decisions.standing(self.ledger.of(*decisions.WORDS), agreement.plan.name)
        gate.permit(self.site.policy, agreement, said, released)
        if not any(record.study == agreement.study for record in self.ledger.of(Event.STUDY_APPROVED)):
            self.ledger.append(decisions.approved(self.site, self.ledger, agreement, by="policy"))

    def _released(self, study: str) -> dict[str, "_Released"]:
        """The updates of a study that were offered, by digest; one that was offered twice stands there once."""
        return {
            record.body["statement"]["payload"]: _Released(record.round, record.body["base"], self._noise(record))
            for record in self.ledger.of(Event.UPDATE_OFFERED)
            if record.study == study and record.round is not None
        }

    def _noise(self, record: Record) -> float:
        """The noise of an update that was offered, from its manifest; 0 where nobody asks."""
        if self.site.policy.noise == 0:
            return 0.0  # with one more that has none, epsilon is infinite whatever they had
        name = record.body["statement"]["body"]
        if name not in self._noises:
            self._noises[name] = gate.noise_of(Manifest.decode(self.ledger.manifest(name)))
        return self._noises[name]

    def _models(self, study: str) -> set[str]:
        """The models of a study that came, by digest."""
        came = (r.body["statement"]["payload"] for r in self.ledger.of(Event.ORDER_RECEIVED) if r.study == study)
        return {digest for digest in came if digest is not None}
