"""The door, on real sockets with real TLS: what passes, what does not, and what happens to who stalls."""

import contextlib
import hashlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization

from models.errors import ConfigError
from models.exchange.door import Door, build, command, parse, serve
from models.exchange.fleet import CALLS, PREFIX

PULL, PUSH = PREFIX + "pull-messages", PREFIX + "push-object"
QUICK = """
from models.exchange import door, fleet
door._HEAD, door._IDLE, door._GRACE, fleet._STALL = 1.0, 2, 1, 1.0
door.main()
"""

Open = Callable[..., AbstractContextManager[subprocess.Popen]]


@pytest.fixture
def door(authority, upstream, loopback) -> Door:
    return Door(
        listen=f"127.0.0.1:{loopback.free_port()}",
        upstream=upstream.url,
        certificate=authority.folder / "server.crt",
        key=authority.folder / "server.key",
        upstream_ca=authority.certificate,
        hold=0,
    )


def port_of(door: Door) -> int:
    return int(door.listen.rpartition(":")[2])


@pytest.fixture
def opened(loopback, tmp_path) -> Open:
    """Opens a door as the process that its command starts; `program` replaces what Python runs."""

    @contextmanager
    def opening(door: Door, program: str | None = None) -> Iterator[subprocess.Popen]:
        line = command(door)
        if program:
            line[1:3] = ["-c", program]
        with loopback.running(line, port_of(door), tmp_path / "door.log") as process:
            yield process

    return opening


@pytest.fixture
def call(authority, loopback) -> Iterator[Callable[..., httpx.Response]]:
    """Calls a door as a SuperNode does."""
    clients: dict[int, httpx.Client] = {}

    def post(door: Door, path: str = PUSH, **arguments) -> httpx.Response:
        port = port_of(door)
        if port not in clients:
            clients[port] = loopback.caller(port, loopback.trusting(authority))
        return clients[port].post(path, **arguments)

    yield post
    for client in clients.values():
        client.close()


# What passes


def test_the_calls_that_pass_are_all_that_a_stock_supernode_makes_but_for_registering_itself(monkeypatch) -> None:
    from flwr.supernode.fleet_http_client import FleetHttpClient

    paths: list[str] = []
    monkeypatch.setattr(FleetHttpClient, "_unary_unary", lambda self, *, path, **_: paths.append(path))
    client = FleetHttpClient.__new__(FleetHttpClient)
    for name in (name for name in vars(FleetHttpClient) if name[0].isupper()):
        getattr(client, name)(None)
    assert set(paths) == {PREFIX + call for call in CALLS | {"register-node", "unregister-node"}}


def test_flowers_fleet_service_has_no_further_call() -> None:
    from flwr.superlink.routers.fleet.router import router

    assert {route.path for route in router.routes} == {
        PREFIX + call for call in CALLS | {"register-node", "unregister-node"}
    }


@pytest.mark.parametrize("name", sorted(CALLS))
def test_every_call_of_the_list_reaches_the_superlink_as_it_was_sent(name, session_door, call) -> None:
    door, upstream = session_door
    upstream.seen.clear()
    headers = {"content-type": "application/x-protobuf", "flwr-signature": "c2ln", "connection": "keep-alive, x-hop"}
    answer = call(door, PREFIX + name, content=b"question", headers=headers | {"x-hop": "1", "x-forwarded-for": "9"})
    assert (answer.status_code, answer.content) == (200, b"answer")
    [seen] = upstream.seen
    assert (seen.method, seen.path, seen.size) == ("POST", PREFIX + name, 8)
    assert seen.sha256 == hashlib.sha256(b"question").hexdigest()
    assert seen.header("flwr-signature") == "c2ln"
    assert seen.header("content-type") == "application/x-protobuf"
    assert seen.header("host") == upstream.url.removeprefix("https://")
    assert not {"x-hop", "x-forwarded-for", "keep-alive"} & {name.lower() for name, _ in seen.headers}


