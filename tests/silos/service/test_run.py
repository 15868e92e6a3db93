"""The hospital's service: first with make-believe processes, then with Flower's own, over TLS."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.app import Message, RecordDict
from flwr.common.serde import run_from_proto
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest, SendTaskHeartbeatRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from aggregator.service.certificates import issue_client
from aggregator.service.home import Home
from aggregator.service.superlink import SuperLink
from aggregator.study import Study
from models.errors import ConfigError, Locked
from models.exchange import door, wire
from models.exchange.channel import Channel
from models.exchange.documents import Order
from models.exchange.statement import Kind
from models.ledger import Event, Signer, read
from models.processes import Process, Supervisor
from silos.cohort import match, read_labels
from silos.config import Site
from silos.network.enrolment import join
from silos.phantom import write_hospital
from silos.service import node as node_module
from silos.service import run as service
from silos.service.journal import RESTART_NODE
from silos.service.node import Link, Node
from silos.service.run import HEALTH, run_service

REPOSITORY = Path(__file__).parents[3]


def eventually(what: Callable[[], Any], seconds: float = 60) -> Any:
    """The first value that is true, waited for."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)
    return found


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


# With make-believe processes


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A coordinator that admits who shows its certificate; nothing of it runs yet."""
    port = free_port()
    folder = tmp_path_factory.mktemp("coordinator") / "home"
    Home.create(folder, f"127.0.0.1:{port}", listen=f"127.0.0.1:{port}", require_certificates=True)
    settings = folder / "service.toml"
    settings.write_text(re.sub("superlink_port = .*", f"superlink_port = {free_port()}", settings.read_text()))
    return Home.open(folder)


@pytest.fixture(scope="module")
def joined(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `site.toml` of a hospital that was admitted; tests work on copies."""
    folder = tmp_path_factory.mktemp("joined") / "north"
    path = write_hospital(folder, name="north", seed=5, patients=16, images=2, size=32, studies=["trial"])
    shutil.copy(home.invitation_path, folder)
    path.write_text(path.read_text().replace("[run]", '[run]\ncoordinator = "coordinator.json"'))
    enrolment = join(Site.load(path))
    (folder / "north.crt").write_bytes(issue_client(home.authority, enrolment.request, "north"))
    return path


@pytest.fixture
def site(joined: Path, tmp_path: Path) -> Path:
    shutil.copytree(joined.parent, tmp_path / "north")
    return tmp_path / "north" / "site.toml"


def work(site: Path) -> Path:
    return Site.load(site).run.work


