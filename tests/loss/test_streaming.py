"""The streamed passes on a CPU: chunk borders, statistics that add up, precision in each dtype, opcheck."""

import pytest
import torch

from adcorre import ClassStatistics, adcorre_terms, streaming, torch_backend
from tests.loss.tools import LINEAR, assert_close, draw, gradient_scale, run


def statistics(x, targets, num_classes, embedding_target=-1.0) -> ClassStatistics:
    flat = torch_backend.statistics(x, targets, num_classes, -100, embedding_target)
    return ClassStatistics(flat, num_classes, x.shape[1], x.shape[2], embedding_target)


# A chunk of 8 samples: one sample less, exactly one chunk, one more, several and a tail; more than 64 x C rounded sums.
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 16, 45])
def test_chunk_borders(n, monkeypatch) -> None:
    monkeypatch.setattr(streaming, "CHUNK_ELEMENTS", 8 * 3 * 6)
    problem = draw(n, 3, 6, 4)
    if n:
        problem.targets[n // 2] = -100
    assert_close(problem, run(problem, "torch"), run(problem, "reference"))


def test_float32_sums_are_flushed(monkeypatch) -> None:
    monkeypatch.setattr(streaming, "CHUNK_ELEMENTS", 8 * 3 * 6)
    monkeypatch.setattr(streaming, "ROUNDED_ADDITIONS", 2)
    problem = draw(45, 3, 6, 4)
    got = statistics(problem.x.float(), problem.targets, 4).flat.double()
    truth = statistics(problem.x.float().double(), problem.targets, 4).flat
    assert (got - truth).abs().max() < 1e-5


@pytest.mark.parametrize("embedding_target", [-1.0, 0.2])
def test_statistics_of_two_halves_add_to_the_wholes(embedding_target) -> None:
    problem = draw(31, 3, 6, 4)
    whole = statistics(problem.x, problem.targets, 4, embedding_target)
    parts = [
        statistics(problem.x[part], problem.targets[part], 4, embedding_target)
        for part in (slice(0, 11), slice(11, 11), slice(11, 31))
    ]
    added = parts[0] + parts[1] + parts[2]
    torch.testing.assert_close(added.flat, whole.flat, rtol=1e-13, atol=1e-13)
    assert added.count.tolist() == torch.bincount(problem.targets, minlength=4).tolist()


def test_statistics_match_their_definition() -> None:
    problem = draw(31, 3, 6, 4, shift=2.0)
    got = statistics(problem.x, problem.targets, 4)
    x = problem.x
    centred = x - x.mean(-1, keepdim=True)
    z = centred / centred.norm(dim=-1, keepdim=True)
    for a in range(4):
        own = problem.targets == a
        torch.testing.assert_close(got.direction_sum[a], z[own].sum(0))
        torch.testing.assert_close(got.centred_sum[a], centred[own].sum(0))
        torch.testing.assert_close(got.norm_sum[a], x[own].norm(dim=-1).sum(0))
        assert float(got.square_sum[a]) == 3 * int(own.sum())
    torch.testing.assert_close(got.embedding_sum, z.sum(1).square().sum())


def test_statistics_that_do_not_fit_do_not_add() -> None:
    problem = draw(8, 2, 4, 3)
    one = statistics(problem.x, problem.targets, 3)
    with pytest.raises(ValueError, match="embedding_target"):
        one + statistics(problem.x, problem.targets, 3, 0.5)
    with pytest.raises(ValueError, match="num_classes"):
        one + statistics(problem.x, problem.targets, 4)
    with pytest.raises(TypeError):
        one + 1
    with pytest.raises(ValueError, match="expected 61 numbers"):
        ClassStatistics(torch.zeros(60), 3, 2, 4)


# The error budget: float64 is the truth; the reference computed in float32 on the same inputs is the plain formula. A
# backend may be no further from the truth than twice that, plus a rounding of its own.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", [*LINEAR, "plain"])
@pytest.mark.parametrize(
    "shape, shift", [((60, 7, 256, 7), 0), ((130, 3, 17, 20), 0), ((60, 7, 64, 7), 30), ((8, 1, 2, 3), 0)]
)
@pytest.mark.parametrize("target", [-1, "simplex"])
def test_error_budget(dtype, backend, shape, shift, target) -> None:
    problem = draw(*shape, shift=shift, between=target, mean=target, embedding=target)
    rounded = problem.x.to(dtype)
    problem = problem._replace(x=rounded.double(), attention=problem.attention.float().double())
    truth = run(problem, "reference")
    plain = run(problem, "reference", x=rounded.float())
    values, gradient = run(problem, backend, x=rounded)
    assert gradient.dtype == dtype
    assert values.dtype == torch.float32
    eps = torch.finfo(torch.float32).eps
    value_error = (values - truth[0]).abs()
    assert bool((value_error <= 2 * (plain[0] - truth[0]).abs() + 8 * eps).all()), value_error / eps
    rounding = torch.finfo(dtype).eps / 2 * truth[1].abs() + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    scale = gradient_scale(problem)
    allowed = 2 * (plain[1] - truth[1]).abs().max() + 16 * eps * scale + 1.01 * rounding * (dtype != torch.float32)
    error = (gradient.double() - truth[1]).abs()
    assert bool((error <= allowed).all()), f"worst {float((error / allowed).max()):.2f} of the budget"


@pytest.mark.parametrize("backend", LINEAR)
def test_float16_gradient_under_a_grad_scaler(backend) -> None:
    """The gradient times 65,536, without which it would underflow in float16."""
    problem = draw(60, 7, 64, 7)
    half = problem.x.half()
    x = half.clone().requires_grad_()
    (sum(adcorre_terms(x, problem.targets, problem.attention, backend=backend)) * 65536).backward()
    truth_x = half.double().requires_grad_()
    sum(adcorre_terms(truth_x, problem.targets, problem.attention, backend="reference")).backward()
    scaled = truth_x.grad * 65536
    assert (x.grad.double() - scaled).abs().max() <= 1e-3 * scaled.abs().max()
    assert truth_x.grad.abs().max() < 6e-4


@pytest.mark.parametrize("kind", ["transposed", "expanded", "strided", "every second entry"])
@pytest.mark.parametrize("backend", LINEAR)
def test_any_strides(kind, backend) -> None:
    problem = draw(12, 3, 8, 4)
    x = {
        "transposed": lambda: problem.x.transpose(0, 1).contiguous().transpose(0, 1),
        "expanded": lambda: problem.x[:1].expand(12, 3, 8),
        "strided": lambda: torch.cat((problem.x, problem.x), 1)[:, ::2],
        "every second entry": lambda: problem.x.repeat_interleave(2, -1)[..., ::2],
    }[kind]()
    assert kind == "expanded" or not x.is_contiguous() or x.stride() != (24, 8, 1)
    strided = problem._replace(x=x)
    assert_close(strided, run(strided, backend), run(strided, "reference", x=x.contiguous()))
    assert run(strided, backend)[1].is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("embedding_target", [-1.0, 0.3])
def test_opcheck(dtype, embedding_target) -> None:
    problem = draw(9, 2, 4, 3, dtype=dtype)
    working = torch.float64 if dtype == torch.float64 else torch.float32
    torch.library.opcheck(streaming.streaming_statistics, (problem.x, problem.targets, 3, -100, embedding_target))
    table = torch.randn(3, 2, 4, dtype=working)
    torch.library.opcheck(
        streaming.streaming_gradient,
        (problem.x, problem.targets, table, table, torch.tensor(0.1, dtype=working), -100, embedding_target),
    )


def test_many_classes_and_blocks_of_them(monkeypatch) -> None:
    """Other targets loop over class pairs in blocks: on a CPU over classes with samples, elsewhere over all."""
    from adcorre import statistics as module

    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 300)
    problem = draw(50, 2, 5, 60, between=0.1, mean=0.1)
    expected = run(problem, "reference")
    assert_close(problem, run(problem, "torch"), expected)
    present = torch.bincount(problem.targets, minlength=60) > 0
    assert module._compared_classes(present).tolist() == sorted(set(problem.targets.tolist()))
    monkeypatch.setattr(module, "validates_labels", lambda *_: False)
    assert len(module._class_blocks(module._compared_classes(present), 2)) == 30
    assert_close(problem, run(problem, "torch"), expected)
