"""Whether this hospital reaches its coordinator: name, port, certificates, clock, and whether it is let in.

Each step is what the SuperNode will do later, done once and by hand, so that what is in the way has a name.
Nothing of a patient is near it, and nothing changes at the coordinator: the one request that is sent is
a valid knock at the door that asks for nothing (`silos/network/knock.py`).
"""

import http.client
import socket
import ssl
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from models.errors import ConfigError
from models.exchange.enrolment import Invitation
from silos.config import Site
from silos.finding import Finding, look
from silos.keys import load_signer
from silos.network import enrolment
from silos.network.knock import KNOWN, UNKNOWN, Answer, knock

_CONNECT = 5.0  # seconds for a port to answer
_ANSWER = 20.0  # seconds for the handshake, and for the request
_RENEW = 14  # days before its end at which a certificate is a problem
# Flower refuses a signature that is more than 5 s from the future, or more than 5 minutes old.
_AHEAD, _BEHIND = 5.0, 60.0  # seconds


def check_connection(site: Site) -> list[Finding]:
    """Walk towards the coordinator, up to the first step that fails.

    Args:
        site: The hospital.
    """
    if site.run.coordinator is None:
        return [Finding("coordinator", True, "no coordinator named: simulations only")]
    try:
        invitation = enrolment.invitation(site)
    except ConfigError as error:
        return [Finding("coordinator", False, str(error), error.hint)]
    about = f"{invitation.name} at {invitation.address}, fingerprint {invitation.fingerprint}"
    findings = [Finding("coordinator", True, about), look("network keys", lambda: _keys(site))]
    with closing(_Walk(site, invitation)) as walk:
        steps = [  # and whether those after it need it
            ("host name", walk.resolve, True),
            ("port", walk.connect, True),
            ("TLS", walk.shake_hands, True),
            ("server certificate", walk.server_certificate, False),
            ("answer", walk.answer, True),
            ("clock", walk.clock, False),
            ("admission", walk.admission, False),
        ]
        if site.run.certificate is not None:
            steps.insert(0, ("client certificate", walk.client_certificate, True))
        for what, step, needed in steps:
            findings.append(look(what, step))
            if needed and not findings[-1].ok:
                break
    return findings


def _keys(site: Site) -> str:
    node = enrolment.load_node_key(site)
    enrolment.load_client_key(site)
    enrolled = enrolment.read_enrolment(site)
    own = enrolment.public_line(node), load_signer(site).vkey
    if enrolled is None or (enrolled.node_key, enrolled.key) != own:
        path = enrolment.node_files(site).enrolment
        raise ConfigError(f"{path}: is missing, or of another key", "run: intramural-silo join SITE.toml")
    return f"there, and readable by their owner only; enrolment {enrolled.fingerprint}"


class _Walk:
    """The way to the coordinator; each step stands on those before it."""

    def __init__(self, site: Site, invitation: Invitation) -> None:
        self._site, self._invitation, self._proxy = site, invitation, site.run.proxy
        self._host, self._port = _parts(invitation.address)
        self._socket: socket.socket | None = None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def client_certificate(self) -> str:
        path = self._site.run.certificate
        assert path is not None
        renew = "send the enrolment file to the coordinator again and ask for a new certificate"
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
        except OSError as error:
            raise ConfigError(
                f"run.certificate: {path}: {error.strerror}", "put the certificate from the coordinator there"
            ) from error
        except ValueError as error:
            raise ConfigError(f"run.certificate: {path}: is no certificate", renew) from error
        if certificate.public_key() != enrolment.load_client_key(self._site).public_key():
            raise ConfigError(f"run.certificate: {path}: is not the certificate of this hospital's client.key", renew)
        return _lifetime(certificate, f"run.certificate: {path}", renew)

    def resolve(self) -> str:
        # A proxy looks the coordinator's name up by itself; this machine may know no names outside the hospital.
        host, port = _parts(self._proxy) if self._proxy else (self._host, self._port)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            if self._proxy:
                raise ConfigError(
                    f"run.proxy: {host}: no address is known for this name", "see whether the name is right"
                ) from error
            raise ConfigError(
                f"{host}: no address is known for this name",
                "ask your network department whether this machine can resolve names outside the hospital",
            ) from error
        return ", ".join(dict.fromkeys(str(address[0]) for *_, address in found))

    def connect(self) -> str:
        where = f"{self._host} port {self._port}"
        if self._proxy:
            self._socket = _tunnel(self._proxy, self._host, self._port)
            self._socket.settimeout(_ANSWER)
            return f"{where} answers through {self._proxy}"
        try:
            self._socket = socket.create_connection((self._host, self._port), timeout=_CONNECT)
        except ConnectionRefusedError as error:
            raise ConfigError(
                f"{where}: refused", "ask the coordinator whether the service runs, and at which port"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"{where}: does not answer ({error.strerror or 'timed out'})",
                f"ask your network department to let this machine connect out to {where} (TCP)",
            ) from error
        self._socket.settimeout(_ANSWER)
        return f"{where} answers"

    def shake_hands(self) -> str:
        assert self._socket is not None
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(cadata=self._invitation.certificates)
            if self._site.run.certificate is not None:
                context.load_cert_chain(self._site.run.certificate, enrolment.node_files(self._site).client_key)
            self._socket = context.wrap_socket(self._socket, server_hostname=self._host)
        except ssl.SSLCertVerificationError as error:
            message = error.verify_message
            raise ConfigError(f"{self._host}: its certificate: {message}", _advice(error.verify_code)) from error
        except OSError as error:
            raise ConfigError(
                f"{self._host}: speaks no TLS that this machine understands ({_reason(error)})",
                "ask the coordinator whether the address is right",
            ) from error
        return f"{self._socket.version()}, certificate of {self._host} trusted"

    def server_certificate(self) -> str:
        assert isinstance(self._socket, ssl.SSLSocket)
        content = self._socket.getpeercert(binary_form=True)
        assert content is not None
        certificate = x509.load_der_x509_certificate(content)
        return _lifetime(certificate, self._host, "the coordinator must renew it: tell them; nothing can be done here")

    def answer(self) -> str:
        status = self._answer.status
        if status >= 500:
            raise ConfigError(
                f"HTTP {status}",
                "the coordinator must see to it: the door answers, the service behind it does not",
            )
        return f"HTTP {status}"

    def clock(self) -> str:
        ahead = self._answer.ahead
        if ahead is None:
            return "not compared: the coordinator does not tell the time"
        found = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the coordinator's"
        if not -_BEHIND <= ahead <= _AHEAD:
            raise ConfigError(found, "set this machine's clock, and keep it by NTP; or the coordinator must, if theirs")
        return found

    def admission(self) -> str:
        enrolled = enrolment.read_enrolment(self._site)
        if self._node_key is None or enrolled is None:
            raise ConfigError("not asked, as a key is missing", "see network keys")
        files, fingerprint = enrolment.node_files(self._site), enrolled.fingerprint
        status, code = self._answer.status, self._answer.code
        if code == KNOWN:
            return "admitted"
        if code == UNKNOWN:
            raise ConfigError(
                "not admitted",
                f"send {files.enrolment} to the coordinator and compare the fingerprint {fingerprint} by telephone; if "
                f"this hospital was dismissed, delete that file, {files.node_key} and {files.node_public} first, and "
                "join again",
            )
        advice = {
            401: "see clock; if that is right, send the enrolment file to the coordinator again",
            403: "ask the coordinator whether this hospital was dismissed, or needs a client certificate",
        }
        other = "ask the coordinator whether the address is right"
        raise ConfigError(f"the coordinator answers HTTP {status}", advice.get(status, other))

    @cached_property
    def _node_key(self) -> ec.EllipticCurvePrivateKey | None:
        with suppress(ConfigError):
            return enrolment.load_node_key(self._site)
        return None

    @cached_property
    def _answer(self) -> Answer:
        """The answer to one knock.

        Raises:
            ConfigError: There is none.
        """
        assert self._socket is not None
        try:
            return knock(self._socket, self._host, self._port, self._node_key)
        except (OSError, http.client.HTTPException) as error:
            raise ConfigError(
                f"{self._host}: gives no answer ({_reason(error)})",
                "if the coordinator demands client certificates, name yours as run.certificate; else ask them",
            ) from error


