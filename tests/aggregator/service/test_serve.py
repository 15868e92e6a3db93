"""The coordinator's service keeps Flower's SuperLink as the folder says, whatever happens to either."""

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from aggregator.cli import main as command
from aggregator.history import read_study
from aggregator.service import admission, runs, serve, studies
from aggregator.service.home import Home
from aggregator.service.superlink import Node
from models.errors import ConfigError, Locked
from models.exchange.enrolment import Enrolment
from models.ledger import Signer, disk

STUDY = "ab" * 32


@dataclass
class Link:
    """A SuperLink that remembers what it was told."""

    known: dict[int, str] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)  # of every node that it ever had
    states: dict[int, str] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    def nodes(self) -> dict[int, Node]:
        return {node: Node("online", "") for node in self.known}

    def register(self, name: str, node_key: str) -> int:
        if node_key in self.keys:
            raise ConfigError("flwr supernode register: Public key already in use")
        self.keys.add(node_key)
        node = 100 + len(self.told)
        self.known[node] = node_key
        self.told.append(f"register {name}")
        return node

    def unregister(self, node: int) -> None:
        del self.known[node]
        self.told.append("unregister")

    def runs(self) -> dict[int, str]:
        return self.states

    def submit(self, study: str) -> int:
        run = 1 + len(self.states)
        self.states[run] = "running"
        self.told.append("submit")
        return run

    def end(self, run: int) -> None:
        self.states[run] = "finished:stopped"
        self.told.append(f"end {run}")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "home", "localhost:8443")


@pytest.fixture
def link() -> Link:
    return Link()


@pytest.fixture
def keeper(home: Home, link: Link) -> "serve._Keeper":
    return serve._Keeper(home, link)  # type: ignore[arg-type]


def let_in(home: Home, name: str, node_key: str) -> None:
    enrolment = Enrolment.sign(Signer.from_seed(name, name.encode().ljust(32, b".")), node_key, "request")
    (home.admitted / f"{name}.json").write_bytes(enrolment.encode())


def test_who_is_admitted_is_registered_once(home: Home, link: Link, keeper: "serve._Keeper") -> None:
    let_in(home, "north", "key-n")
    let_in(home, "south", "key-s")
    keeper.keep_nodes()
    keeper.keep_nodes()
    assert link.told == ["register north", "register south"]
    assert {link.known[node] for node in home.nodes().values()} == {"key-n", "key-s"}


def test_who_is_dismissed_is_unregistered_and_the_others_stay(home: Home, link: Link, keeper: "serve._Keeper") -> None:
    let_in(home, "north", "key-n")
    let_in(home, "south", "key-s")
    keeper.keep_nodes()
    south = home.nodes()["south"]
    (home.admitted / "north.json").unlink()
    keeper.keep_nodes()
    assert link.known == {south: "key-s"}
    assert home.nodes() == {"south": south}


def test_a_service_that_starts_again_keeps_the_numbers_and_drops_who_went_meanwhile(home: Home, link: Link) -> None:
    let_in(home, "north", "key-n")
    let_in(home, "south", "key-s")
    serve._Keeper(home, link).keep_nodes()  # type: ignore[arg-type]
    north = home.nodes()["north"]
    (home.admitted / "south.json").unlink()
    serve._Keeper(home, link).keep_nodes()  # type: ignore[arg-type]
    assert home.nodes() == {"north": north}
    assert list(link.known) == [north]


def test_a_superlink_that_lost_its_database_is_told_everything_again(home: Home, link: Link) -> None:
    let_in(home, "north", "key-n")
    serve._Keeper(home, link).keep_nodes()  # type: ignore[arg-type]
    link.known.clear()
    link.keys.clear()
    serve._Keeper(home, link).keep_nodes()  # type: ignore[arg-type]
    assert list(link.known.values()) == ["key-n"]
    assert home.nodes()["north"] in link.known


def test_a_hospital_that_comes_back_with_another_key_is_another_node(
    home: Home, link: Link, keeper: "serve._Keeper"
) -> None:
    let_in(home, "north", "old")
    keeper.keep_nodes()
    before = home.nodes()["north"]
    (home.admitted / "north.json").unlink()
    let_in(home, "north", "new")
    keeper.keep_nodes()
    assert home.nodes()["north"] != before
    assert list(link.known.values()) == ["new"]


def test_a_hospital_that_is_dismissed_and_back_before_the_next_look_gets_a_node(
    home: Home, link: Link, keeper: "serve._Keeper"
) -> None:
    let_in(home, "north", "old")
    keeper.keep_nodes()
    admission.dismiss(home, "north")
    let_in(home, "north", "new")
    keeper.keep_nodes()
    keeper.keep_nodes()
    assert link.told == ["register north", "unregister", "register north"]
    assert list(link.known) == list(home.nodes().values())


