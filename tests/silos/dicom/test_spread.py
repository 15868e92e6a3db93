"""Work that is spread over processes gives what it gives in one, whatever happens to them."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from silos.dicom import scan as scanning
from silos.dicom import spread as spreading
from silos.dicom.scan import scan
from silos.dicom.spread import spread

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(spreading, "WORTHWHILE", 2)


def test_results_are_in_the_order_of_the_batches() -> None:
    batches = [[number] * (50 - number) for number in range(50)]
    assert list(spread(len, batches)) == [50 - number for number in range(50)]
    assert not multiprocessing.active_children()


def test_little_work_is_done_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreading, "WORTHWHILE", 6)
    assert list(spread(lambda batch: (batch, os.getpid()), "abcde")) == [(batch, os.getpid()) for batch in "abcde"]


def test_a_killed_worker_loses_no_work() -> None:
    results = spread(time.sleep, [0.05] * 20)
    next(results)
    for worker in multiprocessing.active_children():
        worker.kill()
    assert list(results) == [None] * 19


def test_whoever_stops_asking_stops_the_workers() -> None:
    results = spread(time.sleep, [0.05] * 400)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, os, time\n"
        "from silos.dicom import spread\n"
        "if __name__ == '__main__':\n"
        "    os.sched_getaffinity = lambda _: {0, 1}\n"
        "    results = spread.spread(time.sleep, [0.01] * 20 + [100] * 20)\n"
        "    next(results)\n"
        "    print(*[worker.pid for worker in multiprocessing.active_children()], flush=True)\n"
        "    list(results)\n"
    )
    paths = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths}
    ) as it:
        assert it.stdout
        workers = [int(word) for word in it.stdout.readline().split()]
        it.send_signal(signal.SIGKILL)
    assert len(workers) == 2
    end = time.monotonic() + 20
    while any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_scan_by_several_processes_finds_the_same(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "dicom"
    for number in range(12):
        make(root / f"{number}", InstanceNumber=number)
    (root / "text").write_text("no DICOM")
    whole = (root / "0").read_bytes()
    (root / "cut").write_bytes(whole[: len(whole) // 2])
    monkeypatch.setattr(scanning, "BATCH", 2)
    seen: list[tuple[int, int]] = []
    several = scan(root, tmp_path / "1.sqlite", modality=["MR"], progress=lambda *done: seen.append(done))
    monkeypatch.setattr(spreading, "WORTHWHILE", 100)
    alone = scan(root, tmp_path / "2.sqlite", modality=["MR"])
    pd.testing.assert_frame_equal(several.instances, alone.instances)
    assert several.left_out == alone.left_out == {"not DICOM": 1, "truncated": 1}
    assert seen == [(done, 14) for done in range(1, 15)]
