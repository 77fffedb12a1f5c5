"""pairs="sample": FD with the absolute value of every pair, against the n x n reference and the linear form."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adcorre import AdCorreLoss, adcorre_terms, pairs
from adcorre.backends import resolve_options
from adcorre.between import pairs_of_one_batch
from adcorre.functional import class_sums, embedding_gradient, values_and_tables
from tests.loss.tools import LINEAR

OPTIONS = {"mean_target": 0.2, "embedding_target": 0.1}


def inputs(n: int, k: int, d: int, classes: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(n * k + d)
    x = torch.randn(n, k, d, generator=rng, dtype=dtype) + 0.3
    targets = torch.randint(0, classes, (n,), generator=rng)
    return x.requires_grad_(), targets, torch.rand(classes, generator=rng, dtype=torch.float64)


def gradient(x: Tensor, targets: Tensor, attention: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    terms = adcorre_terms(x, targets, attention, **options)  # type: ignore[arg-type]
    values = torch.stack(terms)
    return values.detach(), torch.autograd.grad(values @ values.new_tensor([0.7, -1.3, 0.4]), x)[0]


@pytest.mark.parametrize("target", [-1, 1, 0, 0.3, "simplex"])
@pytest.mark.parametrize(
    "shape", [(1, 2, 8, 3), (2, 1, 5, 2), (40, 3, 17, 5), (300, 2, 16, 3), (37, 7, 32, 1), (50, 2, 9, 40), (0, 2, 4, 3)]
)
@pytest.mark.parametrize("backend", LINEAR)
def test_equals_the_reference(shape: tuple[int, int, int, int], target: float | str, backend: str) -> None:
    x, targets, attention = inputs(*shape)
    if shape[0] > 30:
        targets[::7] = -100
        with torch.no_grad():
            x[3, 0] = 2.0  # a constant vector
    options = {"between_target": target, "pairs": "sample", **OPTIONS}
    truth = gradient(x, targets, attention, backend="reference", **options)
    got = gradient(x, targets, attention, backend=backend, **options)
    for one, other in zip(got, truth, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("target", [-1, 1])
def test_at_target_one_both_forms_are_equal(target: int) -> None:
    x, targets, attention = inputs(200, 3, 16, 5)
    for backend in (*LINEAR, "reference"):
        by_class = gradient(x, targets, attention, backend=backend, between_target=target)
        by_sample = gradient(x, targets, attention, backend=backend, between_target=target, pairs="sample")
        torch.testing.assert_close(by_sample, by_class, rtol=1e-11, atol=1e-13)


def test_elsewhere_the_class_form_is_a_lower_bound() -> None:
    x, targets, attention = inputs(200, 3, 16, 5)
    by_class = adcorre_terms(x, targets, attention, between_target=0)
    by_sample = adcorre_terms(x, targets, attention, between_target=0, pairs="sample")
    assert by_class.fd < by_sample.fd - 1e-3
    assert (by_class.md, by_class.ed) == (by_sample.md, by_sample.ed)


def test_ranges_of_rows_add_to_the_whole() -> None:
    """More than one tile in both directions; the gradient of a range is that of the whole sum."""
    x, targets, attention = inputs(1300, 1, 8, 4)
    common, n = (0.3, -100, "highest"), x.shape[0]
    ranges = ((0, 501), (501, 501), (501, n))
    whole = pairs.pair_values(x.detach(), targets, attention, *common, 0, n)
    parts = [pairs.pair_values(x.detach(), targets, attention, *common, *rows) for rows in ranges]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=0)
    tensors = (x.detach(), targets, attention, torch.tensor(1e-3, dtype=torch.float64), *common)
    gradients = [pairs.pair_gradient(*tensors, *rows) for rows in ranges]
    torch.testing.assert_close(torch.cat(gradients), pairs.pair_gradient(*tensors, 0, n), rtol=1e-12, atol=1e-16)


def test_gradcheck() -> None:
    x, targets, attention = inputs(9, 2, 6, 3)
    for target in (0.25, -1):
        assert torch.autograd.gradcheck(
            lambda x, target=target: adcorre_terms(x, targets, attention, between_target=target, pairs="sample").fd, x
        )


def test_at_a_kink_the_subgradient_is_zero() -> None:
    x = torch.tensor([[1.0, -1, 1, -1], [1, 1, -1, -1]], dtype=torch.float64, requires_grad=True)  # correlation 0
    for backend in (*LINEAR, "reference"):
        terms = adcorre_terms(x, torch.tensor([0, 1]), torch.ones(2), between_target=0, pairs="sample", backend=backend)
        assert torch.equal(torch.autograd.grad(terms.fd, x)[0], torch.zeros_like(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_smaller_dtypes(dtype: torch.dtype) -> None:
    x, targets, attention = inputs(150, 3, 32, 5, dtype)
    truth_x = x.detach().double().requires_grad_()
    truth = gradient(truth_x, targets, attention, backend="reference", between_target=0, pairs="sample")
    values, actual = gradient(x, targets, attention, between_target=0, pairs="sample")
    assert actual.dtype == dtype
    torch.testing.assert_close(values.double(), truth[0], rtol=2e-6, atol=1e-7)
    largest = float(truth[1].abs().max())
    assert float((actual.double() - truth[1]).abs().max()) < 4 * torch.finfo(dtype).eps * largest
    wide_x = x.detach().float().requires_grad_()
    in_float32 = gradient(wide_x, targets, attention, between_target=0, pairs="sample")[1]
    assert torch.equal(actual, in_float32.to(dtype))  # rounded once


def test_a_chunks_gradient_in_half_precision_is_rounded_once() -> None:
    x, targets, attention = inputs(50, 3, 16, 5, torch.bfloat16)
    options = resolve_options(x, 5, "torch", between_target=0, pairs="sample")
    flat, upstream = class_sums(x, targets, 5, options), torch.tensor([0.7, -1.3, 0.4, 0])
    between = pairs_of_one_batch(x, targets, attention, flat, options)
    _, tables = values_and_tables(flat, attention, x, between, options)
    got = embedding_gradient(x, targets, upstream, tables, between, options)
    exact = embedding_gradient(x.float(), targets, upstream, tables, between, options)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, exact.bfloat16())


def test_a_bad_label_and_a_nan_give_nan() -> None:
    x, targets, attention = inputs(20, 2, 8, 3)
    targets[4] = 9
    values, actual = gradient(x, targets, attention, pairs="sample", between_target=0, validate=False)
    assert values.isnan().all()
    assert actual.isnan().all()
    with pytest.raises(IndexError):
        adcorre_terms(x, targets, attention, pairs="sample")


def test_overflow_and_upstream_nan_give_nan() -> None:
    """In the sum over pairs itself: a length that overflows, and an upstream NaN, also for samples not in the sum."""
    x, targets, attention = inputs(20, 2, 8, 3, torch.float32)
    targets[5] = -100
    tensors, common = (x.detach(), targets, attention), (0.0, -100, "highest", 0, 20)
    assert pairs.pair_gradient(*tensors, torch.tensor(torch.nan), *common).isnan().all()
    assert pairs.pair_values(*tensors, *common).isfinite().all()
    x.detach()[3, 1] = 1e30 * torch.arange(8)
    assert pairs.pair_values(*tensors, *common).isnan().all()


def test_ops() -> None:
    x, targets, attention = inputs(12, 2, 5, 3)
    common = (0.0, -100, "highest", 0, 12)
    torch.library.opcheck(pairs.pair_values, (x.detach(), targets, attention, *common))
    scale = torch.tensor(0.5, dtype=torch.float64)
    torch.library.opcheck(pairs.pair_gradient, (x.detach(), targets, attention, scale, *common))


@pytest.mark.parametrize("backend", LINEAR)
def test_it_compiles_whole(backend: str) -> None:
    x, targets, attention = inputs(30, 2, 8, 3)
    options = {"pairs": "sample", "between_target": 0, "validate": False, "backend": backend}
    compiled = torch.compile(adcorre_terms, fullgraph=True, backend="aot_eager")
    actual, truth = (
        torch.autograd.grad(sum(terms(x, targets, attention, **options)), x)[0] for terms in (compiled, adcorre_terms)
    )
    torch.testing.assert_close(actual, truth)


def test_the_whole_loss() -> None:
    x, targets, _ = inputs(30, 2, 8, 3)
    logits = torch.randn(30, 3, dtype=torch.float64, requires_grad=True)
    losses = [AdCorreLoss(3, pairs="sample", between_target="simplex", backend=name) for name in (*LINEAR, "reference")]
    *got, truth = (loss(logits, x, targets) for loss in losses)
    for output in got:
        torch.testing.assert_close(output, truth, rtol=1e-12, atol=1e-13)


def test_invalid_settings_raise_an_error() -> None:
    x, targets, attention = inputs(8, 2, 8, 3)
    with pytest.raises(ValueError, match="pairs: expected one of class, sample; got 'all'"):
        adcorre_terms(x, targets, attention, pairs="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="precision: expected one of highest"):
        AdCorreLoss(3, precision="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='backend="triton"'):
        adcorre_terms(x, targets, attention, pairs="sample", backend="triton")
    with pytest.raises(RuntimeError, match="no double backward"):
        actual = torch.autograd.grad(adcorre_terms(x, targets, attention, pairs="sample").fd, x, create_graph=True)[0]
        actual.sum().backward()


@pytest.mark.slow
def test_memory_is_a_tenth_of_the_references() -> None:
    code = """
import sys, torch
from bench import measure
from bench.loss import Shape, make_inputs
from bench.rivals import CONTENDERS
torch.set_num_threads(1)
x, y, w = make_inputs(Shape(n=2048), torch.device("cpu"), 0)
call = CONTENDERS[sys.argv[1]].make()
torch.autograd.grad(call(x[:64], y[:64], w), x)  # code is loaded, threads start
run = lambda: torch.autograd.grad(call(x, y, w), x)[0]
print(measure.peak_during(run, torch.device("cpu")) - x.numel() * 4)
"""
    peaks = [
        int(
            subprocess.run(
                [sys.executable, "-c", code, name],
                capture_output=True,
                text=True,
                check=True,
                cwd=Path(__file__).parents[2],
            ).stdout
        )
        for name in ("pairs", "reference")
    ]
    assert peaks[0] < peaks[1] / 10
