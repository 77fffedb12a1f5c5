"""Batches: a dataset and a transform behind a DataLoader, workers included; each rank's share of them.

What a training sample looks like is a function of the run's seed, the epoch and its place in the epoch's order alone:
an epoch can be entered anywhere, by any number of workers and ranks.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import InitVar, dataclass
from functools import partial
from itertools import islice
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from adcorre.chunks import ReplayedChunks
from train.data.balance import balanced_order
from train.data.base import FaceDataset
from train.data.shards import is_sharded, stream_order
from train.errors import UserError
from train.ranks import ALONE, Ranks
from train.stopping import ignore_in_worker
from train.transforms import BatchAugmentation, Transform

Batch = tuple[Tensor, Tensor]
Batches = Iterable[Batch]
WINDOW = 2048  # samples of a stream of shards that are shuffled among each other


class Samples(Dataset[tuple[Tensor, int]]):
    """For evaluation: sample `index`."""

    def __init__(self, faces: FaceDataset, transform: Transform) -> None:
        self.faces = faces
        self.transform = transform

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.faces.image(index)), int(self.faces.labels[index])


class TrainingIndex(NamedTuple):
    """A training sample as it is asked for: which one, and the seed of its augmentation."""

    sample: int
    seed: int


class TrainingSamples(Dataset[tuple[Tensor, ...]]):
    """For training: (image, label) of a transform that draws from PyTorch's default generator of the CPU, which is left
    as it was; or (image, its draws, label), for the augmentation that comes after."""

    def __init__(self, faces: FaceDataset, transform: Transform, augmentation: BatchAugmentation | None) -> None:
        self.samples = Samples(faces, transform)
        self.augmentation = augmentation

    def __getitem__(self, draw: TrainingIndex) -> tuple[Any, ...]:
        if self.augmentation:
            image, label = self.samples[draw.sample]
            return image, *self.augmentation.draws(draw.seed), label
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(draw.seed)
        try:
            return self.samples[draw.sample]
        finally:
            torch.set_rng_state(state)


@dataclass
class StepSampler:
    """The samples of an epoch's chunks on one rank, from step `start` on.

    A step is up to `chunks` chunks of `batch_size` on each rank. Each place of the epoch's order is in one chunk of one
    rank. The last, smaller step is shared out evenly, and used if every rank gets two samples at least: BatchNorm
    cannot train on one.

    Args: order, the indices of an epoch, a function of (seed, epoch) like all else here; n, how many they are.
    """

    n: int
    batch_size: int
    chunks: InitVar[int]
    ranks: Ranks
    seed: int
    order: Callable[[int, int], NDArray[np.int64]] | None = None

    def __post_init__(self, chunks: int) -> None:
        self.epoch, self.start = 1, 0
        step = self.batch_size * chunks * self.ranks.world
        self.sizes = [step] * (self.n // step) + ([self.n % step] if self.n % step >= 2 * self.ranks.world else [])

    def _shuffled(self, seed: int, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([seed, epoch]).permutation(self.n)

    def count_chunks(self, size: int) -> int:
        """Chunks on this rank of a step of `size` samples on all of them."""
        share = len(range(self.ranks.rank, size, self.ranks.world))
        return min(-(-share // self.batch_size), share // 2)  # with --batch-size 2 rather one of 3 than one of 1

    def __iter__(self) -> Iterator[list[TrainingIndex]]:
        order = (self.order or self._shuffled)(self.seed, self.epoch)
        seeds = np.random.default_rng([self.seed, self.epoch, 1]).integers(0, 2**63, self.n)
        place = 0
        for number, size in enumerate(self.sizes):
            local = range(place + self.ranks.rank, place + size, self.ranks.world)
            place += size
            if number >= self.start:
                for chunk in np.array_split(local, self.count_chunks(size)):
                    yield [TrainingIndex(int(order[at]), int(seeds[at])) for at in chunk]

    def __len__(self) -> int:
        return sum(self.count_chunks(size) for size in self.sizes[self.start :])


@dataclass
class TrainSteps:
    """An epoch's steps: for each, what yields its chunks on a device, as often as it is called, and its samples.

    The samples are those on all ranks. Chunks are kept where they were loaded and moved to the device one by one.
    """

    loader: DataLoader[Any]
    sampler: StepSampler
    device: torch.device
    memory_format: torch.memory_format
    augmentation: BatchAugmentation | None

    def __len__(self) -> int:
        """Of a whole epoch."""
        return len(self.sampler.sizes)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """The next iteration is of this epoch, and begins with step `start` of it."""
        self.sampler.epoch, self.sampler.start = epoch, start

    def __iter__(self) -> Iterator[tuple[Callable[[], Iterator[Batch]], int]]:
        batches = iter(self.loader)
        for size in self.sampler.sizes[self.sampler.start :]:
            chunks = ReplayedChunks(islice(batches, self.sampler.count_chunks(size)))
            yield partial(self._on_device, chunks), size

    def _on_device(self, chunks: ReplayedChunks) -> Iterator[Batch]:
        for batch in chunks():
            images, *draws, targets = (part.to(self.device, non_blocking=True) for part in batch)
            if self.augmentation:
                images = self.augmentation(images, *draws)
            yield images.contiguous(memory_format=self.memory_format), targets


def _init_worker(worker: int) -> None:
    ignore_in_worker()
    Thread(target=_end_with_main_process, daemon=True).start()


def _end_with_main_process() -> None:
    """PyTorch ends a worker whose parent changes. A fork server, the parent of workers that it starts, never does."""
    main_process = multiprocessing.parent_process()
    assert main_process
    main_process.join()
    os._exit(1)


def train_batches(
    faces: FaceDataset,
    transform: Transform,
    batch_size: int,
    workers: int,
    pin_memory: bool,
    seed: int,
    *,
    chunks: int = 1,
    ranks: Ranks = ALONE,
    device: torch.device = torch.device("cpu"),  # noqa: B008
    memory_format: torch.memory_format = torch.contiguous_format,
    order: str = "shuffle",
    augmentation: BatchAugmentation | None = None,
) -> TrainSteps:
    """This rank's steps, each of up to `chunks` batches of samples in the order that --sampler names.

    With an augmentation, which works on whole batches on the device, `transform` gives its uint8 images.
    """
    if len(faces) < 2 * ranks.world:
        several = f" (2 for each of {ranks.world} processes)" if ranks.world > 1 else ""
        raise UserError(
            f"training needs at least {2 * ranks.world} images{several}, the training split has {len(faces)}"
        )

    lanes = max(1, workers)  # a DataLoader hands its batches to the workers in turns

    def balanced(seed: int, epoch: int) -> NDArray[np.int64]:
        return balanced_order(faces.labels, len(faces.class_names), seed, epoch)

    def stream(seed: int, epoch: int) -> NDArray[np.int64]:
        return stream_order(faces, seed, epoch, WINDOW, ranks.world, lanes, batch_size)

    if order == "stream" and not is_sharded(faces):
        raise UserError("--sampler stream is for tar shards (python -m train.data shard writes them)")
    orders = {"shuffle": None, "balanced": balanced, "stream": stream}
    sampler = StepSampler(len(faces), batch_size, chunks, ranks, seed, orders[order])
    loader: DataLoader[Any] = DataLoader(
        TrainingSamples(faces, transform, augmentation),
        batch_sampler=sampler,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_init_worker,
        generator=torch.Generator(),  # its own, so that loading does not advance the training's random numbers
        persistent_workers=workers > 0,
    )
    return TrainSteps(loader, sampler, device, memory_format, augmentation)


def evaluation_batches(
    faces: FaceDataset,
    transform: Transform,
    batch_size: int,
    workers: int,
    pin_memory: bool,
    ranks: Ranks = ALONE,
) -> DataLoader[tuple[Tensor, int]]:
    """Every sample once, on one of the ranks, in the dataset's order."""
    return DataLoader(
        Samples(faces, transform),
        batch_size=batch_size,
        sampler=range(ranks.rank, len(faces), ranks.world),
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_init_worker,
        generator=torch.Generator(),
    )
