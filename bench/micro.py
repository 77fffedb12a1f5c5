"""Micro-benchmarks on a CPU, with pytest-benchmark: `python -m pytest bench/micro.py --benchmark-autosave`."""

from typing import Any

import pytest
import torch

from adcorre import AdaptiveAttentionMap, AdCorreLoss
from bench.loss import Shape, Step, make_inputs
from bench.rivals import CONTENDERS, ours_on

CPU = torch.device("cpu")


@pytest.mark.parametrize("n", [60, 600, 4096])
@pytest.mark.parametrize("name", [*ours_on("cpu"), "factored"])
def test_terms(benchmark: Any, name: str, n: int) -> None:
    x, targets, attention = make_inputs(Shape(n=n), CPU, 0)
    benchmark(Step(CONTENDERS[name], [x], targets, attention))


@pytest.mark.parametrize("n", [60, 600])
@pytest.mark.parametrize("name", ours_on("cpu"))
def test_whole_loss(benchmark: Any, name: str, n: int) -> None:
    x, targets, _ = make_inputs(Shape(n=n), CPU, 0)
    logits = torch.randn(n, 7, requires_grad=True)
    loss = AdCorreLoss(7, backend=name)
    benchmark(lambda: torch.autograd.grad(loss(logits, x, targets).loss, (logits, x)))


def test_attention_map(benchmark: Any) -> None:
    attention = AdaptiveAttentionMap(7)
    logits, targets = torch.randn(600, 7), torch.randint(0, 7, (600,))
    benchmark(lambda: attention(logits, targets))