def test_an_answer_comes_with_its_status_its_headers_and_one_date(session_door, call) -> None:
    door, upstream = session_door
    upstream.status, upstream.more = 403, {"X-Reason": "not yours", "Connection": "close"}
    answer = call(door, content=b"question")
    assert (answer.status_code, answer.content, answer.headers["x-reason"]) == (403, b"answer", "not yours")
    assert len(answer.headers.get_list("date")) == 1
    assert abs(parsedate_to_datetime(answer.headers["date"]).timestamp() - time.time()) < 30
    assert "server" not in answer.headers


@pytest.fixture(scope="module")
def _session_door(authority, loopback, tmp_path_factory):
    with ExitStack() as stack:
        upstream = stack.enter_context(loopback.listening(authority))
        port = loopback.free_port()
        door = Door(
            listen=f"127.0.0.1:{port}",
            upstream=upstream.url,
            certificate=authority.folder / "server.crt",
            key=authority.folder / "server.key",
            upstream_ca=authority.certificate,
            hold=0,
            max_bytes=10_000_000,
        )
        stack.enter_context(loopback.running(command(door), port, tmp_path_factory.mktemp("door") / "log"))
        yield door, upstream


@pytest.fixture
def session_door(_session_door):
    """A door that stays open from test to test, and its upstream as new."""
    door, upstream = _session_door
    upstream.seen.clear()
    upstream.answer, upstream.more, upstream.status = (lambda _: b"answer"), {}, 200
    return door, upstream


# What does not


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/health",
        "/docs",
        "/openapi.json",
        "/v1/control/start-run",
        "/v1/runtime/pull-messages",
        "/v1/fleet",
        "/v1/fleet/",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/Pull-Messages",
        "/v1/fleet/pull-messages?x=1",
        "/v1/fleet/pull-messages;x",
        "/v1/fleet/pull-messages#x",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/x/../pull-messages",
        "/v1/fleet/./pull-messages",
        "//v1/fleet/pull-messages",
        "/v1//fleet/pull-messages",
        "/v1/fleet//pull-messages",
        "/v1/fleet/%70ull-messages",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet%2fpull-messages",
        "/v1/fleet/pull-messages%00",
        "\\v1\\fleet\\pull-messages",
        "https://localhost/v1/fleet/pull-messages",
        "*",
    ],
)
def test_a_path_that_is_not_on_the_list_letter_for_letter_is_not_found(
    target, session_door, authority, loopback
) -> None:
    door, upstream = session_door
    request = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi"
    answer = loopback.raw(port_of(door), loopback.trusting(authority), request.encode())
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert upstream.seen == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "post"])
def test_only_post_is_answered(method, session_door, authority, loopback) -> None:
    door, upstream = session_door
    request = f"{method} {PULL} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = loopback.raw(port_of(door), loopback.trusting(authority), request.encode())
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert upstream.seen == []


@pytest.mark.parametrize(
    "lengths",
    [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: -1",
        "Transfer-Encoding: chunked, identity",
    ],
)
def test_a_request_whose_length_can_be_read_in_two_ways_is_refused(lengths, session_door, authority, loopback) -> None:
    door, upstream = session_door
    request = f"POST {PUSH} HTTP/1.1\r\nHost: localhost\r\n{lengths}\r\nConnection: close\r\n\r\n0\r\n\r\n"
    answer = loopback.raw(port_of(door), loopback.trusting(authority), request.encode())
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 "))
    assert upstream.seen == []


def test_a_head_that_never_ends_is_refused(session_door, authority, loopback) -> None:
    door, upstream = session_door
    request = f"POST {PUSH} HTTP/1.1\r\nHost: localhost\r\nX: {'x' * 20_000}"
    assert loopback.raw(port_of(door), loopback.trusting(authority), request.encode())[:13] == b"HTTP/1.1 400 "
    assert upstream.seen == []


# Large bodies


