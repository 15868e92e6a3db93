"""The demonstration, as `make demo` runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "demo.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


def test_four_hospitals_learn_under_both_strategies_and_five_ledgers_agree(tmp_path: Path) -> None:
    work = tmp_path / "demo"
    done = demo("--work", str(work))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all ledgers agree: yes" in done.stdout
    assert done.stdout.count("  agree\n") == 8
    assert (work / "curves.png").read_bytes().startswith(b"\x89PNG")
    for study in ("study", "study-fedprox"):
        lines = (work / "studies" / study / "metrics.jsonl").read_text().splitlines()
        rounds = [json.loads(line) for line in lines]
        assert [r["round"] for r in rounds] == list(range(6))
        assert all(len(r["accepted"]) == 4 for r in rounds[1:])
        assert rounds[-1]["mean"]["auc"] > 0.85 > 0.6 > rounds[0]["mean"]["auc"]

    again = demo("--data", str(work / "hospitals"), "--work", str(work))  # it goes on where it was: at the end
    assert again.returncode == 0, again.stdout + again.stderr
    assert "all ledgers agree: yes" in again.stdout


@pytest.mark.parametrize("content", [[], ["study.toml"]])
def test_a_folder_without_hospitals_is_named(tmp_path: Path, content: list[str]) -> None:
    for name in content:
        (tmp_path / name).write_text((ROOT / "configs" / name).read_text())
    done = demo("--data", str(tmp_path))
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr
    assert "site.toml" in done.stderr
