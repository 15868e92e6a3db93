"""What the coordinator's service starts and sends: a SuperLink on loopback, and a bundle without code."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from aggregator.service.home import Home
from aggregator.service.superlink import SERVICE, SuperLink, Unreachable


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "home", "localhost:8443")


def test_the_superlink_listens_on_loopback_asks_for_keys_and_calls_nobody(home: Home) -> None:
    link, starter = SuperLink(home).processes()
    words = list(link.command)
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert "--enable-supernode-auth" in words
    assert words[words.index("--isolation") + 1] == "process"
    assert words[words.index("--superexec-auth-secret-file") + 1] == str(home.superexec_secret)
    assert words[words.index("--database") + 1] == str(home.database)
    assert "--disable-runtime-dependency-installation" in words
    assert "--insecure" not in words
    for process in (link, starter):
        assert process.environment["FLWR_TELEMETRY_ENABLED"] == "0"
        assert process.environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
        assert process.environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
        assert process.environment["FLWR_HOME"] == str(home.folder / "flower")
    assert starter.environment[SERVICE] == str(home.folder)
    assert SERVICE not in link.environment


def test_the_bundle_that_hospitals_get_holds_no_code_and_no_configuration(home: Home, tmp_path: Path) -> None:
    bundle = SuperLink(home)._bundle
    flwr = Path(sys.executable).with_name("flwr")
    (bundle / "silos").mkdir()
    (bundle / "silos" / "app.py").write_text("print('code')")
    (bundle / "service.toml").write_text("secret = 1")
    done = subprocess.run([flwr, "build", "--app", bundle], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (fab,) = tmp_path.glob("*.fab")
    with zipfile.ZipFile(fab) as content:
        assert set(content.namelist()) == {"pyproject.toml", "LICENSE", ".info/CONTENT"}
        text = content.read("pyproject.toml").decode()
    assert 'clientapp = "silos.app:app"' in text
    assert str(home.folder) not in text


def test_a_superlink_that_does_not_run_is_told_at_once(home: Home) -> None:
    with pytest.raises(Unreachable, match="does not answer"):
        SuperLink(home).nodes()
