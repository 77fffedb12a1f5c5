"""The machine against a GPU: the same PTX on the same memory, bit by bit.

`python -m tests.ptx.hardware record FILE` on a GPU runs the package's kernels and those of `samples` and keeps of each
launch its PTX and all memory, before and after. `python -m tests.ptx.hardware compare FILE...` runs them again in the
machine, anywhere, and writes how far its results lie from the GPU's to bench/results/ptx_hardware.csv.
DISABLE_MMA_V3=1 at `record` keeps wgmma, which the machine does not know, out of an H100's code.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.runtime.jit import JITFunction

from adcorre_kernels.gpu import gpus
from ptx_machine.launch import Settings, run
from ptx_machine.parse import MachineError
from tests.kernels.launched import pair_tools, tools
from tests.ptx import samples
from tests.ptx.package import DTYPES, FEW, SHAPES, Case, problem_of

RESULTS = Path(__file__).parents[2] / "bench" / "results" / "ptx_hardware.csv"
COLUMNS = ("gpu", "triton", "case", "kernel", "argument", "numbers", "other bits", "worst ulps", "worst of the largest",
           "runs that differ")  # fmt: skip
AGAIN = 5  # runs of each launch on the GPU, compared bit for bit
PAIRS = [(60, 2, 256, 7), (33, 3, 17, 5), (9, 2, 300, 3)]  # n, k, d, C


# On the GPU


def record(path: Path, chosen: list[str]) -> None:
    """`chosen`: prefixes of case names; none means all."""
    assert torch.cuda.is_available(), "record needs a GPU"
    assert tools.DEVICE.type == "cuda", "set ADCORRE_DEVICE=cuda"
    torch.use_deterministic_algorithms(True, warn_only=True)  # fresh buffers hold NaN
    launches: list[dict[str, Any]] = []
    with mock.patch.object(gpus, "multiprocessors", return_value=FEW):
        for name, make in cases():
            if chosen and not name.startswith(tuple(chosen)):
                continue
            with recorded(name, launches):
                try:
                    make()
                except Exception as error:  # the others are worth having
                    print(f"{name}: {type(error).__name__}: {str(error)[:200]}", flush=True)
            print(f"{name}: {len(launches)} launches so far", flush=True)
    about = {"gpu": torch.cuda.get_device_name(), "triton": triton.__version__}
    with gzip.open(path, "wb") as file:
        torch.save({**about, "launches": launches}, file)


def cases() -> Iterator[tuple[str, Callable[[], object]]]:
    batches = ("plain", "ignored", "other aims")
    for number, shape in enumerate(SHAPES):
        for dtype, batch in zip(DTYPES, batches[number % 3 :] + batches[: number % 3], strict=True):
            case = Case(shape, dtype, "", batch)
            yield f"{shape}-{str(dtype)[6:]}-{batch}", lambda case=case: tools.launch(*problem_of(case))
    for n, k, d, num_classes in PAIRS:
        for precision in pair_tools.PRECISIONS:
            problem = pair_tools.draw_pairs(n, k, d, num_classes, target=-0.2)
            yield f"pairs, {precision}, d = {d}", lambda p=problem, how=precision: pair_tools.launch_pairs(p, how)
    yield "samples", small_kernels


def small_kernels() -> None:
    torch.manual_seed(0)
    device = tools.DEVICE

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape).to(device, dtype)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full(shape, float("nan"), dtype=dtype, device=device)

    wide = torch.cat((torch.randn(2048).exp(), torch.rand(1024) * 80 - 40, 2.0 ** (torch.rand(1024) * 250 - 125)))
    samples.approximations[(8,)](wide.to(device), empty(8, 4096), 4096, B=512)
    samples.rows[(4,)](normal(4, 201), empty(4, 201), 201, B=256)
    samples.pipelined[(1,)](normal(9, 504), empty(504), 9, 504, B=512, STAGES=3)
    for dtype, precision in [
        (torch.float32, "ieee"), (torch.float32, "tf32"), (torch.float32, "tf32x3"), (torch.bfloat16, "ieee"),
        (torch.float16, "ieee"),
    ]:  # fmt: skip
        a, b = normal(32, 128, dtype=dtype), normal(128, 32, dtype=dtype)
        samples.dot[(1,)](a, b, empty(32, 32), 128, M=32, N=32, BK=32, STAGES=3, PRECISION=precision)
    x = torch.randperm(256).to(device)
    samples.scans[(1,)](
        x.float(), empty(256), empty(256), empty(256), torch.zeros(8, dtype=torch.int32, device=device), B=256
    )
    samples.transposed[(1,)](normal(32, 64), empty(64, 32), empty(32, 64), M=32, N=64)
    sums, counter = empty(8), torch.zeros(1, dtype=torch.int32, device=device)
    samples.last_one_sums[(4,)](normal(500), sums, counter, empty(1), 500, B=128, P=8, SEM="acq_rel")


@contextmanager
def recorded(case: str, launches: list[dict[str, Any]]) -> Iterator[None]:
    launch = JITFunction.run

    def keep(kernel: JITFunction, *given: Any, grid: Any, warmup: bool, **named: Any) -> Any:
        names = kernel.arg_names
        values = dict(zip(names, given, strict=False)) | {name: named[name] for name in names if name in named}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        before = {name: memory(value) for name, value in tensors.items()}

        def one_run() -> tuple[Any, dict[str, Tensor]]:
            for name, value in tensors.items():
                bytes_of(value).copy_(before[name])
            compiled = launch(kernel, *given, grid=grid, warmup=warmup, **named)
            torch.cuda.synchronize()
            return compiled, {name: memory(value) for name, value in tensors.items()}

        compiled, after = one_run()
        differ = dict.fromkeys(tensors, 0)
        for _ in range(AGAIN):
            for name, value in one_run()[1].items():
                differ[name] += not torch.equal(value, after[name])
        arguments = [
            (name, kind, described(values[name], before.get(name), after.get(name)))
            for name, kind in compiled.src.signature.items()
            if kind != "constexpr"
        ]
        meta = compiled.metadata
        scratch = meta.global_scratch_size
        launches.append(
            {"case": case, "kernel": kernel.fn.__name__, "ptx": compiled.asm["ptx"], "grid": tuple(grid),
             "num_warps": meta.num_warps, "shared": meta.shared, "scratch": scratch, "arguments": arguments,
             "differ": differ}
        )  # fmt: skip
        return compiled

    with mock.patch.object(JITFunction, "run", keep):
        yield


def bytes_of(x: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=x.device).set_(x.untyped_storage())


def memory(x: Tensor) -> Tensor:
    return bytes_of(x).cpu().clone()


def described(value: Any, before: Tensor | None, after: Tensor | None) -> Any:
    if before is None:
        return value
    how = {"dtype": value.dtype, "shape": tuple(value.shape), "stride": value.stride(), "at": value.storage_offset()}
    return {**how, "before": before, "after": None if torch.equal(before, after) else after}


# In the machine


def compare(paths: list[Path], output: Path, chosen: list[str]) -> None:
    rows = []
    for path in paths:
        with gzip.open(path) as file:
            recorded = torch.load(io.BytesIO(file.read()))
        for launch in recorded["launches"]:
            if chosen and not launch["case"].startswith(tuple(chosen)):
                continue
            try:
                differences = list(replayed(launch))
            except MachineError as error:
                print(f"{launch['case']}: {launch['kernel']}: {str(error)[:100]}")
                continue
            for argument, *distance in differences:
                rows.append([recorded["gpu"], recorded["triton"], launch["case"], launch["kernel"], argument, *distance,
                             launch["differ"][argument]])  # fmt: skip
                print(*rows[-1], sep=" | ", flush=True)
    with output.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def replayed(launch: dict[str, Any]) -> Iterator[tuple[str, int, int, float, str]]:
    """Of each argument that the GPU wrote: numbers, how many have other bits, the largest distance in ulps, and the
    largest distance as a part of the largest number.
    """
    arguments, tensors = [], {}
    for name, kind, value in launch["arguments"]:
        if isinstance(value, dict):
            tensors[name] = tensor(value, value["before"].clone())
            value = tensors[name]
        arguments.append((name, kind, value))
    threads, grid = 32 * launch["num_warps"], (*launch["grid"], 1, 1)[:3]
    scratch = torch.zeros(max(1, launch["scratch"] * grid[0] * grid[1] * grid[2]), dtype=torch.uint8)
    arguments += [("global scratch", "*i8", scratch), ("profile scratch", "*i8", None)]
    settings = Settings(lockstep=True)
    run(settings, launch["ptx"], grid, threads, launch["shared"], arguments)
    settings.report.raise_if_any()
    for name, _, value in launch["arguments"]:
        if isinstance(value, dict) and value["after"] is not None:
            gpu, machine_value = tensor(value, value["after"]), tensors[name]
            different = ordered(gpu) != ordered(machine_value)
            if gpu.is_floating_point():
                different &= ~(gpu.isnan() & machine_value.isnan())
            steps = (ordered(gpu) - ordered(machine_value)).abs()[different]
            share = (gpu.double() - machine_value.double()).abs()[different] / gpu.double().nan_to_num(
                0, 0, 0
            ).abs().max()
            worst = (float(steps.max()), f"{float(share.max()):.1e}") if len(steps) else (0.0, "0")
            yield name, gpu.numel(), int(different.sum()), *worst


def tensor(how: dict[str, Any], storage: Tensor) -> Tensor:
    return torch.empty(0, dtype=how["dtype"]).set_(storage.untyped_storage(), how["at"], how["shape"], how["stride"])


def ordered(x: Tensor) -> Tensor:
    """Floats mapped to integers in order, so that differences are ulps."""
    if not x.is_floating_point():
        return x.long()
    bits = x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]).long()
    least = -(1 << (8 * x.element_size() - 1)) if x.element_size() < 8 else torch.iinfo(torch.int64).min
    return torch.where(bits < 0, least - bits, bits)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    of_record = commands.add_parser("record")
    of_record.add_argument("file", type=Path)
    of_compare = commands.add_parser("compare")
    of_compare.add_argument("files", type=Path, nargs="+")
    of_compare.add_argument("--output", type=Path, default=RESULTS)
    for command in (of_record, of_compare):
        command.add_argument("--cases", nargs="+", default=[], metavar="BEGINNING", help="of these names alone")
    options = parser.parse_args()
    if options.command == "record":
        record(options.file, options.cases)
    else:
        compare(options.files, options.output, options.cases)
    return 0


if __name__ == "__main__":
    sys.exit(main())
