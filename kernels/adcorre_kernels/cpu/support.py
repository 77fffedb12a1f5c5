"""What the CPU kernels support, decided without reading a value."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from adcorre_kernels.cpu import compiled
from adcorre_kernels.cpu.host import DTYPES

MAX_C_OF_PAIRS = 128  # classes; for more, matrix products compute their correlations faster than loops


def why_unsupported(x: Tensor) -> str | None:
    """None if the kernels take x, else a message with what was given and what is supported. Imports Numba."""
    if x.device.type != "cpu":
        return f"embeddings on {x.device}; the Numba kernels take CPU tensors"
    if x.dtype not in DTYPES:
        return f"embeddings are {str(x.dtype)[6:]}; the Numba kernels take float64, float32, bfloat16 and float16"
    return _why_unavailable()


def _constant(function: Any) -> Any:
    """`torch.compiler.assume_constant_result` without its import of Dynamo, which takes seconds."""
    function._dynamo_marked_constant = True
    return function


@_constant
def installed() -> bool:
    return compiled.installed()


@_constant
def _why_unavailable() -> str | None:
    return compiled.why_unavailable()


def terms_supported(num_classes: int, between_target: float | None, mean_target: float) -> bool:
    """Whether `terms` should be used; it is correct for any arguments."""
    return num_classes <= MAX_C_OF_PAIRS or (between_target in (None, -1.0) and mean_target == -1.0)


def logits_supported(logits: Tensor) -> bool:
    """Whether the steps over the logits support this dtype."""
    return logits.dtype in DTYPES
