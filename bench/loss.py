"""`python -m bench loss`: the loss, forward and backward, against whatever a user would pick instead.

One axis varies at a time, the others stay at k = 7, d = 256, C = 7 in float32. Every contender runs in a process of its
own under a memory limit, from small to large; a size whose estimate does not fit is a row that says so. Within the
process it takes turns with a plain copy and with adcorre's own backend, so that shares and ratios are of the same
moment. Whatever computes the Ad-Corre terms is first held to the reference in float64. Inputs rotate through more
memory than caches hold. Rows that the file has already, from the same commit, device and versions, are not run again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from adcorre import adcorre_terms
from bench import measure
from bench.rivals import CONTENDERS, OURS, Contender
from train.entry import SuggestingParser

RESULTS = measure.RESULTS / "loss.csv"
FIELDS = (
    *measure.ORIGIN, "part", "contender", "n", "k", "d", "classes", "dtype", "seconds", "p20", "p80", "forward",
    "backward", "gb_per_s", "copy_share", "times_slower", "launches", "peak_extra_mib", "joules", "clock_mhz",
    "celsius", "note",
)  # fmt: skip
KEY = ("commit", "device", "torch", "triton", "threads", "part", "contender", "n", "k", "d", "classes", "dtype")
ROTATED = {"cpu": 128 << 20, "cuda": 256 << 20}  # bytes, more than the last caches hold
COPIED = 256 << 20  # bytes, at most, of the copy that bandwidth is held against
SECONDS = {"cpu": 1.0, "cuda": 0.5}  # of rounds, at one shape
LONGEST = {"cpu": 90.0, "cuda": 5.0}  # seconds of the longest call that is made
LONG = 5.0  # seconds: such a call is not repeated for warmth


@dataclass(frozen=True)
class Shape:
    """`part`: the axis that varies."""

    part: str = "n"
    n: int = 4096
    k: int = 7
    d: int = 256
    classes: int = 7
    dtype: str = "float32"

    def numbers(self) -> int:
        return self.n * self.k * self.d


# Every axis by itself: values, and the n at which the other axes vary. The sizes are those of a GPU, and of two cores.
AXES: dict[str, dict[str, list[Any]]] = {
    "cuda": {
        "n": [60, 600, 4096, 16384, 65536, 262144, 1048576, 4194304],
        "k": [1, 2, 4, 7, 16],
        "d": [64, 128, 256, 512, 1024],
        "classes": [7, 32, 100, 1000, 10000],
        "dtype": ["float32", "bfloat16"],
    },
    "cpu": {
        "n": [60, 600, 4096, 16384, 65536, 262144],
        "k": [1, 2, 4, 7, 16],
        "d": [64, 128, 256, 512, 1024],
        "classes": [7, 100, 1000, 10000],
        "dtype": ["float32", "bfloat16"],
    },
}
AXES_AT = {"cuda": 65536, "cpu": 4096}
RIVALS_UP_TO = {"cuda": 4194304, "cpu": 16384}


def planned(name: str, kind: str, parts: list[str], sizes: list[int] | None) -> list[Shape]:
    """What a contender is measured at, in each part in the order of cost; `sizes` instead of the standard n."""
    linear = CONTENDERS[name].growth == 1
    found = []
    for part in parts:
        if part != "n":
            # What the other axes do to the rivals is the story of n again.
            base = Shape(part, AXES_AT[kind])
            found += [replace(base, **{part: value}) for value in AXES[kind][part] if name in OURS and linear]
        elif sizes:
            found += [Shape(n=n) for n in sorted(sizes)]
        else:
            at = CONTENDERS[name].sizes or AXES[kind]["n"]
            found += [Shape(n=n) for n in at if (name in OURS and linear) or n <= RIVALS_UP_TO[kind]]
    return found


def make_inputs(shape: Shape, device: torch.device, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator(device).manual_seed(seed)
    x = torch.empty(shape.n, shape.k, shape.d, dtype=getattr(torch, shape.dtype), device=device)
    x.normal_(generator=rng).requires_grad_()
    targets = torch.randint(0, shape.classes, (shape.n,), generator=rng, device=device)
    attention = torch.rand(shape.classes, generator=rng, device=device)
    return x, targets, attention


class Step:
    """One contender's forward and backward pass over inputs that rotate. `passes` keeps the seconds of both."""

    def __init__(self, contender: Contender, inputs: list[Tensor], targets: Tensor, attention: Tensor) -> None:
        self.call = contender.make()
        self.gradient = contender.gradient
        self.inputs = cycle(inputs)
        self.targets, self.attention = targets, attention
        self.split = False
        self.passes: list[tuple[float, float]] = []

    def __call__(self) -> Tensor:
        x = next(self.inputs)
        began = self._clock(x)
        loss = self.call(x, self.targets, self.attention)
        between = self._clock(x)
        result = torch.autograd.grad(loss, x)[0] if self.gradient else loss
        if self.split:
            self.passes.append((between - began, self._clock(x) - between))
        return result

    def _clock(self, x: Tensor) -> float:
        if self.split:
            measure.synchronise(x.device)
        return time.perf_counter()


