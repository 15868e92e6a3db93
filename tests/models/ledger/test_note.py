"""Keys, signed notes and heads are those of C2SP, and a private key stays private."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import BadSignature, ConfigError, Malformed
from models.ledger.canonical import canonical, parse
from models.ledger.note import Checkpoint, Signer, Verifier, open_note, sign_note

# The key and note that the reference implementation (golang.org/x/mod/sumdb/note) is tested with.
SECRET = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
SIGNATURE = (
    "— PeterNeumann "
    "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
NOTE = f"{TEXT}\n{SIGNATURE}"
PETER = Verifier.parse(VKEY)

NORTH = Signer.from_seed("north", bytes(range(32)))
SOUTH = Signer.from_seed("south", bytes(range(1, 33)))
HEAD = Checkpoint("north", 20852163, bytes(range(100, 132)))


def key_file(folder: Path, content: str, mode: int = 0o600) -> Path:
    path = folder / "north.key"
    path.write_text(content)
    path.chmod(mode)
    return path


def test_the_reference_note_opens() -> None:
    assert open_note(NOTE, PETER) == TEXT


def test_the_reference_key_writes_the_reference_note(tmp_path: Path) -> None:
    signer = Signer.load(key_file(tmp_path, SECRET + "\n"))
    assert signer.vkey == VKEY
    assert sign_note(TEXT, signer) == NOTE


@pytest.mark.parametrize(
    "note",
    [
        "",
        TEXT,
        TEXT + "\n",
        NOTE[:-1],
        "\x01" + NOTE,
        NOTE.replace("\n", "\r\n"),
        TEXT + SIGNATURE,
        TEXT + "\n" + SIGNATURE.replace("PeterNeumann", "Peter Neumann"),
        TEXT + "\n" + SIGNATURE.replace("—", "-"),
        NOTE + "Unexpected line.\n",
        NOTE + "— PeterNeumann AAAA\n",
    ],
)
def test_what_is_no_note_is_malformed(note: str) -> None:
    with pytest.raises(Malformed):
        open_note(note, PETER)


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


def test_a_note_may_carry_the_signatures_of_others() -> None:
    note = HEAD.sign(NORTH)
    both = note + HEAD.sign(SOUTH).rpartition("\n\n")[2]
    assert Checkpoint.open(both, NORTH.verifier) == Checkpoint.open(both, SOUTH.verifier) == HEAD


def test_a_note_of_somebody_else_is_a_bad_signature() -> None:
    impostor = Signer.from_seed("north", bytes(32))
    for signer in (SOUTH, impostor):
        with pytest.raises(BadSignature, match="not signed by north"):
            Checkpoint.open(HEAD.sign(signer), NORTH.verifier)


def test_a_checkpoint_reads_as_the_standard_says() -> None:
    text, blank, signature = HEAD.sign(NORTH).partition("\n\n")
    assert text == "north\n20852163\nZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXp7fH1+f4CBgoM="
    assert blank
    assert re.fullmatch(r"— north [A-Za-z0-9+/]{91}=\n", signature)


@given(st.data())
def test_a_checkpoint_changed_in_any_character_does_not_open(data: st.DataObject) -> None:
    note = HEAD.sign(NORTH)
    place = data.draw(st.integers(0, len(note) - 1))
    other = data.draw(st.characters().filter(lambda character: character != note[place]))
    with pytest.raises((BadSignature, Malformed)):
        Checkpoint.open(note[:place] + other + note[place + 1 :], NORTH.verifier)


@pytest.mark.parametrize(
    "text",
    [
        "north\n007\n" + "A" * 43 + "=\n",
        "north\n-1\n" + "A" * 43 + "=\n",
        "north\n1\n" + "A" * 42 + "B=\n",
        "north\n1\nAAAA\n",
        "north\n1\n" + "A" * 43 + "=\nan extension\n",
        "\n1\n" + "A" * 43 + "=\n",
        "north\n1\n",
    ],
)
def test_a_signed_text_that_is_no_checkpoint_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        Checkpoint.open(sign_note(text, NORTH), NORTH.verifier)


@pytest.mark.parametrize(
    ("origin", "size", "root"),
    [("", 1, bytes(32)), ("a\nb", 1, bytes(32)), ("a", -1, bytes(32)), ("a", 1, b"")],
)
def test_an_impossible_checkpoint_cannot_be_made(origin: str, size: int, root: bytes) -> None:
    with pytest.raises(Malformed):
        Checkpoint(origin, size, root)


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


numbers = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=8,
)


@given(json_values)
def test_canonical_json_is_read_back_as_what_was_written(value: object) -> None:
    assert parse(canonical(value)) == value
    assert canonical(parse(canonical(value))) == canonical(value)


def test_canonical_json_is_that_of_the_standard() -> None:
    # RFC 8785 section 3.2.2, as far as JSON text goes.
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": '\u20ac$\u000f\nA\'B"\\\\"/',
        "literals": [None, True, False],
    }
    assert canonical(value).decode() == (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )


def nested() -> list[object]:
    value: list[object] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value", [float("nan"), float("-inf"), 2**53, b"bytes", {1: 2}, {"a": {3}}, "\ud800", nested()]
)
def test_what_has_no_canonical_json_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        canonical(value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"a": 1}',
        b'{"b":1,"a":1}',
        b'{"a":1,"a":1}',
        b"1.0",
        b"NaN",
        b'"\\u0041"',
        b"\xff",
        b"[" * 10**5,
    ],
)
def test_json_that_is_not_canonical_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse(data)
