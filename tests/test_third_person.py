"""A third person checks a real study on a machine with Python and `cryptography`, and nothing else."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from aggregator import LocalGrid, Study, run
from aggregator.audit.replay import replay
from aggregator.audit_cli import main
from aggregator.release import release
from models.ledger import Event, read
from models.ledger.vocabulary import json_schema
from silos.config import Site

STRANGER = """
import runpy, sys

KNOWN = {*sys.stdlib_module_names, "cryptography", "_cffi_backend", "models", "aggregator"}

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in KNOWN:
            raise ImportError(name + " is not installed here", name=name.split(".")[0])

sys.meta_path.insert(0, Nothing())
runpy.run_module("aggregator.audit_cli", run_name="__main__", alter_sys=True)
"""


def stranger(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `intramural-audit` where nothing is installed but what a checker needs."""
    command = [sys.executable, "-c", STRANGER, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def study(hospitals: list[Path], write_plan: Callable[..., Path], tmp_path: Path) -> Path:
    """The folder of a study from DICOM to a model, with its hospitals' work folders beside it."""
    folder = tmp_path / "study"
    plan = write_plan(rounds=2, more="keep_updates = true", strategy='name = "fedprox"\nmu = 0.1')
    with Study.create(plan, folder) as made, LocalGrid(hospitals) as grid:
        run(made, grid)
    for site in hospitals:
        shutil.copytree(Site.load(site).run.work, tmp_path / site.parent.name)
    return folder


def test_a_study_can_be_checked_by_a_third_person_line_by_line_file_by_file_and_sum_by_sum(study: Path) -> None:
    silo = study.parent / "north"

    # every line is one that the published schema allows
    schema = jsonschema.Draft202012Validator(json_schema())
    seen = set()
    for folder in (study / "ledger", *(study.parent / name / "ledger" for name in ("east", "north", "south"))):
        for line in (folder / "ledger.jsonl").read_text().splitlines():
            schema.validate(json.loads(line))
            seen.add(json.loads(line)["event"])
    assert {Event.UPDATE_RECEIVED, Event.AGGREGATED, Event.STUDY_APPROVED, Event.EXCHANGE_RECEIPT} <= seen

    # every combined model comes out again
    found = replay(study)
    assert (found.problems, [m.round for m in found.models], found.orders) == ([], [1, 2], 12)

    # the files that the two parties hand out
    hub_file, silo_file = study.parent / "hub.proof", study.parent / "north.proof"
    assert main(["prove", str(study), "--peer", "north", "--out", str(hub_file)]) == 0
    assert main(["prove", str(silo), "--out", str(silo_file)]) == 0
    assert max(file.stat().st_size for file in (hub_file, silo_file)) < 12_000
    keys = [read(folder / "ledger").verifier.vkey for folder in (study, silo)]

    # the model with its papers
    model = study.parent / "model"
    release(study, model)

    # and on a machine without anything
    for arguments, said in (
        (("verify", study, silo), "ok"),
        (("reconcile", study, silo), "agree"),
        (("reconcile", hub_file, silo_file), "agree"),
        (("check", hub_file, silo_file, "--key", *keys), "the key given"),
        (("show", silo), "update.offered"),
        (("check", model, "--key", *keys), "5 files are as they were released"),
        (("schema",), "model.released"),
        (("prove", silo, "--documents", "--out", study.parent / "more.proof"), "lines of the ledger of north"),
    ):
        done = stranger(*arguments)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
        assert "Traceback" not in done.stderr
    (model / "configs" / "logging.conf").write_text("[loggers]")
    assert stranger("check", model).returncode == 3
    line = silo / "ledger" / "ledger.jsonl"
    line.write_bytes(line.read_bytes().replace(b"order.received", b"order.rejected", 1))
    assert stranger("verify", silo).returncode == 3


def test_what_a_third_person_lacks_is_named(tmp_path: Path) -> None:
    done = stranger("replay", tmp_path)
    assert done.returncode == 1
    assert "numpy" in done.stderr or "pydantic" in done.stderr
    assert "Traceback" not in done.stderr
