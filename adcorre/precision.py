"""Matrix products of float32 with a minimum precision, whatever the global settings allow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

ENOUGH = {"highest": ("none", "ieee"), "high": ("none", "ieee", "tf32"), "medium": ("none", "ieee", "tf32", "bf16")}


@contextmanager
def exact_products(device: torch.device, precision: str = "highest") -> Iterator[None]:
    """Disable autocast and compute float32 products at least as precisely as `precision`, in torch's words.

    `torch.set_float32_matmul_precision("medium")` takes products of float32 in bfloat16 on a CPU too, if it can.
    """
    backends: Any = torch.backends
    settings = backends.cuda.matmul if device.type == "cuda" else backends.mkldnn.matmul
    before = settings.fp32_precision
    enough = before in ENOUGH[precision]
    if not enough:
        settings.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if not enough:
            settings.fp32_precision = before
