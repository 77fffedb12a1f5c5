"""AdCorreMetricLoss: values and gradients, attention, states, refusals."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adcorre import AdaptiveAttentionMap
from adcorre.metric import AdCorreMetricLoss
from adcorre.nearest_means import RATE, ClassMeans
from tests.metric.tools import truth

SIMPLEX: dict[str, Any] = {"between_target": "simplex", "mean_target": "simplex"}
# labels, num_classes, shape of an embedding
CASES: dict[str, tuple[list[int], int | None, tuple[int, ...]]] = {
    "k = 1, as pytorch-metric-learning has it": ([0, 1, 2, 0, 1, 2, 2], 3, (8,)),
    "mapped, beyond 0 ... C - 1": ([70, -3, 70, 2**40, -3, 8, 8], None, (8,)),
    "mapped, k vectors": ([5, 9, 5, 9, 9, 7], None, (3, 8)),
    "mapped, ignored labels": ([5, -100, 5, 9, -100, 7], None, (3, 8)),
    "every sample its own class": (list(range(100, 120)), None, (16,)),
    "one class only": ([4] * 5, None, (3, 8)),
    "one sample": ([4], None, (8,)),
    "all ignored": ([-100] * 4, None, (8,)),
    "no sample": ([], None, (8,)),
    "two classes": ([7, 4, 4], None, (8,)),
    "1,000 classes, few of them here": ([999, 3, 999, 500, 3], 1000, (2, 8)),
    "1,000 classes, all of them here": (list(range(7, 7007, 7)) + list(range(7, 1407, 7)), None, (4,)),
}


def random_batch(
    labels: list[int], shape: tuple[int, ...], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    x = torch.randn(len(labels), *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x.to(dtype).requires_grad_(), torch.tensor(labels, dtype=torch.int64)


def step(loss_fn: nn.Module, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    loss = loss_fn(x, labels)
    assert loss.shape == ()
    return loss.detach(), torch.autograd.grad(loss, x)[0]


def assert_same(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], tolerance: float = 1e-11) -> None:
    for value, target in zip(got, expected, strict=True):
        torch.testing.assert_close(value.double(), target, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_is_the_reference(name: str) -> None:
    labels, num_classes, shape = CASES[name]
    x, targets = random_batch(labels, shape)
    expected = truth(x, targets, num_classes)
    assert_same(step(AdCorreMetricLoss(num_classes), x, targets), expected)
    at_paper = {"between_target": -1, "mean_target": -1}
    assert_same(
        step(AdCorreMetricLoss(num_classes, **at_paper), x, targets), truth(x, targets, num_classes, **at_paper)
    )
    if name not in ("one class only", "one sample", "all ignored", "no sample"):
        assert expected[1].any()


@pytest.mark.parametrize("target", ["simplex", -1])
def test_ten_thousand_classes(target: Any) -> None:
    """Classes that the batch lacks count in MD's divisor and in the simplex, and nowhere else."""
    x, labels = random_batch([9_999, 3, 9_999, 500, 3, 0, 77], (8,))
    targets = dict.fromkeys(("between_target", "mean_target"), -1 / 9_999 if target == "simplex" else -1)
    expected = truth(x, labels, weights={"fd": 1, "md": (5 / 10_000) ** 2, "ed": 1}, **targets)
    loss = AdCorreMetricLoss(10_000, between_target=target, mean_target=target)
    assert_same(step(loss, x, labels), expected)


def test_no_look_at_a_device() -> None:
    """With `num_classes`: on the meta device there is no value to wait for."""
    loss = AdCorreMetricLoss(4, backend="torch", **SIMPLEX)
    x = torch.empty(12, 8, device="meta", requires_grad=True)
    loss(x, torch.empty(12, dtype=torch.int64, device="meta")).backward()
    assert x.grad is not None


