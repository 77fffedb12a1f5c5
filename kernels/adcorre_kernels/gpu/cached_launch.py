"""Launches that skip Triton's lookup of the compiled kernel after the first one.

The lookup takes most of the host time of a launch, and launch overhead dominates at small batch sizes.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import Tensor
from triton.compiler import CompiledKernel


class KernelOptions(dict[str, Any]):
    """The constexprs and compiler options of a kernel in a plan, and the kernels compiled with them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(options)
        self.compiled: dict[Hashable, tuple[CompiledKernel, tuple[Any, ...]]] = {}


def cached_launch(
    kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], options: KernelOptions, key: Hashable
) -> None:
    """kernel[grid](*arguments, **options), on the device of the first argument, a tensor.

    key: every property of the arguments that selects a compiled variant and is not determined by the plan of `options`:
    `specialization_key` of each tensor, and integers that Triton specializes or that may not fit in 32 bits.
    """
    if (cached := options.compiled.get(key)) is not None:
        compiled, constexprs = cached
        compiled[grid + (1,) * (3 - len(grid))](*arguments, *constexprs)
        return
    compiled = kernel.run(*arguments, grid=grid, warmup=False, **options)
    if reusable(compiled, arguments[0]):
        names = compiled.src.fn.arg_names[len(arguments) :]
        options.compiled[key] = (compiled, tuple(options[name] for name in names))


def reusable(compiled: Any, first: Tensor) -> bool:
    """Whether the result of a launch can be launched again: not Triton's interpreter, nor a test's driver."""
    return first.is_cuda and isinstance(compiled, CompiledKernel)


def specialization_key(tensor: Tensor | None) -> Hashable:
    """The properties of a tensor that Triton specializes on: dtype, and whether the address is a multiple of 16."""
    return None if tensor is None else (tensor.dtype, tensor.data_ptr() % 16 == 0)
