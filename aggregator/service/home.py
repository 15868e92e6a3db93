"""The coordinator's service folder: all that the service is, in files that one machine owns.

    aggregator/
      service.toml              how the service runs; written by `init`, to be edited
      coordinator.json          the invitation that every hospital gets
      coordinator.key .pub      signs the orders of every study
      ca.crt ca.key             the authority that certifies the service and the hospitals
      server.crt server.key     the service itself
      superexec.secret          known to Flower's own processes on this machine only
      superlink.db              Flower's database
      hospitals/NAME.json .crt  who is admitted: its enrolment, and the certificate made for it
      hospitals/dismissed/      who was: the same files
      nodes.json                the number that Flower's SuperLink gave to each hospital's node
      runs/STUDY.json           the studies that the service is, or was, to run

The folder is for its owner alone (mode 0700, secrets 0600), and `open` refuses it otherwise. A service that
runs reads who is admitted and what is to run again and again: the commands change files and talk to no process.
"""

import json
import os
import shlex
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from aggregator.service import certificates
from aggregator.service.certificates import Authority, Host
from aggregator.service.settings import Number, ServiceSettings, split_address
from models.errors import ConfigError, Locked, ProtocolError
from models.exchange.enrolment import Enrolment, Invitation
from models.ledger import Signer, disk
from models.plan import Name

_SECRETS = ("ca.key", "server.key", "coordinator.key", "superexec.secret")
_PATIENCE = 10.0  # seconds to wait for another command that changes the folder

_NODES = TypeAdapter(dict[Name, Number])


