"""The coordinator's service folder: made once, private, and whole whenever it is opened."""

import os
import shutil
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from aggregator.service import certificates
from aggregator.service import home as home_module
from aggregator.service.home import Home
from aggregator.service.settings import ServiceSettings, split_address
from models.errors import ConfigError, Locked
from models.exchange.enrolment import Invitation
from models.ledger import disk

SECRETS = ("ca.key", "server.key", "coordinator.key", "superexec.secret", "superlink.db")
PUBLIC = ("ca.crt", "server.crt", "coordinator.json", "coordinator.pub", "service.toml")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "home"
    before = os.umask(0)  # a careless system makes everything for everybody
    try:
        Home.create(folder, "study.example.org:8443", ["192.0.2.7"])
    finally:
        os.umask(before)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "home"))


@pytest.fixture
def home(folder: Path) -> Home:
    return Home.open(folder)


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / "service.toml"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_a_new_folder_holds_all_that_a_service_needs_and_secrets_are_its_owners(made: Path) -> None:
    assert made.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in made.iterdir()} == {*SECRETS, *PUBLIC, "hospitals", "runs"}
    for name in SECRETS:
        assert (made / name).stat().st_mode & 0o777 == 0o600, name
    assert len((made / "superexec.secret").read_bytes()) == 32
    assert not list(made.parent.glob(".*"))


def test_no_secret_stands_in_a_public_file(home: Home) -> None:
    public = b"".join((home.folder / name).read_bytes() for name in PUBLIC)
    assert b"PRIVATE" not in public
    secrets = [line for path in (home.ca_key, home.server_key) for line in path.read_bytes().splitlines()[1:-1]]
    secrets += [home.key_path.read_bytes().split(b"+", 4)[-1].strip(), home.superexec_secret.read_bytes()]
    for secret in secrets:
        assert len(secret) >= 16
        assert secret not in public


def test_the_invitation_says_where_to_dial_whom_to_trust_and_who_signs(home: Home) -> None:
    invitation = Invitation.decode(home.invitation_path.read_bytes())
    assert invitation == home.invitation
    assert invitation.address == "study.example.org:8443"
    assert invitation.certificates == home.ca_certificate.read_text()
    assert (invitation.name, invitation.key) == ("aggregator", home.signer.vkey)


def test_the_settings_are_written_as_they_were_given_and_otherwise_as_documented(tmp_path: Path, home: Home) -> None:
    assert home.settings == ServiceSettings(address="study.example.org:8443")
    other = Home.create(tmp_path / "other", "[2001:db8::7]:443", [], "brain", "[::]:443", require_certificates=True)
    assert other.settings == ServiceSettings(
        name="brain", address="[2001:db8::7]:443", listen="[::]:443", require_certificates=True
    )
    assert other.settings.host == "2001:db8::7"
    assert split_address(other.settings.listen) == ("::", 443)


def test_a_service_listens_at_the_port_that_hospitals_dial_unless_told(tmp_path: Path) -> None:
    assert Home.create(tmp_path / "home", "study.example.org:443").settings.listen == "0.0.0.0:443"


def test_a_folder_in_use_is_never_overwritten(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="exists already"):
        Home.create(folder, "study.example.org:8443")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"address": "study.example.org"}, "address"),
        ({"address": "study.example.org:99999"}, "65535"),
        ({"address": "study.example.org:0"}, "65535"),
        ({"listen": "8443"}, "listen"),
        ({"listen": "0.0.0.0:39093"}, "superlink_port"),
        ({"address": "study.example.org:39093"}, "superlink_port"),
        ({"name": "The Coordinator"}, "name"),
        ({"names": ["https://study.example.org"]}, "https://study.example.org"),
    ],
)
def test_a_wrong_value_is_named_and_leaves_nothing_behind(tmp_path: Path, more: dict[str, object], named: str) -> None:
    given = {"address": "study.example.org:8443", **more}
    with pytest.raises(ConfigError, match=named):
        Home.create(tmp_path / "home", **given)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_cut_short_is_not_there_and_can_be_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:

        def full(draft: Path, path: Path) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(disk, "rename", full)
        with pytest.raises(OSError, match="No space"):
            Home.create(tmp_path / "home", "study.example.org:8443")
    assert list(tmp_path.iterdir()) == []
    Home.create(tmp_path / "home", "study.example.org:8443")


def test_what_is_no_service_folder_is_said_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no service.toml") as raised:
        Home.open(tmp_path)
    assert raised.value.hint == f"make one: intramural-aggregator init {tmp_path} --address HOST:PORT"


