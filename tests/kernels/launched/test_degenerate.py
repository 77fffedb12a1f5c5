"""Batches without a pair, a class or a direction, or with an invalid label: as in tests/loss, on the kernels."""

import pytest
import torch

from adcorre_kernels.gpu import gpus, plan
from tests.kernels.launched.tools import DEVICE, check, draw, launch, rounded, steps
from tests.loss.tools import run as run_on_cpu

TARGETS = (-1, "simplex", 0.3)
KERNELS = ("warp", "program", "blocks")


@pytest.fixture
def kernel(request, monkeypatch) -> str:
    """The kernels that take a small sample; small inputs are fast in the interpreter."""
    changes = {
        "warp": {},
        "program": {"sample_elements": 0},
        "blocks": {"sample_elements": 0, "program_elements": 64},  # two embeddings of 16 entries
    }[request.param]
    settings = {key: entry._replace(**changes) for key, entry in gpus.STREAMING.items()}
    monkeypatch.setattr(gpus, "STREAMING", settings)
    return request.param


every_kernel = pytest.mark.parametrize("kernel", KERNELS, indirect=True)


def all_targets(target: float | str) -> dict:
    return {"between": target, "mean": target, "embedding": target}


@pytest.mark.sample(3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("n, k, d, num_classes", [(1, 3, 8, 4), (6, 3, 8, 1), (6, 1, 8, 3), (6, 3, 2, 3), (0, 3, 8, 4)])
def test_without_pairs(n, k, d, num_classes, target, dtype) -> None:
    values, gradient = check(draw(n, k, d, num_classes, **all_targets(target)), dtype)
    assert bool(values.isfinite().all())
    assert bool(gradient.isfinite().all())
    if n == 0:
        assert values.tolist() == [0, 0, 0]


@every_kernel
@pytest.mark.parametrize("num_classes", [4, 40])
def test_all_samples_ignored(kernel, num_classes) -> None:
    problem = draw(3, 5, 10, num_classes)
    problem.targets.fill_(-100)
    values, gradient = launch(problem, problem.x.float().to(DEVICE))
    assert values.tolist() == [0, 0, 0]
    assert gradient.abs().max() == 0


@pytest.mark.sample(3)
@pytest.mark.parametrize("target", TARGETS)
@every_kernel
def test_constant_vectors_have_no_direction(kernel, target) -> None:
    """z = 0: their correlations and their gradients of FD and ED are 0; |z|^2 is not counted as 1."""
    problem = draw(6, 5, 10, 3, **all_targets(target))
    problem.x[2, 1] = 5.0
    problem.x[3] = -1.0
    problem.x[4] = 0.0
    problem.x[5, 0] = 3 * (1 + 2.0**-23 * torch.arange(problem.x.shape[2]).remainder(2))  # constant up to rounding
    problem, x = rounded(problem, torch.float32)
    check(problem)
    only_pairs = problem._replace(upstream=torch.tensor([1.0, 0.0, 1.0]).double())
    gradient = launch(only_pairs, x)[1]
    for own in (gradient[2, 1], gradient[3], gradient[4], gradient[5, 0]):
        assert own.abs().max() == 0
    assert gradient[2, 0].abs().max() > 0


def test_a_class_mean_that_cancels_has_no_direction() -> None:
    problem = draw(6, 2, 11, 3)  # 1 / 11 is rounded: centering leaves noise
    problem.targets.copy_(torch.tensor([0, 0, 0, 1, 1, 2]))
    problem.x.copy_(problem.x.half().double())  # sums that are exact in float32
    problem.x[2] = -(problem.x[0] + problem.x[1])
    for mean_target in (-1, 0.3):
        only_mean = problem._replace(
            upstream=torch.tensor([0.0, 1.0, 0.0]).double(), options={**problem.options, "mean_target": mean_target}
        )
        gradient = launch(only_mean, only_mean.x.float().to(DEVICE))[1]
        assert gradient[:3].abs().max() == 0
        assert gradient[3:].abs().max() > 0


@pytest.mark.parametrize(
    "kernel, num_classes", [("warp", 4), ("program", 4), ("blocks", 4), ("warp", 40)], indirect=["kernel"]
)
def test_ignored_samples_touch_nothing(kernel, num_classes) -> None:
    """n counts the others; a NaN in an ignored sample has no effect and gets gradient 0; ignore_index within range."""
    problem = draw(9, 5, 10, num_classes)
    keep = torch.ones(9, dtype=torch.bool)
    keep[[0, 5, 8]] = False
    problem.targets[problem.targets == 2] = 1
    problem.targets[~keep] = 2
    expected = problem._replace(x=problem.x[keep], targets=problem.targets[keep])
    values, gradient = launch(expected, expected.x.float().to(DEVICE))
    x = problem.x.float()
    x[5] = torch.nan
    got = launch(problem, x.to(DEVICE), ignore_index=2)
    torch.testing.assert_close(got[0], values, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got[1][keep], gradient, rtol=1e-4, atol=1e-6)
    assert got[1][~keep].abs().max() == 0


@pytest.mark.sample(3)
@pytest.mark.parametrize("bad", [4, -1, 2**40, -(2**40)])
@every_kernel
def test_a_bad_label_makes_everything_nan(kernel, bad) -> None:
    """It reads nothing out of bounds: tables and slots end where the buffers end."""
    problem = draw(4, 5, 10, 4, **all_targets("simplex" if bad == -1 else -1))
    problem.targets[2] = bad
    problem.targets[3] = -100
    values, gradient = launch(problem, problem.x.float().to(DEVICE), validate=False)
    assert bool(values.isnan().all())
    assert bool(gradient.isnan().all())
    for table in steps(problem, problem.x.float().to(DEVICE))[2:5]:
        assert bool(table.isnan().all())


@pytest.mark.parametrize("bad", [40, -7])
def test_a_bad_label_among_many_classes(bad, monkeypatch) -> None:
    monkeypatch.setattr(plan, "GATHERED_CLASSES", 8)
    problem = draw(12, 3, 8, 40)
    problem.targets[3] = bad
    values, gradient = launch(problem, problem.x.float().to(DEVICE), validate=False)
    assert bool(values.isnan().all())
    assert bool(gradient.isnan().all())


@every_kernel
def test_nan_embeddings_propagate(kernel) -> None:
    problem = draw(4, 5, 10, 2)
    x = problem.x.float()
    x[3, 1, 2] = torch.nan
    values, gradient = launch(problem, x.to(DEVICE))
    assert bool(values.isnan().all())
    assert bool(gradient[3].isnan().any())


@every_kernel
def test_vectors_too_long_to_square_give_nan(kernel) -> None:
    """|x|^2 overflows float32: NaN, not the zeros of a constant vector."""
    problem = draw(4, 5, 10, 2)
    x = problem.x.float()
    x[3] *= 1e25
    values, _ = launch(problem, x.to(DEVICE))
    assert bool(values[0].isnan())
    assert bool(values[2].isnan())


def test_long_means_and_short_vectors() -> None:
    """|M|^2 beyond float32 has a direction all the same; vectors with a square below it have none, and no infinity."""
    problem = draw(8, 2, 8, 3)
    long = problem.x.float() * 1e18
    values, _ = launch(problem, long.to(DEVICE))
    torch.testing.assert_close(values, run_on_cpu(problem, "torch")[0].float(), rtol=1e-5, atol=1e-6)
    values, gradient = launch(problem, (problem.x * 1e-25).float().to(DEVICE))
    assert bool(values.isfinite().all())
    assert bool(gradient.isfinite().all())


def test_kinks_have_subgradient_zero() -> None:
    """Correlations exactly at the target: +-1 and 0."""
    rows = torch.tensor([[1.0, -1, 0, 0], [0, 0, 1, -1], [1, -1, 0, 0], [1, -1, 1, -1]], dtype=torch.float64)
    problem = draw(4, 2, 4, 4, between=0, mean=0, embedding=0)
    problem.targets.copy_(torch.arange(4))
    problem.x.copy_(torch.stack((rows, rows[[1, 0, 3, 2]]), 1))
    for term in range(3):
        alone = problem._replace(upstream=torch.eye(3, dtype=torch.float64)[term])
        values, gradient = launch(alone, alone.x.float().to(DEVICE))
        truth = run_on_cpu(alone, "reference")
        torch.testing.assert_close(values, truth[0].float(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient, truth[1].float(), rtol=1e-5, atol=1e-6)


def test_statistics_are_those_of_the_torch_backend() -> None:
    from adcorre import torch_backend

    for shape in ((20, 3, 17, 5), (12, 2, 9, 40), (2, 3, 4096, 2)):
        for embedding_target in (-1, 0.3):
            problem = draw(*shape, embedding=embedding_target)
            problem.x[1, 0] = 2.0
            problem.targets[0] = -100
            x = problem.x.float()
            flat = steps(problem, x.to(DEVICE))[0].cpu()
            expected = torch_backend.statistics(x.double(), problem.targets, shape[3], -100, embedding_target)
            torch.testing.assert_close(flat.double(), expected, rtol=1e-5, atol=1e-5)
