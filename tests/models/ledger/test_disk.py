"""What was written is whole and on the disk, or the old file still is."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.ledger import disk


def fail(*args: Any) -> Any:
    raise OSError(errno.EIO, "Input/output error")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the calls that touch the disk, as they happen."""
    seen: list[str] = []

    def recorded(name: str) -> Callable[..., Any]:
        real = getattr(os, name)
        return lambda *args: (seen.append(name), real(*args))[1]

    for name in ("write", "fsync", "rename"):
        monkeypatch.setattr(os, name, recorded(name))
    return seen


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, calls: list[str]) -> None:
    disk.publish(tmp_path / "model", b"old")
    disk.publish(tmp_path / "model", b"new")
    assert calls == ["write", "fsync", "rename", "fsync"] * 2
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("model", b"new")]


@pytest.mark.parametrize("name", ["write", "fsync", "rename"])
def test_a_file_that_cannot_be_replaced_stays_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = tmp_path / "model"
    disk.publish(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        with pytest.raises(OSError, match="Input/output error"):
            disk.publish(path, b"new")
    assert path.read_bytes() == b"old"
    disk.publish(path, b"newer")
    assert path.read_bytes() == b"newer"


def test_a_file_that_the_system_takes_in_parts_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As Linux does with everything beyond 2 GiB.
    real = os.write
    monkeypatch.setattr(os, "write", lambda number, content: real(number, content[:7]))
    content = bytes(range(100))
    disk.publish(tmp_path / "model", content)
    assert (tmp_path / "model").read_bytes() == content


def test_a_new_file_is_on_the_disk_with_its_name(tmp_path: Path, calls: list[str]) -> None:
    disk.create(tmp_path / "key", b"secret", 0o600)
    assert calls == ["write", "fsync", "fsync"]
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        disk.create(tmp_path / "key", b"other")
    assert (tmp_path / "key").read_bytes() == b"secret"


@pytest.mark.parametrize("name", ["write", "fsync"])
def test_a_new_file_that_cannot_be_written_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(os, name, fail)
    with pytest.raises(OSError, match="Input/output error"):
        disk.create(tmp_path / "key", b"secret")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_on_the_disk_with_all_that_had_to_be_made_above_it(tmp_path: Path, calls: list[str]) -> None:
    disk.make_folder(tmp_path / "new" / "inner", 0o700)
    disk.make_folder(tmp_path / "new" / "inner", 0o700)
    assert calls == ["fsync"] * 2
    assert (tmp_path / "new" / "inner").stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        disk.make_folder(tmp_path / "file" / "inner")
