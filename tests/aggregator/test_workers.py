"""Processes that work for this one."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from aggregator.workers import LOST, Workers

Make = Callable[..., Workers]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Workers] = []

    def start(count: int, work: Callable[[Any], Any]) -> Workers:
        made.append(Workers(count, work))
        return made[-1]

    yield start
    for workers in made:
        workers.close()


def die(question: Any) -> Any:
    if question == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return question, os.getpid()


def test_each_worker_answers_in_a_process_of_its_own(make: Make) -> None:
    workers = make(2, die)
    tickets = [workers.ask(number % 2, number) for number in range(6)]
    answers = [workers.answer(ticket) for ticket in reversed(tickets)][::-1]
    assert [number for number, _ in answers] == list(range(6))
    assert len({pid for _, pid in answers} - {os.getpid()}) == 2


def test_arrays_come_whole_and_can_only_be_read(make: Make) -> None:
    workers = make(1, lambda arrays: [array * 2 for array in arrays])
    sent = [np.arange(100_000, dtype=np.float32), np.zeros(0, np.float32), np.ones((2, 3), np.float32)]
    for _ in range(3):
        sent[0] = sent[0] + 1
        answer = workers.answer(workers.ask(0, sent))
        assert all(np.array_equal(array, 2 * original) for array, original in zip(answer, sent, strict=True))
        with pytest.raises(ValueError, match="read-only"):
            answer[0][0] = 1


def test_an_array_that_cannot_change_is_written_once_for_all_and_one_that_can_is_written_anew(make: Make) -> None:
    workers = make(2, lambda array: float(array[0]))
    model = np.full(1000, 3, np.float32)
    view = model.view()
    view.flags.writeable = False
    answers = [workers.ask(0, model)]
    model[0] = 4
    answers.append(workers.ask(0, model))
    answers += [workers.ask(number, view) for number in (0, 1, 0)]
    assert workers._outbox.written == 3
    assert [workers.answer(ticket) for ticket in answers] == [3, 4, 4, 4, 4]


def test_a_worker_that_dies_loses_what_it_was_at_work_on_and_nothing_else(make: Make) -> None:
    workers = make(2, die)
    first = workers.answer(workers.ask(0, "before"))
    tickets = [workers.ask(0, question) for question in ("die", "after", "die", "last")]
    other = workers.ask(1, "elsewhere")
    answers = [workers.answer(ticket) for ticket in tickets]
    assert [answer is LOST for answer in answers] == [True, False, True, False]
    assert [answers[1][0], answers[3][0], workers.answer(other)[0]] == ["after", "last", "elsewhere"]
    assert len({first[1], answers[1][1], answers[3][1]}) == 3


def test_a_worker_that_died_without_work_is_replaced_when_it_is_asked(make: Make) -> None:
    workers = make(1, die)
    os.kill(workers.answer(workers.ask(0, "who"))[1], signal.SIGKILL)
    workers._workers[0].process.join()
    answers = [workers.answer(workers.ask(0, "again")) for _ in range(2)]
    assert answers[1][0] == "again"


def test_workers_at_work_are_ended_at_once(make: Make) -> None:
    workers = make(2, time.sleep)
    processes = [worker.process for worker in workers._workers]
    workers.ask(0, 600)
    workers.close()
    assert not any(process.is_alive() for process in processes)
