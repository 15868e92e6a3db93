"""What a party stands by: signed notes, the signed head of a ledger, and what its witnesses sign below.

    note = Checkpoint(origin="north", size=3, root=root).sign(signer)
    head = Checkpoint.open(note, Verifier.parse(vkey))     # or BadSignature
    cosigned = add_cosignatures(note, [(witness.verifier, head.cosign(witness, now))])

Formats: C2SP signed-note, tlog-checkpoint and tlog-cosignature (cosignature/v1), as in the Go checksum
database and in certificate transparency, so that a stranger can check them with another program.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from models.errors import BadSignature, Malformed
from models.ledger.keys import Signer, Verifier, from_base64, is_name, to_base64

_FORBIDDEN = re.compile(r"[\x00-\x09\x0b-\x1f\ud800-\udfff]")
_SIZE = re.compile(r"0|[1-9][0-9]{0,14}")  # below 2**53: a number that a ledger line can hold

COSIGNATURE = 8 + 64
"""Bytes of a cosignature: its time (Unix seconds, big-endian), then Ed25519."""


def sign_note(text: str, signer: Signer) -> str:
    r"""Sign a text as a C2SP note.

    Args:
        text: Lines, each ended by `\n`, without other control characters.
        signer: Whose signature stands below.

    Raises:
        Malformed: The text cannot be a note's.
    """
    if not text.endswith("\n") or _FORBIDDEN.search(text):
        raise Malformed("note: the text must end in a newline and hold no other control character")
    signature = to_base64(signer.verifier.key_id + signer.sign(text.encode()))
    return f"{text}\n— {signer.name} {signature}\n"


def open_note(note: str, verifier: Verifier) -> str:
    """The text of a C2SP note, if this party signed it; signatures of other parties are passed over.

    Raises:
        Malformed: It is no note.
        BadSignature: This party did not sign it, or signed something else.
    """
    text, signatures = _parts(note)
    own = [content[4:] for name, content in signatures if (name, content[:4]) == (verifier.name, verifier.key_id)]
    for signature in own:
        verifier.verify(text.encode(), signature)
    if not own:
        raise BadSignature(f"note: not signed by {verifier.name} (key {verifier.key_id.hex()})")
    return text


def _parts(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    """The text of a note, and each signature line's name and bytes."""
    text, blank, signatures = note.rpartition("\n\n")
    lines = signatures.split("\n")
    if not blank or len(lines) < 2 or lines.pop() != "" or _FORBIDDEN.search(note):
        raise Malformed("note: must be a text, an empty line and signature lines")
    found = []
    for line in lines:
        dash, _, rest = line.partition(" ")
        name, _, encoded = rest.partition(" ")
        try:
            content = from_base64(encoded)
        except ValueError:
            content = b""
        if dash != "—" or not is_name(name) or len(content) < 5:
            raise Malformed("note: a signature line must read — <name> <base64>")
        found.append((name, content))
    return f"{text}\n", found


def add_cosignatures(note: str, cosignatures: Iterable[tuple[Verifier, bytes]]) -> str:
    """A signed checkpoint with a line below it for each witness (C2SP tlog-cosignature).

    Args:
        note: The signed checkpoint.
        cosignatures: Each witness's key, and what its `Checkpoint.cosign` gave.
    """
    lines = (f"— {key.name} {to_base64(key.cosigner_id + content)}\n" for key, content in cosignatures)
    return note + "".join(lines)


def cosigners(note: str, witnesses: Iterable[Verifier]) -> frozenset[str]:
    """Names of the witnesses that cosigned a checkpoint; lines of other parties are passed over.

    Args:
        note: A signed checkpoint; its own signature is not looked at here.
        witnesses: Keys of those whose word counts.

    Raises:
        Malformed: It is no note.
        BadSignature: A line is said to be a witness's, and is not.
    """
    text, signatures = _parts(note)
    known = {(witness.name, witness.cosigner_id): witness for witness in witnesses}
    found = [(known[name, content[:4]], content[4:]) for name, content in signatures if (name, content[:4]) in known]
    for witness, content in found:
        _verify_cosignature(text, witness, content)
    return frozenset(witness.name for witness, _ in found)


def _verify_cosignature(text: str, witness: Verifier, content: bytes) -> None:
    if len(content) != COSIGNATURE:
        raise BadSignature(f"not a cosignature of {witness.name}")
    witness.verify(_cosigned(text, int.from_bytes(content[:8], "big")), content[8:])


def _cosigned(text: str, time: int) -> bytes:
    return f"cosignature/v1\ntime {time}\n{text}".encode()


@dataclass(frozen=True)
class Checkpoint:
    """The head of a ledger: this many lines, with this root.

    Attributes:
        origin: The ledger's name, one line.
        size: Number of lines.
        root: Root of their Merkle tree, 32 bytes.
    """

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        if not self.origin or "\n" in self.origin or _FORBIDDEN.search(self.origin):
            raise Malformed(f"checkpoint: origin must be one line of text (got {self.origin!r})")
        if not _SIZE.fullmatch(str(self.size)) or len(self.root) != 32:
            raise Malformed("checkpoint: must have a size of 0 or more and a root of 32 bytes")

    def sign(self, signer: Signer) -> str:
        """As a signed note (C2SP tlog-checkpoint)."""
        return sign_note(self._text, signer)

    def cosign(self, witness: Signer, time: int) -> bytes:
        """A witness's word that it saw this head, and that it continues every one it saw before: 72 bytes.

        Args:
            witness: Whose word.
            time: When, in Unix seconds.
        """
        return time.to_bytes(8, "big") + witness.sign(_cosigned(self._text, time))

    def verify_cosignature(self, witness: Verifier, cosignature: bytes) -> None:
        """Check what `cosign` gave.

        Raises:
            BadSignature: This witness did not cosign this head.
        """
        _verify_cosignature(self._text, witness, cosignature)

    @property
    def _text(self) -> str:
        return f"{self.origin}\n{self.size}\n{to_base64(self.root)}\n"

    @classmethod
    def open(cls, note: str, verifier: Verifier) -> Self:
        """Read a signed checkpoint.

        Raises:
            Malformed: It is no checkpoint; extension lines are refused, since nothing here would read them.
            BadSignature: This party did not sign it.
        """
        lines = open_note(note, verifier).split("\n")
        try:
            origin, size, root, _ = lines
            decoded = from_base64(root)
        except ValueError:
            raise Malformed("checkpoint: must have three lines: origin, size, root") from None
        if not _SIZE.fullmatch(size):
            raise Malformed(f"checkpoint: size must be a plain number (got {size!r})")
        return cls(origin, int(size), decoded)
