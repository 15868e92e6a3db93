"""Processes that work for this one: each answers what it is asked, one question after the other.

    workers = Workers(2, work)                  # work(question) -> answer, in a worker
    tickets = [workers.ask(number % 2, question) for number, question in enumerate(questions)]
    answers = [workers.answer(ticket) for ticket in tickets]    # LOST for what a worker died over
    workers.close()

A worker is forked from this process, so it has everything that is loaded and registered here, at once and
without a second copy in memory. What its owner asks while it is at work waits in it.
"""

import logging
import queue
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from typing import Any, Final

from aggregator.handover import Line, Outbox, load
from models.processes import end_with_parent

log = logging.getLogger("intramural.aggregator")


class _Lost:
    """What `LOST` is."""


LOST: Final = _Lost()
"""Instead of an answer: the worker died over the question."""

_FORK = get_context("fork")


@dataclass
class _Worker:
    process: BaseProcess
    line: Line
    waiting: deque[tuple[int, Any]] = field(default_factory=deque)  # tickets and questions without an answer


class Workers:
    """The processes.

    Args:
        count: How many.
        work: Runs in a worker, with what was asked; returns the answer. What it raises ends the worker.
    """

    def __init__(self, count: int, work: Callable[[Any], Any]) -> None:
        self._work = work
        self._asked = 0
        self._answers: dict[int, Any] = {}
        self._outbox = Outbox()
        self._workers: list[_Worker] = []
        for _ in range(count):
            self._workers.append(self._fork())

    def __len__(self) -> int:
        """How many."""
        return len(self._workers)

    def ask(self, number: int, question: Any) -> int:
        """Ask a worker; returns at once, with a ticket for the answer.

        A worker that died is replaced. What it was at work on is lost; what waited in it is asked anew.

        Args:
            number: Which worker, from 0.
            question: Anything that can be pickled.
        """
        self._asked += 1
        self._send(number, self._asked, question)
        return self._asked

    def answer(self, ticket: int) -> Any:
        """Wait for an answer and take it; `LOST` if there will be none."""
        while ticket not in self._answers:
            self._listen()
        answer = self._answers.pop(ticket)
        return answer if answer is LOST else load(answer)

    def close(self) -> None:
        """End every worker; at once if it is at work."""
        for worker in self._workers:
            if worker.waiting:
                worker.process.kill()
            worker.line.close()
            worker.process.join()
        self._workers = []

    def _send(self, number: int, ticket: int, question: Any) -> None:
        worker = self._workers[number]
        worker.waiting.append((ticket, question))
        try:
            worker.line.send(question, self._outbox)
        except (BrokenPipeError, ConnectionResetError):
            self._replace(number)

    def _listen(self) -> None:
        """Take the answers that have come; wait for one if there is none."""
        busy = {worker.line.connection: number for number, worker in enumerate(self._workers) if worker.waiting}
        for ready in connection.wait(list(busy)):
            worker = self._workers[busy[ready]]  # type: ignore[index]
            try:
                answer = worker.line.receive()
            except (EOFError, OSError, RuntimeError):
                self._replace(busy[ready])  # type: ignore[index]
            else:
                self._answers[worker.waiting.popleft()[0]] = answer

    def _replace(self, number: int) -> None:
        old = self._workers[number]
        old.line.close()
        old.process.join()
        log.warning("worker %d ended (exit code %s); another takes its place", number + 1, old.process.exitcode)
        lost, _ = old.waiting.popleft()
        self._answers[lost] = LOST
        self._workers[number] = self._fork()
        for ticket, question in old.waiting:
            self._send(number, ticket, question)

    def _fork(self) -> _Worker:
        ours, theirs = _FORK.Pipe()
        with warnings.catch_warnings():
            # From 3.12 on Python warns of any thread beside the one that forks, NumPy's idle ones too.
            warnings.simplefilter("ignore", DeprecationWarning)
            process = _FORK.Process(target=self._serve, args=(Line(ours), Line(theirs)), daemon=True)
            process.start()
        theirs.close()
        return _Worker(process, Line(ours))

    def _serve(self, ours: Line, theirs: Line) -> None:
        """In the worker: answer until nobody asks any more."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this decides
        end_with_parent(signal.SIGKILL)
        for line in (ours, *(worker.line for worker in self._workers)):
            line.close()  # or no worker would see the end of the process that asks
        questions = queue.SimpleQueue[tuple[bytes, list[Any]] | None]()
        threading.Thread(target=_take_in, args=(theirs, questions), daemon=True).start()
        outbox = Outbox()
        while (question := questions.get()) is not None:
            answer = self._work(load(question))
            del question  # its arrays need not lie in memory beside the next one's
            theirs.send(answer, outbox)
            del answer


def _take_in(line: Line, questions: "queue.SimpleQueue[tuple[bytes, list[Any]] | None]") -> None:
    """Let questions wait here and not in the socket, so that who asks never waits."""
    while True:
        try:
            questions.put(line.receive())
        except (EOFError, OSError, RuntimeError):
            questions.put(None)
            return
