"""Matrix products of float32 with a minimum precision, whatever the global settings allow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

ENOUGH = {"highest": ("none", "ieee"), "high": ("none", "ieee", "tf32"), "medium": ("none", "ieee", "tf32", "bf16")}


@contextmanager
def exact_products(device: torch.device, precision: str = "highest") -> Iterator[None]:
    """Disable autocast and compute float32 products with at least `precision` ("highest", "high" or "medium").

    `torch.set_float32_matmul_precision("medium")` can reduce float32 products to bfloat16 on a CPU too.
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
