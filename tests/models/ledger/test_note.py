"""Signed notes and heads are those of C2SP, and open only if the party signed them."""

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import BadSignature, Malformed
from models.ledger.keys import Signer, Verifier
from models.ledger.note import Checkpoint, open_note, sign_note

# The key and note that the reference implementation (golang.org/x/mod/sumdb/note) is tested with.
SEED = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
SIGNATURE = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
NOTE = f"{TEXT}\n{SIGNATURE}"
PETER = Verifier.parse(VKEY)

NORTH = Signer.from_seed("north", bytes(range(32)))
SOUTH = Signer.from_seed("south", bytes(range(1, 33)))
HEAD = Checkpoint("north", 20852163, bytes(range(100, 132)))


def test_the_reference_note_opens() -> None:
    assert open_note(NOTE, PETER) == TEXT


def test_the_reference_key_writes_the_reference_note() -> None:
    signer = Signer.from_seed("PeterNeumann", SEED)
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
