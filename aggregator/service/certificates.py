"""The papers by which machines know each other: an authority, a certificate for the service, one per hospital.

The authority is the coordinator's own and vouches for this one service. Hospitals get its certificate with
the invitation and trust no other authority, so that nobody else's mistake can put a stranger between them
and the service. A hospital's private key never travels: it sends a request, and gets back a certificate that
says its name. Of a request nothing is taken over but the public key.

    authority = Authority.create("aggregator")
    server = issue_server(authority, key.public_key(), "aggregator", ["study.example.org", "203.0.113.7"])
    north = issue_client(authority, request, "north")        # PEM, to be sent back to the hospital

Certificates are X.509 version 3 after RFC 5280; keys are ECDSA on the NIST curves (FIPS 186-5).
"""

import datetime
import ipaddress
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from models.errors import BadSignature, ConfigError, Malformed

AUTHORITY_LIFETIME = datetime.timedelta(days=3652)
LIFETIME = datetime.timedelta(days=730)
"""Of the service's certificate and of each hospital's."""

_SLACK = datetime.timedelta(hours=1)  # hospitals' clocks may be late
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")  # RFC 1123 section 2.1
_HERE = ("localhost", "127.0.0.1")  # where Flower's own programs dial the SuperLink

Host = str | ipaddress.IPv4Address | ipaddress.IPv6Address
"""A DNS name in lower case, or an IP address."""


@dataclass(frozen=True)
class Authority:
    """The coordinator's own certificate authority.

    Attributes:
        certificate: What hospitals trust.
    """

    certificate: x509.Certificate
    _key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def create(cls, name: str) -> Self:
        """Make an authority for ten years, which may vouch for no other authority (path length 0).

        Args:
            name: The coordinator's.
        """
        key = ec.generate_private_key(ec.SECP384R1())
        subject = _subject("authority", name)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        now = _now()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SLACK)
            .not_valid_after(now + AUTHORITY_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(identifier, critical=False)
            .sign(key, hashes.SHA384())
        )
        return cls(certificate, key)

    @classmethod
    def load(cls, certificate: Path, key: Path) -> Self:
        """Read an authority.

        Raises:
            ConfigError: A file is missing or unreadable, the two do not belong together, or its time is over.
        """
        authority = cls(load_certificate(certificate), load_key(key))
        if authority.certificate.public_key() != authority._key.public_key():
            raise ConfigError(f"{key}: is not the key of {certificate.name}", "restore both files")
        if authority.certificate.not_valid_after_utc <= _now():
            raise ConfigError(
                f"{certificate}: the authority expired on {_day(authority.certificate)}",
                "make a new service folder, and send its invitation to every hospital",
            )
        return authority

    def key_pem(self) -> bytes:
        """The private key as PEM, in the clear."""
        return key_pem(self._key)

    def issue(
        self, key: ec.EllipticCurvePublicKey, subject: x509.Name, use: ObjectIdentifier, hosts: Sequence[Host] = ()
    ) -> bytes:
        """Sign a certificate of one use for two years, or as long as the authority itself has.

        Args:
            key: Whose certificate it is.
            subject: What it says of them.
            use: The one purpose (extended key usage) that it is good for.
            hosts: Where a server may present it.

        Returns:
            PEM.
        """
        now, issuer = _now(), self.certificate
        identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SLACK)
            .not_valid_after(min(now + LIFETIME, issuer.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        )
        if hosts:
            names = [x509.DNSName(host) if isinstance(host, str) else x509.IPAddress(host) for host in hosts]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return pem(builder.sign(self._key, hashes.SHA384()))


def issue_server(authority: Authority, key: ec.EllipticCurvePublicKey, name: str, hosts: Iterable[str | Host]) -> bytes:
    """Certify the service.

    Args:
        authority: Who vouches.
        key: The service's public key.
        name: The coordinator's name.
        hosts: DNS names and IP addresses by which it is dialled; this machine's own are added.

    Returns:
        PEM, good for a TLS server only.

    Raises:
        ConfigError: One of the hosts is no name or address.
    """
    known = dict.fromkeys(parse_host(str(host)) for host in (*hosts, *_HERE))
    return authority.issue(key, _subject("service", name), ExtendedKeyUsageOID.SERVER_AUTH, list(known))


def issue_client(authority: Authority, request: str | bytes, name: str) -> bytes:
    """Certify a hospital, whatever else its request says.

    Args:
        authority: Who vouches.
        request: Certificate request (RFC 2986), PEM. Only its public key is used.
        name: The hospital's, as the coordinator knows it; becomes the common name.

    Returns:
        PEM, good for a TLS client only.

    Raises:
        Malformed: It is no request, or its key is not on a NIST curve of at least 256 bits.
        BadSignature: Whoever made it does not hold the key.
    """
    return authority.issue(requested_key(request), _subject("hospital", name), ExtendedKeyUsageOID.CLIENT_AUTH)


def requested_key(request: str | bytes) -> ec.EllipticCurvePublicKey:
    """The public key that a certificate request asks a certificate for.

    Raises:
        Malformed: It is no request, or its key is not on a NIST curve of at least 256 bits.
        BadSignature: Whoever made it does not hold the key.
    """
    content = request.encode() if isinstance(request, str) else request
    try:
        asked = x509.load_pem_x509_csr(content)
        key, signed = asked.public_key(), asked.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature):
        raise Malformed("the certificate request cannot be read") from None  # the cause is the sender's words
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        raise Malformed("the certificate request is for a weak or unknown key; it must be ECDSA on P-256 or better")
    if not signed:
        raise BadSignature("the certificate request was not made by the holder of its key")
    return key


