"""The package's kernels in the machine: drawn problems, and a covering set of what they may be launched with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

import ptx_machine
from adcorre_kernels import plan, support
from tests.kernels.launched import tools
from tests.loss.tools import Problem, draw

FEW = 4  # processors: small grids
# n, k, d, C, by what takes them.
SHAPES = {
    "narrow, the paper's": (20, 7, 256, 7),
    "narrow, odd d": (33, 3, 17, 5),
    "narrow, k = 16": (9, 16, 100, 3),
    "narrow, the least": (9, 1, 2, 3),
    "narrow, several tiles": (13, 4, 300, 2),
    "narrow, one sample": (1, 2, 32, 3),
    "narrow, absent classes": (6, 3, 16, 32),
    "narrow, sorted": (40, 3, 20, 33),
    "wide, k = 9": (6, 9, 300, 3),
    "wide, k > 16": (3, 20, 130, 3),
    "wide, long rows": (4, 3, 1024, 2),
    "wide, sorted": (5, 9, 130, 33),
    "blocks, long rows": (3, 3, 4096, 2),
    "blocks, the largest k": (3, 64, 72, 2),
    "none": (0, 3, 8, 4),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TARGETS = ("sm_80", "sm_90", "sm_120")
BATCHES = ("plain", "strides", "ignored", "bad label", "other aims")


class Case(NamedTuple):
    shape: str
    dtype: torch.dtype
    target: str
    batch: str

    def __str__(self) -> str:
        return f"{self.shape}-{str(self.dtype)[6:]}-{self.target}-{self.batch}"


def covering_set() -> list[Case]:
    """Every pair of values occurs. Greedy, in a fixed order: shapes by batches, the other two rotated along."""
    cases = []
    for (i, shape), (j, batch) in itertools.product(enumerate(SHAPES), enumerate(BATCHES)):
        cases.append(Case(shape, DTYPES[(i + j) % 3], TARGETS[(i + 2 * j + j // 3) % 3], batch))
    factors = (tuple(SHAPES), DTYPES, TARGETS, BATCHES)
    for a, b in itertools.combinations(range(4), 2):
        for pair in itertools.product(factors[a], factors[b]):
            if not any((case[a], case[b]) == pair for case in cases):
                values: list = [factors[f][len(cases) % len(factors[f])] for f in range(4)]
                values[a], values[b] = pair
                cases.append(Case(*values))
    return cases


@contextmanager
def machine(target: str, seed: int = 0, **options: object) -> Iterator[ptx_machine.Report]:
    """`ptx_machine.target` with the package told that CPU tensors can be launched; fresh buffers hold NaN."""
    before = support.cpu_tensors, plan.processors, tools.INTERPRETED
    remembered = (plan.of_statistics, plan.of_gradient, plan.of_terms)
    support.cpu_tensors, plan.processors, tools.INTERPRETED = True, lambda device: FEW, False
    torch.use_deterministic_algorithms(True, warn_only=True)
    for function in remembered:
        function.cache_clear()
    try:
        with ptx_machine.target(target, seed=seed, **options) as report:
            yield report
    finally:
        support.cpu_tensors, plan.processors, tools.INTERPRETED = before
        torch.use_deterministic_algorithms(False)
        for function in remembered:
            function.cache_clear()


def problem_of(case: Case, seed: int = 0) -> tuple[Problem, Tensor]:
    """A seed above 0: other numbers, and more samples, which the same compiled kernels take."""
    n, k, d, num_classes = SHAPES[case.shape]
    n += seed * (n + 7)
    aims = {}
    if case.batch == "other aims":
        aims = {"between": "simplex", "mean": 0.3, "embedding": 0.2 if k <= 16 else -1}
    problem, x = tools.rounded(draw(n, k, d, num_classes, seed=seed, **aims), case.dtype)
    if case.batch == "ignored" and n > 1:
        problem.targets[::3] = -100
    if case.batch == "bad label" and n:
        problem.targets[n // 2] = num_classes + 2
    if case.batch == "strides":  # a slice of (k, n, d + 5)
        wide = x.new_full((k, n, d + 5), float("nan"))
        wide[:, :, :d] = x.transpose(0, 1)
        x = wide[:, :, :d].transpose(0, 1)
    return problem, x


def check(case: Case, seed: int = 0, **options: object) -> ptx_machine.Report:
    """Within the error budget of float64, and no finding."""
    problem, x = problem_of(case)
    bad = case.batch == "bad label" and len(x) > 0
    with machine(case.target, seed, **options) as report:
        got = tools.launch(problem, x, validate=False)
    report.raise_if_any()
    if bad:
        assert bool(got[0].isnan().all())
        assert bool(got[1].isnan().all())
    else:
        tools.assert_within_budget(problem, x, got)
    return report
