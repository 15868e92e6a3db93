"""The arms of a sweep: keys of the study, changed, and checked before anything runs."""

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from aggregator.sweep.arms import Arm, read_arms
from aggregator.sweep.settings import Sweep
from models.errors import ConfigError
from models.plan import Plan

CONFIGS = Path(__file__).parents[3] / "configs"

Read = Callable[..., list[Arm]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """The arms of a sweep over a study under FedProx, from the text after its first keys."""

    def arms(text: str, network: str = "") -> list[Arm]:
        study = (CONFIGS / "study-fedprox.toml").read_text()
        (tmp_path / "study.toml").write_text(study.replace("[task.network]\n", f"[task.network]\n{network}\n"))
        path = tmp_path / "sweep.toml"
        path.write_text(f'study = "study.toml"\nsites = ["x/site.toml"]\nseeds = [1, 2]\n{text}')
        return read_arms(Sweep.load(path), path)

    return arms


def plan(arm: Arm, seed: int = 5) -> Plan:
    return Plan.parse(tomllib.loads(arm.toml(seed).decode()), source="test")


def test_the_example_is_a_sweep_of_four_arms() -> None:
    path = CONFIGS / "sweep.toml"
    arms = read_arms(Sweep.load(path), path)
    assert [arm.label for arm in arms] == ["fedavg", "fedprox, mu=0.01", "fedprox, mu=0.1", "small steps"]
    assert [plan(arm).strategy.mu for arm in arms] == [0.0, 0.01, 0.1, 0.0]
    assert plan(arms[3]).training.learning_rate == 0.0005


def test_an_arm_changes_what_it_names_and_the_seed_and_nothing_else(read: Read) -> None:
    (arm,) = read("[[arms]]\ntraining.batch_size = 4")
    base = Plan.load(CONFIGS / "study-fedprox.toml")
    changed = base.training.model_copy(update={"batch_size": 4})
    assert plan(arm, 9) == base.model_copy(update={"training": changed, "seed": 9})


def test_lists_make_an_arm_of_every_combination(read: Read) -> None:
    arms = read("[[arms]]\nstrategy.mu = [0, 1]\n[every]\nrounds = [2, 3]\n")
    assert [(plan(arm).strategy.mu, plan(arm).rounds) for arm in arms] == [(0, 2), (0, 3), (1, 2), (1, 3)]
    assert arms[1].label == "mu=0, rounds=3"


def test_a_list_is_one_value_where_the_study_has_a_list(read: Read) -> None:
    (arm,) = read("[[arms]]\ntask.size = [32, 32]")
    assert list(plan(arm).task.model_dump()["size"]) == [32, 32]
    assert len(read("[[arms]]\ntask.size = [[32, 32], [48, 48]]")) == 2


def test_a_list_is_one_value_of_a_network_argument_that_the_study_does_not_give(read: Read) -> None:
    (arm,) = read("[[arms]]\ntask.network.arguments.channels = [32, 64]")
    assert plan(arm).task.network.arguments == {"channels": [32, 64]}
    (arm,) = read('[[arms]]\ntask.network = { name = "cnn", arguments = { channels = [32, 64] } }')
    assert plan(arm).task.network.arguments == {"channels": [32, 64]}
    assert len(read("[[arms]]\ntask.network.arguments.channels = [[8, 16], [32, 64]]")) == 2


def test_a_list_is_tried_value_by_value_of_a_network_argument_that_is_one_value_in_the_study(read: Read) -> None:
    arms = read("[[arms]]\ntask.network.arguments.dropout = [0.1, 0.2]", network="arguments = { dropout = 0.0 }")
    assert [plan(arm).task.network.arguments for arm in arms] == [{"dropout": 0.1}, {"dropout": 0.2}]


def test_an_empty_list_is_a_value_where_the_study_has_a_list_and_a_mistake_elsewhere(read: Read) -> None:
    with pytest.raises(ConfigError, match=r"sweep\.toml: arms: number 1 \(metrics=\[\]\): metrics: "):
        read("[[arms]]\nmetrics = []")
    with pytest.raises(ConfigError, match=r"sweep\.toml: arms: number 2: strategy\.mu: an empty list tries nothing"):
        read("[[arms]]\nrounds = 2\n[[arms]]\nstrategy.mu = []")


def test_another_strategy_does_not_inherit_parameters(read: Read) -> None:
    (arm,) = read('[[arms]]\nstrategy.name = "fedadam"\nstrategy.eta = 0.05')
    assert plan(arm).strategy.parameters == {"eta": 0.05, "tau": 1e-3, "beta_1": 0.9, "beta_2": 0.99}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[[arms]]\n[[arms]]\nstrategy.mu = [1, 500]",
            r"sweep.toml: arms: number 2 \(mu=500\): strategy.mu: must be at",
        ),
        ("[[arms]]\nstrategy.nu = 1", r"number 1 \(nu=1\): strategy.nu: is not a known key \(got 1\)"),
        ('[[arms]]\nstrategy.name = "fedavg"\nstrategy.mu = 1', 'mu is of "fedprox" only'),
        ("[[arms]]\nseed = 3", "number 1: seed: cannot be changed by an arm: `seeds` says it"),
        ('[[arms]]\nname = "other"', "number 1: name: cannot be changed by an arm"),
        ("[[arms]]\nrounds = 3\n[[arms]]\nrounds = 3", "two are called 'rounds=3'"),
        ("", "arms: is required but missing"),
        ("arm = 3", "arm: is not a known key"),
    ],
)
def test_a_mistake_is_named_with_file_arm_key_and_value(read: Read, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(text)


def test_hospitals_are_found_by_pattern_and_a_pattern_that_fits_nothing_is_an_error(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "site.toml").touch()
    content = {"study": "s", "seeds": [1], "arms": [{}]}
    sweep = Sweep.parse({**content, "sites": ["*/site.toml", "a/site.toml"]}, "test", tmp_path)
    assert [path.parent.name for path in sweep.found_sites()] == ["a", "b"]
    with pytest.raises(ConfigError, match=r"sites: .*c/site\.toml: there is no such file"):
        Sweep.parse({**content, "sites": ["c/site.toml"]}, "test", tmp_path).found_sites()
