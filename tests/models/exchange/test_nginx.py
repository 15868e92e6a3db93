"""`configs/nginx.conf` does with nginx what the door does; tried with the nginx of this machine, where there is one."""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import pytest

from models.exchange.door import Door, command
from models.exchange.fleet import CALLS, PREFIX

NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
CONFIG = Path(__file__).parents[3] / "configs" / "nginx.conf"
PUSH = PREFIX + "push-object"

needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed (apt-get install nginx-light)")

Open = Callable[..., AbstractContextManager[int]]


def set_up(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert old in text, f"{CONFIG.name} no longer says {old}"
        text = text.replace(old, new)
    return text


@pytest.fixture
def opened(authority, upstream, loopback, tmp_path) -> Open:
    """Runs nginx with the file, its marked places changed to this folder and these ports; gives the public port."""

    @contextmanager
    def opening(**changes: str) -> Iterator[int]:
        port = loopback.free_port()
        more = {f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("fastcgi", "scgi", "uwsgi")}
        places = {
            "user www-data;": "",
            "/run/nginx.pid": f"{tmp_path}/nginx.pid",
            "/var/log/nginx/error.log": f"{tmp_path}/error.log",
            "/var/lib/nginx": str(tmp_path),
            "worker_processes auto;": "worker_processes 1;",
            "access_log off;": "access_log off;" + " ".join(more),
            "0.0.0.0:8443": f"127.0.0.1:{port}",
            "127.0.0.1:8000": upstream.url.removeprefix("https://"),
            "study.example.org": "localhost",
            "/srv/intramural": str(authority.folder),
        }
        config = tmp_path / "nginx.conf"
        config.write_text(set_up(set_up(CONFIG.read_text(), places), changes))
        line = [NGINX, "-c", str(config), "-p", str(tmp_path), "-e", f"{tmp_path}/error.log", "-g", "daemon off;"]
        readable = subprocess.run([*line, "-t"], capture_output=True, text=True, check=False)
        assert readable.returncode == 0, readable.stderr
        with loopback.running(line, port, tmp_path / "stderr.log"):
            yield port

    return opening


@pytest.fixture
def client(authority, loopback) -> Iterator[Callable[..., httpx.Response]]:
    def post(port: int, path: str = PUSH, certificate: tuple[Path, Path] | None = None, **more) -> httpx.Response:
        with loopback.caller(port, loopback.trusting(authority, certificate)) as one:
            return one.post(path, **more)

    return post


def test_the_file_passes_on_the_same_calls_as_the_door() -> None:
    [listed] = re.findall(r'"~\^POST /v1/fleet/\((.*)\)\$" 1;', CONFIG.read_text())
    assert listed.split("|") == sorted(CALLS)


@needs_nginx
def test_every_call_of_the_list_reaches_the_superlink_as_it_was_sent(opened, upstream, client) -> None:
    upstream.status, upstream.more = 403, {"X-Reason": "not yours"}
    with opened() as port:
        for name in sorted(CALLS):
            answer = client(port, PREFIX + name, content=b"question", headers={"flwr-signature": "c2ln"})
            assert (answer.status_code, answer.content) == (403, b"answer")
            assert answer.headers["x-reason"] == "not yours"
            assert len(answer.headers.get_list("date")) == 1
            assert answer.headers["server"] == "nginx"
            seen = upstream.seen.pop()
            assert (seen.method, seen.path, seen.size) == ("POST", PREFIX + name, 8)
            assert seen.header("flwr-signature") == "c2ln"


@needs_nginx
def test_every_other_call_is_not_found(opened, upstream, authority, loopback) -> None:
    targets = [
        *("/", "/health", "/docs", "/openapi.json", "/v1/control/start-run", "/v1/runtime/pull-messages"),
        *("/v1/fleet/register-node", "/v1/fleet/unregister-node", "/v1/fleet", "/v1/fleet/", PUSH + "/", PUSH + "?x=1"),
        *(PUSH + "?", PUSH + ";x", PUSH + "%00x", PUSH + "%0a", "/v1/fleet/Push-Object", "//v1/fleet/push-object"),
        *("/v1/fleet/../control/start-run", "/v1/fleet/x/../push-object", "/v1/fleet/./push-object"),
        *("/v1/fleet//push-object", "/v1/fleet/%70ush-object", "/v1/fleet/%2e%2e/control/start-run"),
    ]
    asked = [f"POST {target}" for target in targets]
    asked += [f"{method} {PUSH}" for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE")]
    answers = {}
    with opened() as port:
        for line in asked:
            request = f"{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            answers[line] = loopback.raw(port, loopback.trusting(authority), request.encode())[:12]
    # Some of these nginx itself cannot read.
    assert {line: word for line, word in answers.items() if word not in (b"HTTP/1.1 404", b"HTTP/1.1 400")} == {}
    assert sum(word == b"HTTP/1.1 400" for word in answers.values()) <= 1
    assert upstream.seen == []


@needs_nginx
def test_large_bodies_stream_through_and_larger_ones_are_refused(opened, upstream, client, tmp_path) -> None:
    body = os.urandom(1_000_000) * 60
    upstream.answer = lambda _: body
    with opened() as port:
        for content in (body, iter([body[:1_000_000]] * 60)):
            answer = client(port, content=content)
            assert hashlib.sha256(answer.content).digest() == hashlib.sha256(body).digest()
            assert upstream.seen.pop().sha256 == hashlib.sha256(body).hexdigest()
        assert client(port, content=bytes(68_000_000)).status_code == 413
        assert upstream.seen == []
        assert [file for folder in ("body", "proxy") for file in (tmp_path / folder).rglob("*") if file.is_file()] == []
    assert "buffered to a temporary file" not in (tmp_path / "error.log").read_text()


@needs_nginx
def test_a_superlink_that_is_down_or_hangs_up_is_an_answer_after_which_supernodes_try_again(
    opened, upstream, client, loopback
) -> None:
    upstream.answer = lambda _: None
    with opened() as port:
        assert client(port).status_code == 502
    assert len(upstream.seen) == 1  # a push is never repeated
    with opened(**{upstream.url.removeprefix("https://"): f"127.0.0.1:{loopback.free_port()}"}) as port:
        assert client(port).status_code == 502


@needs_nginx
def test_a_superlink_that_is_not_trusted_is_told_nothing(opened, upstream, client, stranger, authority) -> None:
    trusted = "proxy_ssl_trusted_certificate {};".format
    with opened(**{trusted(authority.certificate): trusted(stranger.certificate)}) as port:
        assert client(port).status_code == 502
    assert upstream.seen == []


@needs_nginx
def test_client_certificates_are_demanded_by_uncommenting_two_lines(
    opened, upstream, client, authority, stranger
) -> None:
    uncommented = {"#ssl_verify_client": "ssl_verify_client", "#ssl_client_certificate": "ssl_client_certificate"}
    true, false = ((one.folder / "north.crt", one.folder / "north.key") for one in (authority, stranger))
    with opened(**uncommented) as port:
        assert client(port).status_code == 400
        assert client(port, certificate=false).status_code == 400
        assert upstream.seen == []
        assert client(port, certificate=true).status_code == 200


@needs_nginx
def test_before_the_toolkits_door_no_work_is_held_back(opened, upstream, client, authority, loopback, tmp_path) -> None:
    address = f"127.0.0.1:{loopback.free_port()}"
    shown = (authority.folder / "server.crt", authority.folder / "server.key")
    door = command(Door(address, upstream.url, *shown, upstream_ca=authority.certificate))
    answers = iter([b"", b"", b"work"])
    upstream.answer = lambda _: next(answers)
    before = {upstream.url.removeprefix("https://"): address}
    behind = loopback.running(door, int(address.rpartition(":")[2]), tmp_path / "door.log")
    with behind, opened(**before) as port:
        assert client(port, PREFIX + "pull-messages", content=b"node").content == b"work"
    assert len(upstream.seen) == 3
