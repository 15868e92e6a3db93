"""How two parties that never met become known to each other: two public files, carried by hand or by mail.

The coordinator gives every hospital its *invitation*: where it is, which certificates to trust, and the key
that signs its studies. A hospital answers with its *enrolment*: its name and its public keys, signed by
itself. Neither holds a secret. Each side reads the other's fingerprint out over the telephone; from then on
nobody has to believe whoever carried the files.
"""

from typing import Annotated, Self

from pydantic import Field

from models.canonical import canonical, digest
from models.errors import BadSignature, Malformed
from models.exchange.documents import Document
from models.ledger import Signer, Verifier
from models.plan import Name

_ENROLMENT = b"intramural enrolment v1\n"

Address = Annotated[str, Field(pattern=r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$")]
"""Host and port, as `study.example.org:8443`."""


def fingerprint(content: bytes) -> str:
    """128 bits of the SHA-256, in groups of four to be read out: `3f2a-...`."""
    text = digest(content)[:32]
    return "-".join(text[start : start + 4] for start in range(0, 32, 4))


class Public(Document):
    """A public file that is compared by its fingerprint."""

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the whole file."""
        return fingerprint(self.encode())


class Invitation(Public):
    """A coordinator, as hospitals need to know it."""

    name: Name  # signs the orders
    key: str  # vkey of the coordinator, which every study of its names
    address: Address  # where its service listens
    certificates: Annotated[
        str, Field(max_length=65_536)
    ]  # PEM; the authorities that its service's certificate comes from


class Enrolment(Public):
    """A hospital that wants to take part."""

    name: Name
    key: str  # vkey of the hospital, which signs all that leaves it
    node_key: Annotated[str, Field(max_length=1024)]  # OpenSSH public key (ECDSA, NIST P-384) of its Flower SuperNode
    request: Annotated[str, Field(max_length=8192)]  # PEM certificate request (RFC 2986) of its TLS client key
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]  # by `key`, over all the rest

    @classmethod
    def sign(cls, signer: Signer, node_key: str, request: str) -> Self:
        """Make the enrolment of the hospital that holds `signer`."""
        draft = cls(name=signer.name, key=signer.vkey, node_key=node_key, request=request, signature="0" * 128)
        return draft.model_copy(update={"signature": signer.sign(draft._signed()).hex()})

    def verify(self) -> Verifier:
        """Check that the hospital that holds the key wrote this.

        Returns:
            The hospital's public key.

        Raises:
            Malformed: The key is none, or another party's.
            BadSignature: Something was changed since it was signed.
        """
        verifier = Verifier.parse(self.key)
        if verifier.name != self.name:
            raise Malformed(f"the enrolment is of {self.name!r}, its key of {verifier.name!r}")
        try:
            verifier.verify(self._signed(), bytes.fromhex(self.signature))
        except BadSignature:
            raise BadSignature(f"the enrolment of {self.name!r} was changed after it was signed") from None
        return verifier

    def _signed(self) -> bytes:
        return _ENROLMENT + canonical(self.model_dump(mode="json", exclude={"signature"}))
