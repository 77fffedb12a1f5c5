"""The embedding space of Sec. III-A: k embedding vectors per image, and the classifier on top of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adcorre import checks


class EmbeddingSpace(nn.Module):
    """Pooled features -> (logits, embeddings), on top of any backbone.

    k layers Linear(in_features, d) (stored as one Linear(in_features, k d): the same parameters, one matrix product),
    each vector L2-normalized, concatenated, dropout, classifier Linear(k d, num_classes). With k = num_classes and 2048
    features on timm's `legacy_xception` the parameter counts are those of the paper's Table 11.

    Args:
        in_features: width of the pooled features, `num_features` of a timm backbone.
        num_classes: C.
        k: embedding vectors per image; the paper uses the number of classes.
        d: entries of each vector.
        dropout: probability, between the concatenated embeddings and the classifier.
    """

    def __init__(self, in_features: int, num_classes: int, k: int = 7, d: int = 256, dropout: float = 0.5) -> None:
        super().__init__()
        self.in_features = in_features = checks.check_positive_int("in_features", in_features)
        self.num_classes = num_classes = checks.check_positive_int("num_classes", num_classes)
        self.k = k = checks.check_positive_int("k", k)
        self.d = d = checks.check_positive_int("d", d)
        self.embed = nn.Linear(in_features, k * d)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(k * d, num_classes)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(n, in_features) -> logits (n, num_classes), embeddings (n, k, d) before dropout.

        Raises:
            ValueError: features of another shape.
        """
        checks.check_tensor("features", features)
        if features.dim() != 2 or features.shape[1] != self.in_features:
            raise ValueError(f"features: expected shape (n, {self.in_features}), got {tuple(features.shape)}")
        embeddings = self.embed(features).unflatten(1, (self.k, self.d))
        eps = max(1e-12, torch.finfo(embeddings.dtype).tiny)  # 1e-12 is zero in float16: a zero vector would be 0 / 0
        embeddings = torch.nn.functional.normalize(embeddings, dim=2, eps=eps)
        return self.classifier(self.dropout(embeddings.flatten(1))), embeddings

    def extra_repr(self) -> str:
        return f"k={self.k}, d={self.d}"
