"""Hospitals come in by what they prove and by what they say over the telephone, and go out by name."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from aggregator.service import admission, certificates
from aggregator.service.admission import admit, dismiss
from aggregator.service.home import Home
from models.canonical import canonical
from models.errors import BadSignature, ConfigError
from models.exchange.enrolment import Enrolment
from models.ledger import Signer, disk


def node_key(curve: ec.EllipticCurve) -> str:
    public = ec.generate_private_key(curve).public_key()
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def request(key: ec.EllipticCurvePrivateKey) -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "north")])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return made.public_bytes(Encoding.PEM).decode()


@dataclass(frozen=True)
class Keys:
    """What a hospital enrols, before it signs."""

    signer: Signer
    node: str
    client: str

    @classmethod
    def make(cls, name: str) -> "Keys":
        signer = Signer(name, ed25519.Ed25519PrivateKey.generate())
        return cls(signer, node_key(ec.SECP384R1()), request(ec.generate_private_key(ec.SECP384R1())))

    def enrol(self) -> Enrolment:
        return Enrolment.sign(self.signer, self.node, self.client)


NORTH, SOUTH = Keys.make("north"), Keys.make("south")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "home"
    Home.create(folder, "study.example.org:8443")
    return folder


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Home:
    return Home.open(shutil.copytree(made, tmp_path / "home"))


@pytest.fixture
def kit(tmp_path: Path) -> Callable[[Enrolment | bytes], Path]:
    """Writes what a hospital sends."""

    def write(content: Enrolment | bytes) -> Path:
        path = tmp_path / "kit.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


Kit = Callable[[Enrolment | bytes], Path]


def files(home: Home) -> dict[str, bytes]:
    return {str(p.relative_to(home.admitted)): p.read_bytes() for p in home.admitted.rglob("*") if p.is_file()}


def test_an_admitted_hospital_is_known_and_has_its_certificate(home: Home, kit: Kit) -> None:
    enrolment = NORTH.enrol()
    assert admit(home, kit(enrolment), enrolment.fingerprint) == enrolment
    admit(home, kit(SOUTH.enrol()))
    assert list(home.hospitals()) == ["north", "south"]
    assert home.hospitals()["north"] == enrolment
    certificate = x509.load_pem_x509_certificate((home.admitted / "north.crt").read_bytes())
    certificate.verify_directly_issued_by(home.authority.certificate)
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "north"
    assert certificate.public_key() == x509.load_pem_x509_csr(NORTH.client.encode()).public_key()


def test_a_fingerprint_is_compared_as_people_say_it(home: Home, kit: Kit) -> None:
    enrolment = NORTH.enrol()
    admit(home, kit(enrolment), f" {enrolment.fingerprint.upper().replace('-', ' ')} ")
    assert list(home.hospitals()) == ["north"]


@pytest.mark.parametrize("told", ["", "0000-0000", SOUTH.enrol().fingerprint], ids=["none", "short", "another"])
def test_another_fingerprint_than_the_files_admits_nobody(home: Home, kit: Kit, told: str) -> None:
    enrolment = NORTH.enrol()
    with pytest.raises(ConfigError, match=rf"{enrolment.fingerprint}, and not {told}"):
        admit(home, kit(enrolment), told)
    assert files(home) == {}


@pytest.mark.parametrize("field", ["name", "key", "node_key", "request", "signature"])
def test_an_enrolment_that_was_changed_on_its_way_is_refused(home: Home, kit: Kit, field: str) -> None:
    mine, others = (json.loads(keys.enrol().encode()) for keys in (NORTH, SOUTH))
    path = kit(canonical(mine | {field: others[field]}))
    with pytest.raises((BadSignature, ConfigError), match=r"kit\.json: ") as raised:
        admit(home, path)
    assert "intramural-silo join" in raised.value.hint
    assert files(home) == {}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not JSON",
        b"[]",
        b"\xff\xfe",
        b"{}",
        b"[" * 60_000,
        b" " * (admission.MAX_KIT + 1),
        NORTH.enrol().encode().replace(b"{", b'{"more": 1, ', 1),
    ],
    ids=["empty", "text", "list", "binary", "object", "nested", "large", "more"],
)
def test_a_file_that_is_no_enrolment_is_refused_by_name(home: Home, kit: Kit, content: bytes) -> None:
    with pytest.raises(ConfigError, match=r"kit\.json: ") as raised:
        admit(home, kit(content))
    assert "intramural-silo join" in raised.value.hint
    assert files(home) == {}


def test_a_missing_file_is_named(home: Home, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json: No such file"):
        admit(home, tmp_path / "nowhere.json")


def test_a_stranger_cannot_write_to_the_terminal(home: Home, kit: Kit) -> None:
    forged = json.loads(NORTH.enrol().encode()) | {"key": "\x1b[2J+00000000+AA=="}
    with pytest.raises(ConfigError) as raised:
        admit(home, kit(canonical(forged)))
    assert "\x1b" not in str(raised.value)


@pytest.mark.parametrize(
    "node",
    [
        "",
        "ecdsa-sha2-nistp384 AAAA",
        node_key(ec.SECP256R1()),
        node_key(ec.SECP256R1()).replace("nistp256", "nistp384", 1),
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIm4hBHcGGHLBmhmjpDPSVjD1AYu6dJUCKKvVwGMO8Px",
        NORTH.node + "\n" + SOUTH.node,
        NORTH.node + " \x1b[2J",
    ],
    ids=["none", "cut", "p256", "mislabelled", "ed25519", "two", "control"],
)
def test_a_node_key_that_is_not_flowers_kind_is_refused(home: Home, kit: Kit, node: str) -> None:
    with pytest.raises(ConfigError, match=r"kit\.json: node_key: is no OpenSSH public key"):
        admit(home, kit(replace(NORTH, node=node).enrol()))
    assert files(home) == {}


def test_a_node_key_may_carry_a_comment_but_is_the_same_key(home: Home, kit: Kit) -> None:
    admit(home, kit(NORTH.enrol()))
    with pytest.raises(ConfigError, match="has a key of 'north'"):
        admit(home, kit(replace(SOUTH, node=f"{NORTH.node} it@south\n").enrol()))


def test_a_weak_tls_key_is_refused(home: Home, kit: Kit) -> None:
    weak = request(ec.generate_private_key(ec.SECP192R1()))
    with pytest.raises(ConfigError, match=r"kit\.json: .*P-256"):
        admit(home, kit(replace(NORTH, client=weak).enrol()))
    assert files(home) == {}


def test_nobody_takes_the_coordinators_name(home: Home, kit: Kit) -> None:
    with pytest.raises(ConfigError, match="the coordinator's own"):
        admit(home, kit(Keys.make("aggregator").enrol()))
    assert files(home) == {}


def test_admitting_the_same_hospital_again_changes_nothing(home: Home, kit: Kit) -> None:
    admit(home, kit(NORTH.enrol()))
    before = files(home)
    admit(home, kit(NORTH.enrol()))
    assert files(home) == before


@pytest.mark.parametrize("other", ["signer", "node", "client"])
def test_a_name_keeps_every_one_of_its_keys(home: Home, kit: Kit, other: str) -> None:
    admit(home, kit(NORTH.enrol()))
    before = files(home)
    changed = replace(NORTH, **{other: getattr(Keys.make("north"), other)})
    with pytest.raises(ConfigError, match="admitted with other keys") as raised:
        admit(home, kit(changed.enrol()))
    assert "dismiss" in raised.value.hint
    assert files(home) == before


@pytest.mark.parametrize("shared", ["signer", "node", "client"])
def test_no_two_hospitals_share_a_key(home: Home, kit: Kit, shared: str) -> None:
    admit(home, kit(NORTH.enrol()))
    if shared == "signer":
        copy = replace(SOUTH, signer=Signer("south", NORTH.signer._key))
    else:
        copy = replace(SOUTH, **{shared: getattr(NORTH, shared)})
    with pytest.raises(ConfigError, match="has a key of 'north'"):
        admit(home, kit(copy.enrol()))
    assert list(home.hospitals()) == ["north"]


def test_an_old_or_lost_certificate_is_made_anew(home: Home, kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    path = home.admitted / "north.crt"
    longago = datetime.now(UTC) - timedelta(days=400)
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "_now", lambda: longago)
        admit(home, kit(NORTH.enrol()))
    admit(home, kit(NORTH.enrol()))
    renewed = certificates.load_certificate(path)
    assert renewed.not_valid_after_utc > datetime.now(UTC) + timedelta(days=700)
    path.unlink()
    admit(home, kit(NORTH.enrol()))
    assert certificates.load_certificate(path).public_key() == renewed.public_key()


def test_a_dismissed_hospital_is_out_but_not_forgotten(home: Home, kit: Kit) -> None:
    admit(home, kit(NORTH.enrol()))
    admit(home, kit(SOUTH.enrol()))
    home.save_nodes({"north": 1, "south": 2})
    before = files(home)
    kept = dismiss(home, "north")
    assert home.nodes() == {"south": 2}
    assert list(home.hospitals()) == ["south"]
    assert kept.parent == home.admitted / "dismissed"
    assert kept.name.startswith("north-2")
    assert kept.read_bytes() == before["north.json"]
    assert kept.with_suffix(".crt").read_bytes() == before["north.crt"]
    assert not list(home.admitted.glob("north.*"))


def test_a_dismissed_hospital_can_come_back_with_new_keys_and_go_again(home: Home, kit: Kit) -> None:
    admit(home, kit(NORTH.enrol()))
    first = dismiss(home, "north")
    renewed = Keys.make("north").enrol()
    admit(home, kit(renewed))
    assert home.hospitals() == {"north": renewed}
    second = dismiss(home, "north")
    assert first != second
    assert len(list(first.parent.iterdir())) == 4


def test_a_node_key_that_was_dismissed_is_refused_whatever_else_is_new(home: Home, kit: Kit) -> None:
    admit(home, kit(NORTH.enrol()))
    archived = dismiss(home, "north")
    for keys in (NORTH, replace(Keys.make("west"), node=f"{NORTH.node} with a comment")):
        with pytest.raises(ConfigError, match=f"node_key: was dismissed .{archived.name}., and Flower never") as raised:
            admit(home, kit(keys.enrol()))
        assert f"node.key and node.pub in work/node, and work/{keys.signer.name}.enrol" in raised.value.hint
    assert home.hospitals() == {}
    admit(home, kit(replace(NORTH, node=Keys.make("north").node).enrol()))


@pytest.mark.parametrize("name", ["west", "../ca", ""])
def test_who_is_not_admitted_cannot_be_dismissed(home: Home, kit: Kit, name: str) -> None:
    with pytest.raises(ConfigError, match="no hospital of that name") as raised:
        dismiss(home, name)
    assert raised.value.hint == "admitted: nobody"
    admit(home, kit(NORTH.enrol()))
    admit(home, kit(SOUTH.enrol()))
    with pytest.raises(ConfigError) as raised:
        dismiss(home, name)
    assert raised.value.hint == "admitted: north, south"
    assert home.ca_key.exists()


def test_a_dismissal_cut_short_can_be_finished(home: Home, kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    admit(home, kit(NORTH.enrol()))
    with monkeypatch.context() as patch:

        def cut(folder: Path) -> None:
            raise OSError(5, "Input/output error")

        patch.setattr(disk, "sync_folder", cut)
        with pytest.raises(OSError, match="Input/output"):
            dismiss(home, "north")
    assert list(home.hospitals()) == ["north"]
    dismiss(home, "north")
    assert home.hospitals() == {}


def test_an_enrolment_changed_in_the_folder_is_not_used(home: Home, kit: Kit) -> None:
    admit(home, kit(NORTH.enrol()))
    path = home.admitted / "north.json"
    good = path.read_bytes()
    path.write_bytes(good.replace(b'"node_key":"ecdsa', b'"node_key":"Ecdsa'))
    with pytest.raises(ConfigError, match=r"north\.json: .*changed after it was signed"):
        home.hospitals()
    path.write_bytes(good)
    path.rename(home.admitted / "west.json")
    with pytest.raises(ConfigError, match=r"west\.json: is the enrolment of north"):
        home.hospitals()
