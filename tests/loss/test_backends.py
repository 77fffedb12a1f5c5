"""The linear-time backends against the reference in float64: values and gradients to 1e-12."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adcorre import adcorre_terms
from adcorre.backends import resolve_options
from adcorre.functional import all_terms
from tests.loss.tools import LINEAR, TARGETS, assert_close, draw, run

# One block more or less than a chunk is in test_streaming.py. Here: n = 1, k = 1, d = 2 (every gradient of FD and ED is
# zero), one class, more classes than samples, vectors far from centred.
problems = st.builds(
    draw,
    n=st.integers(1, 40),
    k=st.integers(1, 9),
    d=st.integers(2, 40),
    num_classes=st.integers(1, 12),
    seed=st.integers(0, 2**31),
    between=st.sampled_from(TARGETS),
    mean=st.sampled_from(TARGETS),
    embedding=st.sampled_from(TARGETS),
    shift=st.sampled_from((0.0, 3.0, -300.0)),
)


@pytest.mark.parametrize("backend", LINEAR)
@settings(max_examples=600)
@given(problem=problems)
def test_equals_the_reference(backend, problem) -> None:
    assert_close(problem, run(problem, backend), run(problem, "reference"))


@settings(max_examples=300)
@given(problem=problems)
def test_plain_path_equals_reference(problem) -> None:
    """The path of the torch backend on devices other than a CPU."""
    assert_close(problem, run(problem, "plain"), run(problem, "reference"))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", [(60, 7, 256, 7), (33, 3, 17, 20), (24, 1, 8, 3)])
def test_every_path_at_the_papers_size(shape, target) -> None:
    problem = draw(*shape, between=target, mean=target, embedding=target)
    truth = run(problem, "reference")
    for path in (*LINEAR, "plain"):
        assert_close(problem, run(problem, path), truth)


@pytest.mark.parametrize("backend", [*LINEAR, "reference"])
@pytest.mark.parametrize("target", [-1, "simplex", 0.3])
def test_gradcheck(backend, target) -> None:
    problem = draw(6, 3, 5, 3, between=target, mean=target, embedding=target, seed=3)

    def terms(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(adcorre_terms(x, problem.targets, problem.attention, backend=backend, **problem.options))

    assert torch.autograd.gradcheck(terms, problem.x.requires_grad_(), check_forward_ad=False)


def test_reference_has_a_double_backward() -> None:
    problem = draw(5, 2, 4, 3)

    def terms(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(adcorre_terms(x, problem.targets, problem.attention, backend="reference"))

    assert torch.autograd.gradgradcheck(terms, problem.x.requires_grad_())


def test_fd_at_half_weights_is_nfd() -> None:
    for backend in (*LINEAR, "reference"):
        for target in TARGETS:
            problem = draw(20, 3, 8, 4, between=target)
            options = resolve_options(problem.x, 4, backend, target, -1, -1, -100)
            half = torch.full((4,), 0.5, dtype=torch.float64)
            fd, _, _, nfd = all_terms(problem.x, problem.targets, half, options)
            assert float(fd) == pytest.approx(float(nfd), rel=1e-14)
            other = all_terms(problem.x, problem.targets, problem.attention, options)
            assert float(other[3]) == pytest.approx(float(nfd), rel=1e-14)
            assert abs(float(other[0]) - float(nfd)) > 1e-3


@pytest.mark.parametrize("backend", LINEAR)
@settings(max_examples=60)
@given(problem=problems, seed=st.integers(0, 1000))
def test_order_scale_and_shift_change_nothing(backend, problem, seed) -> None:
    """Permuting samples changes no term; scaling and shifting a vector changes neither FD nor ED."""
    rng = torch.Generator().manual_seed(seed)
    values, gradient = run(problem, backend)
    order = torch.randperm(problem.x.shape[0], generator=rng)
    permuted = problem._replace(x=problem.x[order], targets=problem.targets[order])
    assert_close(permuted, run(permuted, backend), (values, gradient[order]))
    shape = (*problem.x.shape[:2], 1)
    scale = 0.5 + torch.rand(shape, generator=rng, dtype=torch.float64)
    shift = torch.randn(shape, generator=rng, dtype=torch.float64)
    moved, _ = run(problem, backend, x=problem.x * scale + shift)
    assert moved[[0, 2]].tolist() == pytest.approx(values[[0, 2]].tolist(), abs=1e-10)
    # MD: invariant to a shift of each vector and a common scale.
    moved, _ = run(problem, backend, x=problem.x * 3 + shift)
    assert moved.tolist() == pytest.approx(values.tolist(), abs=1e-10)


def pairwise_fd(x: torch.Tensor, targets: torch.Tensor, attention: torch.Tensor, between_target: float) -> float:
    """Eq. 9 with the absolute value of every single pair, for k vectors."""
    n, k, _ = x.shape
    z = x - x.mean(-1, keepdim=True)
    z = z / z.norm(dim=-1, keepdim=True)
    corm = torch.einsum("ild,jld->lij", z, z)
    same = (targets[:, None] == targets).double()
    phi = same + (1 - same) * between_target
    w = attention[targets]
    deviation = (phi - corm).abs() * (1 - torch.eye(n)) * (w[:, None] + w)
    return float(deviation.sum() / (k * n**2))


def test_class_level_fd_is_a_lower_bound_of_the_pairwise_one() -> None:
    """Equal to it if classes are compact."""
    problem = draw(30, 2, 6, 4, between=0.2)
    compact = torch.randn(4, 2, 6, dtype=torch.float64)[problem.targets]
    for backend in (*LINEAR, "reference"):
        fd = run(problem, backend)[0][0]
        assert float(fd) < pairwise_fd(problem.x, problem.targets, problem.attention, 0.2) - 0.01
        fd = run(problem, backend, x=compact)[0][0]
        assert float(fd) == pytest.approx(pairwise_fd(compact, problem.targets, problem.attention, 0.2), abs=1e-12)


@pytest.mark.parametrize(
    "expected", [(True, False, False), (False, True, False), (False, False, True), (True, True, False)]
)
def test_each_term_alone(expected) -> None:
    """Upstream gradients of some terms only, as in a loss with fewer components."""
    problem = draw(20, 3, 8, 4)
    gradients = []
    for backend in (*LINEAR, "reference"):
        x = problem.x.clone().requires_grad_()
        terms = adcorre_terms(x, problem.targets, problem.attention, backend=backend)
        sum(term for term, on in zip(terms, expected, strict=True) if on).backward()
        gradients.append(x.grad)
    for gradient in gradients[:-1]:
        torch.testing.assert_close(gradient, gradients[-1], rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("backend", LINEAR)
def test_second_backward_with_retain_graph_and_hooks(backend) -> None:
    problem = draw(20, 3, 8, 4)
    x = problem.x.clone().requires_grad_()
    total = sum(adcorre_terms(x, problem.targets, problem.attention, backend=backend))
    seen = []
    x.register_hook(lambda gradient: seen.append(gradient.clone()))
    total.backward(retain_graph=True)
    total.backward()
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(x.grad, seen[0] + seen[1])
