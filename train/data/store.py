"""The cache of what is computed from a dataset once: indices, lists of unreadable images, decoded pixels.

Small things lie in a folder of the user's ($ADCORRE_CACHE, else adcorre/ in $XDG_CACHE_HOME or ~/.cache). Everything
appears under its final name only once it is whole, and under a name that changes with what it was made from.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from train.bars import bar
from train.data.base import FaceDataset, GreyArray, digest
from train.disk import expand
from train.errors import UserError
from train.workers import default_processes, map_in_processes

T = TypeVar("T")
VALUE = "value.json"
CHUNK = 64  # samples that a process is handed at a time


def cache_folder() -> Path:
    """Raises UserError where it would be in a home folder that is not known."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expand(os.environ.get("ADCORRE_CACHE") or f"{base}/adcorre")


def cached_dir(name: str, make: Callable[[Path], None]) -> Path | None:
    """The folder `name` of the cache, filled by `make` where it is not there yet; None where it cannot be written.

    Of several processes that make it at once, one puts its own in place and the others take that.
    """
    try:
        target = cache_folder() / name
    except UserError:
        print("nothing is cached for the next run: no home folder; name one by $ADCORRE_CACHE", file=sys.stderr)
        return None
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{name}.", suffix=".partial", dir=target.parent))
    except OSError as error:
        print(f"nothing is cached for the next run: {target.parent}: {error.strerror}", file=sys.stderr)
        return None
    try:
        make(partial)
        partial.rename(target)
    except OSError as error:
        if not target.is_dir():
            print(f"nothing is cached for the next run: {target.parent}: {error.strerror}", file=sys.stderr)
            return None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def load_cached(name: str, make: Callable[[Path], None], load: Callable[[Path], T]) -> T | None:
    """What `load` reads from the folder of `cached_dir`; None where that cannot be written.

    A folder that cannot be read, after a power cut say, is made anew.
    """
    for _ in range(2):
        if (folder := cached_dir(name, make)) is None:
            break
        try:
            return load(folder)
        except (OSError, ValueError, EOFError, TypeError, KeyError):
            shutil.rmtree(folder, ignore_errors=True)
    return None


def cached_json(name: str, compute: Callable[[], T]) -> T:
    """What `compute` gives, something that JSON can hold; it is cached under `name` for the next run."""
    computed: list[T] = []

    def make(folder: Path) -> None:
        computed.append(compute())
        (folder / VALUE).write_text(json.dumps(computed[0]), encoding="utf-8")

    cached: T | None = load_cached(name, make, lambda folder: json.loads((folder / VALUE).read_text(encoding="utf-8")))
    if cached is None:
        return computed[0] if computed else compute()
    return cached


def map_samples(
    dataset: FaceDataset, look: Callable[[FaceDataset, int], T], start: int = 0, processes: int | None = None
) -> Iterator[tuple[range, list[T]]]:
    """What `look` gives for each sample from `start` on, in order, in chunks, by forked processes (None: one per core).

    To be called before a DataLoader starts its workers: they may not start processes of their own.
    """
    chunks = [range(at, min(at + CHUNK, len(dataset))) for at in range(start, len(dataset), CHUNK)]
    processes = min(default_processes() if processes is None else processes, len(chunks) // 2)

    def read_chunk(chunk: range) -> list[T]:
        return [look(dataset, index) for index in chunk]

    results = map_in_processes(read_chunk, chunks, processes, "reading images")
    yield from zip(chunks, bar(results, "reading images", total=len(chunks)), strict=True)


def fault(dataset: FaceDataset, index: int) -> str | None:
    """Why the sample cannot be read, or None where it can."""
    try:
        dataset.image(index)
    except UserError as error:
        return str(error)
    return None


def unreadable(dataset: FaceDataset) -> dict[int, str]:
    """The samples that cannot be read and why. All are decoded the first time, and again when a file changes."""

    def look() -> dict[int, str]:
        faults = (pair for chunk, reasons in map_samples(dataset, fault) for pair in zip(chunk, reasons, strict=True))
        return {index: reason for index, reason in faults if reason is not None}

    if isinstance(dataset, GreyArray):
        return {}
    faults = cached_json(f"unreadable-{digest(dataset.stamp, '2')}", look)
    return {int(index): reason for index, reason in faults.items()}  # in JSON, keys are text
