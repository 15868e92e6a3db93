"""What the tests of the whole share: make-believe hospitals, a tapped grid, a search for identifiers."""

import base64
import contextlib
import os
import shutil
import socket
import socketserver
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message

from aggregator import LocalGrid
from models.exchange.wire import VectorArray
from silos.phantom import write_hospital

REPOSITORY = Path(__file__).parent.parent
NAMES = ("east", "north", "south")

PLAN = """
name = "{name}"
purpose = "Test."
seed = {seed}
rounds = {rounds}
min_silos = 2
weights = "{weights}"
metrics = ["loss", "auc"]
{more}

[task]
name = "classification"
classes = ["none", "lesion"]
modality = ["MR"]
size = [32, 32]
percentiles = [1.0, 99.0]
augment = true

[task.network]
name = "cnn"
arguments = {{ channels = [8, 16] }}

[training]
epochs = 1
batch_size = 8
learning_rate = 0.01

[strategy]
{strategy}
"""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def written_hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small hospitals, written once; tests work on copies."""
    folder = tmp_path_factory.mktemp("written")
    for name in NAMES:
        write_hospital(
            folder / name, name=name, seed=3, patients=16, images=3, size=48, studies=["trial", "trial-prox"]
        )
        site = folder / name / "site.toml"
        site.write_text(site.read_text().replace('device = "auto"', 'device = "cpu"'))  # test_cuda.py is for the other
    return folder


@pytest.fixture
def hospitals(written_hospitals: Path, tmp_path: Path) -> list[Path]:
    """The `site.toml` of three hospitals that nobody worked with yet."""
    shutil.copytree(written_hospitals, tmp_path / "hospitals")
    return [tmp_path / "hospitals" / name / "site.toml" for name in NAMES]


@pytest.fixture
def write_plan(tmp_path: Path) -> Callable[..., Path]:
    """Writes a `study.toml`; keywords are the plan's keys."""

    def write(
        name: str = "trial",
        rounds: int = 2,
        strategy: str = 'name = "fedavg"',
        more: str = "",
        seed: int = 7,
        weights: str = "images",
    ) -> Path:
        path = tmp_path / f"{name}-plan.toml"
        path.write_text(PLAN.format(name=name, rounds=rounds, strategy=strategy, more=more, seed=seed, weights=weights))
        return path

    return write


class Proxy(socketserver.ThreadingTCPServer):
    """An HTTP proxy that lets CONNECT through to this machine, whatever the host is called.

    Attributes:
        asked: `host:port` of each tunnel that was asked for.
        refuses: Answers 403 instead.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Tunnel)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.asked: list[str] = []
        self.refuses = False


class _Tunnel(socketserver.StreamRequestHandler):
    server: Proxy
    rbufsize = 0  # what follows the head is the tunnel's

    def handle(self) -> None:
        method, target, _ = self.rfile.readline().decode().split(" ", 2)
        while self.rfile.readline().strip():
            pass
        self.server.asked.append(target)
        if self.server.refuses or method != "CONNECT":
            self.wfile.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            return
        with socket.create_connection(("127.0.0.1", int(target.rpartition(":")[2]))) as there:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=_pour, args=(there, self.connection), daemon=True)
            back.start()
            _pour(self.connection, there)
            back.join()


def _pour(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A hospital's proxy, at work."""
    with Proxy() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class TappedGrid(LocalGrid):
    """A grid that keeps every byte and every word of each reply, as the wire would carry them."""

    def __init__(self, sites: Iterable[Path]) -> None:
        super().__init__(list(sites))
        self.tapped: list[bytes] = []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        for reply in super().pull_messages(message_ids):
            self.tapped += everything_in(reply)
            yield reply


@pytest.fixture
def tapped_grid() -> type[TappedGrid]:
    return TappedGrid


def everything_in(message: Message) -> list[bytes]:
    """Every name and value that a Flower message carries."""
    found = [repr(vars(message.metadata)).encode()]
    if message.has_error():
        found.append(f"{message.error.code} {message.error.reason}".encode())
    if message.has_content():
        for key, record in message.content.items():
            found.append(key.encode())
            if isinstance(record, ArrayRecord):
                for name, array in record.items():
                    found += [name.encode(), array.dtype.encode(), repr(array.shape).encode(), array.data]
                    if isinstance(array, VectorArray):  # packing hides what stands in it
                        found.append(array.vector.tobytes())
            for name, value in record.items() if isinstance(record, ConfigRecord) else ():
                for item in value if isinstance(value, list) else [value]:
                    found += [name.encode(), item if isinstance(item, bytes) else str(item).encode()]
    return found


def disguises(identifier: str) -> set[bytes]:
    """The ways in which an identifier might stand in a byte stream."""
    texts = {
        identifier,
        identifier.upper(),
        identifier.lower(),
        identifier[::-1],
        identifier.replace("^", " "),
    }
    texts.add(urllib.parse.quote(identifier, safe=""))
    found = {text.encode(code) for text in texts for code in ("utf-8", "utf-16-le", "utf-16-be")}
    raw = identifier.encode()
    found |= {raw.hex().encode(), raw.hex().upper().encode()}
    for shift in range(3):  # base64 of it at each offset, less the characters that depend on its neighbours
        coded = base64.b64encode(bytes(shift) + raw).rstrip(b"=")
        found.add(coded[(0, 2, 3)[shift] : len(coded) - (1 if (shift + len(raw)) % 3 else 0)])
    return {pattern for pattern in found if len(pattern) >= 6}


def leaks(identifiers: Iterable[str], blobs: Iterable[bytes]) -> set[str]:
    """The identifiers that stand, in any disguise, in any of the blobs."""
    patterns = {pattern: identifier for identifier in identifiers for pattern in disguises(identifier)}
    by_start: dict[int, list[bytes]] = {}
    for pattern in patterns:
        by_start.setdefault(int.from_bytes(pattern[:6], "big"), []).append(pattern)
    starts = np.array(sorted(by_start), dtype=np.uint64)
    found = set()
    for blob in blobs:
        data = np.frombuffer(blob, np.uint8).astype(np.uint64)
        if len(data) < 6:
            continue
        windows = np.zeros(len(data) - 5, np.uint64)
        for offset in range(6):
            windows = (windows << np.uint64(8)) | data[offset : len(data) - 5 + offset]
        for place in np.flatnonzero(np.isin(windows, starts)):
            for pattern in by_start[int(windows[place])]:
                if blob[place : place + len(pattern)] == pattern:
                    found.add(patterns[pattern])
    return found


@pytest.fixture(scope="session")
def search() -> Callable[[Iterable[str], Iterable[bytes]], set[str]]:
    return leaks


@pytest.fixture(scope="session")
def shut() -> Callable[..., None]:
    """Folders that nobody can look into; their permissions would not keep root out."""

    def close(patch: pytest.MonkeyPatch, *folders: Path) -> None:
        real = os.scandir

        def deny(path: str | Path = ".") -> object:
            if Path(path) in folders:
                raise PermissionError(13, "Permission denied")
            return real(path)

        patch.setattr(os, "scandir", deny)

    return close


@pytest.fixture
def lgg() -> Path:
    """Real brain MR of five hospitals, where it is at hand."""
    path = Path(os.environ.get("INTRAMURAL_LGG", REPOSITORY / ".." / "shared" / "data" / "lgg"))
    if not (path / "north" / "labels.csv").is_file():
        pytest.skip("the five hospitals' brain MR is not here; set INTRAMURAL_LGG to its folder")
    return path.resolve()
