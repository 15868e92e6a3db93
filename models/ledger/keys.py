"""Who speaks: a party's private key, its public half, and the files that hold them.

A party makes its key once. The private file never leaves the machine; the `.pub` file beside it holds
one line, the *vkey*, that the other parties enrol.

    signer = Signer.create(Path("keys/north.key"), "north")
    Verifier.parse(vkey).verify(data, signer.sign(data))     # or BadSignature

Formats: those of C2SP signed-note (Ed25519, type 0x01), as in the Go checksum database, so that a stranger
can check a signature with another program. Ed25519: RFC 8032.
"""

import base64
import hashlib
import hmac
import os
import re
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from models.errors import BadSignature, ConfigError, Malformed
from models.ledger import disk

_NAME = re.compile(r"[^\s+\x00-\x1f\ud800-\udfff]+")
_ED25519, _COSIGNER = b"\x01", b"\x04"
_SECRET = "PRIVATE+KEY+"  # noqa: S105 - the marker of the format, not a secret


@dataclass(frozen=True)
class Verifier:
    """A party's public key.

    Attributes:
        name: Who signs with it; no space and no plus.
        key: Ed25519 public key, 32 bytes.
    """

    name: str
    key: bytes

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise Malformed(f"key name {self.name!r}: must not be empty or hold a space or a plus")
        if len(self.key) != 32:
            raise Malformed(f"key of {self.name}: must have 32 bytes (got {len(self.key)})")

    @classmethod
    def parse(cls, vkey: str) -> Self:
        """Read a vkey, `<name>+<key id>+<base64(0x01 || public key)>`.

        Raises:
            Malformed: It is none, or its parts do not belong together.
        """
        try:
            name, key_id, encoded = vkey.split("+", 2)
            content = from_base64(encoded)
        except ValueError:
            raise Malformed("vkey: must read <name>+<8 hex digits>+<base64>") from None
        if content[:1] != _ED25519:
            raise Malformed(f"vkey of {name}: is not an Ed25519 key")
        verifier = cls(name, content[1:])
        if verifier.key_id.hex() != key_id:
            raise Malformed(f"vkey of {name}: its key id {key_id} is not that of its key")
        return verifier

    @cached_property
    def key_id(self) -> bytes:
        """Four bytes that name the key on a signature; a label, not a fingerprint."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.key).digest()[:4]

    @cached_property
    def cosigner_id(self) -> bytes:
        """Four bytes that name the key on a cosignature (C2SP tlog-cosignature, type 0x04)."""
        return hashlib.sha256(self.name.encode() + b"\n" + _COSIGNER + self.key).digest()[:4]

    @property
    def vkey(self) -> str:
        """The one line that others enrol."""
        return f"{self.name}+{self.key_id.hex()}+{to_base64(_ED25519 + self.key)}"

    def verify(self, data: bytes, signature: bytes) -> None:
        """Check a signature over exactly these bytes.

        Args:
            data: What was signed.
            signature: 64 bytes.

        Raises:
            BadSignature: This key did not sign these bytes.
        """
        try:
            require_signed(self.key, data, signature)
        except (InvalidSignature, ValueError):
            raise BadSignature(f"not signed by {self.name} (key {self.key_id.hex()})") from None


@lru_cache(maxsize=1024)  # what held once holds always, and a head is shown to many; a failure is not kept
def require_signed(key: bytes, data: bytes, signature: bytes) -> None:
    """Check a signature with a bare key; see `Verifier.verify`."""
    Ed25519PublicKey.from_public_bytes(key).verify(signature, data)


@dataclass(frozen=True)
class Signer:
    """A party's private key; whoever holds it can speak as this party.

    Attributes:
        name: Whose key it is; stands on every signature.
    """

    name: str
    _key: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def from_seed(cls, name: str, seed: bytes) -> Self:
        """A signer from the 32 secret bytes of RFC 8032.

        Raises:
            Malformed: An impossible name.
            ValueError: Not 32 bytes.
        """
        signer = cls(name, Ed25519PrivateKey.from_private_bytes(seed))
        _ = signer.verifier  # checks the name
        return signer

    @classmethod
    def create(cls, path: Path, name: str, seed: bytes | None = None) -> Self:
        """Make a key: the private file (mode 0600), and beside it the public `.pub` file with the vkey.

        Args:
            path: The private file.
            name: Whose key it is.
            seed: 32 secret bytes; drawn from the system by default. A seed that others know makes a key
                that is worth nothing, as for make-believe hospitals.

        Raises:
            ConfigError: An impossible name, a file that exists (a key is never overwritten), or one that
                cannot be written.
        """
        path = Path(path)
        public = path.with_suffix(".pub")
        if not is_name(name) or public == path:
            raise ConfigError(
                f"{path}: cannot be the key of {name!r}",
                "no space or plus in the name; do not end the file in .pub",
            )
        seed = os.urandom(32) if seed is None else seed
        signer = cls.from_seed(name, seed)
        secret = f"{_SECRET}{name}+{signer.verifier.key_id.hex()}+{to_base64(_ED25519 + seed)}\n"
        try:
            disk.create(path, secret.encode(), 0o600)
            try:
                disk.create(public, f"{signer.vkey}\n".encode())
            except OSError:
                path.unlink()  # half a pair would be in the way of the next try
                raise
        except OSError as error:
            raise ConfigError(
                f"{error.filename or path}: {error.strerror}",
                "choose a new file, as a key is never overwritten, in a folder that can be written",
            ) from error
        return signer

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a private key file.

        Raises:
            ConfigError: It is missing, others can read or change it, or it is no key.
        """
        path = Path(path)
        content = disk.read_private(path, "give the path of this party's private key")
        try:
            return cls._parse(content.decode())
        except (ValueError, Malformed):
            # Nothing of the content goes into the error, nor its cause: it may be most of a secret.
            raise ConfigError(f"{path}: is no private key", "restore the file, or make a new key") from None

    @classmethod
    def _parse(cls, text: str) -> Self:
        if not text.startswith(_SECRET):
            raise ValueError
        name, key_id, encoded = text.removeprefix(_SECRET).removesuffix("\n").split("+", 2)
        content = from_base64(encoded)
        signer = cls.from_seed(name, content[1:])
        if content[:1] != _ED25519 or signer.verifier.key_id.hex() != key_id:
            raise ValueError
        return signer

    @cached_property
    def verifier(self) -> Verifier:
        """The public half."""
        return Verifier(self.name, self._key.public_key().public_bytes_raw())

    @property
    def vkey(self) -> str:
        """The one line that others enrol."""
        return self.verifier.vkey

    def sign(self, data: bytes) -> bytes:
        """Sign exactly these bytes: 64 bytes, the same each time (Ed25519 is deterministic).

        What is signed for one purpose must not be readable as another: begin it with words of its own.
        """
        return self._key.sign(data)

    def derive(self, purpose: bytes) -> bytes:
        """32 secret bytes for one purpose (HMAC-SHA256 of it under the private key)."""
        return hmac.digest(self._key.private_bytes_raw(), purpose, "sha256")


def is_name(text: str) -> bool:
    """Can a key have this name? Not if it is empty or holds a space, a plus or a control character."""
    return _NAME.fullmatch(text) is not None


def to_base64(data: bytes) -> str:
    """RFC 4648 section 4, with padding."""
    return base64.b64encode(data).decode()


def from_base64(text: str) -> bytes:
    """The bytes of a base64 text.

    Raises:
        ValueError: It is none, or not the one that `to_base64` writes for these bytes.
    """
    data = base64.b64decode(text, validate=True)
    if to_base64(data) != text:
        raise ValueError("not canonical base64")
    return data
