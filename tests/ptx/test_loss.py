"""The whole loss as compiled: values, gradients and ring, findings, schedules."""

import pytest
import torch

from adcorre import AdCorreLoss
from tests import whole_loss as tools
from tests.ptx.package import DTYPES, TARGETS, complete, machine

# Programs that sort their own samples, of one or several classes each, and launches that sort all samples.
SIZES = (9, 20, 40)
FACTORS = (TARGETS, SIZES, tuple(tools.SETTINGS), DTYPES, (True, False))  # in the last step training or eval mode


@pytest.mark.sample(4)
@pytest.mark.parametrize("target, n, settings, dtype, training", complete([], FACTORS))
def test_values_gradients_and_ring_are_the_references(target, n, settings, dtype, training) -> None:
    """Pairwise coverage of all options. The ring is recorded, counted or read; lambda may be a tensor."""
    loss, truth = tools.pair("triton", **tools.SETTINGS[settings])
    for seed in range(2):
        loss.train(training or seed == 0), truth.train(training or seed == 0)
        batch = tools.draw(n, seed, dtype)
        lambd = torch.tensor(0.4) if seed else 0.4
        with machine(target, seed) as report:
            got = tools.step(loss, batch, lambd=lambd)
        report.raise_if_any()
        tools.close(got, tools.step(truth, tools.in_float64(batch), lambd=lambd), dtype)
    assert torch.equal(loss.attention_map.counts, truth.attention_map.counts)
    assert torch.equal(loss.attention_map.position, truth.attention_map.position)


def test_without_gradients_the_step_counts_in_w_and_is_not_recorded() -> None:
    loss, truth = tools.pair("triton")
    for record in (True, False):
        with torch.set_grad_enabled(record), machine("sm_90") as report:
            got = loss(*tools.draw()).attention
        report.raise_if_any()
        with torch.set_grad_enabled(record):
            expected = truth(*tools.in_float64(tools.draw())).attention
        torch.testing.assert_close(got.double(), expected)
    assert int(loss.attention_map.position) == 1


def test_a_bad_label() -> None:
    loss = AdCorreLoss(tools.C, backend="triton", validate=False)
    logits, x, targets = tools.draw()
    targets[5], targets[6] = -(2**40), tools.C
    with machine("sm_90") as report:
        *values, attention, dlogits, dx = tools.step(loss, (logits, x, targets))
    report.raise_if_any()
    assert all(bool(t.isnan().all()) for t in (*values, dlogits, dx))
    assert bool(attention.isfinite().all())


def test_the_same_bits_in_every_schedule() -> None:
    results = []
    for seed in range(3):
        loss = AdCorreLoss(tools.C, backend="triton", **tools.SETTINGS["everything"])
        with machine("sm_90", seed, resident=2 + seed) as report:
            results.append(tools.step(loss, tools.draw(40)))
        report.raise_if_any()
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
