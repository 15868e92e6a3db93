"""Flower's strategies get the audited exchange's mean, and give the same model as without it."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from aggregator import strategy
from aggregator.strategy import Audited
from aggregator.weighing import Contribution
from models.errors import ConfigError
from models.exchange.spec import Vector, vector_digest
from models.plan import Plan

SIZE = 50
RANDOM = np.random.default_rng(3)
BASE = RANDOM.standard_normal(SIZE).astype(np.float32)
DELTAS = [RANDOM.standard_normal(SIZE).astype(np.float32) / 10 for _ in range(5)]
WEIGHTS = [37.0, 204.0, 15.5, 1.0, 90.0]
NAMES = ["east", "north", "south", "west", "zurich"]


def contribution(name: str, weight: float, delta: Vector, loss: float | None = None) -> Contribution:
    return Contribution(name, weight, lambda: delta, lambda start, stop: delta[start:stop], loss)


def contributions(
    deltas: Sequence[Vector] = DELTAS, weights: Sequence[float] = WEIGHTS, names: Sequence[str] = NAMES
) -> list[Contribution]:
    return [contribution(name, weight, delta) for name, weight, delta in zip(names, weights, deltas, strict=False)]


@pytest.fixture(autouse=True)
def _identity() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def plan(**named: Any) -> Plan:
    return Plan.model_validate(
        {
            "name": "toy",
            "purpose": "Test.",
            "rounds": 2,
            "task": {
                "name": "classification",
                "classes": ["none", "lesion"],
                "modality": ["MR"],
                "size": [8, 8],
                "percentiles": [1.0, 99.0],
                "network": {"name": "cnn"},
            },
            "training": {"steps": 1, "learning_rate": 0.1},
            "strategy": named,
        }
    )


FEDAVG = strategy.build(plan(name="fedavg"))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    base=arrays.arrays(np.float32, 20, elements=st.floats(-1e3, 1e3, width=32)),
    delta=arrays.arrays(np.float32, 20, elements=st.floats(-1e3, 1e3, width=32)),
    weight=st.floats(0.1, 1e6),
)
def test_fedavg_of_one_silo_is_its_model_to_the_bit(base: Vector, delta: Vector, weight: float) -> None:
    found = FEDAVG.combine(1, lambda: base, contributions([delta], [weight])).model
    assert found.tobytes() == (base + delta).tobytes()


def test_the_base_model_is_left_as_it_was() -> None:
    base = BASE.copy()
    FEDAVG.combine(1, lambda: base, contributions())
    assert base.tobytes() == BASE.tobytes()


@pytest.mark.parametrize("mu", [0.0, 0.01, 1.0])
def test_fedprox_combines_as_fedavg_does_to_the_bit(mu: float) -> None:
    fedprox = strategy.build(plan(name="fedprox", mu=mu))
    found = [way.combine(1, lambda: BASE, contributions()).model.tobytes() for way in (fedprox, FEDAVG)]
    assert found[0] == found[1]


def test_the_model_is_the_same_whatever_order_the_replies_came_in() -> None:
    digests = {
        vector_digest("00" * 32, FEDAVG.combine(1, lambda: BASE, list(order)).model)
        for order in itertools.permutations(contributions())
    }
    assert len(digests) == 1


def test_another_order_of_names_may_give_other_bits_so_the_order_of_names_is_what_counts() -> None:
    large = [np.full(SIZE, value, np.float32) for value in (1e8, 1.0, -1e8)]
    one = FEDAVG.combine(1, lambda: BASE * 0, contributions(large, [1, 1, 1], ["a", "b", "c"]))
    other = FEDAVG.combine(1, lambda: BASE * 0, contributions(large, [1, 1, 1], ["a", "c", "b"]))
    assert one.model.tobytes() != other.model.tobytes()


def test_the_model_is_that_of_flowers_own_fedavg_on_whole_models() -> None:
    replies = []
    for delta, weight in zip(DELTAS, WEIGHTS, strict=True):
        content = RecordDict(
            {
                "arrays": ArrayRecord({"vector": Array(BASE + delta)}),
                "metrics": MetricRecord({"num-examples": weight}),
            }
        )
        replies.append(Message(content, dst_node_id=0, message_type=MessageType.TRAIN))
    flowers, _ = FedAvg().aggregate_train(1, replies)
    assert flowers is not None

    found = FEDAVG.combine(1, lambda: BASE, contributions()).model

    np.testing.assert_allclose(found, flowers["vector"].numpy(), rtol=0, atol=1e-6)
    assert np.abs(found - BASE).max() > 0.01  # it is not the model it began with


def test_each_update_is_read_once_and_in_order_of_name() -> None:
    read: list[str] = []

    def reads(name: str, delta: Vector) -> Callable[[int, int], Vector]:
        def part(start: int, stop: int) -> Vector:
            read.append(name)
            return delta[start:stop]

        return part

    FEDAVG.combine(
        1,
        lambda: BASE,
        [
            replace(contribution(name, 1.0, delta), part=reads(name, delta))
            for name, delta in zip(NAMES[::-1], DELTAS, strict=True)
        ],
    )
    assert read == NAMES


def test_flowers_own_mean_of_one_reply_is_that_reply_so_that_fedavg_need_not_be_asked() -> None:
    class Asked(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            return super().aggregate_train(server_round, replies)

    asked = Audited(Asked()).combine(1, lambda: BASE, contributions())
    assert asked.model.tobytes() == FEDAVG.combine(1, lambda: BASE, contributions()).model.tobytes()


def test_a_strategy_that_gives_no_model_is_named() -> None:
    class Silent(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> tuple[None, None]:
            return None, None

    with pytest.raises(ConfigError, match="Silent gave no model for combined round 4"):
        Audited(Silent()).combine(4, lambda: BASE, contributions())


class Nodes:
    """As much of a grid as a strategy asks for."""

    def __init__(self, nodes: list[int]) -> None:
        self.nodes = nodes

    def get_node_ids(self) -> list[int]:
        return self.nodes


@pytest.mark.parametrize("named", [{"name": "fedavg"}, {"name": "fedprox", "mu": 0.1}], ids=["avg", "prox"])
@pytest.mark.parametrize("nodes", [[9, 2, 5], [4]])
def test_everyone_who_is_there_takes_part(named: dict[str, Any], nodes: list[int]) -> None:
    assert strategy.build(plan(**named)).choose(1, Nodes(nodes)) == sorted(nodes)  # type: ignore[arg-type]
