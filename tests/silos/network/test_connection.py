"""The network part of `intramural-silo check`, against real TLS servers and a real SuperLink on loopback."""

import ipaddress
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from models.exchange.enrolment import Invitation
from models.ledger import Signer
from silos.config import Site
from silos.finding import Finding
from silos.network import enrolment
from silos.network.connection import check_connection

Key = ec.EllipticCurvePrivateKey


@dataclass
class Authority:
    """A certificate authority of a test."""

    key: Key
    certificate: x509.Certificate

    @classmethod
    def make(cls) -> "Authority":
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        builder = _builder(name, name, key.public_key(), 3650)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        return cls(key, builder.sign(key, hashes.SHA256()))

    def issue(self, public: Any, days: float, names: tuple[str, ...] = ()) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "leaf")])
        builder = _builder(subject, self.certificate.subject, public, days)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([_name(n) for n in names]), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _builder(subject: x509.Name, issuer: x509.Name, public: Any, days: float) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=400))
        .not_valid_after(now + timedelta(days=days))
    )


@dataclass
class Coordinator:
    """What a server of a test does, and what it saw."""

    status: int = 400
    code: int = 2003
    shift: float = 0.0  # seconds by which its clock is ahead
    dated: bool = True
    seen: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)


@contextmanager
def serving(folder: Path, certificate: x509.Certificate, key: Key, answers: Coordinator, client_ca: str = "") -> Any:
    """A TLS server; gives its port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            answers.seen.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            content = json.dumps({"code": answers.code, "detail": "..."}).encode()
            self.send_response_only(answers.status)
            if answers.dated:
                now = datetime.now(UTC) + timedelta(seconds=answers.shift)
                self.send_header("Date", format_datetime(now, usegmt=True))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    class Server(HTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # a client that turns away in the handshake is what is tested

    path = folder / "server.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(private + certificate.public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    if client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=client_ca)
    with Server(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make()


@pytest.fixture(scope="module")
def server_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def site(tmp_path: Path, phantom: Callable[[int], Site]) -> Site:
    """A hospital that has joined, in a folder of its own."""
    made = phantom(0)
    run = made.run.model_copy(update={"work": tmp_path / "work"})
    site = made.model_copy(update={"run": run})
    enrolment.join(site)
    return site


def invited(site: Site, address: str, certificates: str, **more: Any) -> Site:
    path = site.run.work / "coordinator.json"
    signer = Signer.from_seed("hub", b"7" * 32)
    invitation = Invitation(name="hub", key=signer.vkey, address=address, certificates=certificates)
    path.write_bytes(invitation.encode())
    return site.model_copy(update={"run": site.run.model_copy(update={"coordinator": path, **more})})


@pytest.fixture
def check(site: Site, authority: Authority, server_key: Key, tmp_path: Path) -> Callable[..., dict[str, Finding]]:
    """Check a hospital against a server that behaves as said; findings by name."""

    def look(
        answers: Coordinator | None = None,
        *,
        days: float = 90.5,
        names: tuple[str, ...] = ("localhost",),
        trusted: Authority = authority,
        demand: bool = False,
        hospital: Site = site,
        **more: Any,
    ) -> dict[str, Finding]:
        certificate = authority.issue(server_key.public_key(), days, names)
        client_ca = authority.pem if demand else ""
        with serving(tmp_path, certificate, server_key, answers or Coordinator(), client_ca) as port:
            findings = check_connection(invited(hospital, f"localhost:{port}", trusted.pem, **more))
        return {finding.what: finding for finding in findings}

    return look


Check = Callable[..., dict[str, Finding]]


def test_a_site_without_a_coordinator_is_ready_for_simulations(site: Site) -> None:
    assert check_connection(site) == [Finding("coordinator", True, "no coordinator named: simulations only")]


def test_an_admitted_hospital_finds_nothing_in_its_way(check: Check) -> None:
    findings = check()
    assert [finding.what for finding in findings.values() if not finding.ok] == []
    assert list(findings) == [
        "coordinator",
        "network keys",
        "host name",
        "port",
        "TLS",
        "server certificate",
        "answer",
        "clock",
        "admission",
    ]
    assert "(90 days)" in findings["server certificate"].found
    assert "TLSv1.3" in findings["TLS"].found
    assert findings["admission"].found == "admitted"


def test_both_fingerprints_are_shown(check: Check, site: Site) -> None:
    findings = check()
    enrolled = enrolment.read_enrolment(site)
    assert enrolled is not None
    assert enrolled.fingerprint in findings["network keys"].found
    sent = Invitation.decode((site.run.work / "coordinator.json").read_bytes())
    assert sent.fingerprint in findings["coordinator"].found


def test_the_one_request_holds_the_public_key_and_a_signed_time_and_nothing_else(check: Check, site: Site) -> None:
    answers = Coordinator()
    check(answers)
    ((path, headers, body),) = answers.seen
    assert path == "/v1/fleet/activate-node"
    known = {"host", "accept-encoding", "content-length", "content-type", "accept", "connection"}
    assert set(headers) - known == {"flwr-public-key", "flwr-timestamp", "flwr-signature"}
    assert body[3:].startswith(b"-----BEGIN PUBLIC KEY-----")
    assert body[3:].endswith(b"-----END PUBLIC KEY-----\n")
    assert site.name.encode() not in body
    assert site.name not in str(headers)


def test_an_unknown_hospital_is_told_what_to_send_and_read_out(check: Check, site: Site) -> None:
    finding = check(Coordinator(412, 2004))["admission"]
    enrolled = enrolment.read_enrolment(site)
    assert enrolled is not None
    assert not finding.ok
    assert finding.found == "not admitted"
    assert str(site.run.work / "north.enrolment.json") in finding.fix
    assert enrolled.fingerprint in finding.fix


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "clock"), (403, "dismissed"), (404, "address")],
)
def test_other_answers_say_who_must_act(check: Check, status: int, words: str) -> None:
    finding = check(Coordinator(status, 0))["admission"]
    assert not finding.ok
    assert finding.found == f"the coordinator answers HTTP {status}"
    assert words in finding.fix


def test_a_service_that_is_down_behind_its_door_is_the_coordinators_to_see_to(check: Check) -> None:
    *_, last = check(Coordinator(503, 0)).values()
    assert (last.what, last.ok, last.found) == ("answer", False, "HTTP 503")
    assert "the coordinator must" in last.fix


@pytest.mark.parametrize(
    ("shift", "ok", "words"),
    [(-30, False, "ahead"), (50, True, "behind"), (90, False, "behind"), (0, True, "")],
)
def test_a_clock_is_held_against_the_coordinators(check: Check, shift: float, ok: bool, words: str) -> None:
    finding = check(Coordinator(shift=shift))["clock"]
    assert finding.ok is ok
    assert words in finding.found
    assert ("NTP" in finding.fix) is not ok


def test_a_coordinator_that_does_not_tell_the_time_is_no_problem(check: Check) -> None:
    findings = check(Coordinator(dated=False))
    assert findings["clock"].ok
    assert findings["admission"].ok


@pytest.mark.parametrize(("days", "ok"), [(15.5, True), (13.5, False)])
def test_a_server_certificate_near_its_end_is_the_coordinators_to_renew(check: Check, days: float, ok: bool) -> None:
    findings = check(days=days)
    assert findings["server certificate"].ok is ok
    assert ("the coordinator must renew" in findings["server certificate"].fix) is not ok
    assert findings["admission"].ok


def test_an_expired_server_certificate_ends_the_walk_with_what_to_see_to(check: Check) -> None:
    *_, last = check(days=-1).values()
    assert (last.what, last.ok) == ("TLS", False)
    assert "expired" in last.found
    assert "clock" in last.fix
    assert "coordinator must renew" in last.fix


def test_a_server_of_another_name_is_not_taken_for_the_coordinator(check: Check) -> None:
    *_, last = check(names=("hub.example",)).values()
    assert (last.what, last.ok) == ("TLS", False)
    assert "ostname mismatch" in last.found
    assert "for this name" in last.fix


def test_a_server_of_another_authority_is_not_taken_for_the_coordinator(check: Check) -> None:
    answers = Coordinator()
    *_, last = check(answers, trusted=Authority.make()).values()
    assert (last.what, last.ok) == ("TLS", False)
    assert "proxy" in last.fix
    assert answers.seen == []


def test_a_server_without_tls_is_named(site: Site, authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        *_, last = check_connection(invited(site, f"localhost:{server.getsockname()[1]}", authority.pem))
        thread.join()
    assert (last.what, last.ok) == ("TLS", False)
    assert "speaks no TLS" in last.found


def test_a_port_where_nobody_listens_is_named(site: Site, authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    *_, last = check_connection(invited(site, f"127.0.0.1:{port}", authority.pem))
    assert (last.what, last.ok) == ("port", False)
    assert last.found == f"127.0.0.1 port {port}: refused"
    assert "service runs" in last.fix


def test_a_coordinator_is_reached_through_the_hospitals_proxy_which_looks_its_name_up(
    site: Site, authority: Authority, server_key: Key, tmp_path: Path, proxy: Any
) -> None:
    certificate = authority.issue(server_key.public_key(), 90.5, ("hub.invalid",))
    with serving(tmp_path, certificate, server_key, Coordinator()) as port:
        findings = check_connection(invited(site, f"hub.invalid:{port}", authority.pem, proxy=proxy.url))
    assert [finding for finding in findings if not finding.ok] == []
    (found,) = (finding.found for finding in findings if finding.what == "port")
    assert found == f"hub.invalid port {port} answers through {proxy.url}"
    assert proxy.asked == [f"hub.invalid:{port}"]


def test_a_proxy_that_is_in_the_way_is_named(site: Site, authority: Authority, proxy: Any) -> None:
    proxy.refuses = True
    *_, last = check_connection(invited(site, "hub.invalid:443", authority.pem, proxy=proxy.url))
    assert (last.what, last.ok) == ("port", False)
    assert last.found.startswith(f"run.proxy: {proxy.url}: does not let through to hub.invalid port 443 (")
    assert "403" in last.found
    assert "allow CONNECT to hub.invalid port 443" in last.fix
    with socket.create_server(("127.0.0.1", 0)) as server:
        gone = f"http://127.0.0.1:{server.getsockname()[1]}"
    *_, last = check_connection(invited(site, "hub.invalid:443", authority.pem, proxy=gone))
    assert (last.what, last.found) == ("port", f"run.proxy: {gone}: Connection refused")
    *_, last = check_connection(invited(site, "hub.invalid:443", authority.pem, proxy="http://proxy.invalid:3128"))
    assert (last.what, last.found) == ("host name", "run.proxy: proxy.invalid: no address is known for this name")


def test_a_name_that_nobody_knows_is_named(site: Site, authority: Authority) -> None:
    *_, last = check_connection(invited(site, "hub.invalid:443", authority.pem))  # RFC 6761: never resolves
    assert (last.what, last.ok) == ("host name", False)
    assert "network department" in last.fix


def test_an_address_may_be_a_number(site: Site, authority: Authority, server_key: Key, tmp_path: Path) -> None:
    certificate = authority.issue(server_key.public_key(), 90, ("127.0.0.1",))
    with serving(tmp_path, certificate, server_key, Coordinator()) as port:
        findings = check_connection(invited(site, f"127.0.0.1:{port}", authority.pem))
    assert [finding.found for finding in findings if not finding.ok] == []


def test_a_signing_key_that_the_enrolment_does_not_name_is_a_problem(check: Check, site: Site, tmp_path: Path) -> None:
    Signer.create(tmp_path / "new.key", site.name)
    finding = check(hospital=site.model_copy(update={"key": tmp_path / "new.key"}))["network keys"]
    assert not finding.ok
    assert "join" in finding.fix


def test_without_keys_the_way_is_walked_all_the_same(check: Check, site: Site, tmp_path: Path) -> None:
    bare = site.model_copy(update={"run": site.run.model_copy(update={"work": tmp_path / "empty"})})
    bare.run.work.mkdir()
    answers = Coordinator()
    findings = check(answers, hospital=bare)
    assert not findings["network keys"].ok
    assert "intramural-silo join" in findings["network keys"].fix
    assert findings["clock"].ok
    assert not findings["admission"].ok
    assert "flwr-signature" not in answers.seen[0][1]


def test_a_key_that_others_can_read_is_a_problem(check: Check, site: Site) -> None:
    enrolment.node_files(site).client_key.chmod(0o644)
    finding = check()["network keys"]
    assert not finding.ok
    assert "chmod 600" in finding.fix


def own_certificate(site: Site, authority: Authority, days: float, key: Key | None = None) -> Path:
    public = (key or enrolment.load_client_key(site)).public_key()
    path = site.run.work / "north.crt"
    path.write_bytes(authority.issue(public, days).public_bytes(Encoding.PEM))
    return path


def test_a_coordinator_that_demands_a_certificate_is_shown_it(check: Check, site: Site, authority: Authority) -> None:
    findings = check(demand=True, certificate=own_certificate(site, authority, 90.5))
    assert [finding.found for finding in findings.values() if not finding.ok] == []
    assert "(90 days)" in findings["client certificate"].found


def test_a_coordinator_that_demands_a_certificate_and_gets_none_is_explained(check: Check) -> None:
    *_, last = check(demand=True).values()
    assert (last.what, last.ok) == ("answer", False)
    assert "gives no answer" in last.found
    assert "run.certificate" in last.fix


@pytest.mark.parametrize(("days", "words"), [(13.5, "13 days"), (-1, "expired")])
def test_an_own_certificate_near_its_end_is_asked_for_again(
    check: Check, site: Site, authority: Authority, days: float, words: str
) -> None:
    finding = check(certificate=own_certificate(site, authority, days))["client certificate"]
    assert not finding.ok
    assert words in finding.found
    assert "ask for a new certificate" in finding.fix


def test_a_certificate_of_another_key_is_named(check: Check, site: Site, authority: Authority, server_key: Key) -> None:
    *_, last = check(certificate=own_certificate(site, authority, 90, server_key)).values()
    assert (last.what, last.ok) == ("client certificate", False)
    assert "client.key" in last.found


def test_a_coordinator_file_that_is_none_is_named(site: Site) -> None:
    path = site.run.work / "coordinator.json"
    path.write_text("{}")
    changed = site.model_copy(update={"run": site.run.model_copy(update={"coordinator": path})})
    (finding,) = check_connection(changed)
    assert not finding.ok
    assert "coordinator.json" in finding.found


@dataclass
class SuperLink:
    """A real one, asked as the coordinator asks it."""

    address: str
    environment: dict[str, str]

    def ask(self, *words: str) -> dict[str, Any]:
        command = [str(Path(sys.executable).with_name("flwr")), "supernode", *words, "--format", "json"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, timeout=120)
        answer: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
        assert answer["success"], answer
        return answer


@pytest.fixture
def superlink(tmp_path: Path, authority: Authority, server_key: Key) -> Iterator[SuperLink]:
    certificate = authority.issue(server_key.public_key(), 90, ("localhost", "127.0.0.1"))
    (tmp_path / "ca.crt").write_text(authority.pem)
    (tmp_path / "link.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    (tmp_path / "link.key").write_bytes(server_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    secret = tmp_path / "superexec.secret"
    secret.write_text("0" * 64)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "FLWR_HOME": str(tmp_path / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    (tmp_path / "flower").mkdir()
    (tmp_path / "flower" / "config.toml").write_text(
        '[superlink]\ndefault = "hub"\n'
        f'[superlink.hub]\naddress = "127.0.0.1:{port}"\nroot-certificates = "{tmp_path / "ca.crt"}"\n'
    )
    command = [
        *(str(Path(sys.executable).with_name("flower-superlink")), "--host", "127.0.0.1", "--port", str(port)),
        *("--ssl-certfile", str(tmp_path / "link.crt"), "--ssl-keyfile", str(tmp_path / "link.key")),
        *("--ssl-ca-certfile", str(tmp_path / "ca.crt"), "--enable-supernode-auth", "--isolation", "process"),
        *("--superexec-auth-secret-file", str(secret), "--disable-runtime-dependency-installation"),
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=tmp_path)
    try:
        end = time.monotonic() + 120
        while True:
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end, "the SuperLink does not start"
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield SuperLink(f"localhost:{port}", environment)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_a_real_superlink_knows_who_is_admitted_and_is_not_changed_by_the_question(
    superlink: SuperLink, site: Site, authority: Authority
) -> None:
    here = invited(site, superlink.address, authority.pem)

    def admission() -> Finding:
        findings = check_connection(here)
        assert all(finding.ok for finding in findings[:-1]), findings
        return findings[-1]

    assert admission().found == "not admitted"
    public = enrolment.node_files(site).node_public
    node = superlink.ask("register", str(public), "--name", "north")["node-id"]
    assert admission() == Finding("admission", True, "admitted")
    (listed,) = superlink.ask("list")["nodes"]
    assert (int(listed["node-id"]), listed["status"]) == (node, "registered")  # not "online": nothing was activated
    superlink.ask("unregister", str(node))
    assert admission().found == "not admitted"
