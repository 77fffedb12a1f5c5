"""Compiles the kernels, each for a fixed signature at its first use, and caches them on disk where that is possible."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib import import_module
from threading import Lock, Timer
from typing import Any

logger = logging.getLogger("adcorre_kernels")
_lock = Lock()
_announced = False

# Of the arguments: t a number of the arithmetic's type, f float64, everything else int64.
KERNELS = {
    "statistics": ("embeddings", "t" + 12 * "i" + "ff" + 8 * "i"),
    "gradient": ("embeddings", "t" + 11 * "i" + "ff" + "ii" + "fff" + 4 * "i"),
    "terms": ("tables", "t" + 6 * "i" + "ffff" + 5 * "i"),
    "logits_sums": ("logits", 11 * "i" + "f" + 7 * "i"),
    "logits_gradient": ("logits", 10 * "i" + "f" + "i" + "f" + 4 * "i"),
}


@cache
def why_unavailable() -> str | None:
    """None if Numba works with this Python and NumPy, else what is wrong. Imports Numba."""
    try:
        from numba import config
    except Exception as error:  # a Numba that does not know this Python or NumPy fails in many ways
        return f"Numba cannot be imported ({type(error).__name__}: {error})"
    return "NUMBA_DISABLE_JIT is set" if vars(config).get("DISABLE_JIT") else None


@cache
def kernel(name: str, double: bool = False) -> Callable[..., None]:
    """The compiled kernel, float32 or float64: called with numbers only, it skips Numba's look at the arguments."""
    with _lock:
        timer = Timer(1.0, _announce)
        timer.daemon = True
        timer.start()
        try:
            return _compile(name, double)
        finally:
            timer.cancel()


def _announce() -> None:
    global _announced
    if not _announced:
        _announced = True
        logger.warning("adcorre: compiling its CPU kernels with Numba takes some seconds once")


def _compile(name: str, double: bool) -> Callable[..., None]:
    from numba import njit, types

    module, letters = KERNELS[name]
    kinds = {"t": types.float64 if double else types.float32, "f": types.float64, "i": types.int64}
    signature = types.void(*(kinds[letter] for letter in letters))
    function = getattr(import_module(f"adcorre_kernels.cpu.{module}"), name)
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        dispatcher = njit(cache=True, **options)(function)
    except RuntimeError:  # Numba knows no folder that it could write to
        dispatcher = njit(**options)(function)
    try:
        dispatcher.compile(signature)
    except OSError:  # compiled, but not written
        logger.warning("adcorre: the compiled CPU kernels cannot be cached on disk", exc_info=True)
    return dispatcher.get_overload(signature)
