"""Half precision computes lengths from a Gram matrix; vectors that would lose bits are centered first."""

import pytest
import torch

from adcorre import torch_backend
from adcorre_kernels.gpu import gpus, plan
from tests.kernels.launched.tools import DEVICE, Problem, check, draw, launch, rounded, steps

SHAPE = (13, 6, 48, 3)


def test_these_shapes_take_the_gram_kernel() -> None:
    assert plan.sample_tile(*SHAPE[1:3], gpus.STREAMING["sm_80", 2], False, True).PK == 8


def assert_statistics(problem: Problem, x: torch.Tensor) -> None:
    flat = steps(problem, x.to(DEVICE))[0].cpu().double()
    expected = torch_backend.statistics(x.cpu().double(), problem.targets, SHAPE[3], -100, -1)
    torch.testing.assert_close(flat, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shift", [1.5, 30.0])
def test_some_vectors_are_far_from_centred(dtype, shift) -> None:
    """Two samples share a tile; one vector far from centered sends both through the second loop."""
    problem = draw(*SHAPE)
    problem.x[::3, 2] += shift
    check(problem, dtype)
    assert_statistics(*rounded(problem, dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_constant_vectors(dtype) -> None:
    problem = draw(*SHAPE)
    problem.x[2, 1] = 5.0
    problem.x[3] = -1.0
    problem.x[4] = 0.0
    check(problem, dtype)
    assert_statistics(*rounded(problem, dtype))


def test_far_vectors_in_one_order_of_all_samples(monkeypatch) -> None:
    monkeypatch.setattr(plan, "LOCAL_SAMPLES", 0)
    problem = draw(*SHAPE)
    problem.x[::4] += 20.0
    check(problem, torch.bfloat16)


def test_ignored_samples_are_not_read() -> None:
    problem = draw(*SHAPE)
    problem.targets[::3] = -100
    x = problem.x.bfloat16()
    x[::3] = torch.nan
    values, gradient = launch(problem, x.to(DEVICE))
    assert bool(values.isfinite().all())
    assert gradient[::3].abs().max() == 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e25])
def test_nan_and_overflowing_lengths_give_nan(value) -> None:
    problem = draw(*SHAPE)
    x = problem.x.bfloat16()
    x[3, 1, 2] = value
    values, _ = launch(problem, x.to(DEVICE))
    assert bool(values[0].isnan())
    assert bool(values[2].isnan())
