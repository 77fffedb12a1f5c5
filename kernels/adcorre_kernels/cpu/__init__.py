"""The Ad-Corre loss on CPUs: both streaming passes, the terms and the logits' steps as fused Numba kernels.

The functions are the steps of a backend of `adcorre`, one by one and several in one (`whole_loss`, `loss_from_sums`,
`sample_terms`, `gradients`). Numba is imported, and a kernel compiled, at its first use. See
kernels/README.md.
"""

from adcorre_kernels.cpu.host import DTYPES
from adcorre_kernels.cpu.ops import (
    embedding_gradient,
    gradients,
    logits_gradient,
    logits_sums,
    loss_from_sums,
    sample_terms,
    statistics,
    terms,
    whole_loss,
)
from adcorre_kernels.cpu.support import installed, logits_supported, terms_supported, why_unsupported
from adcorre_kernels.settings import Settings

__all__ = [
    "DTYPES",
    "Settings",
    "embedding_gradient",
    "gradients",
    "installed",
    "logits_gradient",
    "logits_sums",
    "logits_supported",
    "loss_from_sums",
    "sample_terms",
    "statistics",
    "terms",
    "terms_supported",
    "whole_loss",
    "why_unsupported",
]
