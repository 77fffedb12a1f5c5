"""Metrics against scikit-learn's; every sample is counted."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, log_loss
from sklearn.metrics import precision_recall_fscore_support as scores
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from train.analysis.pictures import draw_confusion
from train.data.base import GreyArray, limit, stratified_sample
from train.data.loading import evaluation_batches
from train.evaluation import Evaluation, evaluate, evaluation_from_logits

NAMES = ("Neutral", "Happy", "Sad", "Surprise", "Fear", "Disgust", "Anger")
CPU = torch.device("cpu")


class Identity(nn.Module):
    """The input is the logits."""

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        assert not self.training
        return logits, logits


def evaluate_logits(logits: Tensor, targets: Tensor, batch_size: int = 32) -> Evaluation:
    return evaluate(Identity(), DataLoader(TensorDataset(logits, targets), batch_size=batch_size), NAMES, CPU)


def random_batch(n: int = 500, seed: int = 0, classes: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, classes, (n,), generator=generator)
    logits = torch.randn(n, 7, generator=generator)
    return logits + 1.5 * nn.functional.one_hot(targets, 7), targets


@pytest.mark.parametrize("batch_size", [1, 32, 500, 1000])
def test_agrees_with_scikit_learn(batch_size: int) -> None:
    logits, targets = random_batch()
    actual = evaluate_logits(logits, targets, batch_size)
    predicted = logits.argmax(1)
    precision, recall, f1, support = scores(targets, predicted, labels=range(7))
    assert actual.samples == 500
    assert (actual.confusion == confusion_matrix(targets, predicted)).all()
    assert actual.accuracy == pytest.approx(accuracy_score(targets, predicted), abs=1e-6)
    assert actual.average_accuracy == pytest.approx(balanced_accuracy_score(targets, predicted), abs=1e-6)
    assert actual.nll == pytest.approx(log_loss(targets, logits.double().softmax(1), labels=range(7)), rel=1e-6)
    confidence, right = logits.softmax(1).max(1).values.double(), predicted == targets
    bins = (confidence * 15).ceil()
    gaps = [
        (right[bins == b].double().mean() - confidence[bins == b].mean()).abs() * (bins == b).sum()
        for b in bins.unique()
    ]
    assert actual.ece == pytest.approx(float(sum(gaps)) / 500, abs=1e-5)
    assert actual.precision == pytest.approx(precision, abs=1e-6)
    assert actual.recall == pytest.approx(recall, abs=1e-6)
    assert actual.f1 == pytest.approx(f1, abs=1e-6)
    assert actual.support == tuple(support)


def test_model_is_left_in_the_mode_it_was_in() -> None:
    model = Identity().train()
    logits, targets = random_batch(10)
    evaluate(model, DataLoader(TensorDataset(logits, targets)), NAMES, CPU)
    assert model.training


def test_a_class_without_samples_does_not_enter_the_average() -> None:
    logits, targets = random_batch(classes=6)  # no Anger, but some predicted as such
    predicted = logits.argmax(1)
    assert (predicted == 6).any()
    actual = evaluate_logits(logits, targets)
    recalls = [((predicted == c) & (targets == c)).sum() / (targets == c).sum() for c in range(6)]
    assert actual.average_accuracy == pytest.approx(float(np.mean(recalls)), abs=1e-6)
    assert math.isnan(actual.recall[6])
    assert actual.precision[6] == 0
    assert actual.f1[6] == 0
    assert "over 6 classes; none of Anger" in actual.summary()
    described = json.loads(json.dumps(actual.as_dict(), allow_nan=False))
    assert described["classes"]["Anger"] == {"precision": 0.0, "recall": None, "f1": 0.0, "samples": 0}
    assert described["average_accuracy_over"] == list(NAMES[:6])


def test_a_class_neither_present_nor_predicted_has_no_figures() -> None:
    targets = torch.tensor([0, 1, 1])
    actual = evaluate_logits(nn.functional.one_hot(targets, 7).float(), targets)
    assert actual.accuracy == actual.average_accuracy == 1
    assert all(math.isnan(figures[3]) for figures in (actual.precision, actual.recall, actual.f1))
    assert "-" in actual.table()


def test_tables_and_picture(tmp_path: Path) -> None:
    logits, targets = random_batch(classes=6)
    actual = evaluate_logits(logits, targets)
    actual.write_tables(tmp_path / "confusion.csv", tmp_path / "classes.csv")
    with (tmp_path / "confusion.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0][1:] == list(NAMES)
    assert [row[0] for row in rows[1:]] == list(NAMES)
    assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == actual.confusion.tolist()
    with (tmp_path / "classes.csv").open() as file:
        classes = list(csv.DictReader(file))
    assert [row["class"] for row in classes] == list(NAMES)
    assert float(classes[2]["recall"]) == pytest.approx(actual.recall[2])
    assert classes[6]["recall"] == ""
    draw_confusion(tmp_path / "confusion.png", actual.confusion, NAMES, "drawn")
    with Image.open(tmp_path / "confusion.png") as picture:
        assert min(picture.size) > 400


def grey(n: int) -> GreyArray:
    pixels = np.arange(n, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8)
    return GreyArray(pixels, np.arange(n, dtype=np.int64) % 3, NAMES, "train", "x")


def to_tensor(image: Image.Image) -> Tensor:
    return torch.tensor(float(np.asarray(image)[0, 0, 0]))


@pytest.mark.parametrize("n, batch_size", [(10, 4), (9, 4), (7, 7), (3, 60)])
def test_evaluation_sees_each_sample_once_in_order(n: int, batch_size: int) -> None:
    seen = [x for images, _ in evaluation_batches(grey(n), to_tensor, batch_size, 0, False) for x in images.tolist()]
    assert seen == list(range(n))


def test_stratified_draw() -> None:
    labels = np.repeat(np.arange(4), (100, 10, 2, 1))
    held = stratified_sample(labels, 0.1, seed=0)
    assert np.bincount(labels[held], minlength=4).tolist() == [10, 1, 1, 0]
    assert (np.diff(held) > 0).all()
    assert held.tolist() != stratified_sample(labels, 0.1, seed=1).tolist()


def test_limit_keeps_proportions() -> None:
    labels = np.repeat(np.arange(3), (60, 30, 10)).astype(np.int64)
    whole = GreyArray(np.zeros((100, 2, 2), np.uint8), labels, NAMES[:3], "test", "x")
    part = limit(whole, 20, seed=0)
    assert len(part) == 20
    assert part.split == "test"
    assert np.abs(np.bincount(part.labels) - [12, 6, 2]).max() <= 1
    assert limit(whole, 100, seed=0) is whole
    assert part.fingerprint != limit(whole, 20, seed=1).fingerprint


def test_a_collapsed_model_is_reported() -> None:
    names = ("a", "b", "c")
    targets = torch.arange(90) % 3
    same = torch.zeros(90, 3).index_fill(1, torch.tensor([1]), 5.0)
    assert (
        "collapsed: 100% of the images are predicted as b (33% are)"
        in evaluation_from_logits(same, targets, names).collapse
    )
    assert evaluation_from_logits(5.0 * torch.eye(3)[targets], targets, names).collapse == ""
    nearly_all = torch.where(torch.arange(90) < 80, 1, 2)
    assert evaluation_from_logits(same, nearly_all, names).collapse == "", "nearly all are of that class"
