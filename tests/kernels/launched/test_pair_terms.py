"""pairs="sample" through the public API on the kernels: three ways to compute it, dtypes, errors, compilation."""

import pytest
import torch

from adcorre import adcorre_terms, pairs
from adcorre_kernels import gpu
from adcorre_kernels.gpu import pair_launch
from tests.kernels.launched.tools import DEVICE, check, draw, launch, rounded

SAMPLE = {"pairs": "sample"}


@pytest.mark.parametrize("target", [-1.0, 1.0])
def test_three_computations_of_one_number(target) -> None:
    """From class sums; pair by pair, with same-class pairs from sums; every pair through the tiles."""
    problem, x = rounded(draw(40, 3, 32, 5, seed=1, between=target), torch.float32)
    by_class, by_sample = launch(problem, x), check(problem, **SAMPLE)
    torch.testing.assert_close(by_sample, by_class, rtol=2e-6, atol=2e-6)
    attention = problem.attention.float().to(DEVICE)
    tensors = (x, problem.targets.to(DEVICE), attention)
    n, k, _ = x.shape
    options = (target, -100, "highest", 0, n, True)
    values = pair_launch.pair_values(*tensors, *options).cpu() / (k * n**2)
    torch.testing.assert_close(values[0], by_class[0][0], rtol=2e-6, atol=0)
    scale = problem.upstream[0].float() / (k * n**2)
    gradient = pair_launch.pair_gradient(*tensors, scale.to(DEVICE), *options).cpu()
    only_fd = problem._replace(upstream=problem.upstream * torch.tensor([1.0, 0, 0]).to(problem.upstream))
    torch.testing.assert_close(gradient, launch(only_fd, x)[1], rtol=1e-4, atol=1e-6 * float(gradient.abs().max()))


@pytest.mark.parametrize("shape", [(33, 3, 17, 5), (9, 2, 300, 3), (1, 2, 8, 3), (0, 2, 8, 3), (12, 1, 16, 40)])
def test_other_targets_equal_the_reference(shape) -> None:
    """The linear part also comes from the kernels; 40 classes are more than `terms` supports."""
    check(draw(*shape, between=0.3, mean=0.1, embedding=0.2), **SAMPLE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype) -> None:
    """Both parts of the gradient are added up in float32."""
    check(draw(40, 2, 32, 4, between=0.0), dtype, **SAMPLE)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_precisions(precision) -> None:
    problem, x = rounded(draw(40, 2, 32, 4, between=-0.2), torch.float32)
    exact, got = launch(problem, x, **SAMPLE), launch(problem, x, **SAMPLE, precision=precision)
    unit = {"high": 2.0**-12, "medium": 2.0**-6}[precision]
    assert not torch.equal(got[0], exact[0])
    assert float((got[0] - exact[0]).abs().max()) < unit
    assert float((got[1] - exact[1]).abs().max()) < 4 * unit * float(exact[1].abs().max())


def test_at_a_kink_the_subgradient_is_zero() -> None:
    x = torch.tensor([[1.0, -1, 1, -1], [1, 1, -1, -1]], device=DEVICE, requires_grad=True)  # correlation 0
    targets, w = torch.tensor([0, 1], device=DEVICE), torch.ones(2, device=DEVICE)
    terms = adcorre_terms(x, targets, w, between_target=0, backend="triton", **SAMPLE)
    assert not torch.autograd.grad(terms.fd, x)[0].any()


def test_float64_raises_an_error() -> None:
    x = torch.randn(4, 2, 8, dtype=torch.float64, device=DEVICE)
    with pytest.raises(ValueError, match='backend="triton": embeddings are float64'):
        adcorre_terms(x, torch.zeros(4, dtype=torch.int64, device=DEVICE), torch.ones(3, device=DEVICE),
                      backend="triton", **SAMPLE)  # fmt: skip


def test_no_double_backward() -> None:
    problem, x = rounded(draw(6, 2, 8, 3, between=0.0), torch.float32)
    x.requires_grad_()
    w = problem.attention.float().to(DEVICE)
    fd = adcorre_terms(x, problem.targets.to(DEVICE), w, between_target=0.0, backend="triton", **SAMPLE).fd
    (gradient,) = torch.autograd.grad(fd, x, create_graph=True)
    with pytest.raises(RuntimeError, match="no double backward"):
        gradient.sum().backward()


def test_ops() -> None:
    problem, x = rounded(draw(12, 2, 20, 3), torch.float32)
    tensors = (x, problem.targets.to(DEVICE), problem.attention.float().to(DEVICE))
    scale = torch.tensor(0.5, device=DEVICE)
    for rows in ((0, 12), (3, 7)):
        options = (0.0, -100, "high", *rows)
        torch.library.opcheck(gpu.pair_values, (*tensors, *options))
        torch.library.opcheck(gpu.pair_gradient, (*tensors, scale, *options))
    for name in ("pair_values", "pair_gradient"):
        operator, reference = getattr(gpu, name), getattr(pairs, name)._opoverload
        words = [[(a.name, str(a.type)) for a in op._schema.arguments] for op in (operator, reference)]
        assert words[0] == words[1]


def test_it_compiles_whole() -> None:
    problem, x = rounded(draw(12, 2, 20, 3, between=0.0), torch.float32)
    x.requires_grad_()
    tensors = (x, problem.targets.to(DEVICE), problem.attention.float().to(DEVICE))
    options = {"between_target": 0.0, "backend": "triton", "validate": False, **SAMPLE}
    compiled = torch.compile(adcorre_terms, fullgraph=True, backend="aot_eager")
    got, expected = (torch.autograd.grad(sum(terms(*tensors, **options)), x)[0] for terms in (compiled, adcorre_terms))
    torch.testing.assert_close(got, expected)
