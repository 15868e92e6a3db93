"""One exchange as one signed statement, countersigned by the one who received it.

A statement names study, round, sender and receiver, the document it covers and the digest of the
arrays that travel with it. Statements of one direction between two parties are numbered and chained
(`n`, `prev`): when the newest statement is the same in two ledgers, so is all that came before it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from models.canonical import canonical, digest, parse
from models.errors import Malformed
from models.ledger.vocabulary import STATEMENT

if TYPE_CHECKING:
    from models.exchange.encoding import Encoding
    from models.exchange.spec import Vector

GENESIS = "0" * 64
"""`prev` of the first statement of a chain."""

_FLOAT32 = 4  # bytes
_STATEMENT = b"intramural statement v1\n"
_RECEIPT = b"intramural receipt v1\n"


class Kind(StrEnum):
    """What a statement covers; the ledger's events are named after it."""

    ORDER = "order"
    UPDATE = "update"
    REPORT = "report"
    SURVEY = "survey"
    REFUSAL = "refusal"
    CLOSING = "closing"


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What the sender signs.

    Attributes:
        study: The study's digest.
        round: Its round, from 0.
        kind: What the document is.
        src: The sender's name.
        dst: The receiver's name.
        n: Counts this direction of this pair, from 1.
        prev: xid of statement n - 1; `GENESIS` for the first.
        answers: xid of the order that a reply answers, or None.
        body: SHA-256 of the document.
        payload: Digest of the arrays (`vector_digest` of a model, `update_digest` of an update); None if none travel.
        nbytes: Bytes of document and arrays together, in the study's encoding and before compression on the way.
        v: Version of this form, 1.

    Raises:
        Malformed: One of them is impossible.
    """

    study: str
    round: int
    kind: Kind
    src: str
    dst: str
    n: int
    prev: str
    answers: str | None
    body: str
    payload: str | None
    nbytes: int
    v: int = 1

    def __post_init__(self) -> None:
        if not STATEMENT.valid(self.values()):
            raise Malformed("is no valid statement")
        object.__setattr__(self, "kind", Kind(self.kind))

    def values(self) -> dict[str, Any]:
        """The JSON object that the statement is."""
        return {name: getattr(self, name) for name in _FIELDS}

    def encode(self) -> bytes:
        """Canonical JSON (RFC 8785)."""
        return canonical(self.values())

    @cached_property
    def xid(self) -> str:
        """The statement's identity: SHA-256 (hex) of its canonical JSON."""
        return digest(self.encode())

    @classmethod
    def parse(cls, values: Any) -> Self:
        """The statement in a ledger line.

        Args:
            values: JSON values; nothing is converted, so that what was signed is what was written.

        Raises:
            Malformed: They are no statement.
        """
        if not isinstance(values, dict) or values.keys() != _FIELDS.keys():
            raise Malformed("is no valid statement")
        return cls(**values)

    @classmethod
    def decode(cls, content: bytes) -> Self:
        """Read a statement.

        Raises:
            Malformed: Not a statement in canonical JSON.
        """
        try:
            values = parse(content)
        except ValueError as error:
            raise Malformed("is no valid statement in canonical form") from error
        return cls.parse(values)


_FIELDS = {item.name: item for item in fields(Statement)}


def signing_bytes(xid: str) -> bytes:
    """What the sender of a statement signs."""
    return _STATEMENT + bytes.fromhex(xid)


def receipt_bytes(xid: str) -> bytes:
    """What the receiver of a statement signs."""
    return _RECEIPT + bytes.fromhex(xid)


@dataclass(frozen=True)
class Evidence:
    """What accompanies a statement so that each side can check the other's past.

    Attributes:
        receipt: `(xid, signature)` over the newest statement received from the other side, or None.
        note: The sender's signed ledger head.
        proofs: RFC 6962 consistency proofs to the head in `note`, by size of the earlier head: one for
            each head that may be the newest one that the receiver saw (an answer can get lost).
        seen: Size of the receiver's head that the sender saw last.
        cosignature: The sender's word as a witness that it saw that head; empty if it saw none.
        testimony: An encoded `witness.Testimony` of the coordinator, or empty.
    """

    receipt: tuple[str, bytes] | None
    note: str
    proofs: Mapping[int, tuple[bytes, ...]]
    seen: int
    cosignature: bytes = b""
    testimony: bytes = b""


@dataclass(frozen=True)
class Envelope:
    """One message between two parties, whatever carries it.

    Attributes:
        statement: Canonical JSON of the `Statement`.
        signature: The sender's Ed25519 signature over `signing_bytes(xid)`.
        body: The document that the statement covers.
        evidence: Ledger heads and receipts.
        vector: The arrays, 1-D float32, or None.
        encoding: How the arrays are told, if not as they are.
    """

    statement: bytes
    signature: bytes
    body: bytes
    evidence: Evidence
    vector: "Vector | None" = None
    encoding: "Encoding | None" = None

    @property
    def nbytes(self) -> int:
        """Bytes of the document and the arrays, in their encoding."""
        return len(self.body) + arrays_nbytes(self.vector, self.encoding)


def arrays_nbytes(vector: "Vector | None", encoding: "Encoding | None") -> int:
    """Bytes of arrays in their encoding, before compression."""
    if vector is None:
        return 0
    return vector.size * _FLOAT32 if encoding is None else encoding.nbytes
