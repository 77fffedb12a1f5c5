"""One pass of a model over a split: logits, class statistics of all embeddings, and the embeddings of some samples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adcorre import ClassStatistics


class Flipped(nn.Module):
    """Test-time flip: the log of the mean probabilities of an image and its mirror image; embeddings of the image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, embeddings = self.model(images)
        mirrored, _ = self.model(images.flip(-1))
        both = torch.stack((logits.float().log_softmax(1), mirrored.float().log_softmax(1)))
        return both.logsumexp(0) - float(np.log(2)), embeddings


@dataclass(frozen=True)
class Outputs:
    """What one pass over a split leaves.

    logits: (n, C) float32. targets: (n,). statistics: the class statistics of all samples, float64.
    vectors: (k, k) float64, the mean over the samples of the correlations between their k embedding vectors.
    sample: the positions in the split of `embeddings` (m, k, d), in the split's order.
    """

    logits: Tensor
    targets: Tensor
    statistics: ClassStatistics
    vectors: Tensor
    sample: NDArray[np.int64]
    embeddings: Tensor

    def subset(self, sample: NDArray[np.int64]) -> Outputs:
        """The same with the embeddings of fewer samples: of `sample`, positions out of `self.sample`."""
        where = torch.from_numpy(np.searchsorted(self.sample, sample))
        return replace(self, sample=sample, embeddings=self.embeddings[where])


@torch.inference_mode()
def collect(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
    device: torch.device,
    sample: NDArray[np.int64] | None = None,
) -> Outputs:
    """Run the model, in eval mode, over all batches. Only logits and the embeddings of `sample` grow with the split.

    `model` gives (logits (n, C), embeddings (n, k, d)); sums are in float64. `sample` holds sorted positions.
    """
    sample = np.empty(0, np.int64) if sample is None else sample
    training = model.training
    model.eval()
    logits, targets, sampled = [], [], []
    flat: Tensor | float = 0.0
    vectors: Tensor | float = 0.0
    seen, shape = 0, (0, 0)
    for images, labels in batches:
        predicted, embeddings = model(images.to(device, non_blocking=True))
        x = embeddings.double() if device.type != "mps" else embeddings.float()
        flat = flat + ClassStatistics.of(x, labels.to(device), num_classes).flat.cpu().double()
        z = x - x.mean(-1, keepdim=True)
        z = nn.functional.normalize(z, dim=-1)
        vectors = vectors + torch.einsum("nld,nmd->lm", z, z).cpu().double()
        wanted = sample[(sample >= seen) & (sample < seen + len(labels))] - seen
        sampled.append(embeddings.float().cpu()[torch.from_numpy(wanted)])
        logits.append(predicted.float().cpu())
        targets.append(labels.cpu())
        seen, shape = seen + len(labels), (x.shape[1], x.shape[2])
    model.train(training)
    assert isinstance(flat, Tensor)  # there is at least one batch
    assert isinstance(vectors, Tensor)
    statistics = ClassStatistics(flat, num_classes, *shape)
    return Outputs(torch.cat(logits), torch.cat(targets), statistics, vectors / seen, sample, torch.cat(sampled))


def random_positions(n: int, count: int, seed: int) -> NDArray[np.int64]:
    """Sorted positions of at most `count` of n samples."""
    return np.sort(np.random.default_rng(seed).permutation(n)[:count]).astype(np.int64)