def check(name: str, device: torch.device, dtype: str, seed: int) -> None:
    """No time is taken before the contender agrees with the reference in float64, or has a gradient at least."""
    contender = CONTENDERS[name]
    x, targets, attention = make_inputs(Shape(n=200, k=3, d=64, dtype=dtype), device, seed)
    loss = contender.make()(x, targets, attention)
    if not contender.gradient:
        got, truth = loss.double(), sum(adcorre_terms(x.detach().double(), targets, attention, backend="reference"))
    else:
        got = torch.autograd.grad(loss, x)[0].double()
        if not contender.same:
            if not (bool(got.isfinite().all()) and bool(got.any())):
                raise SystemExit(f"{name}: its gradient is zero or not finite")
            return
        exact = x.detach().double().requires_grad_()
        terms = adcorre_terms(exact, targets, attention.double(), backend="reference")
        truth = torch.autograd.grad(sum(terms), exact)[0]  # type: ignore[arg-type]
    error = float((got - truth).abs().max() / truth.abs().max())  # type: ignore[union-attr]
    if not error < (16 if dtype == "float32" else 2) * torch.finfo(x.dtype).eps:  # half precision is rounded once
        raise SystemExit(f"{name}: differs from the reference in float64 by {error:.1e} of its largest entry")


def measured(
    name: str, shape: Shape, options: argparse.Namespace, nvml: measure.Nvml, long: bool = False
) -> dict[str, Any]:
    """One row's figures."""
    device = torch.device(options.device)
    x, targets, attention = make_inputs(shape, device, options.seed)
    size = x.numel() * x.element_size()
    spare = [x.detach().clone().requires_grad_() for _ in range(-(-ROTATED[device.type] // size) - 1)]
    step = Step(CONTENDERS[name], [x, *spare], targets, attention)
    if not long:
        step()
    peak = measure.peak_during(step, device) - (size if step.gradient else 0)

    turns: dict[str, Callable[[], object]] = {}
    if not long:
        sources = [tensor.detach().view(-1)[: COPIED // x.element_size()] for tensor in (x, *spare)]
        target, source = torch.empty_like(sources[0]), cycle(sources)
        turns["copy"] = lambda: target.copy_(next(source))
    yardstick = options.yardstick
    if name != yardstick:
        turns[yardstick] = ours = Step(CONTENDERS[yardstick], [x, *spare], targets, attention)
        ours()
        ours.split = device.type == "cpu" or not step.gradient
    turns[name] = step
    step.split = device.type == "cpu"
    times = measure.in_turns(turns, device, seconds=options.seconds, most=1 if long else options.runs, warm=0)

    both = times[name]
    row: dict[str, Any] = {**asdict(shape), **measure.spread(both), "peak_extra_mib": f"{max(0, peak) / 2**20:.1f}"}
    if name != yardstick:
        own = times[yardstick] if step.gradient else [forward for forward, _ in ours.passes] or times[yardstick]
        row["times_slower"] = f"{measure.ratio(both, own):.4g}"
    if device.type == "cuda":
        step.split = True
        measure.in_turns({name: step}, device, seconds=options.seconds / 4, most=options.runs, warm=0)
    forward, backward = (statistics.median(pass_) for pass_ in zip(*step.passes, strict=True))
    row["forward"], row["backward"] = f"{forward:.4g}", f"{backward:.4g}" if step.gradient else ""
    step.split = False
    # The least possible traffic is 3 n k d elements: x read twice, dL/dx written once. A copy moves 2 n k d.
    row["gb_per_s"] = f"{3 * size / statistics.median(both) / 1e9:.4g}" if step.gradient else ""
    if "copy" in times and step.gradient:
        row["copy_share"] = f"{1.5 * x.numel() / target.numel() / measure.ratio(both, times['copy']):.4g}"
    if device.type == "cuda":
        row["launches"] = launches(step, device)
    return row | nvml.during(step, device)


def launches(call: Callable[[], object], device: torch.device) -> int | str:
    """Kernels (memsets and copies too) that one call puts on the device; nothing where these cannot be seen."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        measure.synchronise(device)
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events() or []) or ""


def work(given: str) -> None:
    """The life of one contender's process: of each shape a line of JSON when it begins, and its row."""
    options = argparse.Namespace(**json.loads(given))
    torch.set_num_threads(options.threads)
    device, name = torch.device(options.device), options.contender
    if device.type == "cuda":
        torch.cuda.set_device(device)
    contender = CONTENDERS[name]
    for dtype in dict.fromkeys(described["dtype"] for described in options.shapes):
        check(name, device, dtype, options.seed)
    nvml = measure.Nvml(device)
    if device.type == "cpu":
        measure.limit_memory(options.memory)
    else:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, options.memory / total), device)
    walled = set()
    before: tuple[Shape, float, float] | None = None  # the last shape, its seconds and its bytes
    for described in options.shapes:
        shape = Shape(**described)
        if shape.part in walled:
            continue  # larger ones would not fit either
        print("\n" + json.dumps(described), flush=True)
        seconds = nbytes = 0.0
        if before is not None and before[0].part == shape.part:
            last, seconds, nbytes = before
            grown = (shape.n / last.n) ** contender.growth * (shape.numbers() / shape.n) / (last.numbers() / last.n)
            seconds, nbytes = seconds * grown, nbytes * grown
        size = shape.numbers() * getattr(torch, shape.dtype).itemsize
        nbytes += size + max(size, ROTATED[device.type]) + min(size, COPIED)  # dL/dx, inputs, the copy
        if nbytes > options.memory:
            row = {
                **described,
                "note": f"skipped: needs about {nbytes / 2**30:.3g} GiB of {options.memory / 2**30:.3g}",
            }
        elif seconds > options.longest:
            row = {**described, "note": f"skipped: about {seconds:.0f} s a call, of at most {options.longest:g}"}
        else:
            try:
                row = measured(name, shape, options, nvml, seconds > LONG)
                before = (shape, float(row["seconds"]), float(row["peak_extra_mib"]) * 2**20)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                row = {**described, "note": f"out of memory under a limit of {options.memory / 2**30:.3g} GiB"}
        print("\n" + json.dumps(row), flush=True)
        if "note" in row and shape.part == "n":
            walled.add("n")


def out_of_memory(error: Exception) -> bool:
    """On a GPU or a CPU. An illegal access to memory is none: such an error has to be seen."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "t allocate memory" in str(error)


def rows_of(
    name: str, todo: list[Shape], options: argparse.Namespace, deadline: measure.Deadline
) -> Iterator[dict[str, Any]]:
    """Runs one contender's process and yields its rows as they come, until the deadline."""
    package = CONTENDERS[name].package
    if package and importlib.util.find_spec(package) is None:
        yield {**asdict(todo[0]), "note": f"not installed: {package.replace('_', '-')}"}
        return
    given = {**vars(options), "out": None, "contender": name, "shapes": [asdict(shape) for shape in todo]}
    command = [sys.executable, "-W", "ignore", "-c", "import sys; from bench.loss import work; work(sys.argv[1])"]
    at_hand = asdict(todo[0])
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            [*command, json.dumps(given)], cwd=measure.ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        timer = threading.Timer(min(deadline.left(), threading.TIMEOUT_MAX), child.terminate)
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
        said = errors.read().strip()
    if status < 0 and deadline.left():
        yield {**at_hand, "note": f"killed by signal {-status}: most likely out of memory"}
    elif status > 0:
        print(said or f"{name}: exit status {status}", file=sys.stderr)
        yield {**at_hand, "note": f"failed: {said.splitlines()[-1] if said else status}"[:200]}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = SuggestingParser(
        prog="python -m bench loss", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    names = ", ".join(CONTENDERS)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, metavar="NAME", help=f"of {names}; default: all")
    parser.add_argument("--parts", nargs="+", choices=AXES["cpu"], default=list(AXES["cpu"]), help="axes to vary")
    parser.add_argument("--n", type=int, nargs="+", help="batch sizes of the part n; default: the standard ones")
    parser.add_argument("--runs", type=int, default=20, help="most counted runs of a contender at a size")
    parser.add_argument("--seconds", type=float, help="no further round begins after so many; default: 1, on a GPU 0.5")
    parser.add_argument("--longest", type=float, help="seconds of the longest call made; default: 90, on a GPU 5")
    parser.add_argument(
        "--memory", type=float, help="GiB a contender may take; default: 2/3 of what is free, of a GPU 95 %%"
    )
    measure.add_options(parser, RESULTS)
    options = parser.parse_args(argv)
    kind = measure.check_options(parser, options).type
    if min(options.runs, *(options.n or [1])) < 1:
        parser.error("--n and --runs: expected at least 1")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    options.yardstick = "triton" if kind == "cuda" else "torch"
    if options.contenders is None:
        options.contenders = [name for name in CONTENDERS if name != "triton" or kind == "cuda"]
    elif "triton" in options.contenders and kind == "cpu" and not interpreted:
        parser.error("--contenders triton: needs --device cuda, or TRITON_INTERPRET=1 for a try without meaning")
    free = torch.cuda.mem_get_info(options.device)[0] * 0.95 if kind == "cuda" else measure.available_memory() * 2 / 3
    options.memory = int(options.memory * 2**30 if options.memory else free)
    options.seconds = SECONDS[kind] if options.seconds is None else options.seconds
    options.longest = LONGEST[kind] if options.longest is None else options.longest
    return options


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    deadline = measure.Deadline(options.minutes)
    torch.set_num_threads(options.threads)
    origin = measure.origin(options.device)
    measure.Nvml(torch.device(options.device))  # says once if there will be no energy
    done = set() if options.again else measure.done_before(options.out, KEY)
    failed = False
    for name in options.contenders:
        shapes = planned(name, torch.device(options.device).type, options.parts, options.n)
        keys = [tuple(str(({**origin, **asdict(shape), "contender": name})[key]) for key in KEY) for shape in shapes]
        todo = [shape for shape, key in zip(shapes, keys, strict=True) if key not in done]
        if not todo:
            continue
        if deadline.passed(name):
            break
        for row in rows_of(name, todo, options, deadline):
            row = {**origin, "contender": name, **row}
            measure.append(options.out, FIELDS, [row])
            print(_line(row), flush=True)
            failed |= row.get("note", "").startswith("failed")
    return 1 if failed else 0


def _line(row: dict[str, Any]) -> str:
    line = "{contender:19} n = {n:<8} k = {k:<3} d = {d:<5} C = {classes:<6} {dtype:9}".format(**row)
    if "note" in row:
        return line + row["note"]
    line += f"{1e3 * float(row['seconds']):10.3f} ms"
    if "copy_share" in row:
        line += f"  {100 * float(row['copy_share']):5.1f} % of a copy's bandwidth"
    if "times_slower" in row:
        line += f"  {float(row['times_slower']):7.1f} times ours"
    return line + f"  {row['peak_extra_mib']} MiB more"
