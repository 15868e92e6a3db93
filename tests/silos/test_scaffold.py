"""SCAFFOLD: silos that pull apart agree where FedAvg does not, and each one's control variate is what it told."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from aggregator import strategy
from aggregator.weighing import Contribution
from models import tasks
from models.errors import ConfigError, DataError
from models.exchange.spec import Vector
from models.plan import Plan, Strategy, Training
from models.tasks import Case
from models.tasks.flat import FlatNetwork
from silos import local_norm, training

MakePlan = Callable[..., Plan]


@dataclass(frozen=True)
class Valley:
    """One silo of least squares: its own curvature and its own lowest point, `(2,)` each."""

    curvature: list[float]
    lowest: list[float]

    def __len__(self) -> int:
        return 1

    def take(self, rows: object) -> Sequence[Case]:
        return [Case(np.zeros((1, 1, 1), np.float32), label=0)]

    def sample(self, cases: object, generator: object) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor(self.curvature), torch.tensor(self.lowest)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs.pow(2).sum() / 2


class Point(nn.Module):
    """Two weights; the loss of a silo is half the sum of curvature * (point - lowest)**2."""

    def __init__(self, lowest: list[float]) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.zeros(2))
        self.lowest = lowest

    def forward(self, curvature: torch.Tensor) -> torch.Tensor:
        return curvature.sqrt() * (self.point - torch.tensor(self.lowest))


VALLEYS = [Valley([1.0, 8.0], [1.0, 0.0]), Valley([8.0, 1.0], [0.0, 2.0]), Valley([2.0, 2.0], [-1.0, 1.0])]
HOW = Training(steps=20, learning_rate=0.05)


def consortium(name: str, rounds: int) -> tuple[Vector, list[FlatNetwork]]:
    """Rounds over the three valleys, all with the same weight."""
    silos = [FlatNetwork(Point(valley.lowest), control=name == "scaffold") for valley in VALLEYS]
    model = silos[0].vector.numpy().copy()

    class Planned:  # as much of a plan as a strategy reads
        strategy = Strategy(name=name)  # type: ignore[arg-type]

    audited = strategy.build(Planned)  # type: ignore[arg-type]
    for round_ in range(1, rounds + 1):
        updates = []
        for silo, valley in zip(silos, VALLEYS, strict=True):
            silo.load(model)
            delta = training.fit(silo, valley, valley, HOW, mu=0, seed=1)  # type: ignore[arg-type]
            if silo.own is not None:
                silo.own.add_(torch.from_numpy(delta[: silo.own.numel()]))
            updates.append(Contribution(str(len(updates)), 1.0, lambda d=delta: d, lambda a, b, d=delta: d[a:b]))  # type: ignore[misc]
        base = model
        model = audited.combine(round_, lambda base=base: base, updates).model  # type: ignore[misc]
    return model, silos


def test_silos_that_pull_apart_meet_where_the_sum_of_their_losses_is_lowest() -> None:
    curvature = np.array([valley.curvature for valley in VALLEYS])
    best = (curvature * [valley.lowest for valley in VALLEYS]).sum(axis=0) / curvature.sum(axis=0)
    drifted, _ = consortium("fedavg", 60)
    corrected, _ = consortium("scaffold", 60)
    assert np.abs(corrected[2:] - best).max() < 1e-3
    assert np.abs(drifted - best).max() > 0.1


def test_the_consortium_s_control_variate_is_the_mean_of_the_silos_own() -> None:
    model, silos = consortium("scaffold", 7)
    own = torch.stack([silo.own for silo in silos if silo.own is not None])
    assert own.abs().amin(dim=0).max() > 0.5  # they pull apart
    assert torch.allclose(torch.from_numpy(model[:2]), own.mean(dim=0), atol=1e-5)


def test_who_does_not_take_part_keeps_its_share_of_the_consortium_s_control_variate() -> None:
    base, delta = np.zeros(4, np.float32), np.array([3, 6, 1, 2], np.float32)

    class Planned:  # as much of a plan as a strategy reads
        strategy = Strategy(name="scaffold")

    audited = strategy.build(Planned)  # type: ignore[arg-type]
    one = [Contribution("north", 5.0, lambda: delta, lambda a, b: delta[a:b])]
    assert audited.combine(1, lambda: base, one, silos=(0, 3)).model.tolist() == [1, 2, 1, 2]


def test_who_joins_later_takes_its_share_of_the_consortium_s_control_variate() -> None:
    base, delta = np.array([8, 4, 0, 0], np.float32), np.array([4, 8, 1, 2], np.float32)

    class Planned:  # as much of a plan as a strategy reads
        strategy = Strategy(name="scaffold")

    audited = strategy.build(Planned)  # type: ignore[arg-type]
    one = [Contribution("york", 1.0, lambda: delta, lambda a, b: delta[a:b])]
    # Three silos' own add up to (24, 12); with the fourth one's they are (28, 20), and a quarter of that is their mean.
    assert audited.combine(2, lambda: base, one, silos=(3, 4)).model.tolist() == [7, 5, 1, 2]


def test_the_first_round_moves_the_weights_as_fedavg_does(make_plan: MakePlan) -> None:
    plain, ours = (
        tasks.network(make_plan(strategy={"name": name}, weights="equal")) for name in ("fedavg", "scaffold")
    )
    plan, rows = make_plan(), [Case(np.full((1, 16, 16), n, np.float32), label=n % 2) for n in range(6)]

    class Rows:
        def __len__(self) -> int:
            return len(rows)

        def take(self, chosen: Sequence[int]) -> list[Case]:
            return [rows[row] for row in chosen]

    how, task = Training(epochs=2, batch_size=4, learning_rate=0.1), tasks.task(plan.task)
    expected = training.fit(plain, task, Rows(), how, mu=0, seed=3)
    found = training.fit(ours, task, Rows(), how, mu=0, seed=3)
    assert found.size == 2 * expected.size
    assert found[expected.size :].tobytes() == expected.tobytes()
    assert np.allclose(found[: expected.size], expected / -(4 * 0.1), rtol=1e-5, atol=1e-7)  # four steps


def test_what_is_not_trained_has_no_control_variate(make_plan: MakePlan) -> None:
    batch = {"name": "cnn", "arguments": {"channels": [8, 16], "norm": "batch"}}
    network = tasks.network(make_plan(task={"network": batch}, strategy={"name": "scaffold"}, weights="equal"))
    delta = torch.ones_like(network.weights)
    change = network.spec.named(torch.cat([training.control_change(network, delta, 0.5), delta]).numpy())
    for name, values in change.items():
        if name.startswith("#"):
            assert (values == (0 if "running" in name else -2)).all(), name


def test_with_local_norm_only_what_travels_is_corrected(make_plan: MakePlan) -> None:
    network = tasks.network(make_plan(strategy={"name": "scaffold", "local_norm": True}, weights="equal"))
    names = [tensor.name for tensor in network.spec.tensors]
    kept = [tensor.name for tensor in network.local_spec.tensors]
    half = len(names) // 2
    assert names[:half] == [f"#{name}" for name in names[half:]]
    assert [name for name in kept if name.startswith("~")] == [f"~{name}" for name in names[half:]]
    assert not any(".N." in name for name in names)


def test_an_update_that_did_not_count_moves_no_control_variate(make_plan: MakePlan, tmp_path: Path) -> None:
    network = tasks.network(make_plan(strategy={"name": "scaffold", "local_norm": True}, weights="equal"))
    assert network.own is not None
    layers = network.local.numel() - network.own.numel()
    for round_, counted in ((1, None), (2, 1), (3, 1)):  # the update of round 2 was lost
        local_norm.recall(tmp_path, network, round_, counted, train=True)
        network.local.add_(1)
        local_norm.remember(tmp_path, network, round_, counted)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"0000{n}.safetensors" for n in (1, 2, 3)]
    local_norm.recall(tmp_path, network, 4, 3, train=True)
    assert (network.own == 2).all()
    built = tasks.network(make_plan(strategy={"name": "scaffold", "local_norm": True}, weights="equal"))
    assert torch.equal(network.local[:layers], built.local[:layers] + 3)  # what normalises goes on all the same
    local_norm.recall(tmp_path, network, 4, train=True)
    assert not network.own.any()
    (tmp_path / "00001.safetensors").unlink()
    with pytest.raises(DataError, match=r"00001\.safetensors"):
        local_norm.recall(tmp_path, network, 4, 1, train=True)


@pytest.mark.parametrize("how", [{"optimizer": "adam"}, {"momentum": 0.9}])
def test_steps_that_are_no_gradients_are_refused(make_plan: MakePlan, how: dict[str, object]) -> None:
    with pytest.raises((ConfigError, ValueError), match="scaffold needs"):
        make_plan(strategy={"name": "scaffold"}, weights="equal", training=how)
