"""`python -m bench loss`: the loss, forward and backward, against whatever a user would pick instead.

One axis varies at a time, the others stay at k = 7, d = 256, C = 7 in float32. Every contender runs in a process of its
own under a memory limit, from small to large; a size whose estimate does not fit is a row that says so. Within the
process it takes turns with a plain copy and with adcorre's own backend, so that shares and ratios are of the same
moment. Whatever computes the Ad-Corre terms is first held to the reference in float64. Inputs rotate through more
memory than caches hold. Rows that the file has already, from the same commit, device and versions, are not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adcorre import adcorre_terms
from bench import measure
from bench.rivals import CONTENDERS, OURS, Contender

RESULTS = measure.RESULTS / "loss.csv"
FIELDS = (
    *measure.ORIGIN, "part", "contender", "n", "k", "d", "classes", "dtype", "seconds", "p20", "p80", "forward",
    "backward", "gb_per_s", "copy_share", "times_slower", "launches", "peak_extra_mib", "joules", "clock_mhz",
    "celsius", "note",
)  # fmt: skip
KEY = ("commit", "device", "torch", "triton", "threads", "part", "contender", "n", "k", "d", "classes", "dtype")
ROTATED = {"cpu": 128 << 20, "cuda": 256 << 20}  # bytes, more than the last caches hold
LONG = 5.0  # seconds: such a call is not repeated for warmth


@dataclass(frozen=True)
class Shape:
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
        "n": [60, 300, 600, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304],
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


def shapes(part: str, device: str, own: bool) -> list[Shape]:
    """The shapes of one part, in the order of their cost."""
    base = Shape(n=AXES_AT[device])
    found = [replace(base, **{part: value}) for value in AXES[device][part]]
    return [shape for shape in found if own or shape.n <= RIVALS_UP_TO[device]]


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
    x, targets, attention = make_inputs(Shape(200, 3, 64, dtype=dtype), device, seed)
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
    if not error < 16 * torch.finfo(x.dtype).eps:
        raise SystemExit(f"{name}: differs from the reference in float64 by {error:.1e} of its largest entry")


def measured(name: str, shape: Shape, options: argparse.Namespace, long: bool) -> dict[str, Any]:
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
        target = torch.empty_like(x)
        sources = cycle([x.detach(), *(other.detach() for other in spare)])
        turns["copy"] = lambda: target.copy_(next(sources))
    yardstick = options.yardstick
    if name != yardstick:
        turns[yardstick] = ours = Step(CONTENDERS[yardstick], [x, *spare], targets, attention)
        ours()
        ours.split = device.type == "cpu"
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
        row["copy_share"] = f"{1.5 / measure.ratio(both, times['copy']):.4g}"
    if device.type == "cuda":
        row["launches"] = launches(step, device)
    return row | measure.Nvml(device).during(step, device)


def launches(call: Callable[[], object], device: torch.device) -> int:
    """Kernels (memsets and copies too) that one call puts on the device."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        measure.synchronise(device)
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events() or [])


def work(given: str) -> None:
    """The life of one contender's process: a line of JSON for each shape, then the end."""
    options = argparse.Namespace(**json.loads(given))
    torch.set_num_threads(options.threads)
    device, name = torch.device(options.device), options.contender
    contender = CONTENDERS[name]
    check(name, device, options.shapes[0]["dtype"], options.seed)
    if device.type == "cpu":
        measure.limit_memory(options.memory)
    before: tuple[Shape, float, float] | None = None  # the last shape, its seconds and its bytes
    for described in options.shapes:
        shape = Shape(**described)
        seconds = nbytes = 0.0
        if before is not None:
            last, seconds, nbytes = before
            grown = (shape.n / last.n) ** contender.growth * (shape.numbers() / shape.n) / (last.numbers() / last.n)
            seconds, nbytes = seconds * grown, nbytes * grown
        held = 4 * shape.numbers() * 4
        if nbytes + held > options.memory:
            row = {
                **described,
                "note": f"skipped: needs about {(nbytes + held) / 2**30:.3g} GiB of {options.memory / 2**30:.3g}",
            }
        elif seconds > options.longest:
            row = {**described, "note": f"skipped: about {seconds:.0f} s a call, of at most {options.longest:g}"}
        else:
            try:
                row = measured(name, shape, options, seconds > LONG)
                before = (shape, float(row["seconds"]), float(row["peak_extra_mib"]) * 2**20)
            except (MemoryError, RuntimeError) as error:
                if not (isinstance(error, MemoryError) or "memory" in str(error) or "alloc" in str(error)):
                    raise
                row = {**described, "note": f"out of memory under a limit of {options.memory / 2**30:.3g} GiB"}
        print("\n" + json.dumps(row), flush=True)
        if "note" in row and options.part == "n":
            break  # larger ones would not fit either


