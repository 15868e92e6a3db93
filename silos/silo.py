"""A hospital at work: an order comes in, a release or a refusal goes out, and both are written down.

The straight line is `set_up` (index, cohort, images) and `visit` (evaluate the model that came, train,
gate). `Silo.answer` puts the exchange around it: verify, write down, decide, work, write down, reply. Whatever goes
wrong on the way becomes a refusal of one word; the words of the error stay here.
"""

import importlib.metadata
import logging
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch

from models import tasks
from models.console import Report
from models.errors import (
    BadSignature,
    ConfigError,
    IntramuralError,
    LedgerError,
    NotFinite,
    Replayed,
    SpecMismatch,
    StaleBase,
)
from models.exchange.channel import Channel
from models.exchange.documents import Agreement, Closing, Manifest, Order
from models.exchange.spec import Vector, vector_digest
from models.exchange.statement import Envelope, Kind, Statement
from models.ledger import Entry, Event, Ledger, Signer, Verifier
from models.ledger.canonical import canonical, digest
from models.plan import Plan
from models.tasks import Task
from models.tasks.flat import FlatNetwork
from silos import cohort, dataset, gate, training
from silos.cohort import Cohort
from silos.config import Site
from silos.dataset import Dataset
from silos.dicom.scan import Scan, scan

log = logging.getLogger("intramural.silo")


@dataclass(frozen=True)
class Bench:
    """One study's network and data, warm between rounds."""

    study: str
    task: Task
    network: FlatNetwork
    data: Dataset


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
            LedgerError: The ledger cannot be written; nothing may leave.
        """
        try:
            order = Order.decode(envelope.body)
            agreement = order.agreement
            channel = self._channel(agreement)
            received = channel.verify(envelope, None if order.visit == "close" else agreement.spec)
        except LedgerError:
            raise
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


def set_up(site: Site, agreement: Agreement, progress: Report | None = None) -> Bench:
    """Make the network and the data of a study ready.

    Raises:
        ConfigError: The label table is wrong, or the network cannot be built.
        DataError: The data cannot be used.
    """
    plan = agreement.plan
    task = tasks.task(plan.task)
    network = FlatNetwork(task.build(plan.seed), training.device_for(site.run.device))
    return Bench(agreement.study, task, network, load_data(site, plan, task, progress))


def visit(
    site: Site,
    signer: Signer,
    bench: Bench,
    order: Order,
    model: Vector | None,
    rounds_done: int,
    progress: Report | None = None,
) -> gate.Release:
    """The straight line from a model to what may leave. Sends and records nothing.

    Args:
        site: The hospital.
        signer: Its key, from which the noise's is derived.
        bench: The study's network and data.
        order: `train` or `evaluate`.
        model: The base model, `(spec.size,)` float32.
        rounds_done: Rounds of this study released before.
        progress: Told how long work goes on.

    Raises:
        PolicyError: The policy forbids it.
        ProtocolError: The model is not one of this study.
        Unusable: Training gave no usable numbers.
    """
    agreement, plan, network = order.agreement, order.agreement.plan, bench.network
    if network.spec.digest != agreement.spec or model is None or model.shape != (network.spec.size,):
        raise SpecMismatch("the model is not of the network that the plan names")
    if not np.isfinite(model).all():
        raise NotFinite("the model holds NaN or infinity")
    matched = bench.data.cohort
    gate.require_patients(site.policy, matched.patients(held_out=False))

    torch.set_num_threads(site.run.threads)
    network.load(model)
    metrics = training.evaluate(network, bench.task, bench.data.held_out)
    delta = None
    if order.visit == "train":
        delta = training.fit(
            network,
            bench.task,
            bench.data.train,
            plan.training,
            mu=plan.strategy.mu,
            seed=training.seed_for(plan.seed, site.name, order.round),
            on_step=_named(progress, "training"),
        )
    update = gate.Update(
        base=order.base,
        delta=delta,
        patients=matched.patients(held_out=False),
        images=len(bench.data.train.targets),
        evaluated_patients=matched.patients(held_out=True),
        evaluated_images=len(bench.data.held_out.targets),
        metrics=metrics,
    )
    return gate.release(
        site.policy,
        agreement,
        update,
        network.spec,
        rounds=rounds_done + 1,
        secret=signer.derive(b"intramural noise v1"),
        software=software(),
    )


def preview(site: Site, plan: Plan, progress: Report | None = None) -> Manifest:
    """The manifest that a first round of a study would send. Sends nothing and writes no ledger line.

    Raises:
        PolicyError: The policy would refuse.
        DataError: The data cannot be used.
    """
    signer = load_signer(site)
    network = FlatNetwork(tasks.task(plan.task).build(plan.seed))
    model = network.weights.numpy().copy()
    initial = vector_digest(network.spec.digest, model)
    agreement = Agreement(plan=plan, coordinator_key=signer.vkey, initial=initial, spec=network.spec.digest)
    # A pinned digest cannot be that of a study which does not exist yet; the name must be allowed all the same.
    pinned = next((entry.partition("@")[2] for entry in site.policy.studies if entry.startswith(f"{plan.name}@")), None)
    if pinned is None:
        gate.permit(site.policy, agreement, None, 0)
    order = Order(agreement=agreement, round=1, visit="train", base=initial)
    return visit(site, signer, set_up(site, agreement, progress), order, model, 0, progress).manifest


def load_signer(site: Site) -> Signer:
    """The hospital's key.

    Raises:
        ConfigError: It is missing, others can read it, or it is another hospital's.
    """
    signer = Signer.load(site.key)
    if signer.name != site.name:
        raise ConfigError(
            f"key: {site.key} is the key of {signer.name!r}, the site is {site.name!r}", "name the site's own key"
        )
    return signer


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


def scan_site(site: Site, progress: Report | None = None) -> Scan:
    """Index the hospital's folder."""
    data = site.data
    site.run.work.mkdir(parents=True, exist_ok=True, mode=0o700)
    return scan(
        data.root,
        site.run.work / "index.sqlite",
        modality=data.modality,
        attributes=list(data.labels.join),
        burned_in=data.burned_in,
        progress=_named(progress, "reading headers"),
    )


def load_cohort(site: Site, plan: Plan, progress: Report | None = None) -> Cohort:
    """The cases of one study in this hospital, from headers and labels; no pixel is read."""
    found = scan_site(site, progress)
    instances = found.instances[found.instances["Modality"].isin(plan.task.modality)]
    left_out = dict(found.left_out)
    if other := len(found.instances) - len(instances):
        left_out["modality not of this study"] = other
    return cohort.match(instances, site.data, plan.task.classes, left_out)


def load_data(site: Site, plan: Plan, task: Task, progress: Report | None = None) -> Dataset:
    """The images of one study in this hospital, decoded once."""
    return dataset.prepare(
        load_cohort(site, plan, progress),
        site.data.root,
        site.run.work / "cache",
        plan.task,
        task,
        _named(progress, "decoding"),
    )


def software() -> dict[str, str]:
    """Names and versions of what computes an update."""
    names = ("intramural", "torch", "monai", "pydicom", "flwr")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def _named(progress: Report | None, what: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(what, done, total)
