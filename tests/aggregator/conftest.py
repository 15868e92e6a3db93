"""A study with hospitals that need no image: real keys, ledgers and channels, made-up updates.

A hospital can be told to misbehave: what it then answers is its poison's, and it holds a valid key.
"""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message, RecordDict
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from aggregator.grid import StudyGrid
from aggregator.history import History, read_history
from aggregator.rounds import Outcome, run
from aggregator.study import Study
from models.canonical import canonical, digest
from models.exchange import wire
from models.exchange.channel import Channel
from models.exchange.documents import Agreement, Closing, Document, Order
from models.exchange.spec import Spec, Vector, load_vector, save_vector, tensor_digests, update_digest
from models.exchange.statement import Envelope, Kind
from models.ledger import Entry, Event, Ledger, Signer, Verifier

SPEC = Spec.of({"conv.bias": (2,), "conv.weight": (2, 3), "head.weight": (4,)})
NAMES = ("east", "north", "south", "west")

PLAN = """
name = "toy"
purpose = "Test."
rounds = {rounds}
min_silos = {min_silos}
deadline = {deadline}
weights = "{weights}"
metrics = ["loss", "auc"]
max_norm = 100.0
max_bytes = "1 MB"
encoding = "float32"
keep_updates = {keep_updates}

[task]
name = "classification"
classes = ["none", "lesion"]
modality = ["MR"]
size = [8, 8]
percentiles = [1.0, 99.0]

[task.network]
name = "cnn"

[training]
steps = 1
learning_rate = 0.1

[strategy]
{strategy}
"""


class Raw(Document):
    """A document of any bytes, as somebody with a key can sign one."""

    content: bytes

    def encode(self) -> bytes:
        """The bytes."""
        return self.content


Poison = Callable[["Hospital", Order, str], "RecordDict | Error"]


