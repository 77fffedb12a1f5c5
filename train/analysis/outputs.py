"""One pass of a model over a split: logits, class statistics of all embeddings, and the embeddings of some samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import log

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize, ten_crop

from adcorre import ClassStatistics

Views = Callable[[Tensor], list[Tensor]]
CROP = 0.9  # share of the side; about the smallest crop of the paper's training, 0.8 of the area


class AveragedViews(nn.Module):
    """Test-time augmentation: the log of the mean probabilities of several views; embeddings of the image itself.

    views: of images (n, 3, s, s) -> views of the same shape, as `VIEWS` has them.
    """

    def __init__(self, model: nn.Module, views: Views) -> None:
        super().__init__()
        self.model = model
        self.views = views

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, embeddings = self.model(images)
        views = [logits if view is images else self.model(view)[0] for view in self.views(images)]
        return torch.stack([view.float().log_softmax(1) for view in views]).logsumexp(0) - log(len(views)), embeddings


def flip_views(images: Tensor) -> list[Tensor]:
    return [images, images.flip(-1)]


def ten_crops(images: Tensor) -> list[Tensor]:
    """The corners and the centre, of CROP of the side, and their mirror images, each in the images' size again."""
    size = images.shape[-1]
    return [resize(crop, [size, size], antialias=True) for crop in ten_crop(images, [round(CROP * size)])]


VIEWS: dict[str, Views] = {"flip": flip_views, "tencrop": ten_crops}


def with_tta(model: nn.Module, tta: str) -> nn.Module:
    """The model with the test-time augmentation that --tta names."""
    return model if tta == "none" else AveragedViews(model, VIEWS[tta])


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
def collect_outputs(
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
        indices = sample[(sample >= seen) & (sample < seen + len(labels))] - seen
        sampled.append(embeddings.float().cpu()[torch.from_numpy(indices)])
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
