"""The Ad-Corre loss (Fard & Mahoor, IEEE Access 2022): exact, in linear time, with the gradient by hand."""

from adcorre._version import __version__
from adcorre.attention import AdaptiveAttentionMap, AttentionMap
from adcorre.embedding import EmbeddingSpace
from adcorre.equation import AdCorreOutput
from adcorre.functional import ClassStatistics, Terms, adcorre_terms
from adcorre.loss import AdCorreLoss, adcorre_loss
from adcorre.virtual import VirtualBatch

__all__ = [
    "AdCorreLoss",
    "AdCorreOutput",
    "AdaptiveAttentionMap",
    "AttentionMap",
    "ClassStatistics",
    "EmbeddingSpace",
    "Terms",
    "VirtualBatch",
    "__version__",
    "adcorre_loss",
    "adcorre_terms",
]
