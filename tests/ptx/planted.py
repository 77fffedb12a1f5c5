"""Faults planted in the package's kernels: what to run for each, and how it is detected.

A kernel is run by its operator alone (statistics, terms or gradient), on inputs that unmutated code made. Found: a
finding, an error of the machine, or an output outside of its budget: twice the error of plain float32 operations, plus
a few last bits, from the same operations in float64.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor

import ptx_machine
from adcorre import plain, torch_backend
from adcorre.backends import resolve_options
from adcorre.statistics import FlatStatistics
from adcorre_kernels import gpu
from adcorre_kernels.gpu import gpus, pair_launch, plan
from ptx_machine.mutate import candidates
from tests.kernels.launched import pair_tools, tools
from tests.loss.tools import draw, gradient_scale
from tests.ptx.package import FEW, LOCAL, PAIR_SHAPES, SHAPES, Case, PairCase, machine

OPERATORS = {
    "count_labels": "statistics", "place_samples": "statistics", "warp_statistics": "statistics",
    "gram_statistics": "statistics", "program_statistics": "statistics", "program_embedding": "statistics",
    "reduce_slots": "statistics", "terms_kernel": "terms", "warp_gradient": "gradient", "program_gradient": "gradient",
    "pair_values": "pair values",
    "pair_tables": "pair gradient", "pair_gradient": "pair gradient", "pair_project": "pair gradient",
}  # fmt: skip
EPS = torch.finfo(torch.float32).eps
_NAME = re.compile(r"\.entry\s+(\w+)")


class Output(NamedTuple):
    name: str
    truth: Tensor
    allowed: Tensor


class Step(NamedTuple):
    """One operator on one problem: how to run it, and the expected outputs."""

    operator: str
    x: Tensor
    again: Callable[[Tensor], tuple[Tensor, ...]]  # on this x
    outputs: list[Output]

    def run(self) -> tuple[Tensor, ...]:
        return self.again(self.x)


class Kernel(NamedTuple):
    """A compiled kernel: its text, its launch, where to plant faults, and how many warp instructions it runs."""

    name: str
    ptx: str
    threads: int
    places: list[int]
    executed: dict[int, int]
    most: int

    @property
    def code(self) -> str:
        """A digest of the code without source positions and debug sections, which contain the checkout's path."""
        text = re.sub(r"\n\s*\.(loc|file)[^\n]*|//[^\n]*|\$L__tmp\d+:", "", self.ptx.partition("\n\t.section")[0])
        return hashlib.sha256(text.encode()).hexdigest()[:8]


class Variant(NamedTuple):
    problem: tools.Problem
    x: Tensor
    ignored: int
    multiprocessors: int


