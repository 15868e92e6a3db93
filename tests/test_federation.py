"""A federation for real: every party a process of its own, TLS between them, and nothing of a patient on the way."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from aggregator.audit import reconcile, verify
from models.exchange.documents import Agreement
from silos.phantom import write_hospital

ROOT = Path(__file__).parent.parent
Search = Callable[[Iterable[str], Iterable[bytes]], set[str]]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The script's own run, with client certificates; what it left behind."""
    work = tmp_path_factory.mktemp("real") / "federation"
    command = [sys.executable, ROOT / "scripts" / "federation.py", "--phantoms", "--work", work]
    command.append("--require-certificates")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" same ") == 6  # five rounds and the first model
    assert "DIFFERENT" not in done.stdout
    yield work
    shutil.rmtree(work)


def test_four_hospitals_over_tls_make_the_models_that_the_simulation_makes(federation: Path) -> None:
    study = federation / "study"
    lines = [json.loads(line) for line in (study / "metrics.jsonl").read_text().splitlines()]
    assert [len(line["accepted"]) for line in lines[1:]] == [4] * 5
    assert lines[-1]["mean"]["auc"] > 0.85
    assert verify(study / "ledger").ok
    for hospital in ("north", "east", "south", "west"):
        pair = reconcile(study / "ledger", federation / "hospitals" / hospital / "work" / "ledger")
        assert (pair.ok, pair.closed, pair.pending) == (True, True, [])


def test_the_approval_of_each_hospital_stands_in_its_own_ledger(federation: Path) -> None:
    study = Agreement.decode((federation / "study" / "agreement.json").read_bytes()).study
    for hospital in ("north", "south"):
        lines = (federation / "hospitals" / hospital / "work" / "ledger" / "ledger.jsonl").read_text().splitlines()
        approved = [line for line in map(json.loads, lines) if line["event"] == "study.approved"]
        assert [(line["study"], line["body"]["by"]) for line in approved] == [(study, "person")]


def test_nothing_of_a_patient_reaches_the_coordinator_nor_any_log(federation: Path, search: Search) -> None:
    hospitals = federation / "hospitals"
    planted = [line for path in hospitals.glob("*/canaries.txt") for line in path.read_text().splitlines()]
    assert len(planted) > 400
    outside = [*(federation / "service").rglob("*"), *(federation / "study").rglob("*"), *federation.glob("logs/*")]
    told = {"supernode.log", "health.json", "executor.json", "journal"}
    inside = [path for path in hospitals.rglob("*") if path.name in told]
    files = [path for path in (*outside, *inside) if path.is_file()]
    names = {path.name for path in files}
    assert {"superlink.db", "aggregator.log", "north.log", "health.json"} <= names
    assert search(planted, [path.read_bytes() for path in files]) == set()
    assert search(planted, [str(path).encode() for path in files]) == set()


def test_torch_is_loaded_once_in_each_hospital(federation: Path) -> None:
    for hospital in ("north", "east", "south", "west"):
        log = (federation / "logs" / f"{hospital}.log").read_text()
        assert "executor ended" not in log


def test_volumes_outlined_over_tls_make_the_models_that_the_simulation_makes(tmp_path: Path, proxy: Any) -> None:
    federation, plan = script("federation"), tmp_path / "study.toml"
    text = (ROOT / "configs" / "segmentation.toml").read_text()
    for pattern, words in (
        ("rounds = .*", "rounds = 2"),  # the second starts from the norms that stayed in the hospital
        ("metrics = .*", 'metrics = ["loss"]'),
        ("steps = .*", "steps = 3"),
        (r"channels = \[.*?\]", "channels = [8, 16]"),
    ):
        text, count = re.subn(pattern, words, text, count=1)
        assert count == 1
    plan.write_text(text)
    work, names = tmp_path / "federation", ("north", "south")
    sites = [
        write_hospital(
            work / "hospitals" / name,
            name=name,
            patients=16,
            images=12,
            size=32,
            volumes=True,
            style=style,
            studies=["demo-segmentation"],
        )
        for name, style in zip(names, (1, 3), strict=True)  # contours on slices; masks on files of many frames
    ]
    with federation.simulated(tmp_path / "simulation", plan, sites) as history:
        expected = [item.model for item in history.rounds]
    north = sites[0].read_text()
    sites[0].write_text(north.replace("[run]", f'[run]\nproxy = "{proxy.url}"'))
    with federation.Federation(work, sites) as parties:
        parties.set_up(plan)
        for party in ("aggregator", *names):
            parties.start(party)
        parties.wait_for_nodes(names)
        rounds = parties.run().rounds
    assert [item.accepted for item in rounds[1:]] == [list(names)] * 2
    assert [item.model for item in rounds] == expected
    assert len(set(expected)) == 3
    assert len(set(proxy.asked)) == 1
    for site in sites:
        assert reconcile(work / "study" / "ledger", site.parent / "work" / "ledger").ok


def test_the_walk_of_the_readme_from_nothing_to_a_federation_works_as_typed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    block = (ROOT / "README.md").read_text().split("<!-- federation")[1].split("Two files")[0]
    lines = [line.strip() for line in block.splitlines() if line.startswith("    intramural-")]
    assert 8 < len(lines) < 12
    port, inner = (script("federation").free_port() for _ in range(2))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    services = []
    try:
        for line in lines:
            program, *arguments = shlex.split(line.removesuffix("&"))
            arguments = [word.replace("8443", str(port)) for word in arguments]
            command = [Path(sys.executable).with_name(program), *arguments]
            if line.endswith("&"):
                services.append(subprocess.Popen(command, cwd=tmp_path))
                continue
            done = subprocess.run(command, cwd=tmp_path, check=False, timeout=600)
            assert done.returncode == 0, (line, capfd.readouterr().err)
            if "init" in arguments:  # so that two tests can run on one machine
                settings = tmp_path / "service" / "service.toml"
                settings.write_text(re.sub("superlink_port = .*", f"superlink_port = {inner}", settings.read_text()))
    finally:
        for service in reversed(services):
            service.terminate()
        started = time.monotonic()
        assert [service.wait(60) for service in services] == [0] * len(services)
    assert time.monotonic() - started < 60
    assert "2 of 5" not in capfd.readouterr().err
    assert verify(tmp_path / "studies" / "two" / "ledger").ok
    for hospital in ("north", "south"):
        assert reconcile(tmp_path / "studies" / "two" / "ledger", tmp_path / hospital / "work" / "ledger").ok
