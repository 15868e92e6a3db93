"""A few kB of one ledger, for a third person who is not to see the rest of it.

    proof = prove("hospitals/north/work/ledger")              # the newest statements of both directions
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

from aggregator.audit.lines import NAMING, offered, received, require_readable, statement
from aggregator.audit.lines import documents as documents_of
from models.errors import ConfigError, Malformed
from models.ledger import Event, Opened, Record, Verifier, read
from models.ledger.canonical import canonical, parse
from models.ledger.forms import count, many, one_of, record, text
from models.ledger.keys import from_base64, to_base64
from models.ledger.vocabulary import DIGEST, NAME, VKEY

MAX_PROOF = 64 * 2**20
"""Bytes of the longest file that is read; documents may be in it."""

_TITLES = {Event.STUDY_CREATED, Event.STUDY_APPROVED}
_ANY = text(r"[\s\S]*")
_HASHES = many(text("[A-Za-z0-9+/]{43}="))
_FORM = record(
    {
        "intramural": one_of("proof"),
        "v": one_of(1),
        "of": one_of("pair", "exchange"),
        "study": DIGEST,
        "peer": NAME,
        "vkey": VKEY,
        "head": _ANY,
        "lines": many(record({"line": _ANY, "proof": _HASHES})),
        "earlier": many(record({"size": count(1), "proof": _HASHES})),
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
        of: A whole pair's newest statements, or one exchange.
        study: The study's digest.
        verifier: Key of the party whose ledger it is from.
        peer: Name of the other party.
        head: The ledger's signed head.
        lines: The lines shown, in the ledger's order.
        earlier: RFC 6962 consistency proofs, by size, from the heads that went with the statements shown.
        documents: The documents of the lines shown, if they are given.
    """

    of: Literal["pair", "exchange"]
    study: str
    verifier: Verifier
    peer: str
    head: str
    lines: tuple[Line, ...]
    earlier: Mapping[int, tuple[bytes, ...]]
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
                documents=tuple(v.encode() for v in values["documents"]),
            )
        except (ValueError, Malformed) as error:
            raise Malformed(f"is no proof file: {error}", "give a file that `intramural-audit prove` made") from None


def load(path: Path) -> Proof:
    """Read a proof file.

    Raises:
        Malformed: It is none; the message names it.
    """
    try:
        return Proof.decode(path.read_bytes())
    except Malformed as error:
        raise Malformed(f"{path}: {error}", error.hint) from None


def prove(
    folder: Path | str,
    study: str | None = None,
    peer: str | None = None,
    exchange: str | None = None,
    documents: bool = False,
) -> Proof:
    """Take from a ledger what a third person needs to know.

    Args:
        folder: The ledger's folder.
        study: The study's digest, the beginning of it, or its name; needed if the ledger knows of several.
        peer: The other party; needed if the ledger knows of several in the study.
        exchange: xid of one statement, or the beginning of it. Without it, the newest statements of both
            directions between the two parties, and those that are still unacknowledged.
        documents: Whether to give the documents that the lines shown name: orders, manifests, agreements.

    Raises:
        ConfigError: There is no such study, party or exchange, or more than one.
        LedgerError: The ledger is not what was signed, or a line says what no line can say.
    """
    opened = read(folder)
    require_readable(opened)
    study = _chosen(folder, "study", study, _studies(opened))
    parties = _parties(opened, study, exchange or "")
    if exchange and not parties:
        raise ConfigError(f"{folder}: has no exchange {exchange}", "`intramural-audit show` prints those it has")
    peer = _chosen(folder, "peer", peer, parties)
    sent, got = offered(opened.records, study, peer), received(opened.records, study, peer)
    receipts = {r.body["xid"]: r for r in opened.records if r.event == Event.EXCHANGE_RECEIPT and r.body["xid"] in sent}
    tail: list[Record] = []
    if exchange:
        xid = _chosen(folder, "exchange", exchange, {x: x for x in [*sent, *got] if x.startswith(exchange)})
        shown = [side[xid] for side in (sent, receipts, got) if xid in side]
    else:
        first = max((place for place, xid in enumerate(sent) if xid in receipts), default=0)
        tail = list(sent.values())[first:]
        shown = [*tail, *[receipts[xid] for xid in list(sent)[first:] if xid in receipts], *list(got.values())[-1:]]
    shown += [r for r in opened.records if r.study == study and r.event in NAMING and _named(r) == peer][:1]
    shown.sort(key=lambda line: line.seq)
    size, tree = opened.head.size, opened.tree
    return Proof(
        of="exchange" if exchange else "pair",
        study=study,
        verifier=opened.verifier,
        peer=peer,
        head=opened.note,
        lines=tuple(Line(r, tuple(tree.inclusion(r.seq, size))) for r in shown),
        # The head that goes with a statement is the one that its own line makes.
        earlier={r.seq + 1: tuple(tree.consistency(r.seq + 1, size)) for r in tail},
        documents=_documents(opened, shown) if documents else (),
    )


def _studies(opened: Opened) -> dict[str, str]:
    """The studies in which something was exchanged, with their names as far as the ledger has them."""
    exchanged = {str(r.study): str(r.study) for r in opened.records if "statement" in r.body}
    names = {str(r.study): str(r.body["name"]) for r in opened.records if r.event in _TITLES}
    return exchanged | {study: name for study, name in names.items() if study in exchanged}


def _parties(opened: Opened, study: str, exchange: str) -> dict[str, str]:
    """The other parties of the statements of a study whose xid begins so."""
    found = [statement(r) for r in opened.records if r.study == study and "statement" in r.body]
    names = {name for s in found if s.xid.startswith(exchange) for name in (s.src, s.dst)}
    return {name: name for name in names - {opened.verifier.name}}


def _chosen(folder: Path | str, what: str, asked: str | None, known: Mapping[str, str]) -> str:
    """The one that is asked for, by its name or by the beginning of its digest."""
    found = [key for key, name in known.items() if asked in (None, name) or key.startswith(str(asked))]
    exact = [key for key in found if asked in (key, known[key])]
    if len(found) != 1 and len(exact) != 1:
        names = ", ".join(sorted(name[:16] for name in known.values())) or "none"
        which = "several" if found else "none"
        raise ConfigError(f"{folder}: {what} {asked or ''}: the ledger has {which} of that", f"it has: {names}")
    return (exact or found)[0]


def _named(record: Record) -> str:
    return str(record.body[NAMING[record.event][0]])


def _documents(opened: Opened, shown: Iterable[Record]) -> tuple[bytes, ...]:
    found = tuple(opened.manifest(name) for name in dict.fromkeys(n for r in shown for n in documents_of(r)))
    for content in found:
        try:
            content.decode()
        except UnicodeDecodeError:
            raise ConfigError("a document of this exchange is no text", "make the file without documents") from None
    return found


def _written(hashes: Iterable[bytes]) -> list[str]:
    return [to_base64(part) for part in hashes]


def _read(hashes: Iterable[str]) -> tuple[bytes, ...]:
    return tuple(from_base64(part) for part in hashes)
