"""Every strategy of a plan: Flower's own result, in any order of arrival, and across the death of the coordinator."""

import itertools
import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedTrimmedAvg,
    FedYogi,
    MultiKrum,
    QFedAvg,
)
from flwr.supercore.task_identity import TaskIdentity

from aggregator import strategy, weighing
from aggregator.audit.replay import replay
from aggregator.strategy import Audited
from aggregator.weighing import Contribution
from models.errors import DigestMismatch
from models.exchange import wire
from models.exchange.documents import Refusal
from models.exchange.spec import Vector, load_vector, vector_digest
from models.exchange.statement import Kind
from models.ledger import Event
from models.plan import Strategy

Toy = Any  # of conftest.py

SIZE = 1000
RANDOM = np.random.default_rng(3)
BASE = RANDOM.standard_normal(SIZE).astype(np.float32)
NAMES = ["east", "north", "south", "west", "zurich", "york", "aarau"]
WEIGHTS = [37.0, 204.0, 15.5, 1.0, 90.0, 4.5, 60.0]
LOSSES = [0.3, 1.2, 0.05, 0.02, 0.7, 2.5, 0.6]

STRATEGIES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedprox": {"mu": 0.1},
    "fedavgm": {"server_momentum": 0.7, "server_learning_rate": 0.8},
    "fedadagrad": {"eta": 0.05},
    "fedadam": {"eta": 0.02, "beta_1": 0.8},
    "fedyogi": {"eta": 0.03, "tau": 0.01},
    "fedmedian": {},
    "fedtrimmedavg": {"beta": 0.25},
    "krum": {"malicious": 1},
    "qfedavg": {"q": 0.5, "client_learning_rate": 0.1},
    "scaffold": {},
}
REMEMBER = {"fedavgm", "fedadagrad", "fedadam", "fedyogi"}

FLOWERS: dict[str, Callable[..., FedAvg]] = {
    "fedavgm": FedAvgM,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedmedian": FedMedian,
    "fedtrimmedavg": FedTrimmedAvg,
    "krum": lambda malicious, select=1: MultiKrum(num_malicious_nodes=malicious, num_nodes_to_select=select),
    "qfedavg": lambda q, client_learning_rate: QFedAvg(client_learning_rate, q),
}


@pytest.fixture(autouse=True)
def _identity() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


