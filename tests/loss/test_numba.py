"""The CPU kernels (`backend="numba"`): the terms and the whole loss against the reference, and what they promise."""

import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings

from adcorre import AdCorreLoss, VirtualBatch, adcorre_terms
from tests.loss.test_backends import problems
from tests.loss.tools import TARGETS, assert_close, draw, run

pytest.importorskip("numba")
from adcorre_kernels import cpu


@settings(max_examples=200)
@given(problem=problems)
def test_equals_the_reference(problem) -> None:
    assert_close(problem, run(problem, "numba"), run(problem, "reference"))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", [(60, 7, 256, 7), (33, 3, 17, 20), (24, 1, 8, 3), (600, 2, 16, 300)])
def test_the_papers_size_and_many_classes(shape, target) -> None:
    problem = draw(*shape, between=target, mean=target, embedding=target)
    assert_close(problem, run(problem, "numba"), run(problem, "reference"))


@pytest.mark.parametrize("target", [-1, 0.3])
def test_gradcheck(target) -> None:
    problem = draw(6, 3, 5, 3, between=target, mean=target, embedding=target, seed=3)

    def terms(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(adcorre_terms(x, problem.targets, problem.attention, backend="numba", **problem.options))

    assert torch.autograd.gradcheck(terms, problem.x.requires_grad_(), check_forward_ad=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_budget(dtype) -> None:
    """No further from the truth than twice the torch backend is, plus the rounding of the output."""
    problem = draw(130, 7, 64, 7, shift=3.0, embedding=0.3)
    rounded = problem.x.to(dtype)
    truth = run(problem, "reference", x=rounded.double())
    ours, plain = run(problem, "numba", x=rounded), run(problem, "torch", x=rounded)
    assert ours[1].dtype == dtype
    for got, other, expected in zip(ours, plain, truth, strict=True):
        allowed = 2 * (other.double() - expected).abs().max() + torch.finfo(got.dtype).eps * expected.abs().max()
        assert (got.double() - expected).abs().max() <= allowed


@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.1, "ignore_index": 2}, {"ce_weight": True}])
def test_the_whole_loss(settings) -> None:
    """Loss, both gradients, counts and attention weights over two steps, with labels that are ignored."""
    problem = draw(50, 3, 16, 5)
    logits = torch.randn(50, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    if "ce_weight" in settings:
        settings = {"ce_weight": torch.tensor([1.0, 0.0, 2.0, 0.5, 3.0], dtype=torch.float64)}
    results = {}
    for backend in ("numba", "reference"):
        loss_fn = AdCorreLoss(5, backend=backend, **settings).double()
        for _ in range(2):
            x, scores = problem.x.clone().requires_grad_(), logits.clone().requires_grad_()
            output = loss_fn(scores, x, problem.targets)
            output.loss.backward()
        results[backend] = (*(value.detach() for value in output), x.grad, scores.grad, loss_fn.attention_map.counts)
    for got, expected in zip(results["numba"], results["reference"], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("case", ["bad label", "constant", "nan", "empty", "strided"])
def test_edges(case) -> None:
    problem = draw(20, 3, 8, 4)
    x, targets = problem.x.clone(), problem.targets.clone()
    if case == "bad label":
        targets[3] = 9
    elif case == "constant":
        x[2, 1] = 5.0
    elif case == "nan":
        x[4, 0, 0] = torch.nan
        targets[4] = -100  # takes no part: touches nothing
    elif case == "empty":
        x, targets = x[:0], targets[:0]
    else:
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    problem = problem._replace(x=x, targets=targets)
    ours, truth = (run(problem, backend, validate=False) for backend in ("numba", "reference"))
    for got, expected in zip(ours, truth, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12, equal_nan=True)


def test_equal_bits_on_any_number_of_threads() -> None:
    problem = draw(3000, 7, 64, 7, dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(run(problem, "numba"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True))


def test_several_python_threads_at_once() -> None:
    problem = draw(600, 7, 64, 7, dtype=torch.float32)
    truth = run(problem, "numba")
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: run(problem, "numba"), range(8)):
            assert all(torch.equal(a, b) for a, b in zip(result, truth, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_computes_and_ends() -> None:
    problem = draw(3000, 7, 64, 7, dtype=torch.float32)
    truth = run(problem, "numba")
    began = time.monotonic()
    child = multiprocessing.get_context("fork").Process(target=_compare_in_a_child, args=(problem, truth))
    child.start()
    child.join(10)
    if child.is_alive():
        child.kill()
    assert child.exitcode == 0, f"exit status {child.exitcode} after {time.monotonic() - began:.1f} s"


def _compare_in_a_child(problem, truth) -> None:
    torch.set_num_threads(1)  # PyTorch's own threads do not survive a fork
    targets = problem.targets
    flat = cpu.statistics(problem.x, targets, 7, -100, -1.0)
    os._exit(0 if flat.isfinite().all() and truth[0].isfinite().all() else 1)


def test_ops() -> None:
    problem = draw(12, 2, 8, 3, dtype=torch.float32)
    torch.library.opcheck(cpu.statistics, (problem.x, problem.targets, 3, -100, -1.0))
    flat = cpu.statistics(problem.x, problem.targets, 3, -100, -1.0)
    torch.library.opcheck(cpu.terms, (flat, problem.attention, 2, 8, -1.0, 0.3, -1.0))
    _, *tables = cpu.terms(flat, problem.attention, 2, 8, -1.0, 0.3, -1.0)
    upstream = torch.ones(4)
    torch.library.opcheck(cpu.embedding_gradient, (problem.x, problem.targets, upstream, *tables, -100, -1.0))
    logits = torch.randn(12, 3)
    torch.library.opcheck(cpu.logits_sums, (logits, problem.targets, None, None, 0.1, -100))
    torch.library.opcheck(cpu.logits_gradient, (logits, problem.targets, torch.ones(()), None, None, 0.1, -100))


def test_virtual_batches() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3 + 2 * 8)).double()

    class Heads(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = model

        def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            out = self.body(inputs)
            return out[:, :3], out[:, 3:].unflatten(1, (2, 8))

    inputs, targets = torch.randn(30, 12, dtype=torch.float64), torch.randint(0, 3, (30,))
    gradients = []
    for size in (30, 7):
        model.zero_grad()
        VirtualBatch(Heads(), AdCorreLoss(3, backend="numba"), chunk_size=size)(inputs, targets)
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for whole, chunked in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, chunked, rtol=1e-10, atol=1e-12)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="CPU tensors"):
        adcorre_terms(
            torch.empty(4, 2, 8, device="meta"),
            torch.empty(4, dtype=torch.int64, device="meta"),
            torch.empty(3, device="meta"),
            backend="numba",
        )