@pytest.mark.parametrize(
    "options",
    [
        {"components": {"fd": 0.3, "ed": 2.0}},
        {"components": ["nfd", "md"]},
        {"between_target": "simplex", "mean_target": 0.2, "embedding_target": 0.1},
        {"pairs": "sample", "between_target": 0.1},
        {"backend": "reference"},
        {"ignore_index": 2},  # among labels that are mapped to 0, 1, 2, ...
    ],
    ids=str,
)
@pytest.mark.parametrize("mapped", [False, True])
def test_options(options: dict[str, Any], mapped: bool) -> None:
    x, labels = random_batch([0, 1, 2, 4, 2, 1, 0, 4, 4], (3, 8))
    labels = labels * 2
    num_classes = None if mapped else 10
    options_of_terms = {name: value for name, value in options.items() if name not in ("components", "backend")}
    weights = {"fd": 0.3, "ed": 2.0} if isinstance(options.get("components"), dict) else None
    if "nfd" in options.get("components", ()):
        weights = {"fd": 1.0, "md": 1.0}
    expected = truth(x, labels, num_classes, weights=weights, **options_of_terms)
    assert_same(step(AdCorreMetricLoss(num_classes, **options), x, labels), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_dtypes(dtype: torch.dtype) -> None:
    x, labels = random_batch(list(range(7)) * 4, (2, 16), dtype)
    loss, gradient = step(AdCorreMetricLoss(), x, labels.to(torch.int16))
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    expected = truth(x, labels)
    torch.testing.assert_close(loss.double(), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), expected[1], rtol=0.05, atol=float(expected[1].abs().max()) / 100)


def test_given_weights() -> None:
    x, labels = random_batch([0, 1, 2, 0, 1], (8,))
    w = torch.tensor([0.1, 0.9, 0.4])
    loss = AdCorreMetricLoss(3, attention=w)
    assert_same(step(loss, x, labels), truth(x, labels, 3, w))
    assert loss.state_dict().keys() == {"attention_weights"}
    with torch.device("meta"):
        on_meta = AdCorreMetricLoss(3, attention=torch.ones(3))
    assert on_meta.to_empty(device="cpu").attention_weights.isnan().all()


def nearest(means: Tensor, x: Tensor) -> Tensor:
    """The class mean that correlates most with each of x (n, k, d), with loops."""
    return torch.tensor([max(range(len(means)), key=lambda a: correlation(one, means[a])) for one in x.detach()])


def correlation(x: Tensor, y: Tensor) -> float:
    return float(sum(torch.corrcoef(torch.stack((a, b)))[0, 1] for a, b in zip(x, y, strict=True)))


def with_map(**options: Any) -> AdCorreMetricLoss:
    return AdCorreMetricLoss(3, attention=AdaptiveAttentionMap(3, window=2), embedding_size=(2, 8), **options)


def test_attention_map_counts_nearest_means_of_earlier_steps() -> None:
    loss = with_map().double()
    truth_map = AdaptiveAttentionMap(3, window=2)
    rng = torch.Generator().manual_seed(3)
    centers = torch.randn(3, 2, 8, generator=rng, dtype=torch.float64)
    means: dict[int, Tensor] = {}
    for index in range(4):
        labels = torch.tensor([0, 0, 1, 1, 0, 1] if index < 2 else [2, 0, 1, 2, 2, 1])
        x = (centers[labels] + torch.randn(6, 2, 8, generator=rng, dtype=torch.float64)).requires_grad_()
        known = sorted(means)
        counts = torch.zeros(2, 3, dtype=torch.int64)
        predicted = torch.tensor(known)[nearest(torch.stack([means[a] for a in known]), x)] if known else labels - 9
        counts.index_put_((torch.tensor(0), labels), (predicted == labels).long(), accumulate=True)
        counts.index_put_((torch.tensor(1), labels), torch.ones(6, dtype=torch.int64), accumulate=True)
        truth_map.record(counts)
        assert_same(step(loss, x, labels), truth(x, labels, 3, truth_map.weights()))
        z = x.detach() - x.detach().mean(-1, keepdim=True)
        z = nn.functional.normalize(z, dim=-1)
        for a in set(labels.tolist()):
            new = z[labels == a].mean(0)
            means[a] = means[a] + RATE * (new - means[a]) if a in means else new
    assert 0 < int(truth_map.counts[:, 0].sum()) < int(truth_map.counts[:, 1].sum())
    torch.testing.assert_close(loss.class_means.means, torch.stack([means[a] for a in range(3)]))


