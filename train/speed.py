"""Settings for speed, measured on the model at hand: what is faster for one network is slower for another."""

import copy
import ctypes
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from train.bars import wrap
from train.data.base import digest
from train.data.store import cached_json
from train.settings import SpeedSettings

DTYPES = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STEP_SECONDS, SECONDS = 0.25, 4.0  # a measured step takes about this long, the measurement at most about that
GAIN = 1.05  # what is not the plain setting has to be faster by this factor
SHARE = 0.75  # of a processor that the measuring thread has where nothing else computes: 0.95 and more


class Busy(Exception):
    """Something else computes on this machine: what is measured now is not worth keeping."""


@dataclass(frozen=True)
class Trial:
    amp: str
    channels_last: bool
    images_per_second: float

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "contiguous"
        return f"{self.amp if self.amp != 'none' else 'float32'} {layout} {self.images_per_second:.0f}"


def autotune(
    model: nn.Module, settings: SpeedSettings, image_size: int, batch_size: int, device: torch.device
) -> list[Trial]:
    """Forward and backward passes in each of the settings that "auto" leaves open; the one to take comes first.

    Empty where nothing is open. The result is cached for the user, so that the next run of this model on this machine
    trains in the same setting. On a busy machine it is not cached, and a note says so.
    """
    if settings.deterministic or "auto" not in (settings.amp, settings.channels_last):
        return []
    machine = (platform.node(), torch.__version__, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability())
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    request = (image_size, batch_size, settings.amp, settings.channels_last)
    key = digest("3", repr(model), *map(str, (*machine, card, *request)))
    trials: list[Trial] = []

    def compute() -> list[dict[str, Any]]:
        print("measuring which dtype and memory layout is faster: some seconds", flush=True)
        began, cpu = time.perf_counter(), time.thread_time()
        trials.extend(measure(model, settings, image_size, batch_size, device))
        share = (time.thread_time() - cpu) / (time.perf_counter() - began)
        if device.type == "cpu" and share < SHARE:
            raise Busy(f"{share:.0%}")
        return [asdict(trial) for trial in trials]

    try:
        return [Trial(**row) for row in cached_json(f"speed-{key}", compute)]
    except Busy as busy:
        note = (
            f"note: something else computes on this machine (speed was measured with {busy} of a processor): the "
            "measurement is not cached for the next run; --amp and --channels-last choose without one"
        )
        print(wrap(note), flush=True)
        return trials


def measure(
    model: nn.Module, settings: SpeedSettings, image_size: int, batch_size: int, device: torch.device
) -> list[Trial]:
    """What `autotune` gives, by measuring. Model, gradients and random states are left alone."""
    amps = ("none", "bf16") if settings.amp == "auto" else (settings.amp,)
    layouts = (False, True) if settings.channels_last == "auto" else (settings.channels_last == "yes",)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda):
        torch.manual_seed(0)
        copies = {layout: _in_layout(copy.deepcopy(model), layout) for layout in layouts}
        images = torch.randn(batch_size, 3, image_size, image_size, device=device)
        few = images[:2]
        _seconds(copies[layouts[0]], few, amps[0], layouts[0])
        each = _seconds(copies[layouts[0]], few, amps[0], layouts[0]) / 2
        images = images[: max(2, min(batch_size, int(STEP_SECONDS / each)))]
        candidates = [(amp, layout) for amp in amps for layout in layouts]
        best = dict.fromkeys(candidates, float("inf"))
        began, rounds = time.perf_counter(), 0
        while rounds < 2 or (rounds < 6 and time.perf_counter() - began < SECONDS):
            for amp, layout in candidates:  # in turns: what else the machine does meets them alike
                taken = _seconds(copies[layout], images, amp, layout)
                best[amp, layout] = min(best[amp, layout], taken)
            rounds += 1
    trials = [Trial(amp, layout, len(images) / taken) for (amp, layout), taken in best.items()]
    plain, *others = trials
    chosen = max(others, key=lambda trial: trial.images_per_second, default=plain)
    if chosen.images_per_second < GAIN * plain.images_per_second:
        chosen = plain
    return [chosen, *(trial for trial in trials if trial is not chosen)]


def resolve_speed(settings: SpeedSettings, trials: Sequence[Trial]) -> SpeedSettings:
    """With the fastest trial's dtype and layout, or without trials the plain ones, in place of "auto"."""
    fastest = trials[0] if trials else Trial("none", False, 0.0)
    measured: dict[str, Any] = {"amp": fastest.amp, "channels_last": "yes" if fastest.channels_last else "no"}
    return replace(settings, **{name: value for name, value in measured.items() if vars(settings)[name] == "auto"})


def _in_layout(model: nn.Module, channels_last: bool) -> nn.Module:
    model.train()
    return model.to(memory_format=torch.channels_last) if channels_last else model


def _seconds(model: nn.Module, images: Tensor, amp: str, channels_last: bool) -> float:
    """Of one forward and backward pass."""
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    _wait(images.device)
    began = time.perf_counter()
    with torch.autocast(images.device.type, DTYPES[amp], enabled=amp != "none"):
        logits, embeddings = model(images)
    (logits.float().square().mean() + embeddings.float().square().mean()).backward()
    _wait(images.device)
    taken = time.perf_counter() - began
    model.zero_grad(set_to_none=True)
    return taken


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Have glibc keep large freed blocks, where it would hand them back and fault them in anew in each step."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


@contextmanager
def select_algorithms(deterministic: bool, device: torch.device) -> Iterator[None]:
    """PyTorch's deterministic algorithms, or on a GPU the fastest ones, for the length of a run."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if deterministic and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
