"""Run an ablation in several processes within a time budget; each run's row is written when it ends."""

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
from train.checkpoint import FOLDER, NAME, PARTIAL
from train.errors import Aborted
from train.owned_folder import clear
from train.run_folder import MODEL_FILES
from train.stopping import Stopped
from train.workers import default_processes as cores
from train.workers import map_in_processes

CHECKPOINTS = (f"{FOLDER}/{NAME}", f"{FOLDER}/{PARTIAL}", *(f"last/{name}" for name in MODEL_FILES))
MODEL = tuple(f"best/{name}" for name in MODEL_FILES)


def train_all(
    remaining: Sequence[Planned],
    out: Path,
    file: Path,
    processes: int,
    minutes: float,
    models: bool,
    after: Callable[[], None],
) -> None:
    """Train the runs in order; `after` is called in this process each time a run has ended.

    Prints a line per run; the run's output goes to a log beside its folder. With several processes, each run has one
    thread. After `minutes` (0: no limit) the running runs save a checkpoint and stop, and no other starts. The best
    model of a finished run is deleted unless `models`. Raises Stopped at a signal.
    """
    began = time.monotonic()
    deadline = began + 60 * minutes if minutes else float("inf")
    terminated = signal.signal(signal.SIGTERM, _end) if processes > 1 else None

    def train_one(number: int) -> bool:
        if time.monotonic() >= deadline:
            return False
        run = remaining[number]
        label = f"{number + 1}/{len(remaining)} {run.study}, {run.variant.name}, seed {run.seed}"
        since = time.monotonic()
        with _log(run):
            try:
                if not run.result():  # if it has, a killed process left it without a row
                    with _stopped_at(deadline):
                        train(run, out)
            except (Aborted, Stopped):
                if time.monotonic() >= deadline:
                    return False
                raise
        ended = run.result()
        if ended:
            rows.append(file, run, ended)
            clear(run.folder, CHECKPOINTS if models else CHECKPOINTS + MODEL)
        figures = f"validation {100 * ended.results['validation']['accuracy']:.2f} %" if ended else run.failure
        now = time.monotonic()
        rounds, ended_rounds = (math.ceil(count / processes) for count in (len(remaining), number + 1))
        seconds_left = min(deadline - now, (now - began) * (rounds / ended_rounds - 1))
        took, left = (now - since) / 60, max(0.0, seconds_left) / 60
        print(f"{label}: {figures}, {took:.1f} min, about {left:.0f} min left", flush=True)
        return True

    try:
        for ended in map_in_processes(train_one, range(len(remaining)), processes, "training"):
            if ended:
                after()
    finally:
        if processes > 1:
            signal.signal(signal.SIGTERM, terminated)


def default_processes(given: Mapping[str, Any]) -> int:
    """One per core; one process if the runs use a GPU, or threads or workers of their own."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # a process that has initialized CUDA cannot fork
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
    """Stop the run at the deadline as SIGTERM would: it writes a checkpoint and raises Stopped."""
    if deadline == float("inf"):
        yield
        return

    def stop(number: int, frame: object) -> None:  # used until the run installs its own handler
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
