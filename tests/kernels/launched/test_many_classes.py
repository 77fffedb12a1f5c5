"""More classes than the terms kernel supports: statistics by the streaming kernels, terms by the torch backend."""

import pytest
import torch

from adcorre_kernels.gpu import terms_supported
from tests.kernels.launched.tools import DEVICE, assert_within_budget, draw, rounded
from tests.loss.tools import Problem, run


@pytest.mark.parametrize("target", [-1, "simplex"])
def test_the_public_function_uses_them(target) -> None:
    problem, x = rounded(draw(40, 3, 16, 60, between=target, mean=target), torch.float32)
    assert not terms_supported(60, 3, 16)
    on_device = Problem(x, *(part.to(DEVICE) for part in problem[1:4]), problem.options)
    values, gradient = run(on_device, "triton")
    assert_within_budget(problem, x, (values.cpu(), gradient.cpu()))
