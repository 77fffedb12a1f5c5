"""The parts of `python -m bench gpu`: each checks or measures one thing and writes rows."""

from __future__ import annotations

import copy
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

import adcorre
from adcorre import adcorre_terms
from bench import measure
from bench.loss import Shape, make_inputs
from bench.rows import ROOT, Session, beyond

TESTS = ROOT / "tests" / "kernels" / "launched"
PAPER = {"k": 7, "d": 256, "classes": 7}
TOY = {"k": 2, "d": 16, "classes": 3}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Failed(Exception):
    """A check of a part failed."""


class Bench:
    """The device, the sizes to run at, and where the rows of one part go."""

    def __init__(self, session: Session, part: str) -> None:
        self.session, self.part = session, part
        self.device, self.seed = session.device, session.options.seed
        self.toy = self.device.type == "cpu"
        self.shape: dict[str, Any] = TOY if self.toy else PAPER

    def sizes(self, *n: int, toy: int = 2) -> tuple[int, ...]:
        """`n`, or on a CPU the first `toy` of two small ones."""
        return (6, 12)[: min(toy, len(n))] if self.toy else n

    def inputs(self, n: int, dtype: str = "float32") -> tuple[Tensor, Tensor, Tensor]:
        """x (n, k, d) that requires grad, targets, attention."""
        return make_inputs(Shape(n=n, dtype=dtype, **self.shape), self.device, self.seed)

    def row(self, case: str, metric: str, value: object, unit: str = "", **more: Any) -> None:
        """Append one row; `target` is a text such as ">= 0.85" that `value` is checked against."""
        target = more.get("target", "")
        met: bool | str = ""
        if target and not self.toy:
            sign, bound = target.split()
            met = not beyond(float(str(value)), sign, float(bound))
        finding = {"part": self.part, "case": case, "metric": metric, "value": value, "unit": unit, "met": met}
        self.session.append({**finding, **self.shape, **more})

    def seconds(
        self, calls: dict[str, Callable[[], object]], runs: int, batch: int = 1, **more: Any
    ) -> dict[str, float]:
        """Median seconds of a call, for contenders that take turns; a row each."""
        runs, batch, warm = (1, 1, 1) if self.toy else (runs, batch, 2)
        times = measure.in_turns(calls, self.device, seconds=float("inf"), most=runs, warm=warm, batch=batch)
        for case, own in times.items():
            figures = measure.spread(own)
            self.row(case, "time", figures.pop("seconds"), "s", **figures, **more)
        return {case: statistics.median(own) for case, own in times.items()}

    def needs_cuda(self) -> bool:
        """Whether this is a CPU; notes that the part was skipped there."""
        if self.toy:
            self.row(self.part, "skipped", "needs CUDA")
        return self.toy

    def peak_mib(self, call: Callable[[], object], x: Tensor) -> float:
        """MiB at the peak of a call beyond its inputs and dL/dx."""
        torch.cuda.empty_cache()
        return (measure.peak_during(call, self.device) - x.numel() * x.element_size()) / 2**20


def step(x: Tensor, targets: Tensor, attention: Tensor, backend: str, **options: Any) -> Tensor:
    """dL/dx of FD + MD + ED."""
    terms = adcorre_terms(x, targets, attention, backend=backend, validate=False, **options)
    return torch.autograd.grad(terms.fd + terms.md + terms.ed, x)[0]


def total(loss: torch.nn.Module, logits: Tensor, x: Tensor, targets: Tensor) -> object:
    """Gradients of Eq. 12."""
    return torch.autograd.grad(loss(logits, x, targets).loss, (logits, x))


def agrees(bench: Bench) -> None:
    """Gradients of the kernels against the reference in float64, at targets -1 and others."""
    for dtype in DTYPES:
        for target in (-1, 0.3):
            for n in bench.sizes(300, 61, toy=1):
                x, targets, attention = bench.inputs(n, dtype)
                term_targets = {"between_target": target, "mean_target": target, "embedding_target": target}
                truth = step(
                    x.detach().double().requires_grad_(), targets, attention.double(), "reference", **term_targets
                )
                got = step(x, targets, attention, "triton", **term_targets).double()
                error = float((got - truth).abs().max() / truth.abs().max())
                bench.row(f"target {target}", "largest error of dL/dx", f"{error:.2e}", n=n, dtype=dtype)
                if not error < 8 * torch.finfo(DTYPES[dtype]).eps:
                    raise Failed(f"dL/dx in {dtype} at target {target}, n = {n}: {error:.2e} of its largest entry off")


