"""Eq. 12: module and functional form, PyTorch's cross-entropy, components, lambda, dtypes, autocast."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from adcorre import AdCorreLoss, EmbeddingSpace, adcorre_loss, adcorre_terms
from tests.loss.tools import LINEAR, draw


def batch(n: int = 20, num_classes: int = 4, dtype: torch.dtype = torch.float64):
    problem = draw(n, 3, 8, num_classes)
    logits = torch.randn(n, num_classes, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return logits.to(dtype).requires_grad_(), problem.x.to(dtype).requires_grad_(), problem.targets


def test_the_total_is_eq_12() -> None:
    logits, x, y = batch()
    loss = AdCorreLoss(4)
    out = loss(logits, x, y)
    correct = logits.argmax(1) == y
    w = torch.stack([1 - correct[y == a].double().mean() + 1e-6 for a in range(4)])
    torch.testing.assert_close(out.attention, w)
    fd, md, ed = adcorre_terms(x, y, w, backend="reference")
    torch.testing.assert_close(out.loss, cross_entropy(logits, y) + 0.5 * (fd + md + ed))
    for got, expected in zip(out[1:5], (cross_entropy(logits, y), fd, md, ed), strict=True):
        torch.testing.assert_close(got, expected.detach())
        assert not got.requires_grad
    torch.testing.assert_close(out.nfd, adcorre_terms(x, y, torch.full((4,), 0.5).double()).fd.detach())
    functional = adcorre_loss(logits, x, y, w)
    for got, expected in zip(functional, out, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    "components", [(), ("fd",), ("md",), ("ed",), ("nfd",), ("ed", "nfd"), ("fd", "md"), ("fd", "md", "ed")]
)
@pytest.mark.parametrize("backend", [*LINEAR, "reference"])
def test_each_component_switches(components, backend) -> None:
    logits, x, y = batch()
    loss = AdCorreLoss(4, lambd=0.7, components=components, backend=backend)
    out = loss(logits, x, y)
    w = torch.full((4,), 0.5).double() if "nfd" in components else out.attention
    terms = adcorre_terms(x, y, w, backend="reference")
    chosen = {"fd": terms[0], "nfd": terms[0], "md": terms[1], "ed": terms[2]}
    expected = cross_entropy(logits, y) + 0.7 * sum(chosen[name] for name in components)
    torch.testing.assert_close(out.loss, expected)
    got = torch.autograd.grad(out.loss, (logits, x), allow_unused=True)
    truth = torch.autograd.grad(expected, (logits, x), allow_unused=True)
    assert (got[1] is None) == (not components)
    torch.testing.assert_close(got, truth, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(out[2:5], tuple(term.detach() for term in terms))  # reported even when switched off


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", LINEAR)
def test_cross_entropy_is_torchs(weighted, smoothing, dtype, backend) -> None:
    logits, x, y = batch(dtype=dtype)
    y[3] = y[7] = -100
    weight = torch.rand(4) + 0.1 if weighted else None
    out = AdCorreLoss(4, ce_weight=weight, label_smoothing=smoothing, components=(), backend=backend)(logits, x, y)
    wide = logits.detach().to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    weight = None if weight is None else weight.to(wide.dtype)
    expected = cross_entropy(wide, y, weight, label_smoothing=smoothing)
    torch.testing.assert_close(out.ce, expected.detach())
    out.loss.backward()
    expected.backward()
    torch.testing.assert_close(logits.grad, wide.grad.to(dtype))


def test_lambda_per_call_and_as_a_tensor() -> None:
    logits, x, y = batch()
    loss = AdCorreLoss(4, lambd=0.5).eval()
    default = loss(logits, x, y)
    terms = default.fd + default.md + default.ed
    for lambd in (0, 0.1, torch.tensor(0.1), torch.tensor(0.1, dtype=torch.float64)):
        out = loss(logits, x, y, lambd=lambd)
        torch.testing.assert_close(out.loss, default.ce + lambd * terms)


@pytest.mark.parametrize("backend", LINEAR)
def test_ignored_samples_and_nan_in_them(backend) -> None:
    logits, x, y = batch()
    keep = torch.arange(20) % 3 != 0
    expected = AdCorreLoss(4)(logits[keep], x[keep], y[keep])
    y[~keep] = -100
    with torch.no_grad():
        logits[0, 1] = torch.nan
        x[3, 1, 1] = torch.inf
    for smoothing in (0.0, 0.1):
        out = AdCorreLoss(4, label_smoothing=smoothing, backend=backend)(logits, x, y)
        if smoothing == 0:
            torch.testing.assert_close(out, expected)
        for gradient in torch.autograd.grad(out.loss, (logits, x)):
            assert bool(gradient.isfinite().all())
            assert gradient[~keep].abs().max() == 0


@pytest.mark.parametrize("backend", [*LINEAR, "reference"])
def test_no_pairs_gives_zero_with_a_graph(backend) -> None:
    logits, x, y = batch()
    out = AdCorreLoss(4, backend=backend)(logits, x, torch.full_like(y, -100))
    assert float(out.loss) == 0
    out.loss.backward()
    assert float(logits.grad.abs().max()) == float(x.grad.abs().max()) == 0
    empty = AdCorreLoss(4, backend=backend)(logits[:0], x[:0], y[:0])
    assert float(empty.loss) == 0
    empty.loss.backward()


@pytest.mark.parametrize("backend", [*LINEAR, "reference"])
def test_a_bad_label_gives_nan(backend) -> None:
    logits, x, y = batch()
    y[5] = 4
    out = AdCorreLoss(4, backend=backend, validate=False)(logits, x, y)
    assert all(bool(value.isnan()) for value in (out.loss, out.ce, out.fd, out.md, out.ed, out.nfd))
    out.loss.backward()
    assert bool(x.grad.isnan().all())
    assert bool(logits.grad[torch.arange(20) != 5].isnan().all())
    with pytest.raises(IndexError, match="label 4 at position 5"):
        AdCorreLoss(4, backend=backend, validate=True)(logits, x, y)


@pytest.mark.parametrize("backend", LINEAR)
def test_mixed_dtypes(backend) -> None:
    logits, x, y = batch(dtype=torch.float32)
    wide = AdCorreLoss(4, backend=backend)(logits, x.double(), y)
    assert wide.fd.dtype == wide.attention.dtype == torch.float64
    half = AdCorreLoss(4, backend=backend)(logits.bfloat16(), x.half(), y)
    assert half.fd.dtype == half.ce.dtype == torch.float32
    assert abs(float(half.loss.detach() - wide.loss.detach())) < 2e-2


def test_autocast_keeps_statistics_in_float32() -> None:
    logits, x, y = batch(60, dtype=torch.float32)
    for backend in (*LINEAR, "reference"):
        expected = AdCorreLoss(4, backend=backend)(logits, x, y)
        gradients = torch.autograd.grad(expected.loss, (logits, x))
        with torch.autocast("cpu", torch.bfloat16):
            out = AdCorreLoss(4, backend=backend)(logits, x, y)
            if backend != "reference":  # a backward pass inside autocast is discouraged, but must be right
                torch.testing.assert_close(torch.autograd.grad(out.loss, x, retain_graph=True)[0], gradients[1])
        got = torch.autograd.grad(out.loss, (logits, x))
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(got, gradients)


def test_a_single_embedding_without_its_axis() -> None:
    logits, x, y = batch()
    flat = x.detach()[:, 0].requires_grad_()
    one = AdCorreLoss(4)(logits, flat, y)
    torch.testing.assert_close(one, AdCorreLoss(4)(logits, flat[:, None], y))
    one.loss.backward()
    assert flat.grad.shape == flat.shape
    assert float(one.ed) == 0


def test_a_memorised_batch_trains_to_near_zero_cross_entropy() -> None:
    torch.manual_seed(0)
    images = torch.randn(40, 12)
    y = torch.randint(0, 4, (40,))
    model = torch.nn.Sequential(torch.nn.Linear(12, 64), torch.nn.ReLU(), EmbeddingSpace(64, 4, k=3, d=16, dropout=0.0))
    loss = AdCorreLoss(4, lambd=0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    first = None
    for _ in range(300):
        logits, embeddings = model(images)
        out = loss(logits, embeddings, y)
        first = first or out
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert float(out.ce) < 0.02
    assert float(out.nfd) < 0.8 * float(first.nfd)
    assert float(out.ed) < float(first.ed)
    assert out.attention.max() < 0.1


def test_the_module_moves_and_prints() -> None:
    loss = AdCorreLoss(4, ce_weight=torch.ones(4), components=("ed", "fd"))
    assert "components=('fd', 'ed')" in repr(loss)
    assert "window=5" in repr(loss)
    moved = loss.to("meta")
    assert moved.ce_weight.device.type == moved.attention_map.counts.device.type == "meta"
    assert loss.double().attention_map.counts.dtype == torch.int64
