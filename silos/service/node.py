"""The hospital's SuperNode: Flower's own program, how it is started, and what its talk means.

The SuperNode only dials out, to the coordinator's address, through the hospital's HTTP proxy where the site names
one, and trusts the certificates of its invitation alone. On this machine it offers its Runtime API on loopback to
whoever knows a secret that is made anew at every start. Where the coordinator demands a client certificate, which
a SuperNode cannot show, it dials a forwarder on loopback that shows it (`models.exchange.door`).

Flower's programs say what happens to them in their log only, and end with the same code for every reason; so
the SuperNode writes to a file, `node/supernode.log` in the work folder, which is read as it grows.
"""

import ipaddress
import re
import secrets
import shlex
import socket
import sys
import sysconfig
import time
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from models.exchange import door
from models.exchange.door import Door
from models.exchange.enrolment import Invitation
from models.processes import Process
from silos.config import Site
from silos.network.enrolment import node_files
from silos.service.journal import put

SUPERNODE, FORWARDER = "supernode", "forwarder"
"""The names of its processes."""

_LOOPBACK = "127.0.0.1"
_REACHED = "Connection successful|Received successfully|Sent successfully|is not in `RUNNING` status"
_AGAIN = (1, 10)  # seconds; the coordinator counts a node that was killed as connected for 60 s, and refuses it


class Link(StrEnum):
    """How the SuperNode stands with the coordinator."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    UNREACHABLE = "unreachable"
    """Nobody answers; the SuperNode tries again by itself."""
    REFUSED = "refused"
    """The coordinator, or its certificate, ended the SuperNode."""


class Node:
    """The SuperNode of a hospital, and its forwarder if it needs one. Writes the files that they need.

    Args:
        site: The hospital; it has joined.
        invitation: Whom it follows.
    """

    def __init__(self, site: Site, invitation: Invitation) -> None:
        self._site, self._invitation = site, invitation
        self._folder = site.run.work / "node"
        self._log, self._read = self._folder / "supernode.log", 0
        self.secret = self._folder / "superexec.secret"
        self.address = f"{_LOOPBACK}:{site.run.runtime_port or _free_port()}"
        self.link = Link.CONNECTING
        self.node_id: int | None = None
        self.busy_since: float | None = None
        self.dropped = False  # the order that it announced last, since its run is over
        self.refused_since: float | None = None  # it should have ended then
        put(self.secret, secrets.token_bytes(32))
        put(self._folder / "roots.pem", invitation.certificates.encode())
        put(self._log, b"")
        self._door = self._forwarder() if site.run.certificate else None

    def processes(self) -> list[Process]:
        """What is to run, in this order."""
        environment = {
            "FLWR_HOME": str(self._folder / "flower"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
        }
        upstream, roots, before = self._invitation.address, self._folder / "roots.pem", []
        proxy = self._site.run.proxy
        if self._door:
            upstream, roots, proxy = self._door.listen, self._door.certificate, None
            before = [Process(FORWARDER, door.command(self._door))]
        # The way is the site file's, whatever this service's own environment says of proxies.
        environment |= {"https_proxy": proxy, "no_proxy": ""} if proxy else {"no_proxy": "*"}
        command = [
            *(_flower("flower-supernode"), "--superlink", upstream, "--root-certificates", str(roots)),
            *("--auth-supernode-private-key", str(node_files(self._site).node_key), "--isolation", "process"),
            *("--host", _LOOPBACK, "--port", self.address.rpartition(":")[2]),
            *("--superexec-auth-secret-file", str(self.secret)),
        ]
        logged = f"exec {shlex.join(command)} > {shlex.quote(str(self._log))} 2>&1"
        node = Process(SUPERNODE, ["/bin/sh", "-c", logged], environment, delays=_AGAIN, on_exit=self._ended)
        return [*before, node]

    def listen(self) -> None:
        """Read what the SuperNode has said since the last time."""
        with self._log.open("rb") as file:
            file.seek(self._read)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            self._hear(line)

    def _hear(self, line: str) -> None:
        if found := re.search(r"SuperNode ID: (\d+)", line):
            self.link, self.node_id = Link.CONNECTED, int(found[1])
        elif "Connection attempt failed" in line:
            self.link = Link.UNREACHABLE
        elif "Exit Code: " in line or "SSL/TLS handshake error" in line:
            self.link, self.refused_since = Link.REFUSED, time.monotonic()
        elif self.node_id is not None and re.search(_REACHED, line):
            self.link = Link.CONNECTED
        if "Receiving: " in line:
            self.busy_since, self.dropped = time.monotonic(), False
        elif re.search("Sent successfully|Failed to send|Failed to receive|Ignoring", line):
            self.busy_since, self.dropped = None, re.search("Ignoring (the )?message", line) is not None

    def _ended(self, _: int) -> None:
        self.listen()  # its last words, which the next one overwrites
        # One that was never let in says not always why it ends: with a wrong clock it ends without a word.
        self.link = Link.CONNECTING if self.link is Link.CONNECTED else Link.REFUSED
        self.busy_since, self.refused_since, self.dropped, self._read = None, None, False, 0
        put(self._log, b"")

    def _forwarder(self) -> Door:
        """The forwarder, with a certificate for loopback that only this SuperNode trusts, and only this time."""
        certificate, key = self._folder / "loopback.crt", self._folder / "loopback.key"
        _write_loopback(certificate, key)
        return Door(
            listen=f"{_LOOPBACK}:{_free_port()}",
            upstream=f"https://{self._invitation.address}",
            certificate=certificate,
            key=key,
            upstream_ca=self._folder / "roots.pem",
            client_certificate=self._site.run.certificate,
            client_key=node_files(self._site).client_key,
            proxy=self._site.run.proxy,
            hold=0,
        )


def _write_loopback(path: Path, key_path: Path) -> None:
    """A key, and a certificate for 127.0.0.1 signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "this machine")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=3650))  # a service may run for years; the key is gone with it
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(_LOOPBACK))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    put(key_path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    put(path, certificate.public_bytes(Encoding.PEM))


def _flower(program: str) -> str:
    """A program of the Flower that is installed beside this toolkit."""
    found = Path(sysconfig.get_path("scripts")) / program
    return str(found if found.exists() else Path(sys.executable).with_name(program))


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((_LOOPBACK, 0))
        return int(found.getsockname()[1])