class Hospital:
    """A hospital that answers with made-up updates.

    Attributes:
        images: Its weight.
        poison: What it answers in round `poisoned`, if it misbehaves.
        silent: Whether it answers at all.
        told: What it says in a survey, and `told_as` what kind of statement it calls that.
        outbox: Every envelope it made.
    """

    def __init__(self, folder: Path, name: str, images: int) -> None:
        self.name, self.images, self.folder = name, images, folder
        self.signer = Signer.from_seed(name, hashlib.sha256(name.encode()).digest())
        self.ledger = (
            Ledger.open(folder, self.signer) if folder.exists() else Ledger.create(folder, self.signer, {"policy": {}})
        )
        self.poison: Poison | None = None
        self.poisoned = 2
        self.silent = False
        self.told: dict[str, Any] = {"v": 1, "least": 11, "totals": {"patients": {"low": 20, "high": 49}}, "tables": {}}
        self.told_as = Kind.SURVEY
        self.neighbour: Hospital | None = None
        self.outbox: list[Envelope] = []
        self._channels: dict[str, Channel] = {}

    def channel(self, agreement: Agreement) -> Channel:
        """Its channel in a study; written down as approved the first time."""
        if agreement.study not in self._channels:
            hub = Verifier.parse(agreement.coordinator_key)
            self._channels[agreement.study] = Channel(self.ledger, self.signer, hub, agreement.study)
            if not any(
                record.event == Event.STUDY_APPROVED and record.study == agreement.study
                for record in self.ledger.records
            ):
                body = {
                    "agreement": self.ledger.store(agreement.encode()),
                    "name": agreement.plan.name,
                    "purpose": agreement.plan.purpose,
                    "recipient": hub.name,
                    "recipient_key": hub.vkey,
                    "policy": digest(canonical({})),
                    "by": "policy",
                }
                self.ledger.append(Entry(Event.STUDY_APPROVED, body, study=agreement.study))
        return self._channels[agreement.study]

    def answer(self, message: Message) -> Message:
        """Answer an order, honestly or not; or a farewell."""
        if wire.is_farewell(message.content):
            evidence = wire.unpack_farewell(message.content)
            for record in [r for r in self.ledger.records if r.event == Event.STUDY_APPROVED]:
                self.channel(Agreement.decode(self.ledger.manifest(record.body["agreement"])))
            (channel,) = [c for c in self._channels.values() if evidence.receipt and evidence.receipt[0] in c.sent]
            channel.part(evidence)
            return Message(wire.pack_farewell(channel.farewell()), reply_to=message)
        envelope = wire.unpack(message.content)
        order = Order.decode(envelope.body)
        channel = self.channel(order.agreement)
        received = channel.verify(envelope, order.agreement.spec if order.visit in ("train", "evaluate") else None)
        channel.accept(received)
        xid = received.statement.xid
        if self.poison and order.visit == "train" and order.round == self.poisoned:
            return Message(self.poison(self, order, xid), reply_to=message)
        return Message(wire.pack(self.honest(order, xid)), reply_to=message)

    def honest(self, order: Order, answers: str) -> Envelope:
        """What an honest hospital sends."""
        if order.visit == "train":
            return self.update(order, answers)
        if order.visit == "evaluate":
            return self.offer(order, Kind.REPORT, self.manifest(order, None), None, answers=answers)
        if order.visit == "survey":
            return self.offer(order, self.told_as, Raw(content=canonical(self.told)), None, answers=answers)
        closing = Closing(orders=1, replies=1, records=len(self.ledger.records))
        return self.offer(order, Kind.CLOSING, closing, None, answers=answers)

    def update(self, order: Order, answers: str, vector: Vector | None = None, **changes: Any) -> Envelope:
        """An update; `changes` go into its manifest."""
        vector = self.delta(order.round) if vector is None else vector
        document = self.manifest(order, vector, **changes)
        return self.offer(order, Kind.UPDATE, document, vector, answers=answers)

    def offer(
        self,
        order: Order,
        kind: Kind,
        document: Document,
        vector: Vector | None,
        *,
        answers: str | None,
        round_: int | None = None,
    ) -> Envelope:
        """Sign anything, write it down, hand it out."""
        envelope = self.channel(order.agreement).offer(
            kind,
            order.round if round_ is None else round_,
            document,
            spec=None if vector is None else SPEC,
            vector=vector,
            answers=answers,
            facts={"base": order.base} if kind is Kind.UPDATE else None,
        )
        self.outbox.append(envelope)
        return envelope

    def delta(self, round_: int) -> Vector:
        """Its difference to the model of a round; the same whenever it is asked."""
        seed = [round_, *self.name.encode()]
        return np.random.default_rng(seed).standard_normal(SPEC.size).astype(np.float32)

    def manifest(self, order: Order, vector: Vector | None, **changes: Any) -> Raw:
        """The manifest of a vector, or of metrics alone."""
        content: dict[str, Any] = {
            "v": 1,
            "base": order.base,
            "spec": SPEC.digest,
            "evaluated": {"unit": "images", "low": self.images, "high": self.images},
            "metrics": {"loss": 1 / (order.round + 1), "auc": 0.5 + self.images / 100},
            "software": {"python": "3.11"},
        }
        if vector is not None:
            content |= {
                "digest": update_digest(SPEC, tensor_digests(SPEC, vector)),
                "norm": 1.0,
                "tensors": [
                    {
                        "name": tensor.name,
                        "shape": list(tensor.shape),
                        "dtype": "float32",
                        "bytes": 4 * tensor.size,
                        "sha256": hashlib.sha256(part.tobytes()).hexdigest(),
                        "l2": 1.0,
                    }
                    for tensor, part in SPEC.split(vector)
                ],
                "filters": [{"name": "clip", "bound": 10.0}],
                "examples": {"unit": "images", "low": self.images, "high": self.images},
            }
            if order.agreement.plan.weights == "equal":
                content["examples"] = {"unit": "silos", "low": 1, "high": 1}
        content |= changes
        try:
            return Raw(content=canonical(content))
        except ValueError:  # NaN is no JSON, but it can be written all the same
            return Raw(content=json.dumps(content).encode())


