"""The executor: hands the orders that the hospital's SuperNode receives to our app, in this one process.

    python -m silos.service.executor SITE.toml --address 127.0.0.1:PORT --secret FILE

Flower's own executor unpacks a study's bundle, imports the code in it, and starts a new process for every
message. This one runs what the hospital installed and nothing else, keeps the network and the data in memory
between rounds, and sends back an answer or one fixed word, never the text of an error. It works on one order
at a time, and writes a journal (`silos.service.journal`), so that it may be killed at any moment.

It ends with `RESTART_NODE` when the SuperNode waits for an answer that cannot come; a supervisor that sees
this must start the SuperNode anew.
"""

import argparse
import contextlib
import hashlib
import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp

from models.console import log_service, run_command
from models.errors import BundleRefused, ConfigError, Interrupted, IntramuralError, LedgerError, is_wire_code
from models.ledger import Entry, Event
from silos.app import AGAIN, SITE, close_silo, open_silo
from silos.app import app as silo_app
from silos.service import bundle
from silos.service.journal import RESTART_NODE, STATUS, Journal, Page, Stage, TornError, put_json
from silos.service.runtime import NodeStuckError, Runtime, Task, TaskGoneError, dump, load

log = logging.getLogger("intramural.executor")

_POLL = 0.2  # seconds between two looks for an order
_UNREACHABLE = 1.0  # seconds between two looks while the SuperNode does not answer
_UNWRITTEN = 10.0  # seconds until a ledger that could not be written is opened again
_TRIES = 2  # how often an order is begun
_GRACE = 8  # seconds for the present order when told to stop
_RAISED, _BAD_BUNDLE = 2, 7  # Flower's codes for "the ClientApp raised" and "invalid FAB"; the word is ours


