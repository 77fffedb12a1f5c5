"""Folders that commands write to. Each carries a mark, and only files that the command itself names are ever deleted.

The mark is a file, .adcorre.json, that says what the folder holds: "run", "evaluation", "predictions", ...
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from train.disk import lock, sync_folder, write_json
from train.errors import UserError

MARK, LOCK, FORMAT = ".adcorre.json", ".lock", 1
_locks: dict[Path, IO[bytes]] = {}  # of the folders that this process writes to, until it ends


def is_owned(folder: Path, kind: str) -> bool:
    """Whether the folder carries the mark of `kind`."""
    return _mark(folder) == {"adcorre": kind, "format": FORMAT}


def is_vacant(folder: Path, ignored: Iterable[str] = ()) -> bool:
    """Whether nothing lies at the path, or a folder without anything but the `ignored` names and what marks it."""
    names = {MARK, f"{MARK}.partial", LOCK, *ignored}
    return not os.path.lexists(folder) or (folder.is_dir() and all(entry.name in names for entry in folder.iterdir()))


def mark(folder: Path, kind: str) -> None:
    if not is_owned(folder, kind):
        write_json(folder / MARK, {"adcorre": kind, "format": FORMAT})
        sync_folder(folder)


def clear(folder: Path, outputs: Iterable[str]) -> None:
    """Delete the files that match the patterns `outputs`, and folders of theirs that are empty then."""
    parents = set()
    for pattern in outputs:
        for file in list(folder.glob(pattern)):
            if file.is_symlink() or file.is_file():
                file.unlink()
        parents |= {parent for parent in Path(pattern).parents if parent != Path(".")}
    for parent in sorted(parents, reverse=True):  # the inner ones first
        for path in list(folder.glob(str(parent))):
            remove_if_empty(path)


def remove_if_empty(folder: Path) -> bool:
    """Whether the folder, which is no link, was empty and is gone."""
    if folder.is_symlink() or not folder.is_dir() or any(folder.iterdir()):
        return False
    folder.rmdir()
    return True


def check_vacant(folder: Path) -> None:
    """UserError where something lies at the path, unless it is an empty folder."""
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already and not empty: expected a new or an empty folder")


def prepare(folder: Path, kind: str, outputs: Iterable[str], option: str = "--out", alone: bool = False) -> Path:
    """The folder, there and marked as `kind`, without the `outputs` (patterns) of an earlier command of that kind.

    Files of other names stay. Raises UserError, with nothing changed, where the folder has something in it and does not
    carry the mark, or cannot be written; with `alone` where another process, which has not ended, writes there too.
    """
    try:
        if is_owned(folder, kind):
            _lock(folder, option, alone)
            clear(folder, outputs)
        elif os.path.lexists(folder) and not folder.is_dir():
            raise UserError(f"{option} {folder}: there is a file of that name")
        elif not is_vacant(folder) or _mark(folder) is not None:
            raise UserError(refusal_message(folder, kind, option))
        folder.mkdir(parents=True, exist_ok=True)
        mark(folder, kind)
        _lock(folder, option, alone)
    except OSError as error:
        raise UserError(f"{option} {folder}: cannot write there: {error.strerror or error}") from error
    return folder


def _lock(folder: Path, option: str, alone: bool) -> None:
    if not alone or folder.resolve() in _locks:
        return
    try:
        _locks[folder.resolve()] = lock(folder, LOCK)
    except BlockingIOError as error:
        raise UserError(f"{option} {folder}: another process is writing there: choose another folder") from error


def refusal_message(folder: Path, kind: str, option: str) -> str:
    held = _mark(folder)
    what = (
        f"holds something else ({held['adcorre']})" if isinstance(held, dict) and "adcorre" in held else "is not empty"
    )
    return (
        f"{option} {folder} {what} and has no mark of {kind} ({MARK}), so nothing was changed: "
        "choose a new or an empty folder"
    )


def _mark(folder: Path) -> object:
    """What the mark says; None where there is none that can be read."""
    try:
        return json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
