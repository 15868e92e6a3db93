"""The hospital as a Flower ClientApp: whatever arrives is answered, and nothing but an envelope leaves.

Flower sends the text of an exception to the server. Here none escapes: what cannot be answered with a
signed envelope is answered with a Flower error whose reason is one fixed word.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from models.errors import ConfigError, IntramuralError, NotAppended
from models.exchange import wire
from models.faults import Fault
from models.ledger import Verifier
from silos.faults import FaultySilo, faulty
from silos.silo import Silo
from silos.visit import Fit

log = logging.getLogger("intramural.silo")

SITE = "site"  # the node_config key that holds the path of site.toml

SIMULATED = "simulated"  # the node_config key that is true where hospitals wait for each other, whatever the clock says

THREADS = "threads"  # the node_config key of a number that stands for the site's own `run.threads`

AGAIN = "again"  # the node_config key that is true when the message was begun before, by a process that was killed

TURNS = "turns"  # the node_config key that is true in a simulation whose processes serve the hospital in turn

_ERROR = 2  # Flower's code for "the ClientApp raised"; the word behind it is ours

_open: dict[Path, Silo] = {}  # one open silo per site.toml: the ledger has one writer
_resting: dict[Path, Silo] = {}  # closed between two messages, with network and data warm

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer an order to train."""
    return _answer(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Answer an order to evaluate."""
    return _answer(message, context)


@app.query()
def query(message: Message, context: Context) -> Message:
    """Answer an order to survey or to close, or a farewell."""
    return _answer(message, context)


def _answer(message: Message, context: Context) -> Message:
    try:
        silo = silo_of(context)
        if wire.is_farewell(message.content):
            evidence = silo.part(wire.unpack_farewell(message.content))
            return Message(wire.pack_farewell(evidence), reply_to=message)
        envelope = silo.answer(wire.unpack(message.content), again=context.node_config.get(AGAIN) is True)
        return Message(wire.pack(envelope), reply_to=message)
    except Exception as error:  # the boundary: no text of any exception may pass
        code = error.wire_code if isinstance(error, IntramuralError) else IntramuralError.code
        log.error("an order could not be answered: %s", code)
        log.debug("the reason", exc_info=error)
        if isinstance(error, NotAppended):
            close_silo(Path(str(context.node_config[SITE])))  # its ledger must be opened again, for the next order
        return Message(Error(_ERROR, code), reply_to=message)
    finally:
        if context.node_config.get(TURNS) is True:
            rest_silo(Path(str(context.node_config[SITE])))


def silo_of(context: Context) -> Silo:
    """The open silo of the site that a node is configured with.

    Raises:
        ConfigError: The node's configuration names no site.
    """
    path = context.node_config.get(SITE)
    if not isinstance(path, str):
        raise ConfigError(f"node config: {SITE}: is required but missing", f'start the node with {SITE}="site.toml"')
    threads = context.node_config.get(THREADS)
    simulated = context.node_config.get(SIMULATED) is True
    return open_silo(Path(path), hurried=not simulated, threads=threads if isinstance(threads, int) else None)


def open_silo(path: Path, *, hurried: bool = True, threads: int | None = None) -> Silo:
    """The silo of a `site.toml`, opened once per process; see `Silo`."""
    path = path.resolve()
    if path in _resting:
        silo = _resting.pop(path)
        silo.wake()
        _open[path] = silo
    if path not in _open:
        _open[path] = Silo.open(path, hurried=hurried, threads=threads)
    return _open[path]


def rest_silo(path: Path) -> None:
    """Close the silo of a `site.toml`, for another process, and keep what makes it quick to open again."""
    silo = _open.pop(path.resolve(), None)
    if silo is not None:
        silo.close()
        _resting[path.resolve()] = silo


def close_silo(path: Path) -> None:
    """Close the silo of a `site.toml`, so that another process may open it."""
    silo = _open.pop(path.resolve(), None)
    if silo is not None:
        silo.close()


@dataclass(frozen=True)
class LocalSilo:
    """What a grid in this process needs of a hospital.

    Attributes:
        app: The ClientApp.
        node_config: What the hospital's node would be started with.
        in_turns: The same where several processes serve the hospital in turn.
        verifier: The hospital's public key.
        close: Gives the hospital's ledger free for another process.
    """

    app: Callable[[Message, Context], Message]
    node_config: dict[str, str | bool | int]
    in_turns: dict[str, str | bool | int]
    verifier: Verifier
    close: Callable[[], None]


def open_local(
    path: Path | str, threads: int | None = None, faults: Sequence[Fault] = (), fit: Fit | None = None
) -> LocalSilo:
    """The hospital of a `site.toml` on this machine, for the aggregator's simulation.

    Args:
        path: The `site.toml`.
        threads: Instead of its `run.threads`, where other hospitals are at work beside it.
        faults: What is to go wrong there, and elsewhere.
        fit: What trains it together with others; see `silos.together`.

    Raises:
        ConfigError: It is to train on a GPU that this process cannot use.
        IntramuralError: The site cannot be opened.
    """
    path = Path(path).resolve()
    config: dict[str, str | bool | int] = {SITE: str(path), SIMULATED: True}
    if threads is not None:
        config[THREADS] = threads
    if faults and path not in _open:
        silo = FaultySilo.open(path, hurried=False, threads=threads)
        silo.faults = faults
        _open[path] = silo
    opened = open_silo(path, hurried=False, threads=threads)
    opened.fit, verifier, device = fit, opened.signer.verifier, opened.site.run.device
    if device != "cpu" and torch.cuda._is_in_bad_fork():
        close_silo(path)
        raise ConfigError(
            f'{path}: run.device: "{device}" cannot be had in a worker: what it was forked from has used the GPU',
            'take workers = 1, or device = "cpu", or a process that has trained nothing yet',
        )
    answer = faulty(app, verifier.name, faults) if faults else app
    return LocalSilo(answer, config, {**config, TURNS: True}, verifier, lambda: close_silo(path))
