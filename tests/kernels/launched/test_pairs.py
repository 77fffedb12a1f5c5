"""FD over all pairs against n x n matrices in float64: shapes, precisions, rows, degenerate batches."""

import math

import pytest
import torch

from adcorre_kernels import gpu
from adcorre_kernels.gpu import gpus, pair_plan
from tests.kernels.launched.pair_tools import (
    PRECISIONS,
    Pairs,
    assert_pairs_within_budget,
    assert_values_within_budget,
    draw_pairs,
    launch_pairs,
    truth_of,
)
from tests.kernels.launched.tools import DEVICE, INTERPRETED

# n, k, d, C.
SHAPES = [
    (60, 2, 256, 7),  # the paper's d: the longest row that stays on chip
    (33, 3, 17, 5),  # odd d
    (200, 1, 24, 3),  # two tiles a side
    (9, 2, 300, 3),  # a row in blocks, the last one partly full
    (5, 1, 3, 3),
]


def check(problem: Pairs, precision: str) -> None:
    assert_pairs_within_budget(problem, precision, launch_pairs(problem, precision))


@pytest.mark.sample(3)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_pairs(shape, precision) -> None:
    check(draw_pairs(*shape, target=-0.2), precision)
    check(draw_pairs(*shape, target=0.3, complete=shape[2] >= 16, seed=1), precision)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in(dtype) -> None:
    problem = draw_pairs(20, 2, 64, 4, target=0.1)
    check(problem._replace(x=problem.x.to(dtype)), "medium")
    check(problem._replace(x=problem.x.to(dtype)), "highest")


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[pytest.mark.slow] if name in ("sm_100", "gfx942") else []) for name in gpus.FAMILIES],
)
def test_tiles_of_every_family(family, monkeypatch) -> None:
    monkeypatch.setattr(gpus, "family", lambda _: family)
    for precision in ("highest", "medium"):
        check(draw_pairs(140, 1, 100, 3, target=-0.2, complete=precision == "medium"), precision)
    check(draw_pairs(70, 1, 270, 3, target=-0.2), "highest")


@pytest.mark.parametrize("n", [640, 2000, pytest.param(700, marks=pytest.mark.slow)])
def test_blocks_of_tiles(n) -> None:
    """An odd and an even number of tiles per side; several tiles per block."""
    problem = draw_pairs(n, 1, 8, 4, target=0.0)
    options = (0.0, -100, "highest", 0, n)
    plan = pair_plan.plan_pairs(n, 1, 8, "highest", 0.0, False, 0, n, "sm_80")
    assert (plan.tiles, plan.group) == {640: (5, 1), 700: (6, 1), 2000: (8, 2)}[n]
    values = gpu.pair_values(*(part.to(DEVICE) for part in problem[:3]), *options)
    assert_values_within_budget(truth_of(problem), "highest", values.cpu())


@pytest.mark.parametrize("target", [1.0, -1.0])
def test_targets_at_minus_one_and_one(target) -> None:
    generator = torch.Generator().manual_seed(3)
    problem = draw_pairs(40, 2, 32, 4, target=target, seed=2)
    check(problem._replace(x=torch.randn(40, 2, 32, generator=generator)), "highest")


@pytest.mark.sample(3)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("likeness", [0.0, 1e-3, 1.0])
def test_a_single_correlation(likeness, precision) -> None:
    """One pair, so that no other pair's error hides its own. Equal, nearly equal and different vectors."""
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(1, 1, 256, generator=generator) + likeness * torch.randn(2, 1, 256, generator=generator)
        check(Pairs(x, torch.arange(2), torch.tensor([0.3, 0.9]), -0.5), precision)


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_ranges_of_rows(complete, precision) -> None:
    """Ranges of rows: values add up, gradients are rows of the whole gradient. Aligned, unaligned, empty, one row."""
    problem = draw_pairs(300, 1, 20, 3, target=-0.2, complete=complete)
    whole = launch_pairs(problem, precision)
    total = torch.zeros(2)
    for rows in ((0, 128), (128, 201), (201, 201), (201, 202), (202, 300)):
        values, gradient = launch_pairs(problem, precision, rows=rows)
        assert_pairs_within_budget(problem, precision, (values, gradient), slice(*rows))
        assert gradient.shape == (rows[1] - rows[0], 1, 20)
        size = 1e-6 * float(whole[1].abs().max())  # an entry may be the remainder of terms that cancel
        torch.testing.assert_close(gradient, whole[1][slice(*rows)], rtol=1e-5, atol=size)
        total += values
    torch.testing.assert_close(total, whole[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("n, num_classes", [(0, 3), (1, 3), (6, 1)])
def test_without_pairs(n, num_classes) -> None:
    values, gradient = launch_pairs(draw_pairs(n, 2, 8, num_classes, target=0.3), "highest")
    assert values.tolist() == [0, 0]
    assert gradient.shape == (n, 2, 8)
    assert not gradient.any()


@pytest.mark.parametrize("complete", [False, True])
def test_ignored_samples_touch_nothing(complete) -> None:
    """One of them holds NaN; ignore_index is within range."""
    problem = draw_pairs(40, 2, 20, 4, target=-0.2, complete=complete)
    problem.targets[problem.targets == 2] = 1
    problem.targets[::5] = 2
    problem = problem._replace(ignore_index=2)
    expected = launch_pairs(problem, "highest")
    problem.x[5] = torch.nan
    got = launch_pairs(problem, "highest")
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])
    assert not got[1][::5].any()
    problem.x[5] = 0.0
    assert_pairs_within_budget(problem, "highest", got)
    problem.targets.fill_(2)
    values, gradient = launch_pairs(problem, "highest")
    assert values.tolist() == [0, 0]
    assert not gradient.any()


