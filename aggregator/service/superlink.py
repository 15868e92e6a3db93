"""Flower's own programs, as the coordinator's service uses them: two that run, and the operator's command.

The SuperLink listens on loopback only. It asks its nodes for their keys, starts no app itself, installs
nothing, and calls nobody. What is asked of it goes through Flower's command `flwr`, its public interface.
"""

import json
import os
import socket
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from aggregator.service.home import Home
from models.errors import ConfigError
from models.processes import Process

SERVICE = "INTRAMURAL_SERVICE"
"""The environment variable by which a study's ServerApp finds the service folder."""

_HOST = "127.0.0.1"
_PATIENCE = 60  # seconds that one `flwr` command may take
_CONNECTION = "intramural"  # the name under which Flower's command knows this SuperLink

_CONFIG = """\
[superlink]
default = "intramural"

[superlink.intramural]
address = {address}
root-certificates = {certificates}
"""

_BUNDLE = """\
# The whole of what a study sends to a hospital's Flower node. It holds no code: hospitals run what they installed.
[project]
name = "intramural-study"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "intramural"
fab-include = ["LICENSE"]

[tool.flwr.app.components]
serverapp = "aggregator.app:app"
clientapp = "silos.app:app"

[tool.flwr.app.config]
study = ""
"""


class Unreachable(ConfigError):  # noqa: N818 - says what happened
    """The SuperLink does not answer."""


@dataclass(frozen=True)
class Node:
    """A hospital's node, as the SuperLink sees it.

    Attributes:
        status: "registered" (never seen), "online" or "offline".
        since: When it came or went, as UTC text.
    """

    status: str
    since: str


class SuperLink:
    """The SuperLink of a service folder.

    Args:
        home: The service folder.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self.address = f"{_HOST}:{home.settings.superlink_port}"

    def processes(self) -> list[Process]:
        """The SuperLink, and the program that starts a study's ServerApp beside it."""
        home, environment = self._home, self._environment
        link = [
            *("flower-superlink", "--host", _HOST, "--port", home.settings.superlink_port),
            *("--ssl-certfile", home.server_certificate, "--ssl-keyfile", home.server_key),
            *("--ssl-ca-certfile", home.ca_certificate, "--enable-supernode-auth", "--database", home.database),
            *("--isolation", "process", "--superexec-auth-secret-file", home.superexec_secret),
            "--disable-runtime-dependency-installation",
        ]
        starter = [
            *("flower-superexec", "--runtime-api-address", self.address, "--root-certificates", home.ca_certificate),
            *("--superexec-auth-secret-file", home.superexec_secret),
        ]
        return [
            Process("superlink", [sys.executable, "-m", "aggregator.service.database", *_program(link)], environment),
            Process("superexec", _program(starter), {**environment, SERVICE: str(home.folder)}),
        ]

    def nodes(self) -> dict[int, Node]:
        """Every registered node, by id."""
        return {
            int(item["node-id"]): Node(
                item["status"], item["online-at"] if item["status"] == "online" else item["offline-at"]
            )
            for item in self._ask("supernode", "list")["nodes"]
            if item["status"] != "unregistered"
        }

    def register(self, name: str, node_key: str) -> int:
        """Let a node in.

        Args:
            name: The hospital's.
            node_key: Its OpenSSH public key.

        Returns:
            Its node id.
        """
        public = self._folder / f"{name}.pub"
        public.write_text(node_key.strip() + "\n")
        return int(self._ask("supernode", "register", str(public), "--name", name)["node-id"])

    def unregister(self, node: int) -> None:
        """Let a node in no more; its next request is refused."""
        self._ask("supernode", "unregister", str(node))

    def submit(self, study: str) -> int:
        """Start a Flower run of a study; its number."""
        return int(self._ask("run", str(self._bundle), _CONNECTION, "--run-config", f'study="{study}"')["run-id"])

    def runs(self) -> dict[int, str]:
        """What Flower says of each run, by number: "pending", "running", "finished:failed", ..."""
        return {int(item["run-id"]): str(item["status"]) for item in self._ask("list")["runs"]}

    def end(self, run: int) -> None:
        """End a Flower run; its ServerApp is told to stop."""
        self._ask("stop", str(run))

    @cached_property
    def _folder(self) -> Path:
        """Flower's own folder, with its connection to this SuperLink."""
        folder = self._home.folder / "flower"
        folder.mkdir(exist_ok=True, mode=0o700)
        certificates = json.dumps(str(self._home.ca_certificate))
        (folder / "config.toml").write_text(_CONFIG.format(address=json.dumps(self.address), certificates=certificates))
        return folder

    @cached_property
    def _bundle(self) -> Path:
        folder = self._home.folder / "bundle"
        folder.mkdir(exist_ok=True)
        (folder / "pyproject.toml").write_text(_BUNDLE)
        (folder / "LICENSE").write_text("Apache-2.0\n")
        return folder

    @property
    def _environment(self) -> dict[str, str]:
        """Of every Flower program: its own folder, no telemetry, no update check, nothing installed.

        Flower starts programs of its own by their bare names, so theirs is the first folder that is searched:
        a service of the system has none of this environment's on its path.
        """
        beside = str(Path(sys.executable).parent)
        return {
            "PATH": os.pathsep.join(filter(None, (beside, os.environ.get("PATH", os.defpath)))),
            "FLWR_HOME": str(self._folder),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
            "FLWR_LOG_LEVEL": "WARNING",
            # The pieces of a model that were used go back to the system at once; Linux's malloc would keep them all.
            "MALLOC_MMAP_THRESHOLD_": "1000000",
        }

    def _ask(self, *words: str) -> dict[str, Any]:
        """One `flwr` command, as JSON.

        Raises:
            Unreachable: The SuperLink does not answer.
            ConfigError: It refused; says in which words.
        """
        command = [*_program(["flwr"]), *words, "--format", "json"]
        try:
            socket.create_connection((_HOST, self._home.settings.superlink_port), 1).close()
            done = subprocess.run(  # noqa: S603 - Flower's own command with our own arguments
                command,
                env={**os.environ, **self._environment},
                capture_output=True,
                text=True,
                timeout=_PATIENCE,
                check=False,
            )
            answer: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
        except (OSError, subprocess.TimeoutExpired, ValueError) as error:
            raise Unreachable(
                f"flwr {words[0]}: the SuperLink at {self.address} does not answer",
                "see that `intramural-aggregator serve` runs",
            ) from error
        if not answer.get("success"):
            reason = textwrap.shorten(str(answer.get("error-message", "no reason given")), 300)
            if "SuperLink is unavailable" in reason:  # it is starting, or its certificate has expired
                raise Unreachable(f"flwr {words[0]}: {reason}", "see the service's log")
            raise ConfigError(f"flwr {' '.join(words[:2])}: {reason}", "see the service's log")
        return answer


def _program(command: list[Any]) -> list[str]:
    """A Flower program of the environment that this runs in, with its arguments."""
    beside = Path(sys.executable).with_name(str(command[0]))
    return [str(beside if beside.exists() else command[0]), *map(str, command[1:])]
