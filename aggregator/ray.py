"""Many hospitals on a Ray cluster: Flower's own simulation engine, the same apps on both sides.

    with RayGrid(["hospitals/north/site.toml", "hospitals/south/site.toml"]) as grid:
        run(study, grid)

For when one machine is not enough; on one machine, `LocalGrid` does the same with less. Flower starts Ray here,
or joins the cluster that the environment's RAY_ADDRESS names. Any free worker takes a hospital's next order: a
ledger has one writer, so a worker opens the hospital for the order and closes it after. The hospitals' folders
must be there under the same path on every machine, with file locks that hold between machines.
Written against Flower 1.41.
"""

import importlib.util
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from flwr.supercore import telemetry  # not public; reads its switch from the environment once, when imported
from flwr.supercore.run import Run

from aggregator.grid import StudyGrid
from aggregator.hospitals import hospital_side
from models.errors import ConfigError
from models.ledger import Verifier

_WHO = f"{MessageType.QUERY}.who"  # asks a node which of the hospitals it serves
_NUMBER = "partition-id"  # all that Flower's engine tells a node of itself
_QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
_LOOK = 0.02  # seconds between two looks at the replies
_TURN = 1.0  # seconds that replies are waited for before whoever asked may look at the clock


class RayGrid(StudyGrid):
    """A Flower Grid whose nodes are hospitals, served by the workers of a Ray cluster.

    Args:
        sites: `site.toml` of each hospital.
        cpus: Processors of one worker. The cluster holds as many workers as these allow.
        gpus: Graphics processors of one worker.

    Raises:
        ConfigError: Ray or the hospital's side is missing or does not start, or two sites have the same name.
    """

    def __init__(self, sites: Sequence[Path | str], *, cpus: float = 1.0, gpus: float = 0.0) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ConfigError("engine: Ray is not installed", "run: pip install 'intramural[ray]'")
        if not sites:
            raise ConfigError("engine: there is no site", "name the site.toml of each hospital")
        open_local, silos = hospital_side(), []
        for site in sites:
            silos.append(open_local(site))
            silos[-1].close()  # it is the workers' now
            if silos[-1].verifier.name in {silo.verifier.name for silo in silos[:-1]}:
                raise ConfigError(f"{site}: another site has the same name", "rename one of them")
        self._over = Event()
        self._failure: BaseException | None = None
        grids: Queue[Grid] = Queue()
        self._engine = Thread(
            target=self._simulate,
            args=(_server(grids, self._over), _client(silos), len(silos), {"num_cpus": cpus, "num_gpus": gpus}),
        )
        self._engine.start()
        try:
            self._grid = self._first(grids)
            self._roster = {node: silos[number].verifier for node, number in self._numbers(len(silos)).items()}
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the simulation, and Ray if it was started for it."""
        self._over.set()
        self._engine.join()

    @property
    def roster(self) -> Mapping[int, Verifier]:
        """Each node's hospital, by node id."""
        return self._roster

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return self._grid.run

    def set_run(self, run: Run) -> None:
        """Replace Flower's description of the run."""
        self._grid.set_run(run)

    def get_node_ids(self) -> Iterable[int]:
        """The hospitals' node ids."""
        return sorted(self._grid.get_node_ids())

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; an empty id stands for one that could not be sent."""
        return [next(iter(self._grid.push_messages([message])), "") for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """The replies as they come: until all are there, or for a second.

        Raises:
            ConfigError: The simulation came to an end.
        """
        waiting, end = set(message_ids), time.monotonic() + _TURN
        while waiting:
            for reply in self._grid.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                yield reply
            if not waiting or time.monotonic() > end:
                return
            self._look_after()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and wait for their replies."""
        return self._grid.send_and_receive(messages, timeout=timeout)

    def _simulate(self, server: ServerApp, client: ClientApp, nodes: int, resources: dict[str, float]) -> None:
        """Flower's engine, which ends when the server app does; in a thread of its own."""
        telemetry.FLWR_TELEMETRY_ENABLED = "0"
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # `run.device` of a site decides, as elsewhere
        try:
            run_simulation(
                server, client, nodes, backend_config={"client_resources": {**resources}, "init_args": _QUIET}
            )
        except BaseException as error:
            self._failure = error

    def _look_after(self) -> None:
        """Sleep a little.

        Raises:
            ConfigError: The engine came to an end.
        """
        time.sleep(_LOOK)
        if not self._engine.is_alive():
            raise ConfigError(
                f"engine: Flower's simulation came to an end: {self._failure}",
                "see that Ray runs on this machine, and that the cluster has as many processors as a worker needs",
            ) from self._failure

    def _first(self, grids: "Queue[Grid]") -> Grid:
        while True:
            try:
                return grids.get_nowait()
            except Empty:
                self._look_after()

    def _numbers(self, count: int) -> dict[int, int]:
        """Each node's number among the hospitals; Flower's engine draws the node ids."""
        while len(nodes := list(self._grid.get_node_ids())) < count:
            self._look_after()
        waiting = self._grid.push_messages([Message(RecordDict(), node, _WHO) for node in nodes])
        waiting, found = set(waiting), {}
        while waiting:
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                if reply.has_error():
                    raise ConfigError(
                        "engine: a worker of Ray could not start the hospital's side",
                        "install the same intramural[silo,ray] on every machine of the cluster",
                    )
                number = reply.content.config_records[_NUMBER][_NUMBER]
                assert isinstance(number, int)
                found[reply.metadata.src_node_id] = number
        return found


def _server(grids: "Queue[Grid]", over: Event) -> ServerApp:
    """A ServerApp that gives its grid away, and ends when that is no longer used."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        grids.put(grid)
        over.wait()

    return app


def _client(silos: Sequence[Any]) -> ClientApp:
    """The hospitals' ClientApp, for nodes that know their number only."""
    inner, configs = silos[0].app, [silo.in_turns for silo in silos]
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        config = configs[int(context.node_config[_NUMBER])]
        known = Context(context.run_id, context.node_id, config, context.state, context.run_config)
        reply: Message = inner(message, known)
        return reply

    def who(message: Message, context: Context) -> Message:
        return Message(RecordDict({_NUMBER: ConfigRecord({_NUMBER: context.node_config[_NUMBER]})}), reply_to=message)

    for register in (app.train, app.evaluate, app.query):
        register()(answer)
    app.query(_WHO.partition(".")[2])(who)
    return app
