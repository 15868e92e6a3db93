"""What local training promises: FedAvg and FedProx as published, and the same bits each time."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models import tasks
from models.plan import Classification, Plan, Training
from models.tasks import Case, Task
from models.tasks.flat import FlatNetwork
from models.tasks.networks import norm_state
from silos import precision, training

MakePlan = Callable[..., Plan]


@dataclass
class Toy:
    """Images of noise, half of them with a bright square; remembers which were taken together."""

    targets: np.ndarray
    images: np.ndarray
    taken: list[list[int]] = field(default_factory=list)

    @classmethod
    def draw(cls, count: int = 22, seed: int = 0) -> "Toy":
        rng = np.random.default_rng(seed)
        targets = (np.arange(count) % 2).astype(np.int64)
        images = rng.random((count, 1, 16, 16), dtype=np.float32) * 0.5
        for image, target in zip(images, targets, strict=True):
            row, column = rng.integers(0, 10, 2)
            image[0, row : row + 6, column : column + 6] += 0.5 * target
        return cls(targets, images)

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: np.ndarray) -> list[Case]:
        self.taken.append(rows.tolist())
        return [Case(self.images[row], label=int(self.targets[row])) for row in rows]

    def reordered(self, order: np.ndarray) -> "Toy":
        return Toy(self.targets[order], self.images[order])


@pytest.fixture
def data() -> Toy:
    return Toy.draw()


@pytest.fixture
def setup(make_plan: MakePlan) -> Callable[..., tuple[FlatNetwork, Task]]:
    """A fresh network and its task; keywords change the plan's task."""

    def make(**changes: Any) -> tuple[FlatNetwork, Task]:
        task = tasks.task(make_plan(task=changes).task)
        return FlatNetwork(task.build(3)), task

    return make


Setup = Callable[..., tuple[FlatNetwork, Task]]

DROPOUT = {"name": "cnn", "arguments": {"channels": [8, 16], "dropout": 0.3}}
BATCH_NORM = {"name": "cnn", "arguments": {"channels": [8, 16], "norm": "batch"}}
TASK = {"name": "classification", "classes": ["none", "lesion"], "modality": ["MR"], "window": [0, 1]}
CHANCY = {"network": DROPOUT, "augment": True}


def how(**changes: Any) -> Training:
    return Training.model_validate({"epochs": 2, "batch_size": 8, "learning_rate": 0.1} | changes)


def trained(setup: Setup, data: Toy, task: dict[str, Any] | None = None, **changes: Any) -> np.ndarray:
    """The difference that training makes to a fresh network."""
    mu, seed = changes.pop("mu", 0.0), changes.pop("seed", 1)
    if "steps" in changes:
        changes["epochs"] = None
    network, of = setup(**(task or {}))
    return training.fit(network, of, data, how(**changes), mu=mu, seed=seed)


# --- FedProx ------------------------------------------------------------------------------------------


def filled(network: FlatNetwork) -> torch.Tensor:
    """Give a network arbitrary weights and gradients; returns other weights as a base."""
    chance = torch.Generator().manual_seed(0)
    network.weights.copy_(torch.randn(network.weights.shape, generator=chance))
    network.gradient.copy_(torch.randn(network.weights.shape, generator=chance))
    return torch.randn(network.weights.shape, generator=chance)


@pytest.mark.parametrize("mu", [1e-4, 0.01, 1.0, 100.0])
def test_the_pull_is_the_gradient_of_half_mu_times_the_squared_distance(setup: Setup, mu: float) -> None:
    network, _ = setup(network=BATCH_NORM)
    base = filled(network)
    before = network.gradient.clone()
    anchors = network.spec.named(base.numpy())
    parameters = dict(network.module.named_parameters())
    distance = sum(((p - torch.from_numpy(anchors[name])) ** 2).sum() for name, p in parameters.items())
    pulls = torch.autograd.grad(mu / 2 * distance, list(parameters.values()))
    training.add_pull(network, base, mu)
    names = network.spec.named((network.gradient - before).numpy())
    for (name, parameter), pull in zip(parameters.items(), pulls, strict=True):
        tolerance = 1e-6 * mu + 1e-6  # of what is left when the loss's own gradient is taken away again
        np.testing.assert_allclose(names[name], pull.numpy(), rtol=1e-5, atol=tolerance)
        assert parameter.grad is not None
        window = network.spec.named(network.gradient.numpy())[name]
        assert np.shares_memory(parameter.grad.numpy(), window)
    expected = before.double() + mu * (network.weights - base).double()
    torch.testing.assert_close(network.gradient.double(), expected, rtol=1e-6, atol=1e-6)


