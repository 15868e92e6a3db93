"""How a hospital introduces itself: its keys, made here once, and the public file that names them.

    enrolment = join(site)          # makes what is missing; run again it makes and changes nothing
    invitation(site)                # the coordinator, as its own public file describes it

`join` writes `NAME.enrolment.json` into the work folder: the hospital's name and public keys, signed by
itself. That file goes to the coordinator; every private key stays in a file that only its owner can read,
on the machine where it was made.
"""

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from cryptography.x509.oid import NameOID

from models.errors import ConfigError, Malformed, ProtocolError
from models.exchange.enrolment import Enrolment, Invitation
from models.ledger import Checkpoint, Signer, Verifier, disk
from silos.config import Site
from silos.keys import load_signer

_LARGEST = 2**20  # bytes of any file read here


@dataclass(frozen=True)
class NodeFiles:
    """Where a hospital's network keys lie.

    Attributes:
        node_key: Private key of its Flower SuperNode (ECDSA on NIST P-384, OpenSSH PEM, mode 0600).
        node_public: The public half, one OpenSSH line.
        client_key: Private key of its TLS client certificate (ECDSA on NIST P-384, PKCS #8 PEM, mode 0600).
        request: The certificate request for it (RFC 2986, PEM).
        enrolment: The public file for the coordinator.
    """

    node_key: Path
    node_public: Path
    client_key: Path
    request: Path
    enrolment: Path


def node_files(site: Site) -> NodeFiles:
    """The paths, whether or not `join` has made the files yet."""
    folder = site.run.work / "node"
    return NodeFiles(
        node_key=folder / "node.key",
        node_public=folder / "node.pub",
        client_key=folder / "client.key",
        request=folder / "client.csr",
        enrolment=site.run.work / f"{site.name}.enrolment.json",
    )


def join(site: Site) -> Enrolment:
    """Make the keys that are missing, and write the enrolment.

    A lost public half is written again from its private one. A lost private key is never replaced in
    silence: the coordinator knows the old one.

    Args:
        site: The hospital.

    Returns:
        What stands in `node_files(site).enrolment`, the same each time.

    Raises:
        ConfigError: Others can read a private key, a private key is lost, files do not belong together, the ledger is
            of another key, or they cannot be written.
    """
    files = node_files(site)
    try:
        for folder in (site.key.parent, site.run.work, files.node_key.parent):
            disk.make_folder(folder, 0o700)
        before = read_enrolment(site)
        signer = _signer(site)
        _require_own_ledger(site, signer.verifier)
        node, client = _node_key(files), _client_key(files)
        request = _request(site, files, client, before)
        enrolment = Enrolment.sign(signer, public_line(node), request.public_bytes(Encoding.PEM).decode())
        if before is None:
            disk.publish(files.enrolment, enrolment.encode() + b"\n")
        elif before != enrolment:
            raise ConfigError(
                f"{files.enrolment}: names other keys than this hospital has now",
                "restore the old keys; or delete this file, join again and have the coordinator admit the new keys",
            )
    except OSError as error:
        raise ConfigError(
            f"{error.filename or files.node_key.parent}: {error.strerror}", "correct the permissions of run.work"
        ) from error
    return enrolment


def invitation(site: Site) -> Invitation:
    """The coordinator that this hospital follows.

    Raises:
        ConfigError: None is named, or its file is missing or none.
    """
    path = site.run.coordinator
    hint = "put the coordinator's coordinator.json beside site.toml"
    if path is None:
        raise ConfigError("run.coordinator: is missing", f'{hint} and write coordinator = "coordinator.json" in [run]')
    try:
        found = Invitation.decode(_read(path))
        if Verifier.parse(found.key).name != found.name:
            raise Malformed("its key is of another name")
        if not x509.load_pem_x509_certificates(found.certificates.encode()):
            raise ValueError
    except OSError as error:
        raise ConfigError(f"run.coordinator: {path}: {error.strerror}", hint) from error
    except Malformed as error:
        raise ConfigError(f"run.coordinator: {path}: {error}", "ask the coordinator for the file again") from error
    except ValueError as error:
        raise ConfigError(
            f"run.coordinator: {path}: holds no certificate", "ask the coordinator for the file again"
        ) from error
    return found


def read_enrolment(site: Site) -> Enrolment | None:
    """The enrolment that `join` wrote; None if it has not yet.

    Raises:
        ConfigError: The file is no enrolment.
    """
    path = node_files(site).enrolment
    if not path.exists():
        return None
    try:
        return Enrolment.decode(_read(path))
    except Malformed as error:
        raise ConfigError(f"{path}: {error}", "delete it and join again") from error


