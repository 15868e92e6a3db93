"""What README, configuration and help say is true."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aggregator.audit_cli import main as audit
from aggregator.cli import main as aggregator
from models.plan import Plan
from silos.cli import main as silo
from silos.config import Site

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = {"intramural-silo": silo, "intramural-aggregator": aggregator, "intramural-audit": audit}


@pytest.mark.parametrize(("walk", "commands"), [("walk", 13), ("volumes", 8)])
def test_the_walks_of_the_readme_work_as_typed(
    walk: str,
    commands: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    block = README.split(f"<!-- {walk}")[1].split("###")[0]
    lines = [line.strip() for line in block.splitlines() if line.startswith("    intramural-")]
    assert len(lines) == commands
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    for line in lines:
        program, *arguments = shlex.split(line)
        assert COMMANDS[program](arguments) == 0, (line, capsys.readouterr().err)
    assert ("agree" if walk == "walk" else "dice") in capsys.readouterr().out


def test_the_ten_lines_of_the_readme_simulate_six_hospitals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = README.split("<!-- ten lines")[1].split("```python\n")[1].split("```")[0]
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("5 0.")
    assert last.endswith(str([f"hospital-{n}" for n in range(1, 7)]))


@pytest.mark.parametrize("program", COMMANDS)
def test_the_readme_names_every_command_and_no_other(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        COMMANDS[program](["--help"])
    offered = set(re.findall(r"^    ([a-z]+) ", capsys.readouterr().out, re.MULTILINE))
    section = README.split(f": `{program}`")[1].split("###")[0]
    assert set(re.findall(r"^\| `([a-z]+)", section, re.MULTILINE)) == offered


def test_every_file_that_the_readme_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)h][^)]*)\)", README)
    assert len(links) > 5
    assert all((ROOT / link).exists() for link in links)


def test_the_configurations_that_ship_are_valid_and_differ_in_the_strategy_only() -> None:
    fedavg, fedprox = Plan.load(ROOT / "configs/study.toml"), Plan.load(ROOT / "configs/study-fedprox.toml")
    assert (fedavg.strategy.name, fedprox.strategy.name) == ("fedavg", "fedprox")
    assert fedavg.model_copy(update={"name": "", "strategy": None}) == fedprox.model_copy(
        update={"name": "", "strategy": None}
    )
    site = Site.load(ROOT / "configs/sites/north.toml")
    assert {fedavg.name, fedprox.name} <= set(site.policy.studies)


def test_the_example_site_explains_every_key_that_a_site_has() -> None:
    text = (ROOT / "configs/sites/north.toml").read_text()
    from silos.config import Annotations, Data, Labels, Policy, Run

    keys = {key for model in (Site, Data, Labels, Annotations, Policy, Run) for key in model.model_fields}
    assert {key for key in keys if not re.search(rf"^(# )?\[?([a-z]+\.)?{key}\b", text, re.MULTILINE)} == set()


def test_the_example_study_explains_every_key_of_a_plan() -> None:
    text = (ROOT / "configs/study.toml").read_text()
    from models.plan import Classification, Strategy, Training

    keys = {key for model in (Plan, Classification, Training, Strategy) for key in model.model_fields}
    assert {key for key in keys if not re.search(rf"\b{key}\b", text)} == set()


@pytest.mark.parametrize("script", sorted(path.stem for path in (ROOT / "scripts").glob("*.py")))
def test_every_script_says_what_it_does(script: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / f"{script}.py"), "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 200