def test_without_mu_the_gradients_stay_as_they_are_to_the_bit(setup: Setup) -> None:
    network, _ = setup()
    base = filled(network)
    network.gradient[0] = -0.0  # adding 0 would make it +0
    base[1] = torch.inf  # and 0 * infinity is NaN
    before = network.gradient.numpy().tobytes()
    training.add_pull(network, base, 0.0)
    assert network.gradient.numpy().tobytes() == before


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_fedprox_without_mu_is_fedavg_to_the_bit(
    setup: Setup, data: Toy, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    rate = {"optimizer": optimizer, "learning_rate": 0.01}
    prox = trained(setup, data, CHANCY, mu=0.0, **rate)
    monkeypatch.setattr(training, "add_pull", lambda *_: None)
    assert trained(setup, data, CHANCY, mu=0.0, **rate).tobytes() == prox.tobytes()
    assert trained(setup, data, CHANCY, mu=1.0, **rate).tobytes() == prox.tobytes()


def test_a_stronger_pull_keeps_the_model_nearer_to_the_base(setup: Setup, data: Toy) -> None:
    lengths = [np.linalg.norm(trained(setup, data, mu=mu, epochs=8, learning_rate=0.05)) for mu in (0, 0.3, 3, 30)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[3] < lengths[0] / 3


@pytest.mark.parametrize("mu", [0.0, 0.5])
@pytest.mark.parametrize(
    ("name", "options"),
    [("sgd", {"momentum": 0.9, "weight_decay": 0.01}), ("adam", {}), ("adamw", {"weight_decay": 0.1})],
)
def test_training_is_that_of_plain_pytorch_with_the_published_penalty_in_the_loss(
    setup: Setup, data: Toy, make_plan: MakePlan, name: str, options: dict[str, float], mu: float
) -> None:
    task = tasks.task(make_plan().task)
    plain = task.build(3)
    start = {n: p.detach().clone() for n, p in plain.named_parameters()}
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    optimizer = kind(plain.parameters(), lr=0.01, **options)
    for _ in range(6):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(plain(torch.from_numpy(data.images)), torch.from_numpy(data.targets))
        penalty = sum(((p - start[n]) ** 2).sum() for n, p in plain.named_parameters())
        (loss + mu / 2 * penalty).backward()
        optimizer.step()
    expected = {n: (p.detach() - start[n]).numpy() for n, p in plain.named_parameters()}

    everything = {"batch_size": len(data.targets), "epochs": 6}  # one batch, so that its order is no matter
    delta = trained(setup, data, mu=mu, optimizer=name, learning_rate=0.01, **everything, **options)
    named = setup()[0].spec.named(delta)
    assert set(named) == set(expected)
    largest = max(np.abs(part).max() for part in expected.values())
    for part in named:
        np.testing.assert_allclose(named[part], expected[part], rtol=1e-3, atol=1e-4 * largest)


# --- the same again -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mu", [0.0, 0.1])
def test_the_same_seed_gives_the_same_update_to_the_bit_whatever_ran_before(setup: Setup, data: Toy, mu: float) -> None:
    first = trained(setup, data, CHANCY, mu=mu)
    torch.manual_seed(99)
    torch.rand(1000)
    np.random.seed(5)
    assert trained(setup, data, CHANCY, mu=mu).tobytes() == first.tobytes()


@pytest.mark.parametrize(
    "task", [{}, {"network": DROPOUT}, {"augment": True}], ids=["order", "dropout", "augmentation"]
)
def test_another_seed_gives_another_update(setup: Setup, data: Toy, task: dict[str, Any]) -> None:
    whole = {} if not task else {"batch_size": len(data.targets)}  # then the order is no matter
    first = trained(setup, data, task, seed=1, **whole)
    assert trained(setup, data, task, seed=2, **whole).tobytes() != first.tobytes()
    if not task:  # and the other way round: in one batch only chance inside the task is left
        whole = {"batch_size": len(data.targets)}
        same = [trained(setup, data, seed=seed, **whole).tobytes() for seed in (1, 2)]
        assert same[0] == same[1]


def test_a_warm_network_trains_as_a_fresh_one(setup: Setup, data: Toy) -> None:
    network, task = setup(network=BATCH_NORM)
    base = network.weights.numpy().copy()
    deltas = []
    for _ in range(2):
        network.load(base)
        deltas.append(training.fit(network, task, data, how(), mu=0.1, seed=1).tobytes())
        training.evaluate(network, task, data)
    assert deltas[0] == deltas[1]


def test_the_update_is_what_training_changed_and_nothing_shared(setup: Setup, data: Toy) -> None:
    network, task = setup(network=BATCH_NORM)
    base = network.weights.numpy().copy()
    delta = training.fit(network, task, data, how(), mu=0, seed=1)
    assert (delta.shape, delta.dtype) == ((network.spec.size,), np.float32)
    np.testing.assert_array_equal(delta, network.weights.numpy() - base)
    kept = delta.copy()
    network.load(base)
    np.testing.assert_array_equal(delta, kept)
    means = [name for name in network.spec.named(delta) if name.endswith("running_mean")]
    assert means
    assert all(network.spec.named(delta)[name].any() for name in means)  # BatchNorm's statistics travel


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with bfloat16; others can do the same arithmetic, slowly."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda _: True)


def test_mixed_precision_changes_nothing_where_the_processor_has_none(
    setup: Setup, data: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda _: False)
    assert trained(setup, data, mixed_precision=True).tobytes() == trained(setup, data, mixed_precision=False).tobytes()


WIDE = {"name": "cnn", "arguments": {"channels": [64, 64]}}  # eight channels in each group


@pytest.mark.usefixtures("able")
@pytest.mark.parametrize("network", [DROPOUT, BATCH_NORM, WIDE], ids=["few channels a group", "batch", "many"])
def test_training_in_bfloat16_repeats_to_the_bit_and_fedprox_without_mu_is_fedavg(
    setup: Setup, data: Toy, network: dict[str, Any]
) -> None:
    task = {"network": network, "augment": True}
    first = trained(setup, data, task, mixed_precision=True)
    torch.rand(100)
    assert trained(setup, data, task, mixed_precision=True, mu=0.0).tobytes() == first.tobytes()
    full = trained(setup, data, task)
    assert full.tobytes() != first.tobytes()
    assert np.linalg.norm(full - first) < 0.1 * np.linalg.norm(full)


@pytest.mark.usefixtures("able")
@pytest.mark.parametrize("network", [DROPOUT, BATCH_NORM], ids=["group", "batch"])
def test_training_in_bfloat16_learns_what_can_be_learnt(setup: Setup, network: dict[str, Any]) -> None:
    data, unseen, found = Toy.draw(48), Toy.draw(48, seed=1), []
    for half in (False, True):
        flat, task = setup(network=network)
        length = how(optimizer="adam", learning_rate=0.01, epochs=25, mixed_precision=half)
        training.fit(flat, task, data, length, mu=0.01, seed=1)
        found.append(training.evaluate(flat, task, unseen))
    assert found[1]["auc"] > 0.95
    assert abs(found[1]["auc"] - found[0]["auc"]) < 0.02


@pytest.mark.parametrize("dimensions", [2, 3])
def test_with_channels_last_every_rule_of_training_is_the_same(data: Toy, dimensions: int) -> None:
    """FedProx's pull, SCAFFOLD's correction, decay and momentum, in float32: only the order of sums may differ."""
    volumes = Toy(data.targets, data.images if dimensions == 2 else np.stack([data.images] * 8, axis=-1))
    settings = {"dimensions": dimensions, "size": [16, 16, 8][:dimensions], "network": BATCH_NORM}
    spaced = {"spacing": [1, 1, 1]} if dimensions == 3 else {}
    task = tasks.task(Classification.parse(TASK | settings | spaced, source="test"))
    chance = np.random.default_rng(0)
    length = how(learning_rate=0.01, momentum=0.9, weight_decay=0.1)
    vectors = []
    for last in (False, True):
        network = FlatNetwork(task.build(3), local=norm_state(task.build(3)), control=True)
        assert network.control is not None
        assert network.own is not None
        first = {name: tensor.stride() for name, tensor in network.module.state_dict().items()}
        if not last:
            control = chance.normal(0, 0.1, len(network.control)).astype(np.float32)
        network.control.copy_(torch.from_numpy(control))
        network.own.copy_(network.control * 0.5)
        with network.channels_last() if last else contextlib.nullcontext():
            inside = {name: tensor.stride() for name, tensor in network.module.state_dict().items()}
            training.fit(network, task, volumes, length, mu=0.5, seed=1)
        assert (inside != first) is last
        assert {name: tensor.stride() for name, tensor in network.module.state_dict().items()} == first
        vectors.append((network.vector.numpy(), network.local.numpy(), network.gradient.numpy()))
    for plain, other in zip(*vectors, strict=True):
        np.testing.assert_allclose(other, plain, rtol=1e-3, atol=1e-5)


def test_a_seed_follows_from_the_words_and_from_every_one_of_them() -> None:
    assert training.seed_for(1, "north", 3) == training.seed_for(1, "north", 3)
    seeds = {
        training.seed_for(seed, name, round_)
        for seed, name, round_ in itertools.product(range(20), ("north", "south", "east"), range(20))
    }
    assert len(seeds) == 1200
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Fixed for ever, or a study could not be replayed: the first 63 bits of SHA-256("1/north/3").
    assert training.seed_for(1, "north", 3) == 7164665323703826612


# --- how long -----------------------------------------------------------------------------------------


def lengths(setup: Setup, count: int, **changes: Any) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """What `on_step` was told, and the rows of each batch."""
    data = Toy.draw(count)
    network, task = setup()
    told: list[tuple[int, int]] = []
    length = how(**({"epochs": None} if "steps" in changes else {}) | changes)
    training.fit(network, task, data, length, mu=0, seed=1, on_step=lambda *step: told.append(step))
    return told, data.taken


def test_epochs_take_every_image_once_each_and_the_last_batch_may_be_short(setup: Setup) -> None:
    told, taken = lengths(setup, 10, epochs=3, batch_size=4)
    assert told == [(step, 9) for step in range(1, 10)]
    assert [len(rows) for rows in taken] == [4, 4, 2] * 3
    epochs = [sorted(itertools.chain(*taken[start : start + 3])) for start in (0, 3, 6)]
    assert epochs == [list(range(10))] * 3
    assert taken[:3] != taken[3:6]  # in a new order


@pytest.mark.parametrize(("steps", "sizes"), [(1, [4]), (3, [4, 4, 2]), (5, [4, 4, 2, 4, 4])])
def test_steps_are_counted_across_epochs_and_stop_anywhere(setup: Setup, steps: int, sizes: list[int]) -> None:
    told, taken = lengths(setup, 10, steps=steps, batch_size=4)
    assert told == [(step, steps) for step in range(1, steps + 1)]
    assert [len(rows) for rows in taken] == sizes


def test_a_batch_larger_than_the_hospital_is_all_of_it(setup: Setup) -> None:
    told, taken = lengths(setup, 3, epochs=2, batch_size=16)
    assert (len(told), taken) == (2, [[0, 1, 2]] * 2)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 4))
