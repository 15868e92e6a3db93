"""One request that asks a coordinator whether it knows this hospital's node, and changes nothing there.

It is `ActivateNode` of Flower's Fleet API (protobuf over HTTP), whose two fields are the node's public key
and the interval of its heartbeats. The interval is left out, that is 0, which Flower refuses after it has
looked up the key and before it does anything: error 2003 means that the key is known, 2004 that it is not.
"""

import http.client
import json
import socket
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from models.ledger.keys import to_base64

KNOWN, UNKNOWN = 2003, 2004
"""Flower's error numbers: invalid heartbeat interval; no such node."""

_PATH = "/v1/fleet/activate-node"
_PROTOBUF = "application/protobuf"
_LARGEST = 2**16  # bytes of an answer that are read


@dataclass(frozen=True)
class Answer:
    """What the coordinator said.

    Attributes:
        status: Of HTTP.
        code: Flower's error number, if it gave one.
        ahead: Seconds by which this machine's clock is ahead of the coordinator's, if it told the time.
    """

    status: int
    code: int | None
    ahead: float | None


def knock(connected: socket.socket, host: str, port: int, key: ec.EllipticCurvePrivateKey | None) -> Answer:
    """Ask once.

    Args:
        connected: To the coordinator, with TLS; it is closed.
        host: The coordinator's name.
        port: Its port.
        key: The node's; without one the request is not signed, and only the clock of the answer means anything.

    Raises:
        OSError: The connection broke.
        HTTPException: The answer is not HTTP.
    """
    headers = {"content-type": _PROTOBUF, "accept": _PROTOBUF, "connection": "close"}
    body = b""
    if key is not None:
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        assert 2**7 <= len(public) < 2**14  # its length, as a protobuf varint, has two bytes
        body = bytes([0x0A, len(public) & 0x7F | 0x80, len(public) >> 7]) + public
        headers |= _sign(key, public)
    connection = http.client.HTTPConnection(host, port)
    connection.sock = connected
    with closing(connection):
        began = datetime.now(UTC)
        connection.request("POST", _PATH, body, headers)
        response = connection.getresponse()
        ended = datetime.now(UTC)
        content = response.read(_LARGEST)
    return Answer(response.status, _code(content), _ahead(response, began + (ended - began) / 2))


def _sign(key: ec.EllipticCurvePrivateKey, public: bytes) -> dict[str, str]:
    """The headers by which Flower knows a SuperNode: a timestamp, signed by its key."""
    time = datetime.now(UTC).isoformat()
    signature = key.sign(time.encode(), ec.ECDSA(hashes.SHA256()))
    return {
        "flwr-public-key": to_base64(public),
        "flwr-timestamp": time,
        "flwr-signature": to_base64(signature),
    }


def _code(content: bytes) -> int | None:
    with suppress(ValueError, RecursionError):
        found = json.loads(content)
        if isinstance(found, dict) and isinstance(found.get("code"), int):
            return int(found["code"])
    return None


def _ahead(response: http.client.HTTPResponse, here: datetime) -> float | None:
    with suppress(ValueError, TypeError):
        second = parsedate_to_datetime(response.headers["Date"] or "")
        return (here - second - timedelta(seconds=0.5)).total_seconds()  # it was somewhere in that second
    return None
