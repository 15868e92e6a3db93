"""What is printed for people, whoever wrote the words."""

import argparse

import pytest

from models.console import run_command, show_lines, show_table
from models.errors import ConfigError

HOSTILE = "x\x1b[1A\x1b[2K  ok\udcff"


def test_a_strangers_words_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("code", "\x1b[31mRED\rover\u202eturned"), ("two", "lines\nstay")]
    show_table("a \x1b[2Jtitle", ("what", "\x1b[2Jsaid"), rows)
    told = capsys.readouterr().out
    assert "?[31mRED?over?turned" in told
    assert "a ?[2Jtitle" in told
    assert "?[2Jsaid" in told
    assert [line.split() for line in told.splitlines()[-2:]] == [["two", "lines"], ["stay"]]


def test_a_strangers_words_make_no_line_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    show_lines(f"FAILED: {HOSTILE}\n  ok", "end")
    assert capsys.readouterr().out == "FAILED: x?[1A?[2K  ok??  ok\nend\n"


@pytest.mark.parametrize("error", [ConfigError(f"{HOSTILE}: is wrong", "see\nthat"), OSError(2, "is wrong", HOSTILE)])
def test_an_error_cannot_steer_the_terminal_either(capsys: pytest.CaptureFixture[str], error: Exception) -> None:
    def fail(_: argparse.Namespace) -> int:
        raise error

    parser = argparse.ArgumentParser()
    parser.set_defaults(run=fail)
    assert run_command(parser, []) == 1
    first, do, *rest = capsys.readouterr().err.splitlines()
    assert first == "error: x?[1A?[2K  ok?: is wrong"
    assert do.startswith("  do: see")
    assert rest in ([], ["that"])
