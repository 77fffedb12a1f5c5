"""The kernels over the logits as compiled: values, bounds, races."""

import pytest
import torch

from adcorre_kernels.gpu import plan
from tests.kernels.launched.logits_tools import compare, draw
from tests.ptx.package import machine


@pytest.mark.parametrize(
    "target, dtype, n, num_classes, smoothing, weighted",
    [
        ("sm_80", torch.float32, 300, 7, 0.1, True),
        ("sm_90", torch.bfloat16, 70, 7, 0.0, False),
        ("sm_120", torch.float64, 20, 5, 0.1, True),
        ("sm_90", torch.float16, 9, 33, 0.1, True),
        ("sm_90", torch.float32, 3, 1024, 0.0, True),
        ("sm_80", torch.float32, 1, 1, 0.0, False),
    ],
)
def test_cross_entropy_is_torchs(target, dtype, n, num_classes, smoothing, weighted) -> None:
    logits, targets, weight, adjustment = draw(n, num_classes, dtype)
    with machine(target) as report:
        compare(logits, targets, weight if weighted else None, adjustment if weighted else None, smoothing)
    report.raise_if_any()


def test_several_tiles_and_programs_and_strides(monkeypatch) -> None:
    monkeypatch.setattr(plan, "LOGITS_PROGRAMS", 3)
    monkeypatch.setattr(plan, "LOGITS_TILE", 256)
    logits, targets, weight, adjustment = draw(260, 7, torch.float32)
    targets[5] = 7
    with machine("sm_90") as report:
        plan.plan_logits.cache_clear()
        compare(torch.cat((logits, logits), 1)[:, :7], targets.where(targets != 7, -100), weight, adjustment, 0.1)
    plan.plan_logits.cache_clear()
    report.raise_if_any()
