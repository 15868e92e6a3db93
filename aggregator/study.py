"""A study on disk: what was agreed, every model, the ledger, and the numbers.

    lgg-2026/
      study.toml            as the coordinator wrote it
      agreement.json        what the hospitals approve; its SHA-256 is the study's identity
      aggregator.key .pub   signs the orders; whoever holds it can give orders in this study
      models/000.safetensors, 001.safetensors, ...
      state/003/momentum.safetensors  what the strategy remembers, if it remembers anything, beside the newest model
      updates/003/north.safetensors   of the round at work (kept after it only if the plan says so)
      ledger/               the coordinator's evidence
      metrics.jsonl         a line per round, derived from the ledger

`create` never overwrites, `open` never creates.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

from aggregator.folder import model_path, read_agreement, update_path
from models.errors import ConfigError, DigestMismatch, IntramuralError
from models.exchange.documents import Agreement
from models.exchange.encoding import Encoding
from models.exchange.spec import (
    Spec,
    Vector,
    load_part,
    load_vector,
    save_vector,
    tensor_digests,
    update_digest,
    vector_digest,
)
from models.ledger import Entry, Event, Ledger, Signer, Verifier
from models.ledger.disk import create, make_folder, publish, rename
from models.plan import Plan

_MOVES = (Event.SILO_ENROLLED, Event.AGGREGATED, Event.ROUND_VOID, Event.STUDY_CLOSED)


@dataclass(frozen=True)
class Position:
    """Where a study is.

    Attributes:
        round: Rounds that are over, combined or void.
        model: Number of the newest model; model k came out of round k.
        digest: Its digest.
        closed: Whether the study is over.
        state: Digests of what the strategy remembers beside that model, by name.
        combined: Rounds that were combined.
        silos: How many were enrolled when the last one was.
    """

    round: int
    model: int
    digest: str
    closed: bool
    state: Mapping[str, str] = field(default_factory=dict)
    combined: int = 0
    silos: int = 0


class Study:
    """A study folder, open for work by one process.

    Attributes:
        folder: Where it is.
        plan: What was planned.
        agreement: What the hospitals approve.
        ledger: The coordinator's ledger.
        signer: The coordinator's key of this study.
        spec: The arrays of the model.
    """

    def __init__(self, folder: Path, agreement: Agreement, signer: Signer, ledger: Ledger, spec: Spec) -> None:
        """Use `create`, `open` or `load`."""
        self._known: dict[Path, tuple[str, tuple[int, ...]]] = {}  # digests of what was written here, with its stamp
        self.folder, self.agreement, self.signer, self.ledger, self.spec = (
            folder,
            agreement,
            signer,
            ledger,
            spec,
        )

    @classmethod
    def create(
        cls,
        plan: Path | str,
        folder: Path | str,
        initial: Path | str | None = None,
        key: Path | None = None,
    ) -> Self:
        """Make a study folder.

        Args:
            plan: The `study.toml`.
            folder: Must not exist, or be empty.
            initial: The first model as safetensors; by default the network is built here, which needs
                torch, and MONAI where the network or the augmentation is MONAI's.
            key: The private key that is to sign the study's orders, which hospitals know already; the study
                gets a copy. By default it gets a key of its own.

        Raises:
            ConfigError: The plan is wrong, the folder is taken, the key is another party's, or the network
                cannot be built here.
        """
        plan_path, folder = Path(plan), Path(folder).resolve()  # neither "." nor a link can be given to a draft
        content = Plan.load(plan_path)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder}: exists already", "open it, or choose another folder; nothing is overwritten")
        spec, vector = load_vector(Path(initial)) if initial else initial_model(content, plan_path)
        if key is not None and Signer.load(key).name != content.coordinator:
            raise ConfigError(
                f"{plan_path}: coordinator: is {content.coordinator!r}, the key is of {Signer.load(key).name!r}",
                "name the coordinator in the plan as the service does",
            )
        draft = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(draft, ignore_errors=True)
        make_folder(draft / "models")
        if key is None:
            signer = Signer.create(draft / "aggregator.key", content.coordinator)
        else:
            signer = Signer.load(key)
            create(draft / "aggregator.key", key.read_bytes(), 0o600)
            create(draft / "aggregator.pub", f"{signer.vkey}\n".encode())
        agreement = Agreement(
            plan=content,
            coordinator_key=signer.vkey,
            initial=vector_digest(spec.digest, vector),
            spec=spec.digest,
        )
        save_vector(model_path(draft, 0), spec, vector)
        publish(draft / "study.toml", plan_path.read_bytes())
        publish(draft / "agreement.json", agreement.encode())
        with Ledger.create(
            draft / "ledger", signer, origin=f"{content.coordinator}/{content.name}/{agreement.study[:16]}"
        ) as ledger:
            body = {
                "agreement": ledger.store(agreement.encode()),
                "name": content.name,
                "model": agreement.initial,
            }
            ledger.append(Entry(Event.STUDY_CREATED, body, study=agreement.study))
        rename(draft, folder)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Open a study folder.

        Raises:
            ConfigError: It is no study folder.
            Malformed: The agreement cannot be read.
            DigestMismatch: The agreement or the first model is not the one that the study was created with.
            LedgerError: The ledger is in use, or is not the one that was signed.
        """
        folder = Path(folder)
        agreement = read_agreement(folder)
        spec, _ = load_vector(model_path(folder, 0), agreement.initial)
        signer = Signer.load(folder / "aggregator.key")
        if signer.vkey != agreement.coordinator_key:
            raise ConfigError(f"{folder / 'aggregator.key'}: is not the key of this study", "restore the study's key")
        ledger = Ledger.open(folder / "ledger", signer)
        if not any(record.study == agreement.study for record in ledger.of(Event.STUDY_CREATED)):
            ledger.close()
            raise DigestMismatch(
                f"{folder / 'agreement.json'}: is not the agreement that this study was created with",
                "restore it from ledger/manifests",
            )
        return cls(folder, agreement, signer, ledger, spec)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Open a study, making it first if need be.

        Args:
            path: A study folder; or a `study.toml`, whose study lies beside it in a folder of the study's
                name, so that a script that is run again goes on where it was.

        Raises:
            ConfigError: The plan is wrong, or the folder holds another plan.
        """
        path = Path(path)
        if path.is_dir():
            return cls.open(path)
        plan = Plan.load(path)
        folder = path.parent / plan.name
        if not folder.exists():
            return cls.create(path, folder)
        study = cls.open(folder)
        if study.plan != plan:
            study.close()
            raise ConfigError(f"{folder}: holds a study of another plan than {path}", "give the changed study a name")
        return study

    def close(self) -> None:
        """Give the ledger's lock back."""
        self.ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def plan(self) -> Plan:
        """What was planned."""
        return self.agreement.plan

    @cached_property
    def encoding(self) -> Encoding:
        """How the hospitals' updates are told."""
        return Encoding(self.plan.encoding, self.spec)

    @cached_property
    def digest(self) -> str:
        """The study's identity."""
        return self.agreement.study

    @property
    def position(self) -> Position:
        """Where the study is, read from its ledger."""
        round_, model, digest, closed = 0, 0, self.agreement.initial, False
        state: Mapping[str, str] = {}
        combined = silos = enrolled = 0
        for record in self.ledger.of(*_MOVES):
            enrolled += record.event == Event.SILO_ENROLLED
            if record.event == Event.AGGREGATED and record.round is not None:
                round_, model, digest = record.round, record.round, record.body["model"]
                state = record.body.get("state", {})
                combined, silos = combined + 1, enrolled
            elif record.event == Event.ROUND_VOID and record.round is not None:
                round_ = record.round
            closed = closed or record.event == Event.STUDY_CLOSED
        return Position(round_, model, digest, closed, state, combined, silos)

    def enrol(self, silo: Verifier) -> None:
        """Admit a silo's key; once admitted, a name keeps its key.

        Raises:
            ConfigError: The name has another key in this study.
        """
        if silo.name == self.plan.coordinator:
            raise ConfigError(f"{silo.name}: is the coordinator's name", "rename the silo")
        known = self.enrolled.get(silo.name)
        if known is None:
            body = {"name": silo.name, "vkey": silo.vkey}
            self.ledger.append(Entry(Event.SILO_ENROLLED, body, study=self.digest))
        elif known != silo.vkey:
            raise ConfigError(
                f"{silo.name}: has another key than the one enrolled in this study",
                "ask the hospital; a new key needs a new study or a new name",
            )

    @property
    def enrolled(self) -> Mapping[str, str]:
        """Each admitted silo's public key (vkey), by name."""
        return {record.body["name"]: record.body["vkey"] for record in self.ledger.of(Event.SILO_ENROLLED)}

    def model_path(self, number: int) -> Path:
        """Where model `number` lies."""
        return model_path(self.folder, number)

    def load_model(self, number: int, digest: str) -> Vector:
        """A model, checked against its digest; `(spec.size,)` float32."""
        path = self.model_path(number)
        spec, vector = load_vector(path, None if self._is_known(path, digest) else digest)
        if spec != self.spec:
            raise DigestMismatch(f"{path}: has other arrays than the study's")
        return vector

    def save_model(self, number: int, vector: Vector, digest: str) -> None:
        """Write a model of that digest, durable before it has its name."""
        path = self.model_path(number)
        save_vector(path, self.spec, vector)
        self._known[path] = digest, _stamp(path)

    def _is_known(self, path: Path, digest: str) -> bool:
        """Whether this object wrote the file with content of that digest, and nobody touched it since."""
        try:
            return self._known.get(path) == (digest, _stamp(path))
        except OSError:
            return False

    def _state_path(self, number: int, name: str) -> Path:
        return self.folder / "state" / f"{number:03}" / f"{name}.safetensors"

    def load_state(self, position: Position) -> dict[str, Vector]:
        """What the strategy remembers beside the newest model, checked; each `(spec.size,)` float32."""
        return {
            name: load_vector(self._state_path(position.model, name), digest)[1]
            for name, digest in position.state.items()
        }

    def save_state(self, number: int, state: Mapping[str, Vector]) -> dict[str, str]:
        """Write what the strategy remembers beside model `number`, durable; its digests by name."""
        for name, vector in state.items():
            make_folder(self._state_path(number, name).parent)
            save_vector(self._state_path(number, name), self.spec, vector)
        return {name: vector_digest(self.spec.digest, vector) for name, vector in state.items()}

    def drop_states(self, before: int) -> None:
        """Forget what the strategy remembered beside models older than `before`."""
        _drop(self.folder / "state", before)

    def update_path(self, round_: int, silo: str) -> Path:
        """Where a silo's update of a round lies until it is combined."""
        return update_path(self.folder, round_, silo)

    def save_update(self, round_: int, silo: str, vector: Vector, digest: str) -> None:
        """Keep an update of that digest on disk until it is combined."""
        path = self.update_path(round_, silo)
        make_folder(path.parent.parent, 0o700)  # a single hospital's, of which no one else may see the numbers
        make_folder(path.parent)
        save_vector(path, self.spec, vector)
        self._known[path] = digest, _stamp(path)

    def load_update(self, round_: int, silo: str, digest: str) -> Vector:
        """An update kept on disk, checked against its digest; `(spec.size,)` float32."""
        spec, vector = load_vector(path := self.update_path(round_, silo))
        if update_digest(spec, tensor_digests(spec, vector)) != digest:
            raise DigestMismatch(f"{path}: is not the update of digest {digest}", "restore the file from a copy")
        return vector

    def load_update_part(self, round_: int, silo: str, start: int, stop: int) -> Vector:
        """Some elements of an update kept on disk, which `has_update` found whole."""
        return load_part(self.update_path(round_, silo), start, stop)

    def has_update(self, round_: int, silo: str, digest: str) -> bool:
        """Whether an update of that digest is kept on disk."""
        if self._is_known(self.update_path(round_, silo), digest):
            return True
        try:
            self.load_update(round_, silo, digest)
        except IntramuralError:
            return False
        return True

    def drop_updates(self, before: int) -> None:
        """Forget the updates of the rounds before this one, unless the plan keeps them."""
        self._known = {path: what for path, what in self._known.items() if path.parent.parent.name != "updates"}
        if not self.plan.keep_updates:
            _drop(self.folder / "updates", before)


def _drop(folder: Path, before: int) -> None:
    """Remove what is there of rounds before this one."""
    for of_round in folder.glob("[0-9]*"):
        if int(of_round.name) < before:
            shutil.rmtree(of_round, ignore_errors=True)


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file is written to or replaced; nobody but the kernel sets the last of it."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def initial_model(plan: Plan, source: Path | str) -> tuple[Spec, Vector]:
    """Build the plan's network here; the only place where a coordinator may want torch.

    Args:
        plan: The study.
        source: Where it is written, for errors.

    Raises:
        ConfigError: The network cannot be built as the plan asks for it, or torch is not installed.
    """
    try:
        from models import tasks
    except ImportError as error:
        raise ConfigError(
            f"the first model needs {error.name}, which is not installed on this machine",
            "run: pip install 'intramural[silo]'; or make the file on a machine that has it with "
            "`intramural-silo initial STUDY.toml FILE` and create the study with --initial FILE",
        ) from error
    try:
        network = tasks.network(plan)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}", error.hint) from error
    return network.spec, network.vector.numpy().copy()
