"""The Ad-Corre loss (Fard & Mahoor, IEEE Access 2022): exact, in linear time, with a hand-written gradient."""

from typing import TYPE_CHECKING, Any

from adcorre._version import __version__
from adcorre.attention import AdaptiveAttentionMap, AttentionMap
from adcorre.embedding import EmbeddingSpace
from adcorre.equation import AdCorreOutput
from adcorre.functional import ClassStatistics, Terms, adcorre_terms
from adcorre.loss import AdCorreLoss, adcorre_loss
from adcorre.virtual import VirtualBatch

if TYPE_CHECKING:
    from adcorre.metric import AdCorreMetricLoss as AdCorreMetricLoss

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


def __getattr__(name: str) -> Any:
    """Import `adcorre.metric` lazily: it imports pytorch-metric-learning if that is installed."""
    if name not in ("metric", "AdCorreMetricLoss"):
        raise AttributeError(f"module 'adcorre' has no attribute {name!r}")
    from importlib import import_module

    metric = import_module("adcorre.metric")
    return metric if name == "metric" else metric.AdCorreMetricLoss
