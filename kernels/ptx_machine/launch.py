"""Launches: arguments become windows on tensors and bytes of scalars, then the kernel runs."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ptx_machine import program as programs
from ptx_machine.memory import Buffer, GlobalMemory, Window
from ptx_machine.numbers import to_bf16
from ptx_machine.parse import MachineError
from ptx_machine.report import Report
from ptx_machine.schedule import Launch, run_lockstep, run_scheduled

Argument = tuple[str, str, Any]  # name, Triton's type ("*fp32", "i32", "fp32" ...), value


@dataclass
class Settings:
    """How launches run, and the report that collects their findings."""

    seed: int = 0
    lockstep: bool = False
    resident: int = 3
    limit: int = 20_000_000
    report: Report = field(default_factory=Report)


def execute(
    ptx: str,
    grid: tuple[int, int, int],
    arguments: Sequence[Any],
    *,
    num_warps: int = 1,
    shared: int = 0,
    settings: Settings | None = None,
) -> Report:
    """Run PTX as it stands. arguments: CPU tensors, ints and floats, in the order of the entry's parameters."""
    settings = settings or Settings()
    declared: list[Argument] = []
    for number, value in enumerate(arguments):
        kind = "*" if isinstance(value, torch.Tensor) else "fp32" if isinstance(value, float) else "i"
        declared.append((f"argument {number}", kind, value))
    run(settings, ptx, grid, 32 * num_warps, shared, declared)
    return settings.report


def run(
    settings: Settings, ptx: str, grid: tuple[int, int, int], threads: int, shared: int, arguments: list[Argument]
) -> None:
    program = programs.load(ptx, threads, shared)
    memory = GlobalMemory()
    blob = bytearray()
    buffers: dict[int, Buffer] = {}
    params = program.entry.params
    if len(params) > len(arguments):
        raise MachineError(f"{program.entry.name}: expected {len(params)} arguments, got {len(arguments)}")
    for number, ((kind, _, offset), (name, declared, value)) in enumerate(zip(params, arguments, strict=False)):
        size = int(re.sub(r"\D", "", kind)) // 8
        blob += bytes(offset - len(blob))
        if declared.startswith("*"):
            address = 0 if value is None else _window(memory, buffers, name, value, number in program.written)
            blob += struct.pack("<Q", address)
        else:
            blob += _scalar(declared, value, size)
    written = {id(window.buffer) for window in memory.windows if window.writable}
    for window in memory.windows:  # a buffer is watched if any of its windows is written
        window.writable = id(window.buffer) in written
    launch = Launch(program, grid, memory, bytes(blob), settings.report)
    if settings.lockstep:
        run_lockstep(launch, settings.limit)
    else:
        run_scheduled(launch, settings.seed, settings.resident, settings.limit)


def _window(memory: GlobalMemory, buffers: dict[int, Buffer], name: str, value: Any, written: bool) -> int:
    if not isinstance(value, torch.Tensor) or value.device.type != "cpu":
        raise MachineError(f"{name} is {type(value).__name__}; the machine takes CPU tensors")
    storage = value.untyped_storage()
    start = storage.data_ptr()
    buffer = buffers.get(start)
    if buffer is None:
        whole = torch.empty(0, dtype=torch.uint8).set_(storage)
        buffer = buffers[start] = Buffer(whole.numpy())
    item = value.element_size()
    low = int(value.storage_offset()) * item
    if value.numel() == 0:
        extent = 0
    else:
        last = sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True))
        extent = (int(last) + 1) * item
    inside = None
    if extent != value.numel() * item and value.numel():
        marks = torch.zeros(extent // item, dtype=torch.bool)
        marks.as_strided(value.shape, value.stride()).fill_(True)
        if not marks.all():
            inside = np.repeat(marks.numpy(), item)
    window = Window(name, buffer, low, low + extent, inside)
    window.writable = written
    return memory.add(window, start)


def _scalar(declared: str, value: Any, size: int) -> bytes:
    if declared in ("fp64", "fp32", "fp16"):
        return struct.pack({"fp64": "<d", "fp32": "<f", "fp16": "<e"}[declared], float(value))[:size].ljust(size, b"\0")
    if declared == "bf16":
        return to_bf16(np.array([value], np.float32)).tobytes().ljust(size, b"\0")
    return (int(value) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
