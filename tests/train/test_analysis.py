"""Correlations, intervals and the pass over a split, against their definitions pair by pair and sample by sample."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn

from adcorre import ClassStatistics
from train.analysis.correlations import mean_correlations, sample_correlations, within_and_between
from train.analysis.intervals import bootstrap, classification_metrics
from train.analysis.outputs import collect_outputs, random_positions, with_tta

C, K, D = 5, 3, 6
CPU = torch.device("cpu")


def samples() -> tuple[Tensor, Tensor]:
    """Embeddings (40, K, D) around class centres; class 3 has one sample, class 4 none."""
    rng = torch.Generator().manual_seed(0)
    targets = torch.arange(40) % 3
    targets[7] = 3
    centres = torch.randn(C, K, D, generator=rng, dtype=torch.float64)
    return centres[targets] + torch.randn(40, K, D, generator=rng, dtype=torch.float64), targets


def statistics(x: Tensor, targets: Tensor) -> ClassStatistics:
    return ClassStatistics.of(x, targets, C)


def test_correlations_are_means_over_pairs() -> None:
    x, targets = samples()
    each = np.stack([np.corrcoef(x[:, l].numpy()) for l in range(K)]).mean(0)  # (n, n)
    pairs: dict[tuple[int, int], list[float]] = {}
    for i, j in itertools.permutations(range(len(x)), 2):
        pairs.setdefault((int(targets[i]), int(targets[j])), []).append(each[i, j])
    actual = sample_correlations(statistics(x, targets))
    for a, b in itertools.product(range(C), repeat=2):
        expected = np.mean(pairs[a, b]) if (a, b) in pairs else np.nan
        np.testing.assert_allclose(actual[a, b], expected, rtol=1e-10, err_msg=f"{a}, {b}")
    within = [value for (a, b), values in pairs.items() if a == b for value in values]
    between = [value for (a, b), values in pairs.items() if a != b for value in values]
    assert within_and_between(statistics(x, targets)) == pytest.approx((np.mean(within), np.mean(between)))


def test_correlations_of_class_means() -> None:
    x, targets = samples()
    means = np.stack([x[targets == c].mean(0).numpy() if (targets == c).any() else np.zeros((K, D)) for c in range(C)])
    with np.errstate(invalid="ignore"):
        expected = np.stack([np.corrcoef(means[:, l]) for l in range(K)]).mean(0)
    np.testing.assert_allclose(mean_correlations(statistics(x, targets)), expected, rtol=1e-10)
    assert np.isnan(expected[4]).all()


def test_no_pair_has_no_correlation() -> None:
    x, targets = samples()
    assert all(math.isnan(value) for value in within_and_between(statistics(x[:1], targets[:1])))


class Network(nn.Module):
    """Embeddings are the images; has dropout, so that a forward pass in training mode is noticed."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(K * D, C)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.dropout(images)
        return self.classifier(x.flatten(1)), x


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_a_pass_over_a_split_does_not_depend_on_its_batches(batch_size: int) -> None:
    x, targets = samples()
    model = Network().double().train()
    sample = random_positions(40, 9, seed=1)
    assert sample.tolist() == sorted(set(sample.tolist()))
    batches = list(zip(x.split(batch_size), targets.split(batch_size), strict=True))
    actual = collect_outputs(model, batches, C, CPU, sample)
    assert model.training
    torch.testing.assert_close(actual.logits, model.eval()(x)[0].float())
    assert torch.equal(actual.targets, targets)
    torch.testing.assert_close(actual.embeddings, x[torch.from_numpy(sample)].float())
    torch.testing.assert_close(actual.statistics.flat, statistics(x, targets).flat, rtol=1e-12, atol=1e-12)
    vectors = np.mean([np.corrcoef(one) for one in x.numpy()], axis=0)
    np.testing.assert_allclose(actual.vectors.numpy(), vectors, rtol=1e-10, atol=1e-12)


