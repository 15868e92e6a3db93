"""What may be imported where, tried by importing."""

import subprocess
import sys
from pathlib import Path

import pytest

from models.ledger import Ledger, Signer
from silos.config import Site
from silos.phantom import write_hospital

BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(name + " is not installed here", name=name.split(".")[0])

sys.meta_path.insert(0, Block())
"""


def python(code: str, blocked: set[str]) -> subprocess.CompletedProcess[str]:
    program = BLOCK.replace("{blocked!r}", repr(blocked)) + code
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)


def test_the_coordinators_packages_import_without_torch() -> None:
    modules = "aggregator.cli aggregator.audit_cli aggregator.rounds aggregator.study aggregator.release"
    code = "\n".join(f"import {module}" for module in [*modules.split(), "models.exchange.channel"])
    done = python(code, {"torch", "monai", "pydicom", "pandas"})
    assert done.returncode == 0, done.stderr


def test_the_auditor_needs_neither_torch_nor_flower() -> None:
    code = "import aggregator.audit_cli as cli; cli.main(['--help'])"
    done = python(code, {"torch", "monai", "pydicom", "pandas", "flwr"})
    assert done.returncode == 0, done.stderr
    assert "reconcile" in done.stdout


def test_a_coordinator_without_torch_is_told_how_to_get_a_first_model(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("coordinator")
    code = f"from aggregator.cli import main; sys.exit(main(['create', 'configs/study.toml', {str(folder / 's')!r}]))"
    done = python(code, {"torch", "monai", "pydicom", "pandas"})
    assert done.returncode == 1
    assert "torch" in done.stderr
    assert "intramural-silo initial" in done.stderr
    assert not (folder / "s").exists()


LIGHT = [
    ("silos.cli", "--help"),
    ("aggregator.cli", "--help"),
    ("aggregator.audit_cli", "--help"),
    ("aggregator.cli", "check configs/study.toml"),
    ("silos.cli", "check SITE --only-files --study configs/study.toml"),
    ("aggregator.audit_cli", "verify LEDGER"),
]


@pytest.mark.parametrize(("command", "arguments"), LIGHT)
def test_what_asks_little_imports_no_heavy_library(command: str, arguments: str, tmp_path: Path) -> None:
    site = write_hospital(tmp_path / "north", name="north", seed=0, patients=1, images=1, studies=["demo"])
    with Ledger.create(tmp_path / "ledger", Signer.load(Site.load(site).key), origin="north/ledger"):
        pass
    places = {"SITE": str(site), "LEDGER": str(tmp_path / "ledger")}
    code = (
        f"import {command} as cli\n"
        f"try:\n    code = cli.main({[places.get(word, word) for word in arguments.split()]})\n"
        "except SystemExit as done:\n    code = done.code\n"
        "heavy = {'torch', 'monai', 'flwr', 'pandas', 'numpy', 'pydicom', 'rich'} & set(sys.modules)\n"
        "assert code == 0 and not heavy, (code, heavy)"
    )
    done = python(code, set())
    assert done.returncode == 0, done.stderr


def test_a_simulation_loads_what_its_study_needs_and_no_other_library(tmp_path: Path) -> None:
    sites = [
        write_hospital(tmp_path / name, name=name, seed=0, patients=24, images=1, studies=["demo-fedavg"])
        for name in ("north", "south")
    ]
    plan = Path("configs/study.toml").read_text().replace("rounds = 5", "rounds = 1")
    (tmp_path / "study.toml").write_text(plan)
    code = (
        "from aggregator import LocalGrid, Study, run\n"
        f"with Study.load({str(tmp_path / 'study.toml')!r}) as study, LocalGrid({[*map(str, sites)]!r}) as grid:\n"
        "    assert run(study, grid).history.rounds[1].accepted\n"
        "needless = {'monai', 'scipy', 'matplotlib', 'highdicom', 'nibabel', 'ray', 'fastapi'} & set(sys.modules)\n"
        "assert not needless, needless"
    )
    done = python(code, set())
    assert done.returncode == 0, done.stderr


def test_a_hospitals_command_without_its_libraries_says_what_to_install() -> None:
    code = "from silos.cli import main; sys.exit(main(['scan', 'configs/sites/north.toml']))"
    done = python(code, {"torch", "monai", "pydicom", "pandas"})
    assert done.returncode == 1
    assert "pip install 'intramural[silo]'" in done.stderr
    assert "Traceback" not in done.stderr