def tests(file: str) -> Callable[[Bench], None]:
    def part(bench: Bench) -> None:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS / file)]
        if bench.toy:
            command += ["-k", "one_term or kinks or without_their_axis or simplex-0.3--1-shape4", "-m", "not slow"]
        elif importlib.util.find_spec("xdist") is not None:
            command += ["-n", "8"]
        device = {} if bench.toy else {"ADCORRE_DEVICE": str(bench.device)}
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **device}, capture_output=True, text=True)
        bench.row(file, "pytest", (done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]])[-1])
        if done.returncode not in ((0, 5) if bench.toy else (0,)):
            raise Failed(done.stdout[-6000:] + done.stderr[-2000:])

    part.__doc__ = f"tests/kernels/launched/{file} on the device."
    return part


def repeat(bench: Bench, case: str, n: int, dtype: str, runs: int, **options: Any) -> None:
    """Runs, forward and backward, that have to be equal bit by bit."""
    x, targets, attention = bench.inputs(n, dtype)
    first = None
    for _ in range(2 if bench.toy else runs):
        terms = adcorre_terms(x, targets, attention, backend="triton", validate=False, **options)
        result = (torch.stack(terms).detach(), step(x, targets, attention, "triton", **options))
        first = first or result
        if not all(map(torch.equal, first, result)):
            raise Failed(f"{case}: two runs at n = {n} in {dtype} differ")
    bench.row(case, "bitwise equal", True, n=n, dtype=dtype)


def determinism(bench: Bench) -> None:
    """Ten runs, forward and backward, bit by bit."""
    for dtype in ("float32", "bfloat16"):
        for n in bench.sizes(600, 65_536, 1_048_576, toy=1):
            repeat(bench, "ten runs", n, dtype, 10)


def graph(bench: Bench) -> None:
    """Forward and backward captured in a CUDA graph; a replay on new data equals the eager step."""
    if bench.needs_cuda():
        return
    x, targets, attention = bench.inputs(600)
    captured, replayed = measure.capture(partial(step, x, targets, attention, "triton"))
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
        targets.copy_(torch.randint_like(targets, bench.shape["classes"]))
    captured.replay()
    if not torch.equal(replayed, step(x, targets, attention, "triton")):
        raise Failed("a replayed graph differs from the eager step")
    bench.row("CUDA graph", "replay equals eager", True, n=600)
    graphed_loss(bench)


def graphed_loss(bench: Bench) -> None:
    """Eq. 12 by `make_graphed_callables`, in training and eval mode: output, gradients and ring of each step."""
    classes, n = bench.shape["classes"], 600
    loss = adcorre.AdCorreLoss(classes, backend="triton").to(bench.device)
    eager, batch = copy.deepcopy(loss), loss_batch(bench, n)
    calls = graphed(loss, batch)
    for number in range(8):
        training = number < 6
        inputs = loss_batch(bench, n, bench.seed + number)
        results = []
        for call in (calls[training], eager.train(training)):
            out = call(*inputs)
            results.append((*out, *torch.autograd.grad(out.loss, inputs[:2]), *eager.attention_map.buffers()))
        ring = tuple(loss.attention_map.buffers())
        if not all(map(torch.equal, (*results[0][:-2], *ring), results[1])):
            raise Failed(f"step {number} of the graphed loss differs from the eager one")
    bench.row("CUDA graph of Eq. 12", "replay equals eager", True, n=n)