@pytest.mark.parametrize("name", ["ca.key", "server.key", "coordinator.key", "superexec.secret"])
def test_a_secret_that_others_can_read_is_refused_with_the_command_that_helps(folder: Path, name: str) -> None:
    (folder / name).chmod(0o640)
    with pytest.raises(ConfigError, match=rf"{name}: others on this machine .*0640") as raised:
        Home.open(folder)
    assert raised.value.hint == f"run: chmod 600 {folder / name}"


def test_a_folder_that_others_can_enter_is_refused_with_the_command_that_helps(folder: Path) -> None:
    folder.chmod(0o750)
    with pytest.raises(ConfigError, match="0750") as raised:
        Home.open(folder)
    assert raised.value.hint == f"run: chmod 700 {folder}"


@pytest.mark.parametrize("name", sorted({*SECRETS, *PUBLIC} - {"superlink.db", "coordinator.pub"}))
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=name):
        Home.open(folder)


def test_files_of_two_services_do_not_mix(tmp_path: Path, folder: Path) -> None:
    other = Home.create(tmp_path / "other", "study.example.org:8443")
    for names in (["ca.crt"], ["coordinator.json"], ["coordinator.key"], ["server.crt"], ["server.crt", "server.key"]):
        mixed = Path(shutil.copytree(folder, tmp_path / names[-1] / str(len(names))))
        for name in names:
            shutil.copy(other.folder / name, mixed / name)
        with pytest.raises(ConfigError):
            Home.open(mixed)


def test_another_name_than_the_keys_is_refused(folder: Path) -> None:
    edit(folder, 'name = "aggregator"', 'name = "other"')
    with pytest.raises(ConfigError, match=r"service.toml: name"):
        Home.open(folder)


def test_a_new_address_asks_for_a_new_certificate_and_a_new_invitation(folder: Path) -> None:
    before = Home.open(folder)
    edit(folder, "study.example.org:8443", "new.example.org:9443")
    with pytest.raises(ConfigError, match=r"tells hospitals to dial study.example.org:8443") as raised:
        Home.open(folder)
    assert raised.value.hint == f"run: intramural-aggregator init {folder} --renew"
    after = Home.renew(folder, ["192.0.2.9"])
    assert after.invitation.address == "new.example.org:9443"
    assert after.invitation.certificates == before.invitation.certificates
    covered = set(map(str, certificates.hosts_of(certificates.load_certificate(after.server_certificate))))
    assert covered == {"new.example.org", "study.example.org", "192.0.2.7", "192.0.2.9", "localhost", "127.0.0.1"}


def test_an_expired_certificate_is_refused_until_it_is_renewed(
    folder: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = datetime.now(UTC) + timedelta(days=800)
    assert home.expires < later
    monkeypatch.setattr(certificates, "_now", lambda: later)
    with pytest.raises(ConfigError, match=r"server.crt: expired on") as raised:
        Home.open(folder)
    assert raised.value.hint == f"run: intramural-aggregator init {folder} --renew"
    renewed = Home.renew(folder)
    assert renewed.expires > later + timedelta(days=700)
    assert renewed.invitation == home.invitation  # hospitals need nothing new


def test_nodes_are_kept_with_all_64_bits(home: Home) -> None:
    assert home.nodes() == {}
    home.save_nodes({"south": 2**64 - 1, "north": 2**53 + 1})
    assert Home.open(home.folder).nodes() == {"north": 2**53 + 1, "south": 2**64 - 1}


def test_a_hospitals_node_can_be_forgotten_and_the_others_stay(home: Home) -> None:
    home.save_nodes({"north": 1, "south": 2})
    home.forget_node("north")
    home.forget_node("west")
    assert home.nodes() == {"south": 2}


@pytest.mark.parametrize("text", ["", "[]", '{"north": "7"}', '{"north": -1}', '{"../north": 7}'])
def test_damaged_node_numbers_are_named(home: Home, text: str) -> None:
    home.nodes_path.write_text(text)
    with pytest.raises(ConfigError, match=r"nodes.json"):
        home.nodes()


def test_two_commands_change_the_folder_one_after_the_other(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with home.changing():
            inside.set()
            leave.wait(60)
            home.nodes_path.write_text('{"north": 1}')

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(60)
    monkeypatch.setattr(home_module, "_PATIENCE", 0.05)
    with pytest.raises(Locked):
        home.save_nodes({"north": 3})
    monkeypatch.setattr(home_module, "_PATIENCE", 60)
    other = threading.Thread(target=lambda: home.save_nodes({"north": 2}))
    other.start()
    leave.set()
    thread.join()
    other.join()
    assert home.nodes() == {"north": 2}
