"""What a terminal shows: progress bars, log lines above them, long lines broken at its width."""

import logging
import shutil
import sys
import textwrap
from collections.abc import Iterable
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
    width = columns()
    lines = text.split("\n")
    return "\n".join(
        textwrap.fill(line, width, subsequent_indent="  ") if len(line) > width else line for line in lines
    )


class _AboveBars(logging.Handler):
    """Writes to stderr, above a bar instead of behind it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)
