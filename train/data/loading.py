"""Batches: a dataset and a transform behind a DataLoader that is seeded, workers included."""

import random

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from train.data.base import FaceDataset
from train.errors import UserError
from train.transforms import Transform


class Samples(Dataset[tuple[Tensor, int]]):
    def __init__(self, faces: FaceDataset, transform: Transform) -> None:
        self.faces = faces
        self.transform = transform

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.faces.image(index)), int(self.faces.labels[index])


def _seed_worker(worker: int) -> None:
    seed = torch.initial_seed() % 2**32  # already different for each worker and epoch
    random.seed(seed)
    np.random.seed(seed)


Batches = DataLoader[tuple[Tensor, int]]


def train_batches(
    faces: FaceDataset, transform: Transform, batch_size: int, workers: int, pin_memory: bool, seed: int
) -> Batches:
    """Shuffled batches. The last, smaller batch is used too, unless it has one image: BatchNorm cannot train on one."""
    if len(faces) < 2:
        raise UserError(f"training needs at least 2 images, the training split has {len(faces)}")
    return DataLoader(
        Samples(faces, transform),
        batch_size=batch_size,
        shuffle=True,
        drop_last=len(faces) % batch_size == 1,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_seed_worker,
        generator=torch.Generator().manual_seed(seed),
        persistent_workers=workers > 0,
    )


def evaluation_batches(
    faces: FaceDataset, transform: Transform, batch_size: int, workers: int, pin_memory: bool
) -> Batches:
    """Every sample once, in the dataset's order."""
    return DataLoader(
        Samples(faces, transform),
        batch_size=batch_size,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_seed_worker,
        generator=torch.Generator(),  # its own, so that evaluating does not advance the training's random numbers
    )
