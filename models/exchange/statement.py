"""One exchange as one signed statement, countersigned by the one who received it.

A statement names study, round, sender and receiver, the document it covers and the digest of the
arrays that travel with it. Statements of one direction between two parties are numbered and chained
(`n`, `prev`): when the newest statement is the same in two ledgers, so is all that came before it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, ValidationError

from models.errors import Malformed
from models.exchange.documents import Digest
from models.exchange.spec import Vector
from models.ledger.canonical import canonical, digest
from models.plan import Name
from models.settings import Settings

GENESIS = "0" * 64
"""`prev` of the first statement of a chain."""

_STATEMENT = b"intramural statement v1\n"
_RECEIPT = b"intramural receipt v1\n"


class Kind(StrEnum):
    """What a statement covers; the ledger's events are named after it."""

    ORDER = "order"
    UPDATE = "update"
    REPORT = "report"
    REFUSAL = "refusal"
    CLOSING = "closing"


class Statement(Settings):
    """What the sender signs."""

    v: Literal[1] = 1
    study: Digest
    round: Annotated[int, Field(ge=0)]
    kind: Kind
    src: Name
    dst: Name
    n: Annotated[int, Field(ge=1)]  # counts this direction of this pair, from 1
    prev: Digest  # xid of statement n - 1
    answers: Digest | None  # xid of the order that a reply answers
    body: Digest  # SHA-256 of the document
    payload: Digest | None  # vector digest of the arrays, if any travel
    nbytes: Annotated[int, Field(ge=0)]  # document and arrays together

    def encode(self) -> bytes:
        """Canonical JSON (RFC 8785)."""
        return canonical(self.model_dump(mode="json"))

    @property
    def xid(self) -> str:
        """The statement's identity: SHA-256 (hex) of its canonical JSON."""
        return digest(self.encode())

    @classmethod
    def decode(cls, content: bytes) -> Self:
        """Read a statement.

        Raises:
            Malformed: Not a statement in canonical JSON.
        """
        try:
            statement = cls.model_validate(json.loads(content))
            written = statement.encode()
        except (ValidationError, ValueError, RecursionError) as error:
            raise Malformed("is no valid statement") from error
        if written != content:
            raise Malformed("is a statement, but not in canonical form")
        return statement


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
    """

    receipt: tuple[str, bytes] | None
    note: str
    proofs: Mapping[int, tuple[bytes, ...]]
    seen: int


@dataclass(frozen=True)
class Envelope:
    """One message between two parties, whatever carries it.

    Attributes:
        statement: Canonical JSON of the `Statement`.
        signature: The sender's Ed25519 signature over `signing_bytes(xid)`.
        body: The document that the statement covers.
        evidence: Ledger heads and receipts.
        vector: The arrays, 1-D float32, or None.
    """

    statement: bytes
    signature: bytes
    body: bytes
    evidence: Evidence
    vector: Vector | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the document and the arrays."""
        return len(self.body) + (0 if self.vector is None else self.vector.size * np.dtype(np.float32).itemsize)