def test_an_epoch_has_as_many_steps_as_batches_are_needed(count: int, batch: int, epochs: int) -> None:
    steps = training.steps_in(how(epochs=epochs, batch_size=batch), count)
    batches = list(training.batches(count, batch, steps, torch.Generator().manual_seed(count)))
    assert len(batches) == steps
    seen = np.bincount(np.concatenate(batches), minlength=count)
    assert (seen == epochs).all()
    assert max(len(rows) for rows in batches) <= batch


# --- the rest of the process --------------------------------------------------------------------------


@pytest.fixture(params=[(False, False, False), (True, True, True), (True, False, False)])
def flags(request: pytest.FixtureRequest) -> Iterator[tuple[bool, bool, bool, bool]]:
    """Deterministic algorithms, whether they only warn, cuDNN's benchmark mode, and whether new memory is filled."""

    def put(deterministic: bool, warn_only: bool, benchmark: bool) -> None:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark

    put(*request.param)
    yield *request.param, True
    put(False, False, False)


def present() -> tuple[bool, bool, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        torch.utils.deterministic.fill_uninitialized_memory,
    )


def test_training_and_evaluation_leave_torchs_chance_and_flags_as_they_were(
    setup: Setup, data: Toy, flags: tuple[bool, bool, bool, bool]
) -> None:
    network, task = setup(**CHANCY)
    torch.manual_seed(12)
    before = torch.get_rng_state()
    inside = []
    training.fit(network, task, data, how(), mu=0.1, seed=1, on_step=lambda *_: inside.append(present()))
    training.evaluate(network, task, data)
    assert torch.equal(torch.get_rng_state(), before)
    assert present() == flags
    assert set(inside) == {(True, True, False, False)}  # deterministic while it lasts


