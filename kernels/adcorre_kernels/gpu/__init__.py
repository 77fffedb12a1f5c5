"""The Ad-Corre loss on GPUs: class statistics, terms and gradient as fused Triton kernels.

`statistics`, `terms`, `gradient`, `logits_sums` and `logits_gradient` are the five steps of a backend of `adcorre`,
`pair_values` and `pair_gradient` its FD over all pairs of samples. `whole_loss`, `loss_from_sums`, `sample_terms` and
`gradients` combine several steps. `why_unsupported`, `terms_supported` and `logits_supported` tell which inputs they
support. Raises ImportError if Triton is missing. See kernels/README.md.
"""

from adcorre_kernels.gpu.ops import (
    gradient,
    gradients,
    logits_gradient,
    logits_sums,
    loss_from_sums,
    pair_gradient,
    pair_values,
    sample_terms,
    statistics,
    terms,
    whole_loss,
)
from adcorre_kernels.gpu.support import logits_supported, terms_supported, why_unsupported
from adcorre_kernels.settings import Settings

__all__ = [
    "Settings",
    "gradient",
    "gradients",
    "logits_gradient",
    "logits_sums",
    "logits_supported",
    "loss_from_sums",
    "pair_gradient",
    "pair_values",
    "sample_terms",
    "statistics",
    "terms",
    "terms_supported",
    "whole_loss",
    "why_unsupported",
]
