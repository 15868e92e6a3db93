"""What happened in a study is read from its ledger alone, and each number stands with its own model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from aggregator.history import Round, read_history, write_metrics
from aggregator.report.account import account
from aggregator.rounds import survey
from models.exchange import wire
from models.exchange.documents import Refusal
from models.exchange.spec import load_vector, vector_digest
from models.exchange.statement import Kind, Statement
from models.ledger import Event, Verifier, read

Toy = Any  # of conftest.py
Make = Callable[..., Toy]


def test_the_numbers_of_a_model_come_with_the_visit_that_brought_it(toy: Make) -> None:
    world = toy(rounds=3)
    history = world.run().history
    # The hospitals measure 1 / (round + 1) in each visit; the last visit is of round 3 again.
    assert [item.metrics["east"]["loss"] for item in history.rounds] == [1 / 2, 1 / 3, 1 / 4, 1 / 4]
    assert [item.number for item in history.rounds] == [0, 1, 2, 3]


def test_every_round_names_the_model_that_lies_on_disk(toy: Make) -> None:
    world = toy(rounds=3)
    history = world.run().history
    for item in history.rounds:
        spec, vector = load_vector(world.study.model_path(item.number))
        assert item.model == vector_digest(spec.digest, vector)
    assert len({item.model for item in history.rounds}) == 4


def test_a_mean_is_weighted_by_the_images_that_were_evaluated(toy: Make) -> None:
    world = toy(rounds=1)
    history = world.run().history
    images = {name: hospital.images for name, hospital in world.hospitals.items()}
    expected = sum(count * (0.5 + count / 100) for count in images.values()) / sum(images.values())
    assert history.rounds[1].mean("auc") == pytest.approx(expected)
    assert history.rounds[1].mean("auc") != pytest.approx(sum(0.5 + count / 100 for count in images.values()) / 4)
    assert history.rounds[1].examples == images


def test_a_metric_that_nobody_told_has_no_mean() -> None:
    assert Round(1, "").mean("auc") is None
    assert Round(1, "", metrics={"a": {"loss": 1.0}}, examples={"a": 5.0}).mean("auc") is None
    only_one = Round(1, "", metrics={"a": {"auc": 0.75}, "b": {"loss": 1.0}}, examples={"a": 5.0, "b": 10.0})
    assert only_one.mean("auc") == 0.75


def test_the_bytes_of_a_round_are_those_of_its_replies_and_add_up_to_the_reports(toy: Make) -> None:
    world = toy(rounds=2)
    survey(world.study, type(world).run.__globals__["Hospitals"](world.hospitals.values()))
    history = world.run().history
    sent = [envelope for hospital in world.hospitals.values() for envelope in hospital.outbox]
    for (
        item
    ) in history.rounds:  # a survey, two updates, and with the last one the last model's metrics and the farewell
        replies = [envelope for envelope in sent if Statement.decode(envelope.statement).round == item.number]
        assert len(replies) == (4, 4, 12)[item.number]
        assert item.nbytes == sum(reply.nbytes for reply in replies)
    (told,) = account(read(world.study.folder / "ledger")).studies
    assert told.bytes_per_round() == [(item.number, item.nbytes) for item in history.rounds]


def test_a_refusal_is_told_once_and_forgotten_when_the_round_is_done_again(toy: Make) -> None:
    world = toy(rounds=2)
    refuse = Refusal(code="round-limit")
    world.poison("south", lambda h, o, a: wire.pack(h.offer(o, Kind.REFUSAL, refuse, None, answers=a)), round_=1)
    history = world.run().history
    assert [item.refused for item in history.rounds] == [{}, {"south": "round-limit"}, {}]
    assert [item.accepted for item in history.rounds[1:]] == [
        ["east", "north", "west"],
        ["east", "north", "south", "west"],
    ]
    assert history.silos == ["east", "north", "south", "west"]


def test_a_refusal_of_the_last_visit_belongs_to_no_round(toy: Make) -> None:
    world = toy(rounds=1)
    hospital, honest = world.hospitals["east"], type(world.hospitals["east"]).honest

    def refuse(order: Any, answers: str) -> Any:
        if order.visit == "evaluate":
            return hospital.offer(order, Kind.REFUSAL, Refusal(code="internal"), None, answers=answers)
        return honest(hospital, order, answers)

    hospital.honest = refuse
    history = world.run().history
    assert [item.refused for item in history.rounds] == [{}, {}]
    assert sorted(history.rounds[1].metrics) == ["north", "south", "west"]


def test_a_void_round_has_the_model_and_the_numbers_of_the_round_before(toy: Make) -> None:
    world = toy(rounds=2, min_silos=4)
    refuse = Refusal(code="internal")
    world.poison("south", lambda h, o, a: wire.pack(h.offer(o, Kind.REFUSAL, refuse, None, answers=a)))
    rounds = world.run().history.rounds
    assert [item.void for item in rounds] == [False, False, True]
    assert rounds[2].model == rounds[1].model
    assert rounds[2].accepted == []
    assert rounds[1].metrics["east"] == {"loss": 1 / 3, "auc": 0.6}


def test_an_auditor_reads_the_same_history_without_any_key(toy: Make) -> None:
    world = toy(rounds=2)
    history = world.run().history
    opened = read(world.study.folder / "ledger", Verifier.parse(world.study.agreement.coordinator_key))
    assert read_history(opened.records, world.study.plan) == history


def test_the_history_is_told_after_every_round_and_whole_at_the_end(toy: Make) -> None:
    world, told = toy(rounds=3), []
    outcome = world.run(on_round=lambda history: told.append((len(history.rounds), history.closed)))
    assert told == [(2, False), (3, False), (4, False), (4, True)]
    assert outcome.history.closed


def strict(text: str) -> Any:
    def refuse(word: str) -> NoReturn:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_numbers_are_on_disk_one_line_a_round(toy: Make) -> None:
    world = toy(rounds=2)
    history = world.run().history
    lines = (world.study.folder / "metrics.jsonl").read_text().splitlines()
    assert [strict(line) for line in lines] == [item.as_json() for item in history.rounds]
    last = strict(lines[-1])
    assert last["mean"]["loss"] == pytest.approx(1 / 3)
    assert (last["round"], last["model"], last["void"]) == (2, history.rounds[2].model, False)


@pytest.mark.parametrize(
    "values", [(1e308, 1e308), (1e308, -1e308), (1.7e308, 0.5)], ids=["overflow", "both signs", "one"]
)
def test_no_number_that_a_silo_tells_stops_the_study_or_spoils_the_file(toy: Make, values: tuple[float, float]) -> None:
    world = toy(rounds=1)
    for name, value in zip(("east", "north"), values, strict=True):
        world.poison(
            name,
            lambda h, o, a, value=value: wire.pack(h.update(o, a, metrics={"loss": value})),
            round_=1,
        )
    world.run()
    for line in (world.study.folder / "metrics.jsonl").read_text().splitlines():
        strict(line)


def test_an_empty_history_can_be_written(toy: Make, tmp_path: Path) -> None:
    world = toy()
    history = read_history(world.study.ledger.records, world.study.plan)
    write_metrics(tmp_path / "metrics.jsonl", history)
    assert [item.model for item in history.rounds] == [world.study.agreement.initial]
    assert world.lines(Event.AGGREGATED) == []
    assert strict((tmp_path / "metrics.jsonl").read_text())["round"] == 0