def test_a_pass_over_a_split_does_not_depend_on_its_order() -> None:
    x, targets = samples()
    model = Network().double()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    one = collect_outputs(model, [(x, targets)], C, CPU)
    other = collect_outputs(model, list(zip(x[order].split(7), targets[order].split(7), strict=True)), C, CPU)
    torch.testing.assert_close(one.statistics.flat, other.statistics.flat, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.logits[order], other.logits)


class Flat(nn.Module):
    """Probabilities that depend on every pixel."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.weights = torch.randn(pixels, C)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images.flatten(1) @ self.weights, images


def test_flip_averages_probabilities() -> None:
    images, plain = torch.randn(4, 3, 6, 6), Flat(108)
    model = with_tta(plain, "flip")
    probabilities = [plain(one)[0].softmax(1) for one in (images, images.flip(-1))]
    logits, embeddings = model(images)
    torch.testing.assert_close(logits.exp(), sum(probabilities) / 2)
    torch.testing.assert_close(model(images.flip(-1))[0], logits)
    assert torch.equal(embeddings, images)
    assert with_tta(plain, "none") is plain


def test_ten_crops_average_probabilities() -> None:
    """Of corners and centre, 18 of 20 pixels, enlarged, and of their mirror images."""
    images, plain = torch.randn(4, 3, 20, 20), Flat(1200)
    crops = [images[:, :, y : y + 18, x : x + 18] for y, x in ((0, 0), (0, 2), (2, 0), (2, 2), (1, 1))]
    views = [
        nn.functional.interpolate(view, (20, 20), mode="bilinear", align_corners=False)
        for crop in crops
        for view in (crop, crop.flip(-1))
    ]
    expected = torch.stack([plain(view)[0].softmax(1) for view in views]).mean(0)
    logits, embeddings = with_tta(plain, "tencrop")(images)
    torch.testing.assert_close(logits.exp(), expected)
    assert torch.equal(embeddings, images)


def confusion(n: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 4, n)
    predicted = np.where(rng.random(n) < 0.6, targets, rng.integers(0, 4, n))
    counts = np.zeros((4, 4), np.int64)
    np.add.at(counts, (targets, predicted), 1)
    return counts, targets, predicted


def test_macro_f1_is_scikit_learns() -> None:
    counts, targets, predicted = confusion()
    assert classification_metrics(counts)["macro_f1"] == pytest.approx(f1_score(targets, predicted, average="macro"))


def test_intervals_are_those_of_samples_drawn_again() -> None:
    counts, targets, predicted = confusion()
    actual = bootstrap(counts, 4000, seed=0)
    rng = np.random.default_rng(1)
    resampled = []
    for _ in range(4000):
        index = rng.integers(0, len(targets), len(targets))
        table = np.zeros((4, 4), np.int64)
        np.add.at(table, (targets[index], predicted[index]), 1)
        resampled.append(classification_metrics(table))
    for name in ("accuracy", "average_accuracy", "macro_f1", "recall", "precision", "f1"):
        expected = np.quantile([one[name] for one in resampled], [0.025, 0.975], axis=0)
        np.testing.assert_allclose(actual[name], expected, atol=0.012, err_msg=name)
    again = bootstrap(counts, 4000, seed=0)
    assert all((actual[name] == again[name]).all() for name in actual)
    assert (bootstrap(counts, 4000, seed=2)["f1"] != actual["f1"]).any()


def test_a_class_without_samples_has_no_interval() -> None:
    counts, _, _ = confusion()
    counts[2] = 0
    actual = bootstrap(counts, 100, seed=0)
    assert np.isnan(actual["recall"][:, 2]).all()
    assert not np.isnan(actual["average_accuracy"]).any()
    figures = classification_metrics(counts)
    for mean, each in (("average_accuracy", "recall"), ("macro_f1", "f1")):
        assert figures[mean] == pytest.approx(figures[each][[0, 1, 3]].mean())
