import stat
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from models.errors import ConfigError
from models.exchange.enrolment import Enrolment, Invitation
from models.ledger import Ledger, Signer
from silos.config import Site
from silos.network.enrolment import invitation, join, load_client_key, load_node_key, node_files

SITE = """
name = "north"
key = "keys/north.key"
[data]
root = "dicom"
modality = ["MR"]
salt = "0123456789abcdef"
[data.labels]
file = "labels.csv"
join = { AccessionNumber = "Accession" }
value = "Lesion"
words = { yes = "lesion", no = "none" }
[policy]
tasks = ["classification"]
metrics = ["auc"]
min_patients = 6
max_rounds = 5
max_bytes = "1 MB"
clip = 1.0
[run]
work = "work"
"""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    (tmp_path / "site.toml").write_text(SITE)
    return Site.load(tmp_path / "site.toml")


def contents(site: Site) -> dict[Path, bytes]:
    folder = site.key.parent.parent
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_joining_makes_three_private_keys_that_only_their_owner_reads(site: Site) -> None:
    join(site)
    files = node_files(site)
    for path in (site.key, files.node_key, files.client_key):
        assert mode(path) == 0o600, path
    for folder in (site.run.work, files.node_key.parent):
        assert mode(folder) == 0o700, folder
    node = load_ssh_private_key(files.node_key.read_bytes(), None)
    assert isinstance(node, ec.EllipticCurvePrivateKey)
    assert isinstance(node.curve, ec.SECP384R1)
    assert load_ssh_public_key(files.node_public.read_bytes()) == node.public_key()
    assert files.client_key.read_bytes() != files.node_key.read_bytes()


def test_the_enrolment_names_the_public_halves_and_verifies(site: Site) -> None:
    enrolment, files = join(site), node_files(site)
    assert Enrolment.decode(files.enrolment.read_bytes()) == enrolment
    assert files.enrolment == site.run.work / "north.enrolment.json"
    assert enrolment.verify() == Signer.load(site.key).verifier
    assert load_ssh_public_key(enrolment.node_key.encode()) == load_node_key(site).public_key()
    request = x509.load_pem_x509_csr(enrolment.request.encode())
    assert request.is_signature_valid
    assert request.subject.rfc4514_string() == "CN=north"
    assert request.public_key() == load_client_key(site).public_key()


def test_nothing_private_stands_in_the_enrolment_file(site: Site) -> None:
    join(site)
    public = node_files(site).enrolment.read_text()
    assert "PRIVATE" not in public
    for path in (site.key, node_files(site).node_key, node_files(site).client_key):
        secret = path.read_text().splitlines()
        assert not any(line in public for line in secret if line), path


