"""The hospital as a Flower ClientApp: who holds its ledger, and when."""

from pathlib import Path

import pytest
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from models.errors import Locked
from silos.app import close_silo, open_local
from silos.silo import Silo


@pytest.mark.parametrize("in_turns", [True, False])
def test_a_hospital_that_is_served_in_turns_is_open_only_while_it_answers(
    hospitals: list[Path], in_turns: bool
) -> None:
    site = hospitals[0]
    local = open_local(site)
    local.close()
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    config = local.in_turns if in_turns else local.node_config
    for _ in range(2):
        message = Message(RecordDict(), 2, MessageType.TRAIN)
        message.metadata.__dict__["_message_id"] = "1"
        reply = local.app(message, Context(1, 2, dict(config), RecordDict(), {}))
        assert reply.has_error()  # nobody signed it, and it was looked at
        if in_turns:
            Silo.open(site).close()
        else:
            with pytest.raises(Locked):
                Silo.open(site)
    close_silo(site)
