"""Centre and normalize vectors (Eq. 1), with one rule for a vector that is constant up to rounding."""

from __future__ import annotations

import torch
from torch import Tensor


def tolerance(dtype: torch.dtype) -> float:
    """A vector is constant, and has no direction, where |x - mean| is at most this times |x|."""
    return 32 * torch.finfo(dtype).eps


def inverse_length(squared_length: Tensor, squared_length_of_x: Tensor) -> Tensor:
    """1 / |x - mean| from |x - mean|^2 and |x|^2; 0 for a constant vector."""
    constant = squared_length <= squared_length_of_x * tolerance(squared_length.dtype) ** 2
    inverse = torch.where(constant, 0, squared_length.rsqrt())
    # NaN on overflow: rsqrt(inf) = 0 would hide it.
    return torch.where(squared_length.isinf(), torch.nan, inverse)


def normalize(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Over the last dimension: x - mean, z, and (.., 1) each 1 / |x - mean| (0 for a constant vector) and |x|^2."""
    mean = x.mean(-1, keepdim=True)
    centred = x - mean
    squared_length = centred.square().sum(-1, keepdim=True)
    squared_length_of_x = squared_length + mean.square() * x.shape[-1]
    inverse = inverse_length(squared_length, squared_length_of_x)
    return centred, centred * inverse, inverse, squared_length_of_x
