"""Whatever call of the system goes wrong, and however: the ledger opens, and nothing that was promised is lost.

`crashing.py` writes ledgers, and strikes them at every single call with which a ledger is made, opened again after a
crash, appended to, given a list or a farewell to keep and a new checkpoint. Here each of them is opened by a reader
and by its owner, and compared with what its writer had been told. `pytest -s` prints the tables.

strace strikes in the system itself. Where it is not installed or not allowed, the same is still struck in Python,
where the power can also be cut: nothing that was not synced is left then.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import models
from models.console import show_table
from models.errors import IntramuralError
from models.ledger import Entry, Event, Ledger, Signer, read, read_partings

WRITER = Path(__file__).with_name("crashing.py")
NORTH = Signer.from_seed("north", bytes(range(32)))

KILLED = ("killed before", "killed half-way", "killed after", "power cut", "power cut, all names kept")
INJECTED = ("EIO", "ENOSPC", "short write", *KILLED)
TRACED = ("EIO", "ENOSPC", "killed before")


def entry(number: int) -> Entry:
    return Entry(Event.UPDATE_OFFERED, {"number": number}, study="ab" * 32, round=number)


@pytest.fixture(params=["from nothing", "after a crash"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> list[Path]:
    """What the writer begins with: nothing, or two lines, a third that is not signed, and half a fourth."""
    if request.param == "from nothing":
        return []
    folder = tmp_path / "crashed"
    with Ledger.create(folder, NORTH) as ledger:
        ledger.append(entry(1))
        older = (folder / "checkpoint").read_bytes()
        ledger.append(entry(2), entry(3))
    (folder / "checkpoint").write_bytes(older)
    lines = (folder / "ledger.jsonl").read_bytes()
    (folder / "ledger.jsonl").write_bytes(lines[:-40])
    return [folder]


@pytest.fixture(scope="module")
def traceable(tmp_path_factory: pytest.TempPathFactory) -> None:
    """strace is here, and may watch a process."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed; the same calls are struck without it by the test above")
    probe = ["strace", "-o", os.devnull, "-e", "trace=fsync", "-e", "inject=fsync:error=EIO:when=1", "true"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"strace may not watch a process here: {done.stderr.strip()[:200]}")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """No machine dies while the ledgers are looked at."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda number: None)


def struck(task: str, how: str, folder: Path, ledger: list[Path]) -> Iterator[dict[str, Any]]:
    """What came of every writer."""
    environment = {**os.environ, "PYTHONPATH": str(Path(models.__file__).parents[1])}
    command = [sys.executable, str(WRITER), task, how, str(folder / "struck"), *map(str, ledger)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    if "may not watch" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert not done.returncode, done.stderr
    yield from map(json.loads, done.stdout.splitlines())


def judge(result: dict[str, Any], how: str, promised: int) -> tuple[int, int, str, list[str]]:
    """Lines that were acknowledged, lines that are found, how the ledger opens, and what is wrong."""
    folder, said = Path(result["folder"]) / "ledger", result["said"]
    killed = how in KILLED and bool(result["call"])
    kept = [int(line.removeprefix("kept ")) for line in said if line.startswith("kept ")]
    stored = [line.removeprefix("stored ") for line in said if line.startswith("stored ")]
    failed = [place for place, line in enumerate(said) if line.startswith("failed ")]
    wrong = [line for line in said if line.startswith("broke ")]
    if result["code"] != (-signal.SIGKILL if killed else 0):
        wrong.append(f"the exit code was {result['code']}")
    if how in ("EIO", "ENOSPC") and bool(result["call"]) != bool(failed):
        wrong.append("the error went unnoticed")
    if failed and kept and said[failed[0] :] != ["failed ledger-not-appended", *["refused"] * 3]:
        wrong.append("after the error, the writer went on")
    if not killed:
        wrong += [f"{path.name} was left behind" for path in folder.parent.glob(".*")]
    promised = max([promised, *kept])
    try:
        opens, found = opened(folder, stored, "parted" in said) if folder.exists() else made(folder)
    except (IntramuralError, OSError, AssertionError) as error:
        return promised, 0, "NO", [*wrong, f"{type(error).__name__}: {error}"]
    if found < promised:
        wrong.append("LOST")
    return promised, found, opens, wrong


def opened(folder: Path, stored: list[str], parted: bool) -> tuple[str, int]:
    """How a ledger opens, for a reader, for its owner, and for a reader again; and how many lines it had."""
    first = read(folder, NORTH.verifier)
    with Ledger.open(folder, NORTH) as ledger:
        lines = len(ledger.records)
        assert [record.body["number"] for record in ledger.records[1:]] == list(range(1, lines))
        assert lines == len(first.records) + first.unsigned, "the reader and the owner see different lines"
        for name in stored:
            assert ledger.manifest(name)
        assert len(read_partings(folder)) >= parted
        ledger.append(entry(lines))
    last = read(folder, NORTH.verifier)
    assert (last.head.size, last.unsigned, last.incomplete) == (lines + 1, 0, False)
    return "recovered" if first.unsigned or first.incomplete else "yes", lines


def made(folder: Path) -> tuple[str, int]:
    """Nothing stands in the way of a new ledger."""
    Ledger.create(folder, NORTH).close()
    return "made anew", 0


def check(task: str, how: str, folder: Path, ledger: list[Path]) -> None:
    """Strike at every call, print the table, and find nothing wrong."""
    rows, problems = [], []
    for result in struck(task, how, folder, ledger):
        kept, found, opens, wrong = judge(result, how, 2 if ledger else 0)
        call, _, number = result["call"].partition(" ")
        rows.append((call, number, how, kept, found, opens, "; ".join(wrong)))
        problems += [f"{result['call']}: {problem}" for problem in wrong]
    show_table(f"{task}: {how}", ("call", "nth", "fault", "acknowledged", "found", "opens", "wrong"), rows)
    assert not problems
    assert rows.pop() == ("", "", how, *[6 if ledger else 4] * 2, "yes", ""), "undisturbed, all is written"
    calls = {"open" if call == "openat" else call for call, *_ in rows}
    if how in ("short write", "killed half-way"):
        assert calls == {"write"}
    else:
        more = {"ftruncate"} if ledger else set()
        assert calls == {"open", "mkdir", "write", "fsync", "fdatasync", "rename"} | more


@pytest.mark.parametrize("how", INJECTED)
def test_whatever_goes_wrong_at_any_call_nothing_acknowledged_is_lost(
    how: str, ledger: list[Path], tmp_path: Path
) -> None:
    check("inject", how, tmp_path, ledger)


@pytest.mark.usefixtures("traceable")
@pytest.mark.parametrize("how", TRACED)
def test_whatever_the_system_does_at_any_call_nothing_acknowledged_is_lost(
    how: str, ledger: list[Path], tmp_path: Path
) -> None:
    check("strace", how, tmp_path, ledger)
