"""The package's kernels in the machine: drawn problems, and a covering set of what they may be launched with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

import ptx_machine
from adcorre import functional
from adcorre_kernels.gpu import gpus, loss, plan, support
from tests.kernels.launched import pair_tools, tools
from tests.loss.tools import Problem, draw
from tests.loss.tools import run as run_on_cpu

FEW = 4  # processors: small grids
LOCAL = 30  # up to this many samples, programs sort by themselves; beyond, separate launches sort once
# n, k, d, C, by the kernels that take them.
SHAPES = {
    "narrow, the paper's": (20, 7, 256, 7),
    "narrow, aligned": (21, 3, 64, 6),
    "gram, far": (21, 6, 48, 3),
    "narrow, odd d": (33, 3, 17, 5),
    "narrow, k = 16": (9, 16, 100, 3),
    "narrow, the least": (9, 1, 2, 3),
    "narrow, several tiles": (13, 4, 300, 2),
    "narrow, one sample": (1, 2, 32, 3),
    "narrow, absent classes": (6, 3, 16, 32),
    "narrow, sorted": (40, 3, 20, 33),
    "wide, k = 9": (6, 9, 300, 3),
    "wide, k > 16": (3, 20, 130, 3),
    "wide, counted": (31, 9, 130, 3),
    "wide, long rows": (4, 3, 1024, 2),
    "wide, sorted": (5, 9, 130, 33),
    "blocks, long rows": (3, 3, 4096, 2),
    "blocks, the largest k": (3, 64, 72, 2),
    "none": (0, 3, 8, 4),
}
PAIR_SHAPES = {
    "kept rows": (60, 2, 256, 7),
    "odd d": (33, 3, 17, 5),
    "several tiles": (140, 1, 24, 3),
    "rows in blocks": (9, 1, 300, 3),
    "one sample": (1, 2, 8, 3),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TARGETS = ("sm_80", "sm_90", "sm_120")
BATCHES = ("plain", "strides", "ignored", "bad label", "other aims")
PAIR_TARGETS = ("sm_80", "sm_120")  # the machine lacks wgmma and tcgen05, which Triton emits for sm_90 and sm_100
PAIR_BATCHES = ("plain", "strides", "ignored", "bad label", "complete", "some rows", "bfloat16")


class Case(NamedTuple):
    shape: str
    dtype: torch.dtype
    target: str
    batch: str

    def __str__(self) -> str:
        return f"{self.shape}-{str(self.dtype)[6:]}-{self.target}-{self.batch}"


class PairCase(NamedTuple):
    """FD over all pairs of samples."""

    shape: str
    precision: str
    target: str
    batch: str

    def __str__(self) -> str:
        return f"pairs, {self.shape}-{self.precision}-{self.target}-{self.batch}"


def covering_set() -> list[Case]:
    """Every pair of values occurs."""
    rows = [
        Case(shape, DTYPES[(i + j) % 3], TARGETS[(i + 2 * j + j // 3) % 3], batch)
        for (i, shape), (j, batch) in itertools.product(enumerate(SHAPES), enumerate(BATCHES))
    ]
    return [Case(*row) for row in complete(rows, FACTORS)]


def pair_covering_set() -> list[PairCase]:
    rows = [
        PairCase(shape, pair_tools.PRECISIONS[(i + j) % 3], PAIR_TARGETS[(i + j) % 2], batch)
        for (i, shape), (j, batch) in itertools.product(enumerate(PAIR_SHAPES), enumerate(PAIR_BATCHES))
    ]
    return [PairCase(*row) for row in complete(rows, PAIR_FACTORS)]


FACTORS: tuple[Sequence, ...] = (tuple(SHAPES), DTYPES, TARGETS, BATCHES)
PAIR_FACTORS: tuple[Sequence, ...] = (tuple(PAIR_SHAPES), pair_tools.PRECISIONS, PAIR_TARGETS, PAIR_BATCHES)


def complete(rows: Sequence[tuple], factors: tuple[Sequence, ...]) -> list[tuple]:
    """The rows, and more for the pairs of values that they lack."""
    rows = list(rows)
    for a, b in itertools.combinations(range(len(factors)), 2):
        for pair in itertools.product(factors[a], factors[b]):
            if not any((row[a], row[b]) == pair for row in rows):
                values = [values[len(rows) % len(values)] for values in factors]
                values[a], values[b] = pair
                rows.append(tuple(values))
    return rows


@contextmanager
def machine(target: str, seed: int = 0, **options: object) -> Iterator[ptx_machine.Report]:
    """`ptx_machine.target` with the package told that CPU tensors can be launched; fresh buffers hold NaN."""
    before = support.cpu_tensors, gpus.multiprocessors, plan.LOCAL_SAMPLES, tools.INTERPRETED, gpus.family
    remembered = (plan.plan_statistics, plan.plan_gradient, plan.plan_terms, loss._plan, loss._terms_options)
    support.cpu_tensors, gpus.multiprocessors, plan.LOCAL_SAMPLES = True, lambda device: FEW, LOCAL
    tools.INTERPRETED = False
    gpus.family = lambda device: target
    torch.use_deterministic_algorithms(True, warn_only=True)
    for function in remembered:
        function.cache_clear()
    remembered_calls, functional.remembered_calls = functional.remembered_calls, {}
    try:
        with ptx_machine.target(target, seed=seed, **options) as report:
            yield report
    finally:
        support.cpu_tensors, gpus.multiprocessors, plan.LOCAL_SAMPLES, tools.INTERPRETED, gpus.family = before
        functional.remembered_calls = remembered_calls
        torch.use_deterministic_algorithms(False)
        for function in remembered:
            function.cache_clear()


def problem_of(case: Case, seed: int = 0) -> tuple[Problem, Tensor]:
    """A seed above 0: other numbers, and more samples, which the same compiled kernels take."""
    n, k, d, num_classes = SHAPES[case.shape]
    n += seed * (n + 7)
    term_targets = {}
    if case.batch == "other aims":
        term_targets = {"between": "simplex", "mean": 0.3, "embedding": 0.2 if k <= 16 else -1}
    inputs = draw(n, k, d, num_classes, seed=seed, **term_targets)
    if case.shape == "gram, far":
        inputs.x[::4] += 20.0
    problem, x = tools.rounded(inputs, case.dtype)
    if case.batch == "ignored" and n > 1:
        problem.targets[::3] = -100
    if case.batch == "bad label" and n:
        problem.targets[n // 2] = num_classes + 2
    return problem, strided(x) if case.batch == "strides" else x


def strided(x: Tensor) -> Tensor:
    """The same numbers as a slice of (k, n, d + 5)."""
    n, k, d = x.shape
    wide = x.new_full((k, n, d + 5), float("nan"))
    wide[:, :, :d] = x.transpose(0, 1)
    return wide[:, :, :d].transpose(0, 1)


class Outcome(NamedTuple):
    """What one case did: launches' counts, and errors as parts of the largest true number (NaN: no number was due)."""

    report: ptx_machine.Report
    value_error: float
    gradient_error: float

    def row(self, case: Case | PairCase) -> list[object]:
        counts = self.report.counts
        kernels = " ".join(dict.fromkeys(launch.kernel for launch in counts))
        executed = sum(sum(launch.instructions.values()) for launch in counts)
        barriers = sum(launch.barriers for launch in counts)
        kind = case.precision if isinstance(case, PairCase) else str(case.dtype)[6:]
        errors = [f"{error:.1e}" for error in self[1:]]
        shape = (PAIR_SHAPES if isinstance(case, PairCase) else SHAPES)[case.shape]
        return [case.shape, *shape, kind, case.target, case.batch, kernels, executed, barriers, *errors]