def test_a_hospital_that_the_superlink_does_not_take_is_named_once_and_stops_nobody(
    home: Home, link: Link, keeper: "serve._Keeper", caplog: pytest.LogCaptureFixture
) -> None:
    link.keys.add("key-n")
    let_in(home, "north", "key-n")
    let_in(home, "south", "key-s")
    keeper.keep_nodes()
    keeper.keep_nodes()
    assert link.told == ["register south"]
    assert caplog.text.count("north cannot take part: flwr supernode register: Public key already in use") == 1
    let_in(home, "north", "new")
    keeper.keep_nodes()
    assert home.nodes().keys() == {"north", "south"}


def test_studies_are_kept_whatever_the_hospitals_come_to(
    home: Home, link: Link, keeper: "serve._Keeper", study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.nodes_path.write_text("[]")
    stopping = threading.Event()
    submit = link.submit
    monkeypatch.setattr(link, "submit", lambda study: (stopping.set(), submit(study))[1])
    keeper.keep(stopping)
    assert link.told == ["submit"]


@pytest.fixture
def study(tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study that is to run; nobody has looked at its ledger's lock yet."""
    folder = tmp_path / "study"
    (folder / "ledger").mkdir(parents=True)
    runs.want(home, STUDY, folder)
    monkeypatch.setattr(serve, "read_study", lambda _: (None, type("H", (), {"closed": False})))
    return folder


def test_a_study_that_is_wanted_is_started_once(link: Link, keeper: "serve._Keeper", study: Path, home: Home) -> None:
    keeper.keep_studies()
    keeper.keep_studies()  # its ServerApp is starting
    assert link.told == ["submit"]
    assert runs.wanted(home)[STUDY].run_id == 1


def test_a_study_at_work_is_left_alone(link: Link, keeper: "serve._Keeper", study: Path) -> None:
    lock = disk.lock(study / "ledger" / "lock")
    keeper.keep_studies()
    disk.unlock(lock)
    assert link.told == []


def test_a_study_whose_serverapp_ended_is_started_again_later_and_later(
    link: Link, keeper: "serve._Keeper", study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(serve.time, "monotonic", lambda: now[0])
    begun = []
    for _ in range(200):
        before = len(link.told)
        keeper.keep_studies()
        if len(link.told) > before:
            begun.append(now[0])
            link.states[len(link.states)] = "finished:failed"
        now[0] += 1
    pauses = [later - earlier for earlier, later in itertools.pairwise(begun)]
    assert pauses[0] <= 6
    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(60, abs=2)


def test_a_service_that_starts_again_goes_on_with_a_study_at_once(link: Link, study: Path, home: Home) -> None:
    serve._Keeper(home, link).keep_studies()  # type: ignore[arg-type]
    serve._Keeper(home, link).keep_studies()  # type: ignore[arg-type]  # all processes were killed
    assert link.told == ["submit", "end 1", "submit"]


def test_a_study_that_is_over_says_so_and_is_listed_only_to_take_its_leave(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    over = SimpleNamespace(coordinator_key=home.signer.vkey, study=STUDY), SimpleNamespace(closed=True)
    monkeypatch.setattr(studies, "require_service", lambda _: None)
    monkeypatch.setattr(studies, "read_study", lambda _: over)
    studies.start(home, tmp_path / "toy")
    studies.start(home, tmp_path / "toy", end=True)  # there is nothing left to end
    assert f"{tmp_path / 'toy'}: the study is over; nothing was run" in caplog.text
    assert runs.wanted(home).keys() == {STUDY}
    runs.unwant(home, STUDY)
    studies.start(home, tmp_path / "toy", survey=True)
    assert runs.wanted(home) == {}


def test_a_study_that_cannot_be_read_stops_none_of_the_others_and_hides_none(
    home: Home, link: Link, keeper: "serve._Keeper", finished: Path, tmp_path: Path
) -> None:
    moved, broken, over = "00" * 32, "11" * 32, read_study(finished / "toy")[0].study
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "agreement.json").write_bytes(b"{}")
    runs.want(home, moved, tmp_path / "moved")
    runs.want(home, broken, tmp_path / "broken")
    runs.want(home, over, finished / "toy")
    keeper.keep_studies()
    assert runs.wanted(home).keys() == {over}  # which may still have to take its leave; the other two cannot go on
    rows = {row["study"]: row for row in studies.status(home)["studies"]}
    assert {study: row["state"] for study, row in rows.items()} == {
        moved: "unreadable",
        broken: "unreadable",
        over: "closed",
    }
    assert "moved: is no study folder" in rows[moved]["problem"]
    assert str(tmp_path / "broken" / "agreement.json") in rows[broken]["problem"]
    assert runs.studies(home)[broken].problem == (rows[broken]["problem"], "restore it from ledger/manifests")
    assert command(["status", str(home.folder)]) == 0


def test_one_folder_has_one_service(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    stopping: Callable[[], threading.Event] = threading.Event
    lock = disk.lock(home.serving)
    with pytest.raises(Locked):
        serve.serve(home, stopping())
    disk.unlock(lock)
