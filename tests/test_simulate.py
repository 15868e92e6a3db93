"""A simulation file: the same file makes the same models anywhere, and no hospital's own records are touched."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from aggregator import Simulation, simulate
from aggregator.cli import main
from models.errors import ConfigError
from models.faults import struck
from models.plan import Plan

ROOT = Path(__file__).parents[1]

FILE = """
study = "trial-plan.toml"
sites = ["hospitals/*/site.toml"]
folder = "{folder}"
workers = {workers}

[[faults]]
what = "absent"
silos = ["north"]
rounds = [1, 1]

[[faults]]
what = "slow"
silos = ["south"]
factor = 2.5
"""


@pytest.fixture
def write(write_plan: Callable[..., Path], hospitals: list[Path], tmp_path: Path) -> Callable[..., Path]:
    write_plan(more='stragglers = "partial"')
    for site in hospitals:  # in two steps of the slow one there are fewer than eleven
        site.write_text(site.read_text().replace("min_patients = 11", "min_patients = 6"))

    def simulation(folder: str, workers: int = 1, more: str = "") -> Path:
        path = tmp_path / f"{folder}.toml"
        path.write_text(FILE.format(folder=folder, workers=workers) + more)
        return path

    return simulation


def test_the_same_file_makes_the_same_models_in_any_folder_and_for_any_number_of_workers(
    write: Callable[..., Path], hospitals: list[Path], tmp_path: Path
) -> None:
    one, two = simulate(write("one")), simulate(write("two", workers=2))
    assert [item.model for item in one.history.rounds] == [item.model for item in two.history.rounds]
    assert [item.refused for item in one.history.rounds[1:]] == [{"north": "silent"}, {}]
    assert one.history.rounds[1].work == {"east": 1.0, "south": 0.4}
    assert simulate(tmp_path / "one.toml").digest == one.digest  # it is over, and nothing is done again
    assert not any((site.parent / "work" / "ledger").exists() for site in hospitals)
    assert (tmp_path / "one" / "hospitals" / "north" / "work" / "ledger").is_dir()


def test_the_command_shows_what_happened_and_logs_it(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboardX", reason="pip install 'intramural[tensorboard]'")
    assert main(["simulate", str(write("three")), "--json", "--log", f"tensorboard:{tmp_path / 'logs'}"]) == 0
    assert {path.parent.name for path in tmp_path.glob("logs/*/*/events.out.tfevents.*")} == {
        "all hospitals",
        "east",
        "north",
        "south",
    }
    told = json.loads(capsys.readouterr().out)
    assert told["rounds"][1]["refused"] == {"north": "silent"}
    assert told["rounds"][1]["work"]["south"] == 0.4


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (
            '[[faults]]\nwhat = "slow"\nsilos = ["south"]\nfactor = 0.5\n',
            r"four\.toml: faults\.2\.slow\.factor: must be",
        ),
        ('[[faults]]\nwhat = "late"\n', r"four\.toml: faults\.2: .*'late'"),
    ],
)
def test_a_wrong_fault_is_named_by_file_and_key(write: Callable[..., Path], more: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Simulation.load(write("four", more=more))


def test_a_pattern_without_a_site_and_faults_on_another_engine_are_refused(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    simulation = Simulation.load(write("five"))
    with pytest.raises(ConfigError, match="there is no such file"):
        simulation.model_copy(update={"sites": [tmp_path / "nowhere" / "*.toml"]}).found_sites()
    path = write("six")
    path.write_text(path.read_text().replace("workers = 1", 'engine = "ray"'))
    with pytest.raises(ConfigError, match='engine: "ray" takes no faults'):
        Simulation.load(path)


def test_the_example_can_be_read_and_its_faults_are_of_every_kind() -> None:
    example = Simulation.load(ROOT / "configs" / "simulation.toml")
    assert {fault.what for fault in example.faults} == {"absent", "slow", "crash", "garbage", "labels", "scanner"}


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("factor = 2.5", "factor = 3.0", "`faults`"),
        ("hospitals/*/site.toml", "hospitals/[ns]*/site.toml", "`sites`"),
        ("workers = 1", "workers = 2", ""),
    ],
)
def test_a_folder_that_was_made_with_other_faults_or_sites_is_not_gone_on_with(
    write: Callable[..., Path], tmp_path: Path, old: str, new: str, says: str
) -> None:
    path = write("seven")
    outcome = simulate(path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    if not says:
        assert simulate(path) == outcome
        return
    with pytest.raises(ConfigError, match=f"seven: was made with other {says}") as caught:
        simulate(path)
    assert "choose another folder" in caught.value.hint
    path.write_text(text)
    assert simulate(path) == outcome


def test_a_fault_that_names_no_silo_can_be_corrected_in_the_same_folder(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    path = write("eight")
    text = path.read_text()
    path.write_text(text.replace('["south"]', '["sauth"]'))
    with pytest.raises(ConfigError, match="no silo is named 'sauth'"):
        simulate(path)
    path.write_text(text)
    assert simulate(path).history.closed


def test_in_the_example_no_round_is_void_with_the_three_hospitals_of_the_readme() -> None:
    example, names = Simulation.load(ROOT / "configs" / "simulation.toml"), ("north", "south", "west")
    plan, harmless = Plan.load(example.study), {"labels", "scanner"}
    for round_ in range(1, plan.rounds + 1):
        struck_ = [name for name in names if {f.what for f in struck(example.faults, name, round_)} - harmless]
        assert len(struck_) == 1, round_
    assert len(names) - 1 == plan.min_silos
