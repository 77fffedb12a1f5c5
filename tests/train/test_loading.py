"""Batches: the same order for any number of workers, started at any step, balanced if requested."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.train.test_evaluate import NAMES, grey, to_tensor
from train.data import Request, load_data
from train.data.balance import balanced_order
from train.data.base import GreyArray, Subset
from train.data.decoded import uniform_side
from train.data.loading import TrainSteps, train_batches
from train.errors import UserError
from train.ranks import Ranks
from train.settings import DataSettings
from train.transforms import DRAWS, BatchAugmentation, Preprocessing


def noisy(image: Image.Image) -> Tensor:
    """The sample's index plus a random number below 0.5."""
    return to_tensor(image).double() + torch.rand((), dtype=torch.float64) / 2


def epoch_of(steps: TrainSteps, epoch: int, start: int = 0) -> list[list[float]]:
    """The images of each chunk, in training order."""
    steps.set_epoch(epoch, start)
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


@pytest.mark.parametrize("chunks", [1, 2])
def test_a_sample_does_not_depend_on_workers_or_where_the_epoch_was_entered(chunks: int) -> None:
    torch.manual_seed(5)
    alone = train_batches(grey(30), noisy, 4, 0, False, seed=3, chunks=chunks)
    first, second = epoch_of(alone, 1), epoch_of(alone, 2)
    before = torch.get_rng_state()
    assert {int(x) for batch in first for x in batch} == set(range(30))
    assert {x % 1 for batch in first for x in batch}.isdisjoint({x % 1 for batch in second for x in batch})
    assert epoch_of(alone, 2, start=2) == second[2 * chunks :]
    helped = train_batches(grey(30), noisy, 4, 2, False, seed=3, chunks=chunks)
    assert epoch_of(helped, 1) == first
    assert epoch_of(helped, 2, start=1) == second[chunks:]
    assert torch.equal(torch.get_rng_state(), before), "loading took random numbers from the training"
    assert epoch_of(train_batches(grey(30), noisy, 4, 0, False, seed=4, chunks=chunks), 1) != first


def test_ranks_see_what_one_process_sees() -> None:
    alone = epoch_of(train_batches(grey(24), noisy, 8, 0, False, seed=1), 1)
    ranks = [epoch_of(train_batches(grey(24), noisy, 4, 0, False, seed=1, ranks=Ranks(r, 2)), 1) for r in range(2)]
    for whole, *halves in zip(alone, *ranks, strict=True):
        assert sorted(whole) == sorted(halves[0] + halves[1])


def test_balanced_classes() -> None:
    labels = np.repeat(np.arange(4), (60, 25, 5, 1))
    rounds = [balanced_order(labels, 5, seed=0, epoch=epoch) for epoch in range(20)]
    for order in rounds:
        assert len(order) == len(labels)
        counts = np.bincount(labels[order], minlength=5)
        assert counts[:4].max() - counts[:4].min() <= 1
        assert counts[4] == 0, "a class without samples"
        times = np.bincount(order, minlength=len(labels))
        for label in range(4):
            assert np.ptp(times[labels == label]) <= 1
    assert set(np.concatenate(rounds).tolist()) == set(range(len(labels)))
    assert (balanced_order(labels, 5, 0, 3) == rounds[3]).all()
    assert (rounds[3] != rounds[4]).any()
    assert len(balanced_order([], 5, 0, 0)) == 0
    with pytest.raises(ValueError, match="labels are 0 to 3; expected 0 to 2"):
        balanced_order(labels, 3, 0, 0)


def test_the_balanced_sampler() -> None:
    labels = np.repeat(np.arange(3), (30, 5, 1)).astype(np.int64)
    pixels = np.arange(36, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8)
    faces = GreyArray(pixels, labels, NAMES[:3], "train", "x")
    seen = epoch_of(train_batches(faces, to_tensor, 6, 0, False, seed=0, order="balanced"), 1)
    assert Counter(int(labels[int(x)]) for batch in seen for x in batch) == {0: 12, 1: 12, 2: 12}


def test_the_stream_is_for_shards() -> None:
    with pytest.raises(UserError, match="--sampler stream is for tar shards"):
        train_batches(grey(8), to_tensor, 4, 0, False, seed=0, order="stream")


# Augmentation of whole batches