class Executor:
    """Works on the orders of one SuperNode; opens the hospital, and so holds its ledger's lock.

    Args:
        site: The hospital's `site.toml`.
        address: Host and port of the SuperNode's Runtime API.
        secret: What the SuperNode demands of whoever asks for orders.
        app: What follows the orders.

    Raises:
        IntramuralError: The hospital cannot be opened.
    """

    def __init__(self, site: Path, address: str, secret: bytes, app: ClientApp = silo_app) -> None:
        work = open_silo(site).site.run.work
        self._site, self._app = site.resolve(), app
        self._runtime = Runtime(address, secret)
        self._journal = Journal(work / "journal", hashlib.sha256(secret).hexdigest()[:16])
        self._status = work / STATUS
        self._last_order: float | None = None
        self._tend_at = 0.0

    def work(self, stopping: threading.Event) -> None:
        """Work on orders until told to stop; the one that is being worked on is finished first.

        Raises:
            NodeStuckError: Only a new SuperNode helps.
        """
        try:
            self._resume()
            self._tell("waiting")
            while not stopping.is_set():
                if token := self._runtime.acquire():
                    self._begin(token)
                    continue
                self._tend()
                stopping.wait(_POLL if self._runtime.reachable else _UNREACHABLE)
        except NodeStuckError:
            self._journal.clear()
            raise
        finally:
            self._runtime.close()

    def _tend(self) -> None:
        """Let the hospital write down what people decided; a ledger that cannot be written is tried again later."""
        if time.monotonic() < self._tend_at:
            return
        try:
            open_silo(self._site).tend()
        except LedgerError as error:
            log.error("the ledger cannot be written, so nothing leaves: %s", error.wire_code)
            log.debug("the reason", exc_info=error)
            close_silo(self._site)
            self._tend_at = time.monotonic() + _UNWRITTEN

    def _begin(self, token: str) -> None:
        """Fetch the order of a token, follow it, and answer."""
        self._journal.acquired(token)
        self._tell("receiving")
        try:
            with self._runtime.task(token) as task:
                given = task.begin()
                order, pieces = task.order()
                try:
                    if given is None:
                        raise Interrupted("the order was begun by a process that was killed before it had it")
                    bundle.check(*given)
                    order = task.fetch(order, pieces)
                except IntramuralError as error:
                    reply = self._refuse(order, error)
                else:
                    self._journal.pulled(token, order.metadata.message_id, dump(order))
                    self._tell("working")
                    reply = self._follow(order)
                self._deliver(task, reply)
        except TaskGoneError:
            log.warning("the SuperNode has taken an order back")
            self._journal.clear()
        self._tell("waiting")

    def _resume(self) -> None:
        """Finish what a predecessor that was killed has left."""
        try:
            page = self._journal.read()
            content = self._journal.order() if page and page.stage is Stage.PULLED else b""
        except TornError as error:
            raise NodeStuckError("the journal cannot be read") from error
        if page is None:
            return
        if page.node != self._journal.node:
            log.warning("an order was left unfinished, and the SuperNode that gave it is gone")
            self._journal.clear()
        elif page.stage is Stage.REPLYING:
            raise NodeStuckError("an answer was cut off")
        elif page.stage is Stage.PULLED:
            self._continue(page, content)
        else:
            with self._runtime.task(page.token) as task:
                token = page.token if task.alive() else ""
            token = token or self._runtime.acquire()  # what nobody began is given out again
            if not token:
                raise NodeStuckError("an order was begun, and is not here")
            self._begin(token)

    def _continue(self, page: Page, content: bytes) -> None:
        """Follow an order once more, or say that it cannot be done."""
        self._tell("working")
        with self._runtime.task(page.token) as task:
            if not task.alive():
                log.warning("an order was left unfinished, and the SuperNode has given it up")
                self._journal.clear()
                return
            log.warning("an order was left unfinished; it is taken up again")
            order = load(content, page.message_id)
            if page.tries < _TRIES:
                self._journal.again()
                reply = self._follow(order, again=True)
            else:
                reply = self._refuse(order, Interrupted(f"the work was cut off {page.tries} times"))
            try:
                self._deliver(task, reply)
            except TaskGoneError:
                self._journal.clear()

    def _follow(self, order: Message, again: bool = False) -> Message:
        """Hand an order to the app, with a context that is made here and holds nothing that came with it."""
        config: UserConfig = {SITE: str(self._site)}
        if again:
            config[AGAIN] = True
        context = Context(order.metadata.run_id, order.metadata.dst_node_id, config, RecordDict(), {})
        try:
            reply = self._app(order, context)
        except Exception as error:  # the boundary: what it says stays here
            return self._refuse(order, error)
        if reply.has_error() and not is_wire_code(reply.error.reason or ""):
            return Message(Error(_RAISED, IntramuralError.code), reply_to=order)
        return reply

    def _refuse(self, order: Message, error: Exception) -> Message:
        """One word instead of an answer; the ledger has it first."""
        log.debug("the reason", exc_info=error)
        code = error.wire_code if isinstance(error, IntramuralError) else IntramuralError.code
        try:
            open_silo(self._site).ledger.append(Entry(Event.ORDER_REJECTED, {"code": code}))
        except LedgerError as unwritten:
            code = unwritten.wire_code
            close_silo(self._site)
        log.warning("an order was rejected: %s", code)
        return Message(Error(_BAD_BUNDLE if isinstance(error, BundleRefused) else _RAISED, code), reply_to=order)

    def _deliver(self, task: Task, reply: Message) -> None:
        """Give the answer to the SuperNode."""
        self._journal.replying()
        task.answer(reply)
        self._journal.clear()
        self._last_order = time.time()

    def _tell(self, state: str) -> None:
        with contextlib.suppress(OSError):  # on a full disk there is more to worry about
            put_json(self._status, {"state": state, "since": time.time(), "last_order": self._last_order})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the executor until SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m silos.service.executor", description="Follows a SuperNode's orders."
    )
    parser.add_argument("site", type=Path, help="site.toml")
    parser.add_argument("--address", required=True, metavar="HOST:PORT", help="the SuperNode's Runtime API")
    parser.add_argument("--secret", required=True, type=Path, metavar="FILE", help="the secret that it demands")
    parser.add_argument("--log-json", action="store_true", help="write the log as JSON lines")
    parser.set_defaults(run=_run)
    return run_command(parser, argv)


def _run(arguments: argparse.Namespace) -> int:
    log_service(json_lines=arguments.log_json)
    os.environ["no_proxy"] = "*"  # a hospital's proxy is for the way out; tokens stay on this machine
    secret = arguments.secret.read_bytes()
    if not secret:
        raise ConfigError(f"{arguments.secret}: is empty", "give the file that the SuperNode was started with")
    stopping = threading.Event()

    def stop(*_: object) -> None:
        stopping.set()
        signal.alarm(_GRACE)  # whatever is being done then, the process ends, and the journal has the order

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        Executor(arguments.site, arguments.address, secret).work(stopping)
    except NodeStuckError as error:
        log.error("the SuperNode must be started anew: %s", error)
        return RESTART_NODE
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
