"""The rule of witnesses, as a pure function: what most have not seen is not gone on with."""

import base64
import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import BadSignature, Malformed, NotWitnessed, Rewritten
from models.exchange import witness
from models.exchange.witness import needed, read_testimony, require
from models.ledger import Checkpoint, Signer, Tree, Verifier, add_cosignatures, leaf_hash

NAMES = ("east", "north", "south", "west", "centre")
SILOS = {name: Signer.from_seed(name, bytes([number]) * 32) for number, name in enumerate(NAMES, start=1)}
HUB = Signer.from_seed("hub", b"h" * 32)
NORTH = SILOS["north"]


def tree(size: int, word: str = "") -> Tree:
    made = Tree()
    for number in range(size):
        made.append(leaf_hash(f"{word if number > 3 else ''}{number}".encode()))
    return made


def head(size: int, word: str = "") -> Checkpoint:
    return Checkpoint("hub/trial", size, tree(size, word).root())


def cosigned(size: int, *names: str, word: str = "", by: Signer = HUB) -> str:
    made = head(size, word)
    return add_cosignatures(made.sign(by), [(SILOS[name].verifier, made.cosign(SILOS[name], 1)) for name in names])


def vkeys(*names: str) -> tuple[str, ...]:
    return tuple(sorted(SILOS[name].vkey for name in names))


def ask(*heads: str, roster: tuple[str, ...] = NAMES, size: int = 20, since: int = 10, **more: Any) -> None:
    now = tree(size)
    proofs = {old: tuple(now.consistency(old, size)) for old in range(1, size + 1)}
    given = {"before": (), "min_silos": 1, **more}
    testimony = witness.Testimony(vkeys(*roster), heads)
    require(testimony, HUB.verifier, head(size), proofs, silo=NORTH.verifier, since=since, **given)


def test_more_than_half_are_enough_and_the_hospital_itself_counts() -> None:
    ask(cosigned(12, "east", "south"))
    with pytest.raises(NotWitnessed, match="2 of 5"):
        ask(cosigned(12, "east"))


def test_no_more_heads_are_read_than_a_message_has_proofs_for() -> None:
    note = cosigned(12, "east")
    assert len(read_testimony(witness.Testimony(vkeys("east"), (note,) * 128).encoded).heads) == 128
    with pytest.raises(Malformed):
        read_testimony(witness.Testimony(vkeys("east"), (note,) * 129).encoded)


def test_half_is_not_enough() -> None:
    with pytest.raises(NotWitnessed):
        ask(cosigned(12, "east"), roster=("east", "north", "south", "west"))
    ask(cosigned(12, "east", "west"), roster=("east", "north", "south", "west"))


def test_votes_on_several_heads_of_one_past_are_counted_together_and_each_hospital_once() -> None:
    ask(cosigned(14, "east"), cosigned(12, "south"))
    with pytest.raises(NotWitnessed):
        ask(cosigned(14, "east"), cosigned(12, "east"))


def test_who_saw_less_than_this_hospital_does_not_vouch_for_what_it_saw() -> None:
    ask(cosigned(10, "east", "south"))
    with pytest.raises(NotWitnessed):
        ask(cosigned(9, "east", "south"))


def test_a_round_that_needs_more_hospitals_needs_as_many_witnesses() -> None:
    with pytest.raises(NotWitnessed):
        ask(cosigned(12, "east"), roster=("east", "north"), min_silos=3)


def test_a_cosigned_head_of_another_past_is_evidence() -> None:
    with pytest.raises(Rewritten):
        ask(cosigned(12, "east", "south", word="fork"))


def test_a_hospital_that_counted_before_cannot_be_left_out() -> None:
    with pytest.raises(NotWitnessed, match="no longer names 1"):
        ask(cosigned(12, "east"), roster=("east", "north"), before=vkeys("east", "north", "south"))


def test_a_vote_that_its_hospital_did_not_give_is_refused() -> None:
    note = head(12)
    forged = add_cosignatures(note.sign(HUB), [(SILOS["east"].verifier, note.cosign(SILOS["south"], 1))])
    with pytest.raises(BadSignature):
        ask(forged)
    with pytest.raises(BadSignature):
        ask(add_cosignatures(note.sign(HUB), [(SILOS["east"].verifier, b"short")]))


def test_a_head_that_the_coordinator_did_not_sign_is_refused() -> None:
    with pytest.raises(BadSignature):
        ask(cosigned(12, "east", "south", by=SILOS["east"]))


def test_a_stranger_has_no_vote() -> None:
    with pytest.raises(NotWitnessed):
        ask(cosigned(12, "east", "south"), roster=("north", "west", "centre"))


def test_what_was_written_is_read() -> None:
    testimony = witness.Testimony(vkeys(*NAMES), (cosigned(12, "east"),))
    assert read_testimony(testimony.encoded) == testimony


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"heads":[],"roster":[1]}', b'{"heads":{},"roster":[]}'])
def test_what_is_no_testimony_is_malformed(content: bytes) -> None:
    with pytest.raises(Malformed):
        read_testimony(content)


@given(st.integers(1, 200), st.integers(1, 200))
def test_two_groups_without_a_common_hospital_can_never_both_be_enough(size: int, min_silos: int) -> None:
    roster = [f"silo-{number}" for number in range(size)]
    assert 2 * needed(roster, min_silos) > size


def test_a_cosignature_is_that_of_the_standard() -> None:
    # C2SP tlog-cosignature: key id of type 0x04, eight bytes of time, Ed25519 over "cosignature/v1" and the text.
    line = cosigned(12, "east").splitlines()[-1]
    dash, name, encoded = line.split(" ")
    content = base64.b64decode(encoded)
    key = SILOS["east"].verifier.key
    assert (dash, name) == ("—", "east")
    assert content[:4] == hashlib.sha256(b"east\n\x04" + key).digest()[:4]
    assert content[4:12] == (1).to_bytes(8, "big")
    text = f"hub/trial\n12\n{base64.b64encode(head(12).root).decode()}\n"
    Verifier("east", key).verify(f"cosignature/v1\ntime 1\n{text}".encode(), content[12:])
