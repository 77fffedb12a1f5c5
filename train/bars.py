"""What a terminal shows: progress bars, log lines above them, aligned tables, long lines broken at its width."""

import logging
import re
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from tqdm import tqdm

NAME = 24  # columns that a table leaves to its first column, where a terminal is narrow


def bar(items: Iterable[Any], title: str, **extra: Any) -> Any:
    """The items, behind a bar that is gone at the end; nothing where stdout is no terminal."""
    logger = logging.getLogger("adcorre_kernels")
    if not logger.handlers:
        logger.addHandler(_AboveBars())
    return tqdm(
        items,
        title,
        bar_format="{desc} {bar:10} {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}",
        leave=False,
        dynamic_ncols=True,
        disable=not sys.stdout.isatty(),
        file=sys.stdout,
        **extra,
    )


def columns() -> int:
    """The width of the terminal, 120 at most; 80 where stdout is none and $COLUMNS does not say."""
    return min(120, shutil.get_terminal_size((80, 24)).columns)


def wrap(text: str) -> str:
    """The text with its long lines broken at the terminal's width; as it is where stdout is no terminal."""
    if not sys.stdout.isatty():
        return text
    filler = "\0"  # after each letter that takes two columns
    wrapper = textwrap.TextWrapper(columns(), subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    lines = []
    for line in text.split("\n"):
        filled = re.sub(r"[^\0-\u10ff]", lambda match: match[0] + filler * (display_width(match[0]) - 1), line)
        lines.append((wrapper.fill(filled) if len(filled) > wrapper.width else filled).replace(filler, ""))
    return "\n".join(lines)


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """The rows as aligned text: first column to the left, numbers to the right.

    In a terminal that is too narrow, cells of the first column are shortened, and columns that still do not fit come in
    a table below, with the first column again.
    """
    first, *others = [max(map(display_width, cells)) for cells in zip(*rows, strict=True)]
    limit = columns() if sys.stdout.isatty() else sys.maxsize
    first = min(first, max(NAME, limit - sum(width + 2 for width in others)))
    blocks: list[list[int]] = [[]]
    used = first
    for place, width in enumerate(others, 1):
        if blocks[-1] and used + width + 2 > limit:
            blocks.append([])
            used = first
        blocks[-1].append(place)
        used += width + 2
    return "\n\n".join("\n".join(_align(row, first, others, block) for row in rows) for block in blocks)


def _align(row: Sequence[str], first: int, others: Sequence[int], block: Sequence[int]) -> str:
    name = shorten(row[0], first)
    line = name + " " * (first - display_width(name))
    for place in block:
        line += " " * (others[place - 1] + 2 - display_width(row[place])) + row[place]
    return line.rstrip()


def format_markdown(text: str) -> str:
    """Markdown as a terminal shows it best: tables aligned, long lines broken; as it is where stdout is no terminal."""
    if not sys.stdout.isatty():
        return text
    parts = []
    for is_table, lines in groupby(text.split("\n"), lambda line: line.startswith("|")):
        if is_table:
            rows = [line[1:-1].split("|") for line in lines if not line.startswith("|---")]
            parts.append(format_table([[cell.strip() for cell in row] for row in rows]))
        else:
            parts.append(wrap("\n".join(lines)))
    return "\n".join(parts)


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def shorten(text: str, width: int) -> str:
    """The text, or as much of it and an ellipsis as fits into `width` columns."""
    if display_width(text) <= width:
        return text
    while display_width(text) > width - 1:
        text = text[:-1]
    return text + "…"


def display_width(text: str) -> int:
    """Columns of a terminal: a Chinese, Japanese or Korean letter takes two, a combining mark none."""
    return sum(
        2 if unicodedata.east_asian_width(letter) in "WF" else not unicodedata.combining(letter) for letter in text
    )


def warn(text: str) -> None:
    """A line on stderr, above a bar where there is one."""
    tqdm.write(text, file=sys.stderr)


class _AboveBars(logging.Handler):
    """Writes to stderr, above a bar instead of behind it."""

    def emit(self, record: logging.LogRecord) -> None:
        warn(self.format(record))
