"""Flower's strategies inside the audited exchange.

`Audited` asks a Flower strategy what Flower asks it: who takes part, and what the next model is. In
between, orders and updates travel by the exchange and never by the strategy, so that any strategy gets
signatures, intake and ledger without knowing of them.

    audited = build(plan)
    audited.combine(number, base, contributions, state)    # the next model, and what the strategy remembers

However many silos there are, memory is that of a few models:

- What differs from FedAvg in the weights alone (`krum`, `qfedavg`) is a mean, taken here in silo order.
- FedAvg's own mean of one reply is that reply, so FedAvg and FedProx are not asked for it: it would make three more
  copies of the model to say the same.
- The other strategies treat each number of a model by itself. They are asked piece by piece: those that step from
  the old model (momentum, the adaptive ones) get the mean as one reply, the median and the trimmed mean a reply
  of each silo. The arithmetic is Flower's, and so are its bits.

SCAFFOLD is FedAvg on a model that is twice as long: before the weights travels the control variate, which is kept the
mean of all silos' own.

What a strategy remembers of earlier rounds (momentum, second moment) is given to it and taken from it each
time, so that a run that was killed goes on as if nothing had happened.
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
)
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from flwr.serverapp.strategy.fedopt import FedOpt

from aggregator.mean import weighted_mean
from aggregator.weighing import Contribution, Weighed, by_examples, fair, krum, pieces
from models.errors import ConfigError
from models.exchange.spec import Vector
from models.exchange.wire import ARRAYS, VECTOR, pack_vector
from models.plan import Plan

_EXAMPLES = "num-examples"
_MOMENTS = {"momentum": "m_t", "second-moment": "v_t"}  # our word, and FedOpt's attribute

_FLOWER: Mapping[str, type[FedAvg]] = {
    "fedavgm": FedAvgM,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedmedian": FedMedian,
    "fedtrimmedavg": FedTrimmedAvg,
}
_EACH = {"fedmedian", "fedtrimmedavg"}
_WEIGHING: Mapping[str, Callable[..., Weighed]] = {"fedavg": by_examples, "krum": krum, "qfedavg": fair}

State = Mapping[str, Vector]
"""What a strategy remembers of earlier rounds: vectors as long as the model, by name."""


@dataclass(frozen=True)
class Combined:
    """What came of a round.

    Attributes:
        model: The next model, `(n,)` float32.
        state: What the next round must be given; empty for most strategies.
        selected: The silos whose updates were taken, where the strategy chose among them.
    """

    model: Vector
    state: State = field(default_factory=dict)
    selected: tuple[str, ...] | None = None


class Audited:
    """A Flower strategy whose messages travel by the audited exchange.

    Args:
        strategy: One whose `aggregate_train` starts from the weighted mean of the replies; if it is not FedAvg's
            own, it treats each number of a model by itself.
        weigh: Which updates the mean takes, and with what weight.
        each: Give it each silo's model for a reply, and not the mean.
        control: The first half of a model is SCAFFOLD's control variate.
    """

    def __init__(
        self,
        strategy: FlowerStrategy,
        weigh: Callable[[Sequence[Contribution]], Weighed] = by_examples,
        *,
        each: bool = False,
        control: bool = False,
    ) -> None:
        self._strategy, self._weigh, self._each, self._control = strategy, weigh, each, control

    def choose(self, round_: int, grid: Grid) -> list[int]:
        """Ask the strategy who takes part in a round.

        Returns:
            Node ids, sorted.
        """
        messages = self._strategy.configure_train(round_, ArrayRecord(), ConfigRecord(), grid)
        return sorted(message.metadata.dst_node_id for message in messages)

    def combine(
        self,
        number: int,
        base: Callable[[], Vector],
        contributions: Sequence[Contribution],
        state: State | None = None,
        silos: tuple[int, int] | None = None,
    ) -> Combined:
        """Ask the strategy for the next model.

        Args:
            number: Which combined round of the study this is, from 1: a void one is no step of Adam's.
            base: Reads the round's model, `(n,)` float32.
            contributions: At least one; taken in order of silo name.
            state: What the round before gave to be remembered.
            silos: How many were enrolled when the round before was combined (0 before the first), and how many are
                now; as many as there are contributions if None.

        Raises:
            ConfigError: The strategy gives no model, or one with NaN or infinity.
        """
        ordered = sorted(contributions, key=lambda contribution: contribution.silo)
        if self._each:
            return self._asked(number, base(), ordered, None, {})
        weighed, old = self._weigh(ordered), base()
        parts = [contribution.part for contribution in weighed.contributions]
        mean = weighted_mean(weighed.weights, parts, old.size, weighed.total)
        if self._control and silos:
            before, now = silos
            control = slice(mean.size // 2)
            mean[control] *= np.float32(len(ordered) / now)  # who is absent keeps its own (algorithm 1, line 17)
            mean[control] += old[control] * np.float32(before / now)  # that of who joined since is still zero
            mean[control.stop :] += old[control.stop :]
        else:
            mean += old
        if type(self._strategy).aggregate_train is FedAvg.aggregate_train:
            return Combined(mean, selected=weighed.selected)
        return self._asked(number, old, ordered, mean, state or {})

    def _asked(
        self, number: int, base: Vector, ordered: Sequence[Contribution], mean: Vector | None, state: State
    ) -> Combined:
        """What Flower's strategy makes of the mean, or of each silo's model, piece by piece."""
        model, remembered = np.empty_like(base), dict[str, Vector]()
        with _without_talk():
            for start, stop in pieces(base.size, 1 if mean is not None else len(ordered)):
                part = slice(start, stop)
                if mean is None:
                    replies = [_reply(c.part(start, stop) + base[part], c.weight) for c in ordered]
                else:
                    replies = [_reply(mean[part], 1.0)]
                _remind(self._strategy, base[part], {name: vector[part] for name, vector in state.items()})
                arrays, _ = self._strategy.aggregate_train(number, replies)
                if arrays is None:
                    raise ConfigError(f"strategy: {self._name} gave no model for combined round {number}")
                model[part] = arrays[VECTOR].numpy()
                for name, piece in _memory(self._strategy):
                    remembered.setdefault(name, np.empty_like(base))[part] = piece
        if not np.isfinite(model).all():
            raise ConfigError(
                f"strategy: {self._name} left the numbers in combined round {number}", "take smaller steps"
            )
        return Combined(model, remembered)

    @property
    def _name(self) -> str:
        return type(self._strategy).__name__


@dataclass(frozen=True)
class _Reply:
    """As much of a Flower message as a strategy's sum reads; a whole one can only be made within a run."""

    content: RecordDict

    def has_error(self) -> bool:
        return False


