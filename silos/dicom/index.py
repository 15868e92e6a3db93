"""Remembers what was read of each file, so that a second scan opens only what is new or changed.

The index is one SQLite file, readable by its owner only, because it holds identifiers:

    pandas.read_sql("select * from files", sqlite3.connect(index))

One row is one file: its path below the root, size, time of change, the reason for which it cannot be read
(or NULL), and one column of text per attribute. The index is a cache: whenever it does not fit (another
root, other attributes, an older version, damage) it is deleted and built anew.
"""

import logging
import os
import sqlite3
from collections.abc import Collection, Iterable, Sequence
from contextlib import closing
from pathlib import Path

import pandas as pd

from models.errors import DataError

VERSION = 4  # raise it when a file would be read differently than before
FIXED = ("path", "size", "mtime_ns", "reason")

log = logging.getLogger("intramural")


def open_index(path: Path, root: Path, attributes: Sequence[str]) -> sqlite3.Connection:
    """Open the index of a root, or build an empty one.

    Args:
        path: The SQLite file; created with mode 0600.
        root: The folder that it describes.
        attributes: DICOM keywords, the columns after `FIXED`.

    Raises:
        DataError: The file cannot be written, or another scan keeps it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.exists() and not _fits(path, root, attributes):
            for suffix in ("", "-journal", "-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        path.chmod(0o600)
        database = sqlite3.connect(path)
        if not database.execute("PRAGMA user_version").fetchone()[0]:
            _create(database, root, attributes)
    except (OSError, sqlite3.Error) as error:
        raise DataError(
            f"run.work: {path}: {getattr(error, 'strerror', None) or error}",
            "give a folder that this user can write, and let one scan run at a time",
        ) from error
    return database


def _fits(path: Path, root: Path, attributes: Sequence[str]) -> bool:
    try:
        with closing(sqlite3.connect(path)) as database:
            if database.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("quick_check")
            version = database.execute("PRAGMA user_version").fetchone()[0]
            columns = [row[1] for row in database.execute("PRAGMA table_info(files)")]
            return (
                version == VERSION
                and columns == [*FIXED, *attributes]
                and database.execute("SELECT root FROM about").fetchone() == (_storable(str(root)),)
            )
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:
        log.warning("the index of DICOM files is damaged and will be built anew")
        return False


def _create(database: sqlite3.Connection, root: Path, attributes: Sequence[str]) -> None:
    columns = ", ".join(f'"{keyword}" TEXT NOT NULL' for keyword in attributes)
    with database:
        database.execute("BEGIN")
        database.execute(
            f"CREATE TABLE files (path PRIMARY KEY, size INTEGER, mtime_ns INTEGER, reason TEXT, {columns})"
        )
        database.execute("CREATE TABLE about (root, listing BLOB)")
        database.execute("INSERT INTO about VALUES (?, NULL)", (_storable(str(root)),))
        database.execute(f"PRAGMA user_version = {VERSION}")


def listing(database: sqlite3.Connection) -> bytes | None:
    """The digest of all paths, sizes and times that the index was completed with, if it was."""
    digest: bytes | None = database.execute("SELECT listing FROM about").fetchone()[0]
    return digest


def note(database: sqlite3.Connection, digest: bytes | None) -> None:
    """Write the digest down: None before the index is changed, the new one when it is complete."""
    with database:
        database.execute("UPDATE about SET listing = ?", (digest,))


def stamps(database: sqlite3.Connection) -> set[tuple[str, int, int]]:
    """(path, size in bytes, time of change in ns) of every file in the index."""
    rows = "SELECT path, size, mtime_ns FROM files WHERE typeof(path) "
    odd = database.execute(f"{rows} <> 'text'")
    return {*database.execute(f"{rows} = 'text'"), *((os.fsdecode(path), *stamp) for path, *stamp in odd)}


def write(database: sqlite3.Connection, rows: Iterable[Sequence[str | int | None]]) -> None:
    """Add or replace rows, in the order of the columns, durably and all or none."""
    storable = [(_storable(str(path)), *rest) for path, *rest in rows]
    if storable:
        marks = ", ".join("?" * len(storable[0]))
        with database:
            database.executemany(f"INSERT OR REPLACE INTO files VALUES ({marks})", storable)  # noqa: S608


def forget(database: sqlite3.Connection, paths: Collection[str]) -> None:
    """Remove the rows of files that are gone."""
    with database:
        database.executemany("DELETE FROM files WHERE path = ?", [(_storable(path),) for path in paths])


def read(database: sqlite3.Connection) -> pd.DataFrame:
    """Every row, sorted by path; `reason` is "" where there is none."""
    cursor = database.execute("SELECT * FROM files")
    names = [column[0] for column in cursor.description]
    same: dict[str, str] = {}  # most values occur in many rows
    columns = [[same.setdefault(value, value) for value in column] for column in zip(*cursor, strict=True)]
    table = dict(zip(names, columns or [[] for _ in names], strict=True))
    table["path"] = [os.fsdecode(path) for path in table["path"]]
    table["reason"] = [reason or "" for reason in table["reason"]]
    frame = pd.DataFrame(table, dtype=object)
    return frame.astype({"size": "int64", "mtime_ns": "int64"}).sort_values("path", ignore_index=True)


def _storable(path: str) -> str | bytes:
    """A path as SQLite can hold it: text, or bytes for a name that is no UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return path
