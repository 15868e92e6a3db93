"""What is printed for people, whoever wrote the words."""

import pytest

from models.console import show_table


def test_a_strangers_words_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show_table("a \x1b[2Jtitle", ("what", "said"), [("code", "\x1b[31mRED\rover\u202eturned"), ("two", "lines\nstay")])
    told = capsys.readouterr().out
    assert "?[31mRED?over?turned" in told
    assert "a ?[2Jtitle" in told
    assert [line.split() for line in told.splitlines()[-2:]] == [["two", "lines"], ["stay"]]
