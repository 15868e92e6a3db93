"""The SuperNode's local Runtime API, as the executor uses it: orders are asked for, fetched and answered here.

Flower's own client ends the process that it runs in when a task is lost, and waits a second for what
arrives in a moment; this one does neither. It is the only module of the hospital that uses parts of Flower
which are not public; written against Flower 1.41.

    runtime = Runtime("127.0.0.1:9094", secret)
    with runtime.task(runtime.acquire()) as task:
        bundle = task.begin()
        label, pieces = task.order()
        task.answer(follow(task.fetch(label, pieces)))

Why a SuperNode can be left waiting for ever: it forgets an order whose work began (`begin`) and whose label
nobody asked for (`order`), and it never gives up an answer of which it has the label but not all pieces.
"""

import logging
import threading
import time
from types import TracebackType
from typing import Self

import httpx
from flwr.app import Context, Message, RecordDict
from flwr.common.constant import SubStatus
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import ObjectTree, PullObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_confirm_message_received_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, pull_and_inflate_object_from_tree
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import push_message

from models.errors import Malformed

log = logging.getLogger("intramural.executor")

_PATIENCE = 60.0  # seconds for a SuperNode that does not answer to come back
_BEAT = 15.0  # seconds between two signs of life; without one for 60 s the SuperNode gives a task up
_MISSED = 2.0  # seconds until a sign of life that did not get through is given again
_STORED = 30.0  # seconds for the SuperNode to store an order: it announces the order first
_ARRIVED = 600.0  # seconds for each piece of an order (5 MB) to arrive from the coordinator
_UNAUTHORIZED = 401


class NodeStuckError(Exception):
    """The SuperNode waits, or may wait, for an answer that will never come; only a new one helps."""


class TaskGoneError(Exception):
    """The SuperNode has taken a task back, or is another one now; it waits for nothing."""


