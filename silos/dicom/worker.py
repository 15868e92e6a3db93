"""A process that works for this one, and can be lost without harm.

    worker = Worker("silos.dicom.apart", "3221225472", "30")    # runs that module, which calls `serve`
    answer, size = worker.ask({"rows": 512}, data)              # words there and back, and bytes
    content = worker.read(size)

It is a fresh Python with nothing of this process in it but the import path. What it prints goes nowhere. It ends
when this process does, however that ends.
"""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from io import BufferedReader
from typing import IO, Any, cast

Answer = tuple[Mapping[str, Any], bytes | memoryview]

_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Keep the memory of one picture for the next, as to fetch it anew takes a tenth of the time (mallopt(3)).
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
}


class Worker:
    """The process.

    Args:
        module: Run as `python -m`.
        arguments: Its arguments.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        self.owner = os.getpid()
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self.process = subprocess.Popen(  # noqa: S603 - the toolkit's own module
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pipesize=2**20,  # of both pipes, so that a picture goes through in a few pieces
            env=os.environ | _ENVIRONMENT | {"PYTHONPATH": paths},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._questions, self._answers = self.process.stdin, cast(BufferedReader, self.process.stdout)
        try:
            _receive(self._answers)
        except EOFError:
            self.stop()
            raise OSError(errno.ECHILD, f"{module} cannot be started") from None

    def ask(self, words: Mapping[str, Any], data: bytes = b"") -> tuple[dict[str, Any], int]:
        """Ask, and wait for the answer.

        Returns:
            Its words, and how many bytes belong to it, which must be read next.

        Raises:
            OSError, EOFError or ValueError: The process is no more, or talks nonsense.
        """
        _send(self._questions, words, data)
        return _receive(self._answers)

    def read(self, size: int) -> bytes:
        """The bytes of the answer; EOFError if the process ended among them."""
        if len(content := self._answers.read(size)) < size:
            raise EOFError
        return content

    def read_into(self, memory: memoryview) -> None:
        """The same, into memory of their size."""
        if self._answers.readinto(memory) < memory.nbytes:
            raise EOFError

    def stop(self) -> int:
        """End the process, whatever it is doing; its exit code, if it had ended before."""
        for pipe in (self._questions, self._answers):
            with contextlib.suppress(OSError):
                pipe.close()
        if self.owner != os.getpid():  # this process was forked from the one that it works for
            return 0
        try:
            return self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return 0


def serve(answer: Callable[[dict[str, Any], bytes], Answer]) -> None:
    """In the process: answer until nobody asks any more.

    Args:
        answer: From the words and bytes of a question to those of its answer.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this decides
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    _send(answers, {}, b"")
    while True:
        try:
            words, size = _receive(questions)
        except EOFError:
            return
        _send(answers, *answer(words, questions.read(size)))


def _send(stream: IO[bytes], words: Mapping[str, Any], data: bytes | memoryview) -> None:
    stream.write(json.dumps([words, len(data)]).encode() + b"\n")
    stream.write(data)
    stream.flush()


def _receive(stream: IO[bytes]) -> tuple[dict[str, Any], int]:
    line = stream.readline(2**20)
    if not line.endswith(b"\n"):
        raise EOFError
    words, size = json.loads(line)
    return words, size
