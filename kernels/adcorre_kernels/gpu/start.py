"""Launches that skip Triton's search for the compiled kernel where this one was made before.

The search takes most of the host's time for a launch, and at small batches the host's time is all there is.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import Tensor
from triton.compiler import CompiledKernel


class Constants(dict[str, Any]):
    """What a plan fixes of a kernel's launches, its constants and options; and the kernels compiled with these."""

    def __init__(self, **constants: Any) -> None:
        super().__init__(constants)
        self.compiled: dict[Hashable, tuple[CompiledKernel, tuple[Any, ...]]] = {}


def start(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: Constants, key: Hashable) -> None:
    """kernel[grid](*arguments, **constants).

    The first argument is a tensor on the device to launch on. key: of the arguments, all that chooses a compiled
    variant and that the plan behind `constants` does not fix (see `trait`): traits of tensors, and numbers that are
    specialised or may not fit in 32 bits.
    """
    if (made := constants.compiled.get(key)) is not None:
        compiled, constants_in_order = made
        compiled[grid + (1,) * (3 - len(grid))](*arguments, *constants_in_order)
        return
    compiled = kernel[grid](*arguments, **constants)
    if arguments[0].is_cuda and isinstance(compiled, CompiledKernel):
        names = compiled.src.fn.arg_names[len(arguments) :]
        constants.compiled[key] = (compiled, tuple(constants[name] for name in names))


def trait(tensor: Tensor) -> Hashable:
    """What Triton compiles for in a tensor: its dtype and whether it begins at a multiple of 16 bytes."""
    return tensor.dtype, tensor.data_ptr() % 16 == 0
