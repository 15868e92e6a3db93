"""Planted identifiers are searched for in every byte that leaves a hospital, in every disguise, failures included."""

import importlib.util
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from aggregator import LocalGrid, Study, run
from aggregator.release import release
from models.errors import DataError
from models.exchange import wire
from models.exchange.channel import Channel
from models.ledger import Ledger
from silos import app, cohort, gate, reading, training, visit
from silos.config import Site

Search = Callable[[Iterable[str], Iterable[bytes]], set[str]]

PATIENT = "Wintermantel-4711^Rosalinde"
SECRET = f"/srv/dicom/{PATIENT}/MRN88412093/19611207/1.2.840.99999.4711.3.im: cannot read"


def identifiers(sites: list[Path]) -> list[str]:
    return [line for site in sites for line in (site.parent / "canaries.txt").read_text().splitlines()]


def files_below(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]


def test_the_search_finds_an_identifier_in_every_disguise(search: Search) -> None:
    import base64

    name = "Quillfeather^Ottoline"
    blobs = [
        b"xx" + name.encode() + b"yy",
        name.upper().encode(),
        name[::-1].encode(),
        b"\x00" + name.encode("utf-16-le"),
        name.encode("utf-16-be"),
        name.encode().hex().encode(),
        base64.b64encode(name.encode()),
        base64.b64encode(b"a" + name.encode() + b"zz"),
        base64.b64encode(b"ab" + name.encode() + b"z"),
        b"Quillfeather%5EOttoline",
        b"Quillfeather Ottoline",
    ]
    assert all(search([name], [blob]) == {name} for blob in blobs)
    assert search([name], [b"Quillfeather's Ottoline"]) == set()


