"""A hospital at work: an order comes in, an update or a refusal goes out, and both are written down.

Verify, write down, decide, work, write down, reply. Whatever goes wrong on the way becomes a refusal of one
word; the words of the error stay here. The work itself is `visit`.
"""

import logging
from pathlib import Path
from typing import Self

from models.console import Report
from models.errors import BadSignature, IntramuralError, LedgerError, Replayed, StaleBase
from models.exchange.channel import Channel
from models.exchange.documents import Agreement, Closing, Order
from models.exchange.statement import Envelope, Kind, Statement
from models.ledger import Entry, Event, Ledger, Signer, Verifier
from models.ledger.canonical import canonical, digest
from silos import gate
from silos.config import Site
from silos.visit import Bench, load_signer, set_up, visit

log = logging.getLogger("intramural.silo")


class Silo:
    """One hospital, open for work; holds its ledger's lock until closed.

    Args:
        site: The hospital's configuration.
        progress: Told how long work goes on.

    Raises:
        ConfigError: A wrong key file.
        LedgerError: The ledger is locked, or is not the one that was signed.
    """

    def __init__(self, site: Site, progress: Report | None = None) -> None:
        self.site = site
        self.signer = load_signer(site)
        self._progress = progress
        self._bench: Bench | None = None
        self._channels: dict[str, Channel] = {}
        self.ledger = open_ledger(site, self.signer)

    @classmethod
    def open(cls, path: Path | str, progress: Report | None = None) -> Self:
        """Open the hospital of a `site.toml`."""
        return cls(Site.load(path), progress)

    def close(self) -> None:
        """Give the ledger's lock back."""
        self.ledger.close()

    def answer(self, envelope: Envelope) -> Envelope:
        """Follow an order, or refuse it.

        Args:
            envelope: What arrived.

        Returns:
            An update, a report, a closing or a refusal; its ledger line is durable.

        Raises:
            ProtocolError: The order cannot be traced to a sender; there is nobody to answer.
            LedgerError: The coordinator's ledger was rewritten, or this one cannot be written.
        """
        try:
            order = Order.decode(envelope.body)
            agreement = order.agreement
            channel = self._channel(agreement)
            received = channel.verify(envelope, None if order.visit == "close" else agreement.spec)
        except IntramuralError as error:
            log.warning("an order was rejected: %s", error.wire_code)
            self.ledger.append(Entry(Event.ORDER_REJECTED, {"code": error.wire_code}))
            raise
        channel.accept(received)
        try:
            return self._follow(order, received.statement, envelope, channel)
        except LedgerError:
            raise
        except Exception as error:  # whatever it is, one word of it leaves
            answer = gate.refusal(error)
            log.warning("round %d of %s: refused: %s", order.round, agreement.plan.name, answer.code)
            log.debug("the reason", exc_info=error)
            return channel.offer(Kind.REFUSAL, order.round, answer, answers=received.statement.xid)

    def _follow(self, order: Order, asked: Statement, envelope: Envelope, channel: Channel) -> Envelope:
        agreement = order.agreement
        if order.visit == "close":
            closing = Closing(orders=len(channel.received), replies=len(channel.sent), records=len(self.ledger.records))
            return channel.offer(Kind.CLOSING, order.round, closing, answers=asked.xid)
        done = self._rounds(agreement.study)
        others = {round_: base for round_, base in done.items() if round_ != order.round}
        gate.permit(self.site.policy, agreement, self._approved(agreement.plan.name), len(others))
        self._approve(agreement)
        if asked.payload != order.base:
            raise StaleBase("the model that came is not the one that the order names")
        repeated = order.visit == "train" and done.get(order.round, order.base) != order.base
        if repeated or order.round < max(done, default=0):
            raise Replayed(f"round {order.round} was answered before, for another model", detail="round")
        if not 1 <= order.round <= agreement.plan.rounds:
            raise Replayed(f"round {order.round} is none of the plan's", detail="round")
        if self._bench is None or self._bench.study != agreement.study:
            self._bench = None  # before the next one is made: two would not fit a small machine
            self._bench = set_up(self.site, agreement, self._progress)
        release = visit(self.site, self.signer, self._bench, order, envelope.vector, len(others), self._progress)
        if release.vector is None:
            return channel.offer(Kind.REPORT, order.round, release.manifest, answers=asked.xid)
        return channel.offer(
            Kind.UPDATE,
            order.round,
            release.manifest,
            spec=agreement.spec,
            vector=release.vector,
            answers=asked.xid,
            facts={"base": order.base},
        )

    def _channel(self, agreement: Agreement) -> Channel:
        study = agreement.study
        if study not in self._channels:
            coordinator = Verifier.parse(agreement.coordinator_key)
            if coordinator.name != agreement.plan.coordinator:
                raise BadSignature("the coordinator's key has another name than the plan's coordinator")
            self._channels[study] = Channel(self.ledger, self.signer, coordinator, study)
        return self._channels[study]

    def _approved(self, name: str) -> str | None:
        """The digest under which a study of this name was first approved here."""
        found = (r.study for r in self.ledger.records if r.event == Event.STUDY_APPROVED and r.body["name"] == name)
        return next(found, None)

    def _approve(self, agreement: Agreement) -> None:
        """Write down, once, that the policy lets this study in."""
        study, plan = agreement.study, agreement.plan
        if not any(r.event == Event.STUDY_APPROVED and r.study == study for r in self.ledger.records):
            policy = digest(canonical(self.site.policy.model_dump(mode="json")))
            body = {
                "agreement": self.ledger.store(agreement.encode()),
                "name": plan.name,
                "purpose": plan.purpose,
                "recipient": plan.coordinator,
                "recipient_key": agreement.coordinator_key,
                "policy": policy,
            }
            self.ledger.append(Entry(Event.STUDY_APPROVED, body, study=study))

    def _rounds(self, study: str) -> dict[int, str]:
        """The rounds of a study for which an update was offered, each with its base model."""
        return {
            record.round: record.body["base"]
            for record in self.ledger.records
            if record.event == Event.UPDATE_OFFERED and record.study == study and record.round is not None
        }


def open_ledger(site: Site, signer: Signer) -> Ledger:
    """The hospital's ledger, made at its first use; says so when the policy changed since."""
    folder = site.run.work / "ledger"
    policy = site.policy.model_dump(mode="json")
    if not folder.exists():
        site.run.work.mkdir(parents=True, exist_ok=True, mode=0o700)
        return Ledger.create(folder, signer, {"policy": policy})
    ledger = Ledger.open(folder, signer)
    known = [record.body["policy"] for record in ledger.records if record.event in _POLICY_EVENTS]
    if known[-1] != policy:
        ledger.append(Entry(Event.POLICY_CHANGED, {"policy": policy}))
    return ledger


_POLICY_EVENTS = {Event.LOG_OPENED, Event.POLICY_CHANGED}
