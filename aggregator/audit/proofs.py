"""A few kB of one ledger, for a third person who is not to see the rest of it.

    proof = prove("north/ledger")                            # the newest statements of both directions
    proof = prove(folder, exchange="9f2c31", documents=True)  # one exchange, with what it carried
    Path("north.proof").write_bytes(proof.encode())

A proof file holds some lines of one party's ledger as they stand there, for each line the hashes that tie it
to the ledger's signed head, and that head. With the party's public key, from wherever one trusts it, `check`
shows of such a file:

- The party signed a ledger of that many lines, and the lines shown are those lines of it, unchanged.
- The sender of each statement signed it: study, round, and the digests of the document and of the arrays that
  went with it. As each statement names the one before it, its signature covers all earlier ones of that
  direction between the two as well.
- Where a receipt is shown, the receiver signed that it has that statement.
- Which key the party took for the other one's, under which approval.

A released model comes with such a file too; `origin` says what that one shows.

Two such files of the two parties, given to `reconcile`, show that both signed one history, up to the newest
statements shown and with no word changed.

It does not show that there is nothing else: later lines, other parties, another ledger under the same key. The
times are the writer's clock. Nor does it show that the documents are true, or that nothing left by another way.

What is not shown stays hidden: of all other lines the file holds hashes only, and every line has a salt, so
that not even a line that says "yes" or "11" can be guessed from its hash.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from models.canonical import canonical, parse
from models.errors import Malformed
from models.ledger import Record, Verifier
from models.ledger.disk import open_regular
from models.ledger.forms import count, many, one_of, optional, record, text
from models.ledger.keys import from_base64, to_base64
from models.ledger.vocabulary import DIGEST, NAME, VKEY

MAX_PROOF = 64 * 2**20
"""Bytes of the longest file that is read; documents may be in it."""

_ANY = text(r"[\s\S]*")
_HASHES = many(text("[A-Za-z0-9+/]{43}="))
_FORM = record(
    {
        "intramural": one_of("proof"),
        "v": one_of(1),
        "of": one_of("pair", "exchange", "model"),
        "study": DIGEST,
        "peer": NAME,
        "vkey": VKEY,
        "head": _ANY,
        "lines": many(record({"line": _ANY, "proof": _HASHES})),
        "earlier": many(record({"size": count(1), "proof": _HASHES})),
        "farewell": optional(_ANY),
        "documents": many(_ANY),
    }
)


@dataclass(frozen=True)
class Line:
    """One line, and what ties it to the head.

    Attributes:
        record: The line.
        proof: RFC 6962 inclusion proof under the head.
    """

    record: Record
    proof: tuple[bytes, ...]


@dataclass(frozen=True)
class Proof:
    """What stands in a proof file; nothing of it is checked yet.

    Attributes:
        of: A whole pair's newest statements, one exchange, or where a released model comes from.
        study: The study's digest.
        verifier: Key of the party whose ledger it is from.
        peer: Name of the other party; where a model comes from, there is none, and it is the party's own.
        head: The ledger's signed head.
        lines: The lines shown, in the ledger's order.
        earlier: RFC 6962 consistency proofs, by size, from the heads that went with the statements shown, and
            from the one that the other party cosigned at the end of the study.
        farewell: The other party's last signed head, if the study is over.
        documents: The documents of the lines shown, if they are given.
    """

    of: Literal["pair", "exchange", "model"]
    study: str
    verifier: Verifier
    peer: str
    head: str
    lines: tuple[Line, ...]
    earlier: Mapping[int, tuple[bytes, ...]]
    farewell: str | None = None
    documents: tuple[bytes, ...] = ()

    def encode(self) -> bytes:
        """The file: canonical JSON (RFC 8785) and a newline."""
        values: dict[str, Any] = {
            "intramural": "proof",
            "v": 1,
            "of": self.of,
            "study": self.study,
            "peer": self.peer,
            "vkey": self.verifier.vkey,
            "head": self.head,
            "lines": [{"line": line.record.line.decode(), "proof": _written(line.proof)} for line in self.lines],
            "earlier": [{"size": size, "proof": _written(proof)} for size, proof in self.earlier.items()],
            "farewell": self.farewell,
            "documents": [document.decode() for document in self.documents],
        }
        return canonical(values) + b"\n"

    @classmethod
    def decode(cls, content: bytes) -> Self:
        """Read a file.

        Raises:
            Malformed: It is no proof.
        """
        if len(content) > MAX_PROOF:
            raise Malformed(f"is longer than the {MAX_PROOF} bytes of the longest proof")
        try:
            values = parse(content.removesuffix(b"\n"))
            if not _FORM.valid(values) or not content.endswith(b"\n"):
                raise ValueError("is not of its form")
            return cls(
                of=values["of"],
                study=values["study"],
                verifier=Verifier.parse(values["vkey"]),
                peer=values["peer"],
                head=values["head"],
                lines=tuple(Line(Record.parse(v["line"].encode()), _read(v["proof"])) for v in values["lines"]),
                earlier={v["size"]: _read(v["proof"]) for v in values["earlier"]},
                farewell=values["farewell"],
                documents=tuple(v.encode() for v in values["documents"]),
            )
        except (ValueError, Malformed) as error:
            raise Malformed(
                f"is no proof file: {error}", "give a file that `intramural-audit prove` or a release made"
            ) from None


def load(path: Path) -> Proof:
    """Read a proof file.

    Raises:
        Malformed: It is none; the message names it.
    """
    try:
        with open_regular(path) as file:
            return Proof.decode(file.read(MAX_PROOF + 1))
    except Malformed as error:
        raise Malformed(f"{path}: {error}", error.hint) from None


def _written(hashes: Iterable[bytes]) -> list[str]:
    return [to_base64(part) for part in hashes]


def _read(hashes: Iterable[str]) -> tuple[bytes, ...]:
    return tuple(from_base64(part) for part in hashes)
