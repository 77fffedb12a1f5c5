"""The kernels compiled without a GPU, for the launches that the host functions make."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from adcorre_kernels.gpu import gpus, launch, loss, pair_launch, terms_supported
from adcorre_kernels.gpu.logits import logits_gradient_kernel, logits_sums_kernel, reduce_logits
from adcorre_kernels.gpu.reduce import reduce_slots
from adcorre_kernels.gpu.terms import terms_kernel

TARGETS = {
    name: GPUTarget("hip", name, 64) if name.startswith("gfx") else GPUTarget("cuda", int(name[3:]), 32)
    for name in gpus.FAMILIES
}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {
    torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16",
    torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip
_AROUND_THE_TERMS = (logits_sums_kernel, reduce_logits, reduce_slots, terms_kernel, logits_gradient_kernel)


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: its grid, its run-time arguments by name, its constants and the compiler's options."""

    kernel: JITFunction
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__


@contextmanager
def recorded(family: str) -> Iterator[list[Launch]]:
    """Record launches for a family of GPUs instead of running them; tensors may be on the meta device."""
    launches: list[Launch] = []

    def run(kernel: JITFunction, *positional: Any, grid: tuple[int, ...], warmup: bool, **named: Any) -> None:
        names = kernel.arg_names
        given = dict(zip(names, positional, strict=False)) | {name: named.pop(name) for name in names if name in named}
        constants = {p.name: given.pop(p.name) for p in kernel.params if p.is_constexpr}
        launches.append(Launch(kernel, tuple(grid), given, constants, named))

    with mock.patch.object(JITFunction, "run", run), mock.patch.object(gpus, "family", return_value=family):
        yield launches


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@dataclass(frozen=True)
class Resources:
    """Of one thread: registers and bytes of stack (spills); of one program: bytes of shared memory."""

    registers: int
    stack: int
    shared: int


def compile_launch(launch: Launch, target: str) -> Any:
    """The launch compiled for one of TARGETS, specialised as Triton specialises a launch."""
    free = {p.name for p in launch.kernel.params if p.do_not_specialize}
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], Any] = {}
    for position, name in enumerate(launch.kernel.arg_names):
        value = launch.constants[name] if name in launch.constants else launch.arguments[name]
        is_one = isinstance(value, int) and value == 1 and name not in free
        if name in launch.constants or is_one or value is None:
            signature[name] = "constexpr"
            constants[(position,)] = value
            continue
        if isinstance(value, torch.Tensor):
            signature[name] = "*" + TYPES[value.dtype]
            aligned = value.storage_offset() * value.element_size() % 16 == 0
        elif isinstance(value, float):
            signature[name] = "fp32"
            continue
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned = value % 16 == 0 and name not in free
        if aligned:
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(source, target=TARGETS[target], options=launch.options)


def resources(compiled: Any) -> Resources:
    """Registers, stack and shared memory as the assembler reports them."""
    if "cubin" not in compiled.asm:
        text = compiled.asm["amdgcn"]
        registers = int(_first(r"\.vgpr_count:\s+(\d+)", text))
        return Resources(
            registers, int(_first(r"\.private_segment_fixed_size:\s+(\d+)", text)), compiled.metadata.shared
        )
    report = on_cubin(compiled, "cuobjdump", "-res-usage")
    registers, stack, local = (int(_first(rf"{word}:(\d+)", report)) for word in ("REG", "STACK", "LOCAL"))
    return Resources(registers, stack + local, compiled.metadata.shared)


class Code(NamedTuple):
    """An NVIDIA kernel's instructions, and for each the line of the kernel that it comes from, as "file.py:line".

    loops: first and last instruction of each.
    """

    instructions: list[str]
    places: list[str]
    loops: list[tuple[int, int]]

    def within(self, loop: tuple[int, int]) -> list[str]:
        return self.instructions[loop[0] : loop[1] + 1]


def machine_code(compiled: Any) -> Code:
    labels: dict[str, int] = {}
    instructions: list[str] = []
    places, place = [], ""
    for line in on_cubin(compiled, "nvdisasm", "-gi", "-c").splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif header := re.search(r'//## File "([^"]*)", line (\d+)\s*$', line):  # the outermost of a chain: no caller
            place = f"{Path(header[1]).name}:{header[2]}"
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);", line):
            instructions.append(instruction[1])
            places.append(place)
    loops = []
    for position, code in enumerate(instructions):
        branch = re.search(r"BRA.*`\((\.L_x_\d+)\)", code)
        if branch and labels.get(branch[1], position + 1) <= position:
            loops.append((labels[branch[1]], position))
    return Code(instructions, places, loops)


def on_cubin(compiled: Any, tool: str, *options: str) -> str:
    """What one of Triton's tools prints of the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        done = subprocess.run([TOOLS / tool, *options, file.name], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"no {pattern!r} in the tool's report")
    return match[1]


def loss_launches(
    n: int,
    k: int,
    d: int,
    num_classes: int,
    dtype: torch.dtype,
    between_target: float = -1.0,
    mean_target: float = -1.0,
    embedding_target: float = -1.0,
    target: str = "sm_90",
) -> list[Launch]:
    """One forward and backward pass with a target's settings and an H100's grids; nothing is allocated."""
    x, targets = _empty(n, k, d, dtype=dtype), _empty(n, dtype=torch.int64)
    with recorded(target) as launches:
        flat = launch.statistics(x, targets, num_classes, -100, embedding_target)
        if terms_supported(num_classes, k, d):
            launch.terms(flat, _empty(num_classes), k, d, between_target, mean_target, embedding_target)
        table = _empty(num_classes, k, d)
        launch.gradient(x, targets, _empty(), _empty(), _empty(), table, table, _empty(), -100, embedding_target)
    return launches


def equation_launches(n: int, k: int, d: int, num_classes: int, target: str) -> list[Launch]:
    """Eq. 12 around the terms, in float32, with the step of the attention map; and the sums over logits by themselves.

    The launches of `loss_launches` that are the same code are left out.
    """
    x, logits, targets = _empty(n, k, d), _empty(n, num_classes), _empty(n, dtype=torch.int64)
    ring = _empty(5, 2, num_classes, dtype=torch.int64), _empty(1, dtype=torch.int64)
    weight, settings = _empty(num_classes), loss.Settings(label_smoothing=0.1)
    with recorded(target) as launches:
        samples = (x, logits, targets, weight, weight)
        *_, tables = loss.forward(*samples, None, *ring, None, 0.5, True, True, settings)
        loss.backward(*samples, _empty(), _empty(), _empty(), tables, True, num_classes, settings)
        launch.logits_sums(logits, targets, weight, weight, 0.1, -100)
    around = {launch.name: launch for launch in reversed(launches) if launch.kernel in _AROUND_THE_TERMS}
    return list(around.values())


def pair_launches(
    n: int, k: int, d: int, num_classes: int, precision: str, target: str, between_target: float = 0.0
) -> list[Launch]:
    """The launches of FD over all pairs of samples, forward and backward, with a target's tiles; nothing is allocated.

    "medium" takes embeddings in bfloat16, the others in float32.
    """
    x = _empty(n, k, d, dtype=torch.bfloat16 if precision == "medium" else torch.float32)
    example_inputs = (x, _empty(n, dtype=torch.int64), _empty(num_classes))
    options: tuple[Any, ...] = (between_target, -100, precision, 0, n)
    with recorded(target) as launches:
        pair_launch.pair_values(*example_inputs, *options)
        first = len(launches)
        pair_launch.pair_gradient(*example_inputs, _empty(), *options)
    return launches[:first] + launches[first + 1 :]  # both begin with the same tables
