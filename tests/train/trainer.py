"""`python -m train` in processes that can be killed, forked from one that has imported everything already."""

import multiprocessing
import os
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).parents[2]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["train.loop"])


def start(log: Path, *arguments: str | Path) -> BaseProcess:
    """A training process that writes to the file `log`."""
    before = dict(os.environ)
    paths = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))  # the fork server takes its environment from here
    os.environ |= {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        process = _context.Process(target=_train, args=(str(log), [str(argument) for argument in arguments]))
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return process


def finish(process: BaseProcess, timeout: float = 200) -> int:
    """Its exit code."""
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"still running after {timeout} s")
    return process.exitcode


def _train(log: str, arguments: list[str]) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    from train.__main__ import main

    sys.exit(main(arguments))