def picture(side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


def augmented(settings: DataSettings, draws: Tensor, side: int = 48, size: int = 48) -> Tensor:
    preprocessing = Preprocessing(size, (0.5, 0.4, 0.3), (0.5, 0.25, 0.2))
    image = preprocessing.raw(side)(picture(side))
    return BatchAugmentation(preprocessing, settings)(image.expand(len(draws), -1, -1, -1), draws)


OFF = {"rotation": 0.0, "crop": 1.0, "contrast": 0.0, "brightness": 0.0}


@pytest.mark.parametrize("side, size", [(48, 48), (100, 48), (48, 112)])
def test_without_augmentation_equals_evaluation(side: int, size: int) -> None:
    preprocessing = Preprocessing(size, (0.5, 0.4, 0.3), (0.5, 0.25, 0.2))
    plain = preprocessing.evaluation()(picture(side))
    actual = augmented(DataSettings(**OFF), torch.rand(3, DRAWS), side, size)
    assert actual.shape == (3, 3, size, size)
    for image in actual:
        assert (image - plain).abs().max() < (1e-5 if side == size else 0.02)


def test_shift_and_scale() -> None:
    """A picture scaled to three quarters, and one shifted by a quarter; pixels from outside are black."""
    plain = augmented(DataSettings(**OFF), torch.rand(1, DRAWS))[0]
    mean, std = torch.tensor([0.5, 0.4, 0.3])[:, None, None], torch.tensor([0.5, 0.25, 0.2])[:, None, None]
    ends = torch.tensor([[0.5] * 8 + [0.5, 1.0, 0.0], [0.5] * 8 + [0.0, 0.5, 0.5]])
    moved = augmented(DataSettings(**OFF | {"shift": 0.25}), ends)[0]
    assert (moved[:, :36, 12:] - plain[:, 12:, :36]).abs().max() < 1e-4
    assert (moved * std + mean)[:, 36:].abs().max() < 1e-6
    small = (augmented(DataSettings(**OFF | {"scale": 0.25}), ends)[1] * std + mean)[:, 6:42, 6:42]
    expected = nn.functional.interpolate((plain * std + mean)[None], (36, 36), mode="bilinear")[0]
    assert (small - expected)[:, 1:-1, 1:-1].abs().max() < 1e-4


@pytest.mark.parametrize("way", ["loading", "batch"])
def test_erasing(way: str) -> None:
    """In about half of the images a rectangle of 2 to 33 % gets the mean color; the same seed gives the same."""
    preprocessing, settings = Preprocessing(32, (0.2,) * 3, (0.5,) * 3), DataSettings(**OFF | {"erasing": 0.5})
    face = Image.new("RGB", (32, 32), "white")
    if way == "loading":
        torch.manual_seed(0)
        transform = preprocessing.training(settings)
        images = torch.stack([transform(face) for _ in range(200)])
    else:
        augmentation = BatchAugmentation(preprocessing, settings)
        draws = [augmentation.draws(seed) for seed in range(200)]
        raw = preprocessing.raw(32)(face).expand(200, -1, -1, -1)
        images = augmentation(raw, *(torch.stack(part) for part in zip(*draws, strict=True)))
        assert all(torch.equal(a, b) for a, b in zip(draws[7], augmentation.draws(7), strict=True))
        turns = torch.stack([uniform[0] for uniform, _ in draws])
        erased = torch.tensor([bool((left == 0).any()) for _, left in draws])
        assert abs(turns[erased].mean() - turns[~erased].mean()) < 0.15, "erasing depends on the rotation"
    share = (images[:, 0] == 0).float().mean((1, 2))
    assert 70 <= (share > 0).sum() <= 130
    assert share[share > 0].min() > 0.01
    assert 0.25 < share.max() < 0.34
    assert images.unique().tolist() == pytest.approx([0.0, 1.6])


def test_each_augmentation_alone() -> None:
    plain = augmented(DataSettings(**OFF), torch.rand(1, DRAWS))[0]
    half, ends = torch.full((1, DRAWS), 0.5), torch.tensor([[0.0] * DRAWS, [1.0] * DRAWS])
    # A quarter turn permutes the pixels; its direction must match torchvision v2's for the same sign.
    turned = augmented(DataSettings(**OFF | {"rotation": 90.0}), ends)
    assert (turned[0] - plain.rot90(1, (1, 2))).abs().max() < 1e-4 or (
        turned[0] - plain.rot90(-1, (1, 2))
    ).abs().max() < 1e-4
    assert (turned[0] - turned[1].rot90(2, (1, 2))).abs().max() < 1e-4
    assert (augmented(DataSettings(**OFF | {"rotation": 90.0}), half)[0] - plain).abs().max() < 1e-4
    mirrored = augmented(DataSettings(**OFF, flip=True), ends)
    assert (mirrored[0] - plain.flip(-1)).abs().max() < 1e-4
    assert (mirrored[1] - plain).abs().max() < 1e-4
    mean, std = torch.tensor([0.5, 0.4, 0.3])[:, None, None], torch.tensor([0.5, 0.25, 0.2])[:, None, None]
    pixels = plain * std + mean
    bright = augmented(DataSettings(**OFF | {"brightness": 0.2}), ends) * std + mean
    assert (bright[0] - pixels * 0.8).abs().max() < 1e-5
    assert (bright[1] - (pixels * 1.2).clamp(max=1)).abs().max() < 1e-5
    strong = augmented(DataSettings(**OFF | {"contrast": 0.2}), ends) * std + mean
    grey_mean = (pixels * torch.tensor([0.2989, 0.587, 0.114])[:, None, None]).sum(0).mean()
    assert (strong[0] - (0.8 * pixels + 0.2 * grey_mean)).abs().max() < 1e-5


def test_crops_take_the_share_that_is_asked_for() -> None:
    """The range of a horizontal ramp within a crop is the crop's width; of a vertical ramp, its height."""
    draws = torch.rand(2000, DRAWS, generator=torch.Generator().manual_seed(0))
    ramp = torch.linspace(64, 255, 64).to(torch.uint8)
    preprocessing = Preprocessing(64, (0.0,) * 3, (1.0,) * 3)
    settings = DataSettings(**OFF | {"crop": 0.6})
    across = BatchAugmentation(preprocessing, settings)(ramp.expand(2000, 3, 64, 64), draws)[:, 0, 32]
    down = BatchAugmentation(preprocessing, settings)(ramp[:, None].expand(2000, 3, 64, 64), draws)[:, 0, :, 32]
    width, height = (line[:, 40] - line[:, 24] for line in (across, down))  # of 16 of 64 pixels
    share = (width * height) / (16 / 63 * 191 / 255) ** 2
    assert share.min() == pytest.approx(0.6, abs=0.03)
    assert share.max() == pytest.approx(1.0, abs=0.03)
    assert share.mean() == pytest.approx(0.8, abs=0.02)
    assert (width / height).min() > 0.87
    assert (width / height).max() < 1.15
    assert across.min() > 0.25, "a crop reaches over the edge"


def test_both_ways_have_the_same_distribution() -> None:
    """Mean and deviation of every pixel of a smooth picture, over many draws."""
    y, x = np.mgrid[:32, :32] / 31
    smooth = np.stack([x, y, (x + y) / 2], 2)
    face = Image.fromarray((40 + 160 * smooth).astype(np.uint8))
    preprocessing, settings = Preprocessing(32, (0.0,) * 3, (1.0,) * 3), DataSettings(flip=True, shift=0.1, scale=0.1)
    torch.manual_seed(0)
    one_by_one = preprocessing.training(settings)
    loading = torch.stack([one_by_one(face) for _ in range(1500)])
    raw = preprocessing.raw(32)(face).expand(1500, -1, -1, -1)
    batch = BatchAugmentation(preprocessing, settings)(raw, torch.rand(1500, DRAWS))
    for difference in (loading.mean(0) - batch.mean(0), loading.std(0) - batch.std(0)):
        assert difference.abs().mean() < 0.015
        assert difference.abs().max() < 0.08


def test_uniform_sizes_are_detected(fer_folders: Path, fer_csv: Path, tmp_path: Path) -> None:
    assert uniform_side(load_data(str(fer_csv), Request()).train) == 48
    assert uniform_side(load_data(str(fer_folders), Request()).train) == 0
    decoded = load_data(str(fer_folders), Request(image_size=64, cache=str(tmp_path)))
    assert uniform_side(decoded.train) == 48
    assert uniform_side(Subset(decoded.train, np.arange(3), "x")) == 48