@pytest.fixture(params=STRATEGIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def build(name: str, **parameters: Any) -> Audited:
    class Planned:  # as much of a plan as a strategy reads
        strategy = Strategy(name=name, **(parameters or STRATEGIES[name]))  # type: ignore[arg-type]

    return strategy.build(Planned)  # type: ignore[arg-type]


def deltas(round_: int, count: int = 7) -> list[Vector]:
    random = np.random.default_rng(round_)
    return [random.standard_normal(SIZE).astype(np.float32) / 10 for _ in range(count)]


def contributions(
    vectors: Sequence[Vector], weights: Sequence[float] = WEIGHTS, losses: Sequence[float] = LOSSES
) -> list[Contribution]:
    return [
        Contribution(name, weight, lambda v=vector: v, lambda a, b, v=vector: v[a:b], loss)  # type: ignore[misc]
        for name, weight, vector, loss in zip(NAMES, weights, vectors, losses, strict=False)
    ]


def rounds(audited: Callable[[], Audited], updates: Iterable[Sequence[Contribution]]) -> list[Vector]:
    """A few rounds, each with a strategy that knows nothing but what it is given."""
    models, state = [BASE], dict[str, Vector]()
    for number, update in enumerate(updates, start=1):
        combined = audited().combine(number, lambda: models[-1], update, state)
        models.append(combined.model)
        state = dict(combined.state)
    return models


class Everyone:
    """As much of a grid as a strategy asks for."""

    def get_node_ids(self) -> list[int]:
        return [2, 3]


def flowers_rounds(name: str, updates: Sequence[Sequence[Vector]]) -> list[Vector]:
    """The same with Flower alone, on whole models, in one process that remembers all by itself."""
    flower, models = FLOWERS[name](**STRATEGIES[name]), [BASE]
    for number, vectors in enumerate(updates, start=1):
        arrays = ArrayRecord({"vector": Array(models[-1])})
        flower.configure_train(number, arrays, ConfigRecord(), Everyone())  # type: ignore[arg-type]
        replies = []
        for _, weight, loss, vector in sorted(zip(NAMES, WEIGHTS, LOSSES, vectors, strict=False), key=lambda x: x[0]):
            numbers = MetricRecord({"num-examples": weight, "train_loss": loss})
            content = RecordDict({"arrays": ArrayRecord({"vector": Array(models[-1] + vector)}), "metrics": numbers})
            replies.append(Message(content, dst_node_id=0, message_type=MessageType.TRAIN))
        found, _ = flower.aggregate_train(number, replies)
        assert found is not None
        models.append(found["vector"].numpy().astype(np.float32))
    return models


@pytest.mark.parametrize("name", ["fedmedian", "fedtrimmedavg"])
@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_median_and_trimmed_mean_are_flowers_own_to_the_bit(name: str, count: int) -> None:
    updates = [deltas(round_, count) for round_ in (1, 2, 3)]
    found = rounds(lambda: build(name), [contributions(vectors) for vectors in updates])
    assert [m.tobytes() for m in found] == [m.tobytes() for m in flowers_rounds(name, updates)]


@pytest.mark.parametrize("name", [*sorted(REMEMBER), "krum", "qfedavg"])
def test_the_other_strategies_are_flowers_own_but_for_rounding(name: str) -> None:
    # The mean is taken of differences here and of models there, so its last bits differ.
    updates = [deltas(round_) for round_ in (1, 2, 3, 4)]
    found = rounds(lambda: build(name), [contributions(vectors) for vectors in updates])
    for ours, theirs in zip(found, flowers_rounds(name, updates), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert np.abs(found[-1] - BASE).max() > 0.001


@pytest.mark.parametrize("name", sorted(REMEMBER))
def test_a_strategy_with_memory_gives_flowers_bits_when_it_gets_the_same_mean(name: str) -> None:
    # With one silo both take the same mean, so every bit must be that of Flower's own, round after round.
    updates = [deltas(round_, 1) for round_ in (1, 2, 3, 4)]
    found = rounds(lambda: build(name), [contributions(vectors) for vectors in updates])
    assert [m.tobytes() for m in found] == [m.tobytes() for m in flowers_rounds(name, updates)]


def test_the_order_of_arrival_never_changes_a_digest(name: str) -> None:
    first, second = contributions(deltas(1, 4)), contributions(deltas(2, 4))
    found = {
        vector_digest("00" * 32, rounds(lambda: build(name), [list(order), list(reversed(order))])[-1])
        for order in itertools.permutations(first)
    }
    assert len(found) == 1
    assert found != {vector_digest("00" * 32, rounds(lambda: build(name), [first, second])[-1])}


def test_pieces_make_no_difference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    updates = [contributions(deltas(round_)) for round_ in (1, 2)]
    whole = rounds(lambda: build(name), updates)
    monkeypatch.setattr(weighing, "_ELEMENTS", 700)  # a hundred of each of seven updates
    found = rounds(lambda: build(name), updates)
    assert [m.tobytes() for m in found] == [m.tobytes() for m in whole]


PLAIN = sorted(STRATEGIES.keys() - REMEMBER - {"qfedavg"})


@pytest.mark.parametrize("name", PLAIN)
def test_of_one_silo_the_next_model_is_its_own(name: str) -> None:
    (delta,) = deltas(1, 1)
    found = build(name).combine(1, lambda: BASE, contributions([delta])).model
    assert found.tobytes() == (BASE + delta).tobytes()


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("count", [3, 5, 7])
def test_when_all_silos_say_the_same_they_get_it(name: str, count: int) -> None:
    (delta,) = deltas(1, 1)
    found = build(name).combine(1, lambda: BASE, contributions([delta] * count)).model
    np.testing.assert_allclose(found, BASE + delta, rtol=0, atol=5e-7)


def test_qfedavg_with_q_0_is_the_mean_of_all_alike_and_with_more_favours_the_worst_off() -> None:
    vectors = deltas(1, 2)
    plain = build("qfedavg", q=0.0, client_learning_rate=0.1).combine(1, lambda: BASE, contributions(vectors)).model
    np.testing.assert_allclose(plain, BASE + (vectors[0] + vectors[1]) / 2, rtol=0, atol=1e-6)

    def share(q: float) -> float:
        """How much of the step is the second silo's, whose loss is four times the first's."""
        step = build("qfedavg", q=q, client_learning_rate=0.1).combine(1, lambda: BASE, contributions(vectors)).model
        first, second = np.linalg.lstsq(np.stack(vectors, axis=1), step - BASE, rcond=None)[0]
        return float(second / (first + second))

    assert 0.499 < share(0) < 0.501 < share(0.5) < share(1) < share(3)


def test_momentum_0_and_rate_1_is_fedavg_to_the_bit() -> None:
    updates = [contributions(deltas(round_)) for round_ in (1, 2)]
    plain = rounds(lambda: build("fedavgm", server_momentum=0.0, server_learning_rate=1.0), updates)
    assert [m.tobytes() for m in plain] == [m.tobytes() for m in rounds(lambda: build("fedavg"), updates)]


ROBUST = ["fedmedian", "fedtrimmedavg", "krum"]


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("liar", NAMES[:5])
def test_one_liar_of_five_cannot_pull_a_robust_strategy_outside_the_honest_range(name: str, liar: str) -> None:
    vectors = deltas(1, 5)
    vectors[NAMES.index(liar)] = np.full(SIZE, 50, np.float32)
    honest = np.stack([BASE + v for silo, v in zip(NAMES, vectors, strict=False) if silo != liar])
    found = build(name).combine(1, lambda: BASE, contributions(vectors)).model
    assert (found >= honest.min(axis=0) - 1e-6).all()
    assert (found <= honest.max(axis=0) + 1e-6).all()
    pulled = build("fedavg").combine(1, lambda: BASE, contributions(vectors)).model
    assert (pulled > honest.max(axis=0)).any()


def test_krum_names_those_it_takes_and_takes_the_first_of_equals() -> None:
    vectors = deltas(1, 5)
    vectors[1] = np.full(SIZE, 50, np.float32)  # north lies
    found = build("krum", malicious=1, select=3).combine(1, lambda: BASE, contributions(vectors))
    assert found.selected is not None
    assert len(found.selected) == 3
    assert "north" not in found.selected
    alike = build("krum", malicious=1).combine(1, lambda: BASE, contributions([vectors[0]] * 5))
    assert alike.selected == ("east",)


def test_krum_sees_small_differences_of_large_models() -> None:
    """Flower takes distances of whole models in float32, where those of late rounds drown."""
    vectors = [vector * np.float32(1e-5) for vector in deltas(1, 5)]
    vectors[2] *= 3
    scores = weighing.squared_distances(contributions(vectors)).sum(axis=1)
    exact = np.square(np.stack(vectors)[:, None].astype(float) - np.stack(vectors)[None]).sum(axis=(1, 2))
    np.testing.assert_allclose(scores, exact, rtol=1e-12)


def test_flower_talks_no_more_than_before(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "flwr"):
        build("fedadam").combine(1, lambda: BASE, contributions(deltas(1)))
    assert not caplog.records


# ---------------------------------------------------------------- through the exchange


def told(name: str) -> str:
    values = "\n".join(f"{key} = {value}" for key, value in STRATEGIES[name].items())
    return f'name = "{name}"\n{values}'


FIVE = ("east", "north", "south", "west", "zurich")


def study(toy: Callable[..., Toy], name: str, **more: Any) -> Toy:
    weights = "equal" if name == "scaffold" else "images"
    return toy(rounds=3, min_silos=5, names=FIVE, strategy=told(name), weights=weights, **more)


def test_a_study_that_is_killed_after_each_round_ends_with_the_same_ledgered_digests(
    toy: Callable[..., Toy], name: str
) -> None:
    straight = study(toy, name)
    straight.run()
    broken = study(toy, name)
    for _ in range(3):
        broken.run_one()
        broken = broken.reopen()
    broken.run()
    wanted = [(b["model"], b.get("state"), b.get("selected")) for b in straight.lines(Event.AGGREGATED)]
    found = [(b["model"], b.get("state"), b.get("selected")) for b in broken.lines(Event.AGGREGATED)]
    broken.close()
    assert found == wanted
    assert len(wanted) == 3
    assert all(bool(state) == (name in REMEMBER) for _, state, _ in wanted)
    assert all((chosen is not None) == (name == "krum") for _, _, chosen in wanted)


def test_a_study_that_is_killed_between_model_and_line_ends_the_same(
    toy: Callable[..., Toy], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, broken = study(toy, name), study(toy, name)
    straight.run()
    broken.run_one()
    append = type(broken.study.ledger).append

    def die(ledger: Any, *entries: Any) -> Any:
        if any(entry.event == Event.AGGREGATED for entry in entries):
            raise KeyboardInterrupt
        return append(ledger, *entries)

    monkeypatch.setattr(type(broken.study.ledger), "append", die)
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    monkeypatch.setattr(type(broken.study.ledger), "append", append)
    broken = broken.reopen()
    broken.run()
    found = [line["model"] for line in broken.lines(Event.AGGREGATED)]
    broken.close()
    assert found == [line["model"] for line in straight.lines(Event.AGGREGATED)]


def test_a_void_round_is_no_step_of_the_server(toy: Callable[..., Toy]) -> None:
    made = toy(rounds=3, min_silos=4, strategy=told("fedadam"), keep_updates=True)
    refuse = Refusal(code="round-limit")
    made.poison("west", lambda h, o, a: wire.pack(h.offer(o, Kind.REFUSAL, refuse, None, answers=a)))  # in round 2
    made.run()
    model, state = made.model(0), dict[str, Vector]()
    for number, round_ in ((1, 1), (2, 3)):
        hospitals = [made.hospitals[name] for name in NAMES[:4]]
        updates = contributions([h.delta(round_) for h in hospitals], [h.images for h in hospitals])
        combined = build("fedadam").combine(number, lambda model=model: model, updates, state)  # type: ignore[misc]
        model, state = combined.model, dict(combined.state)
    assert made.model(3).tobytes() == model.tobytes()
    made.close()
    assert replay(made.study.folder).problems == []


def test_every_parameter_stands_in_the_ledgers_line(toy: Callable[..., Toy], name: str) -> None:
    made = study(toy, name)
    made.run_one()
    (line,) = made.lines(Event.AGGREGATED)
    assert (
        line["strategy"]
        == {"name": name, "mu": 0.0, **Strategy(name=name, **STRATEGIES[name]).parameters}
        | (  # type: ignore[arg-type]
            STRATEGIES[name]
        )
    )


def test_the_line_says_of_local_norm(toy: Callable[..., Toy]) -> None:
    made = toy(strategy='name = "fedavg"\nlocal_norm = true')
    made.run_one()
    (line,) = made.lines(Event.AGGREGATED)
    assert line["strategy"] == {"name": "fedavg", "mu": 0.0, "local_norm": True}


def test_only_the_newest_state_is_kept(toy: Callable[..., Toy]) -> None:
    made = study(toy, "fedadam")
    made.run()
    states = made.study.folder / "state"
    assert [folder.name for folder in states.iterdir()] == ["003"]
    wanted = made.study.position.state
    found = {p.stem: vector_digest(made.study.spec.digest, load_vector(p)[1]) for p in (states / "003").iterdir()}
    assert found == wanted
    assert set(found) == {"momentum", "second-moment"}


def test_a_void_round_leaves_the_memory_as_it_was(toy: Callable[..., Toy]) -> None:
    made = study(toy, "fedadam")
    made.poison("west", lambda hospital, order, answers: wire.pack(hospital.update(order, answers, base="ab" * 32)))
    made.run()
    before, after = made.lines(Event.AGGREGATED)
    assert len(made.lines(Event.ROUND_VOID)) == 1
    assert after["base"] == before["model"]


def test_every_model_comes_out_again_to_the_bit_with_every_strategy(toy: Callable[..., Toy], name: str) -> None:
    made = study(toy, name, keep_updates=True)
    made.run()
    made.close()
    found = replay(made.folder / "toy")
    assert (found.problems, len(found.models)) == ([], 3)
    shutil.rmtree(made.folder / "toy" / "state", ignore_errors=True)  # it is made anew, not read
    assert replay(made.folder / "toy").ok


def test_a_changed_memory_is_found_before_it_is_used(toy: Callable[..., Toy]) -> None:
    made = study(toy, "fedavgm")
    made.run_one()
    path: Path = made.study.folder / "state" / "001" / "momentum.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    again = made.reopen()
    with pytest.raises(DigestMismatch, match=r"momentum\.safetensors: is not"):
        again.run()
    again.close()


@pytest.mark.parametrize(
    "changes", [{"metrics": {"auc": 0.5}}, {"metrics": {"loss": -1.0}}, {"metrics": {"loss": 0.0}}, {"evaluated": None}]
)
def test_qfedavg_refuses_an_update_without_a_loss(toy: Callable[..., Toy], changes: dict[str, Any]) -> None:
    made = toy(rounds=2, min_silos=3, strategy=told("qfedavg"))
    made.poison("west", lambda hospital, order, answers: wire.pack(hospital.update(order, answers, **changes)))
    made.run()
    assert [line["code"] for line in made.lines(Event.REPLY_REJECTED)] == ["malformed.metric"]
    assert [item["silo"] for item in made.lines(Event.AGGREGATED, 2)[0]["inputs"]] == ["east", "north", "south"]