@dataclass(frozen=True)
class Home:
    """A service folder.

    Attributes:
        folder: Where it is, absolute.
        settings: How the service runs.
        signer: The coordinator's key.
        invitation: What hospitals are given.
    """

    folder: Path
    settings: ServiceSettings
    signer: Signer
    invitation: Invitation

    @classmethod
    def create(
        cls,
        folder: Path | str,
        address: str,
        names: Iterable[str] = (),
        name: str = "aggregator",
        listen: str | None = None,
        require_certificates: bool = False,
    ) -> Self:
        """Make a service folder: keys, certificates, settings, invitation.

        Args:
            folder: Must not exist, or be empty.
            address: Where hospitals dial, `host:port`.
            names: More DNS names and IP addresses of this machine.
            name: The coordinator's name, as studies give it.
            listen: Where the service listens, `host:port`; by default every interface, at the address's port.
            require_certificates: Whether hospitals must show the certificate that admission makes for them.

        Raises:
            ConfigError: A wrong value, or the folder is taken; nothing is overwritten.
        """
        folder = Path(folder).absolute()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder}: exists already", "choose another folder; nothing is overwritten")
        content = {"name": name, "address": address, "require_certificates": require_certificates}
        settings = ServiceSettings.parse(content, source="the new service")
        listen = listen or f"0.0.0.0:{split_address(address)[1]}"
        settings = ServiceSettings.parse(content | {"listen": listen}, source="the new service")
        draft = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(draft, ignore_errors=True)
        disk.make_folder(folder.parent)
        draft.mkdir(mode=0o700)
        try:
            _fill(draft, settings, names)
            disk.rename(draft, folder)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)  # half a folder with keys in it helps nobody
            raise
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Open a service folder.

        Raises:
            ConfigError: It is none, others on this machine can look into it, its files do not belong
                together, or hospitals would not accept its certificate.
        """
        home = cls._read(Path(folder).absolute())
        if home.invitation.address != home.settings.address:
            raise ConfigError(
                f"{home.invitation_path}: tells hospitals to dial {home.invitation.address}, and not "
                f"{home.settings.address} as service.toml says",
                f"run: intramural-aggregator init {shlex.quote(str(folder))} --renew",
            )
        certificates.check_server(home.server_certificate, home.server_key, home.ca_certificate, home.settings.host)
        return home

    @classmethod
    def renew(cls, folder: Path | str, names: Iterable[str] = ()) -> Self:
        """Make the service's certificate anew, and the invitation if the address has changed.

        Args:
            folder: The service folder.
            names: DNS names and IP addresses beside the address of service.toml and those certified before.

        Raises:
            ConfigError: It is no service folder, or its authority cannot be used any more.
        """
        home = cls._read(Path(folder).absolute())
        settings, authority = home.settings, home.authority
        hosts: list[Host] = [settings.host, *names]
        if home.server_certificate.exists():
            hosts += certificates.hosts_of(certificates.load_certificate(home.server_certificate))
        key = certificates.load_key(home.server_key).public_key()
        disk.publish(home.server_certificate, certificates.issue_server(authority, key, settings.name, hosts))
        invitation = home.invitation.model_copy(update={"address": settings.address})
        if invitation != home.invitation:
            disk.publish(home.invitation_path, invitation.encode())
        return cls.open(folder)

    @classmethod
    def _read(cls, folder: Path) -> Self:
        """Read a folder without asking whether hospitals would accept its certificate."""
        if not (folder / "service.toml").is_file():
            raise ConfigError(
                f"{folder}: is no service folder (it has no service.toml)",
                f"make one: intramural-aggregator init {shlex.quote(str(folder))} --address HOST:PORT",
            )
        _check_private(folder)
        settings = ServiceSettings.load(folder / "service.toml")
        path = folder / "coordinator.json"
        signer = Signer.load(folder / "coordinator.key")
        try:
            invitation = Invitation.decode(_bytes(path))
        except ProtocolError as error:
            raise ConfigError(f"{path}: {error}", "restore the file") from error
        if settings.name != signer.name:
            raise ConfigError(
                f"{folder / 'service.toml'}: name: is not {signer.name!r}, whose key is here (got {settings.name!r})",
                "a coordinator keeps its name; to have another one, make another folder",
            )
        authority = _bytes(folder / "ca.crt").decode(errors="replace")
        if (invitation.name, invitation.key, invitation.certificates) != (signer.name, signer.vkey, authority):
            raise ConfigError(f"{path}: is not of the key and the authority in this folder", "restore all three files")
        return cls(folder, settings, signer, invitation)

    def hospitals(self) -> dict[str, Enrolment]:
        """Who is admitted now, sorted by name.

        Raises:
            ConfigError: An enrolment in the folder is not as it was admitted.
        """
        admitted = {}
        for path, content in documents(self.admitted):
            try:
                enrolment = Enrolment.decode(content)
                enrolment.verify()
            except ProtocolError as error:
                raise ConfigError(f"{path}: {error}", "restore the file, or remove it and admit again") from error
            if enrolment.name != path.stem:
                raise ConfigError(f"{path}: is the enrolment of {enrolment.name}", "remove it and admit again")
            admitted[enrolment.name] = enrolment
        return admitted

    def nodes(self) -> dict[str, int]:
        """The number of each hospital's node at Flower's SuperLink, by the hospital's name."""
        try:
            return _NODES.validate_json(_bytes(self.nodes_path), strict=True) if self.nodes_path.exists() else {}
        except ValidationError:
            raise ConfigError(f"{self.nodes_path}: holds no node numbers by name", "restore the file") from None

    def save_nodes(self, nodes: Mapping[str, int]) -> None:
        """Keep the nodes' numbers, durably."""
        with self.changing():
            disk.publish(self.nodes_path, json_bytes(nodes))

    def forget_node(self, name: str) -> None:
        """Keep a hospital's number no more; whoever comes back under this name is another node."""
        with self.changing():
            nodes = self.nodes()
            if nodes.pop(name, None) is not None:
                disk.publish(self.nodes_path, json_bytes(nodes))

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the folder's lock; waits a while for another command that has it.

        Raises:
            Locked: The other one does not come to an end.
        """
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                number = disk.lock(self.folder / "changing.lock")
                break
            except Locked:
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)
        try:
            yield
        finally:
            os.close(number)

    @cached_property
    def authority(self) -> Authority:
        """The certificate authority, with its private key."""
        return Authority.load(self.ca_certificate, self.ca_key)

    @property
    def expires(self) -> datetime:
        """When the service's certificate ends (UTC)."""
        return certificates.load_certificate(self.server_certificate).not_valid_after_utc

    @property
    def ca_certificate(self) -> Path:
        """The certificate of the authority; hospitals and Flower's processes trust it."""
        return self.folder / "ca.crt"

    @property
    def ca_key(self) -> Path:
        """Whoever holds it can pose as this service, and as any hospital's machine."""
        return self.folder / "ca.key"

    @property
    def server_certificate(self) -> Path:
        """What the service presents."""
        return self.folder / "server.crt"

    @property
    def server_key(self) -> Path:
        """Whoever holds it can pose as this service."""
        return self.folder / "server.key"

    @property
    def superexec_secret(self) -> Path:
        """Whoever holds it can take tasks from Flower on this machine."""
        return self.folder / "superexec.secret"

    @property
    def database(self) -> Path:
        """Flower's state; holds what travels while a round is at work."""
        return self.folder / "superlink.db"

    @property
    def invitation_path(self) -> Path:
        """To be sent to every hospital."""
        return self.folder / "coordinator.json"

    @property
    def key_path(self) -> Path:
        """Whoever holds it can give orders as the coordinator."""
        return self.folder / "coordinator.key"

    @property
    def nodes_path(self) -> Path:
        """The nodes' numbers."""
        return self.folder / "nodes.json"

    @property
    def serving(self) -> Path:
        """Locked while the service runs."""
        return self.folder / "serving"

    @property
    def runs(self) -> Path:
        """The folder of the studies."""
        return self.folder / "runs"

    @property
    def admitted(self) -> Path:
        """The folder of the admitted hospitals."""
        return self.folder / "hospitals"

    @property
    def dismissed(self) -> Path:
        """The folder of those who were admitted once; it is made when the first is dismissed."""
        return self.admitted / "dismissed"


