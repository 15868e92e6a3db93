"""A key says who speaks, and a private key stays private."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from models.errors import BadSignature, ConfigError, Malformed
from models.ledger.keys import Signer, Verifier

# The key that the reference implementation (golang.org/x/mod/sumdb/note) is tested with.
SECRET = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"

NORTH = Signer.from_seed("north", bytes(range(32)))


def key_file(folder: Path, content: str, mode: int = 0o600) -> Path:
    path = folder / "north.key"
    path.write_text(content)
    path.chmod(mode)
    return path


def test_the_reference_key_loads(tmp_path: Path) -> None:
    assert Signer.load(key_file(tmp_path, SECRET + "\n")).vkey == VKEY


def test_every_part_of_a_vkey_matters() -> None:
    for start in range(len(VKEY)):
        for end in range(start + 1, len(VKEY) + 1):
            if (start, end) != (0, len(VKEY)):
                with pytest.raises(Malformed):
                    Verifier.parse(VKEY[start:end])
    for place in range(len(VKEY)):
        with pytest.raises(Malformed):
            Verifier.parse(VKEY[:place] + chr(ord(VKEY[place]) ^ 1) + VKEY[place + 1 :])


@pytest.mark.parametrize(
    "vkey",
    [
        "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==",
        "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
    ],
)
def test_a_vkey_of_another_length_or_algorithm_is_malformed(vkey: str) -> None:
    with pytest.raises(Malformed):
        Verifier.parse(vkey)


@pytest.mark.parametrize("signature", [b"", bytes(64), NORTH.sign(b"other"), NORTH.sign(b"data") + b"\0"])
def test_only_the_signature_of_these_bytes_is_accepted(signature: bytes) -> None:
    NORTH.verifier.verify(b"data", NORTH.sign(b"data"))
    with pytest.raises(BadSignature):
        NORTH.verifier.verify(b"data", signature)


def test_a_made_key_is_private_and_loads_again(tmp_path: Path) -> None:
    path = tmp_path / "north.key"
    made = Signer.create(path, "north")
    assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "north.pub").read_text() == made.vkey + "\n"
    loaded = Signer.load(path)
    assert loaded.verifier == Verifier.parse(made.vkey)
    made.verifier.verify(b"data", loaded.sign(b"data"))
    assert Signer.create(tmp_path / "other.key", "north").vkey != made.vkey


def test_a_key_is_private_even_if_the_user_shares_new_files(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Signer.create(tmp_path / "north.key", "north")
    finally:
        os.umask(before)
    assert (tmp_path / "north.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("existing", ["north.key", "north.pub"])
def test_a_key_is_never_overwritten(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("precious")
    with pytest.raises(ConfigError, match=existing):
        Signer.create(tmp_path / "north.key", "north")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(existing, "precious")]


@pytest.mark.parametrize("at", range(1, 7))
def test_a_key_that_the_disk_refuses_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    calls = []

    def refuse(name: str) -> Any:
        real = getattr(os, name)

        def call(*args: Any) -> Any:
            calls.append(name)
            if len(calls) == at:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*args)

        return call

    with monkeypatch.context() as patch:
        for name in ("write", "fsync"):
            patch.setattr(os, name, refuse(name))
        with pytest.raises(ConfigError, match=r"north\.key: Input/output error"):
            Signer.create(tmp_path / "north.key", "north")
    assert calls == (["write", "fsync", "fsync"] * 2)[:at]
    assert not list(tmp_path.iterdir())
    Signer.create(tmp_path / "north.key", "north")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o666])
def test_a_key_that_others_may_use_is_refused_with_the_command_to_run(tmp_path: Path, mode: int) -> None:
    path = key_file(tmp_path, SECRET + "\n", mode)
    with pytest.raises(ConfigError, match=rf"north\.key: .*mode {mode:04o}") as caught:
        Signer.load(path)
    assert caught.value.hint == f"run: chmod 600 {path}"


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"north\.key: No such file"):
        Signer.load(tmp_path / "north.key")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "PRIVATE+KEY+",
        VKEY,
        SECRET[:-1],
        SECRET[:-4],
        SECRET + "\n\n",
        SECRET.replace("c74f20a3", "c74f20a4"),
        SECRET.replace("Peter", "Pater"),
        SECRET.replace("AYEK", "BYEK"),
        "-----BEGIN PRIVATE KEY-----\n",
    ],
)
def test_a_garbled_key_is_refused_without_showing_it(tmp_path: Path, content: str) -> None:
    with pytest.raises(ConfigError, match=r"north\.key: is no private key") as caught:
        Signer.load(key_file(tmp_path, content))
    assert "AYEKFALVFGyNhPJEMzD1" not in f"{caught.value}{caught.value.hint}{caught.value.__cause__}"


def test_a_signer_does_not_show_its_secret() -> None:
    assert repr(NORTH) == "Signer(name='north')"


@pytest.mark.parametrize("name", ["", "two words", "a+b", "a\nb", "a\u00a0b"])
def test_an_impossible_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError):
        Signer.create(tmp_path / "north.key", name)
    with pytest.raises(Malformed):
        Signer.from_seed(name, bytes(32))
    assert not list(tmp_path.iterdir())