def _parts(address: str) -> tuple[str, int]:
    """Host and port of `host:port`, or of `http://host:port`."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    return host.strip("[]"), int(port)


def _tunnel(proxy: str, host: str, port: int) -> socket.socket:
    """A connection through an HTTP proxy, as RFC 9110 (9.3.6, CONNECT) has it.

    Raises:
        ConfigError: The proxy does not answer, or does not let through.
    """
    asked = http.client.HTTPConnection(*_parts(proxy), timeout=_CONNECT)
    asked.set_tunnel(host, port)
    try:
        asked.connect()
    except (OSError, http.client.HTTPException) as error:
        asked.close()
        if isinstance(error, OSError) and (error.errno or isinstance(error, TimeoutError)):
            reason = error.strerror or "timed out"
            raise ConfigError(f"run.proxy: {proxy}: {reason}", "see whether the proxy's address is right") from error
        raise ConfigError(
            f"run.proxy: {proxy}: does not let through to {host} port {port} ({error})",
            f"ask your network department to allow CONNECT to {host} port {port} from this machine, without a password",
        ) from error
    return asked.sock


def _lifetime(certificate: x509.Certificate, whose: str, renew: str) -> str:
    """Until when a certificate is valid.

    Raises:
        ConfigError: Not yet, not much longer, or no more.
    """
    now, begin, end = datetime.now(UTC), certificate.not_valid_before_utc, certificate.not_valid_after_utc
    days = (end - now) // timedelta(days=1)
    found = f"valid until {end:%Y-%m-%d} ({days} days)"
    if now < begin:
        raise ConfigError(
            f"{whose}: is valid only from {begin:%Y-%m-%d %H:%M} UTC on", "see whether this clock is right"
        )
    if now >= end:
        raise ConfigError(f"{whose}: expired on {end:%Y-%m-%d}", renew)
    if days < _RENEW:
        raise ConfigError(f"{whose}: {found}", renew)
    return found


def _advice(code: int) -> str:
    """What to do about a certificate that was not accepted; the numbers are OpenSSL's `X509_V_ERR_...`."""
    if code in (9, 10):
        return "see whether this machine's clock is right; if it is, the coordinator must renew the certificate"
    if code in (62, 64):
        return "the coordinator must make a certificate for this name, or send a coordinator.json with the right one"
    return (
        "ask your network department whether a proxy opens the connection (it must not), and the coordinator "
        "for the newest coordinator.json"
    )


def _reason(error: BaseException) -> str:
    """A word or two on a failure; the text of TLS alerts is OpenSSL's own."""
    if isinstance(error, ConnectionError):
        return "closed by the other side"
    reason = error.reason if isinstance(error, ssl.SSLError) else None
    return (reason or getattr(error, "strerror", None) or type(error).__name__).replace("_", " ").lower()
