"""The executor's journal: whole or absent, private, and never taken for another order's."""

from pathlib import Path

import pytest

from silos.service.journal import Journal, Stage, TornError, put

ORDER = bytes(range(256)) * 100


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal", "this-node")


def successor(tmp_path: Path, node: str = "this-node") -> Journal:
    return Journal(tmp_path / "journal", node)


def test_without_a_journal_there_is_nothing_to_finish(journal: Journal) -> None:
    assert journal.read() is None


def test_a_successor_reads_the_order_that_was_being_worked_on(journal: Journal, tmp_path: Path) -> None:
    journal.acquired("token")
    journal.pulled("token", "message-1", ORDER)

    later = successor(tmp_path, "another-node")
    page = later.read()
    assert page is not None
    assert (page.stage, page.token, page.message_id, page.tries) == (Stage.PULLED, "token", "message-1", 1)
    assert later.order() == ORDER
    assert page.node == "this-node"


def test_every_try_is_counted(journal: Journal, tmp_path: Path) -> None:
    journal.pulled("token", "message-1", ORDER)
    later = successor(tmp_path)
    later.read()
    later.again()
    page = successor(tmp_path).read()
    assert page is not None
    assert page.tries == 2


def test_an_answer_on_its_way_is_told_from_an_order_in_work(journal: Journal, tmp_path: Path) -> None:
    journal.pulled("token", "message-1", ORDER)
    journal.replying()
    page = successor(tmp_path).read()
    assert page is not None
    assert page.stage is Stage.REPLYING


def test_what_is_done_leaves_nothing_behind(journal: Journal, tmp_path: Path) -> None:
    journal.pulled("token", "message-1", ORDER)
    journal.clear()
    assert list(tmp_path.iterdir()) == []
    journal.clear()


def test_only_its_owner_can_read_it(journal: Journal, tmp_path: Path) -> None:
    journal.pulled("token", "message-1", ORDER)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"journal": 0o600, "journal.order": 0o600}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"stage": "pulled"}', b'{"stage": "lost", "token": "t"}', b"\xff"]
)
def test_a_page_that_cannot_be_read_is_torn(journal: Journal, tmp_path: Path, content: bytes) -> None:
    put(tmp_path / "journal", content)
    with pytest.raises(TornError):
        journal.read()


@pytest.mark.parametrize("content", [None, b"", ORDER[:-1], ORDER[:-1] + b"!", ORDER + b"!"])
def test_an_order_that_is_not_the_one_it_speaks_of_is_torn(
    journal: Journal, tmp_path: Path, content: bytes | None
) -> None:
    journal.pulled("token", "message-1", ORDER)
    path = tmp_path / "journal.order"
    path.unlink() if content is None else path.write_bytes(content)
    later = successor(tmp_path)
    later.read()
    with pytest.raises(TornError):
        later.order()
