"""The coordinator's certificates let the right machines talk, and no others."""

import datetime
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from socket import create_connection, create_server

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from aggregator.service import certificates
from aggregator.service.certificates import Authority, check_server, issue_client, issue_server, key_pem, new_key
from models.errors import BadSignature, ConfigError, Malformed

HOSTS = ["study.example.org", "192.0.2.7", "2001:db8::7"]


def request(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey, *more: x509.ExtensionType
) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody else")])
    )
    for extension in more:
        builder = builder.add_extension(extension, critical=True)
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, digest).public_bytes(Encoding.PEM).decode()


class Service:
    """A folder with an authority, a server, and a hospital's key and certificate."""

    def __init__(self, folder: Path, hosts: list[str]) -> None:
        self.folder, self.authority = folder, Authority.create("aggregator")
        server, client = new_key(), ec.generate_private_key(ec.SECP384R1())
        self.put("ca.crt", certificates.pem(self.authority.certificate))
        self.put("ca.key", self.authority.key_pem())
        self.put("server.key", key_pem(server))
        self.put("server.crt", issue_server(self.authority, server.public_key(), "aggregator", hosts))
        self.put("north.key", key_pem(client))
        self.put("north.crt", issue_client(self.authority, request(client), "north"))

    def put(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def handshake(self, host: str, present: str = "server", client: str | None = None) -> str:
        """Dial the service on loopback by the name `host`; the hospital's name as the service sees it."""
        listening = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        listening.load_cert_chain(self / f"{present}.crt", self / f"{present}.key")
        dialling = ssl.create_default_context(cafile=self / "ca.crt")
        dialling.verify_flags |= ssl.VERIFY_X509_STRICT
        if client is not None:
            listening.verify_mode = ssl.CERT_REQUIRED
            listening.load_verify_locations(self / "ca.crt")
            dialling.load_cert_chain(self / f"{client}.crt", self / f"{client}.key")
        seen: list[str] = []

        def serve() -> None:
            with suppress(OSError):
                connection, _ = server.accept()
                with connection, listening.wrap_socket(connection, server_side=True) as secured:
                    shown = secured.getpeercert(binary_form=True)
                    if shown:
                        subject = x509.load_der_x509_certificate(shown).subject
                        seen.append(str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value))
                    secured.sendall(b"hello")

        with create_server(("127.0.0.1", 0)) as server:
            server.settimeout(60)
            thread = threading.Thread(target=serve)
            thread.start()
            try:
                with (
                    create_connection(server.getsockname(), 60) as plain,
                    dialling.wrap_socket(plain, server_hostname=host) as secured,
                ):
                    if secured.recv(5) != b"hello":
                        raise ConnectionError("the service hung up")
            finally:
                thread.join()
        return "".join(seen)


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path, HOSTS)


