"""The Ad-Corre loss on CPUs: both streaming passes, the terms and the logits' steps as fused Numba kernels.

The functions are the steps of a backend of `adcorre`. Numba is imported, and a kernel compiled, at its first use. See
kernels/README.md.
"""

from adcorre_kernels.cpu.host import DTYPES
from adcorre_kernels.cpu.ops import embedding_gradient, logits_gradient, logits_sums, statistics, terms
from adcorre_kernels.cpu.support import installed, terms_supported, why_unsupported

__all__ = [
    "DTYPES",
    "embedding_gradient",
    "installed",
    "logits_gradient",
    "logits_sums",
    "statistics",
    "terms",
    "terms_supported",
    "why_unsupported",
]
