"""Where a command meets a person: results on stdout, talk on stderr, errors that say what to do.

Every command of the toolkit goes through `run_command`, so that exit codes mean the same everywhere:
0 done, 1 failed, 2 wrong usage, 3 a verification failed.
"""

import argparse
import itertools
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

from models.errors import BadSignature, DigestMismatch, IntramuralError, Rewritten

if TYPE_CHECKING:
    from rich.progress import TaskID

OK, FAILED, UNVERIFIED = 0, 1, 3  # 2, wrong usage, is argparse's own

Report = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Parse arguments and run the chosen command.

    Args:
        parser: Each command's parser sets `run`, a function of the parsed arguments that returns the exit code.
        argv: Arguments; the process's by default.

    Returns:
        The exit code.
    """
    parser.add_argument("-v", "--verbose", action="store_true", help="talk more; the reasons may name files")
    arguments = parser.parse_args(argv)
    _quiet_libraries()
    level = logging.DEBUG if arguments.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname).1s %(name)s: %(message)s", stream=sys.stderr)
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
    except IntramuralError as error:
        _complain(str(error), error.hint)
        if arguments.verbose:
            logging.getLogger("intramural").debug("where it happened", exc_info=error)
        return UNVERIFIED if isinstance(error, Rewritten | BadSignature | DigestMismatch) else FAILED
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to flush has no reader
            return OK
        hint = "see that the path is right, can be read and written, and that the disk has space"
        _complain(f"{error.filename or 'this machine'}: {error.strerror}", hint)
        return FAILED
    except ImportError as error:
        hint = "run: pip install 'intramural[silo]'; what neither trains nor simulates needs intramural alone"
        _complain(f"this command needs {error.name}, which cannot be imported: {error}", hint)
        return FAILED
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return int(code)


def at_least(least: int) -> Callable[[str], int]:
    """An argument that is a whole number of at least this."""

    def whole(text: str) -> int:
        with suppress(ValueError):
            if (number := int(text)) >= least:
                return number
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least} (got {text})")

    return whole


def above_zero(text: str) -> float:
    """An argument that is a finite number of more than 0."""
    with suppress(ValueError):
        if 0 < (number := float(text)) < float("inf"):
            return number
    raise argparse.ArgumentTypeError(f"must be more than 0 (got {text})")


def at_default(parser: argparse.ArgumentParser, options: argparse.Namespace, *names: str) -> bool:
    """Whether nobody asked for something else of these options."""
    return all(getattr(options, name) == parser.get_default(name) for name in names)


def _complain(message: str, hint: str) -> None:
    told = f"error: {message}\n  do: {hint}" if hint else f"error: {message}"
    show_lines(*told.split("\n"), file=sys.stderr)


def _quiet_libraries() -> None:
    """No telemetry, no update checks, and no talk of Flower's own between ours."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    logging.getLogger("flwr").addFilter(_is_error)  # its level is set anew when it is imported


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def log_service(*, json_lines: bool) -> None:
    """Let a service talk of what it does, on stderr: a line of text or a JSON object each."""
    formatter = _JsonLines() if json_lines else logging.Formatter("%(asctime)s %(levelname).1s %(name)s: %(message)s")
    logging.getLogger("intramural").setLevel(min(logging.INFO, logging.getLogger().level))
    for handler in logging.getLogger().handlers:
        handler.setFormatter(formatter)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def stop_signal() -> threading.Event:
    """An event that is set when this process is asked to end (SIGTERM, or Ctrl-C)."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    return stopping


def show_json(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=2, sort_keys=True, default=str))


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table. In a pipe, and where rich is not installed, it has no frame and is as wide as it needs to be."""
    title, columns = printable(title), [*map(printable, columns)]
    cells = [["" if cell is None else "\n".join(map(printable, str(cell).split("\n"))) for cell in row] for row in rows]
    if sys.stdout.isatty():
        with suppress(ImportError):  # a stranger's machine, where nothing but the auditor's command is installed
            _framed(title, columns, cells)
            return
    print("\n".join([title, *_plain([columns, *cells])]))


def show_lines(*lines: str, file: TextIO | None = None) -> None:
    """Print lines in which somebody else's words may be; on stdout by default."""
    print("\n".join(map(printable, lines)), file=file)


def printable(text: str) -> str:
    """Somebody else's words as one line, unable to overwrite ours on a terminal or to turn their direction."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _framed(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*map(escape, columns), title=escape(title), title_justify="left", title_style="bold")
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)


def _plain(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of text in which each column is as wide as its widest cell."""
    widths = [max(len(line) for cell in column for line in cell.split("\n")) for column in zip(*rows, strict=True)]
    for row in rows:
        for cells in itertools.zip_longest(*(cell.split("\n") for cell in row), fillvalue=""):
            yield "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


@contextmanager
def progress() -> Iterator[Report]:
    """Show how far long work is: bars on a terminal, a line at the end of each piece elsewhere."""
    if not sys.stderr.isatty():
        yield _lines
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        known: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in known:
                known[what] = bars.add_task(what, total=total)
            bars.update(known[what], completed=done, total=total)

        yield report


def _lines(what: str, done: int, total: int) -> None:
    if total > 1 and done == total:
        print(f"{what}: {done}", file=sys.stderr)


def human_bytes(count: int) -> str:
    """A number of bytes for people, in decimal units."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
