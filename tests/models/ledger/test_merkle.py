"""The tree is that of RFC 6962, its proofs prove, and nothing else does."""

from collections.abc import Iterator
from typing import Any

import pymerkle
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from models.ledger.merkle import Tree, leaf_hash, verify_consistency, verify_inclusion

# The leaves, roots and proofs of the certificate-transparency reference implementation.
LEAVES = [
    leaf_hash(bytes.fromhex(leaf))
    for leaf in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
NODES = {
    "0": "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",  # leaves 2..3
    "1": "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",  # leaves 4..7
    "2": "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",  # leaf 1
    "3": "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",  # leaf 4
    "4": "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",  # leaves 6..7
    "5": "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",  # leaves 4..5
    "6": ROOTS[4],  # leaves 0..3
}
SIZE = 130


def grown(leaves: list[bytes]) -> Tree:
    tree = Tree()
    for leaf in leaves:
        tree.append(leaf)
    return tree


def nodes(names: str) -> list[bytes]:
    return [bytes.fromhex(NODES[name]) for name in names]


TREE = grown([leaf_hash(bytes([index])) for index in range(SIZE)])
TREE_LEAVES = [leaf_hash(bytes([index])) for index in range(SIZE)]


@pytest.mark.parametrize("size", range(9))
def test_the_root_is_the_published_one(size: int) -> None:
    assert grown(LEAVES).root(size).hex() == ROOTS[size]
    assert grown(LEAVES[:size]).root().hex() == ROOTS[size]


@pytest.mark.parametrize(("index", "names"), [(0, "201"), (5, "346")])
def test_an_inclusion_proof_is_the_published_one(index: int, names: str) -> None:
    assert grown(LEAVES).inclusion(index, 8) == nodes(names)
    assert verify_inclusion(LEAVES[index], index, 8, nodes(names), bytes.fromhex(ROOTS[8]))


@pytest.mark.parametrize(("old", "new", "names"), [(2, 8, "01"), (6, 8, "546"), (2, 5, "03"), (1, 1, "")])
def test_a_consistency_proof_is_the_published_one(old: int, new: int, names: str) -> None:
    assert grown(LEAVES).consistency(old, new) == nodes(names)
    roots = bytes.fromhex(ROOTS[old]), bytes.fromhex(ROOTS[new])
    assert verify_consistency(old, new, *roots, nodes(names))


def test_every_root_to_130_leaves_is_that_of_another_implementation() -> None:
    other = pymerkle.InmemoryTree(algorithm="sha256")
    for size in range(1, SIZE + 1):
        other.append_entry(bytes([size - 1]))
        assert TREE.root(size) == other.get_root()


def test_every_inclusion_proof_to_130_leaves_proves_its_leaf() -> None:
    for size in range(1, SIZE + 1):
        root = TREE.root(size)
        for index in range(size):
            assert verify_inclusion(TREE_LEAVES[index], index, size, TREE.inclusion(index, size), root)


def test_every_consistency_proof_to_130_leaves_proves_its_past() -> None:
    roots = [TREE.root(size) for size in range(SIZE + 1)]
    for new in range(SIZE + 1):
        for old in range(new + 1):
            assert verify_consistency(old, new, roots[old], roots[new], TREE.consistency(old, new))


sizes = st.integers(1, SIZE)
spoils = st.sampled_from(["flip", "drop", "add", "swap", "shorten", "index", "root"])


def spoiled(proof: list[bytes], how: str, data: st.DataObject) -> list[bytes]:
    """The proof, changed in one way; unchanged if that way does not apply."""
    proof = list(proof)
    if how == "add":
        proof.insert(data.draw(st.integers(0, len(proof))), data.draw(st.binary(min_size=32, max_size=32)))
    elif proof and how in ("flip", "drop", "shorten"):
        place = data.draw(st.integers(0, len(proof) - 1))
        part = proof.pop(place)
        if how == "flip":
            byte = data.draw(st.integers(0, 31))
            changed = part[byte] ^ data.draw(st.integers(1, 255))
            proof.insert(place, part[:byte] + bytes([changed]) + part[byte + 1 :])
        elif how == "shorten":
            proof.insert(place, part[:-1])
    elif how == "swap" and len(proof) > 1:
        place = data.draw(st.integers(0, len(proof) - 2))
        proof[place], proof[place + 1] = proof[place + 1], proof[place]
    return proof


@given(st.data(), sizes, spoils)
def test_a_forged_inclusion_proof_is_refused(data: st.DataObject, size: int, how: str) -> None:
    index = data.draw(st.integers(0, size - 1))
    honest = (index, TREE.inclusion(index, size), TREE.root(size))
    forged = (index, spoiled(honest[1], how, data), TREE.root(size))
    if how == "index":
        forged = (data.draw(st.integers(-2, SIZE)), *forged[1:])
    elif how == "root":
        forged = (*forged[:2], TREE.root(data.draw(st.integers(0, SIZE))))
    assume(forged != honest)
    assert not verify_inclusion(TREE_LEAVES[index], forged[0], size, *forged[1:])


@given(st.data(), sizes, spoils.filter(lambda how: how != "index"))
def test_a_forged_consistency_proof_is_refused(data: st.DataObject, new: int, how: str) -> None:
    old = data.draw(st.integers(1, new))
    honest = (TREE.root(old), TREE.root(new), TREE.consistency(old, new))
    forged = (*honest[:2], spoiled(honest[2], how, data))
    if how == "root":
        other = leaf_hash(b"another past")
        roots = st.sampled_from([(other, honest[1]), (honest[0], other), (honest[1], honest[0])])
        forged = (*data.draw(roots), honest[2])
    assume(forged != honest)
    assert not verify_consistency(old, new, *forged)


def forgeries(proof: list[bytes]) -> Iterator[list[bytes]]:
    """Every way to leave out, double, swap, cut or change one hash of a proof, and to add one."""
    for place, part in enumerate(proof):
        before, after = proof[:place], proof[place + 1 :]
        yield before + after
        yield [*before, part, part, *after]
        yield [*before, part[:-1], *after]
        yield [*before, bytes([part[0] ^ 1]) + part[1:], *after]
        yield [*before, part[:-1] + bytes([part[-1] ^ 0x80]), *after]
        if after and part != after[0]:
            yield [*before, after[0], part, *after[1:]]
    for other in (bytes(32), TREE_LEAVES[0], TREE.root()):
        yield [other, *proof]
        yield [*proof, other]


def test_of_a_hundred_thousand_forged_proofs_none_is_accepted() -> None:
    tried = 0
    for size in range(1, 73):
        root = TREE.root(size)
        for index in range(size):
            proof = TREE.inclusion(index, size)
            for forged in forgeries(proof):
                tried += 1
                assert not verify_inclusion(TREE_LEAVES[index], index, size, forged, root)
            for moved in (index - 1, index + 1, size):
                tried += 1
                assert not verify_inclusion(TREE_LEAVES[index], moved, size, proof, root)
    for new in range(2, 50):
        for old in range(1, new):
            proof = TREE.consistency(old, new)
            for forged in forgeries(proof):
                tried += 1
                assert not verify_consistency(old, new, TREE.root(old), TREE.root(new), forged)
            # The sizes are those of the signed heads, so a forger is left with the proof and the roots.
            for pair in ((old - 1, new), (old + 1, new), (old, new - 1), (old, new + 1), (new, old)):
                tried += 1
                assert not verify_consistency(old, new, *map(TREE.root, pair), proof)
    assert tried >= 100_000


def test_a_proof_for_a_tree_of_another_depth_is_refused() -> None:
    first, second = TREE_LEAVES[:2]
    assert verify_inclusion(second, 1, 2, [first], TREE.root(2))
    assert not verify_inclusion(second, 0, 1, [first], TREE.root(2))
    assert verify_inclusion(first, 0, 2, [second], TREE.root(2))
    assert not verify_inclusion(first, 0, 4, [second], TREE.root(2))
    proof = TREE.consistency(2, 4)
    assert verify_consistency(2, 4, TREE.root(2), TREE.root(4), proof)
    assert not verify_consistency(2, 8, TREE.root(2), TREE.root(4), proof)


def test_a_changed_past_has_no_proof() -> None:
    forked = grown([*TREE_LEAVES[:40], leaf_hash(b"rewritten"), *TREE_LEAVES[41:]])
    for old in range(41, SIZE):
        assert not verify_consistency(old, SIZE, TREE.root(old), forked.root(SIZE), forked.consistency(old, SIZE))


def test_a_tree_that_grew_from_nothing_needs_no_proof_but_the_empty_root() -> None:
    assert verify_consistency(0, 5, TREE.root(0), TREE.root(5), [])
    assert not verify_consistency(0, 5, TREE.root(1), TREE.root(5), [])
    assert not verify_consistency(0, 5, TREE.root(0), TREE.root(5), [TREE.root(1)])
    assert not verify_consistency(5, 3, TREE.root(5), TREE.root(3), [])


@pytest.mark.parametrize(
    "ask",
    [
        lambda: TREE.root(SIZE + 1),
        lambda: TREE.root(-1),
        lambda: TREE.inclusion(5, 5),
        lambda: TREE.inclusion(-1),
        lambda: TREE.consistency(6, 5),
        lambda: TREE.consistency(-1),
        lambda: Tree().append(b"short"),
    ],
)
def test_what_is_not_in_the_tree_cannot_be_asked_for(ask: Any) -> None:
    with pytest.raises(ValueError, match=r"leaf|leaves"):
        ask()
