"""What passes a door (see `door.py`), and how it is passed on: Flower's Fleet calls, letter for letter, as a stream.

A path that is not on the list is "404 not found". Bodies are neither kept nor logged. A call is sent on once:
repeating is the SuperNode's to decide. Only the question "is there work?" is asked again for a while before a
"no" is passed on, so that a SuperNode, which sleeps three seconds after a "no", hears of work at once. Whoever
stalls is let go.
"""

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import httpx
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount
from starlette.types import Message, Receive, Scope, Send

log = logging.getLogger("intramural.door")

PREFIX = "/v1/fleet/"
CALLS = frozenset(
    {
        "activate-node",
        "confirm-message-received",
        "deactivate-node",
        "get-fab",
        "get-run",
        "pull-messages",
        "pull-object",
        "push-messages",
        "push-object",
        "send-node-heartbeat",
    }
)
"""What a SuperNode of Flower 1.41 asks a SuperLink. Not `register-node`: hospitals are admitted by people."""

CONNECTIONS = 256  # a hospital needs two or three

_PATHS = frozenset((PREFIX + call).encode() for call in CALLS)
_PULL = (PREFIX + "pull-messages").encode()
_PULL_BYTES = 1_000_000  # asking for work takes a few hundred
_NOT_PASSED = frozenset(  # RFC 9110, 7.6.1 (hop by hop), and what each side of a door says for itself
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade expect host forwarded date server".split()
)
_STALL, _WHOLE = 30.0, 600.0  # seconds: the longest silence within a body, the longest body
_LINGER = 5.0  # seconds for which the rest of a refused body is read
_UPSTREAM = httpx.Timeout(60, connect=5, pool=5)  # longer than any hold


def application(
    upstream: str, trust: ssl.SSLContext, proxy: str | None, hold: float, again: float, max_bytes: int
) -> Starlette:
    """Make the application that passes calls on.

    Args:
        upstream: `https://host:port`.
        trust: Whom to trust there, and what to show.
        proxy: `http://host:port` of the proxy on the way there, if there is one.
        hold: Seconds for which an empty answer to `pull-messages` is held back.
        again: Seconds between two questions in that time.
        max_bytes: The most bytes of one request's body.

    Returns:
        The application; `state.closing`, a function, tells it that no answer may be held back any longer.
    """
    limits = httpx.Limits(max_connections=CONNECTIONS, keepalive_expiry=2)  # a SuperLink's is 5 s: be the first
    transport = httpx.AsyncHTTPTransport(verify=trust, limits=limits, trust_env=False, proxy=proxy)

    @asynccontextmanager
    async def opened(_: Starlette) -> AsyncIterator[None]:
        async with transport:
            yield

    passage = _Passage(upstream, transport, hold, again, max_bytes)
    app = Starlette(routes=[Mount("/", app=passage.respond)], lifespan=opened)
    app.state.closing = lambda: False
    return app


