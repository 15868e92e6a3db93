"""The writer that test_crash.py strikes: it writes one ledger, and says what it was promised as soon as it is.

    python crashing.py inject HOW FOLDER [LEDGER]    HOW goes wrong in Python, where it calls the system
    python crashing.py strace HOW FOLDER [LEDGER]    HOW goes wrong in the system itself

Every call of the system that touches the disk is struck once, each in a process of its own that works on a copy of
LEDGER, or from nothing, in a folder of its own below FOLDER. Printed is one JSON object for each of them, and one
for a process that was left alone.

What a writer says, a line each: `kept N` (N lines are promised), `stored NAME`, `parted`, `failed CODE` (an error of
the toolkit), `refused` (whatever is asked after the error), `done`.
"""

import contextlib
import ctypes
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from models.errors import IntramuralError
from models.ledger import Entry, Event, Ledger, Signer

NORTH = Signer.from_seed("north", bytes(range(32)))
STUDY = "ab" * 32
MANIFEST = b'{"tensors":[]}'
CALLS = ("open", "mkdir", "write", "fdatasync", "fsync", "rename", "ftruncate")
LEFT = "left"
"""Folder of what a power cut leaves."""

Say = Callable[[str], None]


def entry(number: int) -> Entry:
    """The entry of the n-th line, from 0."""
    return Entry(Event.UPDATE_OFFERED, {"number": number}, study=STUDY, round=number)


def write(folder: Path, say: Say) -> None:
    """Make or open a ledger, keep a list beside it, append one line, then two, keep a farewell."""
    try:
        ledger = Ledger.open(folder, NORTH) if folder.exists() else Ledger.create(folder, NORTH)
    except IntramuralError as error:
        say(f"failed {error.code}")
        return
    kept = len(ledger.records)
    say(f"kept {kept}")
    try:
        say(f"stored {ledger.store(MANIFEST)}")
        for lines in (1, 2):
            ledger.append(*map(entry, range(kept, kept + lines)))
            kept += lines
            say(f"kept {kept}")
        ledger.part(STUDY, "south", theirs="", ours=ledger.note)
        say("parted")
    except IntramuralError as error:
        say(f"failed {error.code}")
        farewell = lambda: ledger.part(STUDY, "south", theirs="", ours="")  # noqa: E731 - used at once
        for again in (lambda: ledger.append(entry(kept)), lambda: ledger.store(b"{}"), farewell):
            try:
                again()
            except IntramuralError:
                say("refused")
        return
    finally:
        ledger.close()
    say("done")


class Disk:
    """What would be left after a power cut, if nothing were written before somebody waits for it.

    Args:
        base: All below it is durable now.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.contents: dict[int, bytes] = {}  # of files, by inode
        self.names: dict[int, dict[str, int]] = {}  # of folders, by inode
        for path in [base, *base.rglob("*")]:
            self.synced(path)

    def synced(self, path: Path) -> None:
        """What is in a file or a folder is durable now."""
        number = path.stat().st_ino
        if path.is_dir():
            self.names[number] = {inner.name: inner.stat().st_ino for inner in path.iterdir()}
        else:
            self.contents[number] = path.read_bytes()

    def made(self, path: Path) -> None:
        """A file or a folder is new; nothing in it is durable."""
        number = path.stat().st_ino
        self.contents.pop(number, None)
        self.names.pop(number, None)
        if path.is_dir():
            self.names[number] = {}

    def cut(self, target: Path, *, names_kept: bool) -> None:
        """Write what is left to another folder.

        Args:
            target: New.
            names_kept: Whether all names had reached the disk before the contents did.
        """
        if names_kept:
            paths = [path for path in self.base.rglob("*") if not path.is_relative_to(target)]
            self.names = {path.stat().st_ino: {} for path in [self.base, *paths] if path.is_dir()}
            for path in paths:
                self.names[path.parent.stat().st_ino][path.name] = path.stat().st_ino
        self._write(self.base.stat().st_ino, target)

    def _write(self, folder: int, target: Path) -> None:
        target.mkdir()
        for name, number in self.names[folder].items():
            if number in self.names:
                self._write(number, target / name)
            else:
                (target / name).write_bytes(self.contents.get(number, b""))


class Struck:
    """Lets the n-th call of the system that touches the disk go wrong.

    Args:
        at: Which, from 1.
        how: What goes wrong.
        base: The folder that the ledger is made in.
        say: Told `struck CALL N` before it happens, N counting the calls of that name.
    """

    def __init__(self, at: int, how: str, base: Path, say: Say) -> None:
        self.at, self.how, self.base, self.say, self.count = at, how, base, say, 0
        self.counts = dict.fromkeys(CALLS, 0)
        self.disk = Disk(base)
        for name in ("write",) if how in ("short write", "killed half-way") else CALLS:
            setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            self.count += 1
            self.counts[name] += 1
            if self.count != self.at:
                return self._watched(name, real, *args, **more)
            self.say(f"struck {name} {self.counts[name]}")
            if self.how in ("short write", "killed half-way"):
                written = real(args[0], args[1][: len(args[1]) // 2])
                return written if self.how == "short write" else kill()
            if self.how == "killed after":
                with contextlib.suppress(OSError):
                    real(*args, **more)
            if self.how.startswith("power cut"):
                self._restore()
                self.disk.cut(self.base / LEFT, names_kept=self.how != "power cut")
            if self.how in ("EIO", "ENOSPC"):
                code = getattr(errno, self.how)
                raise OSError(code, os.strerror(code))
            return kill()

        call.real = real  # type: ignore[attr-defined]
        return call

    def _restore(self) -> None:
        for name in CALLS:
            setattr(os, name, getattr(getattr(os, name), "real", getattr(os, name)))

    def _watched(self, name: str, real: Callable[..., Any], *args: Any, **more: Any) -> Any:
        """The call itself; what it makes durable is noted, and no real disk is waited for."""
        if name in ("fsync", "fdatasync"):
            return self.disk.synced(Path(os.readlink(f"/proc/self/fd/{args[0]}")))
        new = name == "mkdir" or (name == "open" and args[1] & os.O_CREAT and not os.path.lexists(args[0]))
        result = real(*args, **more)
        if new:
            self.disk.made(Path(args[0]))
        return result


def kill() -> NoReturn:
    """End this process as the system does when it has no memory left."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def attempt(
    base: Path, ledger: Path | None, prepare: Callable[[Path, Say], object], trace: Callable[[int], Any] | None = None
) -> dict[str, Any]:
    """Write a ledger in a child.

    Args:
        base: New folder for it.
        ledger: What is there before; nothing by default.
        prepare: Called in the child before it starts.
        trace: Called with the child's process id, which waits for it; what it returns is waited for at the end.

    Returns:
        What is left in which folder, what the child said, and its exit code, negative if it was killed.
    """
    base.mkdir(parents=True)
    target = base / "new" / "ledger"
    if ledger:
        shutil.copytree(ledger, target)
    hear, out = os.pipe()
    ready, go = os.pipe()
    child = os.fork()
    if not child:

        def say(line: str) -> None:
            os.writev(out, [line.encode() + b"\n"])  # which is not one of CALLS

        try:
            os.read(ready, 1)
            prepare(base, say)
            write(target, say)
        except BaseException as error:
            say(f"broke {type(error).__name__}: {error}")
        os._exit(0)
    os.close(out)
    tracer = trace(child) if trace else None
    os.write(go, b"!")
    with open(hear) as pipe:
        said = pipe.read().splitlines()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if tracer:
        tracer.wait()
    os.close(ready)
    os.close(go)
    folder = base / LEFT if (base / LEFT).exists() else base
    return {"folder": str(folder / "new"), "said": said, "code": code}


