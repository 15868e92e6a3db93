"""A service made of several processes: all are kept alive, all stop together.

    with Supervisor([Process("supernode", [...]), Process("executor", [...])]) as supervisor:
        while not stopping.wait(0.5):
            supervisor.tend()

A process that ends is started again, sooner if it had lived long. When the service stops, or is killed,
none of its processes is left behind.
"""

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

log = logging.getLogger("intramural.service")

_SETTLED = 60.0  # seconds after which a process counts as sound
_GRACE = 10.0  # seconds that a process has to end by itself
_PARENT_DEATH = 1  # Linux's PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Process:
    """A process that a service needs.

    Attributes:
        name: For the log.
        command: Program and arguments.
        environment: More than the service's own.
        delays: Seconds before the first, second, ... start after it ended early; the last one repeats.
        on_exit: Called with the exit code when it ended by itself.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    delays: Sequence[float] = (0.5, 1, 2, 5, 10)
    on_exit: Callable[[int], None] | None = None


class Supervisor:
    """Starts processes, and starts them again.

    Args:
        processes: Started in this order, stopped in the opposite one.
    """

    def __init__(self, processes: Sequence[Process]) -> None:
        self._watched = [_Watched(process) for process in processes]

    def __enter__(self) -> Self:
        self.tend()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def tend(self) -> None:
        """Start what is not running and due; to be called often. Returns at once."""
        for watched in self._watched:
            watched.tend()

    def restart(self, name: str) -> None:
        """Kill a process; it is started again when it is due."""
        for watched in self._watched:
            if watched.process.name == name:
                watched.kill()

    def running(self) -> dict[str, int]:
        """The process id of each process that runs now, by name."""
        return {w.process.name: w.child.pid for w in self._watched if w.child and w.child.poll() is None}

    def stop(self) -> None:
        """Ask every process to end, and see that it does."""
        for watched in reversed(self._watched):
            watched.stop()


class _Watched:
    def __init__(self, process: Process) -> None:
        self.process = process
        self.child: subprocess.Popen[bytes] | None = None
        self._due = self._started = 0.0
        self._failures = 0

    def tend(self) -> None:
        now = time.monotonic()
        if self.child is not None:
            code = self.child.poll()
            if code is None:
                return
            self.child = None
            self._failures = 0 if now - self._started > _SETTLED else self._failures + 1
            delay = self.process.delays[min(max(self._failures - 1, 0), len(self.process.delays) - 1)]
            self._due = now + delay
            log.warning("%s ended (%s); starts again in %g s", self.process.name, _how(code), delay)
            if self.process.on_exit:
                self.process.on_exit(code)
        if now >= self._due:
            self._started = now
            self.child = subprocess.Popen(  # noqa: S603 - the commands are the toolkit's own
                self.process.command,
                env={**os.environ, **self.process.environment},
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is for the service, which stops its processes in order
                preexec_fn=end_with_parent,
            )

    def kill(self) -> None:
        if self.child is not None and self.child.poll() is None:
            self.child.kill()

    def stop(self) -> None:
        if self.child is None or self.child.poll() is not None:
            return
        self.child.terminate()
        try:
            self.child.wait(_GRACE)
        except subprocess.TimeoutExpired:
            log.warning("%s does not end; it is killed", self.process.name)
            os.killpg(self.child.pid, signal.SIGKILL)
            self.child.wait()


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent(how: signal.Signals = signal.SIGTERM) -> None:
    """Have the kernel end this process when the one that started it ends; where there is no Linux, nothing does."""
    if _LIBC is not None:
        _LIBC.prctl(_PARENT_DEATH, how)
