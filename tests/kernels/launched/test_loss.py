"""The whole loss through the Triton kernels: the shared tests, operators, and launches."""

import pytest
import torch

from adcorre import AdCorreLoss, AdCorreOutput
from adcorre_kernels import gpu
from adcorre_kernels.gpu import loss as host
from adcorre_kernels.gpu import plan
from tests.kernels.launched.tools import DEVICE
from tests.whole_loss import *  # noqa: F403
from tests.whole_loss import C, check_operators, close, draw, in_float64, pair, step


@pytest.fixture
def backend() -> str:
    return "triton"


def test_opcheck() -> None:
    check_operators(gpu, torch.ops.adcorre_kernels)


def test_classes_without_samples(backend) -> None:
    """Their weight is 1, never 0 / 0."""
    loss, truth = pair(backend)
    logits, x, targets = draw()
    batch = logits, x, torch.full_like(targets, 1)
    close(step(loss, batch), step(truth, in_float64(batch)))


def test_several_programs_over_the_logits(monkeypatch) -> None:
    """Their partial sums, in float64, are stored between the slots and the sample order."""
    monkeypatch.setattr(plan, "LOGITS_TILE", 64)
    for n in (40, 90):
        batch = draw(n)
        truth = AdCorreLoss(C, backend="reference")
        close(step(AdCorreLoss(C, backend="triton").to(DEVICE), batch), step(truth, in_float64(batch)))


def test_the_factor_multiplies_the_gradient_alone() -> None:
    """Ranks need this when their gradients are averaged."""
    logits, x, targets = draw(9)
    weight, settings = torch.rand(C, device=DEVICE), gpu.Settings()
    flat, (_, ce) = gpu.statistics(x, targets, C, -100, -1.0), gpu.logits_sums(logits, targets, None, None, 0.0, -100)
    once, twice = (gpu.loss_from_sums(flat, ce, weight, None, 0.5, factor, 3, 8, settings) for factor in (1.0, 2.0))
    assert torch.equal(once[0], twice[0])
    assert torch.equal(once[1], twice[1])
    assert torch.equal(2 * once[2], twice[2])


@pytest.mark.parametrize("n, forward", [(20, 4), (60, 6)])
@pytest.mark.parametrize("recorded", [True, False])
def test_launches_and_nothing_else(monkeypatch, n, forward, recorded) -> None:
    """All other PyTorch operations of a step are allocations and views, which launch nothing."""
    monkeypatch.setattr(plan, "LOCAL_SAMPLES", 40)
    launches: list[str] = []
    for module in (host, host.launch_statistics.__globals__):
        names = module if isinstance(module, dict) else vars(module)
        original = names["cached_launch"]

        def noted(kernel, *rest, original=original):
            launches.append(kernel.fn.__name__)
            original(kernel, *rest)

        monkeypatch.setitem(names, "cached_launch", noted)
    loss = AdCorreLoss(C, backend="triton", validate=False).to(DEVICE).train(recorded)
    logits, x, targets = draw(n)
    logits.requires_grad_(), x.requires_grad_()
    upstream = torch.ones((), device=DEVICE)

    def profiled(call):
        launches.clear()
        fill = torch.utils.deterministic.fill_uninitialized_memory
        torch.utils.deterministic.fill_uninitialized_memory = False
        with monkeypatch.context() as patch:
            patch.setattr("triton.runtime.interpreter.GridExecutor.__call__", lambda *_, **__: None)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                result = call()
        torch.utils.deterministic.fill_uninitialized_memory = fill
        harmless = {"aten::empty", "aten::view", "aten::slice", "aten::as_strided", "aten::unbind", "aten::select"}
        harmless |= {"aten::detach", "detach", "aten::to"}
        names = [event.name for event in profile.events() if "::" in event.name and "autograd" not in event.name]
        assert set(names) <= harmless, set(names) - harmless
        assert names.count("aten::empty") <= (4 if result.__class__ is AdCorreOutput else 2)
        return result, list(launches)

    out, launched = profiled(lambda: loss(logits, x, targets))
    assert len(launched) == forward, launched
    _, launched = profiled(lambda: torch.autograd.grad(out.loss, (logits, x), upstream))
    assert launched == ["logits_gradient_kernel", "warp_gradient"]


def test_the_dtype_of_the_upstream_gradient_selects_the_variant(monkeypatch) -> None:
    """Of a loss in float64 whose logits carry no gradient, after one in float32 with the same embeddings."""
    keys = []
    monkeypatch.setattr(host, "cached_launch", lambda *given: keys.append((id(given[3]), given[4])))
    _, x, targets = draw(9)
    tables = x.new_empty(2 * C * 3 * 8 + 2)
    for dtype in (torch.float32, torch.float64):
        upstream = torch.ones((), dtype=dtype, device=DEVICE)
        host.backward(x, None, targets, None, None, upstream, upstream, upstream, tables, True, C, gpu.Settings())
    (options, first), (same_options, second) = keys
    assert options == same_options
    assert first != second
