"""Hospitals as each other's witnesses: what was shown to one must have been shown to most.

Each answer of a hospital cosigns the head of the coordinator's ledger that came with the order. The next
orders carry those cosignatures, and a hospital works on only if most hospitals have cosigned a past that
holds everything it was shown itself. A coordinator that tells two groups of hospitals two histories thus
loses the smaller group at its next order, whatever else it signs.

    Testimony(roster, heads)        # what the coordinator has from the hospitals, sent with each order
    require(...)                    # or NotWitnessed

Who counts as a hospital is the coordinator's word, but signed, kept by every hospital, and never taken back:
a roster can only grow. After C2SP tlog-cosignature and tlog-witness, without machines for witnesses only.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from models.canonical import canonical, digest, parse
from models.errors import Malformed, NotWitnessed, Rewritten
from models.ledger import Checkpoint, Verifier, cosigners, verify_consistency

_MAX_ROSTER = 10_000
_MAX_HEADS = 128  # each of another size, and with a proof of its own in the message


@dataclass(frozen=True)
class Testimony:
    """What hospitals have seen of the coordinator's ledger.

    Attributes:
        roster: Keys (vkey) of every hospital that has followed an order of this study, sorted.
        heads: Signed heads with the hospitals' cosignatures below (C2SP notes), the newest first.
    """

    roster: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()

    @cached_property
    def encoded(self) -> bytes:
        """Canonical JSON (RFC 8785)."""
        return canonical({"roster": self.roster, "heads": self.heads})

    @cached_property
    def roster_document(self) -> bytes:
        """The roster alone, as a hospital keeps it."""
        return canonical(self.roster)

    @property
    def roster_digest(self) -> str:
        """What an order says of the roster: SHA-256 (hex) of its document."""
        return digest(self.roster_document)


@lru_cache(maxsize=8)  # in a simulation every hospital is shown the same bytes
def read_testimony(content: bytes) -> Testimony:
    """Read an encoded testimony.

    Raises:
        Malformed: It is none.
    """
    try:
        value = parse(content)
    except ValueError:
        value = None
    if not isinstance(value, dict) or value.keys() != {"roster", "heads"}:
        raise Malformed("the testimony of the witnesses cannot be read", detail="witnesses")
    for name, most in (("roster", _MAX_ROSTER), ("heads", _MAX_HEADS)):
        part = value[name]
        if not isinstance(part, list) or len(part) > most or not all(isinstance(item, str) for item in part):
            raise Malformed("the testimony of the witnesses cannot be read", detail="witnesses")
    return Testimony(tuple(value["roster"]), tuple(value["heads"]))


def read_roster(document: bytes) -> tuple[str, ...]:
    """The roster in a document that was kept."""
    return tuple(parse(document))


def head_size(note: str) -> int:
    """Number of lines that a head made here is of."""
    return int(note.split("\n", 2)[1])


def needed(roster: Collection[str], min_silos: int) -> int:
    """How many hospitals must have seen a past: more than half of all, and as many as a round needs."""
    return max(len(roster) // 2 + 1, min_silos)


def require(
    testimony: Testimony,
    coordinator: Verifier,
    head: Checkpoint,
    proofs: Mapping[int, tuple[bytes, ...]],
    *,
    silo: Verifier,
    since: int,
    before: Collection[str],
    min_silos: int,
) -> None:
    """See that most hospitals were shown what this one was shown.

    Args:
        testimony: What came with the order.
        coordinator: Whose ledger it is.
        head: The verified head that came with the order.
        proofs: RFC 6962 consistency proofs to it, by size of the earlier head.
        silo: This hospital. It knows what it saw itself, so its own cosignature need not be shown.
        since: Size of the head of the last order that this hospital followed.
        before: The roster that came with that order.
        min_silos: Updates that a round of this study needs.

    Raises:
        NotWitnessed: Too few hospitals have, or one is left out that counted before.
        Rewritten: Hospitals cosigned a past that is not this one.
        Malformed: A key or a head cannot be read.
        BadSignature: A head is not the coordinator's, or a cosignature not a hospital's.
    """
    if missing := set(before) - set(testimony.roster):
        raise NotWitnessed(f"the coordinator no longer names {len(missing)} of the hospitals that take part")
    roster = {*testimony.roster, silo.vkey}
    seen = {silo.name}
    for note in testimony.heads:
        earlier, names = _cosigned(note, testimony.roster, coordinator)
        path = list(proofs.get(earlier.size, ()))
        if earlier.origin != head.origin or not verify_consistency(
            earlier.size, head.size, earlier.root, head.root, path
        ):
            raise Rewritten(f"{len(names)} hospitals cosigned another past of {coordinator.name}'s ledger")
        if earlier.size >= since:
            seen |= names
    if len(seen) < (enough := needed(roster, min_silos)):
        raise NotWitnessed(
            f"{len(seen)} of {len(roster)} hospitals are known to have seen what was shown here, {enough} must have",
            "nothing is to be done here; if it stays so, ask the coordinator",
        )


@lru_cache(maxsize=64)  # in a simulation every hospital is shown the same heads
def _cosigned(note: str, roster: tuple[str, ...], coordinator: Verifier) -> tuple[Checkpoint, frozenset[str]]:
    """A cosigned head, and who cosigned it."""
    return Checkpoint.open(note, coordinator), cosigners(note, _keys(roster))


@lru_cache(maxsize=8)
def _keys(roster: tuple[str, ...]) -> tuple[Verifier, ...]:
    return tuple(Verifier.parse(vkey) for vkey in roster)