@pytest.mark.parametrize("bad", [4, -1, 2**40, -(2**40)])
def test_a_bad_label_makes_everything_nan(bad) -> None:
    problem = draw_pairs(20, 2, 20, 4, target=-0.2)
    problem.targets[3] = bad
    values, gradient = launch_pairs(problem, "highest", scale=math.nan)
    assert bool(values.isnan().all())
    assert bool(gradient.isnan().all())


@pytest.mark.parametrize("complete", [False, True])
def test_constant_vectors_have_no_direction(complete) -> None:
    """z = 0: |Phi - 0| counts, the gradient is 0."""
    problem = draw_pairs(12, 2, 10, 3, target=-0.2, complete=complete)
    problem.x[2, 1] = 5.0
    problem.x[3] = -1.0
    problem.x[4] = 0.0
    problem.x[5, 0] = 3 * (1 + 2.0**-23 * torch.arange(10).remainder(2))  # constant up to rounding
    got = launch_pairs(problem, "highest")
    assert_pairs_within_budget(problem, "highest", got)
    for own in (got[1][2, 1], got[1][3], got[1][4], got[1][5, 0]):
        assert not own.any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_nan_and_overflowing_lengths_give_nan(value) -> None:
    """NaN, and squares that overflow float32, give NaN."""
    problem = draw_pairs(12, 2, 10, 3, target=-0.2)
    problem.x[3, 1, 2] = value
    values, gradient = launch_pairs(problem, "highest")
    assert bool(values.isnan().all())
    assert bool(gradient[3, 1].isnan().all())


def test_kinks_have_subgradient_zero() -> None:
    """Correlations exactly at the target 0 or 1, at every precision."""
    rows = torch.tensor([[1.0, -1, 0, 0], [0, 0, 1, -1], [1, -1, 0, 0], [1, -1, 1, -1]])
    problem = Pairs(rows[:, None], torch.arange(4), torch.ones(4), 0.0)
    for precision in PRECISIONS:
        values, gradient = launch_pairs(problem, precision)
        truth = truth_of(problem)
        torch.testing.assert_close(values, truth.values.float(), rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(gradient, truth.gradient.float(), rtol=2e-2, atol=1e-2)
        for own in (0, 2):  # the same vector, orthogonal to 1: only sample 3 pulls
            assert gradient[own].abs().max() > 0.1
    alone = Pairs(rows[:2, None], torch.arange(2), torch.ones(2), 0.0)
    values, gradient = launch_pairs(alone, "highest")
    assert values.tolist() == [0, 0]
    assert not gradient.any()


@pytest.mark.parametrize("largest", [1e-30, 1.0, 1e6, 1e30])
def test_weights_of_any_size(largest) -> None:
    problem = draw_pairs(20, 1, 16, 4, target=-0.2)
    attention = torch.tensor([1.0, 0.3, 1e-6, 0.0]) * largest
    problem = problem._replace(attention=attention)
    values, gradient = launch_pairs(problem, "highest", scale=1 / largest)
    scaled = problem._replace(attention=attention / largest)
    assert_pairs_within_budget(scaled, "highest", (values / torch.tensor([largest, 1.0]), gradient))


def test_no_weight_at_all() -> None:
    problem = draw_pairs(10, 1, 16, 2, target=-0.2)._replace(attention=torch.zeros(2))
    values, gradient = launch_pairs(problem, "highest")
    assert values[0] == 0
    assert values[1] > 0
    assert not gradient.any()


def test_thousands_of_classes() -> None:
    check(draw_pairs(30, 1, 16, 5000, target=-0.2), "highest")


@pytest.mark.slow
@pytest.mark.sample(5)
@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize(
    "shape", [(150, 7, 256, 7), (40, 3, 4096, 2), (20, 20, 130, 4), (300, 2, 700, 5), (3, 64, 72, 2)]
)
def test_every_shape(shape, complete) -> None:
    for precision in ("highest",) if INTERPRETED else PRECISIONS:  # the interpreter takes minutes for each
        check(draw_pairs(*shape, target=-0.2, complete=complete, seed=4), precision)
