"""Runs the decoders of compressed pictures in a process of their own.

    stored = decode_apart(syntax, data, plugin, options)        # (H, W) of integers

The decoders are written in C, C++ and Rust. A damaged or hostile stream of a few hundred bytes can make them
crash, take gigabytes of memory, or go round for minutes, and no look at the stream can tell in advance. In a
process with little memory and time that costs this one picture, and the next has a new process.

The process is started with the first compressed picture, and ends with the one that started it.
"""

import atexit
import errno
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels.decoders.base import get_decoder

from silos.dicom.worker import Answer, Worker, serve

MEMORY = 3 * 2**30  # bytes of address space; a picture of 64 million pixels takes less than half of it
SECONDS = 30  # of CPU for one picture; such a picture of JPEG 2000 takes 6


class DecoderFailed(Exception):  # noqa: N818
    """A picture that could not be decoded."""


_lock = threading.Lock()
_decoder: Worker | None = None


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
        _decoder = _decoder or Worker(__name__, str(MEMORY), str(SECONDS))
        try:
            return _decode(_decoder, {"syntax": syntax, "plugin": plugin, **options}, data)
        except DecoderFailed:
            raise
        except (OSError, EOFError, ValueError):
            if _forget() in (-signal.SIGKILL, -signal.SIGTERM):
                raise OSError(errno.EINTR, "the decoder was killed") from None
            raise DecoderFailed("its decoder died") from None
        except BaseException:  # an interrupt: nobody will read the answer
            _forget()
            raise


def _decode(decoder: Worker, words: dict[str, Any], data: bytes) -> NDArray[Any]:
    answer, size = decoder.ask(words, data)
    if "error" in answer:
        raise DecoderFailed(answer["error"])
    array = np.empty((words["rows"], words["columns"]), answer["dtype"])
    if [*array.shape] != answer["shape"] or array.nbytes != size:
        decoder.read(size)
        raise DecoderFailed(f"decodes to {answer['shape']}")
    decoder.read_into(array.data.cast("B"))
    return array


def _forget() -> int:
    global _decoder
    code = _decoder.stop() if _decoder else 0
    _decoder = None
    return code


atexit.register(_forget)


def _answer(seconds: int, words: dict[str, Any], data: bytes) -> Answer:
    """In the process: the picture, or the name of the error."""
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + seconds, resource.RLIM_INFINITY))
    try:
        syntax, plugin = words.pop("syntax"), words.pop("plugin")
        array, _ = get_decoder(syntax).as_array(data, index=0, raw=True, decoding_plugin=plugin, **words)
        array = np.ascontiguousarray(array)
    except BaseException as error:  # a panic of a decoder in Rust is no Exception
        return {"error": type(error).__name__}, b""
    return {"dtype": array.dtype.str, "shape": array.shape}, array.data.cast("B")


def _main(memory: int, seconds: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would hold the picture
    serve(lambda words, data: _answer(seconds, words, data))


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]))
