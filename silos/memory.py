"""Memory between two steps of training: kept, not given back to the system and asked for again.

Each step frees its activations, and the next one wants as many. The C library (glibc) hands freed memory of that size
back to the kernel, which must clear every page before it gives it out anew; for small networks on a CPU that is a
tenth of the training.
"""

import ctypes
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_LARGEST = 32 * 2**20  # bytes; the most that glibc takes


@cache
def keep_freed() -> None:
    """From now on this process keeps freed memory until it ends; nothing where the C library is another one."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
