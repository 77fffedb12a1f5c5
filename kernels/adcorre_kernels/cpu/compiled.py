"""Compiles each kernel for a fixed signature at its first use, and caches it on disk if possible."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import RLock, Timer
from typing import Any

WAIT = 1.0  # seconds after which a message is logged
logger = logging.getLogger("adcorre_kernels")

# Of the arguments: t a number of the arithmetic's type, f float64, everything else int64.
KERNELS = {
    "statistics": ("embeddings", "t" + 12 * "i" + "ff" + 8 * "i"),
    "gradient": ("embeddings", "t" + 11 * "i" + "ff" + "ii" + "fff" + 4 * "i"),
    "terms": ("tables", "t" + 12 * "i" + 9 * "f" + 5 * "i"),
    "logits_sums": ("logits", 11 * "i" + "f" + 7 * "i"),
    "logits_gradient": ("logits", 10 * "i" + "f" + "i" + "f" + 4 * "i"),
}
compiled: dict[tuple[str, bool], Callable[..., None]] = {}

_lock = RLock()
if hasattr(os, "register_at_fork"):  # a child must not inherit a lock held by a thread of its parent
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


@cache
def installed() -> bool:
    return find_spec("numba") is not None


@cache
def why_unavailable() -> str | None:
    """None if Numba works with this Python and NumPy, else what is wrong. Imports Numba."""
    with _announced_wait("importing Numba"):
        try:
            from numba import config
        except Exception as error:  # a Numba that does not know this Python or NumPy fails in many ways
            return f"Numba cannot be imported ({type(error).__name__}: {error})"
    return "NUMBA_DISABLE_JIT is set" if vars(config).get("DISABLE_JIT") else None


def kernel(name: str, double: bool = False) -> Callable[..., None]:
    """The compiled kernel, float32 or float64: called with numbers only, it skips Numba's type dispatch."""
    try:
        return compiled[name, double]
    except KeyError:
        with _lock, _announced_wait("compiling the CPU kernels with Numba"):
            if (name, double) not in compiled:
                compiled[name, double] = _compile(name, double)
            return compiled[name, double]


@contextmanager
def _announced_wait(what: str) -> Iterator[None]:
    timer = Timer(WAIT, _announce, (what,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@cache
def _announce(what: str) -> None:
    logger.warning("adcorre: %s takes some seconds at first use", what)


def _compile(name: str, double: bool) -> Callable[..., None]:
    from numba import njit, types

    module, letters = KERNELS[name]
    kinds = {"t": types.float64 if double else types.float32, "f": types.float64, "i": types.int64}
    signature = types.void(*(kinds[letter] for letter in letters))
    function = getattr(import_module(f"adcorre_kernels.cpu.{module}"), name)
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        dispatcher = njit(cache=True, **options)(function)
        # Numba's own stamp covers only the file that holds the kernel, and not memory.py, which each of them uses.
        dispatcher._cache._cache_file._source_stamp = _sources()
        dispatcher.compile(signature)
    except Exception as error:  # no writable folder, a full disk, a damaged file: Numba raises many errors
        _announce_uncached(f"{type(error).__name__}: {error}".partition("\n")[0])
        dispatcher = njit(**options)(function)
        dispatcher.compile(signature)
    return dispatcher.get_overload(signature)


@cache
def _announce_uncached(reason: str) -> None:
    logger.warning(
        "adcorre: compiled CPU kernels cannot be cached on disk, so every process compiles them again (%s); "
        "set NUMBA_CACHE_DIR to a writable folder",
        reason,
    )


@cache
def _sources() -> str:
    """A hash of the kernels' source."""
    return hashlib.sha256(
        b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    ).hexdigest()
