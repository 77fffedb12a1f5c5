"""The shared tests of the whole loss over the backends of a CPU; the operators of the Numba kernels."""

import itertools

import pytest
import torch

from adcorre import AdaptiveAttentionMap
from adcorre_kernels import cpu
from tests.loss.tools import LINEAR
from tests.whole_loss import *  # noqa: F403
from tests.whole_loss import C, draw


@pytest.fixture(params=LINEAR)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def test_operators() -> None:
    pytest.importorskip("numba")
    ops = torch.ops.adcorre_cpu
    logits, x, targets = draw(9)
    attention = AdaptiveAttentionMap(C)
    settings = cpu.Settings(label_smoothing=0.1)
    ring = (attention.counts, attention.position)
    weight = torch.rand(C)
    samples = (x, logits, targets, weight, None)
    torch.library.opcheck(ops.loss.default, (*samples, None, *ring, None, 0.5, True, True, *settings))
    torch.library.opcheck(ops.loss.default, (*samples, weight, None, None, weight[0], 0.0, False, False, *settings))
    torch.library.opcheck(ops.sample_terms.default, (x, targets, weight, *settings))
    flat, (_, ce) = cpu.statistics(x, targets, C, -100, -1.0), cpu.logits_sums(logits, targets, None, None, 0.1, -100)
    torch.library.opcheck(ops.loss_from_sums.default, (flat, ce, weight, None, 0.5, 2.0, 3, 8, *settings))
    *_, tables = cpu.loss_from_sums(flat, ce, weight, None, 0.5, 2.0, 3, 8, settings)
    up = torch.ones(())
    for given, needs_x in itertools.product((logits, None), (True, False)):
        rest = (targets, weight, None, up, up, up, tables, needs_x, C, *settings)
        torch.library.opcheck(ops.gradients.default, (x, given, *rest))