COLUMNS = ("shape", "n", "k", "d", "classes", "dtype or precision", "target", "batch", "kernels", "warp instructions",
           "barriers", "value error", "gradient error")  # fmt: skip


def check(case: Case, seed: int = 0, **options: object) -> Outcome:
    """Within the error budget of float64, and no finding."""
    problem, x = problem_of(case)
    bad = case.batch == "bad label" and len(x) > 0
    with machine(case.target, seed, **options) as report:
        got = tools.launch(problem, x, validate=False)
        report.raise_if_any()
        if bad:
            assert bool(got[0].isnan().all())
            assert bool(got[1].isnan().all())
            return Outcome(report, float("nan"), float("nan"))
        tools.assert_within_budget(problem, x, got)
    truth = run_on_cpu(problem, "reference")
    return Outcome(report, _apart(got[0], truth[0]), _apart(got[1], truth[1]))


def _apart(got: Tensor, truth: Tensor) -> float:
    largest = float(truth.abs().max()) if truth.numel() else 0.0
    return float((got - truth).abs().max()) / largest if largest else 0.0


def pair_problem_of(case: PairCase, seed: int = 0) -> tuple[pair_tools.Pairs, tuple[int, int]]:
    """And the rows whose values and gradient are asked for."""
    problem = pair_tools.draw_pairs(*PAIR_SHAPES[case.shape], -0.2, case.batch == "complete", seed)
    n = len(problem.x)
    if case.batch == "ignored" and n > 1:
        problem.targets[::3] = -100
    if case.batch == "bad label":
        problem.targets[n // 2] = -7
    if case.batch == "strides":
        problem = problem._replace(x=strided(problem.x))
    if case.batch == "bfloat16":
        problem = problem._replace(x=problem.x.bfloat16())
    return problem, (n // 3, n - n // 4) if case.batch == "some rows" else (0, n)


def check_pairs(case: PairCase, seed: int = 0, **options: object) -> Outcome:
    problem, rows = pair_problem_of(case)
    bad = case.batch == "bad label"
    with machine(case.target, seed, **options) as report:
        got = pair_tools.launch_pairs(problem, case.precision, scale=float("nan") if bad else 1.0, rows=rows)
        report.raise_if_any()
        if bad:
            assert bool(got[0].isnan().all())
            assert bool(got[1].isnan().all())
            return Outcome(report, float("nan"), float("nan"))
        pair_tools.assert_pairs_within_budget(problem, case.precision, got, slice(*rows))
    truth = pair_tools.truth_of(problem, rows=slice(*rows))
    return Outcome(report, _apart(got[0], truth.values), _apart(got[1], truth.gradient))