@dataclass
class _Passage:
    """Passes calls on; see `application` for its fields."""

    upstream: str
    transport: httpx.AsyncHTTPTransport
    hold: float
    again: float
    max_bytes: int
    reached: bool = True

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        request = Request(scope, receive)
        response = _refused(request, self._most(request))
        try:
            if response is not None:
                await _hear_out(request)
            elif scope["raw_path"] == _PULL:
                response = await self._send_on_and_wait(request)
            else:
                response = await self._send_on(request, _body(request, self._most(request)))
        except ClientDisconnect:
            return
        except _TooLarge:
            await _hear_out(request)
            response = _refusal(413, "too large")
        except httpx.TransportError as error:
            if self.reached:  # said once, not at every try
                log.warning("%s does not answer: %s", self.upstream, error or type(error).__name__)
            self.reached = False
            await _hear_out(request)
            response = _refusal(503, "upstream unavailable")
        except (TimeoutError, asyncio.CancelledError):  # a caller that stalls, or a door that closes
            response = _refusal(503, "try again")  # not 408: a SuperNode tries again after 502, 503 and 504 only
        await response(scope, receive, send)

    def _most(self, request: Request) -> int:
        return min(self.max_bytes, _PULL_BYTES) if request.scope["raw_path"] == _PULL else self.max_bytes

    async def _send_on(self, request: Request, content: bytes | AsyncIterator[bytes]) -> "_Relay":
        call = httpx.Request(
            "POST",
            self.upstream + request.scope["raw_path"].decode(),
            headers=_end_to_end(request.headers.raw),
            content=content,
            extensions={"timeout": _UPSTREAM.as_dict()},
        )
        answer = await self.transport.handle_async_request(call)
        self.reached = True
        parts = answer.aiter_raw()
        return _Relay(answer, await anext(parts, b""), parts)

    async def _send_on_and_wait(self, request: Request) -> "_Relay":
        content = b"".join([part async for part in _body(request, self._most(request))])
        end = time.monotonic() + self.hold
        while True:
            asked = time.monotonic()
            relay = await self._send_on(request, content)
            took = time.monotonic() - asked
            # An upstream that holds answers back itself must not be asked once too often, hence `took`.
            if not relay.empty or asked + took + max(self.again, took) > end or request.app.state.closing():
                return relay
            await relay.answer.aclose()
            if await _gone(request, self.again):
                raise ClientDisconnect


class _TooLarge(Exception):  # noqa: N818 - says what happened
    pass


class _Relay(StreamingResponse):
    """An answer as it comes. If it breaks off, so does the connection: half of it is never taken for the whole."""

    def __init__(self, answer: httpx.Response, first: bytes, rest: AsyncIterator[bytes]) -> None:
        async def parts() -> AsyncIterator[bytes]:
            yield first
            async for part in rest:
                yield part

        super().__init__(parts(), answer.status_code)
        self.raw_headers = _end_to_end(answer.headers.raw)
        self.answer = answer
        self.empty = answer.status_code == 200 and not first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        end = time.monotonic() + _WHOLE

        async def in_time(message: Message) -> None:
            async with _patience(end):
                await send(message)

        try:
            await super().__call__(scope, receive, in_time)
        except (httpx.TransportError, TimeoutError, asyncio.CancelledError):
            log.warning("an answer broke off")
        finally:
            await self.answer.aclose()


def _refused(request: Request, most: int) -> Response | None:
    if request.method != "POST" or request.scope["raw_path"] not in _PATHS or request.scope["query_string"]:
        return _refusal(404, "not found")
    if "content-length" in request.headers and "transfer-encoding" in request.headers:
        return _refusal(400, "two lengths")  # RFC 9112, 6.1: what request smuggling is made of
    if int(request.headers.get("content-length", 0)) > most:
        return _refusal(413, "too large")
    return None


def _refusal(status: int, text: str) -> Response:
    return PlainTextResponse(text, status, {"connection": "close"})


async def _hear_out(request: Request) -> None:
    # A connection that is closed while its caller still sends is reset, and the answer on it lost.
    with suppress(TimeoutError, ClientDisconnect, RuntimeError):  # the last: all was heard already
        async with asyncio.timeout(_LINGER):
            async for _ in request.stream():
                pass


async def _body(request: Request, most: int) -> AsyncIterator[bytes]:
    size, end, parts = 0, time.monotonic() + _WHOLE, request.stream()
    while True:
        async with _patience(end):
            part = await anext(parts)
        if not part:
            return
        size += len(part)
        if size > most:
            raise _TooLarge
        yield part


async def _gone(request: Request, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            while (await request.receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        return False
    return True


def _patience(end: float) -> asyncio.Timeout:
    return asyncio.timeout(min(_STALL, end - time.monotonic()))


def _end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    lower = [(name.lower(), value) for name, value in headers]
    named = {word.strip().lower() for name, value in lower if name == b"connection" for word in value.split(b",")}
    return [(n, v) for n, v in lower if n not in _NOT_PASSED | named and not n.startswith(b"x-forwarded-")]
