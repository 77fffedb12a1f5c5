"""Batches: every sample in its place whatever the workers, entered anywhere, balanced where asked for."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.train.test_evaluate import grey, to_tensor
from train.data.balance import balanced_order
from train.data.base import GreyArray
from train.data.loading import TrainSteps, train_batches
from train.errors import UserError
from train.ranks import Ranks

NOISY = torch.float64


def noisy(image: Image.Image) -> Tensor:
    """The sample's number, and a random part below a half."""
    return to_tensor(image).to(NOISY) + torch.rand((), dtype=NOISY) / 2


def epoch_of(steps: TrainSteps, epoch: int, start: int = 0) -> list[list[float]]:
    """The images of each chunk, in the order in which they are trained on."""
    steps.go_to(epoch, start)
    return [images.tolist() for chunks, _ in steps for images, _ in chunks()]


@pytest.mark.parametrize("n, batch_size, batches", [(10, 4, [4, 4, 2]), (9, 4, [4, 4]), (8, 4, [4, 4]), (3, 60, [3])])
def test_training_drops_a_last_batch_of_one_only(n: int, batch_size: int, batches: list[int]) -> None:
    steps = train_batches(grey(n), to_tensor, batch_size, 0, False, seed=0)
    epochs = [epoch_of(steps, epoch) for epoch in (1, 2)]
    for epoch in epochs:
        assert [len(batch) for batch in epoch] == batches
        assert len({x for batch in epoch for x in batch}) == sum(batches)
    assert epochs[0] != epochs[1]
    assert epoch_of(train_batches(grey(n), to_tensor, batch_size, 0, False, seed=0), 1) == epochs[0]


def test_training_on_one_image_is_refused() -> None:
    with pytest.raises(UserError, match="at least 2 images"):
        train_batches(grey(1), to_tensor, 4, 0, False, seed=0)
