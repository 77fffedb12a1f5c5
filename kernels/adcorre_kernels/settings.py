"""The settings of the whole loss, shared by the GPU and the CPU kernels."""

from __future__ import annotations

from typing import NamedTuple


class Settings(NamedTuple):
    """Settings that are the same in every step of a training run.

    fd, md, ed: the terms' weights in the loss. naive: w is 1/2.
    """

    ignore_index: int = -100
    label_smoothing: float = 0.0
    between_target: float = -1.0
    mean_target: float = -1.0
    embedding_target: float = -1.0
    fd: float = 1.0
    md: float = 1.0
    ed: float = 1.0
    naive: bool = False
