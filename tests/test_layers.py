"""What may be imported where, tried by importing."""

import subprocess
import sys

import pytest

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


@pytest.mark.parametrize("command", ["silos.cli", "aggregator.cli", "aggregator.audit_cli"])
def test_help_imports_no_heavy_library(command: str) -> None:
    code = (
        f"import {command} as cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'monai', 'flwr', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = python(code, set())
    assert done.returncode == 0, done.stderr


def test_a_hospitals_command_without_its_libraries_says_what_to_install() -> None:
    code = "from silos.cli import main; sys.exit(main(['scan', 'configs/sites/north.toml']))"
    done = python(code, {"torch", "monai", "pydicom", "pandas"})
    assert done.returncode == 1
    assert "pip install 'intramural[silo]'" in done.stderr
    assert "Traceback" not in done.stderr