def rows_of(name: str, part: str, todo: list[Shape], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Runs one contender's process and yields its rows as they come."""
    given = {**vars(options), "out": None, "contender": name, "part": part, "shapes": [asdict(shape) for shape in todo]}
    command = [sys.executable, "-W", "ignore", "-c", "import sys; from bench.loss import work; work(sys.argv[1])"]
    child = subprocess.Popen(
        [*command, json.dumps(given)], cwd=measure.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    waiting = list(todo)
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("{"):
            waiting.pop(0)
            yield json.loads(line)
    assert child.stderr is not None
    said = child.stderr.read().strip()
    if child.wait() < 0 and waiting:
        yield {**asdict(waiting[0]), "note": f"killed by signal {-child.returncode}: most likely out of memory"}
    elif child.returncode > 0:
        raise SystemExit(f"{name}: {said or f'exit status {child.returncode}'}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench loss", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    names = ", ".join(CONTENDERS)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, metavar="NAME", help=f"of {names}; default: all")
    parser.add_argument("--parts", nargs="+", choices=AXES["cpu"], default=list(AXES["cpu"]), help="axes to vary")
    parser.add_argument("--n", type=int, nargs="+", help="batch sizes of the part n instead of the standard ones")
    parser.add_argument("--runs", type=int, default=20, help="most counted runs of a contender at a size")
    parser.add_argument("--seconds", type=float, default=2.0, help="after so many seconds no further round begins")
    parser.add_argument("--longest", type=float, default=90.0, help="seconds of the longest call that is made")
    parser.add_argument("--memory", type=float, help="GiB that a contender may take; default: 2/3 of what is free")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs")
    parser.add_argument("--again", action="store_true", help="also run what is in the file already")
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV file to which the rows are appended")
    options = parser.parse_args(argv)
    kind = measure.check_device(parser, options.device).type
    if min(options.runs, options.threads, *(options.n or [1])) < 1:
        parser.error("--n, --runs and --threads: expected at least 1")
    options.yardstick = "triton" if kind == "cuda" else "torch"
    if options.contenders is None:
        options.contenders = [name for name in CONTENDERS if name != "triton" or kind == "cuda"]
    elif "triton" in options.contenders and kind == "cpu":
        parser.error("--contenders triton: needs --device cuda")
    free = torch.cuda.mem_get_info(options.device)[0] if kind == "cuda" else measure.available_memory()
    options.memory = int(options.memory * 2**30) if options.memory else free * 2 // 3
    return options


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    origin = measure.origin(options.device)
    kind = torch.device(options.device).type
    done = {tuple(row[name] for name in KEY) for row in measure.read(options.out)} if not options.again else set()
    for part in options.parts:
        for name in options.contenders:
            own = name in OURS and CONTENDERS[name].growth == 1
            if part != "n" and not own:
                continue  # the other axes are ours: what they do to the rivals is n's story again
            planned = [Shape(n=n) for n in sorted(options.n)] if part == "n" and options.n else shapes(part, kind, own)
            todo = [
                shape
                for shape in planned
                if tuple(str({**origin, **asdict(shape), "part": part, "contender": name}[key]) for key in KEY)
                not in done
            ]
            for row in rows_of(name, part, todo, options) if todo else ():
                row = {**origin, "part": part, "contender": name, **row}
                measure.append(options.out, FIELDS, [row])
                print(_line(row), flush=True)
    return 0


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