def health(site: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((work(site) / HEALTH).read_bytes())
    except FileNotFoundError:
        return {}
    return found


NODE = """#!/bin/sh
echo start >> {folder}/node.starts
echo "$@" > {folder}/node.arguments
{trap}
echo "INFO: SuperNode ID: 42"
{talk}
while true; do sleep 0.1; done
"""

EXECUTOR = """#!/bin/sh
echo start >> {folder}/executor.starts
{first}
echo '{{"state": "{state}", "since": 1000, "last_order": null}}' > {work}/executor.json
[ $(wc -l < {folder}/executor.starts) = 1 ] && {{ {then}; }}
trap "exit 0" TERM
while true; do sleep 0.1; done
"""


class Fakes:
    """A service whose SuperNode and executor are scripts."""

    def __init__(self, site: Path, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.site, self.folder, self.patch = site, folder, patch
        self.stopping = threading.Event()
        self.code: int | None = None
        patch.setattr(service, "_TICK", 0.05)
        patch.setattr(service, "_PULSE", 0.1)
        patch.setattr(service, "_explain", lambda site: None)
        patch.setattr(node_module, "_AGAIN", (0.05,))

    @contextmanager
    def run(
        self, *, trap: str = "", talk: str = "", first: str = "", state: str = "waiting", then: str = "true"
    ) -> Iterator[None]:
        executor = {"folder": self.folder, "work": work(self.site), "first": first, "state": state, "then": then}
        scripts = {
            "node": NODE.format(folder=self.folder, trap=trap, talk=talk),
            "executor": EXECUTOR.format(**executor),
        }
        for name, text in scripts.items():
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o700)
        self.patch.setattr(node_module, "_flower", lambda program: str(self.folder / "node"))
        self.patch.setattr(sys, "executable", str(self.folder / "executor"))
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self.stopping.set()
            thread.join()

    def _run(self) -> None:
        self.code = run_service(self.site, self.stopping)

    def starts(self, name: str) -> int:
        path = self.folder / f"{name}.starts"
        return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture
def fakes(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    return Fakes(site, tmp_path, monkeypatch)


def test_the_health_file_says_how_it_is_and_nothing_else(fakes: Fakes) -> None:
    with fakes.run():
        found = eventually(lambda: health(fakes.site).get("state") == "waiting" and health(fakes.site))
        assert found.keys() == {"time", "state", "supernode", "executor", "node_id", "last_order"}
        assert (found["node_id"], found["last_order"]) == (42, None)
        assert not gone(found["supernode"])
    assert fakes.code == 0
    stopped = health(fakes.site)
    assert (stopped["state"], stopped["supernode"], stopped["executor"]) == ("stopped", None, None)
    assert (work(fakes.site) / HEALTH).stat().st_mode & 0o777 == 0o600


def test_the_supernode_trusts_the_invitation_and_listens_on_loopback_only(fakes: Fakes, home: Home) -> None:
    with fakes.run():
        words = eventually(lambda: fakes.starts("node") and (fakes.folder / "node.arguments").read_text()).split()
    options = dict(zip(words[::2], words[1::2], strict=True))
    assert options["--superlink"] == home.settings.address
    assert Path(options["--root-certificates"]).read_text() == home.invitation.certificates
    assert (options["--isolation"], options["--host"]) == ("process", "127.0.0.1")
    secret = Path(options["--superexec-auth-secret-file"])
    assert (len(secret.read_bytes()), secret.stat().st_mode & 0o777) == (32, 0o600)


def test_the_secret_is_another_at_every_start(site: Path, home: Home) -> None:
    opened = Site.load(site)
    assert Node(opened, home.invitation).secret.read_bytes() != Node(opened, home.invitation).secret.read_bytes()


def test_a_runtime_port_that_the_site_names_is_used(site: Path, home: Home) -> None:
    site.write_text(site.read_text().replace("[run]", "[run]\nruntime_port = 9094"))
    assert Node(Site.load(site), home.invitation).address == "127.0.0.1:9094"


def test_the_way_is_that_of_the_site_file_whatever_the_environment_says(
    site: Path, home: Home, monkeypatch: pytest.MonkeyPatch, proxy: Any
) -> None:
    def call() -> None:
        """Call the coordinator as Flower's SuperNode does: with httpx, in the environment that it is given."""
        (*_, node) = Node(Site.load(site), home.invitation).processes()
        with monkeypatch.context() as patch:
            for name, value in node.environment.items():
                patch.setenv(name, value)
            with pytest.raises(httpx.TransportError):
                httpx.post("https://hub.invalid:9")

    proxy.refuses = True
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    call()
    assert proxy.asked == []
    site.write_text(site.read_text().replace("[run]", f'[run]\nproxy = "{proxy.url}"'))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "hub.invalid")
    call()
    assert proxy.asked == ["hub.invalid:9"]
    with_certificate(site)
    call()
    assert proxy.asked == ["hub.invalid:9"]  # its forwarder is on this machine, and takes the proxy
    assert f"--proxy={proxy.url}" in Node(Site.load(site), home.invitation).processes()[0].command


def test_a_proxy_with_a_password_or_without_a_port_is_refused(site: Path) -> None:
    before = site.read_text()
    for wrong in ("http://me:secret@proxy:3128", "proxy:3128", "https://proxy:3128", "http://proxy"):
        site.write_text(before.replace("[run]", f'[run]\nproxy = "{wrong}"'))
        with pytest.raises(ConfigError, match=r"run\.proxy: must be like .*, without user and password"):
            Site.load(site)


def test_an_executor_that_asks_for_a_new_supernode_gets_one(fakes: Fakes) -> None:
    with fakes.run(then=f"sleep 0.5; exit {RESTART_NODE}"):
        eventually(lambda: fakes.starts("node") == 2 and fakes.starts("executor") == 2)
        assert health(fakes.site)["state"] != "stopped"
    assert (fakes.starts("node"), fakes.starts("executor")) == (2, 2)


def test_a_supernode_that_does_not_end_is_killed(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_STUBBORN", 0.3)
    with fakes.run(trap='[ $(wc -l < "$0.starts") = 1 ] && trap "" TERM', then=f"sleep 0.5; exit {RESTART_NODE}"):
        eventually(lambda: fakes.starts("node") == 2)


def test_a_supernode_with_an_order_that_nobody_is_given_is_started_anew(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_STUCK", 0.5)
    with fakes.run(talk='[ $(wc -l < "$0.starts") = 1 ] && echo "INFO: Receiving: train message (ID: 1)"'):
        eventually(lambda: fakes.starts("node") == 2)
        time.sleep(1.5)
        assert fakes.starts("node") == 2  # the second one has nothing to do, and may wait


@pytest.mark.parametrize(("state", "starts"), [("receiving", 2), ("working", 1)])  # who works has all of its order
def test_a_supernode_that_drops_an_order_on_its_way_is_started_anew(fakes: Fakes, state: str, starts: int) -> None:
    dropped = "Run ID 7 is not in \\`RUNNING\\` status. Ignoring message 1."
    talk = f'[ $(wc -l < "$0.starts") = 1 ] && echo "INFO: Receiving: train message (ID: 1)" && echo "INFO: {dropped}"'
    with fakes.run(talk=talk, state=state):
        eventually(lambda: fakes.starts("node") == starts)
        time.sleep(1)
        assert fakes.starts("node") == starts


def test_a_killed_executor_is_started_again(fakes: Fakes) -> None:
    with fakes.run(then="sleep 0.3; kill -9 $$"):
        eventually(lambda: fakes.starts("executor") == 2)
    assert fakes.starts("node") == 1


def test_a_hospital_that_cannot_be_opened_ends_the_service_with_the_executors_code(fakes: Fakes) -> None:
    with fakes.run(first="exit 3"):
        eventually(lambda: fakes.code is not None)
    assert fakes.code == 3


def test_an_executor_that_fails_later_does_not_end_the_service(fakes: Fakes) -> None:
    with fakes.run(then="sleep 0.3; exit 1"):
        eventually(lambda: fakes.starts("executor") == 2)
    assert fakes.code == 0


def test_a_second_service_of_the_same_hospital_is_refused(fakes: Fakes) -> None:
    with fakes.run():
        eventually(lambda: fakes.starts("node"))
        with pytest.raises(Locked):
            run_service(fakes.site, threading.Event())


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (lambda folder: (folder / "coordinator.json").unlink(), "run.coordinator"),
        (lambda folder: next(folder.rglob("node.key")).unlink(), "node.key"),
        (lambda folder: next(folder.rglob("node.key")).chmod(0o644), "chmod 600"),
        (lambda folder: (folder / "north.crt").unlink(), "run.certificate"),
    ],
)
def test_what_is_missing_is_named_before_anything_starts(
    site: Path, break_it: Callable[[Path], object], named: str
) -> None:
    with_certificate(site)
    break_it(site.parent)
    with pytest.raises(ConfigError) as caught:
        run_service(site, threading.Event())
    assert named in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    ("line", "link"),
    [
        ("INFO :      SuperNode ID: 77", Link.CONNECTED),
        ("WARNING :   Connection attempt failed, retrying in 2.07 seconds", Link.UNREACHABLE),
        ("ERROR :     Exit Code: 305", Link.REFUSED),
        ("INFO:     Application startup complete.", Link.CONNECTING),
    ],
)
def test_the_supernodes_talk_is_understood(site: Path, home: Home, line: str, link: Link) -> None:
    node = Node(Site.load(site), home.invitation)
    log = work(site) / "node" / "supernode.log"
    log.write_text(line)
    node.listen()
    assert node.link is Link.CONNECTING  # half a line is none
    log.write_text(f"{line}\n")
    node.listen()
    assert node.link is link