def inject(how: str, folder: Path, ledger: Path | None) -> Iterator[dict[str, Any]]:
    """One child for every call, until one has no call left to strike."""
    for at in itertools.count(1):
        result = attempt(folder / str(at), ledger, lambda base, say, at=at: Struck(at, how, base, say))
        struck = [line for line in result["said"] if line.startswith("struck ")]
        yield {**result, "call": struck[0].removeprefix("struck ") if struck else ""}
        if not struck:
            return


def strace(how: str, folder: Path, ledger: Path | None) -> Iterator[dict[str, Any]]:
    """One child that is watched, then one for every call that was seen."""
    log = folder / "log"

    def attached(child: int, *words: str) -> subprocess.Popen[bytes]:
        command = ["strace", "-y", "-s", "4096", "-o", str(log), "-p", str(child), *words]
        tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while f"TracerPid:\t{tracer.pid}\n" not in Path(f"/proc/{child}/status").read_text():
            if tracer.poll() is not None:
                os.kill(child, signal.SIGKILL)
                raise SystemExit("strace may not watch a process here")
            time.sleep(0.001)
        return tracer

    def allow(base: Path, say: Say) -> None:
        # PR_SET_PTRACER, PR_SET_PTRACER_ANY: some systems let only a parent watch a process.
        ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)

    trace = ",".join("openat" if name == "open" else name for name in CALLS)
    calm = attempt(folder / "0", ledger, allow, lambda child: attached(child, "-e", f"trace={trace}"))
    fault = "signal=SIGKILL" if how == "killed before" else f"error={how}"
    seen: Counter[str] = Counter()
    for place, line in enumerate(log.read_text().splitlines(), 1):
        name = line.partition("(")[0]
        seen[name] += 1
        if str(folder) in line:
            words = ("-e", f"trace={name}", "-e", f"inject={name}:{fault}:when={seen[name]}")
            result = attempt(folder / str(place), ledger, allow, lambda child, words=words: attached(child, *words))
            struck = [line for line in log.read_text().splitlines() if line.endswith(("(INJECTED)", "= ?"))]
            assert len(struck) == 1, struck
            assert str(folder) in struck[0], "it has another order than before"
            yield {**result, "call": f"{name} {seen[name]}"}
    yield {**calm, "call": ""}


if __name__ == "__main__":
    task, how, folder, *ledgers = sys.argv[1:]
    # Once here, so that no child imports anything.
    write(Path(folder) / "warm" / "ledger", lambda line: None)
    strikes = {"inject": inject, "strace": strace}[task]
    for found in strikes(how, Path(folder), Path(ledgers[0]) if ledgers else None):
        sys.stdout.write(json.dumps(found) + "\n")