def check_server(certificate: Path, key: Path, authority: Path, host: str) -> None:
    """See that hospitals will accept the service.

    Args:
        certificate: What the service presents.
        key: Its private key.
        authority: The certificate that hospitals trust.
        host: The name or address that they dial.

    Raises:
        ConfigError: They will not, or a file cannot be read; says why.
    """
    hint = f"run: intramural-aggregator init {shlex.quote(str(certificate.parent))} --renew"
    shown, trusted = load_certificate(certificate), load_certificate(authority)
    if shown.public_key() != load_key(key).public_key():
        raise ConfigError(f"{certificate}: is not of the key in {key.name}", hint)
    try:
        shown.verify_directly_issued_by(trusted)
    except (ValueError, TypeError, InvalidSignature):
        raise ConfigError(f"{certificate}: was not issued by {authority.name}", hint) from None
    now = _now()
    if shown.not_valid_after_utc <= now:
        raise ConfigError(f"{certificate}: expired on {_day(shown)}", hint)
    if shown.not_valid_before_utc > now:
        raise ConfigError(
            f"{certificate}: is valid from {shown.not_valid_before_utc:%Y-%m-%d %H:%M}, and it is "
            f"{now:%Y-%m-%d %H:%M} (UTC)",
            "set this machine's clock",
        )
    if parse_host(host) not in hosts_of(shown):
        known = ", ".join(map(str, hosts_of(shown)))
        raise ConfigError(f"{certificate}: does not cover {host}, where hospitals dial (it covers {known})", hint)


def hosts_of(certificate: x509.Certificate) -> list[Host]:
    """The names and addresses (subject alternative names) that a certificate covers."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    hosts: list[Host] = [name.lower() for name in names.get_values_for_type(x509.DNSName)]
    for address in names.get_values_for_type(x509.IPAddress):
        if isinstance(address, ipaddress.IPv4Address | ipaddress.IPv6Address):
            hosts.append(address)
    return hosts


def parse_host(text: str) -> Host:
    """Read a DNS name (RFC 1123) or an IP address; IPv6 with or without its brackets.

    Raises:
        ConfigError: It is neither.
    """
    try:
        return ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        name = text.lower()
        labels = name.split(".")
        # A last label of digits would be a mistyped address.
        if len(name) > 253 or not all(map(_LABEL.fullmatch, labels)) or labels[-1].isdigit():
            raise ConfigError(
                f"{text!r}: is no DNS name and no IP address",
                "give the bare name or address, without scheme and port; letters outside ASCII in their xn-- form",
            ) from None
        return name


def new_key() -> ec.EllipticCurvePrivateKey:
    """A new key for a TLS server: ECDSA on P-256, the curve that makes the cheapest handshake."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as PEM (PKCS #8), in the clear."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def pem(certificate: x509.Certificate) -> bytes:
    """A certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM)


def load_certificate(path: Path) -> x509.Certificate:
    """Read a certificate.

    Raises:
        ConfigError: There is none.
    """
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError:
        raise ConfigError(f"{path}: is no PEM certificate", "restore the file") from None


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a private key.

    Raises:
        ConfigError: There is none; says nothing of the content, which may be most of a secret.
    """
    try:
        key = load_pem_private_key(_read(path), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{path}: is no PEM private key", "restore the file") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path}: is no ECDSA private key", "restore the file")
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", "restore the file") from error


def _subject(role: str, name: str) -> x509.Name:
    # The role keeps the names apart: a certificate that bears its issuer's name counts as self-issued.
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Intramural"),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _day(certificate: x509.Certificate) -> str:
    return f"{certificate.not_valid_after_utc:%Y-%m-%d}"
