"""What goes wrong in a simulation is recorded as in production, stops nobody else, and happens again just so."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from aggregator import LocalGrid, Study, run
from aggregator.audit import reconcile
from aggregator.audit.replay import replay
from aggregator.history import Round
from aggregator.visits import Visit
from models.errors import ConfigError, Malformed
from models.exchange.documents import Order
from models.exchange.spec import load_vector
from models.faults import AnyFault, Labels, Scanner, struck
from models.ledger import Event, read
from models.tasks import Case
from silos import faults as silo_faults
from silos.app import close_silo, open_silo
from silos.faults import CrashError, FaultySilo

NAMES = ["east", "north", "south"]
Play = Callable[..., list[Round]]


def fault(what: str, **keys: Any) -> Any:
    return TypeAdapter(AnyFault).validate_python({"what": what, **keys})


@pytest.fixture
def play(write_plan: Callable[..., Path], hospitals: list[Path], tmp_path: Path) -> Play:
    """Runs a study with some faults; its rounds."""

    def of(*faults: Any, rounds: int = 2, workers: int = 1, more: str = "", strategy: str = 'name = "fedavg"') -> Any:
        plan = write_plan(rounds=rounds, more=more, strategy=strategy)
        with Study.create(plan, tmp_path / "study") as study, LocalGrid(hospitals, workers, faults=faults) as grid:
            return run(study, grid).history.rounds

    return of


def ledger(hospitals: Sequence[Path], name: str) -> Path:
    return hospitals[NAMES.index(name)].parent / "work" / "ledger"


def test_an_absent_silo_is_silent_at_once_and_knows_of_nothing(play: Play, hospitals: list[Path]) -> None:
    began = time.monotonic()
    rounds = play(fault("absent", silos=["north"], rounds=[1, 1]), more="deadline = 100000")
    assert time.monotonic() - began < 1000
    assert [item.accepted for item in rounds[1:]] == [["east", "south"], NAMES]
    assert [item.refused for item in rounds[1:]] == [{"north": "silent"}, {}]
    received = [r.round for r in read(ledger(hospitals, "north")).records if r.event == Event.ORDER_RECEIVED]
    assert received == [2, 2, 2]  # to train, to evaluate, to close
    assert reconcile(hospitals[0].parents[2] / "study" / "ledger", ledger(hospitals, "north")).ok


def test_scaffolds_variate_is_the_mean_of_the_hospitals_own_whatever_gets_lost(
    write_plan: Callable[..., Path], hospitals: list[Path], tmp_path: Path
) -> None:
    more = "keep_updates = true"
    plan = write_plan(rounds=4, strategy='name = "scaffold"', weights="equal", more=more)
    faults = [
        fault("garbage", silos=["south"], rounds=[2, 2], content="nan"),  # it is rejected, the others count
        fault("absent", silos=["east", "south"], rounds=[3, 3]),  # the round is void
    ]
    with Study.create(plan, tmp_path / "study") as study, LocalGrid(hospitals, faults=faults) as grid:
        rounds = run(study, grid).history.rounds
        model, records = study.load_model(4, study.position.digest), study.ledger.records
    assert [item.accepted for item in rounds[1:]] == [NAMES, ["east", "north"], [], NAMES]
    asked = [r.body["statement"]["body"] for r in records if r.event == Event.ORDER_OFFERED and r.round == 4]
    counted = {Order.decode(read(tmp_path / "study" / "ledger").manifest(body)).counted for body in asked}
    assert counted == {1, 2, None}  # of south, of the two others, and of those that ask for no training
    own = []
    for site in hospitals:
        (folder,) = (site.parent / "work" / "local").iterdir()
        own.append(load_vector(folder / "00004.safetensors")[1])
    control = np.mean(own, axis=0)
    assert np.abs(control).max() > 1e-3
    np.testing.assert_allclose(model[: model.size // 2], control, atol=1e-6)
    assert replay(tmp_path / "study").problems == []


def test_an_order_that_names_another_round_than_the_one_that_counted_is_found(
    write_plan: Callable[..., Path], hospitals: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Visit, "counted", lambda visit: dict.fromkeys(visit.kinds))
    plan = write_plan(strategy='name = "scaffold"', weights="equal", more="keep_updates = true")
    with Study.create(plan, tmp_path / "study") as study, LocalGrid(hospitals) as grid:
        run(study, grid)
    what = "does not name round 1 as the last that counted its update"
    found = replay(tmp_path / "study").problems
    assert [problem.partition(": ")[2] for problem in found] == [f"the order to {name} {what}" for name in NAMES]


def test_a_slow_silo_is_late_where_the_study_drops_stragglers(play: Play) -> None:
    rounds = play(fault("slow", silos=["south"], factor=2.0))
    assert [item.refused for item in rounds[1:]] == [{"south": "silent"}] * 2
    assert "south" in rounds[2].metrics  # it is not too slow to measure the last model


def test_and_hands_in_its_part_where_the_study_takes_it(play: Play, hospitals: list[Path]) -> None:
    site = hospitals[NAMES.index("south")]
    site.write_text(site.read_text().replace("min_patients = 11", "min_patients = 6"))  # in two steps there are fewer
    rounds = play(fault("slow", silos=["south"], factor=2.5), more='stragglers = "partial"')
    assert [item.accepted for item in rounds[1:]] == [NAMES] * 2
    assert rounds[1].work == {"east": 1.0, "north": 1.0, "south": 0.4}  # two steps of five


def test_a_crash_is_a_refusal_of_one_word(play: Play, hospitals: list[Path]) -> None:
    rounds = play(fault("crash", silos=["east"], rounds=[2, 2], step=3))
    assert [item.refused for item in rounds[1:]] == [{}, {"east": "internal"}]
    assert b"simulated crash" not in (ledger(hospitals, "east") / "ledger.jsonl").read_bytes()
    with pytest.raises(CrashError):
        silo_faults._pace([fault("crash", step=3)])(3, 5)


@pytest.mark.parametrize(
    ("content", "code"), [("bytes", "malformed.records"), ("nan", "not-finite.nan"), ("huge", "too-large.norm")]
)
def test_garbage_is_rejected_and_the_others_go_on(play: Play, content: str, code: str) -> None:
    rounds = play(fault("garbage", silos=["north"], rounds=[1, 1], content=content))
    assert [item.refused for item in rounds[1:]] == [{"north": code}, {}]
    assert rounds[2].accepted == NAMES


@pytest.mark.parametrize("content", ["noise", "opposite"])
def test_numbers_that_no_check_can_object_to_are_left_to_the_strategy(
    play: Play, content: str, hospitals: list[Path]
) -> None:
    rounds = play(fault("garbage", silos=["north"], content=content), rounds=1, more="max_norm = 20.0")
    assert rounds[1].accepted == NAMES
    assert reconcile(hospitals[0].parents[2] / "study" / "ledger", ledger(hospitals, "north")).ok


def test_where_all_labels_are_wrong_the_auc_is_what_it_misses_to_one(play: Play) -> None:
    rounds = play(fault("labels", silos=["north"], rounds=[2, 2], fraction=1.0), rounds=2)
    assert rounds[2].metrics["north"].keys() == {"loss", "auc"}
    honest, swapped = rounds[0].metrics["north"], rounds[1].metrics["north"]
    assert swapped != honest


def test_labels_are_swapped_for_a_part_of_the_cases_always_the_same() -> None:
    cases = [Case(np.zeros((1, 4, 4), np.float32), label=number % 3) for number in range(300)]
    once, again = (
        [
            silo_faults._mislabelled(Labels(what="labels", fraction=0.3), 3, row, case).label
            for row, case in enumerate(cases)
        ]
        for _ in range(2)
    )
    assert once == again
    wrong = [(case.label, label) for case, label in zip(cases, once, strict=True) if case.label != label]
    assert 60 < len(wrong) < 120
    assert all(label == (honest + 1) % 3 for honest, label in wrong if honest is not None)
    with pytest.raises(ConfigError, match="have masks, and no labels"):
        silo_faults._mislabelled(Labels(what="labels", fraction=0.3), 3, 0, Case(cases[0].image))


def test_another_scanner_changes_gain_and_offset_and_adds_noise() -> None:
    image = np.linspace(0, 1, 10_000, dtype=np.float32).reshape(1, 100, 100)
    change = Scanner(what="scanner", gain=2.0, bias=0.5)
    assert np.allclose(silo_faults._scanned(change, 0, Case(image)).image, 2 * image + 0.5)
    noisy = silo_faults._scanned(Scanner(what="scanner", noise=0.1), 3, Case(image)).image - image
    assert noisy.std() == pytest.approx(0.1, rel=0.05)
    assert np.array_equal(noisy + image, silo_faults._scanned(Scanner(what="scanner", noise=0.1), 3, Case(image)).image)


def test_drop_outs_at_random_are_the_same_for_any_number_of_workers(
    play: Play, hospitals: list[Path], tmp_path: Path
) -> None:
    faults = fault("absent", probability=0.3, seed=9), fault("scanner", silos=["east"], gain=1.5, noise=0.1)
    one = play(*faults, rounds=3)
    (tmp_path / "study").rename(tmp_path / "one")
    for site in hospitals:
        (site.parent / "work" / "ledger").rename(site.parent / "work" / "before")
    two = play(*faults, rounds=3, workers=2)
    assert [item.model for item in one] == [item.model for item in two]
    assert [item.refused for item in one] == [item.refused for item in two]
    assert any(item.refused for item in one)
    struck_at = [sorted(name for name in NAMES if struck(faults[:1], name, number)) for number in (1, 2, 3)]
    assert [sorted(item.refused) for item in one[1:]] == struck_at


def test_a_fault_strikes_as_often_as_its_probability_says() -> None:
    dropping = fault("absent", probability=0.25, seed=9)
    times = sum(dropping.strikes(f"h{number}", round_) for number in range(40) for round_ in range(100))
    assert 900 < times < 1100
    assert not dropping.model_copy(update={"rounds": (2, 3)}).strikes("h1", 4)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"what": "slow", "factor": 1}, "must be more than 1|greater than 1"),
        ({"what": "absent", "rounds": [3, 2]}, "rounds must be the first round and the last one"),
        ({"what": "explode"}, "explode"),
        ({"what": "crash", "factor": 2}, "Extra inputs|not a known key"),
    ],
)
def test_a_fault_that_says_nothing_sensible_is_refused(keys: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        TypeAdapter(AnyFault).validate_python(keys)


def test_a_fault_of_a_silo_that_is_not_there_is_refused(hospitals: list[Path]) -> None:
    with pytest.raises(ConfigError, match=r"faults: silos: no silo is named 'nroth'"):
        LocalGrid(hospitals, faults=[fault("absent", silos=["nroth"])])
    LocalGrid(hospitals).close()  # nothing stays locked


def test_no_order_and_no_configuration_makes_a_silo_misbehave(
    play: Play, hospitals: list[Path], tmp_path: Path
) -> None:
    silo = open_silo(hospitals[0])
    assert not isinstance(silo, FaultySilo)
    close_silo(hospitals[0])
    play(rounds=1)
    opened = read(tmp_path / "study" / "ledger")
    order = next(r for r in opened.records if r.event == Event.ORDER_OFFERED).body["statement"]["body"]
    content = json.loads(opened.manifest(order))
    assert Order.decode(json.dumps(content).encode())
    for told in (content | {"faults": []}, content | {"agreement": content["agreement"] | {"faults": []}}):
        with pytest.raises(Malformed):
            Order.decode(json.dumps(told).encode())
