"""The five steps: the steps over the logits against autograd, sums that add up, and other attention maps."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from adcorre import AdCorreLoss, AttentionMap, ClassStatistics, VirtualBatch, adcorre_loss
from adcorre.backends import Options, get_backend
from tests.loss.test_loss import batch
from tests.loss.tools import LINEAR
from tests.virtual.tools import CLASSES, Model, assert_equal_gradients, assert_equal_outputs, draw, plain_step

SETTINGS = [
    (weighted, adjusted, smoothing)
    for weighted in (False, True)
    for adjusted in (False, True)
    for smoothing in (0, 0.1)
]


@pytest.mark.parametrize("weighted, adjusted, smoothing", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", LINEAR)
def test_the_gradient_of_the_logits_is_autograds(weighted, adjusted, smoothing, dtype, backend) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(30, 5, generator=rng, dtype=torch.float64)).to(dtype)
    targets = torch.randint(0, 5, (30,), generator=rng)
    targets[::7], logits[7] = 2, torch.nan
    weight = torch.tensor([0.1, 2, 9, 0, 1.0]).double() if weighted else None
    adjustment = torch.randn(5, generator=rng, dtype=torch.float64) if adjusted else None
    upstream = torch.tensor(0.3, dtype=torch.promote_types(dtype, torch.float32))
    steps = get_backend(Options(backend))
    counts, ce = steps.logits_sums(logits, targets, weight, adjustment, smoothing, 2)
    got = steps.logits_gradient(logits, targets, upstream, weight, adjustment, smoothing, 2)
    assert got.dtype == dtype
    assert ce.dtype == upstream.dtype

    part = targets != 2
    exact = logits.double().requires_grad_()
    scores = exact if adjustment is None else exact + adjustment
    total = cross_entropy(scores[part], targets[part], weight, reduction="sum", label_smoothing=smoothing)
    (expected,) = torch.autograd.grad(total * upstream.double(), exact)
    tolerance = {"rtol": max(1e-12, 2 * torch.finfo(dtype).eps), "atol": 4 * torch.finfo(torch.float32).eps}
    torch.testing.assert_close(got.double(), expected, **tolerance)
    assert got[~part].abs().max() == 0
    torch.testing.assert_close(ce[0].double(), total.detach(), rtol=1e-6, atol=0)
    divisor = part.sum() if weight is None else weight[targets[part]].sum()
    assert float(ce[1]) == pytest.approx(float(divisor), rel=1e-6)
    right = torch.bincount(targets[part & (logits.argmax(1) == targets)], minlength=5)
    assert counts.tolist() == [right.tolist(), torch.bincount(targets[part], minlength=5).tolist()]


@pytest.mark.parametrize("backend", LINEAR)
def test_gradcheck_of_the_whole_loss(backend) -> None:
    logits, x, y = batch(8)
    y[3] = -100
    settings = {
        "ce_weight": torch.rand(4).double(),
        "label_smoothing": 0.1,
        "components": {"fd": 0.3, "md": 2, "ed": 1},
    }

    def loss(backend: str):
        module = AdCorreLoss(4, logit_adjustment=torch.randn(4).double(), backend=backend, **settings).eval()
        return lambda logits, x: module(logits, x, y).loss

    assert torch.autograd.gradcheck(loss(backend), (logits, x))
    assert torch.autograd.gradgradcheck(loss("reference"), (logits, x))
    gradients = torch.autograd.grad(loss(backend)(logits, x), (logits, x), create_graph=True)
    for gradient in gradients:
        with pytest.raises(RuntimeError, match=f'backend "{backend}" has no double backward'):
            gradient.sum().backward(retain_graph=True)


@pytest.mark.parametrize("expected", ["logits", "x"])
def test_each_input_alone(expected) -> None:
    logits, x, y = batch()
    truth = torch.autograd.grad(AdCorreLoss(4)(logits, x, y).loss, logits if expected == "logits" else x)[0]
    alone = (logits, x.detach()) if expected == "logits" else (logits.detach(), x)
    (got,) = torch.autograd.grad(AdCorreLoss(4)(*alone, y).loss, logits if expected == "logits" else x)
    assert torch.equal(got, truth)


@pytest.mark.parametrize("backend", [*LINEAR, "reference"])
def test_each_component_has_its_weight(backend) -> None:
    """Computed from the terms; the same in a virtual batch and a plain one."""
    components = {"ed": 0.1, "nfd": 2.0, "md": 0.0}
    logits, x, y = batch()
    out = AdCorreLoss(4, lambd=0.7, components=components, backend=backend)(logits, x, y)
    torch.testing.assert_close(out.loss.detach(), out.ce + 0.7 * (2 * out.nfd + 0.1 * out.ed))
    torch.testing.assert_close(out.fd, out.nfd)  # times its weight in the loss; reported without it
    function = adcorre_loss(logits, x, y, out.attention, lambd=0.7, components=components, backend=backend)
    torch.testing.assert_close(function.loss, out.loss)
    gradient = torch.autograd.grad(out.loss, x)[0]
    parts = [
        torch.autograd.grad(AdCorreLoss(4, lambd=0.7 * weight, components=(name,))(logits, x, y).loss, x)[0]
        for name, weight in components.items()
    ]
    torch.testing.assert_close(gradient, sum(parts), rtol=1e-10, atol=1e-14)
    if backend != "reference":
        plain, virtual = Model().double(), Model().double()
        images, targets = draw(31)
        expected = plain_step(plain, AdCorreLoss(CLASSES, components=components, backend=backend), images, targets)
        got = VirtualBatch(virtual, AdCorreLoss(CLASSES, components=components, backend=backend), 7)(images, targets)
        assert_equal_outputs(got, expected)
        assert_equal_gradients(virtual, plain)


def test_parts_add_up_to_the_batch() -> None:
    """The public API: the added sums of parts give the whole loss."""
    logits, x, y = batch()
    loss, whole = AdCorreLoss(4), AdCorreLoss(4)
    expected = whole(logits, x, y)
    parts = [loss.part(logits[rows], x[rows], y[rows]) for rows in (slice(0, 7), slice(7, 7), slice(7, 20))]
    assert int(loss.attention_map.counts.sum()) == 0  # sums change nothing
    packed = sum(part.sums.pack() for part in parts)
    combined = loss.combine(parts[0]._replace(sums=parts[0].sums.unpack(packed)))
    assert torch.equal(loss.attention_map.counts, whole.attention_map.counts)
    torch.testing.assert_close(combined.attention.to(expected.attention), expected.attention)
    statistics = ClassStatistics.of(x, y, 4)
    torch.testing.assert_close(combined.statistics, statistics.flat, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("backend", LINEAR)
def test_class_statistics_of_samples(backend) -> None:
    _, x, y = batch()
    flat = get_backend(Options(backend)).statistics(x.detach(), y, 4, -100, 0.2)
    of = ClassStatistics.of(x, y.to(torch.uint8), 4, embedding_target=0.2, backend=backend)
    assert torch.equal(of.flat, flat)
    assert (of.num_classes, of.k, of.d, of.embedding_target) == (4, 3, 8, 0.2)
    assert not of.flat.requires_grad
    assert ClassStatistics.of(x[:, 0], y, 4).k == 1
    assert isinstance(of + of, ClassStatistics)
    with pytest.raises(IndexError, match="label 9 at position 0"):
        ClassStatistics.of(x, torch.full_like(y, 9), 4)
    with pytest.raises(ValueError, match='backend="reference" has no class statistics'):
        ClassStatistics.of(x, y, 4, backend="reference")


class MovingAverage(nn.Module):
    """w = 1 - recall, from counts that decay."""

    faded: Tensor

    def __init__(self, num_classes: int, decay: float = 0.5) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("faded", torch.zeros(2, num_classes, dtype=torch.float64))

    def _after(self, counts: Tensor) -> Tensor:
        return self.decay * self.faded + (1 - self.decay) * counts

    def record(self, counts: Tensor) -> None:
        self.faded.copy_(self._after(counts))

    def weights(self, counts: Tensor | None = None) -> Tensor:
        correct, seen = self.faded if counts is None else self._after(counts)
        return 1 - correct / seen.clamp(min=1e-9)


class Half(nn.Module):
    def record(self, counts: Tensor) -> None:
        """An attention map without state."""

    def weights(self, counts: Tensor | None = None) -> Tensor:
        return torch.full((4,), 0.5, dtype=torch.float64)


def test_a_moving_average_as_attention_map() -> None:
    """In training, in eval mode, without gradients, in a virtual batch and in the state."""
    assert isinstance(MovingAverage(4), AttentionMap)
    logits, x, y = batch()
    loss = AdCorreLoss(4, attention_map=MovingAverage(4))
    faded = torch.zeros(2, 4, dtype=torch.float64)
    for shift in range(3):
        rolled = logits.roll(shift, 0)
        right = rolled.argmax(1) == y
        counts = torch.stack([torch.bincount(labels, minlength=4) for labels in (y[right], y)])
        faded = 0.5 * faded + 0.5 * counts
        with torch.no_grad():
            peeked = loss(rolled, x, y)
        out = loss(rolled, x, y)
        torch.testing.assert_close(out.attention, 1 - faded[0] / faded[1])
        assert torch.equal(peeked.attention, out.attention)
    assert torch.equal(loss.state_dict()["attention_map.faded"], faded)
    function = adcorre_loss(rolled, x, y, out.attention)
    torch.testing.assert_close(function.loss, out.loss)
    assert torch.equal(loss.eval()(logits, x, y).attention, out.attention)
    images, targets = draw(31)
    steps = [AdCorreLoss(CLASSES, attention_map=MovingAverage(CLASSES)) for _ in range(2)]
    plain, virtual = Model().double(), Model().double()
    expected = plain_step(plain, steps[0], images, targets)
    assert_equal_outputs(VirtualBatch(virtual, steps[1], 7)(images, targets), expected)
    assert_equal_gradients(virtual, plain)
    assert torch.equal(steps[0].attention_map.faded, steps[1].attention_map.faded)


def test_a_constant_half_is_the_naive_fd() -> None:
    logits, x, y = batch()
    for backend in (*LINEAR, "reference"):
        got = AdCorreLoss(4, attention_map=Half(), backend=backend)(logits, x, y)
        expected = AdCorreLoss(4, components=("nfd", "md", "ed"), backend=backend)(logits, x, y)
        assert torch.equal(got.loss, expected.loss)
        gradients = [torch.autograd.grad(out.loss, (logits, x)) for out in (got, expected)]
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("wrong", [nn.Linear(2, 2), object()])
def test_objects_that_are_no_attention_map_raise_an_error(wrong) -> None:
    with pytest.raises(TypeError, match="attention_map: expected a torch.nn.Module with the methods record"):
        AdCorreLoss(4, attention_map=wrong)