def _reply(vector: Vector, weight: float) -> Message:
    arrays = ArrayRecord({VECTOR: pack_vector(vector)})
    return cast(Message, _Reply(RecordDict({ARRAYS: arrays, "metrics": MetricRecord({_EXAMPLES: weight})})))


def _remind(strategy: FlowerStrategy, base: Vector, state: State) -> None:
    """Give a strategy what it would know had it seen every round: the old model and its own memory."""
    if isinstance(strategy, FedOpt):
        strategy.current_arrays = {VECTOR: base}
        for name, attribute in _MOMENTS.items():
            setattr(strategy, attribute, {VECTOR: state[name]} if name in state else None)
    elif isinstance(strategy, FedAvgM):
        strategy.current_arrays = ArrayRecord({VECTOR: pack_vector(base)})
        strategy.momentum_vector = [state["momentum"]] if "momentum" in state else None


def _memory(strategy: FlowerStrategy) -> Iterator[tuple[str, Vector]]:
    """What a strategy wants to know in the next round."""
    if isinstance(strategy, FedOpt):
        for name, attribute in _MOMENTS.items():
            yield name, getattr(strategy, attribute)[VECTOR]
    elif isinstance(strategy, FedAvgM) and strategy.momentum_vector is not None:
        yield "momentum", strategy.momentum_vector[0]


@contextlib.contextmanager
def _without_talk() -> Iterator[None]:
    """Flower logs each question; a model has many pieces."""
    talk = logging.getLogger("flwr")
    level = talk.level
    talk.setLevel(logging.WARNING)
    try:
        yield
    finally:
        talk.setLevel(level)


def build(plan: Plan) -> Audited:
    """The strategy that a plan names, with its parameters."""
    name, own = plan.strategy.name, plan.strategy.parameters
    # All who are there, at once: whether they are enough is `min_silos`, which counts accepted updates.
    everyone: dict[str, Any] = {"min_train_nodes": 0, "min_evaluate_nodes": 0, "min_available_nodes": 0}
    if name == "fedprox":
        return Audited(FedProx(proximal_mu=plan.strategy.mu, **everyone))
    if name in _WEIGHING:
        return Audited(FedAvg(**everyone), functools.partial(_WEIGHING[name], **own))
    if name == "scaffold":
        return Audited(FedAvg(**everyone), control=True)
    return Audited(_FLOWER[name](**own, **everyone), each=name in _EACH)
