"""The whole loss as compiled: values, gradients and ring, findings, schedules."""

import pytest
import torch

from adcorre import AdCorreLoss
from tests.kernels.launched import test_loss as launched
from tests.ptx.package import machine

# Of one program over the logits, and of launches that order all samples; ring recorded, counted, read; lambda a tensor.
CASES = [
    ("sm_80", 20, "plain", torch.float32, True),
    ("sm_90", 40, "everything", torch.float32, True),
    ("sm_120", 9, "naive", torch.bfloat16, True),
    ("sm_90", 9, "other targets", torch.float32, False),
]


@pytest.mark.parametrize("target, n, settings, dtype, training", CASES)
def test_values_gradients_and_ring_are_the_references(target, n, settings, dtype, training) -> None:
    loss, truth = launched.pair(**launched.SETTINGS[settings])
    for seed in range(2):
        loss.train(training or seed == 0), truth.train(training or seed == 0)
        batch = launched.draw(n, seed, dtype)
        lambd = torch.tensor(0.4) if seed else 0.4
        with machine(target, seed) as report:
            got = launched.step(loss, batch, lambd=lambd)
        report.raise_if_any()
        launched.close(got, launched.step(truth, launched.in_float64(batch), lambd=lambd), dtype)
    assert torch.equal(loss.attention_map.counts, truth.attention_map.counts)
    assert torch.equal(loss.attention_map.position, truth.attention_map.position)


def test_without_gradients_the_step_counts_in_w_and_is_not_recorded() -> None:
    loss, truth = launched.pair()
    for record in (True, False):
        with torch.set_grad_enabled(record), machine("sm_90") as report:
            got = loss(*launched.draw()).attention
        report.raise_if_any()
        with torch.set_grad_enabled(record):
            expected = truth(*launched.in_float64(launched.draw())).attention
        torch.testing.assert_close(got.double(), expected)
    assert int(loss.attention_map.position) == 1


def test_a_bad_label() -> None:
    loss = AdCorreLoss(launched.C, backend="triton", validate=False)
    logits, x, targets = launched.draw()
    targets[5], targets[6] = -(2**40), launched.C
    with machine("sm_90") as report:
        *values, attention, of_logits, of_x = launched.step(loss, (logits, x, targets))
    report.raise_if_any()
    assert all(bool(t.isnan().all()) for t in (*values, of_logits, of_x))
    assert bool(attention.isfinite().all())


def test_the_same_bits_in_every_schedule() -> None:
    results = []
    for seed in range(3):
        loss = AdCorreLoss(launched.C, backend="triton", **launched.SETTINGS["everything"])
        with machine("sm_90", seed, resident=2 + seed) as report:
            results.append(launched.step(loss, launched.draw(40)))
        report.raise_if_any()
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
