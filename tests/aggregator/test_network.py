"""Replies that arrive over the network are put together as Flower does it, in less memory."""

import tracemalloc

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.supercore.inflatable.inflatable_object import InflatableObject, get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflatable_class_registry, inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from aggregator import network

SIZE = 5_000_000  # four of Flower's pieces


@pytest.fixture(autouse=True)
def lean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(inflatable_class_registry, "Array", network._LeanArray)


def reply(vector: np.ndarray) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord({"vector": Array(vector)}), "words": ConfigRecord({"a": b"b"})})


def taken_apart(message: RecordDict) -> dict[str, bytes]:
    return {name: item.deflate() for name, item in get_all_nested_objects(message).items()}


def put_together(message: RecordDict, contents: dict[str, bytes]) -> InflatableObject:
    return inflate_object_from_contents(message.object_id, contents)


@pytest.mark.parametrize("vector", [np.arange(SIZE, dtype=np.float32), np.zeros(SIZE, np.float32), np.zeros(0)])
def test_a_reply_arrives_as_it_was_sent(vector: np.ndarray) -> None:
    sent = reply(vector)
    received = put_together(sent, taken_apart(sent))
    assert isinstance(received, RecordDict)
    assert received.object_id == sent.object_id
    assert received["arrays"]["vector"].numpy().tobytes() == vector.tobytes()


def test_a_reply_is_in_memory_twice_at_most_while_it_is_put_together() -> None:
    sent = reply(np.arange(SIZE, dtype=np.float32))
    tracemalloc.start()
    try:
        contents = taken_apart(sent)  # once already
        put_together(sent, contents)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.6 * 4 * SIZE  # twice, and a piece of a quarter


@pytest.mark.parametrize("number", [b"7", b"-9", b'"x"'])
def test_an_array_that_names_a_piece_which_is_not_there_is_refused(number: bytes) -> None:
    sent = reply(np.arange(3, dtype=np.float32))
    contents = taken_apart(sent)
    name = next(name for name, content in contents.items() if content.startswith(b"Array "))
    changed = contents[name].replace(b'"arraychunk_ids": [0]', b'"arraychunk_ids": [' + number + b"]")
    assert changed != contents[name]
    with pytest.raises((LookupError, TypeError)):
        put_together(sent, {**contents, name: changed})


def test_a_reply_that_cannot_be_put_together_is_an_error_of_its_sender_and_the_others_arrive() -> None:
    class Flowers:
        """Flower's grid, with one reply that is broken in a way nobody foresaw."""

        def pull_messages(self, message_ids: list[str]) -> list[Message]:
            if message_ids == ["broken"]:
                raise KeyError("arraychunk_ids")
            asked = Message(RecordDict(), 7, MessageType.TRAIN)
            asked.metadata.__dict__["_message_id"] = message_ids[0]
            return [Message(RecordDict(), reply_to=asked)]

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    grid = network.NetworkGrid(Flowers(), dict)  # type: ignore[arg-type]
    replies = list(grid.pull_messages(["first", "broken", "last"]))
    assert [reply.metadata.reply_to_message_id for reply in replies] == ["first", "broken", "last"]
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert replies[1].error.reason == "malformed"


def test_a_superlink_that_fails_is_no_fault_of_a_hospital() -> None:
    class Flowers:
        def pull_messages(self, message_ids: list[str]) -> list[Message]:
            raise httpx.ConnectError("gone")

    with pytest.raises(httpx.ConnectError):
        list(network.NetworkGrid(Flowers(), dict).pull_messages(["first"]))  # type: ignore[arg-type]
