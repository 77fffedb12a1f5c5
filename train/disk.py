"""Files that are on disk once they are there, on filesystems that do less than a local one of Linux.

NFS, SMB, Lustre and FUSE may have no locks and no fsync of a folder, Windows no fsync of what was opened to be read.
"""

import codecs
import csv
import errno
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from train.errors import UserError

FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk's quota is used up",
    errno.EFBIG: "a file is larger than the system allows",
}
FAILED = {errno.EIO, *FULL}  # of an fsync: what was written may be lost. Anything else: this filesystem has no fsync


def sync(file: Path) -> None:
    """Flush the file to the disk, as far as the filesystem can."""
    handle = os.open(file, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        sync_handle(handle, file.parent)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Flush the folder's entries: what was renamed in it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows
        return
    try:
        sync_handle(handle, folder, "fsync of folders")
    finally:
        os.close(handle)


def sync_handle(handle: int, folder: Path, what: str = "fsync of files") -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno in FAILED:
            raise
        _note_missing(what, folder, "after a power cut the last files may be missing")


def allocate(handle: int, size: int) -> None:
    """Take the file's room on the disk now, where the filesystem can: a full disk is an error here, not later."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno in FAILED:
            raise


_noted: set[str] = set()


def _note_missing(what: str, folder: Path, consequence: str) -> None:
    """Once a process."""
    if what not in _noted:
        _noted.add(what)
        print(f"note: the filesystem of {folder} has no {what}: {consequence}", file=sys.stderr, flush=True)


def lock(folder: Path, name: str, *, wait: bool = False) -> IO[bytes]:
    """The lock file of that name in the folder, locked until it is closed or the process ends.

    Raises BlockingIOError where another process holds it and `wait` is not given. A filesystem without locks gets a
    note instead.
    """
    file = (folder / name).open("ab")  # not "w": the file may be somebody's
    try:
        import fcntl
    except ImportError:  # Windows
        return file
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.close()
            raise BlockingIOError(error.errno, error.strerror) from error
        _note_missing("locks", folder, "make sure that no other process writes there")
    return file


def write_text(path: Path, text: str) -> None:
    """Atomically, in UTF-8."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    sync(partial)
    os.replace(partial, path)


def write_json(path: Path, content: Any) -> None:
    """Atomically, and strictly JSON (a NaN is an error)."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=True) + "\n")


def encoding_of(file: Path) -> str:
    """UTF-16 where the file begins with its mark (Notepad's "Unicode"), else UTF-8 with a mark or without."""
    with file.open("rb") as opened:
        return "utf-16" if opened.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def read_text(file: Path) -> str:
    """The text of a file that an editor may have saved. Raises UserError where it is no Unicode, or cannot be read."""
    try:
        return file.read_text(encoding=encoding_of(file))
    except UnicodeError as error:
        raise UserError(f"{file}: expected text in UTF-8, got other bytes ({error}): save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{file}: cannot read it: {error.strerror or error}") from error


def read_json(file: Path) -> Any:
    """Raises UserError where the file cannot be read or is no JSON."""
    try:
        return json.loads(read_text(file))
    except ValueError as error:
        raise UserError(f"{file}: cannot read it, expected JSON: {error}") from error


def read_rows(file: Path) -> list[dict[str, str]]:
    """The rows of a table of this program, by column name, without one that was cut short by a full disk or a kill.

    Raises UserError where the file cannot be read.
    """
    return read_table(file)[1]


def read_table(file: Path) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """The columns' names, and the rows of `read_rows`."""
    reader = csv.DictReader(read_text(file).splitlines())
    return tuple(reader.fieldnames or ()), [row for row in reader if None not in row.values()]


def write_rows(file: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write a table, its first row the columns' names."""
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows(rows)


def write_error(error: BaseException) -> OSError:
    """The failed write behind what a library made of it."""
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, OSError):
            return behind
        behind = behind.__cause__ or behind.__context__
    return OSError(next((number for number in FULL if os.strerror(number) in str(error)), 0), str(error))


def expand(path: str | Path) -> Path:
    """The path with ~ replaced. Raises UserError where there is no such home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: the home folder is not known; write the whole path instead of ~") from error
