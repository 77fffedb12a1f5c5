"""Batches without a pair, a class or a direction, or with an invalid label: zero or NaN as documented."""

import pytest
import torch

from adcorre import adcorre_terms
from tests.loss.tools import LINEAR, TARGETS, assert_close, draw, run

PATHS = (*LINEAR, "plain", "reference")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "case",
    [
        "one sample",
        "one class",
        "absent classes",
        "one vector",
        "d = 2",
        "d = 1",
        "constant",
        "no sample",
        "all ignored",
    ],
)
def test_finite_forward_and_backward(case, target, dtype) -> None:
    n, k, d, num_classes = {
        "one sample": (1, 3, 8, 4),
        "one class": (6, 3, 8, 1),
        "absent classes": (6, 3, 8, 50),
        "one vector": (6, 1, 8, 3),
        "d = 2": (6, 3, 2, 3),
        "d = 1": (6, 3, 1, 3),
        "no sample": (0, 3, 8, 4),
    }.get(case, (6, 3, 8, 3))
    problem = draw(n, k, d, num_classes, between=target, mean=target, embedding=target)
    if case == "constant":
        problem.x[::2] = 1.7
    if case == "all ignored":
        problem.targets.fill_(-100)
    problem = problem._replace(x=problem.x.to(dtype))
    truth = run(problem, "reference", x=problem.x.double())
    for path in PATHS:
        values, gradient = run(problem, path)
        assert bool(values.isfinite().all())
        assert bool(gradient.isfinite().all())
        assert gradient.dtype == dtype
        if dtype == torch.float64:
            assert_close(problem, (values, gradient), truth)
        elif case != "d = 2" and case != "d = 1":
            assert (values.double() - truth[0]).abs().max() < 1e-5


@pytest.mark.parametrize("path", PATHS)
def test_without_a_pair_the_terms_are_zero(path) -> None:
    one = draw(1, 1, 8, 1)
    values, gradient = run(one, path)
    assert values.abs().max() < 1e-15
    assert gradient.abs().max() < 1e-15
    empty = draw(5, 3, 8, 4)
    empty.targets.fill_(-100)
    values, gradient = run(empty, path)
    assert values.tolist() == [0, 0, 0]
    assert gradient.abs().max() == 0
    x = empty.x.requires_grad_()
    if path != "plain":
        sum(adcorre_terms(x, empty.targets, empty.attention, backend=path)).backward()  # the zero has a graph
        assert x.grad.abs().max() == 0


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_vector_and_one_class_give_zero_terms(path, dtype) -> None:
    """No pair: the term is exactly zero, without rounding noise."""
    assert float(run(draw(40, 1, 8, 3, dtype=dtype), path)[0][2]) == 0
    assert float(run(draw(40, 3, 8, 1, dtype=dtype), path)[0][1]) == 0


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("path", PATHS[:-1])
def test_constant_vectors_have_no_direction(path, target) -> None:
    """z = 0: their correlations and their gradients of FD and ED are 0; |z|^2 is not counted as 1."""
    problem = draw(12, 3, 8, 3, between=target, mean=target, embedding=target)
    problem.x[2, 1] = 5.0
    problem.x[3] = -1.0
    problem.x[4] = 0.0
    problem.x[5, 0] = 3 * (1 + 1e-15 * torch.arange(8))  # constant up to rounding
    truth = run(problem, "reference")
    assert_close(problem, run(problem, path), truth)
    only_pairs = problem._replace(upstream=torch.tensor([1.0, 0.0, 1.0]).double())
    gradient = run(only_pairs, path)[1]
    for own in (gradient[2, 1], gradient[3], gradient[4], gradient[5, 0]):
        assert own.abs().max() == 0
    assert gradient[2, 0].abs().max() > 0