@pytest.fixture
def years_pass(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock of the certificates forward, or back."""

    def forward(years: float) -> None:
        then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=365.25 * years)
        monkeypatch.setattr(certificates, "_now", lambda: then)

    return forward


@pytest.mark.parametrize("host", [*HOSTS, "localhost", "127.0.0.1"])
def test_hospitals_and_the_service_itself_can_dial_by_every_name_and_address(service: Service, host: str) -> None:
    service.handshake(host)


@pytest.mark.parametrize("host", ["example.org", "other.example.org", "192.0.2.8"])
def test_a_service_under_another_name_is_not_believed(service: Service, host: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        service.handshake(host)


def test_a_hospital_is_known_by_the_coordinators_name_for_it(service: Service) -> None:
    assert service.handshake("localhost", client="north") == "north"


def test_a_hospitals_certificate_is_no_servers_and_a_servers_no_hospitals(service: Service) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        service.handshake("north", present="north")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        service.handshake("localhost", client="server")


def test_another_authoritys_hospital_is_not_heard(service: Service) -> None:
    key = new_key()
    service.put("stranger.key", key_pem(key))
    service.put("stranger.crt", issue_client(Authority.create("aggregator"), request(key), "north"))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        service.handshake("localhost", client="stranger")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_accepts_both_chains_each_for_its_own_purpose(service: Service) -> None:
    def verify(name: str, purpose: str) -> bool:
        options = ["-x509_strict", "-purpose", purpose, "-CAfile", str(service / "ca.crt")]
        command = ["openssl", "verify", *options, str(service / name)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    assert verify("server.crt", "sslserver")
    assert verify("north.crt", "sslclient")
    assert not verify("server.crt", "sslclient")
    assert not verify("north.crt", "sslserver")


def test_the_authority_vouches_for_ten_years_and_for_no_other_authority(service: Service) -> None:
    certificate = service.authority.certificate
    limits = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert limits.critical
    assert limits.value == x509.BasicConstraints(ca=True, path_length=0)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert not usage.value.digital_signature
    assert (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days == 3652


def test_a_request_to_be_an_authority_gives_an_ordinary_certificate(service: Service) -> None:
    asked = request(
        new_key(),
        x509.BasicConstraints(ca=True, path_length=None),
        x509.SubjectAlternativeName([x509.DNSName("study.example.org")]),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
    )
    made = x509.load_pem_x509_certificate(issue_client(service.authority, asked, "north"))
    read = made.extensions.get_extension_for_class
    assert read(x509.BasicConstraints).value == x509.BasicConstraints(ca=False, path_length=None)
    assert not read(x509.KeyUsage).value.key_cert_sign
    assert list(read(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert certificates.hosts_of(made) == []
    assert "somebody else" not in made.subject.rfc4514_string()
    assert made.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "north"
    assert made.public_key() == x509.load_pem_x509_csr(asked.encode()).public_key()


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 1024),
        ec.generate_private_key(ec.SECP192R1()),
        ec.generate_private_key(ec.SECP256K1()),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=lambda key: type(key).__name__ + str(getattr(key, "key_size", "")),
)
def test_a_weak_or_unusual_key_is_not_certified(service: Service, key: ec.EllipticCurvePrivateKey) -> None:
    with pytest.raises(Malformed, match="P-256"):
        issue_client(service.authority, request(key), "north")


def test_a_request_for_a_key_that_its_maker_does_not_hold_is_refused(service: Service) -> None:
    mine, others = (x509.load_pem_x509_csr(request(new_key()).encode()) for _ in range(2))
    forged = others.tbs_certrequest_bytes
    der = mine.public_bytes(Encoding.DER).replace(mine.tbs_certrequest_bytes, forged)
    signed = x509.load_der_x509_csr(der).public_bytes(Encoding.PEM)
    with pytest.raises(BadSignature, match="holder"):
        issue_client(service.authority, signed, "north")


@pytest.mark.parametrize(
    "text", ["", "hello", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"]
)
def test_what_is_no_request_is_malformed(service: Service, text: str) -> None:
    with pytest.raises(Malformed, match="cannot be read"):
        issue_client(service.authority, text, "north")


def test_the_certificate_of_a_service_is_seen_through_before_hospitals_do(
    service: Service, years_pass: Callable[[float], None]
) -> None:
    paths = service / "server.crt", service / "server.key", service / "ca.crt"
    for host in HOSTS:
        check_server(*paths, host)
    with pytest.raises(
        ConfigError, match=r"server.crt: does not cover elsewhere.example.org.*study.example.org"
    ) as raised:
        check_server(*paths, "elsewhere.example.org")
    assert "--renew" in raised.value.hint
    with pytest.raises(ConfigError, match=r"is not of the key in north.key"):
        check_server(service / "server.crt", service / "north.key", service / "ca.crt", HOSTS[0])
    other = service.put("other.crt", certificates.pem(Authority.create("aggregator").certificate))
    with pytest.raises(ConfigError, match=r"was not issued by other.crt"):
        check_server(service / "server.crt", service / "server.key", other, HOSTS[0])
    years_pass(-1)
    with pytest.raises(ConfigError, match="is valid from") as raised:
        check_server(*paths, HOSTS[0])
    assert "clock" in raised.value.hint
    years_pass(2.1)
    with pytest.raises(ConfigError, match=r"server.crt: expired on 20\d\d-\d\d-\d\d") as raised:
        check_server(*paths, HOSTS[0])
    assert "--renew" in raised.value.hint


def test_a_certificate_never_outlives_the_authority(service: Service, years_pass: Callable[[float], None]) -> None:
    years_pass(9)
    late = x509.load_pem_x509_certificate(issue_server(service.authority, new_key().public_key(), "aggregator", HOSTS))
    assert late.not_valid_after_utc == service.authority.certificate.not_valid_after_utc
    years_pass(10.1)
    with pytest.raises(ConfigError, match="the authority expired"):
        Authority.load(service / "ca.crt", service / "ca.key")


def test_an_authority_is_read_with_its_own_key_only(service: Service) -> None:
    again = Authority.load(service / "ca.crt", service / "ca.key")
    assert again.certificate == service.authority.certificate
    with pytest.raises(ConfigError, match=r"server.key: is not the key of ca.crt"):
        Authority.load(service / "ca.crt", service / "server.key")


def test_an_error_about_a_private_key_says_nothing_of_its_content(service: Service) -> None:
    text = (service / "ca.key").read_text()
    damaged = service.put("ca.key", text.replace("PRIVATE KEY-----\n", "PRIVATE KEY-----\n!", 1).encode())
    with pytest.raises(ConfigError) as raised:
        Authority.load(service / "ca.crt", damaged)
    assert str(raised.value) == f"{damaged}: is no PEM private key"
    assert raised.value.__suppress_context__
    assert text.splitlines()[1] not in f"{raised.value!r} {raised.value.hint}"
    assert "key=" not in repr(service.authority)


@pytest.mark.parametrize(
    "text", ["", "https://study.example.org", "a b", "-a.org", "a..b", "300.1.1.1", "a" * 64, "münchen.de", "*.org"]
)
def test_what_is_no_host_is_named(service: Service, text: str) -> None:
    with pytest.raises(ConfigError, match="is no DNS name and no IP address"):
        issue_server(service.authority, new_key().public_key(), "aggregator", [text])
