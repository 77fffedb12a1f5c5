"""Runs that are stopped: in processes that can be killed, forked from one that imported everything, or in this one."""

import json
import multiprocessing
import os
import signal
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.test_command import QUICK, rows
from train.__main__ import main
from train.checkpoint import read_checkpoint
from train.stopping import Watch

ROOT = Path(__file__).parents[2]
RUN = (*QUICK, "--batch-size", "8", "--epochs", "3", "--ema", "0.9", "--checkpoint-every", "2")

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["train.loop", "tests.train.trainer"])


def start(log: Path, *arguments: str | Path) -> BaseProcess:
    """A training process that writes to the file `log`."""
    before = dict(os.environ)
    paths = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))  # the fork server copies its environment from here
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
    sys.exit(main(arguments))


def outcome(run: Path) -> dict[str, Any]:
    """Everything of a run that must be reproduced; times are left out."""

    def table(name: str, *left_out: str) -> list[dict[str, str]]:
        return [{key: row[key] for key in row if key not in left_out} for row in rows(run / f"{name}.csv")]

    weights = {name: (run / name / "model.safetensors").read_bytes() for name in ("last", "best")}
    state = read_checkpoint(run)
    return weights | {
        "steps": table("steps", "images_per_second"),
        "epochs": table("epochs", "seconds"),
        "results": json.loads((run / "results.json").read_text()),
        "ema": {key: value.tolist() for key, value in (state["ema"] or {}).items()},
        "random": state["random"],
        "attention": state["loss"]["attention_map.counts"].tolist(),
    }


def same(one: Any, other: Any) -> bool:
    """Equal to the last bit, NaN too."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return bool(one == other)


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert [key for key in one if not same(one[key], other[key])] == []


def steps_in(run: Path) -> int:
    try:
        return (run / "steps.csv").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def stop_after(steps: int, patch: pytest.MonkeyPatch) -> None:
    """Simulate SIGTERM in step `steps` of this process's next run."""
    seen = [0]

    def poll(self: Watch) -> tuple[int, bool]:
        seen[0] += 1
        self.number = signal.SIGTERM if seen[0] == steps else 0
        return self.number, False

    patch.setattr(Watch, "poll", poll)


def resumes(run: Path, *options: str | Path, code: int = 0) -> None:
    assert main(["--resume", str(run), *map(str, options)]) == code