@pytest.mark.parametrize("path", PATHS[:-1])
def test_a_class_mean_that_cancels_has_no_direction(path) -> None:
    """The rounding noise of vectors that cancel is large relative to their sum; it is compared with the mean of |x|."""
    problem = draw(6, 2, 8, 3)
    problem.targets.copy_(torch.tensor([0, 0, 0, 1, 1, 2]))
    problem.x[2] = -(problem.x[0] + problem.x[1])
    problem = problem._replace(upstream=torch.tensor([0.0, 1.0, 0.0]).double())
    truth = run(problem, "reference")
    assert truth[1][:3].abs().max() == 0
    got = run(problem, path)
    assert_close(problem, got, truth)
    assert got[1][:3].abs().max() == 0
    assert got[1][3:].abs().max() > 0


@pytest.mark.parametrize("path", PATHS)
def test_ignored_samples_touch_nothing(path) -> None:
    """n counts the others; a NaN in an ignored sample has no effect and gets gradient 0."""
    problem = draw(14, 3, 8, 4)
    keep = torch.ones(14, dtype=torch.bool)
    keep[[0, 5, 13]] = False
    problem.targets[~keep] = 2
    expected = problem._replace(x=problem.x[keep], targets=problem.targets[keep])
    expected.targets[expected.targets == 2] = 1
    values, gradient = run(expected, "reference")
    problem.targets[keep] = expected.targets
    problem.x[5] = torch.nan
    got = run(problem, path, ignore_index=2)  # an ignore_index within the class range
    assert got[0].tolist() == pytest.approx(values.tolist(), abs=1e-14)
    torch.testing.assert_close(got[1][keep], gradient, rtol=1e-12, atol=1e-15)
    assert got[1][~keep].abs().max() == 0


@pytest.mark.parametrize("bad", [4, -1, 2**40, -(2**40)])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("target", TARGETS)
def test_an_unchecked_bad_label_makes_everything_nan(path, bad, target) -> None:
    problem = draw(10, 3, 8, 4, between=target, mean=target, embedding=target)
    problem.targets[3] = bad
    problem.targets[4] = -100
    overrides = {} if path == "plain" else {"validate": False}
    values, gradient = run(problem, path, **overrides)
    assert bool(values.isnan().all())
    own = torch.arange(10) != 4
    assert bool(gradient[own].isnan().all())


@pytest.mark.parametrize("path", PATHS)
def test_nan_embeddings_propagate(path) -> None:
    problem = draw(10, 3, 8, 4)
    problem.x[3, 1, 2] = torch.nan
    values, gradient = run(problem, path)
    assert bool(values.isnan().all())
    assert bool(gradient[3].isnan().any())


@pytest.mark.parametrize("path", PATHS)
def test_vectors_too_long_to_square_give_nan(path) -> None:
    """|x|^2 beyond float32: NaN, not the zeros of a constant vector."""
    problem = draw(10, 3, 8, 4, dtype=torch.float32)
    problem.x[3] *= 1e25
    values, _ = run(problem, path)
    assert bool(values[0].isnan())
    assert bool(values[2].isnan())


@pytest.mark.parametrize("path", PATHS[:-1])
def test_kinks_have_subgradient_zero(path) -> None:
    """Correlations exactly at the target: +-1 and 0, which are exact in float64."""
    rows = torch.tensor([[1.0, -1, 0, 0], [0, 0, 1, -1], [1, -1, 0, 0], [1, -1, 1, -1]], dtype=torch.float64)
    problem = draw(4, 2, 4, 4, between=0, mean=0, embedding=0)
    problem.targets.copy_(torch.arange(4))
    problem.x.copy_(torch.stack((rows, rows[[1, 0, 3, 2]]), 1))
    truth = run(problem, "reference")
    assert_close(problem, run(problem, path), truth)
    for term in range(3):
        alone = problem._replace(upstream=torch.eye(3, dtype=torch.float64)[term])
        assert_close(alone, run(alone, path), run(alone, "reference"))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8])
def test_any_integer_labels(dtype) -> None:
    problem = draw(10, 3, 8, 4)
    ignore = 200 if dtype == torch.uint8 else -100
    problem.targets[2] = ignore
    expected = run(problem, "torch", ignore_index=ignore)
    for path in PATHS:
        got = run(problem._replace(targets=problem.targets.to(dtype)), path, ignore_index=ignore)
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-14)
