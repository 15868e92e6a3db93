"""FedBN: a hospital's normalisation layers stay, survive the process, and a repeated round starts as it did."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import tasks
from models.errors import DataError
from models.plan import Plan, Training
from models.tasks import Case, Task
from models.tasks.flat import FlatNetwork
from silos import local_norm, training

MakePlan = Callable[..., Plan]
HOW = Training(steps=3, batch_size=6, learning_rate=0.1)


class Hospital:
    """One hospital's images: noise and squares, in its own brightness."""

    def __init__(self, seed: int, brightness: float) -> None:
        chance = np.random.default_rng(seed)
        self.cases = []
        for number in range(18):
            image = chance.random((1, 16, 16), dtype=np.float32) * brightness
            row, column = chance.integers(0, 10, 2)
            image[0, row : row + 6, column : column + 6] += 0.5 * brightness * (number % 2)
            self.cases.append(Case(image, label=number % 2))

    def __len__(self) -> int:
        return len(self.cases)

    def take(self, rows: np.ndarray) -> list[Case]:
        return [self.cases[row] for row in rows]


@pytest.fixture(params=["group", "batch", "instance"])
def plan(make_plan: MakePlan, request: pytest.FixtureRequest) -> Plan:
    network = {"name": "cnn", "arguments": {"channels": [8, 16], "norm": request.param}}
    return make_plan(task={"network": network}, strategy={"name": "fedavg", "local_norm": True})


def visit(
    plan: Plan,
    data: Hospital,
    folder: Path,
    model: np.ndarray,
    round_: int,
    warm: FlatNetwork | None = None,
    remember: bool = True,
) -> tuple[np.ndarray, dict[str, float]]:
    """What a silo does in one round; with `warm`, in a process that did the round before."""
    network, task = warm or tasks.network(plan), tasks.task(plan.task)
    network.load(model)
    local_norm.recall(folder, network, round_, train=True)
    metrics = training.evaluate(network, task, data)
    delta = training.fit(network, task, data, HOW, mu=0.1, seed=round_)
    if remember:
        local_norm.remember(folder, network, round_)
    return delta, metrics


def test_what_normalises_does_not_travel(plan: Plan, make_plan: MakePlan) -> None:
    network = tasks.network(plan)
    names = [tensor.name for tensor in network.spec.tensors]
    kept = [tensor.name for tensor in network.local_spec.tensors]
    assert names == ["0.conv.bias", "0.conv.weight", "1.conv.bias", "1.conv.weight", "5.bias", "5.weight"]
    statistics = {"running_mean", "running_var"} if plan.task.network.arguments["norm"] == "batch" else set()
    assert {name.rpartition(".")[2] for name in kept} == {"weight", "bias"} | statistics
    assert all(".N." in name for name in kept)
    whole = tasks.network(make_plan(task={"network": plan.task.network.model_dump()}))
    assert sorted(names + kept) == [tensor.name for tensor in whole.spec.tensors]
    assert whole.local_spec.size == whole.local.numel() == 0
    assert network.spec.digest != whole.spec.digest


def test_a_study_without_the_option_sends_everything_as_before(make_plan: MakePlan) -> None:
    plan = make_plan()
    ours, plain = tasks.network(plan), FlatNetwork(tasks.task(plan.task).build(plan.seed))
    assert ours.spec == plain.spec
    assert torch.equal(ours.weights, plain.weights)


def test_loading_and_training_keep_the_two_parts_apart(plan: Plan) -> None:
    network, task = tasks.network(plan), tasks.task(plan.task)
    built, base = network.local.clone(), network.weights.numpy().copy()
    delta = training.fit(network, task, Hospital(1, 1.0), HOW, mu=0.1, seed=1)
    assert delta.shape == (network.spec.size,)
    kept = network.local.clone()
    assert not torch.equal(kept, built)  # it trains with the rest
    network.load(base)
    assert torch.equal(network.local, kept)
    network.load_local(None)
    assert torch.equal(network.local, built)
    assert torch.equal(network.weights, torch.from_numpy(base))
    network.load_local(kept.numpy())
    assert torch.equal(network.local, kept)
    state = network.module.state_dict()
    for part, window in network.local_spec.split(network.local.numpy()):
        assert np.shares_memory(state[part.name].numpy(), window)
    network.zero_grad()
    assert all(not p.grad.any() for p in network.module.parameters() if p.grad is not None)


