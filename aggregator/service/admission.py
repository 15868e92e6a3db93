"""Who takes part: hospitals are admitted from the file that they sent, and dismissed by name.

The file is public and comes from a stranger, so it is believed in nothing but what its own signature proves:
that whoever wrote it holds its keys. That this is the hospital it says, a telephone call proves: its fingerprint,
read out there, is the one given here. A service that runs notices by itself who came and who went.

    admit(home, Path("north.enrolment.json"), "3f2a-91c0-...")    # writes hospitals/north.crt and north.json
    dismiss(home, "north")                                        # moves both to hospitals/dismissed/

Flower keeps the key of a node that it was told to forget, and takes it no second time: whoever was dismissed comes back
with a new one.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)

from aggregator.service.certificates import issue_client, requested_key
from aggregator.service.home import Home, documents
from models.errors import BadSignature, ConfigError, Malformed, ProtocolError
from models.exchange.enrolment import Enrolment
from models.ledger import Verifier, disk

MAX_KIT = 64 * 1024
"""Bytes of an enrolment file; an honest one has about two thousand."""

_NODE_KEY = "ecdsa-sha2-nistp384 "  # RFC 5656; the one that Flower is given
_RENEWAL = timedelta(days=365)  # a hospital that is admitted again with less left gets a new certificate
_ASK = "ask the hospital for the enrolment file that `intramural-silo join` wrote, unchanged"


def admit(home: Home, kit: Path | str, fingerprint: str | None = None) -> Enrolment:
    """Let a hospital take part. To admit the same keys again changes nothing, but renews an old certificate.

    Args:
        home: The service folder.
        kit: The hospital's enrolment file.
        fingerprint: As the hospital reads it out; hyphens, spaces and case do not matter.

    Returns:
        The enrolment that is admitted.

    Raises:
        ConfigError: The file cannot be used, is not the one that the hospital reads out, its name or one of its
            keys is taken, or its node key was dismissed.
        BadSignature: It was changed after it was signed.
    """
    kit = Path(kit)
    enrolment = _read(kit)
    if fingerprint is not None and _bare(fingerprint) != _bare(enrolment.fingerprint):
        raise ConfigError(
            f"{kit}: has the fingerprint {enrolment.fingerprint}, and not {fingerprint}",
            "do not admit it: somebody may have changed the file on its way; ask the hospital to send it again",
        )
    if enrolment.name == home.settings.name:
        raise ConfigError(
            f"{kit}: name: {enrolment.name!r} is the coordinator's own", "ask the hospital to take another name"
        )
    with home.changing():
        others = home.hospitals()
        with _naming(kit):
            keys = _keys(enrolment)
        known = others.pop(enrolment.name, None)
        if known is not None and _keys(known) != keys:
            raise ConfigError(
                f"{kit}: name: {enrolment.name!r} is admitted with other keys",
                f"if the hospital confirms that it made new ones, dismiss {enrolment.name!r} first",
            )
        for name, other in others.items():
            if set(keys) & set(_keys(other)):
                raise ConfigError(
                    f"{kit}: has a key of {name!r}, which is admitted",
                    "every hospital makes keys of its own; ask both hospitals how one came to have the other's",
                )
        if known is None:
            _require_new_node(home, kit, enrolment)
        path = home.admitted / f"{enrolment.name}.crt"
        if not _lasts(path, home, enrolment):
            with _naming(kit):
                certificate = issue_client(home.authority, enrolment.request, enrolment.name)
            disk.publish(path, certificate)
        disk.publish(home.admitted / f"{enrolment.name}.json", enrolment.encode())
    return enrolment


def dismiss(home: Home, name: str) -> Path:
    """Let a hospital take part no more.

    Args:
        home: The service folder.
        name: The hospital's.

    Returns:
        Where its enrolment is kept.

    Raises:
        ConfigError: Nobody of that name is admitted.
    """
    home.forget_node(name)
    with home.changing():
        admitted = home.hospitals()
        if name not in admitted:
            raise ConfigError(
                f"{name!r}: no hospital of that name is admitted", f"admitted: {', '.join(admitted) or 'nobody'}"
            )
        archive = home.dismissed
        archive.mkdir(exist_ok=True)
        stem = f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
        # The enrolment goes last: if this is cut short, the hospital is still admitted and can be dismissed again.
        for suffix in (".crt", ".json"):
            path = home.admitted / f"{name}{suffix}"
            if path.exists():
                disk.rename(path, archive / f"{stem}{suffix}")
                disk.sync_folder(home.admitted)
        return archive / f"{stem}.json"


def _read(kit: Path) -> Enrolment:
    """A stranger's enrolment, signed by itself."""
    try:
        with kit.open("rb") as file:
            content = file.read(MAX_KIT + 1)
    except OSError as error:
        raise ConfigError(f"{kit}: {error.strerror}", "give the path of a hospital's enrolment file") from error
    if len(content) > MAX_KIT:
        raise ConfigError(f"{kit}: has more than {MAX_KIT} bytes, which no enrolment has", _ASK)
    with _naming(kit):
        enrolment = Enrolment.decode(content)
        if not enrolment.key.isprintable():  # an error that quotes it would reach the terminal
            raise Malformed("key: holds control characters")
        enrolment.verify()
    return enrolment


def _require_new_node(home: Home, kit: Path, enrolment: Enrolment) -> None:
    """Refuse a node key that was dismissed, by whatever name."""
    node = _encoded(_node_key(enrolment.node_key))
    for path, content in documents(home.dismissed):
        with _naming(path):
            dismissed = _encoded(_node_key(Enrolment.decode(content).node_key))
        if dismissed == node:
            raise ConfigError(
                f"{kit}: node_key: was dismissed ({path.name}), and Flower never takes one twice",
                "ask the hospital to delete node.key and node.pub in work/node, and work/"
                f"{enrolment.name}.enrolment.json, and to join again",
            )


def _keys(enrolment: Enrolment) -> tuple[bytes, bytes, bytes]:
    """What tells a hospital from every other: its keys for signing, for Flower, and for TLS."""
    node, client = _node_key(enrolment.node_key), requested_key(enrolment.request)
    return Verifier.parse(enrolment.key).key, _encoded(node), _encoded(client)


def _node_key(text: str) -> ec.EllipticCurvePublicKey:
    """The key of a Flower node.

    Raises:
        Malformed: It is no OpenSSH public key on NIST P-384.
    """
    try:
        plain = text.startswith(_NODE_KEY) and text.removesuffix("\n").isprintable()
        key = load_ssh_public_key(text.encode()) if plain else None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Malformed("node_key: is no OpenSSH public key of the type ecdsa-sha2-nistp384")
    return key


def _lasts(path: Path, home: Home, enrolment: Enrolment) -> bool:
    """Whether a hospital's certificate is there, is for its key, and need not be renewed yet."""
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        certificate.verify_directly_issued_by(home.authority.certificate)
    except (OSError, ValueError, TypeError, InvalidSignature):
        return False
    fresh = certificate.not_valid_after_utc - datetime.now(UTC) > _RENEWAL
    return fresh and certificate.public_key() == requested_key(enrolment.request)


def _encoded(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _bare(fingerprint: str) -> str:
    return re.sub(r"[\s-]", "", fingerprint).lower()


@contextmanager
def _naming(kit: Path) -> Iterator[None]:
    """Say of which file an error is, and what to do."""
    try:
        yield
    except BadSignature as error:
        raise BadSignature(f"{kit}: {error}", _ASK) from error
    except ProtocolError as error:
        raise ConfigError(f"{kit}: {error}", _ASK) from error
