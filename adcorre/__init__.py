"""The Ad-Corre loss (Fard & Mahoor, IEEE Access 2022): exact, in linear time, with the gradient by hand."""

from adcorre._version import __version__
from adcorre.attention import AdaptiveAttentionMap
from adcorre.embedding import EmbeddingSpace
from adcorre.functional import Terms, adcorre_terms
from adcorre.loss import AdCorreLoss, AdCorreOutput, adcorre_loss
from adcorre.statistics import ClassStatistics
from adcorre.virtual import VirtualBatch

__all__ = [
    "AdCorreLoss",
    "AdCorreOutput",
    "AdaptiveAttentionMap",
    "ClassStatistics",
    "EmbeddingSpace",
    "Terms",
    "VirtualBatch",
    "__version__",
    "adcorre_loss",
    "adcorre_terms",
]
