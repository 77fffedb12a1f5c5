"""Tables as people save them: a byte order mark, quotes, semicolons, an index column, other capitals, more columns."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from train.disk import encoding_of
from train.errors import UserError


def read_text(file: Path) -> str:
    return file.read_text(encoding=encoding_of(file), errors="replace")


@contextmanager
def _open(file: Path) -> Iterator[TextIO]:
    try:
        with file.open(newline="", encoding=encoding_of(file), errors="replace") as lines:
            yield lines
    except csv.Error as error:
        raise UserError(f"{file}: expected a table of comma-separated values: {error}") from error


def _split(line: str) -> tuple[list[str], str]:
    """The cells of a first line, and what separates them: a comma, or Excel's semicolon or tab."""
    delimiter = next((mark for mark in ",;\t" if mark in line), ",")
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])], delimiter


def header(file: Path) -> list[str]:
    """The column names of a table; none where the file cannot be read."""
    try:
        with _open(file) as lines:
            return _split(lines.readline(1000))[0]
    except (OSError, UserError):
        return []


def read_table(file: Path, columns: Sequence[str], headed: bool = True) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, cell by column name) of each row, stripped. `columns` have to be there, in any order and case.

    Without a header the cells are those of `columns` in their order. Raises UserError for a row that lacks a cell.
    """
    with _open(file) as lines:
        names, delimiter = _split(lines.readline())
        if not headed:
            lines.seek(0)
            names = list(columns)
        lower = [name.lower() for name in names]
        if lacking := [name for name in columns if name.lower() not in lower]:
            raise UserError(f"{file}: expected the columns {','.join(columns)}; there is no {', '.join(lacking)}")
        at = {name: lower.index(name.lower()) for name in columns}
        reader = csv.reader(lines, delimiter=delimiter)
        for row in reader:
            number = reader.line_num + headed
            if not any(map(str.strip, row)):
                continue
            if len(row) <= max(at.values()):
                raise UserError(f"{file}, line {number}: expected {len(names)} cells, got {len(row)}")
            yield number, {name: row[place].strip() for name, place in at.items()}


def find_csv(path: Path, name: str, columns: Sequence[str], ordered: bool = False) -> Path | None:
    """`path` itself, or the file of that name in it, where its header has these columns.

    Other columns may stand among them, and the order is any unless `ordered`.
    """
    file = path / name if path.is_dir() else path
    if file.suffix.lower() != ".csv" or not file.is_file():
        return None
    required = [column.lower() for column in columns]
    present = [column for column in map(str.lower, header(file)) if column in required]
    return file if present == required or (not ordered and sorted(present) == sorted(required)) else None
