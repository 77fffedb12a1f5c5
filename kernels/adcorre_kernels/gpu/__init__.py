"""The Ad-Corre loss on GPUs: class statistics, terms and gradient as fused Triton kernels.

`statistics`, `terms`, `gradient`, `logits_sums` and `logits_gradient` are the five steps of a backend of `adcorre`,
`pair_values` and `pair_gradient` its FD over all pairs of samples; `why_unsupported`, `terms_supported` and
`logits_supported` tell what they can take.
ImportError where Triton is missing. See kernels/README.md.
"""

from adcorre_kernels.gpu.ops import (
    gradient,
    logits_gradient,
    logits_sums,
    pair_gradient,
    pair_values,
    statistics,
    terms,
)
from adcorre_kernels.gpu.support import logits_supported, terms_supported, why_unsupported

__all__ = [
    "gradient",
    "logits_gradient",
    "logits_sums",
    "logits_supported",
    "pair_gradient",
    "pair_values",
    "statistics",
    "terms",
    "terms_supported",
    "why_unsupported",
]
