"""The reproduction of FedProx: the paper's data, its stragglers, and a study of them through the real exchange."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from models import plan as plans
from models import tasks
from models.tasks import Case
from models.tasks.flat import FlatNetwork

SCRIPT = Path(__file__).parents[1] / "scripts" / "reproduce_fedprox.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(plans.task, "_KINDS", dict(plans.task._KINDS))
    monkeypatch.setattr(tasks, "_TASKS", dict(tasks._TASKS))
    spec = importlib.util.spec_from_file_location("reproduce_fedprox", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_the_data_are_drawn_as_the_paper_says(script: ModuleType) -> None:
    devices = script.synthetic("synthetic-1-1", 1)
    assert len(devices) == 30
    sizes = np.random.RandomState(1).lognormal(4, 2, 30).astype(int) + 50
    assert [len(device.labels) for device in devices] == sizes.tolist()
    for device, size in zip(devices, sizes, strict=True):
        assert device.images.shape == (size, 60)
        assert int((~device.held_out).sum()) == int(0.9 * size)
        assert set(device.labels) <= set(range(10))
    largest = devices[int(sizes.argmax())].images
    assert np.allclose(largest.std(0), np.arange(1, 61) ** -0.6, rtol=0.15)  # Sigma_jj = j ** -1.2
    same, again = script.synthetic("synthetic-iid", 2), script.synthetic("synthetic-iid", 2)
    assert all(np.array_equal(a.images, b.images) for a, b in zip(same, again, strict=True))
    assert np.abs(np.stack([device.images.mean(0) for device in same if len(device.images) > 500])).max() < 0.2


def test_stragglers_are_those_who_are_drawn_and_do_1_to_19_of_20_epochs(script: ModuleType) -> None:
    faults = script.stragglers(90, 3, 40)
    assert len(faults) == 40 * 9
    for fault in faults:
        assert fault.silos[0] in script.drawn(3, fault.rounds[0], script.names(), 10)
        assert 1 <= round(20 / fault.factor) <= 19
    assert len(script.stragglers(50, 3, 40)) == 40 * 5
    assert script.stragglers(0, 3, 40) == []


def test_the_gradient_by_hand_is_that_of_autograd(script: ModuleType) -> None:
    settings = script.Vectors.model_construct(classes=[f"c{number}" for number in range(10)])
    task = script.VectorTask(settings)
    network, rng = FlatNetwork(task.build(1)), np.random.default_rng(1)
    cases = [Case(rng.normal(size=60).astype(np.float32), label=number) for number in range(7)]
    inputs, targets = task.sample(cases, torch.Generator())
    task.loss(network.module(inputs), targets).backward()
    expected = network.gradient.clone()
    network.gradient.fill_(7.0)
    task.differentiated(network.module)(cases, torch.Generator())
    assert torch.allclose(network.gradient, expected, atol=1e-6)
    assert expected.abs().max() > 0.01


def test_accuracy_is_read_of_the_last_model_late_ones_and_where_the_paper_stops(script: ModuleType) -> None:
    falling = [2.0 / (1 + number) for number in range(21)]
    assert script.stop(falling) == 20  # neither
    assert script.stop([*falling[:7], falling[6] + 0.00005, *falling[8:]]) == 7  # as good as no change
    assert script.stop([*falling[:15], 1.4, *falling[16:]]) == 15  # 1 more than in round 5, where it was 0.33
    assert script.stop([*falling[:9], 9.0, *falling[10:]]) == 20  # before round 10 nothing diverges
    curve = [(number / 10, 3.0 - number) for number in range(9)]
    found = script.Run.of([*curve, (0.5, -5.0), (0.7, -9.0)], dataset="d", stragglers=90, method="fedavg", seed=1)
    assert (found.rounds, found.last, found.late, found.stopped, found.stop) == (10, 0.7, 0.66, 0.5, 9)


def test_a_gain_is_of_the_seeds_that_both_have(script: ModuleType) -> None:
    def run(method: str, seed: int, accuracy: float) -> Any:
        swing = 0.3 if method == "fedavg" else 0.05
        curve = [(0.1, 9.0), (0.1, 8.0), (accuracy, 7.0), (accuracy - swing, 6.0), (accuracy, 5.0)]
        return script.Run.of(curve, dataset="synthetic-1-1", stragglers=90, method=method, seed=seed)

    runs = [run("fedavg", 0, 0.5), run("fedprox mu=1", 0, 0.6), run("fedprox mu=1", 1, 0.9)]
    row = next(line for line in script.table(runs) if "mu=1" in line)
    assert (
        "| 0 1 | 0.750 ± 0.212 (+10.0) | 0.725 ± 0.212 (+22.5) | 0.750 ± 0.212 (+10.0) | 0.0500 (6.0 times less) |"
        in row
    )
    assert "Too few seeds" in script.verdict(runs)
    runs = [
        run(method, seed, accuracy)
        for seed in range(5)
        for method, accuracy in (("fedavg", 0.5), ("fedprox mu=1", 0.61))
    ]
    assert script.verdict(runs).endswith("last +11.0 (met), late +23.5 (met), stopped +11.0 (met); 6.0 times (met).")


def test_a_small_study_runs_once_and_is_kept(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "DEVICES", 5)
    monkeypatch.setattr(script, "PER_ROUND", 2)
    monkeypatch.setattr(script, "EPOCHS", 4)
    small = [
        script.Arrays(*(part[:60] for part in vars(device).values())) for device in script.synthetic("synthetic-1-1", 1)
    ]
    for device in small:
        device.held_out[50:] = True
    monkeypatch.setattr(script, "synthetic", lambda *_: small)
    found: dict[str, Any] = {
        method: script.reproduce("synthetic-1-1", 50, method, 1, 4, tmp_path) for method in script.METHODS
    }
    assert len({item.last for item in found.values()} | {item.loss for item in found.values()}) > 3
    monkeypatch.setattr(script, "write_devices", None)  # nothing is done again
    assert script.reproduce("synthetic-1-1", 50, "fedavg", 1, 4, tmp_path) == found["fedavg"]
    text = script.write(tmp_path / "results", list(found.values()))
    assert "| synthetic-1-1 | 50 % | fedprox mu=1 | 1 | " in text
    assert len((tmp_path / "results" / "fedprox.csv").read_text().splitlines()) == 4


def test_the_published_table_is_of_all_data_methods_and_seeds(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "RESULTS", tmp_path / "published")
    common = ["--work", str(tmp_path / "work"), "--only-table"]
    for smaller in ("--datasets synthetic-1-1", "--methods fedavg", "--stragglers 90", "--seeds 1", "--rounds 1"):
        assert script.main([*common, *smaller.split()]) == 0
        assert "# FedProx, reproduced" in capsys.readouterr().out
        assert not script.RESULTS.exists()
    assert script.main(common) == 0
    assert {path.name for path in script.RESULTS.iterdir()} == {"fedprox.csv", "fedprox.md"}
    with pytest.raises(SystemExit, match="2"):
        script.main([*common, "--seeds", "0"])
