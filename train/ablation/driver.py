"""The runs of an ablation by several processes, under a time budget, each run's row written as soon as it ends."""

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from train.ablation import rows
from train.ablation.runs import Planned, train
from train.errors import Aborted
from train.owned_folder import clear
from train.run_folder import MODEL_FILES
from train.stopping import Stopped
from train.workers import default_processes as cores
from train.workers import map_in_processes

CHECKPOINTS, MODEL = ("checkpoints/*", "last/*"), tuple(f"best/{name}" for name in MODEL_FILES)


def train_all(
    left: Sequence[Planned],
    out: Path,
    file: Path,
    processes: int,
    minutes: float,
    models: bool,
    after: Callable[[], None],
) -> None:
    """Train the runs in their order; `after` is called, in this process, each time that runs have ended.

    A line is printed per run; its output goes to a log beside its folder. With several processes each run has one
    thread. Where `minutes` (0: any number) are over, runs are stopped with a checkpoint, and no other begins. The best
    model of a run that has ended is deleted unless `models`. Raises Stopped at a signal.
    """
    began = time.monotonic()
    deadline = began + 60 * minutes if minutes else float("inf")
    terminated = signal.signal(signal.SIGTERM, _end) if processes > 1 else None

    def one(number: int) -> bool:
        if time.monotonic() >= deadline:
            return False
        run = left[number]
        label = f"run {number + 1} of {len(left)}: {run.study}, {run.variant.name}, seed {run.seed}"
        since = time.monotonic()
        with _log(run):
            try:
                if not run.result():  # else a killed process left it without a row
                    with _stopped_at(deadline):
                        train(run, out)
            except (Aborted, Stopped):
                if time.monotonic() >= deadline:
                    return False
                raise
        ended = run.result()
        if ended:
            rows.append(file, run)
            clear(run.folder, CHECKPOINTS if models else CHECKPOINTS + MODEL)
        figures = f"validation accuracy {100 * ended.validation_accuracy:.2f} %" if ended else run.failure
        now = time.monotonic()
        rounds, ended_rounds = (math.ceil(count / processes) for count in (len(left), number + 1))
        rest = min(deadline - now, (now - began) * (rounds / ended_rounds - 1))
        print(f"{label}: {figures}, {(now - since) / 60:.1f} min, about {max(0.0, rest) / 60:.0f} min left", flush=True)
        return True

    try:
        for ended in map_in_processes(one, range(len(left)), processes, "training"):
            if ended:
                after()
    finally:
        if processes > 1:
            signal.signal(signal.SIGTERM, terminated)


def default_processes(given: Mapping[str, Any]) -> int:
    """One per core; one where the runs take threads, or a GPU, for themselves."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # a process that has begun with CUDA cannot be forked
    on_gpu = given.get("device", "auto") != "cpu" and torch.cuda.is_available()
    return 1 if on_gpu or given.get("threads") or given.get("workers") else cores()


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


@contextlib.contextmanager
def _log(run: Planned) -> Iterator[None]:
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        run.folder.with_suffix(".log").open("a", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        yield


@contextlib.contextmanager
def _stopped_at(deadline: float) -> Iterator[None]:
    """As if the run were told to stop then: it writes a checkpoint, and raises Stopped."""
    if deadline == float("inf"):
        yield
        return

    def stop(number: int, frame: object) -> None:  # until the run has its own handler
        raise Aborted(number)

    before = signal.signal(signal.SIGTERM, stop)
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)
