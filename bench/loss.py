"""`python -m bench loss`: the loss, forward and backward, compared with its alternatives.

One axis varies at a time, the others stay at k = 7, d = 256, C = 7 in float32. Every contender runs in its own process
under a memory limit, from small to large sizes; a size that does not fit is recorded as such. Within the process it is
timed alternately with a plain copy and with adcorre's own backend, so that shares and ratios compare the same moment.
Contenders that compute the Ad-Corre terms are first compared with the reference in float64. Inputs rotate through more
memory than the caches have. Rows that the file has already, from the same commit, device and versions, are not measured
again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from bench import measure, rows
from bench.rivals import CONTENDERS, OURS, Contender, ours_on

FIELDS = (
    *rows.ORIGIN, "part", "contender", "n", "k", "d", "classes", "dtype", "seconds", "p20", "p80", "forward",
    "backward", "gb_per_s", "copy_share", "times_slower", "launches", "peak_extra_mib", "joules", "clock_mhz",
    "celsius", "note",
)  # fmt: skip
KEY = ("part", "contender", "n", "k", "d", "classes", "dtype")
ROTATED = {"cpu": 128 << 20, "cuda": 256 << 20}  # bytes, more than the last caches hold
COPIED = 256 << 20  # bytes, at most, of the copy that bandwidth is held against
SECONDS = {"cpu": 1.0, "cuda": 0.5}  # of rounds, at one shape


@dataclass(frozen=True)
class Shape:
    """`part`: the axis that varies."""

    part: str = "n"
    n: int = 4096
    k: int = 7
    d: int = 256
    classes: int = 7
    dtype: str = "float32"


# Every axis by itself. A CPU gets the n up to LAST, and the other axes at a smaller n.
AXES: dict[str, list[Any]] = {
    "n": [60, 600, 4096, 16384, 65536, 262144, 1048576, 4194304],
    "k": [1, 2, 4, 7, 16],
    "d": [64, 128, 256, 512, 1024],
    "classes": [7, 100, 1000, 10000],
    "dtype": ["float32", "bfloat16"],
    "metric": [(64, 16), (256, 64), (1024, 256), (4000, 1000), (40000, 10000)],  # n and C of metric learning
}
GROWING = ("n", "metric")  # what does not fit at one n does not fit at a larger one
LAST = {"cuda": 4194304, "cpu": 262144}
AXES_AT = {"cuda": 65536, "cpu": 4096}
RIVALS_UP_TO = {"cuda": 262144, "cpu": 16384}


def planned(name: str, kind: str, parts: list[str], sizes: list[int] | None) -> list[Shape]:
    """What a contender is measured at, in each part in the order of cost; `sizes` instead of the standard n."""
    linear = name in OURS and CONTENDERS[name].linear
    last = (LAST if linear else RIVALS_UP_TO)[kind]
    standard = [n for n in CONTENDERS[name].sizes or AXES["n"] if n <= last]
    shapes = []
    for part in parts:
        if part == "metric":
            if CONTENDERS[name].metric:
                shapes += [Shape(part, n, 1, 128, classes) for n, classes in AXES[part]]
        elif CONTENDERS[name].only_metric:
            continue
        elif part == "n":
            shapes += [Shape(n=n) for n in sorted(sizes or standard)]
        elif linear:  # what the other axes do to the rivals is the story of n again
            shapes += [replace(Shape(part, AXES_AT[kind]), **{part: value}) for value in AXES[part]]
    return shapes


def make_inputs(shape: Shape, device: torch.device, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator(device).manual_seed(seed)
    x = torch.empty(shape.n, shape.k, shape.d, dtype=getattr(torch, shape.dtype), device=device)
    x.normal_(generator=rng).requires_grad_()
    targets = torch.randint(0, shape.classes, (shape.n,), generator=rng, device=device)
    attention = torch.rand(shape.classes, generator=rng, device=device)
    return x, targets, attention


class Step:
    """One contender's forward and backward pass over inputs that rotate."""

    def __init__(self, contender: Contender, inputs: list[Tensor], targets: Tensor, attention: Tensor) -> None:
        self.call = contender.make()
        self.inputs = cycle(inputs)
        self.targets, self.attention = targets, attention

    def __call__(self) -> Tensor:
        x = next(self.inputs)
        return torch.autograd.grad(self.call(x, self.targets, self.attention), x)[0]

    def forward(self) -> Tensor:
        return self.call(next(self.inputs), self.targets, self.attention)