def test_openssh_reads_the_node_key(site: Site) -> None:
    join(site)
    files = node_files(site)
    try:
        done = subprocess.run(["ssh-keygen", "-y", "-f", files.node_key], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        pytest.skip("this machine has no ssh-keygen")
    assert done.stdout.split()[:2] == files.node_public.read_text().split()


def test_joining_again_changes_no_byte(site: Site) -> None:
    first = join(site)
    before = contents(site)
    assert join(site) == first
    assert contents(site) == before


def test_a_key_made_before_is_kept(site: Site) -> None:
    site.key.parent.mkdir()
    signer = Signer.create(site.key, "north")
    assert join(site).key == signer.vkey


@pytest.mark.parametrize("lost", ["keys/north.pub", "work/node/node.pub", "work/node/client.csr"])
def test_a_lost_public_half_is_made_again_and_the_enrolment_stays(site: Site, lost: str) -> None:
    first = join(site)
    before = contents(site)
    (site.key.parent.parent / lost).unlink()
    assert join(site) == first
    assert contents(site) == before


def test_a_lost_enrolment_file_is_written_again_alike(site: Site) -> None:
    first = join(site)
    node_files(site).enrolment.unlink()
    assert join(site) == first


@pytest.mark.parametrize("lost", ["keys/north.key", "work/node/node.key", "work/node/client.key"])
def test_a_lost_private_key_is_reported_and_not_replaced(site: Site, lost: str) -> None:
    join(site)
    path = site.key.parent.parent / lost
    path.unlink()
    with pytest.raises(ConfigError, match="is missing") as caught:
        join(site)
    assert "restore" in caught.value.hint
    assert not path.exists()


def test_new_keys_under_an_old_enrolment_are_reported(site: Site) -> None:
    join(site)
    before = node_files(site).enrolment.read_bytes()
    node_files(site).node_key.unlink()
    node_files(site).node_public.unlink()
    with pytest.raises(ConfigError, match="names other keys") as caught:
        join(site)
    assert "admit" in caught.value.hint
    assert node_files(site).enrolment.read_bytes() == before


def test_a_new_signing_key_beside_the_ledger_of_the_old_one_is_reported(site: Site) -> None:
    join(site)
    Ledger.create(site.ledger, Signer.load(site.key), {"policy": {}}).close()
    first = join(site)
    for path in (site.key, site.key.with_suffix(".pub"), node_files(site).enrolment):
        path.unlink()
    with pytest.raises(ConfigError, match=r"ledger: is not signed with .*north\.key") as caught:
        join(site)
    assert "move the folder away (keep it: it is the evidence of that key)" in caught.value.hint
    site.ledger.rename(site.ledger.with_name("ledger.old"))
    assert join(site).key != first.key


@pytest.mark.parametrize("name", ["keys/north.key", "work/node/node.key", "work/node/client.key"])
def test_a_private_key_that_others_can_read_is_refused_with_the_command_that_helps(site: Site, name: str) -> None:
    join(site)
    path = site.key.parent.parent / name
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="0640") as caught:
        join(site)
    assert caught.value.hint == f"run: chmod 600 {path}"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("keys/north.pub", "north+00000000+AAAA\n"),
        ("work/node/node.pub", "ecdsa-sha2-nistp384 AAAA\n"),
        ("work/node/client.csr", "no request\n"),
    ],
)
def test_a_public_half_of_another_key_is_reported(site: Site, name: str, content: str) -> None:
    join(site)
    path = site.key.parent.parent / name
    path.write_text(content)
    with pytest.raises(ConfigError, match=path.name):
        join(site)


@pytest.mark.parametrize("name", ["work/node/node.key", "work/node/client.key"])
def test_a_broken_private_key_is_reported_without_its_content(site: Site, name: str) -> None:
    join(site)
    path = site.key.parent.parent / name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match="is no ECDSA key") as caught:
        join(site)
    assert caught.value.__cause__ is None
    assert path.read_text()[30:60] not in str(caught.value)


def test_the_key_of_another_hospital_is_refused(site: Site) -> None:
    site.key.parent.mkdir()
    Signer.create(site.key, "south")
    with pytest.raises(ConfigError, match="'south'"):
        join(site)


def test_an_enrolment_that_is_none_is_reported(site: Site) -> None:
    join(site)
    node_files(site).enrolment.write_text("{}")
    with pytest.raises(ConfigError, match=r"north\.enrolment\.json"):
        join(site)


def invited(site: Site, content: bytes | None) -> Site:
    path = site.key.parent.parent / "coordinator.json"
    if content is not None:
        path.write_bytes(content)
    return site.model_copy(update={"run": site.run.model_copy(update={"coordinator": path})})


def test_a_site_without_a_coordinator_is_told_where_to_put_its_file(site: Site) -> None:
    with pytest.raises(ConfigError, match=r"run\.coordinator") as caught:
        invitation(site)
    assert 'coordinator = "coordinator.json"' in caught.value.hint


def test_a_coordinator_file_that_is_not_there_is_named(site: Site) -> None:
    with pytest.raises(ConfigError, match=r"coordinator\.json: No such file"):
        invitation(invited(site, None))


@pytest.mark.parametrize("wrong", ["name", "certificates", "json"])
def test_a_coordinator_file_that_cannot_be_used_is_refused(site: Site, tmp_path: Path, wrong: str) -> None:
    signer = Signer.create(tmp_path / "hub.key", "hub")
    draft = Invitation(
        name="other" if wrong == "name" else "hub", key=signer.vkey, address="hub.example:8443", certificates="none"
    )
    content = b"{" if wrong == "json" else draft.encode()
    with pytest.raises(ConfigError, match=r"run\.coordinator") as caught:
        invitation(invited(site, content))
    assert "again" in caught.value.hint
