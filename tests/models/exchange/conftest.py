"""A study server that only listens: certificates, an HTTPS upstream that keeps what reached it, doors as processes."""

import datetime
import hashlib
import ipaddress
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CHUNK = 65_536


class Authority:
    """A certificate authority in a folder: `ca.crt`, and NAME.crt with NAME.key for all that it certifies."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._key = folder, ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Authority {folder.name}")])
        self._write("ca", self._key, self._builder(self._name, self._key).add_extension(*_CA))

    @property
    def certificate(self) -> Path:
        return self.folder / "ca.crt"

    def certify(self, name: str, *, server: bool) -> tuple[Path, Path]:
        """Make a key and its certificate: a server's for localhost and 127.0.0.1, or a client's."""
        key = ec.generate_private_key(ec.SECP256R1())
        usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        if server:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        self._write(name, key, builder)
        return self.folder / f"{name}.crt", self.folder / f"{name}.key"

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
        )

    def _write(self, name: str, key: ec.EllipticCurvePrivateKey, builder: x509.CertificateBuilder) -> None:
        pem = serialization.Encoding.PEM
        certificate = builder.sign(self._key, hashes.SHA256()).public_bytes(pem)
        (self.folder / f"{name}.crt").write_bytes(certificate)
        plain = serialization.NoEncryption()
        (self.folder / f"{name}.key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))


_CA = (x509.BasicConstraints(ca=True, path_length=0), True)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Certifies the study's servers and hospitals: `server` and `north` are made."""
    made = Authority(tmp_path_factory.mktemp("pki") / "study")
    made.certify("server", server=True)
    made.certify("north", server=False)
    return made


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another authority, which nobody in the study trusts: `server` and `north` are made."""
    made = Authority(tmp_path_factory.mktemp("pki") / "stranger")
    made.certify("server", server=True)
    made.certify("north", server=False)
    return made


@dataclass
class Seen:
    """A request that reached the upstream, when its head had."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    size: int = 0
    sha256: str = ""
    complete: bool = False
    broken: bool = False

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


@dataclass
class Upstream:
    """What stands for the SuperLink. `answer` makes each answer, from the request and a writer of raw bytes."""

    port: int
    seen: list[Seen] = field(default_factory=list)
    answer: Callable[[Seen], bytes | None] = lambda _: b"answer"
    more: dict[str, str] = field(default_factory=dict)
    status: int = 200

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"


@contextmanager
def listening(authority: Authority, port: int = 0) -> Iterator[Upstream]:
    """An HTTPS server of the authority's `server` certificate, each connection in a thread of its own."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def do_POST(self) -> None:
            seen = Seen(self.command, self.path, list(self.headers.items()))
            upstream.seen.append(seen)
            digest = hashlib.sha256()
            try:
                for part in self._body():
                    seen.size += len(part)
                    digest.update(part)
            except (OSError, ValueError):
                seen.broken = self.close_connection = True
                return
            seen.sha256, seen.complete = digest.hexdigest(), True
            body = upstream.answer(seen)
            if body is None:  # hangs up, saying nothing
                self.close_connection = True
                return
            self.send_response(upstream.status)
            for name, value in ({"Content-Length": str(len(body))} | upstream.more).items():
                self.send_header(name, value)
            self.end_headers()
            for start in range(0, len(body), CHUNK):
                self.wfile.write(body[start : start + CHUNK])

        def __getattr__(self, name: str) -> Any:  # what should never arrive would be seen, whatever its method
            if name.startswith("do_"):
                return self.do_POST
            raise AttributeError(name)

        def _body(self) -> Iterator[bytes]:
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):  # broken off: no number
                    yield self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            left = int(self.headers.get("Content-Length", 0))
            while left:
                part = self.rfile.read(min(left, CHUNK))
                if not part:
                    raise ConnectionError("broken off")
                left -= len(part)
                yield part

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *_: Any) -> None:
            """Whoever hangs up in the middle is what some tests are about."""

    server = Server(("127.0.0.1", port), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.folder / "server.crt", authority.folder / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    upstream = Upstream(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield upstream
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def upstream(authority: Authority) -> Iterator[Upstream]:
    with listening(authority) as made:
        yield made


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def trusting(authority: Authority, client: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    """What a SuperNode trusts; `client` is the certificate and the key that it cannot show, and a forwarder can."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority.certificate)
    if client:
        context.load_cert_chain(*client)
    return context


def caller(port: int, context: ssl.SSLContext) -> httpx.Client:
    return httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=context, timeout=30, trust_env=False)


def raw(port: int, context: ssl.SSLContext, sent: bytes, later: bytes = b"") -> bytes:
    """Send these very bytes, and some behind the first answer; read until the other side ends the connection."""
    with (
        socket.create_connection(("127.0.0.1", port), 30) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(sent)
        first = _received(connection)
        if later:
            connection.sendall(later)
        return first + b"".join(iter(lambda: _received(connection), b""))


def _received(connection: ssl.SSLSocket) -> bytes:
    try:
        return connection.recv(CHUNK)
    except (ConnectionError, ssl.SSLError):
        return b""


@contextmanager
def running(command: list[str], port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server as a process of its own, from the moment it listens."""
    with log.open("ab") as stderr:
        process = subprocess.Popen(command, stderr=stderr, env={**os.environ, "PYTHONWARNINGS": "error"})
    try:
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


def until(true: Callable[[], bool], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


@pytest.fixture(scope="session")
def loopback() -> SimpleNamespace:
    """What the tests of this folder do on the loopback; see the functions."""
    tools = (free_port, trusting, caller, raw, listening, running, until)
    return SimpleNamespace(**{tool.__name__: tool for tool in tools})