def check(name: str, device: torch.device, dtype: str, seed: int) -> None:
    """Check the contender before it is timed: against the reference in float64, or that it has a gradient."""
    x, targets, attention = make_inputs(Shape(n=200, k=3, d=64, dtype=dtype), device, seed)
    got = Step(CONTENDERS[name], [x], targets, attention)().double()
    if not CONTENDERS[name].same:
        if not (bool(got.isfinite().all()) and bool(got.any())):
            raise SystemExit(f"{name}: its gradient is zero or not finite")
        return
    exact = x.detach().double().requires_grad_()
    truth = Step(CONTENDERS["reference"], [exact], targets, attention.double())()
    error = float((got - truth).abs().max() / truth.abs().max())
    if not error < (16 if dtype == "float32" else 2) * torch.finfo(x.dtype).eps:  # half precision is rounded once
        raise SystemExit(f"{name}: differs from the reference in float64 by {error:.1e} of its largest entry")


def measured(name: str, shape: Shape, options: argparse.Namespace) -> dict[str, Any]:
    """One row's figures."""
    device = torch.device(options.device)
    x, targets, attention = make_inputs(shape, device, options.seed)
    size = x.numel() * x.element_size()
    inputs = [x, *(x.detach().clone().requires_grad_() for _ in range(-(-ROTATED[device.type] // size) - 1))]
    step = Step(CONTENDERS[name], inputs, targets, attention)
    step()
    peak = measure.peak_during(step, device) - size

    sources = [tensor.detach().view(-1)[: COPIED // x.element_size()] for tensor in inputs]
    target, source = torch.empty_like(sources[0]), cycle(sources)
    turns: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(next(source))}
    yardstick = ours_on(device.type)[0]
    if name != yardstick:
        turns[yardstick] = own = Step(CONTENDERS[yardstick], inputs, targets, attention)
        own()
    turns["forward"], turns[name] = step.forward, step
    times = measure.in_turns(turns, device, seconds=options.seconds, most=options.runs, warm=0)

    both, forward = times[name], statistics.median(times["forward"])
    row: dict[str, Any] = {**asdict(shape), **measure.spread(both), "peak_extra_mib": f"{max(0, peak) / 2**20:.1f}"}
    row["forward"], row["backward"] = f"{forward:.4g}", f"{max(0.0, statistics.median(both) - forward):.4g}"
    if name != yardstick:
        row["times_slower"] = f"{measure.ratio(both, times[yardstick]):.4g}"
    # The minimum traffic is 3 n k d elements: x read twice, dL/dx written once. A copy moves 2 n k d.
    row["gb_per_s"] = f"{3 * size / statistics.median(both) / 1e9:.4g}"
    row["copy_share"] = f"{1.5 * x.numel() / target.numel() / measure.ratio(both, times['copy']):.4g}"
    if device.type == "cuda":
        row["launches"] = launches(step, device)
    return row


def launches(call: Callable[[], object], device: torch.device) -> int | str:
    """Kernels (memsets and copies too) that one call puts on the device; nothing where these cannot be seen."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        measure.synchronize(device)
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events() or []) or ""


def work(given: str) -> None:
    """The life of one contender's process: of each shape a line of JSON when it begins, and its row."""
    options = argparse.Namespace(**json.loads(given))
    torch.set_num_threads(options.threads)
    device, name = torch.device(options.device), options.contender
    if device.type == "cuda":
        torch.cuda.set_device(device)
    for dtype in dict.fromkeys(described["dtype"] for described in options.shapes):
        check(name, device, dtype, options.seed)
    if device.type == "cpu":
        measure.limit_memory(options.memory)
    else:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, options.memory / total), device)
    wall = False
    for described in options.shapes:
        if wall and described["part"] in GROWING:
            continue  # larger ones would not fit either
        print("\n" + json.dumps(described), flush=True)
        try:
            row = measured(name, Shape(**described), options)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            row = {**described, "note": f"out of memory under a limit of {options.memory / 2**30:.3g} GiB"}
            wall = wall or described["part"] in GROWING
        print("\n" + json.dumps(row), flush=True)


def out_of_memory(error: Exception) -> bool:
    """On a GPU or a CPU. An illegal access to memory is none: such an error has to be seen."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "t allocate memory" in str(error)


def rows_of(
    name: str, todo: list[Shape], options: argparse.Namespace, session: rows.Session
) -> Iterator[dict[str, Any]]:
    """Runs one contender's process and yields its rows as they come, until the session's time is up."""
    if not CONTENDERS[name].installed():
        yield {**asdict(todo[0]), "note": f"not installed: {CONTENDERS[name].package.replace('_', '-')}"}
        return
    given = {**vars(options), "out": None, "contender": name, "shapes": [asdict(shape) for shape in todo]}
    command = [sys.executable, "-W", "ignore", "-c", "import sys; from bench.loss import work; work(sys.argv[1])"]
    at_hand = asdict(todo[0])
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            [*command, json.dumps(given)], cwd=rows.ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        timer = threading.Timer(min(session.left(), threading.TIMEOUT_MAX), child.terminate)
        timer.start()
        assert child.stdout is not None
        try:
            for line in child.stdout:
                row = json.loads(line) if line.startswith("{") else {}
                if "seconds" in row or "note" in row:
                    yield row
                elif row:
                    at_hand = row
            status = child.wait()
        finally:  # Python does not end while the timer runs, nor the child by itself
            timer.cancel()
            child.kill()
        errors.seek(0)
        message = errors.read().strip()
    if status < 0 and session.left():
        yield {**at_hand, "note": f"killed by signal {-status}: most likely out of memory"}
    elif status > 0:
        print(message or f"{name}: exit status {status}", file=sys.stderr)
        yield {**at_hand, "note": f"failed: {message.splitlines()[-1] if message else status}"[:200]}


def main(argv: list[str] | None = None) -> int:
    parser = rows.parser("loss", __doc__, rows.RESULTS / "loss.csv")
    parser.add_argument("--contenders", **rows.some_of(CONTENDERS))
    parser.add_argument("--parts", nargs="+", choices=AXES, default=list(AXES), help="axes to vary")
    parser.add_argument("--n", type=int, nargs="+", help="batch sizes of the part n; default: the standard ones")
    parser.add_argument("--runs", type=int, default=20, help="maximum number of timed runs of a contender at a size")
    parser.add_argument(
        "--seconds", type=float, help="seconds after which no further round starts; default: 1, on a GPU 0.5"
    )
    parser.add_argument(
        "--memory", type=float, help="GiB a contender may take; default: 2/3 of what is free, of a GPU 95 %%"
    )
    options = parser.parse_args(argv)
    if min(options.runs, *(options.n or [1])) < 1:
        parser.error("--n and --runs: expected at least 1")
    session = rows.Session(parser, options, FIELDS, KEY)
    kind = session.device.type
    able = [name for name, contender in CONTENDERS.items() if contender.fits(kind)]
    wrong = set(options.contenders or []) - set(able)
    if wrong and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error(f"--contenders {' '.join(wrong)}: not on {kind}; needs another --device, or TRITON_INTERPRET=1")
    free = torch.cuda.mem_get_info(options.device)[0] * 0.95 if kind == "cuda" else measure.available_memory() * 2 / 3
    options.memory = int(options.memory * 2**30 if options.memory else free)
    options.seconds = SECONDS[kind] if options.seconds is None else options.seconds
    for name in options.contenders or able:
        shapes = planned(name, kind, options.parts, options.n)
        todo = [shape for shape in shapes if not session.done(contender=name, **asdict(shape))]
        if not todo:
            continue
        if session.stops(name):
            break
        for row in rows_of(name, todo, options, session):
            session.append({"contender": name, **row})
    return session.status
