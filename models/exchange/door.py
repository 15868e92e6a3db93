"""The door: the one way between a hospital and the study's Flower service.

    hospital's SuperNode -> door (forwarder, loopback) -> network -> door (front door) -> SuperLink (loopback)

The same small proxy stands at both ends. At the coordinator it is the *front door*: Flower answers everything
on one port, its own administration included, so that port stays on loopback, and the door lets through just what
a SuperNode needs (`fleet.py`). At a hospital that must show a TLS client certificate it is the *forwarder*,
because a stock SuperNode cannot show one; there `hold` is 0, the front door holds enough. Run by itself:

    python -m models.exchange.door --listen 0.0.0.0:8443 --upstream https://127.0.0.1:8000 \
        --certificate server.crt --key server.key --upstream-ca ca.crt --client-ca ca.crt

It speaks TLS 1.2 or later on both sides, keeps and logs nothing of what passes, and lets go whoever stalls.
"""

import argparse
import asyncio
import logging
import signal
import socket
import ssl
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from models.errors import ConfigError
from models.exchange import fleet

_KINDS = {"listen": str, "upstream": str, "proxy": str, "hold": float, "again": float, "max_bytes": int}  # else a path
_HEAD, _IDLE, _GRACE = 15.0, 15, 5  # seconds: for a request's head, between two requests, for the last ones


@dataclass(frozen=True)
class Door:
    """Where a door stands and what it trusts.

    Attributes:
        listen: `host:port` to answer on (`[host]:port` for IPv6).
        upstream: `https://host:port` that calls are sent on to.
        certificate: PEM file, the door's own certificate (chain).
        key: PEM file, its private key, not encrypted.
        upstream_ca: PEM file, whom the upstream's certificate must come from; by default the system's authorities.
        client_ca: PEM file; if given, callers must show a certificate from it.
        client_certificate: PEM file, the certificate that the door shows to the upstream.
        client_key: PEM file, its private key.
        proxy: `http://host:port` of an HTTP proxy through which the upstream is reached, by CONNECT.
        hold: Seconds for which "no work" is held back; 0 in a forwarder, below a SuperNode's read timeout of 30.
        again: Seconds between two questions for work in that time.
        max_bytes: The most bytes of one request's body (Flower cuts a model in objects of some 5 MB).
    """

    listen: str
    upstream: str
    certificate: Path
    key: Path
    upstream_ca: Path | None = None
    client_ca: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    proxy: str | None = None
    hold: float = 20.0
    again: float = 0.25
    max_bytes: int = 64_000_000


def build(door: Door) -> Starlette:
    """Make the door's application, without a port.

    Raises:
        ConfigError: A value is impossible, or a certificate cannot be used.
    """
    if not door.upstream.startswith("https://"):
        raise ConfigError(f"upstream = {door.upstream!r}: not https://host:port", "a door never speaks without TLS")
    if not (0 <= door.hold < 30 and door.again > 0):
        raise ConfigError(f"hold = {door.hold}, again = {door.again}: seconds, from 0 to below 30, and above 0")
    if (door.client_certificate is None) != (door.client_key is None):
        raise ConfigError("client_certificate and client_key: both or none")
    trust = _towards_upstream(door)
    return fleet.application(door.upstream, trust, door.proxy, door.hold, door.again, door.max_bytes)


def serve(door: Door) -> None:
    """Open the door until SIGTERM or SIGINT; calls under way have five seconds to end.

    Raises:
        ConfigError: A value is impossible, the address is taken, or a certificate cannot be used.
    """
    app, context = build(door), _towards_callers(door)
    config = uvicorn.Config(
        app,
        http=_Impatient,
        loop="asyncio",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=fleet.CONNECTIONS,
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=_GRACE,
        ssl_context_factory=lambda *_: context,
    )
    server = uvicorn.Server(config)
    app.state.closing = lambda: server.should_exit
    server.run(sockets=[_listener(door.listen)])


def command(door: Door) -> list[str]:
    """The command line that opens this door in a process of its own."""
    given = ((field.name, getattr(door, field.name)) for field in fields(door))
    return [sys.executable, "-m", "models.exchange.door", *(f"{_option(n)}={v}" for n, v in given if v is not None)]


def parse(arguments: Sequence[str]) -> Door:
    """Read what `command` wrote behind the module's name. A wrong option ends the process with exit code 2."""
    parser = argparse.ArgumentParser(prog="models.exchange.door", description="Pass on Flower's Fleet calls only.")
    for field in fields(Door):
        kind = _KINDS.get(field.name, Path)
        needed = field.default is MISSING
        parser.add_argument(_option(field.name), type=kind, required=needed, default=None if needed else field.default)
    return Door(**vars(parser.parse_args(arguments)))


def main() -> None:
    """Run a door from the command line; what keeps it from opening is one line on stderr, and exit code 1."""
    door = parse(sys.argv[1:])
    logging.basicConfig(level=logging.WARNING, format="%(levelname).1s %(name)s: %(message)s", stream=sys.stderr)
    for end in (signal.SIGTERM, signal.SIGINT):
        signal.signal(end, lambda *_: sys.exit(0))  # uvicorn raises the signal once more when all is done
    try:
        serve(door)
    except ConfigError as error:
        sys.exit(f"error: {error}" + (f" ({error.hint})" if error.hint else ""))


class _Impatient(H11Protocol):
    """Ends a connection on which no request's head arrives in time; uvicorn would wait for ever."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > 2 * fleet.CONNECTIONS:  # uvicorn answers 503 from half of it on
            transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def _watch(self) -> None:
        if self._timer is not None and not self._awaiting():
            self._timer.cancel()
            self._timer = None
        elif self._timer is None and self._awaiting():
            self._timer = self.loop.call_later(_HEAD, self._late)

    def _awaiting(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _late(self) -> None:
        if self._awaiting():
            self.transport.abort()


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _listener(address: str) -> socket.socket:
    host, _, number = address.rpartition(":")
    try:
        port = int(number)
        if port not in range(65_536):
            raise ValueError("ports end at 65535")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host.strip("[]"), port), family=family)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"listen = {address!r}: {reason}", "another address, or end what uses this one") from None


def _towards_callers(door: Door) -> ssl.SSLContext:
    return _tls(ssl.PROTOCOL_TLS_SERVER, door.client_ca, door.certificate, door.key)


def _towards_upstream(door: Door) -> ssl.SSLContext:
    return _tls(ssl.PROTOCOL_TLS_CLIENT, door.upstream_ca, door.client_certificate, door.client_key)


def _tls(side: int, trusted: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate and key:
        with _usable(certificate, key):
            context.load_cert_chain(certificate, key, _no_password)
    if trusted:
        with _usable(trusted):
            context.load_verify_locations(trusted)
        context.verify_mode = ssl.CERT_REQUIRED
    elif side == ssl.PROTOCOL_TLS_CLIENT:
        context.load_default_certs()
    return context


def _no_password() -> bytes:
    return b"none"  # an encrypted key is refused; OpenSSL would ask for the password at the terminal


@contextmanager
def _usable(*files: Path) -> Iterator[None]:
    try:
        for file in files:
            file.open("rb").close()
        yield
    except OSError as error:
        names = error.filename or " with ".join(map(str, files))
        reason = getattr(error, "reason", None) or error.strerror
        raise ConfigError(f"{names}: cannot be used for TLS: {reason}", "PEM files; the key not encrypted") from None


if __name__ == "__main__":
    main()