def test_a_body_over_the_cap_is_refused_before_it_is_sent_on(session_door, call) -> None:
    door, upstream = session_door
    assert call(door, content=bytes(door.max_bytes + 1)).status_code == 413
    assert upstream.seen == []
    assert call(door, content=bytes(door.max_bytes)).status_code == 200
    assert upstream.seen[0].size == door.max_bytes


def test_a_body_that_does_not_say_how_long_it_is_is_cut_off_at_the_cap(session_door, call) -> None:
    door, upstream = session_door
    pieces = (bytes(1_000_000) for _ in range(11))
    assert call(door, content=pieces).status_code == 413
    assert not any(seen.complete for seen in upstream.seen)


def test_asking_for_work_takes_no_more_than_a_megabyte(session_door, call) -> None:
    door, upstream = session_door
    assert call(door, PULL, content=bytes(1_000_001)).status_code == 413
    assert call(door, PULL, content=(bytes(500_001) for _ in range(2))).status_code == 413
    assert upstream.seen == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from /proc")
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
def test_a_hundred_megabytes_stream_through_in_both_directions(declared, door, upstream, opened, call) -> None:
    piece, count = os.urandom(1_000_000), 100
    whole = piece * count
    upstream.answer = lambda _: whole
    headers = {"content-length": str(len(whole))} if declared else {}
    with opened(replace(door, max_bytes=200_000_000)) as process:
        call(door, content=b"warm up")
        before = memory(process.pid, "VmRSS")
        answer = call(door, content=iter([piece] * count), headers=headers)
        grown = memory(process.pid, "VmHWM") - before
    assert upstream.seen[-1].sha256 == hashlib.sha256(whole).hexdigest()
    assert hashlib.sha256(answer.content).digest() == hashlib.sha256(whole).digest()
    assert (upstream.seen[-1].header("content-length") is not None) is declared
    assert grown < 40_000_000


