"""A hospital that misbehaves as a simulation says; see `models.faults`.

    silo = FaultySilo.open("site.toml", hurried=False)
    silo.faults = faults
    answer = faulty(app, "north", faults)

Only `open_local`, which opens a hospital for a simulation, comes here, and only when it is handed faults: no order, no
configuration of a hospital and no environment can make a silo one of these. Whatever a fault does passes the same
signatures, ledgers and checks as honest work, so the records tell of it what they would in production.
"""

import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict

from models.errors import ConfigError
from models.exchange import wire
from models.exchange.documents import Order
from models.exchange.encoding import Encoding
from models.exchange.spec import Spec, Vector, norm, update_digest
from models.faults import Absent, Crash, Fault, Garbage, Labels, Scanner, Slow, chance, concerning, struck
from models.tasks import Case
from silos import gate
from silos.pace import Pace
from silos.silo import Silo
from silos.training import seed_for
from silos.visit import Bench, visit

App = Callable[[Message, Context], Message]

_LATE = 4  # Flower's code for a reply that did not come in time
_SHORTER = 0.99  # than max_norm, whatever rounding does
_HUGE, _TIMES = np.float32(1e30), np.float32(-10)


class FaultySilo(Silo):
    """A silo whose work goes wrong.

    Attributes:
        faults: What goes wrong, here and elsewhere; set once it is open.
    """

    faults: Sequence[Fault] = ()

    def _work(
        self, bench: Bench, order: Order, model: Vector | None, released: Mapping[str, float], pace: Pace | None
    ) -> gate.Release:
        now = struck(self.faults, self.site.name, order.round)
        data = bench.data
        classes = len(order.agreement.plan.task.classes)
        train, held_out = (_shown(side, now, classes) for side in (data.train, data.held_out))
        bench = replace(bench, data=replace(data, train=train, held_out=held_out))
        pace, fit = _pace(now), self.fit
        release = visit(self.site, self.signer, bench, order, model, released, pace=pace, fit=fit)
        for fault in now:
            if isinstance(fault, Garbage) and release.vector is not None:
                vector = _garbage(fault, release.vector, order, self.site.name, bench.network.spec)
                release = _relisted(release, vector, bench.network.spec)
        return release


def faulty(app: App, silo: str, faults: Sequence[Fault]) -> App:
    """An app of a silo that is sometimes not there, or answers what is no envelope.

    Args:
        app: The honest one.
        silo: Its hospital's name.
        faults: What goes wrong, here and elsewhere.
    """
    own = concerning(faults, silo)

    def answer(message: Message, context: Context) -> Message:
        if wire.is_farewell(message.content):
            return app(message, context)
        order = Order.decode(wire.unpack(message.content).body)
        for fault in struck(own, silo, order.round):
            late = isinstance(fault, Slow) and order.visit == "train" and order.agreement.plan.stragglers == "drop"
            if isinstance(fault, Absent) or late:
                return Message(Error(_LATE, ""), reply_to=message)
            if isinstance(fault, Garbage) and fault.content == "bytes" and order.visit == "train":
                return Message(RecordDict({"garbage": ConfigRecord({"bytes": b"\xff" * 64})}), reply_to=message)
        return app(message, context)

    return answer


class CrashError(Exception):
    """What a `crash` raises."""


def _pace(faults: Sequence[Fault]) -> Pace:
    """Stops or raises as the faults say."""

    def go_on(done: int, total: int) -> bool:
        for fault in faults:
            if isinstance(fault, Crash) and done >= fault.step:
                raise CrashError(f"a simulated crash after step {done}")
        return all(done < round(total / fault.factor) for fault in faults if isinstance(fault, Slow))

    return go_on


@dataclass(frozen=True)
class _Shown:
    """Cases as a faulty hospital has them; one side of a cohort."""

    honest: Any
    change: Callable[[int, Case], Case]

    def __len__(self) -> int:
        return len(self.honest)

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        targets: npt.NDArray[np.int64] = self.honest.targets
        return targets

    def take(self, rows: npt.NDArray[np.int64]) -> list[Case]:
        return [self.change(int(row), case) for row, case in zip(rows, self.honest.take(rows), strict=True)]


def _shown(cases: Any, faults: Sequence[Fault], classes: int) -> Any:
    """The cases, with wrong labels or from another scanner where a fault says so."""
    for fault in faults:
        if isinstance(fault, Labels):
            cases = _Shown(cases, functools.partial(_mislabelled, fault, classes))
        elif isinstance(fault, Scanner):
            cases = _Shown(cases, functools.partial(_scanned, fault))
    return cases


def _mislabelled(fault: Labels, classes: int, row: int, case: Case) -> Case:
    if case.label is None:
        raise ConfigError("faults: labels: the study's cases have masks, and no labels", "take another fault")
    if chance(fault.seed, "label", row) >= fault.fraction:
        return case
    return replace(case, label=(case.label + 1) % classes)


def _scanned(fault: Scanner, row: int, case: Case) -> Case:
    image = np.asarray(case.image) * np.float32(fault.gain) + np.float32(fault.bias)
    if fault.noise:
        drawn = np.random.default_rng(seed_for(fault.seed, "scanner", row)).standard_normal(image.shape, np.float32)
        image += drawn * np.float32(fault.noise)
    return replace(case, image=image)


def _garbage(fault: Garbage, honest: Vector, order: Order, silo: str, spec: Spec) -> Vector:
    """What is sent instead of an update."""
    plan = order.agreement.plan
    if fault.content == "nan":
        return np.full_like(honest, np.nan)
    if fault.content == "huge":
        return np.full_like(honest, _HUGE)
    if fault.content == "opposite":
        vector = honest * _TIMES
    else:
        rng = np.random.default_rng(seed_for(plan.seed, silo, order.round))
        vector = rng.standard_normal(honest.size).astype(np.float32) * np.float32(plan.max_norm)
    shortened = vector * np.float32(min(1.0, _SHORTER * plan.max_norm / norm(vector)))
    return Encoding(plan.encoding, spec).rounded(shortened)


def _relisted(release: gate.Release, vector: Vector, spec: Spec) -> gate.Release:
    """A release of another vector, whose manifest is in order; of what no manifest can say, it says 0."""
    listed = [
        tensor.model_copy(update={"sha256": hashlib.sha256(part.data).hexdigest()})
        for tensor, (_, part) in zip(gate.tensors_of(spec, np.nan_to_num(vector)), spec.split(vector), strict=True)
    ]
    length = norm(vector)
    changes = {
        "digest": update_digest(spec, (tensor.sha256 for tensor in listed)),
        "norm": length if math.isfinite(length) else 0.0,
        "tensors": listed,
    }
    return gate.Release(release.manifest.model_copy(update=changes), vector)