def graphed(loss: torch.nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> dict[bool, Callable[..., Any]]:
    """As docs/scale.md has it: the loss's calls in training and in eval mode; the warm-up leaves no step in the map."""
    before = copy.deepcopy(loss.state_dict())
    calls = {}
    for training in (True, False):
        loss.train(training)
        calls[training] = torch.cuda.make_graphed_callables(lambda *given: loss(*given), batch)
    loss.load_state_dict(before)
    return calls


def loss_batch(bench: Bench, n: int, seed: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and embeddings that require grad, and targets."""
    x, targets, _ = make_inputs(Shape(n=n, **bench.shape), bench.device, bench.seed if seed is None else seed)
    return torch.randn(n, bench.shape["classes"], device=bench.device, requires_grad=True), x, targets


def sanitizer(bench: Bench) -> None:
    """compute-sanitizer's memcheck and racecheck over `small`: a few small shapes, each kernel among them."""
    tool = shutil.which("compute-sanitizer")
    if bench.device.type != "cuda" or tool is None:
        small(bench)
        return bench.row("compute-sanitizer", "skipped", "needs CUDA and the tool")
    for check in ("memcheck", "racecheck"):
        command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, "-m", "bench", "gpu"]
        command += ["--parts", "small", "--again", "--busy"]
        environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if "not supported" in done.stdout or "Unable to" in done.stdout:
            bench.row(check, "skipped", done.stdout.strip().splitlines()[-1][:150])
        elif done.returncode:
            raise Failed(f"{check}:\n{done.stdout[-5000:]}{done.stderr[-2000:]}")
        else:
            bench.row(check, "clean", True)


def small(bench: Bench) -> None:
    """Each kernel once or more at small shapes, for a tool that looks on."""
    shapes = [(40, 7, 256, 7), (33, 3, 17, 5), (5, 9, 130, 3), (2, 3, 4096, 2), (40, 3, 20, 40)]
    for n, k, d, classes in shapes[1:2] if bench.toy else shapes:
        for target in (-1, 0.3):
            x = torch.randn(n, k, d, device=bench.device, requires_grad=True)
            targets = torch.randint(0, classes, (n,), device=bench.device)
            term_targets = {"between_target": target, "mean_target": target, "embedding_target": target}
            step(x, targets, torch.rand(classes, device=bench.device), "triton", **term_targets)
        measure.synchronize(bench.device)
        bench.row("small", "ran", True, n=n, k=k, d=d, classes=classes)


def bandwidth(bench: Bench) -> None:
    """Forward + backward against a device copy's bytes per second, counted on the minimum traffic, 3 n k d."""
    from adcorre_kernels import gpu

    for dtype, target in (("float32", ">= 0.85"), ("bfloat16", ">= 0.80")):
        for n in bench.sizes(65_536, 1_048_576):
            x, targets, attention = bench.inputs(n, dtype)
            copy = torch.empty_like(x)
            term_targets = (-1.0, -1.0, -1.0)
            k, d, classes = (bench.shape[name] for name in ("k", "d", "classes"))
            plain = x.detach()
            flat = gpu.statistics(plain, targets, classes, -100, -1.0)
            _, *tables = gpu.terms(flat, attention, k, d, *term_targets)
            upstream = torch.ones(4, device=bench.device)
            calls: dict[str, Callable[[], object]] = {
                "copy": partial(copy.copy_, plain),
                "statistics": partial(gpu.statistics, plain, targets, classes, -100, -1.0),
                "terms": partial(gpu.terms, flat, attention, k, d, *term_targets),
                "gradient": partial(gpu.gradient, plain, targets, upstream, *tables, -100, -1.0),
                "forward + backward": partial(step, x, targets, attention, "triton"),
            }
            size = x.numel() * x.element_size()
            passes = {"copy": 2, "statistics": 1, "gradient": 2, "forward + backward": 3}
            per_second = {}
            for name, middle in bench.seconds(calls, runs=20, batch=5, n=n, dtype=dtype).items():
                if name in passes:
                    per_second[name] = passes[name] * size / middle
                    share = per_second[name] / per_second["copy"]
                    aim = target if name == "forward + backward" else ""
                    bench.row(name, "share of a copy's bandwidth", f"{share:.3f}", n=n, dtype=dtype, target=aim)
            bench.row("copy", "bandwidth", f"{per_second['copy']:.3e}", "B/s", n=n, dtype=dtype)
            del x, copy, plain, calls


def latency(bench: Bench) -> None:
    """Small batches: the terms and the whole of Eq. 12 against the eager reference and torch.compile of `torch`."""
    for n in bench.sizes(60, 300, 600):
        x, targets, attention = bench.inputs(n)
        classes = bench.shape["classes"]
        logits = torch.randn(n, classes, device=bench.device, requires_grad=True)
        compiled, compiled_total = (
            torch.compile(call, fullgraph=False, backend="eager" if bench.toy else "inductor") for call in (step, total)
        )
        losses = {
            name: adcorre.AdCorreLoss(classes, backend=name, validate=False).to(bench.device)
            for name in ("triton", "reference", "torch")
        }
        inputs = (x, targets, attention)
        calls: dict[str, Callable[[], object]] = {
            "terms, triton": partial(step, *inputs, "triton"),
            "terms, reference": partial(step, *inputs, "reference"),
            "terms, torch compiled": partial(compiled, *inputs, "torch"),
            "Eq. 12, triton": partial(total, losses["triton"], logits, x, targets),
            "Eq. 12, reference": partial(total, losses["reference"], logits, x, targets),
            "Eq. 12, torch compiled": partial(compiled_total, losses["torch"], logits, x, targets),
        }
        if bench.device.type == "cuda":
            captured, _ = measure.capture(partial(step, *inputs, "triton"))
            calls["terms, triton, graph replay"] = captured.replay
            of_loss, _ = measure.capture(partial(total, losses["triton"], logits, x, targets))
            calls["Eq. 12, triton, graph replay"] = of_loss.replay
        times = bench.seconds(calls, runs=20, batch=30, n=n, dtype="float32")
        for what, (rival, target) in product(("terms", "Eq. 12"), (("reference", ">= 10"), ("torch compiled", ">= 3"))):
            ratio = times[f"{what}, {rival}"] / times[f"{what}, triton"]
            bench.row(what, f"times faster than {rival}", f"{ratio:.2f}", n=n, dtype="float32", target=target)
        if (replay := times.get("Eq. 12, triton, graph replay")) is not None:
            bench.row("Eq. 12", "graph replay", f"{1e6 * replay:.1f}", "us", n=n, dtype="float32", target="<= 60")


def kernels(bench: Bench) -> None:
    """Each kernel's own time in a step, as the profiler sees it: what is left where the host is not in the way."""
    if bench.needs_cuda():
        return
    from adcorre_kernels.gpu import launch

    runs = 10
    for dtype in ("float32", "bfloat16"):
        for n in (60, 600, 8_192, 65_536, 1_048_576):
            call = partial(step, *bench.inputs(n, dtype), "triton")
            for _ in range(3):
                call()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                for _ in range(runs):
                    call()
                measure.synchronize(bench.device)
            for event in profile.key_averages():
                if hasattr(launch, event.key):
                    seconds = event.device_time_total / runs * 1e-6
                    bench.row(event.key, "time", f"{seconds:.3e}", "s", n=n, dtype=dtype)


def scaling(bench: Bench) -> None:
    """Time at 2 n over time at n: linear in n."""
    for dtype in ("float32", "bfloat16"):
        before = None
        for n in bench.sizes(262_144, 524_288, 1_048_576, 2_097_152, 4_194_304):
            if not bench.toy:
                needed = 2.1 * n * bench.shape["k"] * bench.shape["d"] * DTYPES[dtype].itemsize
                if needed > torch.cuda.mem_get_info()[0]:
                    bench.row("scaling", "skipped", "memory", n=n, dtype=dtype)
                    break
            data = bench.inputs(n, dtype)
            (middle,) = bench.seconds(
                {"forward + backward": partial(step, *data, "triton")}, runs=10, n=n, dtype=dtype
            ).values()
            if before is not None:
                ratio = f"{middle / before:.3f}"
                bench.row("scaling", "time at 2 n over time at n", ratio, n=n, dtype=dtype, target="<= 2.05")
            before = middle
            del data
            if bench.device.type == "cuda":
                torch.cuda.empty_cache()


def memory(bench: Bench) -> None:
    """Peak memory beyond the inputs and dL/dx."""
    if bench.needs_cuda():
        return
    for dtype in ("float32", "bfloat16"):
        data = bench.inputs(1_048_576, dtype)
        call = partial(step, *data, "triton")
        call()
        extra, about = f"{bench.peak_mib(call, data[0]):.1f}", {"n": 1_048_576, "dtype": dtype}
        bench.row("memory", "peak beyond inputs and dL/dx", extra, "MiB", **about, target="<= 64")


PARTS: dict[str, Callable[[Bench], None]] = {
    part.__name__: part
    for part in (agrees, determinism, graph, bandwidth, latency, kernels, memory, scaling, small, sanitizer)
} | {
    f"tests-{name}": tests(f"test_{name}.py")
    for name in ("loss", "logits", "budget", "targets", "degenerate", "host", "pairs")
}
