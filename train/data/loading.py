"""Batches: a dataset and a transform behind a seeded DataLoader, workers included; each rank's share of them."""

import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from train.data.base import FaceDataset
from train.errors import UserError
from train.ranks import ALONE, Ranks
from train.transforms import Transform

Batch = tuple[Tensor, Tensor]
Batches = DataLoader[tuple[Tensor, int]]


class Samples(Dataset[tuple[Tensor, int]]):
    def __init__(self, faces: FaceDataset, transform: Transform) -> None:
        self.faces = faces
        self.transform = transform

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.faces.image(index)), int(self.faces.labels[index])


class StepSampler:
    """The indices of an epoch's chunks on one rank. A step is up to `chunks` chunks of `batch_size` on each rank.

    Each sample is in one chunk of one rank. The last, smaller step is shared out evenly, and used if every rank gets
    two samples at least: BatchNorm cannot train on one.
    """

    def __init__(self, n: int, batch_size: int, chunks: int, ranks: Ranks, generator: torch.Generator) -> None:
        self.batch_size = batch_size
        self.ranks = ranks
        self.order = RandomSampler(range(n), generator=generator)
        step = batch_size * chunks * ranks.world
        self.sizes = [step] * (n // step) + ([n % step] if n % step >= 2 * ranks.world else [])

    def chunks(self, size: int) -> int:
        """Chunks on this rank of a step of `size` samples on all of them."""
        share = len(range(self.ranks.rank, size, self.ranks.world))
        return min(-(-share // self.batch_size), share // 2)  # with --batch-size 2 rather one of 3 than one of 1

    def __iter__(self) -> Iterator[list[int]]:
        order = np.fromiter(self.order, dtype=np.int64)
        for size in self.sizes:
            share, order = order[:size][self.ranks.rank :: self.ranks.world], order[size:]
            for chunk in np.array_split(share, self.chunks(size)):
                yield chunk.tolist()

    def __len__(self) -> int:
        return sum(self.chunks(size) for size in self.sizes)


class TrainSteps:
    """An epoch's steps: for each, what yields its chunks on a device, as often as it is called, and its samples.

    The samples are those on all ranks. Chunks are kept where they were loaded and moved to the device one by one.
    """

    def __init__(self, loader: Batches, sampler: StepSampler, device: torch.device) -> None:
        assert loader.generator is not None
        self.loader = loader
        self.generator = loader.generator
        self.sampler = sampler
        self.device = device

    def __len__(self) -> int:
        return len(self.sampler.sizes)

    def __iter__(self) -> Iterator[tuple[Callable[[], Iterator[Batch]], int]]:
        batches = iter(self.loader)
        for size in self.sampler.sizes:
            yield self._chunks(islice(batches, self.sampler.chunks(size))), size

    def _chunks(self, batches: Iterator[Batch]) -> Callable[[], Iterator[Batch]]:
        kept: list[Batch] = []

        def on_the_device(batch: Batch) -> Batch:
            images, targets = batch
            return images.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True)

        def chunks() -> Iterator[Batch]:
            yield from map(on_the_device, kept)
            for batch in batches:
                kept.append(batch)
                yield on_the_device(batch)

        return chunks


def _seed_worker(rank: int, worker: int) -> None:
    if rank:  # ranks share the order, and so the seeds of their workers
        torch.manual_seed(torch.initial_seed() + (rank << 20))
    seed = torch.initial_seed() % 2**32  # already different for each worker and epoch
    random.seed(seed)
    np.random.seed(seed)


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
) -> TrainSteps:
    """This rank's steps of shuffled samples, each of up to `chunks` batches."""
    if len(faces) < 2 * ranks.world:
        several = f" (2 for each of {ranks.world} processes)" if ranks.world > 1 else ""
        raise UserError(
            f"training needs at least {2 * ranks.world} images{several}, the training split has {len(faces)}"
        )
    generator = torch.Generator().manual_seed(seed)
    sampler = StepSampler(len(faces), batch_size, chunks, ranks, generator)
    loader = DataLoader(
        Samples(faces, transform),
        batch_sampler=sampler,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=partial(_seed_worker, ranks.rank),
        generator=generator,
        persistent_workers=workers > 0,
    )
    return TrainSteps(loader, sampler, device)


def evaluation_batches(
    faces: FaceDataset,
    transform: Transform,
    batch_size: int,
    workers: int,
    pin_memory: bool,
    ranks: Ranks = ALONE,
) -> Batches:
    """Every sample once, on one of the ranks, in the dataset's order."""
    return DataLoader(
        Samples(faces, transform),
        batch_size=batch_size,
        sampler=range(ranks.rank, len(faces), ranks.world),
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=partial(_seed_worker, 0),
        generator=torch.Generator(),  # its own, so that evaluating does not advance the training's random numbers
    )
