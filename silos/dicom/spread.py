"""Spreads work over the processor's cores: the same results in the same order, only sooner.

    for rows in spread(partial(read_rows, root), batches): ...

A worker that is killed loses no work: its batches are done in this process. Workers end with the process
that started them, however it ends. As always with Python's own processes, a script that gets here guards
its start with `if __name__ == "__main__":`.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

WORTHWHILE = 16  # batches; starting workers costs a second, and fewer are done in that time

Batch = TypeVar("Batch")
Result = TypeVar("Result")


def spread(function: Callable[[Batch], Result], batches: Sequence[Batch]) -> Iterator[Result]:
    """Apply a function to each batch, on all cores that this process may use if there is much to do.

    Args:
        function: Can be pickled, as can batches and results.
        batches: Any number of them.

    Yields:
        The results, in the order of the batches.
    """
    cores = len(os.sched_getaffinity(0))
    if cores == 1 or len(batches) < WORTHWHILE:
        yield from map(function, batches)
        return
    # Not forked: this process may have threads, of Flower or torch, that hold locks at that moment.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores, context, _begin) as pool:
        futures = [pool.submit(function, batch) for batch in batches]
        try:
            for future, batch in zip(futures, batches, strict=True):
                try:
                    result = future.result()
                except BrokenProcessPool:
                    result = function(batch)
                yield result
        finally:
            pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """In a worker: only its parent stops it, and if that is killed it ends as well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)