def test_state_of_the_map() -> None:
    """Checkpointed, restored, copied; nothing is recorded in eval mode or without gradients."""
    x, labels = random_batch([0, 1, 2, 0, 1, 2], (2, 8), torch.float32)
    loss = with_map()
    for _ in range(3):
        step(loss, x, labels)
    restored = with_map()
    restored.load_state_dict(loss.state_dict())
    copied, unpickled = copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    with torch.no_grad():
        loss(x, labels)
    assert_same(step(loss.eval(), x, labels), truth(x, labels, 3, loss.attention_map.weights()), 1e-5)
    for name, value in loss.state_dict().items():
        assert torch.equal(value, before[name]), name
    following = step(loss.train(), x, labels)
    for other in (restored, copied, unpickled):
        assert_same(step(other, x, labels), (following[0].double(), following[1].double()), 0)
    assert bool((loss.attention_map.weights() < 0.1).all())  # now every sample is nearest to its class's mean
    with torch.device("meta"):
        empty = ClassMeans(3, 2, 8)
    assert not empty.to_empty(device="cpu").means.any()


def test_learns_embeddings() -> None:
    """A bare loop: samples of a class come together, and every two classes apart, to a correlation of -1/4."""
    labels = torch.arange(5).repeat(8) * 11
    x = torch.randn(40, 16, requires_grad=True)
    optimizer, loss = torch.optim.Adam([x], lr=0.1), AdCorreMetricLoss(**SIMPLEX)
    for _ in range(100):
        optimizer.zero_grad()
        loss(x, labels).backward()
        optimizer.step()
    correlations = torch.corrcoef(x.detach())
    same = labels[:, None] == labels
    assert float(correlations[same].min()) > 0.9
    assert -0.4 < float(correlations[~same].min()) < float(correlations[~same].max()) < -0.1


@pytest.mark.parametrize(
    "options, match",
    [
        ({"attention": torch.ones(3)}, "needs num_classes"),
        ({"num_classes": 3, "attention": torch.ones(4)}, "3 weights"),
        ({"num_classes": 3, "attention": AdaptiveAttentionMap(3)}, "embedding_size"),
        ({"num_classes": 3, "attention": nn.Linear(3, 3)}, "AttentionMap"),
        ({"num_classes": 0}, "num_classes"),
        ({"components": ()}, "at least one"),
        ({"distance": None}, "'distance'; it always compares embeddings by correlation"),
        ({"num_class": 3}, "unexpected argument 'num_class'$"),
        ({"mean_target": 2}, "mean_target"),
        ({"backend": "reference", "process_group": "world"}, "reference"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], match: str) -> None:
    with pytest.raises((ValueError, TypeError), match=match):
        AdCorreMetricLoss(**options)


def test_inputs_out_of_range() -> None:
    x, labels = random_batch([0, 1, 2], (8,))
    with pytest.raises(IndexError, match="labels: label 2"):
        AdCorreMetricLoss(2)(x, labels)
    assert AdCorreMetricLoss(2, validate=False)(x, labels).isnan()
    with pytest.raises(ValueError, match="embedding_size"):
        with_map()(x, labels)
    with pytest.raises(ValueError, match="labels"):
        AdCorreMetricLoss()(x)
    with pytest.raises(TypeError, match="labels: expected integer"):
        AdCorreMetricLoss()(x, labels.float())
    with pytest.raises(TypeError, match="labels: expected a torch.Tensor, got list"):
        AdCorreMetricLoss()(x, ["a", "b", "c"])
    with pytest.raises(TypeError, match=r"labels: expected a torch.Tensor, got numpy.ndarray; convert it"):
        AdCorreMetricLoss()(x, labels.numpy())


@pytest.mark.compiles
@pytest.mark.parametrize("num_classes", [3, None])
def test_compiled(num_classes: int | None) -> None:
    """Mapped labels break the graph where the classes are counted; with num_classes there is one graph."""
    torch.compiler.reset()
    loss = AdCorreMetricLoss(num_classes, **SIMPLEX)
    compiled = torch.compile(loss, fullgraph=num_classes is not None)
    for labels in ([0, 1, 2, 0], [2, 2, 1, 1]):
        x, targets = random_batch(labels, (8,), torch.float32)
        expected = step(loss, x, targets)
        assert_same(step(compiled, x, targets), (expected[0].double(), expected[1].double()), 1e-5)