class Hospitals(StudyGrid):
    """A Flower Grid over such hospitals."""

    def __init__(self, hospitals: Iterable[Hospital]) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self._run = Run.create_empty(1)
        self.hospitals = {7 * number: hospital for number, hospital in enumerate(hospitals, start=2)}
        self._roster = {node: hospital.signer.verifier for node, hospital in self.hospitals.items()}
        self._pending: dict[str, Message] = {}

    @property
    def roster(self) -> Mapping[int, Verifier]:
        """Who may take part."""
        return self._roster

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return self._run

    def set_run(self, run: Run) -> None:
        """Replace it."""
        self._run = run

    def create_message(self, *args: Any, **more: Any) -> Message:
        """Not used by a study."""
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        """Every node, in no useful order."""
        return list(reversed(self.hospitals))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid.uuid4())
            self._pending[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Let each hospital answer when its reply is asked for."""
        for message_id in message_ids:
            message = self._pending.pop(message_id, None)
            hospital = None if message is None else self.hospitals[message.metadata.dst_node_id]
            if message is not None and hospital is not None and not hospital.silent:
                yield hospital.answer(message)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Push and pull."""
        return self.pull_messages(self.push_messages(messages))


@dataclass
class Toy:
    """A study and its hospitals, open for work."""

    folder: Path
    study: Study
    hospitals: dict[str, Hospital]
    names: tuple[str, ...] = NAMES

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        rounds: int = 2,
        min_silos: int = 3,
        deadline: float = 30,
        strategy: str = 'name = "fedavg"',
        keep_updates: bool = False,
        weights: str = "images",
        names: tuple[str, ...] = NAMES,
    ) -> "Toy":
        """Make the study and its hospitals in a folder."""
        plan, initial = folder / "toy.toml", folder / "initial.safetensors"
        plan.write_text(
            PLAN.format(
                rounds=rounds,
                min_silos=min_silos,
                deadline=deadline,
                strategy=strategy,
                keep_updates=str(keep_updates).lower(),
                weights=weights,
            )
        )
        save_vector(initial, SPEC, np.linspace(-1, 1, SPEC.size, dtype=np.float32))
        Study.create(plan, folder / "toy", initial).close()
        return cls.open(folder, names)

    @classmethod
    def open(cls, folder: Path, names: tuple[str, ...] = NAMES) -> "Toy":
        """Open them again, as after the death of every process."""
        hospitals = {name: Hospital(folder / name, name, images=10 + 7 * number) for number, name in enumerate(names)}
        for name, neighbour in zip(names[1:], names, strict=False):
            hospitals[name].neighbour = hospitals[neighbour]
        return cls(folder, Study.open(folder / "toy"), hospitals, names)

    def reopen(self) -> "Toy":
        """The same after every process died and came back."""
        self.close()
        return Toy.open(self.folder, self.names)

    def close(self) -> None:
        """Give every lock back."""
        self.study.close()
        for hospital in self.hospitals.values():
            hospital.ledger.close()

    def run(self, **more: Any) -> Outcome:
        """Run the study to its end."""
        return run(self.study, self.grid(), **more)

    def grid(self) -> Hospitals:
        """The hospitals, as nodes of a grid."""
        return Hospitals(self.hospitals.values())

    def run_one(self) -> History:
        """One more round, and no further."""

        def stop(history: History) -> None:
            raise Enough

        with contextlib.suppress(Enough):
            self.run(on_round=stop)
        return read_history(self.study.ledger.records, self.study.plan)

    def poison(self, name: str, poison: Poison, round_: int = 2) -> None:
        """Let a hospital misbehave in one round."""
        self.hospitals[name].poison, self.hospitals[name].poisoned = poison, round_

    def model(self, number: int) -> Vector:
        """Model `number` as it lies on disk."""
        return load_vector(self.study.model_path(number))[1]

    def lines(self, event: Event, round_: int | None = None) -> list[dict[str, Any]]:
        """The aggregator's lines of one event."""
        return [
            record.body
            for record in self.study.ledger.records
            if record.event == event and round_ in (None, record.round)
        ]

    def mean(self, round_: int, names: Iterable[str]) -> Vector:
        """The next model by the formula, one float32 operation after the other, in order of name."""
        chosen = [self.hospitals[name] for name in sorted(names)]
        total = float(sum(hospital.images for hospital in chosen))
        mean = np.zeros(SPEC.size, np.float32)
        for number, hospital in enumerate(chosen):
            product = hospital.delta(round_) * np.float32(hospital.images / total)
            mean = product if number == 0 else mean + product
        return mean


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    _do_not_wait(monkeypatch)


def _do_not_wait(patch: pytest.MonkeyPatch) -> None:
    """That lines are durable is proven with the ledger's own tests; here it would only take time."""
    for call in ("fsync", "fdatasync"):
        patch.setattr(os, call, lambda number: None)


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Callable[..., Toy]]:
    """Makes a study with four hospitals; keywords are the plan's."""
    made: list[Toy] = []

    def make(**plan: Any) -> Toy:
        folder = tmp_path / f"consortium-{len(made)}"
        folder.mkdir()
        made.append(Toy.create(folder, **plan))
        return made[-1]

    yield make
    for item in made:
        item.close()


class Enough(Exception):  # noqa: N818 - nothing is wrong
    """A study is left after this round."""


@pytest.fixture(scope="session")
def _one_round(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Envelope]]]:
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        _do_not_wait(patch)
        toy = Toy.create(folder, rounds=2)
        toy.run_one()
        toy.close()
    return folder, {name: hospital.outbox for name, hospital in toy.hospitals.items()}


@pytest.fixture
def begun(_one_round: tuple[Path, dict[str, list[Envelope]]], tmp_path: Path) -> Iterator[Toy]:
    """A study of two rounds of which one is over, and every process was started anew."""
    toy = Toy.open(Path(shutil.copytree(_one_round[0], tmp_path / "begun")))
    for name, hospital in toy.hospitals.items():
        hospital.outbox = list(_one_round[1][name])
    yield toy
    toy.close()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of three rounds that is over; read it, or work on a copy."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        _do_not_wait(patch)
        toy = Toy.create(folder, rounds=3)
        toy.run()
        toy.close()
    return folder