def variants(case: Case) -> list[Variant]:
    """Problems that run the same compiled code."""
    n, k, d, num_classes = SHAPES[case.shape]
    term_targets = {"between": "simplex", "mean": 0.3, "embedding": 0.2 if k <= 16 else -1}
    term_targets = term_targets if case.batch == "other aims" else {}
    problems = []

    def add(
        n: int,
        change: Callable[[Tensor, Tensor], None] = lambda x, targets: None,
        ignored: int = -100,
        multiprocessors: int = FEW,
        classes: int = num_classes,
    ) -> None:
        problem = draw(n, k, d, classes, seed=len(problems), **term_targets)
        change(problem.x, problem.targets)
        problems.append(Variant(*tools.rounded(problem, case.dtype), ignored, multiprocessors))

    def plain_one(x: Tensor, targets: Tensor) -> None:
        targets[::3] = -100

    def absent(x: Tensor, targets: Tensor) -> None:
        targets[targets == 1] = 0

    def constant(x: Tensor, targets: Tensor) -> None:
        x[0], x[-1, -1], x[len(x) // 2] = 2.0, 0.0, -7.5

    def bad(x: Tensor, targets: Tensor) -> None:
        targets[-1], targets[0] = num_classes, -7

    def nearly_all_ignored(x: Tensor, targets: Tensor) -> None:
        targets[torch.arange(len(targets)) % 41 > 0] = -100

    def uneven(x: Tensor, targets: Tensor) -> None:
        """Embeddings of very different lengths, every other class absent, a class mean constant in one embedding."""
        targets[targets % 2 == 1] -= 1
        spread = 30.0 if case.dtype == torch.float16 else 1e15
        x[:, 0] *= spread
        x[:, 1] /= spread
        x[targets == 0, -1] = 3.0

    def last_class(x: Tensor, targets: Tensor) -> None:
        targets[:] = num_classes - 1

    if k * d < 500:
        add(301, ignored=0, multiprocessors=20)  # two programs sort these, one the others
    add(n, plain_one)
    add(2 * n + 9, absent, ignored=2)
    add(n + 3, constant, ignored=1, multiprocessors=1)
    add(n, bad)
    add(n + 1, last_class)
    add(1)
    if num_classes <= plan.COUNTED_CLASSES:
        add(5, classes=1)
        add(n, classes=plan.power_of_2(max(8, num_classes)))  # the maximum that the code supports
        add(530, nearly_all_ignored, multiprocessors=1)  # more labels than a program reads at a time
        add(530, nearly_all_ignored, multiprocessors=40)
    if not term_targets:
        most = plan.power_of_2(max(8, num_classes)) if num_classes <= plan.COUNTED_CLASSES else num_classes
        add(n + 5, uneven, classes=most)
    return problems


def steps_of(case: Case | PairCase) -> list[Step]:
    """The operators of every variant, on the inputs that unmutated code gives them."""
    if isinstance(case, PairCase):
        return pair_steps(case)
    results = []
    for problem, x, ignored, multiprocessors in variants(case):
        num_classes, (_, k, d) = problem.attention.shape[0], x.shape
        options = resolve_options(x, num_classes, "torch", *problem.options.values(), ignored)
        term_targets = (options.between_target, options.mean_target, options.embedding_target)
        targets, w = problem.targets, problem.attention

        local = 0 if SHAPES[case.shape][0] > LOCAL else 1 << 20  # one way to sort samples for all variants
        steps = 3 if multiprocessors == 1 else 1  # of a program that keeps nothing on chip
        settings = {
            "LOCAL_SAMPLES": local,
            "SORT_PROGRAMS": 2 if k * d < 500 else 1,
            "_chunk_of_samples": lambda n, multiprocessors, samples, _, steps=steps: steps * samples,
        }

        def statistics(
            x, t=targets, c=num_classes, i=ignored, aim=term_targets[2], settings=settings, count=multiprocessors
        ):  # type: ignore[no-untyped-def]
            with patched_plans(settings, count):
                return (gpu.statistics(x, t, c, i, aim),)

        with machine(case.target, lockstep=True):
            (flat,) = statistics(x)
        results.append(Step("statistics", x, statistics, _flat(x, targets, num_classes, ignored, term_targets[2])))
        if len(x) > 500:  # for sorting many labels; the other operators cover all else in it
            continue
        tables = torch_backend.terms(flat, w.float(), k, d, *term_targets)[1:]
        if gpu.terms_supported(num_classes, k, d):
            arguments = (flat, w.float(), k, d, *term_targets)
            run = lambda _, arguments=arguments: gpu.terms(*arguments)  # noqa: E731
            results.append(Step("terms", x, run, _terms(flat, w, k, d, term_targets)))
        upstream = torch.cat((problem.upstream, torch.zeros(1))).float()
        arguments = (x, targets, upstream, *tables, ignored, term_targets[2])

        def run_gradient(x, a=arguments[1:], settings=settings, count=multiprocessors):  # type: ignore[no-untyped-def]
            with patched_plans(settings, count):
                return (gpu.gradient(x, *a),)

        scale = gradient_scale(problem, ignore_index=ignored)
        results.append(Step("gradient", x, run_gradient, _gradient(arguments, scale)))
    return results


@contextmanager
def patched_plans(settings: dict[str, Any], multiprocessors: int) -> Iterator[None]:
    """Plans with other sizes, for a GPU of so many multiprocessors."""
    with (
        mock.patch.multiple(plan, **settings),
        mock.patch.object(gpus, "multiprocessors", return_value=multiprocessors),
    ):
        yield


def pair_steps(case: PairCase) -> list[Step]:
    """`pair_values` and `pair_gradient` of several problems that run the same compiled code."""
    results = []
    shape = PAIR_SHAPES[case.shape]
    sizes = {"plain": shape[0], "ignored": shape[0] + 100, "constant": shape[0] + 31, "bad label": shape[0]}
    for seed, (change, n) in enumerate(sizes.items()):
        problem = pair_tools.draw_pairs(n, *shape[1:], target=-0.2, seed=seed)
        if change == "ignored":
            problem.targets[::3] = -100
        if change == "constant":
            problem.x[0], problem.x[n // 2] = 2.0, 0.0
        scale = 1.0
        if change == "bad label":
            problem.targets[-1], scale = shape[3], float("nan")
        truth, unit = pair_tools.truth_of(problem), pair_tools.UNIT[case.precision]
        assert change == "bad label" or truth.nearest > 2 * unit
        x, targets, attention = problem[:3]
        options = (problem.target, problem.ignore_index, case.precision)
        compute = functools.partial(pair_launch.pair_values, complete=problem.complete)
        compute_gradient = functools.partial(pair_launch.pair_gradient, complete=problem.complete)

        def values(x: Tensor, targets=targets, attention=attention, options=options, of=compute) -> tuple[Tensor, ...]:
            return (of(x, targets, attention, *options, 0, len(x)),)

        rows = (0, n // 3, n) if change == "constant" else (0, n)

        def gradient(  # type: ignore[no-untyped-def]
            x: Tensor,
            targets=targets,
            attention=attention,
            options=options,
            scale=scale,
            rows=rows,
            of=compute_gradient,
        ):
            return tuple(
                of(x, targets, attention, torch.tensor(scale), *options, start, stop)
                for start, stop in itertools.pairwise(rows)
            )

        floor = 4 * EPS * truth.gradient_unit.amax(-1, keepdim=True)
        outputs = [
            Output("values", scale * truth.values, unit * truth.value_unit + 2 * EPS * truth.values),
            Output("dx", scale * truth.gradient, unit * truth.gradient_unit + floor + 1e-30),
        ]
        results += [Step("pair values", x, values, outputs[:1]), Step("pair gradient", x, gradient, outputs[1:])]
    return results


def _flat(x: Tensor, targets: Tensor, num_classes: int, ignored: int, aim: float) -> list[Output]:
    truth, single = (
        plain.plain_statistics(v, targets, num_classes, ignored, aim).double() for v in (x.double(), x.float())
    )
    k, d = x.shape[1:]
    sizes = [num_classes * k * d] * 2 + [num_classes * k, num_classes, num_classes, 1]
    parts = zip(("S", "M", "A", "|z|^2", "count", "ED"), truth.split(sizes), single.split(sizes), strict=True)
    return [Output(name, a, _around(a, b, 8 if name != "count" else 0)) for name, a, b in parts]


def _around(truth: Tensor, single: Tensor, last_bits: float, scale: Tensor | None = None) -> Tensor:
    """Twice float32's worst error, and some last bits of the largest number (or of `scale`)."""
    error = (single - truth).abs().nan_to_num(0).max()
    scale = truth.abs().nan_to_num(0).max() if scale is None else scale
    return (2 * error + last_bits * EPS * scale).expand(truth.shape)


def _terms(flat: Tensor, w: Tensor, k: int, d: int, term_targets: tuple[float, float, float]) -> list[Output]:
    truth = torch_backend.terms(flat.double(), w.float().double(), k, d, *term_targets)
    single = [x.double() for x in torch_backend.terms(flat, w.float(), k, d, *term_targets)]
    outputs = [Output("values", truth[0], 2 * (single[0] - truth[0]).abs().nan_to_num(0) + 8 * EPS)]
    c = len(w)
    statistics = FlatStatistics(flat.double(), c, k, d, term_targets[2])
    lengths = torch.linalg.vector_norm(statistics.centred_sum, dim=-1)
    varying = lengths > 32 * EPS * statistics.norm_sum
    steepest = (1 / lengths[varying]).max() if bool(varying.any()) else torch.zeros(())
    scales = (None, 2 / (k * c) * steepest, None)  # H: the remainder of h after its projection may be zero
    for name, a, b, scale in zip(("G", "H", "2 / n k^2"), truth[1:], single[1:], scales, strict=True):
        outputs.append(Output(name, a, _around(a, b, 16, scale)))
    return outputs


def _gradient(arguments: tuple, scale: Tensor) -> list[Output]:
    x, targets, *given, ignored, aim = arguments
    wide = [tensor.double() for tensor in given]
    truth = torch_backend.embedding_gradient(x.double(), targets, *wide, ignored, aim)
    single = torch_backend.embedding_gradient(x.float(), targets, *given, ignored, aim).double()
    half = torch.finfo(x.dtype)
    rounding = (half.eps / 2 * truth.abs() + half.smallest_normal * half.eps) * (x.dtype != torch.float32)
    return [Output("dx", truth, _around(truth, single, 16, scale) + 1.01 * rounding)]


def wrong_output(got: Sequence[Tensor], outputs: list[Output]) -> str:
    """The first output that is outside of its budget, or ""."""
    flat = torch.cat([x.reshape(-1) for x in got]).double()
    for output, part in zip(outputs, flat.split([o.truth.numel() for o in outputs]), strict=True):
        truth = output.truth.reshape(-1)
        good = ((part - truth).abs() <= output.allowed.reshape(-1)) | (part.isnan() & truth.isnan())
        if not bool(good.all()):
            return output.name
    return ""


def kernels_of(case: Case | PairCase, steps: list[Step]) -> dict[str, Kernel]:
    """The case's kernels, from runs of unmutated code, which must be right."""
    texts: dict[str, str] = {}
    counts: dict[str, list[ptx_machine.LaunchCounts]] = {}

    is_first_variant: list[bool] = []  # for a step's launches: do they run the kernel's first variant?

    def keep(ptx: str) -> str:
        match = _NAME.search(ptx)
        assert match is not None
        is_first_variant.append(texts.setdefault(match[1], ptx) == ptx)
        return ptx

    for number, step in enumerate(steps):
        is_first_variant.clear()
        with machine(case.target, number, rewrite=keep) as report:
            wrong = wrong_output(step.run(), step.outputs)
        report.raise_if_any()
        assert not wrong, f"{case}: {wrong} of problem {number}"
        for launch, first in zip(report.counts, is_first_variant, strict=True):
            if first:
                counts.setdefault(launch.kernel, []).append(launch)
    results = {}
    for name, ptx in texts.items():
        first = counts[name][0]
        together = [
            ptx_machine.Executed(*at[0][:2], sum(x.times for x in at), sum(x.active for x in at))
            for at in zip(*(launch.by_instruction for launch in counts[name]), strict=True)
        ]
        places = candidates(ptx, together, 32 * first.num_warps, 1 << 17)
        most = max(sum(launch.instructions.values()) for launch in counts[name])
        times = {at: ran.times for at, ran in enumerate(together)}
        results[name] = Kernel(name, ptx, 32 * first.num_warps, places, times, most)
    most = max(kernel.most for kernel in results.values())  # a step's other kernels run under the same limit
    return {name: kernel._replace(most=most) for name, kernel in results.items()}


def verdict(case: Case | PairCase, steps: list[Step], kernel: Kernel, changed: str, seeds: int = 1) -> str:
    """How the changed text is detected, or ""."""

    def rewrite(ptx: str) -> str:
        return changed if ptx == kernel.ptx else ptx

    for seed in range(seeds):
        for number, step in enumerate(steps):
            if step.operator != OPERATORS[kernel.name]:
                continue
            try:
                with machine(case.target, 17 * seed + number, rewrite=rewrite, limit=4 * kernel.most) as report:
                    got = step.run()
            except ptx_machine.MachineError as error:
                if not report.findings:
                    return f"found: error: {str(error)[:50]}"
            if report.findings:
                return f"found: {report.findings[0].kind}"
            if wrong := wrong_output(got, step.outputs):
                return f"found: output {wrong}"
    return ""


def machine_code(ptx: str) -> bytes | None:
    """The output of ptxas; None if it rejects the text."""
    tools_at = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    arch = re.search(r"\.target\s+(\w+)", ptx)
    assert arch is not None
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder) / "k.ptx", Path(folder) / "k.cubin"
        source.write_text(re.sub(r"\n\s*\.loc[^\n]*|\n\s*\.section[\s\S]*", "", ptx))
        newer = tools_at / "ptxas-blackwell"
        for ptxas in [tools_at / "ptxas", newer] if newer.exists() else [tools_at / "ptxas"]:
            done = subprocess.run([ptxas, f"-arch={arch[1]}", source, "-o", cubin], capture_output=True, check=False)
            if done.returncode == 0:
                dump = subprocess.run([tools_at / "cuobjdump", "-sass", cubin], capture_output=True, check=False)
                return dump.stdout
    return None
