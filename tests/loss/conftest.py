import ctypes

import pytest
import torch

from adcorre_kernels.cpu import host


class _Filled:
    """torch, with new buffers filled with NaN (integers: -1), so that an element never written is noticed."""

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
