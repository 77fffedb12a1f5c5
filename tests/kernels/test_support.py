"""Which GPUs the kernels support, tested without one: fake tensors on a mocked device."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton")
from adcorre_kernels.gpu import support

GPUS = [
    ("NVIDIA H100", 9, 0, None, None),
    ("NVIDIA A100", 8, 0, None, None),
    ("NVIDIA T4", 7, 5, None, "T4.*sm_75.*sm_80 or newer"),
    ("AMD Instinct MI300X", 9, 4, "gfx942:sramecc+:xnack-", None),
    ("AMD Radeon", 10, 3, "gfx1030", "gfx1030.*gfx94"),
]


@pytest.mark.parametrize("name, major, minor, architecture, words", GPUS)
def test_gpus(name, major, minor, architecture, words, monkeypatch) -> None:
    properties = SimpleNamespace(name=name, major=major, minor=minor, gcnArchName=architecture)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.version, "hip", None if architecture is None else "6.0")
    support._check_gpu.cache_clear()
    with FakeTensorMode():
        x = torch.empty(4, 2, 8, device="cuda:0")
    reason = support.why_unsupported(x, 3, 2, -1.0)
    support._check_gpu.cache_clear()
    if words is None:
        assert reason is None
    else:
        assert reason is not None
        assert re.search(words, reason)


def test_cpu_tensors_need_the_interpreter(monkeypatch) -> None:
    monkeypatch.setattr(support, "cpu_tensors", False)
    reason = support.why_unsupported(torch.zeros(4, 2, 8), 3, 2, -1.0)
    assert "TRITON_INTERPRET=1" in reason
    monkeypatch.setattr(support, "cpu_tensors", True)
    assert support.why_unsupported(torch.zeros(4, 2, 8), 3, 2, -1.0) is None
    assert support.why_unsupported(torch.zeros(4, 8), 3, 1, -1.0) is None
    assert "meta" in support.why_unsupported(torch.zeros(4, 8, device="meta"), 3, 1, -1.0)


def test_launches_happen_on_the_tensors_device(monkeypatch) -> None:
    from adcorre_kernels.gpu import ops

    entered = []

    class Guard:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def __enter__(self) -> None:
            entered.append(self.device)

        def __exit__(self, *_: object) -> None:
            entered.append(None)

    monkeypatch.setattr(torch.cuda, "device", Guard)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    call = ops._on_tensor_device(lambda x, more: (x, more, list(entered)))
    for index, guarded in ((0, []), (1, [torch.device("cuda:1")])):
        x = SimpleNamespace(is_cuda=True, device=torch.device("cuda", index))
        assert call(x, 2) == (x, 2, guarded)
    assert entered == [torch.device("cuda:1"), None]
    assert call(torch.zeros(1), 3)[1] == 3
