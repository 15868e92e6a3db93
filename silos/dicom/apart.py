"""Runs the decoders of compressed pictures in a process of their own.

    stored = decode_apart(syntax, data, plugin, options)        # (H, W) of integers

The decoders are written in C, C++ and Rust. A damaged or hostile stream of a few hundred bytes can make them
crash, take gigabytes of memory, or go round for minutes, and no look at the stream can tell in advance. In a
process with little memory and time that costs this one picture, and the next has a new process. What they
print goes nowhere.

The process is started with the first compressed picture, and ends with the one that started it.
"""

import atexit
import contextlib
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from io import BufferedReader
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels.decoders.base import get_decoder

MEMORY = 3 * 2**30  # bytes of address space; a picture of 64 million pixels takes less than half of it
SECONDS = 30  # of CPU for one picture; such a picture of JPEG 2000 takes 6


_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Keep the memory of one picture for the next: to fetch it anew takes a tenth of the time (mallopt(3)).
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
}


class DecoderFailed(Exception):  # noqa: N818
    """A picture that could not be decoded."""


class _Decoder:
    """The process, and which process started it."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self.process = subprocess.Popen(  # noqa: S603 - this very file
            [sys.executable, "-P", "-m", __name__, str(MEMORY), str(SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pipesize=2**20,  # of both pipes, so that a picture goes through in a few pieces
            env=os.environ | _ENVIRONMENT | {"PYTHONPATH": paths},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.questions, self.answers = self.process.stdin, self.process.stdout
        try:
            _read(self.answers)
        except EOFError:
            self.stop()
            raise OSError(errno.ECHILD, "the decoders cannot be started") from None

    def ask(self, words: Mapping[str, Any], data: bytes) -> NDArray[Any]:
        """Raises OSError, EOFError or ValueError if the process does not answer."""
        _write(self.questions, words, data)
        answer, size = _read(self.answers)
        if "error" in answer:
            raise DecoderFailed(answer["error"])
        array = np.empty((words["rows"], words["columns"]), answer["dtype"])
        if [*array.shape] != answer["shape"] or array.nbytes != size:
            self.answers.read(size)
            raise DecoderFailed(f"decodes to {answer['shape']}")
        if cast(BufferedReader, self.answers).readinto(array.data.cast("B")) != size:
            raise EOFError
        return array

    def stop(self) -> int:
        """End the process, whatever it is doing; its exit code, if it had one before."""
        for pipe in (self.questions, self.answers):
            with contextlib.suppress(OSError):
                pipe.close()
        if self.owner != os.getpid():
            return 0
        try:
            return self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return 0


_lock = threading.Lock()
_decoder: _Decoder | None = None


def decode_apart(syntax: str, data: bytes, plugin: str, options: Mapping[str, Any]) -> NDArray[Any]:
    """Decode one compressed picture.

    Args:
        syntax: Its transfer syntax.
        data: The value of its Pixel Data.
        plugin: The decoder, by pydicom's name of it.
        options: What pydicom's decoders want to know, among it "rows" and "columns".

    Returns:
        The stored values, (rows, columns) of integers.

    Raises:
        DecoderFailed: The decoder refuses, takes more than `MEMORY` or `SECONDS`, or crashes.
        OSError: The process cannot be started, or was killed by somebody; the picture need not be at fault.
    """
    global _decoder
    with _lock:
        if _decoder and _decoder.owner != os.getpid():  # this process was forked from that one
            _decoder = None
        _decoder = _decoder or _Decoder()
        try:
            return _decoder.ask({"syntax": syntax, "plugin": plugin, **options}, data)
        except DecoderFailed:
            raise
        except (OSError, EOFError, ValueError):
            if _forget() in (-signal.SIGKILL, -signal.SIGTERM):
                raise OSError(errno.EINTR, "the decoder was killed") from None
            raise DecoderFailed("its decoder died") from None
        except BaseException:  # an interrupt: nobody will read the answer
            _forget()
            raise


def _forget() -> int:
    global _decoder
    code = _decoder.stop() if _decoder else 0
    _decoder = None
    return code


atexit.register(_forget)


def _write(stream: IO[bytes], words: Mapping[str, Any], data: bytes | memoryview) -> None:
    stream.write(json.dumps([words, len(data)]).encode() + b"\n")
    stream.write(data)
    stream.flush()


def _read(stream: IO[bytes]) -> tuple[dict[str, Any], int]:
    line = stream.readline(2**16)
    if not line.endswith(b"\n"):
        raise EOFError
    words, size = json.loads(line)
    return words, size


def _serve(memory: int, seconds: int) -> None:
    """In the process: answer until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would hold the picture
    _write(answers, {}, b"")
    while True:
        try:
            words, size = _read(questions)
        except EOFError:
            return
        data = questions.read(size)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + seconds, resource.RLIM_INFINITY))
        try:
            syntax, plugin = words.pop("syntax"), words.pop("plugin")
            array, _ = get_decoder(syntax).as_array(data, index=0, raw=True, decoding_plugin=plugin, **words)
            array = np.ascontiguousarray(array)
        except BaseException as error:  # a panic of a decoder in Rust is no Exception
            _write(answers, {"error": type(error).__name__}, b"")
        else:
            _write(answers, {"dtype": array.dtype.str, "shape": array.shape}, array.data.cast("B"))


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
