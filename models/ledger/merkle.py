"""A tree of hashes over the lines of a ledger: one short value, the root, stands for all of them.

From the tree come two kinds of short proof, about 20 hashes for a million lines: that a line is in the
ledger (inclusion), and that today's ledger begins with yesterday's (consistency: nothing was removed or
changed). Whoever holds a root can check both without seeing any other line.

RFC 6962 section 2.1; the two `verify` functions are the algorithms of RFC 9162 sections 2.1.3.2 and
2.1.4.2. All hashes are SHA-256, 32 bytes.
"""

import hashlib
from collections.abc import Sequence


def leaf_hash(data: bytes) -> bytes:
    """Hash of one leaf, SHA256(0x00 || data): 32 bytes that no inner node can equal."""
    return hashlib.sha256(b"\x00" + data).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _split(width: int) -> int:
    """The largest power of two smaller than `width` (>= 2): where RFC 6962 divides a tree."""
    return 1 << ((width - 1).bit_length() - 1)


class Tree:
    """A growing Merkle tree. Appending costs one hash on average, a root or a proof a few per level."""

    def __init__(self) -> None:
        # _levels[k][i] is the root of leaves i * 2**k up to (i + 1) * 2**k; only full subtrees are kept.
        self._levels: list[list[bytes]] = [[]]

    @property
    def size(self) -> int:
        """Number of leaves."""
        return len(self._levels[0])

    def append(self, leaf: bytes) -> None:
        """Add a leaf.

        Args:
            leaf: Its `leaf_hash`, 32 bytes.
        """
        if len(leaf) != 32:
            raise ValueError(f"a leaf hash has 32 bytes (got {len(leaf)})")
        for level in self._levels:
            level.append(leaf)
            if len(level) % 2:
                return
            leaf = _node(level[-2], level[-1])
        self._levels.append([leaf])

    def root(self, size: int | None = None) -> bytes:
        """Root of the first `size` leaves; of all by default.

        Raises:
            ValueError: `size` is negative or beyond the tree.
        """
        size = self._within(size)
        return self._range(0, size) if size else hashlib.sha256(b"").digest()

    def inclusion(self, index: int, size: int | None = None) -> list[bytes]:
        """Proof that leaf `index` (from 0) is in the tree of the first `size` leaves.

        Raises:
            ValueError: There is no such leaf or no such size.
        """
        size = self._within(size)
        if not 0 <= index < size:
            raise ValueError(f"no leaf {index} among {size}")
        start, end = 0, size
        proof: list[bytes] = []
        while end - start > 1:
            middle = start + _split(end - start)
            if index < middle:
                proof.append(self._range(middle, end))
                end = middle
            else:
                proof.append(self._range(start, middle))
                start = middle
        return proof[::-1]

    def consistency(self, old: int, new: int | None = None) -> list[bytes]:
        """Proof that the tree of the first `new` leaves begins with the tree of the first `old`.

        It is empty for `old` = 0 and for `old` = `new`, where there is nothing to prove.

        Raises:
            ValueError: Not 0 <= old <= new <= size.
        """
        new = self._within(new)
        if not 0 <= old <= new:
            raise ValueError(f"no tree of {old} leaves within {new}")
        if old in (0, new):
            return []
        start, end = 0, new
        proof: list[bytes] = []
        while end != old:
            middle = start + _split(end - start)
            if old <= middle:
                proof.append(self._range(middle, end))
                end = middle
            else:
                proof.append(self._range(start, middle))
                start = middle
        if start:  # otherwise it is the old root itself, which the verifier has
            proof.append(self._range(start, end))
        return proof[::-1]

    def _within(self, size: int | None) -> int:
        if size is None:
            return self.size
        if not 0 <= size <= self.size:
            raise ValueError(f"no tree of {size} leaves within {self.size}")
        return size

    def _range(self, start: int, end: int) -> bytes:
        """Root of leaves start up to end; start is always a multiple of the subtree's width."""
        level = (end - start).bit_length() - 1
        if end - start == 1 << level:
            return self._levels[level][start >> level]
        middle = start + _split(end - start)
        return _node(self._range(start, middle), self._range(middle, end))


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Is `leaf` the leaf `index` (from 0) of the tree of `size` leaves with this root?

    Args:
        leaf: Its `leaf_hash`, 32 bytes.
        index: Its place, from 0.
        size: Number of leaves of the tree.
        proof: What `Tree.inclusion` gave.
        root: Root of the tree, 32 bytes.
    """
    if not 0 <= index < size or any(len(part) != 32 for part in (leaf, *proof)):
        return False
    place, last, value = index, size - 1, leaf
    for part in proof:
        if last == 0:
            return False
        if place & 1 or place == last:
            value = _node(part, value)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            value = _node(value, part)
        place, last = place >> 1, last >> 1
    return last == 0 and value == root


def verify_consistency(old_size: int, new_size: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Does the tree of `new_size` leaves begin with the tree of `old_size` leaves?

    Args:
        old_size: Number of leaves then.
        new_size: Number of leaves now.
        old_root: Root then, 32 bytes.
        new_root: Root now, 32 bytes.
        proof: What `Tree.consistency` gave.
    """
    if not 0 <= old_size <= new_size or any(len(part) != 32 for part in (old_root, new_root, *proof)):
        return False
    if old_size == 0:
        return not proof and old_root == Tree().root()
    if old_size == new_size:
        return not proof and old_root == new_root
    # A full old tree is a node of the new one, so the proof does not repeat its root.
    path = [old_root, *proof] if old_size & (old_size - 1) == 0 else list(proof)
    if not path:
        return False
    place, last = old_size - 1, new_size - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    old = new = path[0]
    for part in path[1:]:
        if last == 0:
            return False
        if place & 1 or place == last:
            old, new = _node(part, old), _node(part, new)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            new = _node(new, part)
        place, last = place >> 1, last >> 1
    return last == 0 and old == old_root and new == new_root
