"""Flower's strategies inside the audited exchange.

`Audited` asks a Flower strategy what Flower asks it: who takes part, and what the next model is. In
between, orders and updates travel by the exchange and never by the strategy, so that any strategy gets
signatures, intake and ledger without knowing of them.

The strategy is given the weighted mean as one reply: the mean is taken here, in silo order and in
constant memory. FedAvg's own mean of one reply is that reply, so a strategy that leaves it at FedAvg's, as
FedProx does, is not asked: it would make three more copies of the model to say the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, FedProx
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from aggregator.mean import weighted_mean
from models.errors import ConfigError
from models.exchange.spec import Vector
from models.exchange.wire import ARRAYS, VECTOR, pack_vector, unpack_vector
from models.plan import Plan

_EXAMPLES = "num-examples"


@dataclass(frozen=True)
class Contribution:
    """One accepted update.

    Attributes:
        silo: Whose.
        weight: Above 0.
        load: Reads the update, `(n,)` float32; called once.
    """

    silo: str
    weight: float
    load: Callable[[], Vector]


class Audited:
    """A Flower strategy whose messages travel by the audited exchange.

    Args:
        strategy: Any whose `aggregate_train` starts from the weighted mean of the replies.
    """

    def __init__(self, strategy: FlowerStrategy) -> None:
        self._strategy = strategy

    def choose(self, round_: int, grid: Grid) -> list[int]:
        """Ask the strategy who takes part in a round.

        Returns:
            Node ids, sorted.
        """
        messages = self._strategy.configure_train(round_, ArrayRecord(), ConfigRecord(), grid)
        return sorted(message.metadata.dst_node_id for message in messages)

    def combine(self, round_: int, base: Callable[[], Vector], contributions: Sequence[Contribution]) -> Vector:
        """Ask the strategy for the next model.

        Args:
            round_: The study's round, from 1.
            base: Reads the round's model, `(n,)` float32.
            contributions: At least one; taken in order of silo name.

        Returns:
            The next model, `(n,)` float32.
        """
        ordered = sorted(contributions, key=lambda contribution: contribution.silo)
        mean = weighted_mean([c.weight for c in ordered], (c.load() for c in ordered))
        mean += base()
        if type(self._strategy).aggregate_train is FedAvg.aggregate_train:
            return mean
        reply = RecordDict(
            {
                ARRAYS: ArrayRecord({VECTOR: pack_vector(mean)}),
                "metrics": MetricRecord({_EXAMPLES: sum(c.weight for c in ordered)}),
            }
        )
        message = Message(reply, dst_node_id=0, message_type=MessageType.TRAIN)
        arrays, _ = self._strategy.aggregate_train(round_, [message])
        if arrays is None:
            raise ConfigError(f"strategy: {type(self._strategy).__name__} gave no model for round {round_}")
        return unpack_vector(arrays[VECTOR], mean.size)


def build(plan: Plan) -> Audited:
    """The strategy that a plan names."""
    strategy = FedAvg() if plan.strategy.name == "fedavg" else FedProx(proximal_mu=plan.strategy.mu)
    # All who are there, at once: whether they are enough is `min_silos`, which counts accepted updates.
    strategy.min_train_nodes = strategy.min_evaluate_nodes = strategy.min_available_nodes = 0
    return Audited(strategy)
