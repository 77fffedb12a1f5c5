"""The Ad-Corre loss on GPUs: class statistics, terms and gradient as fused Triton kernels.

`statistics`, `terms` and `gradient` are the three steps of a backend of `adcorre`, `pair_values` and `pair_gradient`
its FD over all pairs of samples; `why_unsupported` and `terms_supported` tell what they can take.
ImportError where Triton is missing. See kernels/README.md.
"""

from adcorre_kernels.gpu.ops import gradient, pair_gradient, pair_values, statistics, terms
from adcorre_kernels.gpu.support import terms_supported, why_unsupported

__all__ = [
    "gradient",
    "pair_gradient",
    "pair_values",
    "statistics",
    "terms",
    "terms_supported",
    "why_unsupported",
]
