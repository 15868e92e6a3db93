"""The executor against the Runtime API of Flower's own SuperNode, which runs in this process without a network."""

import hashlib
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory

from aggregator.study import Study
from models.errors import NotAppended, is_wire_code
from models.exchange import wire
from models.exchange.channel import Channel
from models.exchange.documents import Order
from models.exchange.spec import Spec
from models.exchange.statement import Kind, Statement
from models.ledger import Event
from silos.app import app as silo_app
from silos.app import close_silo, open_silo
from silos.phantom import write_hospital
from silos.service import executor, runtime
from silos.service.executor import Executor
from silos.service.journal import RESTART_NODE, Journal, Stage, put
from silos.service.runtime import NodeStuckError, Runtime, dump

SECRET = b"only-for-this-test"
NODE = 42
RUN = 7
PROJECT = """
[project]
name = "study"
version = "1.0.0"
[tool.flwr.app]
publisher = "test"
[tool.flwr.app.components]
serverapp = "aggregator.app:app"
clientapp = "{component}"
"""


def zipped(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def harmless(component: str = "silos.app:app") -> dict[str, str]:
    return {"pyproject.toml": PROJECT.format(component=component), "LICENSE": "none", ".info/CONTENT": "x,y,1"}


class SuperNode:
    """Flower's SuperNode without the network: orders are put in, answers are taken out, as its main loop does."""

    def __init__(self) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN, 1
        factory = NodeStateFactory(ObjectStoreFactory())
        self.state: Any = factory.state()
        self.state.set_node_id(NODE)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        app = create_app(factory, SECRET)
        config = uvicorn.Config(
            app, "127.0.0.1", self.port, log_config=None, lifespan="off", loop="asyncio", http="h11", ws="none"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()

    def announce(self, content: bytes | None = None, digest: str | None = None) -> int:
        """A task, before its message is there; its number."""
        content = zipped(harmless()) if content is None else content
        digest = digest or hashlib.sha256(content).hexdigest()
        run = Run.create_empty(RUN)
        run.fab_hash = digest
        self.state.store_run(run)
        self.state.fab_store[digest] = Fab(digest, content, {})
        config = {"site": "/somewhere/else"}
        self.state.set_run_series_context(0, Context(RUN, NODE, config, RecordDict(), {"evil": 1}))
        task = self.state.create_task(TaskType.CLIENT_APP, RUN, digest)
        assert isinstance(task, int)
        return task

    def store(self, message: Message) -> str:
        """The message of the last task, with all of its pieces; its name."""
        name = str(message.object_id)
        message.metadata.__dict__["_message_id"] = name
        store, tree = self.state.object_store, get_object_tree(message)
        pieces = {key: piece.deflate() for key, piece in get_all_nested_objects(message).items()}
        store.preregister(RUN, tree)
        label = Message(content=RecordDict(), metadata=message.metadata)
        self.state.store_message(label)
        for key, piece in pieces.items():
            store.put(key, piece)
        return name

    def store_bytes(self, content: bytes) -> None:
        """Any bytes, in place of the message of the last task."""
        tree = ObjectTree(object_id=hashlib.sha256(content).hexdigest())
        label = message()
        label.metadata.__dict__["_message_id"] = tree.object_id
        self.state.object_store.preregister(RUN, tree)
        self.state.store_message(label)
        self.state.object_store.put(tree.object_id, content)

    def give(self, message: Message, content: bytes | None = None, digest: str | None = None) -> str:
        """An order, whole."""
        self.announce(content, digest)
        return self.store(message)

    def answer(self, timeout: float = 60) -> Message:
        """The answer that would leave, with its content."""
        end = time.monotonic() + timeout
        while not (found := self.state.get_messages_legacy(is_reply=True)):
            assert time.monotonic() < end, "no answer came"
            time.sleep(0.02)
        (label,) = found
        name = label.metadata.message_id
        contents: dict[str, bytes] = {}
        while not contents or b"" in contents.values():
            assert time.monotonic() < end, "the answer has not all of its pieces"
            tree = self.state.object_store.get_object_tree(name)
            stack = [tree]
            while stack:
                branch = stack.pop()
                contents[branch.object_id] = self.state.object_store.get(branch.object_id)
                stack.extend(branch.children)
        message = inflate_object_from_contents(name, contents)
        assert isinstance(message, Message)
        self.state.delete_messages(message_ids=[name, label.metadata.reply_to_message_id])
        return message

    def expire(self) -> None:
        """As if nobody had given a sign of life for long."""
        for record in self.state.task_token_store.values():
            record.active_until -= timedelta(minutes=5)


@pytest.fixture
def node() -> Iterator[SuperNode]:
    node = SuperNode()
    yield node
    node.close()


@pytest.fixture(scope="module")
def written_hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospital") / "north"
    return write_hospital(folder, name="north", seed=5, patients=16, images=2, size=32, studies=["trial"])


@pytest.fixture
def site(written_hospital: Path, tmp_path: Path) -> Iterator[Path]:
    import shutil

    shutil.copytree(written_hospital.parent, tmp_path / "north")
    path = tmp_path / "north" / "site.toml"
    yield path
    close_silo(path)


def work_folder(site: Path) -> Path:
    return open_silo(site).site.run.work


def rejected(site: Path) -> list[str]:
    """What the hospital's ledger says of orders that were not followed."""
    records = open_silo(site).ledger.records
    return [record.body["code"] for record in records if record.event == Event.ORDER_REJECTED]


def echo(seen: list[dict[str, object]]) -> ClientApp:
    """An app that notes what it is given, and answers with what came."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        seen.append({**context.node_config, "run": dict(context.run_config), "state": len(context.state)})
        return Message(message.content, reply_to=message)

    return app


def message(kind: str = "train", content: RecordDict | None = None) -> Message:
    return Message(content or RecordDict(), NODE, kind)


class Worker:
    """An executor at work in a thread, as it would be in its process."""

    def __init__(self, site: Path, node: SuperNode, app: ClientApp = silo_app) -> None:
        self.error: BaseException | None = None
        self._stopping = threading.Event()
        self._executor = Executor(site, node.address, SECRET, app)
        self._thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        try:
            self._executor.work(self._stopping)
        except BaseException as error:
            self.error = error

    def __enter__(self) -> "Worker":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def end(self) -> BaseException | None:
        """How it ended by itself."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.error


# Orders in, answers out


def test_an_order_is_answered_and_the_app_is_told_what_this_hospital_decides(node: SuperNode, site: Path) -> None:
    seen: list[dict[str, object]] = []
    with Worker(site, node, echo(seen)):
        for _ in range(3):
            name = node.give(message())
            answer = node.answer()
            assert answer.metadata.reply_to_message_id == name
            assert answer.has_content()
    assert seen == [{"site": str(site), "run": {}, "state": 0}] * 3


def test_no_state_of_the_app_stays_with_flower(node: SuperNode, site: Path) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        context.node_config["secret"] = "of the hospital"
        context.state = RecordDict()
        return Message(RecordDict(), reply_to=message)

    with Worker(site, node, app):
        node.give(message())
        node.answer()
    assert node.state.get_run_series_context(0).node_config == {"site": "/somewhere/else"}


def test_the_journal_and_the_status_say_what_is_going_on(node: SuperNode, site: Path) -> None:
    work = work_folder(site)
    during: list[tuple[str, set[int], str]] = []
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        files = list(work.glob("journal*"))
        page = Journal(work / "journal", "any").read()
        assert page is not None
        state = json.loads((work / executor.STATUS).read_bytes())["state"]
        during.append((page.stage, {path.stat().st_mode & 0o777 for path in files}, state))
        return Message(RecordDict(), reply_to=message)

    with Worker(site, node, app):
        node.give(message())
        node.answer()
        node.give(message())
        node.answer()
    assert during == [(Stage.PULLED, {0o600}, "working")] * 2
    assert not list(work.glob("journal*"))
    status = json.loads((work / executor.STATUS).read_bytes())
    assert status["state"] == "waiting"
    assert abs(status["last_order"] - time.time()) < 60


def test_an_order_that_is_announced_before_it_is_there_is_waited_for(node: SuperNode, site: Path) -> None:
    seen: list[dict[str, object]] = []
    with Worker(site, node, echo(seen)):
        node.announce()
        time.sleep(0.5)
        name = node.store(message())
        assert node.answer().metadata.reply_to_message_id == name
    assert len(seen) == 1


def test_people_are_heard_between_orders(node: SuperNode, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = threading.Event()
    monkeypatch.setattr(open_silo(site), "tend", heard.set)
    with Worker(site, node, echo([])):
        assert heard.wait(10)


def test_another_secret_gets_no_order(node: SuperNode, caplog: pytest.LogCaptureFixture) -> None:
    node.give(message())
    stranger = Runtime(node.address, b"guessed")
    assert stranger.acquire() == ""
    stranger.close()
    assert "HTTP 401" in caplog.text


# What is refused


BOMB = "\0" * 5_000_000
BUNDLES = {
    "bundle.code": zipped({**harmless(), "silos/app.py": "raise SystemExit"}),
    "bundle.component": zipped(harmless("study.app:app")),
    "bundle.size": zipped({**harmless(), "LICENSE": BOMB}),
    "bundle": b"PK\x03\x04 no archive",
}


@pytest.mark.parametrize("code", BUNDLES)
def test_a_bundle_that_is_not_the_harmless_one_is_refused_and_recorded(node: SuperNode, site: Path, code: str) -> None:
    seen: list[dict[str, object]] = []
    with Worker(site, node, echo(seen)):
        node.give(message(), BUNDLES[code])
        answer = node.answer()
    assert (answer.error.code, answer.error.reason) == (7, code)
    assert rejected(site) == [code]
    assert seen == []


def test_a_bundle_that_is_not_the_runs_is_refused(node: SuperNode, site: Path) -> None:
    with Worker(site, node, echo([])):
        node.give(message(), digest="0" * 64)
        assert node.answer().error.reason == "bundle.digest"
    assert rejected(site) == ["bundle.digest"]


@pytest.mark.parametrize(
    "files",
    [
        {"pyproject.toml": PROJECT.format(component="silos.app:app"), "LICENSE": "none"},
        {**harmless(), "../../silos/app.py": ""},
        {**harmless(), "pyproject.toml": "[tool.flwr.app]\n"},
        {**harmless(), "pyproject.toml": "= no toml"},
    ],
)
def test_every_other_bundle_is_refused(node: SuperNode, site: Path, files: dict[str, str]) -> None:
    with Worker(site, node, echo([])):
        node.give(message(), zipped(files))
        assert (node.answer().error.reason or "").startswith("bundle")


def test_a_file_that_stands_twice_in_the_bundle_is_refused(node: SuperNode, site: Path) -> None:
    buffer = io.BytesIO(zipped(harmless()))
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("pyproject.toml", PROJECT.format(component="evil:app"))
    with Worker(site, node, echo([])):
        node.give(message(), buffer.getvalue())
        assert node.answer().error.reason == "bundle.code"


def test_an_order_whose_bytes_are_no_message_is_answered(node: SuperNode, site: Path) -> None:
    with Worker(site, node, echo([])):
        node.announce()
        node.store_bytes(b"Message  3\x00\xff\xff\xff")
        assert node.answer().error.reason == "malformed"
    assert rejected(site) == ["malformed"]


def test_a_kind_of_order_that_nobody_knows_is_answered(node: SuperNode, site: Path) -> None:
    with Worker(site, node, echo([])):
        node.give(message("train.backdoor"))
        assert node.answer().error.reason == "internal"


def test_no_text_of_an_error_leaves(node: SuperNode, site: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise ValueError("Müller^Hanna 1967-03-01")

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(Error(2, "Müller^Hanna 1967-03-01"), reply_to=message)

    with caplog.at_level(logging.INFO), Worker(site, node, app):
        for kind in ("train", "evaluate"):
            node.give(message(kind))
            answer = node.answer()
            assert answer.error.reason == "internal"
            assert is_wire_code(answer.error.reason)
    assert "Hanna" not in caplog.text
    assert "Hanna" not in str(node.state.get_tasks())


def test_a_ledger_that_cannot_be_written_is_answered_for_and_opened_again(
    node: SuperNode, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise NotAppended("no space left on device")

    monkeypatch.setattr(open_silo(site).ledger, "append", full)
    with Worker(site, node, echo([])):
        node.give(message(), BUNDLES["bundle.code"])
        assert node.answer().error.reason == "ledger-not-appended"
        node.give(message(), BUNDLES["bundle.code"])  # the disk has space again
        assert node.answer().error.reason == "bundle.code"
    assert [r.body for r in open_silo(site).ledger.records if r.event == Event.ORDER_REJECTED] == [
        {"code": "bundle.code"}
    ]


def test_a_journal_that_cannot_be_written_stops_no_order(
    node: SuperNode, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("silos.service.journal.put", full)
    with Worker(site, node, echo([])):
        node.give(message())
        assert not node.answer().has_error()


# Killed


def fingerprint() -> str:
    return hashlib.sha256(SECRET).hexdigest()[:16]


def left(site: Path) -> Journal:
    """The journal of an executor that was killed."""
    return Journal(work_folder(site) / "journal", fingerprint())


def acquired(node: SuperNode) -> str:
    """The token of the order that waits."""
    client = Runtime(node.address, SECRET)
    token = client.acquire()
    client.close()
    assert token
    return token


def fetched(node: SuperNode, site: Path) -> tuple[Journal, str]:
    """An order as a killed executor left it, fetched and being followed."""
    token = acquired(node)
    with runtime.Task(node.address, token) as task:
        assert task.begin()
        order = task.fetch(*task.order())
    journal = left(site)
    journal.pulled(token, order.metadata.message_id, dump(order))
    return journal, order.metadata.message_id


def test_an_order_that_was_only_announced_to_the_killed_one_is_followed(node: SuperNode, site: Path) -> None:
    seen: list[dict[str, object]] = []
    name = node.give(message())
    left(site).acquired(acquired(node))
    with Worker(site, node, echo(seen)):
        assert node.answer().metadata.reply_to_message_id == name
    assert [item.get("again") for item in seen] == [None]


def test_an_order_that_nobody_began_in_time_is_given_out_again(node: SuperNode, site: Path) -> None:
    seen: list[dict[str, object]] = []
    name = node.give(message())
    left(site).acquired(acquired(node))
    node.expire()
    with Worker(site, node, echo(seen)):
        assert node.answer().metadata.reply_to_message_id == name
    assert len(seen) == 1


def test_an_order_that_was_begun_and_not_fetched_is_answered_for(node: SuperNode, site: Path) -> None:
    name = node.give(message())
    token = acquired(node)
    with runtime.Task(node.address, token) as task:
        task.begin()
    left(site).acquired(token)
    with Worker(site, node, echo([])):
        answer = node.answer()
    assert (answer.metadata.reply_to_message_id, answer.error.reason) == (name, "interrupted")


def test_an_order_that_went_to_the_killed_one_alone_asks_for_a_new_supernode(
    node: SuperNode, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_STORED", 0.2)
    node.give(message())
    token = acquired(node)
    with runtime.Task(node.address, token) as task:
        task.begin()
        task.order()
    left(site).acquired(token)
    with Worker(site, node, echo([])) as worker:
        assert isinstance(worker.end(), NodeStuckError)
    assert left(site).read() is None


def test_an_order_that_was_begun_long_ago_asks_for_a_new_supernode(node: SuperNode, site: Path) -> None:
    node.give(message())
    token = acquired(node)
    with runtime.Task(node.address, token) as task:
        task.begin()
    left(site).acquired(token)
    node.expire()
    with Worker(site, node, echo([])) as worker:
        assert isinstance(worker.end(), NodeStuckError)


def test_an_order_in_work_is_followed_once_more(node: SuperNode, site: Path) -> None:
    seen: list[dict[str, object]] = []
    content = RecordDict()
    node.give(message(content=content))
    _, name = fetched(node, site)
    with Worker(site, node, echo(seen)):
        answer = node.answer()
        assert answer.metadata.reply_to_message_id == name
    assert seen == [{"site": str(site), "again": True, "run": {}, "state": 0}]
    assert left(site).read() is None


def test_an_order_that_kills_whoever_follows_it_is_given_up(node: SuperNode, site: Path) -> None:
    seen: list[dict[str, object]] = []
    node.give(message())
    journal, name = fetched(node, site)
    journal.again()
    with Worker(site, node, echo(seen)):
        answer = node.answer()
    assert (answer.metadata.reply_to_message_id, answer.error.reason) == (name, "interrupted")
    assert rejected(site) == ["interrupted"]
    assert seen == []


def test_an_order_that_the_supernode_gave_up_meanwhile_is_forgotten(node: SuperNode, site: Path) -> None:
    seen: list[dict[str, object]] = []
    node.give(message())
    fetched(node, site)
    node.expire()
    with Worker(site, node, echo(seen)):
        assert node.answer().error.reason == "ClientApp stopped responding."  # Flower's own words
        name = node.give(message())
        assert node.answer().metadata.reply_to_message_id == name
    assert len(seen) == 1


def test_an_answer_that_was_cut_off_asks_for_a_new_supernode(node: SuperNode, site: Path) -> None:
    node.give(message())
    journal, _ = fetched(node, site)
    journal.replying()
    with Worker(site, node, echo([])) as worker:
        assert isinstance(worker.end(), NodeStuckError)
    assert left(site).read() is None


def test_a_torn_journal_asks_for_a_new_supernode_and_is_dropped(node: SuperNode, site: Path) -> None:
    put(work_folder(site) / "journal", b'{"stage": "pul')
    with Worker(site, node, echo([])) as worker:
        assert isinstance(worker.end(), NodeStuckError)
    assert left(site).read() is None


def test_the_order_of_a_supernode_that_is_gone_is_forgotten(node: SuperNode, site: Path) -> None:
    seen: list[dict[str, object]] = []
    Journal(work_folder(site) / "journal", "another").pulled("token", "message-1", b"")
    with Worker(site, node, echo(seen)):
        node.give(message())
        node.answer()
    assert len(seen) == 1


def test_an_answer_that_nobody_waits_for_any_more_stops_nothing(node: SuperNode, site: Path) -> None:
    seen: list[dict[str, object]] = []
    app = echo(seen)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        node.expire()  # as when the SuperNode was started anew meanwhile
        return Message(RecordDict(), reply_to=message)

    with Worker(site, node, app):
        node.give(message("evaluate"))
        node.answer()
        node.give(message())
        assert node.answer().has_content()
    assert len(seen) == 1


def test_an_answer_that_cannot_be_delivered_asks_for_a_new_supernode(
    node: SuperNode, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise OSError("a piece was not stored")

    monkeypatch.setattr(runtime, "push_message", lost)
    with Worker(site, node, echo([])) as worker:
        node.give(message())
        assert isinstance(worker.end(), NodeStuckError)


# The process


CHILD = """
import os, signal, sys, threading
from pathlib import Path
from flwr.clientapp import ClientApp
from silos.app import app as silo_app
from silos.service.executor import Executor

app = ClientApp()

@app.train()
def train(message, context):
    silo_app(message, context)            # the update is in the ledger now, and leaves no more
    os.kill(os.getpid(), signal.SIGKILL)

Executor(Path(sys.argv[1]), sys.argv[2], sys.argv[3].encode(), app).work(threading.Event())
"""


@pytest.fixture
def order(site: Path, tmp_path: Path, write_plan: Callable[..., Path]) -> Iterator[tuple[Message, Channel, Spec]]:
    """A real order of a real study, the coordinator's side of the exchange, and the arrays."""
    with Study.create(write_plan(more='encoding = "float32"'), tmp_path / "study") as study:
        channel = Channel(study.ledger, study.signer, open_silo(site).signer.verifier, study.digest)
        base = study.load_model(0, study.position.digest)
        asked = Order(agreement=study.agreement, round=1, visit="train", base=study.position.digest)
        envelope = channel.offer(Kind.ORDER, 1, asked, spec=study.spec.digest, vector=base)
        yield Message(wire.pack(envelope, wire.pack_vector(base)), NODE, "train"), channel, study.spec


def test_an_executor_killed_when_its_update_was_written_down_gives_another_when_it_is_back(
    node: SuperNode, site: Path, order: tuple[Message, Channel, Spec]
) -> None:
    asked, channel, spec = order
    close_silo(site)
    name = node.give(asked)
    killed = subprocess.run(
        [sys.executable, "-c", CHILD, str(site), node.address, SECRET.decode()], capture_output=True, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()

    with Worker(site, node):
        answer = node.answer(120)
    assert answer.metadata.reply_to_message_id == name
    received = channel.verify(wire.unpack(answer.content), spec)
    assert received.statement.kind == Kind.UPDATE
    ledger = open_silo(site).ledger.records
    events = [record.event for record in ledger if record.event in (Event.ORDER_RECEIVED, Event.UPDATE_OFFERED)]
    assert events == [Event.ORDER_RECEIVED, Event.UPDATE_OFFERED, Event.UPDATE_OFFERED]
    assert Statement.parse(ledger[-1].body["statement"]).xid == received.statement.xid


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    return path


def test_the_process_follows_orders_past_every_proxy_and_ends_when_told(
    node: SuperNode, site: Path, secret: Path, order: tuple[Message, Channel, Spec]
) -> None:
    close_silo(site)
    node.give(order[0])
    proxied = {**os.environ, "http_proxy": "http://127.0.0.1:9", "no_proxy": "example.org"}
    command = [sys.executable, "-m", "silos.service.executor", str(site), "--address", node.address]
    command += ["--secret", str(secret), "--log-json"]
    with subprocess.Popen(command, env=proxied, stderr=subprocess.PIPE) as running:
        try:
            assert node.answer(120).has_content()
            running.terminate()
            _, talk = running.communicate(timeout=60)
        finally:
            running.kill()
    assert running.returncode == 0, talk.decode()
    assert all(json.loads(line)["level"] in ("info", "warning") for line in talk.decode().splitlines())


@pytest.fixture
def run_main(node: SuperNode, site: Path, secret: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """The process's own code, in this process."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv("no_proxy", "")
    for name in ("intramural", "flwr"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.getLogger(name).level)
    return lambda: executor.main([str(site), "--address", node.address, "--secret", str(secret)])


def test_the_process_says_when_the_supernode_must_be_started_anew(site: Path, run_main: Callable[[], int]) -> None:
    put(work_folder(site) / "journal", b"torn")
    assert run_main() == RESTART_NODE == 75
    assert left(site).read() is None


def test_a_hospital_that_cannot_be_opened_ends_the_process_before_any_order(
    node: SuperNode, site: Path, run_main: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    node.give(message())
    site.write_text(site.read_text().replace("min_patients", "max_patients"))
    assert run_main() == 1
    talk = capsys.readouterr().err
    assert "policy.max_patients: is not a known key" in talk
    assert "Traceback" not in talk
    assert node.state.get_tasks(statuses=["pending"])


def test_the_process_takes_no_empty_secret(secret: Path, run_main: Callable[[], int]) -> None:
    secret.write_bytes(b"")
    assert run_main() == 1
