"""The shared tests of the whole loss over the backends of a CPU; the operators of the Numba kernels."""

import pytest
import torch

from adcorre_kernels import cpu
from tests.loss.tools import LINEAR
from tests.whole_loss import *  # noqa: F403
from tests.whole_loss import check_operators


@pytest.fixture(params=LINEAR)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def test_opcheck() -> None:
    pytest.importorskip("numba")
    check_operators(cpu, torch.ops.adcorre_cpu)
