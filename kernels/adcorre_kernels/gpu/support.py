"""Which inputs the kernels support, decided on the host without reading any value."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from triton import knobs

from adcorre_kernels.gpu import gpus

MAX_K = 64
MAX_K_OF_PAIRS = 16  # for ED's targets other than -1: a sample's k x k correlations are computed one by one
D_RANGE = (2, 4096)
MAX_C = 10_000
MAX_C_OF_TERMS = 32
MAX_C_OF_LOGITS = 1024  # classes in a tile of logits
MAX_N = 2**30  # sample indices, with the offsets that programs add, fit in 32 bits
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Whether launches on CPU tensors work: in Triton's interpreter, or if a test replaces the GPU driver.
cpu_tensors: bool = knobs.runtime.interpret


def why_unsupported(x: Tensor, num_classes: int, k: int, embedding_target: float) -> str | None:
    """None if the kernels support x (n, k, d) or (n, d), else a message with the given and the supported values."""
    if not (x.is_cuda or (cpu_tensors and x.device.type == "cpu")):
        return (
            f"embeddings on {x.device}; the Triton kernels take CUDA and ROCm tensors (TRITON_INTERPRET=1: CPU tensors)"
        )
    if x.is_cuda and (reason := _why_unsupported_gpu(x.device.index)):
        return reason
    if x.dtype not in DTYPES:
        return f"embeddings are {str(x.dtype)[6:]}; the Triton kernels take float32, bfloat16 and float16"
    n, d = x.shape[0], x.shape[-1]
    if not D_RANGE[0] <= d <= D_RANGE[1]:
        return f"d = {d}; the Triton kernels take d from {D_RANGE[0]} to {D_RANGE[1]}"
    if k > MAX_K:
        return f"k = {k}; the Triton kernels take k from 1 to {MAX_K}"
    if embedding_target != -1.0 and k > MAX_K_OF_PAIRS:
        return (
            f"embedding_target = {embedding_target} with k = {k}; "
            f"the Triton kernels take targets other than -1 up to k = {MAX_K_OF_PAIRS}"
        )
    if num_classes > MAX_C:
        return f"{num_classes} classes; the Triton kernels take up to {MAX_C}"
    if n > MAX_N:
        return f"n = {n}; the Triton kernels take up to {MAX_N} samples"
    return None


@torch.compiler.assume_constant_result
def _why_unsupported_gpu(index: int) -> str | None:
    return _check_gpu(index)


@cache
def _check_gpu(index: int) -> str | None:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        architecture = properties.gcnArchName.partition(":")[0]
        supported = architecture.startswith(gpus.AMD)
        expected = ", ".join(f"{prefix}*" for prefix in gpus.AMD)
    else:
        architecture = f"sm_{properties.major}{properties.minor}"
        supported = (properties.major, properties.minor) >= gpus.OLDEST_CUDA
        expected = "sm_80 or newer"
    return None if supported else f"GPU {properties.name} ({architecture}); the Triton kernels take {expected}"


def terms_supported(num_classes: int, k: int, d: int) -> bool:
    """Whether `terms` supports these shapes. For larger ones, whole-tensor operations are as fast."""
    return num_classes <= MAX_C_OF_TERMS and k <= MAX_K and d <= D_RANGE[1]


def logits_supported(logits: Tensor) -> bool:
    """Whether the steps over the logits support these. For more classes, PyTorch's operations are as fast."""
    return logits.shape[1] <= MAX_C_OF_LOGITS and logits.dtype in (*DTYPES, torch.float64)