def test_whoever_gets_an_answer_is_connected_again(site: Path, home: Home) -> None:
    node = Node(Site.load(site), home.invitation)
    with (work(site) / "node" / "supernode.log").open("a") as log:
        for line, link in (
            ("INFO :      SuperNode ID: 77", Link.CONNECTED),
            ("WARNING :   Connection attempt failed, retrying in 2.07 seconds", Link.UNREACHABLE),
            ("INFO :      Run ID 7 is not in `RUNNING` status. Ignoring message 1.", Link.CONNECTED),
            ("WARNING :   Connection attempt failed, retrying in 2.07 seconds", Link.UNREACHABLE),
            ("INFO :      Received successfully", Link.CONNECTED),
        ):
            log.write(f"{line}\n")
            log.flush()
            node.listen()
            assert node.link is link, line


def test_the_systemd_unit_starts_what_there_is(tmp_path: Path) -> None:
    unit = (REPOSITORY / "configs" / "intramural-silo.service").read_text()
    (start,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    program, *words = start.split()
    site = str(tmp_path / "site.toml")
    done = subprocess.run(
        [sys.executable, "-m", "silos.cli", *(site if word.endswith("site.toml") else word for word in words)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert Path(program).name == "intramural-silo"
    assert (done.returncode, done.stderr.startswith(f"error: {site}")) == (1, True), done.stderr


def with_certificate(site: Path) -> None:
    site.write_text(site.read_text().replace("[run]", '[run]\ncertificate = "north.crt"'))


# With Flower's own processes


class Coordinator:
    """A SuperLink behind a front door, and this process as the ServerApp of a run.

    Args:
        home: The coordinator's service folder.
    """

    def __init__(self, home: Home) -> None:
        self.home, self.link = home, SuperLink(home)
        front = door.Door(
            listen=home.settings.listen,
            upstream=f"https://{self.link.address}",
            certificate=home.server_certificate,
            key=home.server_key,
            upstream_ca=home.ca_certificate,
            client_ca=home.ca_certificate,
            hold=5,
        )
        self.log = home.folder / "superlink.log"
        superlink = self.link.processes()[0]
        command = [*superlink.command, "--log-file", str(self.log)]
        self._supervisor = Supervisor(
            [Process("superlink", command, superlink.environment), Process("door", door.command(front))]
        )
        self._environment = {**os.environ, **superlink.environment}

    def __enter__(self) -> "Coordinator":
        self._supervisor.__enter__()
        eventually(lambda: self._answers(), 60)
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self._supervisor.running().values():
            os.kill(pid, signal.SIGKILL)  # a SuperLink takes its time to end, and this one is not needed any more
        self._supervisor.stop()

    def _answers(self) -> bool:
        self._supervisor.tend()
        host, port = self.link.address.split(":")
        with socket.socket() as knock:
            return knock.connect_ex((host, int(port))) == 0

    def start(self, bundle: Path) -> "ServerApp":
        """A run of this bundle; its ServerApp is this process."""
        flwr = Path(sys.executable).with_name("flwr")
        command = [str(flwr), "run", str(bundle), "intramural", "--format", "json"]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=120)
        assert '"success": true' in done.stdout, done.stdout + done.stderr
        return ServerApp(self.home, self.link.address)


class ServerApp:
    """This process as the ServerApp of the run that waits."""

    def __init__(self, home: Home, address: str) -> None:
        ca = home.ca_certificate.read_bytes()
        proof = SuperExecAuthHttpInterceptor(
            master_secret=home.superexec_secret.read_bytes(), protected_methods={"/flwr.proto.Runtime/AcquireTask"}
        )
        version = RuntimeVersionHttpInterceptor(component_name="SuperExec")
        with RuntimeHttpClient.from_server_address(address, False, ca, [version, proof]) as starter:
            request = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
            token = eventually(lambda: starter.AcquireTask(request).token)
        self.grid = HttpGrid(address, root_certificates=ca, token=token)
        given = self.grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        self.grid.set_run(run_from_proto(given.run))
        self._identity = given.task_id, given.run.run_id, given.context.node_id

    def ask(self, content: RecordDict, node: int, kind: str = "train") -> str:
        """Send an order; its number."""
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = self._identity
        (number,) = self.grid.push_messages([Message(content, node, kind)])
        assert number
        return str(number)

    def answer(self, number: str, seconds: float = 120) -> Message:
        """Wait for the answer to an order."""

        def look() -> list[Message]:
            self.grid._runtime_client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
            time.sleep(0.2)
            return list(self.grid.pull_messages([number]))

        (found,) = eventually(look, seconds)
        assert isinstance(found, Message)
        return found


BUNDLE = """
[project]
name = "study"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "test"
{include}
[tool.flwr.app.components]
serverapp = "aggregator.app:app"
clientapp = "silos.app:app"
"""

PLAN = """
name = "trial"
purpose = "Test."
rounds = 5
min_silos = 1
metrics = ["loss"]
[task]
name = "classification"
classes = ["none", "lesion"]
modality = ["MR"]
size = [32, 32]
percentiles = [1.0, 99.0]
[task.network]
name = "cnn"
arguments = { channels = [8, 16] }
[training]
steps = 1500
batch_size = 8
learning_rate = 0.01
"""


class Federation:
    """A coordinator, one hospital's service, and a study between them."""

    def __init__(self, coordinator: Coordinator, site: Path, folder: Path) -> None:
        self.coordinator, self.site, self.folder = coordinator, site, folder
        self.log = folder / "service.log"
        self.marker = folder / "marker"
        (folder / "plan.toml").write_text(PLAN)
        self.study = Study.create(folder / "plan.toml", folder / "study", key=coordinator.home.key_path)
        enrolled = Signer.load(Site.load(site).key).verifier
        self.channel = Channel(self.study.ledger, self.study.signer, enrolled, self.study.digest)
        self.app = coordinator.start(self.bundle("harmless", 'fab-include = ["LICENSE"]'))
        self.received: list[Message] = []
        self.service: subprocess.Popen[bytes] | None = None

    def bundle(self, name: str, include: str) -> Path:
        folder = self.folder / name
        folder.mkdir()
        (folder / "pyproject.toml").write_text(BUNDLE.format(include=include))
        (folder / "LICENSE").write_text("none\n")
        return folder

    def start(self) -> int:
        """Start the hospital's service; its node's number, once an order can be followed."""
        command = [sys.executable, "-m", "silos.cli", "run", str(self.site), "--log-json"]
        with self.log.open("ab") as log:
            self.service = subprocess.Popen(command, stdout=log, stderr=log)

        def ready() -> int:
            assert self.service
            assert self.service.poll() is None, self.log.read_text()
            found = health(self.site)
            return int(found["node_id"]) if found.get("state") == "waiting" else 0

        return int(eventually(ready, 90))

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the service; its exit code."""
        assert self.service
        self.service.send_signal(number)
        return self.service.wait(60)

    def order(self) -> RecordDict:
        """The next order to train."""
        base = self.study.load_model(0, self.study.position.digest)
        asked = Order(agreement=self.study.agreement, round=1, visit="train", base=self.study.position.digest)
        envelope = self.channel.offer(Kind.ORDER, 1, asked, spec=self.study.spec.digest, vector=base)
        return wire.pack(envelope, wire.pack_vector(base))

    def take(self, answer: Message) -> str:
        """Verify an answer and write it down; what it is."""
        self.received.append(answer)
        assert answer.has_content(), answer.error.reason
        envelope = wire.unpack(answer.content, None, self.study.encoding)
        received = self.channel.verify(envelope, None if envelope.vector is None else self.study.spec)
        self.channel.accept(received)
        return str(received.statement.kind)

    def events(self) -> list[tuple[str, str | None]]:
        """The hospital's ledger: what happened, and the code where there is one."""
        opened = read(work(self.site) / "ledger")
        return [(record.event, record.body.get("code")) for record in opened.records]


@pytest.fixture(scope="module")
def federation(home: Home, joined: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("federation")
    shutil.copytree(joined.parent, folder / "north")
    site = folder / "north" / "site.toml"
    with_certificate(site)
    with Coordinator(home) as coordinator:
        coordinator.link.register("north", (work(site) / "node" / "node.pub").read_text())
        federation = Federation(coordinator, site, folder)
        with federation.study:
            federation.start()
            yield federation
            federation.app.grid.close()
            if federation.service and federation.service.poll() is None:
                federation.stop()


def test_an_order_goes_in_and_an_update_comes_out(federation: Federation) -> None:
    node = health(federation.site)["node_id"]
    app = federation.app
    before = health(federation.site)["last_order"]
    assert federation.take(app.answer(app.ask(federation.order(), node))) == Kind.UPDATE
    eventually(lambda: health(federation.site)["last_order"] != before)
    assert health(federation.site)["forwarder"]  # all of it went through mutual TLS


def test_an_executor_killed_at_work_finishes_its_order(federation: Federation) -> None:
    found = health(federation.site)
    number = federation.app.ask(federation.order(), found["node_id"])
    journal = work(federation.site) / "journal"

    def at_work() -> bool:
        try:
            return json.loads(journal.read_bytes())["stage"] == "pulled"
        except FileNotFoundError:
            return False

    eventually(at_work)
    os.kill(found["executor"], signal.SIGKILL)
    assert journal.exists()
    assert federation.take(federation.app.answer(number)) == Kind.UPDATE
    after = eventually(lambda: health(federation.site)["executor"] != found["executor"] and health(federation.site))
    assert after["supernode"] == found["supernode"]


def test_a_bundle_with_code_in_it_is_neither_unpacked_nor_run(federation: Federation) -> None:
    folder = federation.bundle("hostile", "")
    evil = f"import pathlib\npathlib.Path({str(federation.marker)!r}).touch()\nfrom flwr.clientapp import ClientApp\n"
    (folder / "silos").mkdir()
    (folder / "silos" / "__init__.py").write_text("")
    (folder / "silos" / "app.py").write_text(f"{evil}\napp = ClientApp()\n")
    app = federation.coordinator.start(folder)
    answer = app.answer(app.ask(federation.order(), health(federation.site)["node_id"]))
    app.grid.close()

    assert (answer.error.code, answer.error.reason) == (7, "bundle.code")
    assert not federation.marker.exists()
    assert not list(work(federation.site).rglob("app.py"))
    assert federation.events()[-1] == (Event.ORDER_REJECTED, "bundle.code")


def test_stopped_it_ends_clean_and_started_again_it_is_let_in_at_once(federation: Federation) -> None:
    found = health(federation.site)
    assert federation.stop() == 0
    assert health(federation.site)["state"] == "stopped"
    assert all(gone(found[name]) for name in ("supernode", "executor", "forwarder"))
    said = [json.loads(line)["message"] for line in federation.log.read_text().splitlines()]
    assert f"connected to the coordinator as node {found['node_id']}" in said
    began = time.monotonic()
    federation.start()
    assert time.monotonic() - began < 55  # one that was killed is not let in for a minute


def test_nothing_of_a_patient_reaches_the_coordinator_not_even_in_an_error(
    federation: Federation, search: Callable[[Iterable[str], Iterable[bytes]], set[str]]
) -> None:
    site = Site.load(federation.site)
    canaries = (federation.site.parent / "canaries.txt").read_text().splitlines()
    labels = site.data.labels
    table = read_labels(labels)
    table[labels.value] = canaries[0]  # a name has slipped into the wrong column
    table.to_csv(labels.file, sep=labels.delimiter, index=False)
    with pytest.raises(ConfigError, match=re.escape(canaries[0])):
        match(table, site.data, ["none", "lesion"], {})
    number = federation.app.ask(federation.order(), health(federation.site)["node_id"])
    assert federation.take(federation.app.answer(number)) == Kind.REFUSAL
    assert b"config" in wire.unpack(federation.received[-1].content).body

    home = federation.coordinator.home.folder
    stored = [path.read_bytes() for path in home.glob("superlink*") if path.is_file()]
    assert any(b"intramural" in blob for blob in stored)  # what travels does stand there, to be found
    travelled = [repr(message.content).encode() if message.has_content() else b"" for message in federation.received]
    assert search(canaries, [*stored, *travelled]) == set()
    told = [
        federation.log.read_bytes(),
        *(path.read_bytes() for path in (work(federation.site) / "node").iterdir() if path.is_file()),
    ]
    assert search(canaries, told) == set()


def test_a_service_that_is_killed_leaves_no_process_behind(federation: Federation) -> None:
    found = health(federation.site)
    federation.stop(signal.SIGKILL)
    eventually(lambda: all(gone(found[name]) for name in ("supernode", "executor", "forwarder")))