def _fill(folder: Path, settings: ServiceSettings, names: Iterable[str]) -> None:
    """Write all that a new service folder holds."""
    (folder / "hospitals").mkdir()
    (folder / "runs").mkdir()
    authority, server = Authority.create(settings.name), certificates.new_key()
    certificate = certificates.issue_server(authority, server.public_key(), settings.name, (settings.host, *names))
    trusted = certificates.pem(authority.certificate)
    signer = Signer.create(folder / "coordinator.key", settings.name)
    invitation = Invitation(
        name=settings.name, key=signer.vkey, address=settings.address, certificates=trusted.decode()
    )
    disk.create(folder / "ca.key", authority.key_pem(), 0o600)
    disk.create(folder / "server.key", certificates.key_pem(server), 0o600)
    disk.create(folder / "superexec.secret", os.urandom(32), 0o600)  # Flower reads it as it is, as bytes
    disk.create(folder / "superlink.db", b"", 0o600)  # so that it is private before Flower writes the first byte
    disk.create(folder / "ca.crt", trusted)
    disk.create(folder / "server.crt", certificate)
    disk.create(folder / "coordinator.json", invitation.encode())
    disk.create(folder / "service.toml", settings.text().encode())


def _check_private(folder: Path) -> None:
    """See that nobody else on this machine can read the folder's secrets."""
    for path, mode in ((folder, 0o700), *((folder / name, 0o600) for name in _SECRETS)):
        try:
            found = path.stat().st_mode
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}", "restore the file") from error
        disk.require_private(path, found, mode)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", "restore the file") from error


def documents(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """The JSON files of a folder by name; one that a command takes away meanwhile is not there."""
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stem):
        with suppress(FileNotFoundError):
            yield path, path.read_bytes()


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """A JSON object for people and programs."""
    return (json.dumps(dict(content), indent=2, sort_keys=True) + "\n").encode()
