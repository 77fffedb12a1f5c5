import ctypes

import pytest
import torch

from adcorre_kernels.cpu import host


class _Filled:
    """torch, whose fresh buffers hold NaN, and -1 where they hold integers: what no kernel has written shows."""

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)

    @staticmethod
    def empty(*size: object, **options: object) -> torch.Tensor:
        fresh = torch.empty(*size, **options)
        ctypes.memset(fresh.data_ptr(), 255, fresh.nbytes)  # by PyTorch's threads it would hang in a forked child
        return fresh


@pytest.fixture(autouse=True)
def filled_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "torch", _Filled())
