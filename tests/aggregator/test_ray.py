"""A study on Ray, through Flower's own simulation engine: the same models, the same ledgers."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aggregator import LocalGrid, RayGrid, Study, run
from aggregator.audit import reconcile
from models.errors import ConfigError
from models.ledger import Event, read
from silos.config import Site


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'intramural[ray]'")
def test_ray_makes_the_models_of_the_local_grid_and_the_ledgers_agree(
    hospitals: list[Path], write_plan: Callable[..., Path], tmp_path: Path
) -> None:
    """South has lost its table of labels: its words stay at home, and the others go on."""
    (hospitals[2].parent / "labels.csv").unlink()
    shutil.copytree(tmp_path / "hospitals", tmp_path / "cluster")
    sites = [tmp_path / "cluster" / site.parent.name / "site.toml" for site in hospitals]
    Study.create(write_plan(), tmp_path / "here").close()
    shutil.copytree(tmp_path / "here", tmp_path / "there")

    with Study.open(tmp_path / "here") as study, LocalGrid(hospitals) as grid:
        outcome = run(study, grid)
    command = [sys.executable, "-m", "aggregator.cli", "run", tmp_path / "there", "--engine", "ray", "--local", *sites]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)

    assert done.returncode == 0, done.stderr
    assert outcome.digest in done.stdout
    assert "labels.csv" not in done.stdout + done.stderr
    histories = [read(tmp_path / name / "ledger").records for name in ("here", "there")]
    here, there = ([r.body["model"] for r in lines if r.event == Event.AGGREGATED] for lines in histories)
    assert len(here) == 2
    assert here == there
    for site in sites:
        verdict = reconcile(tmp_path / "there" / "ledger", Site.load(site).run.work / "ledger")
        assert (verdict.ok, verdict.closed, len(verdict.pending)) == (True, True, 0)


def test_without_ray_it_is_said_what_to_install(hospitals: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as error:
        RayGrid(hospitals)
    assert "intramural[ray]" in error.value.hint
