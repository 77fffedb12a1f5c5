"""The kernels over the logits against PyTorch's cross-entropy and argmax."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from adcorre import AdaptiveAttentionMap, AdCorreLoss, torch_backend
from adcorre_kernels import gpu
from adcorre_kernels.gpu import plan
from tests.kernels.launched.logits_tools import compare, draw
from tests.kernels.launched.tools import DEVICE

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# n, C: one sample, a tile plus one, several tiles per program, one class, padded classes, the maximum of classes.
SHAPES = [(1, 3), (0, 4), (33, 7), (300, 7), (1030, 2), (5, 1), (40, 32), (9, 33), (7, 1000), (3, 1024)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("adjusted", [False, True])
def test_cross_entropy_is_torchs(dtype, smoothing, weighted, adjusted) -> None:
    logits, targets, weight, adjustment = draw(300, 7, dtype)
    compare(logits, targets, weight if weighted else None, adjustment if adjusted else None, smoothing)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_shapes(shape, dtype) -> None:
    logits, targets, weight, adjustment = draw(*shape, dtype)
    compare(logits, targets, weight, adjustment, 0.1)
    compare(logits, targets, None, None, 0.0)


def test_many_programs_and_tiles(monkeypatch) -> None:
    """Five programs of two tiles each; their sums are added four at a time."""
    monkeypatch.setattr(plan, "LOGITS_PROGRAMS", 6)
    monkeypatch.setattr(plan, "LOGITS_TILE", 64)
    compare(*draw(70, 7, torch.float32), 0.1)


@pytest.mark.parametrize("strides", ["columns first", "a slice", "expanded"])
def test_any_strides(strides) -> None:
    logits, targets, weight, adjustment = draw(40, 7, torch.float32)
    other = {
        "columns first": logits.t().contiguous().t(),
        "a slice": torch.cat((logits, logits), 1)[:, :7],
        "expanded": logits[1:2].expand(40, 7),
    }[strides]
    compare(other, targets, weight.repeat_interleave(2)[::2], adjustment, 0.1)


def test_extreme_logits() -> None:
    """No overflow of exp; the loss of a class of probability 0 is infinite."""
    logits = torch.tensor([[1e30, 0, -1e30], [88, 89, -300], [0, 0, 0], [-3e38, 3e38, 0]], device=DEVICE)
    targets = torch.tensor([0, 1, 2, 1], device=DEVICE)
    compare(logits, targets, None, None, 0.0)
    logits[0, 0] = -torch.inf
    _, ce = gpu.logits_sums(logits, targets, None, None, 0.0, -100)
    assert float(ce[0]) == torch.inf


def test_predictions_of_ties_nan_and_infinity_are_argmaxs() -> None:
    inf, nan = torch.inf, torch.nan
    logits = torch.tensor(
        [
            [1, 1, 0],
            [nan, inf, 2],
            [0, nan, nan],
            [-inf, -inf, -inf],
            [-inf, -2, inf],
            [0.0, -0.0, -1],
            [inf, inf, nan],
        ],
        device=DEVICE,
    )
    for label in range(3):
        targets = torch.full((7,), label, device=DEVICE)
        counts, ce = gpu.logits_sums(logits, targets, None, None, 0.0, -100)
        assert int(counts[0, label]) == int((logits.argmax(1) == label).sum())
        assert bool(ce[0].isnan())


@pytest.mark.parametrize("label", [7, -1, 2**40, -(2**40)])
def test_a_bad_label_is_nan_and_nothing_outside_is_read(label) -> None:
    logits, targets, weight, adjustment = draw(40, 7, torch.float32)
    targets[5] = label
    counts, ce = gpu.logits_sums(logits, targets, weight, adjustment, 0.1, -100)
    assert bool(ce[1].isnan())
    assert int(counts[1].sum()) == int((targets != -100).sum()) - 1
    gradient = gpu.logits_gradient(logits, targets, 1 / ce[1], weight, adjustment, 0.1, -100)
    assert bool(gradient.isnan().all())


def test_ignore_index_may_be_a_class() -> None:
    logits, targets, weight, adjustment = draw(40, 7, torch.float32, ignored=False)
    counts, ce = gpu.logits_sums(logits, targets, weight, adjustment, 0.0, 2)
    expected = torch_backend.logits_sums(logits.double(), targets, weight, adjustment, 0.0, 2)
    assert torch.equal(counts, expected[0])
    torch.testing.assert_close(ce.double(), expected[1], rtol=1e-5, atol=1e-5)


def test_the_ring_is_that_of_the_attention_map() -> None:
    """The kernel's counts enter the window like those of `AdaptiveAttentionMap.count`."""
    loss, attention = AdCorreLoss(4, window=2, backend="triton").to(DEVICE), AdaptiveAttentionMap(4, 2).to(DEVICE)
    for seed in range(4):
        logits, targets, *_ = draw(30, 4, torch.float32, seed=seed)
        out = loss(logits, torch.randn(30, 2, 8, device=DEVICE), targets)
        assert torch.equal(out.attention, attention(logits, targets).float())
    assert torch.equal(loss.attention_map.counts, attention.counts)


@pytest.mark.parametrize("smoothing, weighted", [(0.0, False), (0.1, True)])
def test_opcheck(smoothing, weighted) -> None:
    logits, targets, weight, adjustment = draw(9, 5, torch.float32)
    settings = (weight if weighted else None, adjustment if weighted else None, smoothing, -100)
    torch.library.opcheck(gpu.logits_sums, (logits, targets, *settings))
    upstream = torch.ones((), device=DEVICE)
    torch.library.opcheck(gpu.logits_gradient, (logits, targets, upstream, *settings))


@pytest.mark.parametrize("backend_classes", [(1025, torch.float32), (4, torch.float8_e4m3fn)])
def test_unsupported_logits_use_pytorch(backend_classes) -> None:
    num_classes, dtype = backend_classes
    logits = torch.randn(6, num_classes, device=DEVICE)
    x, targets = torch.randn(6, 2, 8, device=DEVICE), torch.arange(6, device=DEVICE) % 4
    assert not gpu.logits_supported(logits.to(dtype))
    out = AdCorreLoss(num_classes, backend="triton")(logits, x, targets)
    torch.testing.assert_close(out.ce, cross_entropy(logits, targets))