def memory(pid: int, key: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


# Waiting for work


def test_no_work_is_held_back_until_there_is_some(door, upstream, opened, call) -> None:
    answers = iter([b"", b"", b"", b"work"])
    upstream.answer = lambda _: next(answers)
    with opened(replace(door, hold=20)):
        started = time.monotonic()
        answer = call(door, PULL, content=b"node 7", headers={"flwr-signature": "c2ln"})
        assert answer.content == b"work"
        assert 0.75 <= time.monotonic() - started < 15
    assert [seen.header("flwr-signature") for seen in upstream.seen] == ["c2ln"] * 4
    assert {seen.sha256 for seen in upstream.seen} == {hashlib.sha256(b"node 7").hexdigest()}


def test_no_work_is_passed_on_when_the_time_is_over(door, upstream, opened, call) -> None:
    upstream.answer = lambda _: b""
    with opened(replace(door, hold=1)):
        call(door, content=b"warm up")
        upstream.seen.clear()
        started = time.monotonic()
        answer = call(door, PULL)
        assert (answer.status_code, answer.content) == (200, b"")
        assert 0.5 <= time.monotonic() - started < 10
    assert 2 <= len(upstream.seen) <= 5


def test_only_the_question_for_work_is_asked_twice(door, upstream, opened, call) -> None:
    upstream.answer = lambda _: b""
    with opened(replace(door, hold=20)):
        for name in CALLS - {"pull-messages"}:
            assert call(door, PREFIX + name).content == b""
    assert len(upstream.seen) == len(CALLS) - 1


def test_a_refusal_is_passed_on_at_once(door, upstream, opened, call) -> None:
    upstream.answer, upstream.status = (lambda _: b""), 401
    with opened(replace(door, hold=20)):
        assert call(door, PULL).status_code == 401
    assert len(upstream.seen) == 1


def test_the_door_stops_asking_when_the_supernode_has_gone(door, upstream, opened, authority, loopback) -> None:
    upstream.answer = lambda _: b""
    with opened(replace(door, hold=20)):
        context = loopback.trusting(authority)
        with loopback.caller(port_of(door), context) as client, pytest.raises(httpx.ReadTimeout):
            client.post(PULL, timeout=1)
        time.sleep(0.6)
        asked = len(upstream.seen)
        time.sleep(1)
        assert 1 <= asked == len(upstream.seen)


def test_an_upstream_that_holds_answers_itself_is_not_asked_once_too_often(door, upstream, opened, call) -> None:
    upstream.answer = lambda _: time.sleep(2) or b""
    with opened(replace(door, hold=3)):
        started = time.monotonic()
        assert call(door, PULL).content == b""
        assert time.monotonic() - started < 3.9
    assert len(upstream.seen) == 1


def test_a_door_that_closes_lets_waiting_supernodes_go_and_ends_with_zero(door, upstream, opened, call) -> None:
    upstream.answer = lambda _: b""
    with opened(replace(door, hold=25), QUICK) as process:
        timer = threading.Timer(1.5, process.send_signal, [signal.SIGTERM])
        timer.start()
        started = time.monotonic()
        assert call(door, PULL).status_code == 200
        assert process.wait(20) == 0
        assert time.monotonic() - started < 15
        timer.join()


def test_a_call_under_way_when_the_door_closes_is_told_to_try_again(door, upstream, opened, call) -> None:
    silent = threading.Event()
    upstream.answer = lambda _: b"" if silent.wait(60) else None
    with opened(door, QUICK) as process:
        timer = threading.Timer(1, process.send_signal, [signal.SIGTERM])
        timer.start()
        assert call(door).status_code == 503
        assert process.wait(20) == 0
        timer.join()
    silent.set()


# Certificates


def test_who_shows_no_certificate_does_not_come_in_where_one_is_demanded(
    door, upstream, opened, authority, stranger, loopback
) -> None:
    north = (authority.folder / "north.crt", authority.folder / "north.key")
    false = (stranger.folder / "north.crt", stranger.folder / "north.key")
    server = (authority.folder / "server.crt", authority.folder / "server.key")  # not a client's certificate
    with opened(replace(door, client_ca=authority.certificate)):
        for client in (None, false, server):
            context = loopback.trusting(authority, client)
            with loopback.caller(port_of(door), context) as caller, pytest.raises(httpx.TransportError):
                caller.post(PUSH)
        assert upstream.seen == []
        with loopback.caller(port_of(door), loopback.trusting(authority, north)) as caller:
            assert caller.post(PUSH).content == b"answer"


def test_a_forwarder_shows_the_hospitals_certificate_to_the_front_door(
    door, upstream, opened, authority, loopback, call
) -> None:
    front = replace(door, client_ca=authority.certificate, hold=20)
    forwarder = replace(
        door,
        listen=f"127.0.0.1:{loopback.free_port()}",
        upstream=f"https://{front.listen}",
        client_certificate=authority.folder / "north.crt",
        client_key=authority.folder / "north.key",
    )
    answers = iter([b"", b"", b"work"])
    body = os.urandom(5_000_000)
    with opened(front), opened(forwarder):
        answer = call(forwarder, content=body)
        assert (answer.status_code, answer.content) == (200, b"answer")
        assert len(answer.headers.get_list("date")) == 1
        upstream.answer = lambda _: next(answers)
        assert call(forwarder, PULL).content == b"work"
    assert upstream.seen[0].sha256 == hashlib.sha256(body).hexdigest()


def test_a_forwarder_goes_through_the_hospitals_proxy(door, upstream, opened, call, proxy) -> None:
    with opened(replace(door, proxy=proxy.url)):
        assert call(door, content=b"x").content == b"answer"
        proxy.refuses = True
        upstream.more = {"Connection": "close"}
        call(door)  # may still go over the tunnel that stands
        assert call(door).status_code == 503
    assert set(proxy.asked) == {upstream.url.removeprefix("https://")}


def test_a_door_tells_nothing_to_an_upstream_that_it_does_not_trust(
    door, upstream, opened, stranger, call, tmp_path
) -> None:
    with opened(replace(door, upstream_ca=stranger.certificate)):
        assert call(door, content=b"x").status_code == 503
    assert upstream.seen == []
    assert "certificate verify failed" in (tmp_path / "door.log").read_text()


# When something fails


def test_an_upstream_that_is_down_is_503_until_it_is_back(door, opened, authority, loopback, call, tmp_path) -> None:
    port = loopback.free_port()
    with opened(replace(door, upstream=f"https://127.0.0.1:{port}", hold=20)):
        assert [call(door, path).status_code for path in (PUSH, PULL, PUSH)] == [503] * 3
        with loopback.listening(authority, port) as upstream:
            upstream.more = {"Connection": "close"}
            assert call(door).content == b"answer"
        assert call(door).status_code == 503
    log = (tmp_path / "door.log").read_text()
    assert log.count("does not answer") == 2  # once each time it went away


def test_a_push_is_never_repeated(door, upstream, opened, call) -> None:
    upstream.answer = lambda _: None
    with opened(replace(door, hold=20)):
        assert call(door, content=b"update").status_code == 503
        assert call(door, PULL, content=b"node").status_code == 503
    assert [seen.path for seen in upstream.seen] == [PUSH, PULL]


def test_half_an_answer_is_never_taken_for_the_whole(door, upstream, opened, call) -> None:
    upstream.answer, upstream.more = (lambda _: b"half"), {"Content-Length": "8", "Connection": "close"}
    with opened(door), pytest.raises(httpx.RemoteProtocolError):
        call(door)


def test_who_sends_no_request_or_half_a_head_is_let_go(door, upstream, opened, authority, loopback) -> None:
    context = loopback.trusting(authority)
    with opened(door, QUICK):
        for sent in (b"", b"POST /v1/fl", b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\n"):
            started = time.monotonic()
            assert loopback.raw(port_of(door), context, sent) == b""
            assert time.monotonic() - started < 15
        whole = b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        for second in (b"POST /v1", b""):  # a connection's second request gets no more time than its first
            started = time.monotonic()
            assert loopback.raw(port_of(door), context, whole, second).startswith(b"HTTP/1.1 200 ")
            assert time.monotonic() - started < 15
    assert len(upstream.seen) == 2


def test_a_body_that_stalls_is_let_go_and_the_superlink_with_it(door, upstream, opened, authority, loopback) -> None:
    head = f"POST {PUSH} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n".encode()
    with opened(door, QUICK):
        started = time.monotonic()
        answer = loopback.raw(port_of(door), loopback.trusting(authority), head + b"half")
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert time.monotonic() - started < 15
        assert loopback.until(lambda: upstream.seen[0].broken)
    assert not upstream.seen[0].complete


def test_who_does_not_read_the_answer_is_let_go(door, upstream, opened, authority, loopback, tmp_path) -> None:
    upstream.answer = lambda _: bytes(50_000_000)
    head = f"POST {PUSH} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()
    with (
        opened(door, QUICK),
        socket.create_connection(("127.0.0.1", port_of(door)), 30) as plain,
        loopback.trusting(authority).wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(head)
        assert loopback.until(lambda: "broke off" in (tmp_path / "door.log").read_text())


def test_more_callers_than_the_door_takes_are_told_to_try_again_and_a_crowd_is_not_answered(
    door, upstream, opened, authority, loopback, call
) -> None:
    context = loopback.trusting(authority)
    with (
        opened(door, "from models.exchange import door, fleet; fleet.CONNECTIONS = 3; door.main()"),
        ExitStack() as all_idle,
    ):

        def idle() -> ssl.SSLSocket:
            plain = all_idle.enter_context(socket.create_connection(("127.0.0.1", port_of(door)), 10))
            return all_idle.enter_context(context.wrap_socket(plain, server_hostname="localhost"))

        first, second = idle(), idle()
        assert call(door).status_code == 503
        first.close(), second.close()
        assert loopback.until(lambda: call(door).status_code == 200)
        started = time.monotonic()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            assert [idle() for _ in range(9)][-1].recv(1) == b""
        assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"certificate": Path("missing.crt")}, "missing.crt: cannot be used for TLS: No such file"),
        ({"upstream": "http://127.0.0.1:8000"}, "not https://host:port"),
        ({"hold": 30.0}, "hold = 30.0"),
        ({"client_key": Path("north.key")}, "both or none"),
        ({"listen": "127.0.0.1"}, "listen = '127.0.0.1'"),
        ({"listen": "127.0.0.1:99999"}, "listen = '127.0.0.1:99999'"),
        ({"listen": "no-such-host.invalid:8443"}, "listen = 'no-such-host.invalid:8443'"),
    ],
)
def test_a_door_that_cannot_open_says_why(change, words, door) -> None:
    with pytest.raises(ConfigError) as error:
        serve(replace(door, **change))
    assert words in str(error.value)


