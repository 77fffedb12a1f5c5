"""What a terminal shows: progress bars, log lines above them, aligned tables, long lines broken at its width."""

import logging
import re
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from tqdm import tqdm


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

    In a terminal that is too narrow, cells of the first column are shortened.
    """
    first, *others = [max(map(display_width, cells)) for cells in zip(*rows, strict=True)]
    if sys.stdout.isatty():
        first = max(8, min(first, columns() - sum(width + 2 for width in others)))
    lines = []
    for name, *cells in rows:
        name = shorten(name, first)
        padded = (" " * (width + 2 - display_width(cell)) + cell for cell, width in zip(cells, others, strict=True))
        lines.append((name + " " * (first - display_width(name)) + "".join(padded)).rstrip())
    return "\n".join(lines)


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


class _AboveBars(logging.Handler):
    """Writes to stderr, above a bar instead of behind it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)