def load_node_key(site: Site) -> ec.EllipticCurvePrivateKey:
    """The SuperNode's private key.

    Raises:
        ConfigError: It is missing, others can read it, or it is none.
    """
    return _load(node_files(site).node_key)


def public_line(key: ec.EllipticCurvePrivateKey) -> str:
    """The public half of a SuperNode's key as OpenSSH writes it, without a comment."""
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def load_client_key(site: Site) -> ec.EllipticCurvePrivateKey:
    """The private key of the TLS client certificate.

    Raises:
        ConfigError: It is missing, others can read it, or it is none.
    """
    return _load(node_files(site).client_key)


def _signer(site: Site) -> Signer:
    """The key that signs what leaves this hospital, made if neither half is there."""
    public = site.key.with_suffix(".pub")
    if not site.key.exists():
        _refuse_orphan(site.key, public)
        return Signer.create(site.key, site.name)
    signer = load_signer(site)
    _mend(public, f"{signer.vkey}\n".encode(), site.key)
    return signer


def _require_own_ledger(site: Site, key: Verifier) -> None:
    """See that the ledger can be gone on with; of a key that was replaced, it could not be told from a forged one."""
    path = site.ledger / "checkpoint"
    if not path.exists():
        return
    try:
        Checkpoint.open(path.read_text(), key)
    except ProtocolError as error:
        raise ConfigError(
            f"run.work: {site.ledger}: is not signed with {site.key}",
            "restore the key that signed it; or move the folder away (keep it: it is the evidence of that key) and "
            "join again",
        ) from error


def _node_key(files: NodeFiles) -> ec.EllipticCurvePrivateKey:
    if not files.node_key.exists():
        _refuse_orphan(files.node_key, files.node_public)
        _make(files.node_key, PrivateFormat.OpenSSH)
    key = _load(files.node_key)
    _mend(files.node_public, f"{public_line(key)}\n".encode(), files.node_key)
    return key


def _client_key(files: NodeFiles) -> ec.EllipticCurvePrivateKey:
    if not files.client_key.exists():
        _refuse_orphan(files.client_key, files.request)
        _make(files.client_key, PrivateFormat.PKCS8)
    return _load(files.client_key)


def _request(
    site: Site, files: NodeFiles, key: ec.EllipticCurvePrivateKey, before: Enrolment | None
) -> x509.CertificateSigningRequest:
    """The certificate request: the one on disk, else the one already enrolled, else a new one."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site.name)])
    if files.request.exists():
        request = _parse_request(_read(files.request))
        if request is None or request.public_key() != key.public_key() or request.subject != subject:
            raise ConfigError(
                f"{files.request}: is no certificate request of {site.name!r} for {files.client_key.name}",
                "delete it and join again",
            )
        return request
    # A second request for the same key would have another signature, and so would the enrolment.
    request = _parse_request(before.request.encode()) if before else None
    if request is None or request.public_key() != key.public_key():
        request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA384())
    disk.create(files.request, request.public_bytes(Encoding.PEM))
    return request


def _parse_request(content: bytes) -> x509.CertificateSigningRequest | None:
    try:
        return x509.load_pem_x509_csr(content)
    except ValueError:
        return None


def _refuse_orphan(private: Path, public: Path) -> None:
    if public.exists():
        raise ConfigError(
            f"{private}: is missing, but {public} is there",
            f"restore the private key; or delete {public.name} and join again with a new one",
        )


def _mend(public: Path, content: bytes, private: Path) -> None:
    if not public.exists():
        disk.create(public, content)
    elif _read(public).split() != content.split():
        raise ConfigError(f"{public}: is not the public half of {private}", f"delete {public.name} and join again")


def _make(path: Path, form: PrivateFormat) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    disk.create(path, key.private_bytes(Encoding.PEM, form, NoEncryption()), 0o600)


def _load(path: Path) -> ec.EllipticCurvePrivateKey:
    content = disk.read_private(path, "run: intramural-silo join SITE.toml")
    read = load_ssh_private_key if b"OPENSSH" in content[:64] else load_pem_private_key
    try:
        key = read(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        # Nothing of the content goes into the error, nor its cause: it may be most of a secret.
        raise ConfigError(f"{path}: is no ECDSA key on P-384", "restore the file, or delete the pair and join again")
    return key


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_LARGEST)
