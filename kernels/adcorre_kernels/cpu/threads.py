"""A small pool of threads for kernels that run without the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

ELEMENTS_OF_A_THREAD = 1 << 18  # starting work on a thread takes as long as about a quarter of these
BLOCKS_OF_A_THREAD = 4  # so that a delayed thread does not delay the others

_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)  # the child has none of the pool's threads


def thread_count(elements: int, tasks: int) -> int:
    """The number of threads for `tasks` tasks over `elements` numbers in all."""
    return max(1, min(torch.get_num_threads(), elements // ELEMENTS_OF_A_THREAD, tasks))


def run(call: Callable[[int, int], Any], tasks: int, threads: int) -> None:
    """`call(first, last)` for blocks that cover [0, tasks), on this thread and `threads` - 1 of the pool."""
    if threads == 1:
        call(0, tasks)
        return
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="adcorre")
    size = -(-tasks // (threads * BLOCKS_OF_A_THREAD))
    blocks = iter([(first, min(first + size, tasks)) for first in range(0, tasks, size)])
    helpers = [_pool.submit(_work, call, blocks) for _ in range(threads - 1)]
    try:
        _work(call, blocks)
    finally:
        for helper in helpers:
            if not helper.cancel():  # it is running; one that has not started has no block left
                helper.result()


def _work(call: Callable[[int, int], Any], blocks: Iterator[tuple[int, int]]) -> None:
    for first, last in blocks:
        call(first, last)
