"""Strides, dtypes, autograd, torch.compile, determinism and launches of the kernels' host side."""

from collections import Counter

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from adcorre import AdCorreLoss, adcorre_terms
from adcorre_kernels import gpu
from adcorre_kernels.gpu import launch as host
from tests.kernels.launched.tools import DEVICE, INTERPRETED, assert_within_budget, draw, launch, rounded, steps
from tests.loss.tools import run as run_on_cpu


@pytest.mark.sample(2)
@pytest.mark.parametrize("kind", ["transposed", "expanded", "strided", "every second entry", "odd start"])
@pytest.mark.parametrize("k, d", [(3, 8), (17, 10)])
def test_any_strides(kind, k, d) -> None:
    problem, x = rounded(draw(8, k, d, 3), torch.float32)
    x = {
        "transposed": lambda: x.transpose(0, 1).contiguous().transpose(0, 1),
        "expanded": lambda: x[:1].expand(8, k, d),
        "strided": lambda: torch.cat((x, x), 1)[:, ::2],
        "every second entry": lambda: x.repeat_interleave(2, -1)[..., ::2],
        "odd start": lambda: torch.cat((x.new_zeros(1), x.flatten()))[1:].view(8, k, d),
    }[kind]()
    problem = problem._replace(x=x.cpu().double())
    assert_within_budget(problem, x, launch(problem, x))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_any_integer_labels(dtype) -> None:
    problem, x = rounded(draw(10, 3, 8, 4), torch.float32)
    ignore = 200 if dtype == torch.uint8 else -100
    problem.targets[2] = ignore
    problem = problem._replace(targets=problem.targets.to(dtype).repeat_interleave(2)[::2])
    got = launch(problem, x, ignore_index=ignore)
    assert_within_budget(problem._replace(targets=problem.targets.long()), x, got, ignore_index=ignore)


def test_embeddings_without_their_axis() -> None:
    problem, x = rounded(draw(9, 1, 20, 3), torch.float32)
    flat = problem.x[:, 0].float().to(DEVICE).requires_grad_()
    terms = adcorre_terms(flat, problem.targets.to(DEVICE), problem.attention.float().to(DEVICE), backend="triton")
    (gradient,) = torch.autograd.grad((torch.stack(terms) * problem.upstream.float().to(DEVICE)).sum(), flat)
    values, expected = launch(problem, x)
    assert torch.equal(torch.stack(terms).detach().cpu(), values)
    assert torch.equal(gradient.cpu(), expected[:, 0])


def test_float16_gradient_under_a_grad_scaler() -> None:
    """The gradient times 65,536, without which it would underflow in float16."""
    problem, x = rounded(draw(20, 7, 64, 7), torch.float16)
    problem = problem._replace(upstream=torch.full((3,), 65536.0).double())
    got = launch(problem, x)
    assert_within_budget(problem, x, got)
    unscaled = run_on_cpu(problem._replace(upstream=problem.upstream / 65536), "reference")[1]
    assert unscaled.abs().max() < 2e-3
    assert got[1].abs().max() > 1


@pytest.mark.parametrize("expected", [(True, False, False), (False, True, False), (False, False, True)])
def test_each_term_alone(expected) -> None:
    problem, x = rounded(draw(12, 3, 8, 4), torch.float32)
    x.requires_grad_()
    terms = adcorre_terms(x, problem.targets.to(DEVICE), problem.attention.float().to(DEVICE), backend="triton")
    sum(term for term, on in zip(terms, expected, strict=True) if on).backward()
    alone = problem._replace(upstream=torch.tensor(expected).double())
    torch.testing.assert_close(x.grad.cpu().double(), run_on_cpu(alone, "reference")[1], rtol=1e-5, atol=1e-7)


def test_without_grad_and_with_a_retained_graph() -> None:
    problem, x = rounded(draw(12, 3, 8, 4), torch.float32)
    targets, attention = problem.targets.to(DEVICE), problem.attention.float().to(DEVICE)
    assert not adcorre_terms(x, targets, attention, backend="triton").fd.requires_grad
    x.requires_grad_()
    total = sum(adcorre_terms(x, targets, attention, backend="triton"))
    total.backward(retain_graph=True)
    first = x.grad.clone()
    total.backward()
    assert torch.equal(x.grad, 2 * first)