def test_a_certificate_that_is_none_an_encrypted_key_and_another_certificates_key_are_refused(
    door, authority, stranger, tmp_path
) -> None:
    key = serialization.load_pem_private_key(door.key.read_bytes(), None)
    best = serialization.BestAvailableEncryption(b"secret")
    encrypted, text = tmp_path / "encrypted.key", tmp_path / "text.crt"
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    encrypted.write_bytes(key.private_bytes(pem, pkcs8, best))
    text.write_text("not a certificate")
    for change in (
        {"key": encrypted},
        {"key": stranger.folder / "server.key"},
        {"certificate": text},
        {"client_ca": text},
        {"upstream_ca": text},
        {"client_certificate": authority.folder / "north.crt", "client_key": door.key},
    ):
        with pytest.raises(ConfigError, match="cannot be used for TLS"):
            serve(replace(door, **change))


def test_a_taken_port_ends_the_process_with_one_line_and_code_one(door, upstream) -> None:
    line = command(replace(door, listen=upstream.url.removeprefix("https://")))
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    [message] = done.stderr.splitlines()
    assert "Address already in use" in message


# By itself


def test_a_command_line_is_read_as_the_door_that_wrote_it(door, authority) -> None:
    full = replace(
        door,
        client_ca=authority.certificate,
        client_certificate=Path("a b/north.crt"),
        client_key=Path("north.key"),
        proxy="http://proxy:3128",
        hold=12.5,
        again=1.0,
        max_bytes=7,
    )
    for one in (door, full, Door("h:1", "https://h:2", Path("c"), Path("k"))):
        assert command(one)[:3] == [sys.executable, "-m", "models.exchange.door"]
        assert parse(command(one)[3:]) == one


def test_a_door_needs_neither_torch_nor_flower() -> None:
    code = "import sys, models.exchange.door; sys.exit(repr({'torch', 'flwr', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.strip() == "set()"


def test_a_door_logs_nothing_of_what_passes(door, upstream, opened, call, authority, loopback, tmp_path) -> None:
    upstream.answer = lambda _: b"canary-answer"
    with opened(replace(door, hold=1)):
        call(door, content=b"canary-question", headers={"x-note": "canary-header"})
        call(door, "/canary-path")
        loopback.raw(port_of(door), loopback.trusting(authority), b"canary-noise\r\n\r\n")
        upstream.answer = lambda _: None
        call(door, content=b"canary-question")
    assert "canary" not in (tmp_path / "door.log").read_text()


def test_the_application_can_be_built_without_a_port(door) -> None:
    assert build(door).state.closing() is False


def test_old_tls_is_refused_on_both_sides(door) -> None:
    from models.exchange.door import _towards_callers, _towards_upstream

    assert _towards_callers(door).minimum_version == ssl.TLSVersion.TLSv1_2
    assert _towards_upstream(door).minimum_version == ssl.TLSVersion.TLSv1_2
