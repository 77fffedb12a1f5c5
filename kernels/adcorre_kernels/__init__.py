"""The Ad-Corre loss as fused kernels: Triton's for GPUs, loaded at the first use of a name below; Numba's in `.cpu`.

`statistics`, `terms` and `gradient` are the three steps of a backend of `adcorre`, `pair_values` and `pair_gradient`
its FD over all pairs of samples; `why_unsupported` and `terms_supported` tell what they can take.
ImportError where Triton is missing, from the first use. See kernels/README.md.
"""

from typing import Any

_OF_OPS = ("gradient", "pair_gradient", "pair_values", "statistics", "terms")
_OF_SUPPORT = ("terms_supported", "why_unsupported")

__all__ = [*_OF_OPS, *_OF_SUPPORT]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from adcorre_kernels import ops, support

    globals().update({name: getattr(ops, name) for name in _OF_OPS})
    globals().update({name: getattr(support, name) for name in _OF_SUPPORT})
    return globals()[name]