class Runtime:
    """The Runtime API of one SuperNode.

    Args:
        address: Host and port, on this machine.
        secret: What the SuperNode demands of whoever asks for orders.
    """

    def __init__(self, address: str, secret: bytes) -> None:
        self._address = address
        proof = SuperExecAuthHttpInterceptor(
            master_secret=secret, protected_methods={"/flwr.proto.Runtime/AcquireTask"}
        )
        self._client = _client(address, proof, patience=0.0)
        self.reachable = True

    def acquire(self) -> str:
        """The token of an order that waits; empty when there is none, or nobody to ask."""
        try:
            token = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])).token
        except httpx.HTTPError as error:
            if self.reachable:
                status = f"HTTP {error.response.status_code}" if isinstance(error, httpx.HTTPStatusError) else "silence"
                log.warning("the SuperNode gives no orders: %s", status)
            self.reachable = False
            return ""
        self.reachable = True
        return token

    def task(self, token: str) -> "Task":
        """The task that a token is for."""
        return Task(self._address, token)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class Task:
    """One order at the SuperNode; while it is open, the SuperNode is told that somebody is at work.

    Args:
        address: Host and port of the SuperNode's Runtime API.
        token: What allows to work on it.
    """

    def __init__(self, address: str, token: str) -> None:
        pass_ = RuntimeTokenHttpInterceptor(token)
        self._client = _client(address, pass_, patience=_PATIENCE)
        self._pulse = _client(address, pass_, patience=0.0)
        self._closing = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._heart.join()
        self._pulse.close()
        self._client.close()

    def alive(self) -> bool:
        """Whether the SuperNode still waits for this one."""
        try:
            return bool(self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success)
        except httpx.HTTPError:
            return False

    def begin(self) -> tuple[bytes, str] | None:
        """Tell the SuperNode that work begins, which can be done once.

        Returns:
            The bundle that came with the order, and the SHA-256 (hex) that it must have; None where work
            had begun before.

        Raises:
            TaskGoneError: It is not this one's any more.
        """
        try:
            given = self._client.PullTaskInput(PullTaskInputRequest())
        except httpx.HTTPError as error:
            if not self.alive():
                raise TaskGoneError from error
            return None
        return given.fab.content, given.run.fab_hash

    def order(self) -> tuple[Message, ObjectTree]:
        """The order's label, and which pieces it consists of; given out once.

        Raises:
            NodeStuckError: It was given out before, or does not come.
            TaskGoneError: The SuperNode could not receive it, and has given it up.
        """
        end = time.monotonic() + _STORED
        try:
            while not (found := self._client.PullMessages(PullAppMessagesRequest())).messages_list:
                if time.monotonic() > end:
                    raise NodeStuckError("an order was announced and cannot be had")
                time.sleep(0.05)
        except httpx.HTTPError as error:
            if _is_refused(error):
                raise TaskGoneError from error
            raise NodeStuckError("an order could not be fetched") from error
        message, pieces = message_from_proto(found.messages_list[0]), found.message_object_trees[0]
        return _named(message, pieces.object_id), pieces

    def fetch(self, label: Message, pieces: ObjectTree) -> Message:
        """The order with its content.

        Raises:
            Malformed: It is no Flower message.
            TaskGoneError: The SuperNode could not receive all of it, and has given it up.
        """
        run, node = label.metadata.run_id, Node(node_id=label.metadata.dst_node_id)

        def piece(object_id: str) -> bytes:
            request = PullObjectRequest(node=node, run_id=run, object_id=object_id)
            end = time.monotonic() + _ARRIVED
            while (found := self._client.PullObject(request)).object_found and time.monotonic() < end:
                if found.object_available:
                    return found.object_content
                time.sleep(0.02)
            raise ObjectPullError(object_id, "it did not come")

        confirm = make_confirm_message_received_fn_protobuf(self._client.ConfirmMessageReceived, node, run)
        try:
            message = pull_and_inflate_object_from_tree(pieces, piece, confirm, return_type=Message)
        except Exception as error:  # the network's, or what a stranger's bytes lead to
            if isinstance(error, httpx.HTTPError | ObjectPullError) and not self.alive():
                raise TaskGoneError from error
            raise Malformed("the order is no Flower message") from error
        return _named(message, pieces.object_id)

    def answer(self, reply: Message) -> None:
        """Give the answer, and nothing else: no state stays with Flower.

        Raises:
            TaskGoneError: Nobody waits for it any more.
            NodeStuckError: The SuperNode may have a part of it only.
        """
        metadata = reply.metadata
        context = Context(metadata.run_id, metadata.src_node_id, {}, RecordDict(), {})
        try:
            push_message(self._client, reply, context)
            # Flower's word for "answered", refusals included: without an answer it would be no end.
            self._client.PushTaskOutput(PushTaskOutputRequest(sub_status=SubStatus.COMPLETED, details=""))
        except Exception as error:  # the network's, or Flower's own when a piece was not stored
            if _is_refused(error):
                raise TaskGoneError from error
            raise NodeStuckError("an answer could not be delivered whole") from error

    def _beat(self) -> None:
        pause = 0.0
        while not self._closing.wait(pause):
            pause = _BEAT
            try:
                self._pulse.SendTaskHeartbeat(SendTaskHeartbeatRequest())
            except httpx.HTTPError as error:
                if _is_refused(error):
                    return  # the task is gone, which is noticed where the answer is given
                pause = _MISSED


def dump(order: Message) -> bytes:
    """An order as bytes."""
    return bytes(message_to_proto(order).SerializeToString())


def load(content: bytes, message_id: str) -> Message:
    """The order of such bytes, which do not hold its name."""
    return _named(message_from_proto(MessageProto.FromString(content)), message_id)


def _named(message: Message, message_id: str) -> Message:
    message.metadata.__dict__["_message_id"] = message_id  # as Flower does it: there is no other way
    return message


def _is_refused(error: Exception) -> bool:
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code == _UNAUTHORIZED


def _client(address: str, interceptor: ProtobufClientInterceptor, patience: float) -> RuntimeHttpClient:
    retry = RetryInvoker(lambda: exponential(max_delay=2), httpx.TransportError, max_tries=None, max_time=patience)
    version = RuntimeVersionHttpInterceptor(component_name="SuperExec")
    return RuntimeHttpClient.from_server_address(
        address, insecure=True, root_certificates=None, interceptors=[version, interceptor], retry_invoker=retry
    )
