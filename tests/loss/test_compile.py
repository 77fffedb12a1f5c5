"""torch.compile: no graph break, no loop unrolled, no recompilation as n varies; equal to eager."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from adcorre import AdCorreLoss, adcorre_terms, plain, torch_backend
from tests.loss.tools import LINEAR, draw


def step(loss, problem, logits):
    x = problem.x.clone().requires_grad_()
    out = loss(logits, x, problem.targets)
    out.loss.backward()
    return out, x.grad


@pytest.mark.parametrize("backend", [*LINEAR, "reference"])
def test_the_whole_loss_compiles_once_for_every_batch_size(backend) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    eager = AdCorreLoss(4, backend=backend)
    compiled = torch.compile(AdCorreLoss(4, backend=backend), fullgraph=True, backend=counter, dynamic=True)
    compiled_once = 0
    for n in (20, 33, 7, 600):
        problem = draw(n, 3, 8, 4, seed=n, dtype=torch.float32)
        logits = torch.randn(n, 4)
        expected, expected_gradient = step(eager, problem, logits)
        got, gradient = step(compiled, problem, logits)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(gradient, expected_gradient)
        compiled_once = compiled_once or counter.frame_count
    assert counter.frame_count == compiled_once


@pytest.mark.parametrize("backend", LINEAR)
@pytest.mark.parametrize("target", ["simplex", 0.2])
def test_other_targets_compile(target, backend) -> None:
    torch._dynamo.reset()
    problem = draw(20, 3, 8, 4, between=target, mean=target, embedding=target)

    def terms(x):
        return adcorre_terms(x, problem.targets, problem.attention, backend=backend, **problem.options)

    compiled = torch.compile(terms, fullgraph=True, backend="aot_eager")
    x, other = (problem.x.clone().requires_grad_() for _ in range(2))
    sum(terms(x)).backward()
    sum(compiled(other)).backward()
    torch.testing.assert_close(x.grad, other.grad)


@pytest.mark.compiles
@pytest.mark.parametrize("backend", LINEAR)
def test_inductor(backend) -> None:
    torch._dynamo.reset()
    problem = draw(40, 3, 8, 4, dtype=torch.float32)
    logits = torch.randn(40, 4)
    expected, expected_gradient = step(AdCorreLoss(4, backend=backend), problem, logits)
    got, gradient = step(torch.compile(AdCorreLoss(4, backend=backend), fullgraph=True), problem, logits)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.compiles
def test_the_plain_path_fuses_under_inductor() -> None:
    """The path of the torch backend off the CPU: plain operations, when compiled equal to the streamed passes."""
    torch._dynamo.reset()
    problem = draw(40, 3, 8, 4, dtype=torch.float32)
    for embedding_target in (-1.0, 0.1):
        statistics = torch.compile(plain.plain_statistics, fullgraph=True)
        flat = statistics(problem.x, problem.targets, 4, -100, embedding_target)
        expected = torch_backend.statistics(problem.x, problem.targets, 4, -100, embedding_target)
        torch.testing.assert_close(flat, expected, rtol=1e-5, atol=1e-5)
        _, *tables = torch_backend.terms(flat, problem.attention, 3, 8, -1.0, -1.0, embedding_target)
        gradient = torch.compile(plain.plain_gradient, fullgraph=True)
        got = gradient(problem.x, problem.targets, *tables, -100, embedding_target)
        expected = torch_backend.embedding_gradient(
            problem.x, problem.targets, torch.ones(4), *tables, -100, embedding_target
        )
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", LINEAR)
def test_a_bad_label_under_compile_is_nan(backend) -> None:
    torch._dynamo.reset()
    problem = draw(12, 2, 4, 3)
    problem.targets[1] = 3
    compiled = torch.compile(AdCorreLoss(3, backend=backend), fullgraph=True, backend="aot_eager")
    out, gradient = step(compiled, problem, torch.randn(12, 3))
    assert bool(out.loss.isnan())
    assert bool(gradient.isnan().all())


@pytest.mark.parametrize("backend", LINEAR)
def test_activation_checkpointing(backend) -> None:
    problem = draw(20, 3, 8, 4)
    x, other = (problem.x.clone().requires_grad_() for _ in range(2))

    def total(x):
        return sum(adcorre_terms(x, problem.targets, problem.attention, backend=backend))

    total(x).backward()
    checkpoint(total, other, use_reentrant=False).backward()
    assert torch.equal(x.grad, other.grad)
