"""A tree that several processes read is the same tree, whatever happens to them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from silos.dicom import rows as reading
from silos.dicom import scan as scanning
from silos.dicom.rows import File, read_rows
from silos.dicom.scan import scan, walk
from silos.dicom.worker import Worker

Make = Callable[..., Path]

COLUMNS = list(scanning.ATTRIBUTES)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Worker]]:
    """Two cores, on which little is enough to start the workers that are listed here."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(reading, "WORTHWHILE", 2)
    workers: list[Worker] = []

    def start(module: str) -> Worker:
        workers.append(Worker(module))
        return workers[-1]

    monkeypatch.setattr(reading, "Worker", start)
    yield workers
    assert all(worker.process.poll() is not None for worker in workers)


@pytest.fixture
def root(make: Make, tmp_path: Path) -> Path:
    for number in range(12):
        make(tmp_path / "dicom" / f"{number:02}", InstanceNumber=number)
    (tmp_path / "dicom" / "text").write_text("no DICOM")
    whole = (tmp_path / "dicom" / "00").read_bytes()
    (tmp_path / "dicom" / "cut").write_bytes(whole[: len(whole) // 2])
    return tmp_path / "dicom"


def batches(root: Path, times: int = 1) -> list[list[File]]:
    return [[file] for file in sorted(walk(root))] * times


def test_a_scan_by_several_processes_finds_the_same(
    root: Path, tmp_path: Path, started: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "BATCH", 2)
    seen: list[tuple[int, int]] = []
    several = scan(root, tmp_path / "1.sqlite", modality=["MR"], progress=lambda *done: seen.append(done))
    assert len(started) == 2
    monkeypatch.setattr(reading, "WORTHWHILE", 100)
    alone = scan(root, tmp_path / "2.sqlite", modality=["MR"])
    assert len(started) == 2
    pd.testing.assert_frame_equal(several.instances, alone.instances)
    assert several.left_out == alone.left_out == {"not DICOM": 1, "truncated": 1}
    assert seen == [(done, 14) for done in range(1, 15)]


def test_rows_are_in_the_order_of_the_batches(root: Path, started: list[Worker]) -> None:
    found = [row[0] for rows in read_rows(root, COLUMNS, batches(root)) for row in rows]
    assert found == sorted(found)
    assert len(found) == 14


def test_a_name_that_is_no_utf8_comes_back_as_it_was(root: Path, started: list[Worker]) -> None:
    name = os.fsdecode(b"\xfc")
    (root / "11").rename(root / name)
    assert name in [row[0] for rows in read_rows(root, COLUMNS, batches(root)) for row in rows]


def test_workers_that_are_killed_lose_no_work(
    root: Path, started: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, numbers, asked = Worker.ask, count(1), []

    def ask(self: Worker, words: Mapping[str, Any], data: bytes = b"") -> tuple[dict[str, Any], int]:
        number = next(numbers)  # of one thread alone
        asked.append(number)
        if number % 50 == 10:
            self.process.kill()
            self.process.wait()
        return real(self, words, data)

    monkeypatch.setattr(Worker, "ask", ask)
    assert sum(len(rows) for rows in read_rows(root, COLUMNS, batches(root, 10))) == 140
    assert len(asked) == 140
    assert len(started) == 2 + 3


def test_workers_that_cannot_start_lose_no_work(
    root: Path, started: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "__name__", "silos.dicom.nothing")
    assert sum(len(rows) for rows in read_rows(root, COLUMNS, batches(root))) == 14
    assert not started


def test_whoever_stops_asking_stops_the_workers(root: Path, started: list[Worker]) -> None:
    asked = read_rows(root, COLUMNS, batches(root, 500))
    next(asked)
    began = time.monotonic()
    asked.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < 5
    assert started


def test_workers_end_with_the_process_that_started_them(root: Path) -> None:
    program = (
        "import os, pathlib, sys\n"
        "from silos.dicom import rows, scan\n"
        "os.sched_getaffinity = lambda _: {0, 1}\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "pids, real = [], rows.Worker\n"
        "def start(module):\n"
        "    worker = real(module)\n"
        "    pids.append(worker.process.pid)\n"
        "    return worker\n"
        "rows.Worker = start\n"
        "for _ in rows.read_rows(root, scan.ATTRIBUTES, [scan.walk(root)] * 100000):\n"
        "    if len(pids) == 2:\n"
        "        print(*pids, flush=True)\n"
        "        os.kill(os.getpid(), 9)\n"
    )
    paths = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", program, root], capture_output=True, check=False, env=os.environ | {"PYTHONPATH": paths}
    )
    assert done.returncode == -signal.SIGKILL
    end = time.monotonic() + 20
    while any(Path(f"/proc/{int(pid)}/cmdline").exists() for pid in done.stdout.split()):
        assert time.monotonic() < end
        time.sleep(0.05)