def test_training_that_fails_leaves_them_so_too(setup: Setup, data: Toy, flags: tuple[bool, bool, bool, bool]) -> None:
    network, task = setup(**CHANCY)
    before = torch.get_rng_state()

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.fit(network, task, data, how(), mu=0, seed=1, on_step=stop)
    assert torch.equal(torch.get_rng_state(), before)
    assert present() == flags


# --- what comes of it ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.3), ("adam", 0.01), ("adamw", 0.01)])
@pytest.mark.parametrize("mu", [0.0, 0.01])
def test_training_learns_what_can_be_learnt(setup: Setup, optimizer: str, rate: float, mu: float) -> None:
    network, task = setup()
    data, unseen = Toy.draw(48), Toy.draw(48, seed=1)
    before = training.evaluate(network, task, unseen)
    training.fit(network, task, data, how(optimizer=optimizer, learning_rate=rate, epochs=25), mu=mu, seed=1)
    after = training.evaluate(network, task, unseen)
    assert after["loss"] < before["loss"] / 2
    assert after["auc"] > 0.95


def test_evaluation_changes_nothing_of_the_model(setup: Setup, data: Toy) -> None:
    network, task = setup(network=BATCH_NORM)
    state = {name: value.clone() for name, value in network.module.state_dict().items()}
    weights = network.weights.numpy().tobytes()
    network.module.train()
    training.evaluate(network, task, data)
    assert network.weights.numpy().tobytes() == weights
    for name, value in network.module.state_dict().items():
        assert torch.equal(value, state[name]), name


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(22)), batch_size=st.integers(1, 30))
def test_metrics_do_not_depend_on_the_order_or_the_batches(
    make_plan: MakePlan, order: list[int], batch_size: int
) -> None:
    task = tasks.task(make_plan(task=CHANCY).task)  # neither dropout nor augmentation when evaluating
    network, data = FlatNetwork(task.build(3)), Toy.draw()
    usual = training.evaluate(network, task, data)
    other = training.evaluate(network, task, data.reordered(np.array(order)), batch_size)
    assert set(usual) == {"loss", "accuracy", "auc"}
    assert other == pytest.approx(usual, rel=1e-5)


def test_metrics_are_those_of_the_whole_held_out_side_at_once(setup: Setup, data: Toy) -> None:
    network, task = setup()
    with torch.no_grad():
        logits = network.module.eval()(torch.from_numpy(data.images)).double()
    chances = torch.softmax(logits, 1)[torch.arange(22), torch.from_numpy(data.targets)]
    found = training.evaluate(network, task, data, batch_size=5)
    assert found["loss"] == pytest.approx(float(-chances.log().mean()), rel=1e-5)
    right = (logits.argmax(1).numpy() == data.targets).mean()
    assert found["accuracy"] == pytest.approx(right)
    odds = (logits[:, 1] - logits[:, 0]).numpy()
    pairs = odds[data.targets == 1][:, None] - odds[data.targets == 0][None]
    assert found["auc"] == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())


def test_nobody_held_out_gives_no_metrics(setup: Setup) -> None:
    network, task = setup()
    assert training.evaluate(network, task, Toy.draw(0)) == {}


def test_no_case_is_looked_at_when_no_metric_is_wanted(setup: Setup, data: Toy) -> None:
    network, task = setup()
    assert training.evaluate(network, task, data, wanted=[]) == {}
    assert data.taken == []