def test_a_hospital_that_died_between_rounds_goes_on_as_if_it_had_not(plan: Plan, tmp_path: Path) -> None:
    data, model = Hospital(1, 1.0), tasks.network(plan).weights.numpy().copy()
    warm = tasks.network(plan)
    for round_ in (1, 2, 3):
        stays = visit(plan, data, tmp_path / "warm", model, round_, warm)
        dies = visit(plan, data, tmp_path / "cold", model, round_)
        assert stays[0].tobytes() == dies[0].tobytes()
        assert stays[1] == dies[1]
        model = model + stays[0]
    forgets = visit(plan, data, tmp_path / "nothing", model, 4)[0]
    assert forgets.tobytes() != visit(plan, data, tmp_path / "warm", model, 4)[0].tobytes()


@pytest.mark.parametrize("saved", [False, True])
def test_a_round_that_was_killed_and_followed_again_gives_the_same_update(
    plan: Plan, tmp_path: Path, saved: bool
) -> None:
    data, model = Hospital(1, 1.0), tasks.network(plan).weights.numpy().copy()
    for round_ in (1, 2):
        visit(plan, data, tmp_path / "a", model, round_)
    first = visit(plan, data, tmp_path / "a", model, 3, remember=saved)  # killed before or after it was kept
    again = visit(plan, data, tmp_path / "a", model, 3)
    assert again[0].tobytes() == first[0].tobytes()
    assert again[1] == first[1]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["00002.safetensors", "00003.safetensors"]


def test_the_last_visit_measures_with_what_the_last_training_left(plan: Plan, tmp_path: Path) -> None:
    data, task = Hospital(1, 1.0), tasks.task(plan.task)
    network = tasks.network(plan)
    model = network.weights.numpy().copy()
    visit(plan, data, tmp_path, model, 1, network)
    after = network.local.clone()
    other = tasks.network(plan)
    local_norm.recall(tmp_path, other, 1, train=False)
    assert torch.equal(other.local, after)
    local_norm.recall(tmp_path, other, 1, train=True)
    assert torch.equal(other.local, tasks.network(plan).local)
    local_norm.recall(tmp_path, other, 9, train=True)  # it was away for a while
    assert torch.equal(other.local, after)
    assert training.evaluate(other, task, data)


def test_what_is_kept_is_the_owner_s_alone_and_a_study_without_it_writes_nothing(
    plan: Plan, make_plan: MakePlan, tmp_path: Path
) -> None:
    local_norm.remember(tmp_path / "local" / "a", tasks.network(plan), 1)
    assert (tmp_path / "local" / "a").stat().st_mode & 0o077 == 0
    whole = tasks.network(make_plan())
    local_norm.remember(tmp_path / "local" / "b", whole, 1)
    local_norm.recall(tmp_path / "local" / "b", whole, 2, train=True)
    assert not (tmp_path / "local" / "b").exists()


@pytest.mark.parametrize("spoil", [lambda file: file.write_bytes(b"x"), lambda file: file.write_bytes(b"")])
def test_a_file_that_was_damaged_stops_the_work(plan: Plan, tmp_path: Path, spoil: Callable[[Path], Any]) -> None:
    network = tasks.network(plan)
    local_norm.remember(tmp_path / "a", network, 1)
    spoil(tmp_path / "a" / "00001.safetensors")
    with pytest.raises(DataError, match=r"00001\.safetensors"):
        local_norm.recall(tmp_path / "a", network, 2, train=True)


def test_a_file_of_another_network_stops_the_work(make_plan: MakePlan, tmp_path: Path) -> None:
    def network(width: int) -> FlatNetwork:
        chosen = {"name": "cnn", "arguments": {"channels": [8, width]}}
        return tasks.network(make_plan(task={"network": chosen}, strategy={"name": "fedavg", "local_norm": True}))

    local_norm.remember(tmp_path / "a", network(16), 1)
    with pytest.raises(DataError, match="holds other layers"):
        local_norm.recall(tmp_path / "a", network(24), 2, train=True)


def test_two_hospitals_share_a_model_and_each_keeps_its_own_norms(make_plan: MakePlan, tmp_path: Path) -> None:
    network = {"name": "cnn", "arguments": {"channels": [8, 16], "norm": "batch"}}
    plan = make_plan(task={"network": network}, strategy={"name": "fedavg", "local_norm": True})
    task: Task = tasks.task(plan.task)
    hospitals = {"bright": Hospital(1, 4.0), "dark": Hospital(2, 0.25)}
    model = tasks.network(plan).weights.numpy().copy()
    for round_ in range(1, 13):
        deltas = [visit(plan, data, tmp_path / name, model, round_)[0] for name, data in hospitals.items()]
        model = model + (deltas[0] + deltas[1]) / 2
    kept = {}
    for name, data in hospitals.items():
        shared = tasks.network(plan)
        shared.load(model)
        local_norm.recall(tmp_path / name, shared, 12, train=False)
        kept[name] = shared.local.clone()
        own = training.evaluate(shared, task, data)["auc"]
        assert own > 0.9
    assert not torch.equal(kept["bright"], kept["dark"])
