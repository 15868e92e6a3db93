"""Syslog over TLS: RFC 5424 messages, each behind its length (RFC 5425), to a hospital's log server.

    Syslog.to("syslog+tls://siem.example.org:6514", dicom, ca=Path("siem-ca.crt")).take(facts)

Syslog has no answer that says "stored". So each batch has a connection of its own: all is sent, our side is
closed, and it counts as taken once the receiver has closed its side in order and its system has acknowledged
every byte. A receiver's system answers with a reset instead if the receiver left bytes unread, or was gone when
they came, and a receiver that was never there cannot close: then everything is sent again. What a receiver has read
and loses afterwards is beyond any syslog sender, and so is what a relay of TCP has acknowledged in its place.
"""

import fcntl
import os
import socket
import ssl
import struct
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from aggregator.exports.fact import Fact, Outcome
from models.errors import ConfigError

PORT = 6514
"""syslog-tls (RFC 5425)."""

FACILITY = 10
"""Security/authorization messages, as IHE ATNA wants audit messages."""

_SEVERITY = {Outcome.OK: 5, Outcome.REFUSED: 5, Outcome.FAILED: 4}  # notice, warning
_BOM = b"\xef\xbb\xbf"
_HINT = "give syslog+tls://HOST:PORT; syslog without TLS is not offered"


@dataclass(frozen=True)
class Dialect:
    """Where audit repositories differ.

    Attributes:
        msgid: What stands as MSGID.
        bom: Whether a byte order mark stands before the text (RFC 5424 6.4), which some parsers refuse.
    """

    msgid: str
    bom: bool


DIALECTS = {
    "ihe": Dialect("IHE+RFC-3881", bom=False),  # IHE ITI TF-2 3.20
    "dicom": Dialect("DICOM+RFC3881", bom=True),  # DICOM PS3.15 A.6
    "plain": Dialect("-", bom=False),  # not an audit message in XML
}
"""By the name that a command takes."""


@dataclass(frozen=True)
class Syslog:
    """A log server.

    Attributes:
        host: Its name, which its certificate must bear.
        port: Its TCP port.
        context: With whose signature its certificate is believed.
        render: How a line becomes text.
        dialect: What the server expects around it.
        timeout: Seconds that it may take to answer.
    """

    host: str
    port: int
    context: ssl.SSLContext
    render: Callable[[Fact], bytes]
    dialect: Dialect = DIALECTS["ihe"]
    timeout: float = 30.0

    @classmethod
    def to(
        cls,
        address: str,
        render: Callable[[Fact], bytes],
        *,
        ca: Path | None = None,
        certificate: tuple[Path, Path] | None = None,
        dialect: Dialect = DIALECTS["ihe"],
    ) -> Self:
        """A log server by its address.

        Args:
            address: `syslog+tls://HOST:PORT`.
            render: How a line becomes text.
            ca: Certificate (PEM) that the server's must be signed with; by default the system's.
            certificate: This machine's certificate and key (PEM), where the server demands one.
            dialect: What the server expects around the text.

        Raises:
            ConfigError: The address or one of the files is wrong.
        """
        try:
            parts = urlsplit(address)
            host, port = parts.hostname, parts.port
            (host or "").encode("idna")  # as the resolver will
        except ValueError as error:
            raise ConfigError(f"{address}: {error}", _HINT) from None
        if parts.scheme != "syslog+tls" or not host or parts.path.strip("/") or parts.query or parts.username:
            raise ConfigError(f"{address}: is no address of a log server", _HINT)
        try:
            context = ssl.create_default_context(cafile=ca)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if certificate:
                context.load_cert_chain(*certificate)
        except OSError as error:
            files = ", ".join(str(path) for path in (ca, *(certificate or ())) if path)
            raise ConfigError(f"{files}: {error.strerror or error}", "give certificates and keys as PEM") from None
        return cls(host, port or PORT, context, render, dialect)

    @property
    def name(self) -> str:
        """Its address."""
        return f"syslog+tls://{self.host}:{self.port}"

    def take(self, facts: Sequence[Fact]) -> None:
        """Send lines, oldest first; when this returns, the receiver has read them all.

        Raises:
            OSError: It has not, or perhaps not; send them again.
        """
        frames = b"".join(frame(fact, self.render, self.dialect) for fact in facts)
        with (
            socket.create_connection((self.host, self.port), self.timeout) as plain,
            self.context.wrap_socket(plain, server_hostname=self.host) as secure,
        ):
            secure.sendall(frames)
            _close(secure)


def frame(fact: Fact, render: Callable[[Fact], bytes], dialect: Dialect) -> bytes:
    """One message behind its length in bytes (RFC 5425 4.3.1)."""
    content = message(fact, render, dialect)
    return b"%d %s" % (len(content), content)


def message(fact: Fact, render: Callable[[Fact], bytes], dialect: Dialect) -> bytes:
    """One message (RFC 5424); the ledger's line number is its `sequenceId`, the party is its HOSTNAME."""
    priority = 8 * FACILITY + _SEVERITY[fact.sense.outcome]
    host = "".join(char for char in fact.party if "!" <= char <= "~")[:255] or "-"
    number = f'[meta sequenceId="{min(fact.line, 2**31 - 1)}"]'
    header = f"<{priority}>1 {fact.record.ts} {host} intramural - {dialect.msgid} {number} "
    return header.encode() + (_BOM if dialect.bom else b"") + render(fact)


def _close(secure: ssl.SSLSocket) -> None:
    """Say that no more comes, and wait until the receiver has closed too and nothing of ours is on the way.

    Raises:
        OSError: It reset the connection, having left bytes unread, or did not close in time.
    """
    try:
        secure.unwrap()
    except ssl.SSLEOFError:
        pass  # it closed without TLS's own goodbye, as rsyslog does, but in order
    except OSError as error:
        if error.errno != 0:  # 0: the same, as older OpenSSL says it
            raise
    secure.shutdown(socket.SHUT_WR)  # what follows is plain TCP
    while secure.recv(4096):
        pass
    end = time.monotonic() + (secure.gettimeout() or 0)
    while _on_the_way(secure):  # a receiver that was killed closes before the reset for what came too late
        _require_whole(secure)
        if time.monotonic() > end:
            raise TimeoutError("the log server closed before it had everything")
        time.sleep(0.01)
    _require_whole(secure)


def _on_the_way(secure: ssl.SSLSocket) -> int:
    """Bytes that the receiver's system has not acknowledged."""
    (count,) = struct.unpack("i", fcntl.ioctl(secure.fileno(), termios.TIOCOUTQ, bytes(4)))
    return int(count)


def _require_whole(secure: ssl.SSLSocket) -> None:
    if number := secure.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(number, os.strerror(number))