def test_a_whole_study_lets_no_identifier_out(
    hospitals: list[Path],
    write_plan: Callable[..., Path],
    tmp_path: Path,
    tapped_grid: Any,
    search: Search,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    with Study.create(write_plan(), tmp_path / "study") as study, tapped_grid(hospitals) as grid:
        run(study, grid)
    planted = identifiers(hospitals)
    assert len(planted) > 100
    assert len(grid.tapped) > 100
    assert search(planted, grid.tapped) == set()
    assert search(planted, files_below(tmp_path / "study")) == set()
    assert search(planted, [record.getMessage().encode() for record in caplog.records]) == set()
    assert search(planted, files_below(hospitals[0].parent / "work" / "ledger")) == set()
    assert search(planted, files_below(hospitals[0].parent)) != set()  # they are there to be leaked


def test_a_leaking_hospital_would_be_caught(
    hospitals: list[Path],
    write_plan: Callable[..., Path],
    tmp_path: Path,
    tapped_grid: Any,
    search: Search,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planted = identifiers(hospitals)
    monkeypatch.setattr(visit, "software", lambda: {"note": planted[0]})
    with Study.create(write_plan(rounds=1), tmp_path / "study") as study, tapped_grid(hospitals) as grid:
        run(study, grid)
    assert search(planted, grid.tapped) == {planted[0]}


def test_a_released_model_holds_no_identifier_even_of_a_hospital_that_leaks(
    hospitals: list[Path],
    write_plan: Callable[..., Path],
    tmp_path: Path,
    search: Search,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planted = identifiers(hospitals)
    monkeypatch.setattr(visit, "software", lambda: {"note": planted[0], "torch": planted[1]})
    with Study.create(write_plan(rounds=1), tmp_path / "study") as study, LocalGrid(hospitals) as grid:
        run(study, grid)
    release(tmp_path / "study", tmp_path / "model")
    assert search(planted, files_below(tmp_path / "study")) == set(planted[:2])
    assert search(planted, files_below(tmp_path / "model")) == set()
    assert search([str(tmp_path)], files_below(tmp_path / "model")) == set()


def _fail(*_: object, **__: object) -> Any:
    raise RuntimeError(SECRET)


def _fail_by_name(*_: object, **__: object) -> Any:
    raise type(PATIENT, (Exception,), {})(SECRET)


def _fail_as_one_of_ours(*_: object, **__: object) -> Any:
    raise DataError(SECRET, SECRET) from KeyError(PATIENT)


def _only_at_hospitals(original: Callable[..., Any], fail: Callable[..., Any]) -> Callable[..., Any]:
    """Ledger and channel are on both sides; only a hospital's fail."""

    def patched(self: Any, *args: object, **kwargs: object) -> Any:
        name = self.folder.parent.name if isinstance(self, Ledger) else self._signer.name
        return fail() if name in {"work", "east", "north", "south"} else original(self, *args, **kwargs)

    return patched


STEPS: dict[str, Callable[[pytest.MonkeyPatch, Callable[..., Any]], None]] = {
    "unpacking": lambda patch, fail: patch.setattr(app, "wire", SimpleNamespace(pack=wire.pack, unpack=fail)),
    "packing": lambda patch, fail: patch.setattr(app, "wire", SimpleNamespace(pack=fail, unpack=wire.unpack)),
    "verifying": lambda patch, fail: patch.setattr(Channel, "verify", _only_at_hospitals(Channel.verify, fail)),
    "recording": lambda patch, fail: patch.setattr(Ledger, "append", _only_at_hospitals(Ledger.append, fail)),
    "offering": lambda patch, fail: patch.setattr(Channel, "offer", _only_at_hospitals(Channel.offer, fail)),
    "permitting": lambda patch, fail: patch.setattr(gate, "permit", fail),
    "scanning": lambda patch, fail: patch.setattr(visit, "scan", fail),
    "matching": lambda patch, fail: patch.setattr(cohort, "match", fail),
    "decoding": lambda patch, fail: patch.setattr(reading, "read_image", fail),
    "evaluating": lambda patch, fail: patch.setattr(training, "evaluate", fail),
    "training": lambda patch, fail: patch.setattr(training, "fit", fail),
    "releasing": lambda patch, fail: patch.setattr(gate, "release", fail),
    "refusing": lambda patch, fail: (
        patch.setattr(gate, "permit", fail),
        patch.setattr(gate, "refusal", fail),
    ),  # type: ignore[func-returns-value]
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("fail", [_fail, _fail_by_name, _fail_as_one_of_ours])
def test_an_error_that_names_a_patient_leaves_as_one_word(
    hospitals: list[Path],
    write_plan: Callable[..., Path],
    tmp_path: Path,
    tapped_grid: Any,
    search: Search,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step: str,
    fail: Callable[..., Any],
) -> None:
    caplog.set_level(logging.INFO)
    with Study.create(write_plan(rounds=1), tmp_path / "study") as study, tapped_grid(hospitals) as grid:
        STEPS[step](monkeypatch, fail)
        outcome = run(study, grid)
    words = [PATIENT, *PATIENT.split("^"), "MRN88412093", "19611207", "1.2.840.99999.4711", "srv/dicom"]
    planted = [*identifiers(hospitals), *words, str(tmp_path)]
    assert search(planted, grid.tapped) == set()
    assert search([*identifiers(hospitals), *words], files_below(tmp_path / "study")) == set()
    assert search(planted, [record.getMessage().encode() for record in caplog.records]) == set()
    if step != "decoding" or fail is not _fail_as_one_of_ours:
        assert set(outcome.history.rounds[1].refused) == {"east", "north", "south"}
    else:  # an image that cannot be read is left out; with none left there are too few patients
        assert set(outcome.history.rounds[1].refused.values()) == {"too-few-patients"}


@pytest.mark.lgg
def test_real_hospitals_let_no_identifier_out(
    lgg: Path, tmp_path: Path, tapped_grid: Any, search: Search, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    script = _script("lgg")
    options = SimpleNamespace(data=lgg, work=tmp_path / "lgg", seeds=[1], rounds=1, epochs=1)
    script.write_hospitals(options)
    arm = script.Arm("fedavg", 1)
    plan = script.write_plan(options, arm)
    plan.write_text(plan.read_text().replace("epochs = 1", "steps = 3"))
    sites = script.hospitals(options, arm)
    planted = [line for name in sites for line in (lgg / name / "canaries.txt").read_text().splitlines()]
    with Study.create(plan, tmp_path / "study") as study, tapped_grid(sites.values()) as grid:
        outcome = run(study, grid)

    assert outcome.history.rounds[1].accepted == ["east", "north", "south", "west"]
    assert outcome.history.rounds[1].refused == {"tiny": "too-few-patients"}
    assert len(planted) > 500
    assert search(planted, grid.tapped) == set()
    assert search(planted, files_below(tmp_path / "study")) == set()
    assert search(planted, [record.getMessage().encode() for record in caplog.records]) == set()
    for site in sites.values():
        assert search(planted, files_below(Site.load(site).run.work / "ledger")) == set()


def _script(name: str) -> ModuleType:
    path = Path(__file__).parent.parent / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
