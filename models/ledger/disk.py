"""Writing that survives a power cut, and reading that no file can stop or fill the memory with.

What a program writes is in memory first. It is on the disk once the system has synced the file, and the
file's name is there once its folder is synced too. `create`, `publish`, `rename` and `make_folder` return after
both, or raise `OSError`; a file that was there before is then still whole.

    publish(Path("checkpoint"), b"...")     # a reader sees the old file or the new one, never half of one
"""

import errno
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from models.errors import ConfigError, Locked

_LARGEST_SECRET = 64 * 1024  # bytes


def write_all(number: int, content: bytes | memoryview) -> None:
    """Write every byte to an open file; `os.write` alone may write fewer, and never more than 2 GiB.

    Args:
        number: File descriptor.
        content: The bytes; not durable until the file is synced.
    """
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(number, rest) :]


def create(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Make a new file, durably; it is removed again if that fails.

    Args:
        path: The file.
        content: All of it.
        mode: Who may use it, from the first moment on.

    Raises:
        FileExistsError: It is there already; nothing is overwritten.
        OSError: It could not be made durable.
    """
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        _fill(number, content)
        sync_folder(path.parent)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def publish(path: Path, content: bytes) -> None:
    """Put a whole file in place of the one that may be there, durably.

    Args:
        path: The file; its folder must exist. Until the file is whole it is `<name>.new`.
        content: All of it.
    """
    draft = path.with_name(f"{path.name}.new")
    _fill(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), content)
    rename(draft, path)


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a file of somebody who may be no friend, to read it: never a pipe, which would be waited for, nor a device.

    Raises:
        OSError: It cannot be opened, or is no regular file.
    """
    with open(path, "rb", opener=_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "is no regular file", str(path))
        yield file


def read_bounded(path: Path, most: int) -> bytes:
    """Read a whole file of somebody who may be no friend.

    Args:
        path: The file.
        most: Bytes that it may have.

    Raises:
        OSError: It cannot be read, is no regular file, or is longer.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"is longer than {most} bytes", str(path))
    return content


def read_private(path: Path, restore: str) -> bytes:
    """Read a file that is its owner's alone, such as a private key.

    Args:
        path: The file.
        restore: What to do if it cannot be read.

    Raises:
        ConfigError: It cannot be read, or others on this machine can use it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_LARGEST_SECRET)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", restore) from error
    require_private(path, mode, 0o600)
    return content


def require_private(path: Path, mode: int, own: int) -> None:
    """See that nobody else on this machine can use a file or a folder.

    Args:
        path: Which.
        mode: The mode that it has.
        own: The mode that it should have.

    Raises:
        ConfigError: Somebody else can.
    """
    found = stat.S_IMODE(mode)
    if found & 0o077:
        raise ConfigError(
            f"{path}: others on this machine may use it (mode {found:04o})",
            f"run: chmod {own:o} {shlex.quote(str(path))}",
        )


def rename(draft: Path, path: Path) -> None:
    """Give a file or folder its name, durably; the two lie in the same folder."""
    os.rename(draft, path)
    sync_folder(path.parent)


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make a folder, and those above it that are missing, durably; it may be there already.

    Args:
        folder: The folder.
        mode: Who may use it, if it is new; those above it get the system's default.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode, exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def lock(path: Path) -> int:
    """Take a lock that ends with the process, or when the returned file descriptor is closed.

    Raises:
        Locked: Somebody has it.
    """
    import fcntl  # here, so that a ledger can be read where this does not exist

    number = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(number)
        if isinstance(error, BlockingIOError):
            hint = "stop that one first"
            raise Locked(f"{path.parent}: is being written by another process", hint) from None
        raise
    return number


def unlock(number: int) -> None:
    """Give a lock back."""
    os.close(number)


def is_locked(path: Path) -> bool:
    """Whether somebody has such a lock now."""
    if not path.exists():
        return False
    try:
        os.close(lock(path))
    except Locked:
        return True
    return False


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # not every system that a ledger is read on has it


def _fill(number: int, content: bytes) -> None:
    """Write and sync an open file, and close it."""
    try:
        write_all(number, content)
        os.fsync(number)
    finally:
        os.close(number)
