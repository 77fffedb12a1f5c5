"""Repeat a forward pass exactly: restore random states and buffers, and check that a chunk did not change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

BINS = 8
# Relative difference allowed between statistics of the same chunk, for devices that add in no fixed order. A chunk with
# one image augmented differently exceeds it.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-3, torch.float16: 1e-3}


class RandomState:
    """The states of PyTorch's default generators, for the CPU and for the CUDA devices that a model uses.

    Other generators are not replayed.
    """

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self.cpu = torch.get_rng_state()
        self.cuda = [(device, torch.cuda.get_rng_state(device)) for device in devices]

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        for device, state in self.cuda:
            torch.cuda.set_rng_state(state, device)


class Buffers:
    """A copy of a model's buffers, such as BatchNorm's running statistics, that can restore them."""

    def __init__(self, *modules: nn.Module) -> None:
        buffers = {id(buffer): buffer for module in modules for buffer in module.buffers()}
        self.copies = [(buffer, buffer.detach().clone()) for buffer in buffers.values()]

    @torch.no_grad()
    def restore(self) -> None:
        for buffer, copy in self.copies:
            buffer.copy_(copy)


class Fingerprint(NamedTuple):
    """A chunk's labels, a few weighted sums of its statistics, their norm, and the tolerance of the sums."""

    labels: Tensor
    sums: Tensor
    norm: Tensor
    tolerance: float


def fingerprint(labels: Tensor, statistics: Tensor, compute_dtype: torch.dtype) -> Fingerprint:
    """A few numbers that identify a chunk's 2 C k d statistics. compute_dtype: the least precise dtype involved."""
    # Weights without a pattern: at an optimum, plain sums over classes or embeddings are zero for any images.
    position = torch.arange(statistics.numel(), dtype=statistics.dtype, device=statistics.device)
    weighted = statistics * position.mul_(1.6180339887).cos_()
    bins = torch.nn.functional.pad(weighted, (0, -weighted.numel() % BINS)).view(-1, BINS).sum(0)
    return Fingerprint(labels.clone(), bins, torch.linalg.vector_norm(statistics), TOLERANCE[compute_dtype])


def check_same(first: Sequence[Fingerprint], second: Sequence[Fingerprint]) -> None:
    """Raise RuntimeError if a chunk's labels or statistics changed between the passes. One host sync."""
    differences = [
        _differences(a, b) for a, b in zip(first, second, strict=False)
    ]  # the second pass may have stopped early
    for index, (labels, statistics) in enumerate(torch.stack(differences).tolist()):
        if labels or statistics:
            what = "labels" if labels else "statistics"
            raise RuntimeError(
                f"virtual batch: chunk {index} of {len(first)} has other {what} in the second pass. A callable must "
                "yield the same chunks, shuffled and augmented alike, each time it is called; a one-shot iterator's "
                "are kept, unless it fills the same tensors again. Random numbers are replayed from PyTorch's default "
                "generators only. The gradients of this call were dropped"
            )


def _differences(a: Fingerprint, b: Fingerprint) -> Tensor:
    if a.labels.shape != b.labels.shape:
        return torch.tensor((True, False), device=a.sums.device)
    apart = ((a.sums - b.sums).abs() > a.tolerance * a.norm) | (a.sums.isnan() != b.sums.isnan())
    return torch.stack(((a.labels != b.labels).any(), apart.any()))
