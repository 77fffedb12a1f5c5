"""A Triton driver without a GPU: `kernel[grid](...)` on CPU tensors compiles for the target and runs in the machine."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from ptx_machine.launch import Argument, Settings, run
from ptx_machine.parse import MachineError
from ptx_machine.report import Report

# Shared memory that a block may have (CUDA C++ Programming Guide, compute capabilities).
_SHARED = {
    75: 65536,
    80: 166912,
    86: 101376,
    87: 166912,
    89: 101376,
    90: 232448,
    100: 232448,
    103: 232448,
    120: 101376,
    121: 101376,
}


@contextmanager
def target(
    arch: str,
    seed: int = 0,
    *,
    lockstep: bool = False,
    resident: int = 3,
    limit: int = 20_000_000,
    rewrite: Callable[[str], str] | None = None,
) -> Iterator[Report]:
    """Launches on CPU tensors inside compile for `arch` ("sm_80", "sm_90", "sm_120" ...) and run in the machine.

    seed: the order of warps and blocks. lockstep: many blocks at once, faster, with no orderings watched.
    resident: blocks that run at a time. limit: warp instructions of a launch. rewrite: changes the PTX before it runs,
    to plant a fault. Raises MachineError for what the machine does not know.
    """
    match = re.fullmatch(r"sm_(\d+)a?", arch)
    if match is None or int(match[1]) not in _SHARED:
        known = ", ".join(f"sm_{number}" for number in _SHARED)
        raise ValueError(f"arch = {arch!r}; expected one of {known}")
    if triton.knobs.runtime.interpret:
        raise MachineError("TRITON_INTERPRET is set: kernels are not compiled then; unset it before triton is imported")
    report = Report()
    machine = _Driver(int(match[1]), Settings(seed, lockstep, resident, limit, report), rewrite)
    config = triton.runtime.driver
    before, hook = config._active, triton.knobs.runtime.kernel_load_start_hook
    config.set_active(machine)
    triton.knobs.runtime.kernel_load_start_hook = machine.note_files
    try:
        yield report
    finally:
        config._active = before
        triton.knobs.runtime.kernel_load_start_hook = hook


class _Driver(DriverBase):
    """Triton's driver, and the `utils` that it loads kernels with."""

    def __init__(self, arch: int, settings: Settings, rewrite: Callable[[str], str] | None) -> None:
        super().__init__()
        self.arch, self.settings, self.rewrite = arch, settings, rewrite
        self.ptx = ""
        self.utils = self
        self.launcher_cls = _Launcher

    def note_files(
        self, module: object, function: object, name: str, metadata_group: dict[str, Any], hash: str
    ) -> None:
        """Triton's hook before it loads a kernel; the compiled files are named here, and only here."""
        path = next(path for file, path in metadata_group.items() if file.endswith(".ptx"))
        self.ptx = Path(path).read_text()

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[object, str, int, int, int]:
        return object(), self.ptx, 0, 0, 1024

    def unload_module(self, module: object) -> None:
        pass

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": _SHARED[self.arch], "multiprocessor_count": 132, "warpSize": 32,
                "max_num_regs": 65536, "sm_clock_rate": 1, "mem_clock_rate": 1, "mem_bus_width": 1}  # fmt: skip

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return 1_000_000 + self.arch  # Triton keeps compiled kernels by device

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cpu

    def get_benchmarker(self) -> Any:
        raise MachineError("autotuning needs times, and the machine has none: pass the launch settings")

    def get_empty_cache_for_benchmark(self) -> Any:
        return self.get_benchmarker()

    def clear_cache(self, cache: Any) -> None:
        pass


class _Launcher:
    """Triton makes one for each compiled kernel; it outlives a `target`, so it asks for the active driver."""

    def __init__(self, src: Any, metadata: Any) -> None:
        self.signature = list(src.signature.values())
        self.names = list(src.signature)
        self.metadata = metadata

    def __call__(self, x: int, y: int, z: int, stream: int, ptx: str, *rest: Any) -> None:
        driver = triton.runtime.driver.active
        if not isinstance(driver, _Driver):
            raise MachineError("a kernel compiled for the machine was launched outside of ptx_machine.target")
        if driver.rewrite:
            ptx = driver.rewrite(ptx)
        arguments = list(_flatten(self.names, self.signature, rest[-len(self.signature) :]))
        scratch = None
        if self.metadata.global_scratch_size:
            scratch = torch.zeros(x * y * z * self.metadata.global_scratch_size, dtype=torch.uint8)
        arguments += [("global scratch", "*i8", scratch), ("profile scratch", "*i8", None)]
        run(driver.settings, ptx, (x, y, z), 32 * self.metadata.num_warps, self.metadata.shared, arguments)


def _flatten(names: Sequence[str], kinds: Sequence[Any], values: Sequence[Any]) -> Iterator[Argument]:
    for name, kind, value in zip(names, kinds, values, strict=True):
        if isinstance(kind, (tuple, list)):
            yield from _flatten([f"{name}[{i}]" for i in range(len(kind))], kind, value)
        elif kind != "constexpr":
            yield str(name), kind, value