def test_double_backward_jvp_and_vmap_are_refused() -> None:
    problem, x = rounded(draw(6, 3, 8, 4), torch.float32)
    targets, attention = problem.targets.to(DEVICE), problem.attention.float().to(DEVICE)

    def total(x: torch.Tensor) -> torch.Tensor:
        return sum(adcorre_terms(x, targets, attention, backend="triton"))

    x.requires_grad_()
    (gradient,) = torch.autograd.grad(total(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        gradient.sum().backward()
    with pytest.raises(Exception, match=r"jvp|forward"):
        torch.func.jvp(total, (x.detach(),), (torch.ones_like(x),))
    with pytest.raises(Exception, match="vmap"):
        torch.func.vmap(total)(x.detach()[None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(30, 3, 20, 5), (9, 17, 10, 3), (20, 2, 8, 40)])
def test_the_same_bits_every_time(shape, dtype) -> None:
    problem, x = rounded(draw(*shape), dtype)
    first = steps(problem, x)
    for _ in range(2 if INTERPRETED else 10):
        for one, other in zip(first, steps(problem, x), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "k, d, num_classes, target", [(2, 8, 3, -1.0), (2, 8, 3, 0.3), (17, 10, 3, -1.0), (2, 8, 40, -1.0)]
)
def test_opcheck(k, d, num_classes, target, dtype) -> None:
    problem, x = rounded(draw(5, k, d, num_classes), dtype)
    targets, attention = problem.targets.to(DEVICE), problem.attention.float().to(DEVICE)
    torch.library.opcheck(gpu.statistics, (x, targets, num_classes, -100, target))
    flat = gpu.statistics(x, targets, num_classes, -100, target)
    table, up, scale = (torch.randn(shape, device=DEVICE) for shape in ((num_classes, k, d), (), ()))
    ops = torch.ops.adcorre_kernels
    torch.library.opcheck(ops.gradient.default, (x, targets, up, None, up, table, table, scale, -100, target))
    if gpu.terms_supported(num_classes, k, d):
        torch.library.opcheck(ops.terms.default, (flat, attention, k, d, -1.0, target, -1.0))


@pytest.mark.parametrize("target", [-1, 0.3])
def test_compiled_equals_eager_and_compiles_once(target) -> None:
    torch._dynamo.reset()
    options = {"between_target": target, "mean_target": target, "embedding_target": target, "backend": "triton"}
    eager = AdCorreLoss(4, **options).to(DEVICE)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(AdCorreLoss(4, **options).to(DEVICE), fullgraph=True, backend=counter, dynamic=True)
    frames = 0
    for n in (12, 7, 20):
        problem, x = rounded(draw(n, 3, 8, 4, seed=n), torch.float32)
        logits = torch.randn(n, 4, device=DEVICE)
        results = []
        for module in (eager, compiled):
            own = x.clone().requires_grad_()
            out = module(logits, own, problem.targets.to(DEVICE))
            out.loss.backward()
            results.append((*out, own.grad))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)
        frames = frames or counter.frame_count
    assert counter.frame_count == frames


@pytest.mark.compiles
def test_inductor() -> None:
    torch._dynamo.reset()
    problem, x = rounded(draw(12, 3, 8, 4), torch.float32)
    logits, targets = torch.randn(12, 4, device=DEVICE), problem.targets.to(DEVICE)
    gradients = []
    for module in (AdCorreLoss(4, backend="triton"), torch.compile(AdCorreLoss(4, backend="triton"), fullgraph=True)):
        own = x.clone().requires_grad_()
        module.to(DEVICE)(logits, own, targets).loss.backward()
        gradients.append(own.grad)
    torch.testing.assert_close(*gradients)


def test_autocast_leaves_statistics_in_float32() -> None:
    problem, x = rounded(draw(12, 3, 8, 4), torch.bfloat16)
    expected = launch(problem, x)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        got = launch(problem, x)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize(
    "x, num_classes, target, words",
    [
        (torch.zeros(4, 2, 8, dtype=torch.float64), 3, -1, "float64"),
        (torch.zeros(4, 2, 1), 3, -1, "d = 1"),
        (torch.zeros(4, 2, 4097), 3, -1, "d = 4097"),
        (torch.zeros(4, 65, 8), 3, -1, "k = 65"),
        (torch.zeros(4, 17, 8), 3, 0.3, "k = 17"),
        (torch.zeros(4, 2, 8), 10_001, -1, "10001 classes"),
    ],
)
def test_inputs_that_the_kernels_do_not_support_raise_an_error(x, num_classes, target, words) -> None:
    targets, attention = torch.zeros(4, dtype=torch.long), torch.ones(num_classes)
    inputs = (x.to(DEVICE), targets.to(DEVICE), attention.to(DEVICE))
    with pytest.raises(ValueError, match=words):
        adcorre_terms(*inputs, backend="triton", embedding_target=target)
    adcorre_terms(*inputs, backend="auto", embedding_target=target)


def test_no_value_is_read_on_the_host(monkeypatch) -> None:
    """Only kernels read invalid labels, the term targets and the upstream gradient."""

    def refuse(*_: object) -> None:
        raise AssertionError("a value was read on the host")

    problem, x = rounded(draw(12, 3, 8, 4), torch.float32)
    many, many_x = rounded(draw(12, 3, 8, 40), torch.float32)
    launches: Counter[str] = Counter()
    for kernel in ("warp_statistics", "reduce_slots", "terms_kernel", "warp_gradient"):
        monkeypatch.setattr(host, kernel, _Counted(getattr(host, kernel), launches))
    for name in ("item", "__bool__", "__int__", "__float__", "tolist", "nonzero", "cpu", "numpy"):
        if not (INTERPRETED and name in ("cpu", "numpy")):
            monkeypatch.setattr(torch.Tensor, name, refuse)
    steps(problem, x)
    assert launches == {"warp_statistics": 1, "reduce_slots": 1, "terms_kernel": 1, "warp_gradient": 1}
    steps(many, many_x)


class _Counted:
    """A kernel that counts its launches."""

    def __init__(self, kernel, launches: Counter[str]) -> None:
        self.kernel, self.launches = kernel, launches

    def run(self, *arguments, **options):
        self.launches[self.kernel.fn.__name__] += 1
        return self.kernel.run(*arguments, **options)
