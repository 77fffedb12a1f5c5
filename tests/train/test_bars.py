"""Terminal output: bars, log lines above them, long lines wrapped at its width."""

import logging
import sys

import pytest

from train.bars import bar, display_width, format_markdown, format_table, wrap
from train.command import CommandParser


def make_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")


def test_long_lines_end_at_the_width_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    make_terminal(monkeypatch)
    text = "Happy      7\n" + "word " * 40 + "\n\nend"
    lines = wrap(text).split("\n")
    assert lines[0] == "Happy      7"
    assert lines[-2:] == ["", "end"]
    assert max(map(len, lines)) <= 80
    assert " ".join(lines).split() == text.split()


def test_a_pipe_gets_lines_as_they_are() -> None:
    assert wrap("word " * 40) == "word " * 40


def test_chinese_letters_take_two_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    make_terminal(monkeypatch)
    text = "classes: " + ", ".join(["中性", "高兴"] * 10)
    lines = wrap(text).split("\n")
    assert 70 < max(map(display_width, lines)) <= 80
    assert " ".join(line.strip() for line in lines) == text


def test_a_path_is_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    make_terminal(monkeypatch)
    path = "/data/" + "a-long-name/" * 8
    assert path in wrap(f"class folders at {path} and more").split("\n")[1]


def test_tables_fit_into_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["", "precision", "images"], ["an expression of forty-one letters" * 3, "0.1234", "7"], ["高兴", "1", "12"]]
    assert rows[1][0] in format_table(rows), "whole in a pipe"
    make_terminal(monkeypatch)
    lines = format_table(rows).split("\n")
    assert {display_width(line) for line in lines} == {80}
    assert "…" in lines[1]
    assert lines[2].startswith("高兴 ")


def test_markdown_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"## Title\n\n| | seeds | {'wide' * 10} | {'b' * 30} |\n|---|---|---|---|\n| CE | 3 | 1 |  |\n\nend\n"
    assert format_markdown(text) == text, "as it is in a pipe"
    make_terminal(monkeypatch)
    below = ["", f"    {'b' * 30}", "CE"]
    table = [f"    seeds  {'wide' * 10}", f"CE      3{' ' * 41}1", *below]
    assert format_markdown(text).split("\n") == ["## Title", "", *table, "", "end", ""]


def test_a_log_line_stands_above_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    make_terminal(monkeypatch)
    for _ in bar(range(2), "steps"):
        logging.getLogger("adcorre_kernels").warning("compiling")
        break
    captured = capsys.readouterr()
    assert captured.err == "compiling\n"
    assert "steps" in captured.out.split("\r")[1]


def test_a_terminal_sees_at_once_that_a_command_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_terminal(monkeypatch)
    assert CommandParser("x", "builtins:dict", "x").main([]) == 0
    assert capsys.readouterr().err == "starting: PyTorch, the run\n"


def test_a_pipe_gets_no_start_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert CommandParser("x", "builtins:dict", "x").main([]) == 0
    assert capsys.readouterr().err == ""
