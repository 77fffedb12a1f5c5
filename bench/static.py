"""`python -m bench static`: upper bounds of the kernels' speed, from their machine code. No GPU.

For every kernel, architecture and dtype: registers, stack, shared memory, how many programs a multiprocessor holds, and
of the streaming loop its instructions, barriers and vector widths. From these, for the GPUs below: the cycles that the
four schedulers of a multiprocessor need to issue one sample's instructions, beside the cycles that its share of the
memory's bandwidth gives one sample; how often an instruction runs, and the bytes, are counted by `ptx_machine`. The
larger of the two binds. A prediction, not a measurement: it knows of no latency, no cache and no conflict; bytes in
flight tell whether latency can be covered.

The kernels over pairs of samples (`dtype` is their precision) have a loop over tiles: what share of its instructions
are the matrix units', and the cycles that these take for a tile beside the cycles that issuing the others takes.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import triton

from adcorre_kernels.gpu.gpus import FAMILIES, MODELS
from bench import rows as results
from bench import times
from bench.compiled import (
    TARGETS,
    Code,
    Launch,
    compile_launch,
    equation_launches,
    loss_launches,
    machine_code,
    pair_launches,
    resources,
)
from bench.counted import counted

RESULTS = Path(__file__).parent / "results" / "static.csv"
LIMITS = Path(__file__).parent / "limits.csv"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SCHEDULERS = 4
REGISTER_FILE = 65536
# Kernels under the names that committed rows of bench/results have them by.
RENAMED = {
    "finish": "terms_kernel", "narrow_statistics": "warp_statistics", "narrow_gradient": "warp_gradient",
    "wide_statistics": "program_statistics", "wide_embedding": "program_embedding", "wide_gradient": "program_gradient",
}  # fmt: skip
# n, k, d, C, targets: what each case is for stands in kernels/README.md.
PAPER = (1 << 20, 7, 256, 7, -1.0)
CASES = {
    "paper": (PAPER, tuple(DTYPES)),
    "other-targets": ((1 << 16, 7, 256, 7, 0.3), ("float32", "bfloat16")),
    "many-classes": ((1 << 16, 7, 256, 100, -1.0), ("float32", "bfloat16")),
    "wide": ((1 << 16, 7, 512, 7, -1.0), ("float32", "bfloat16")),
    "wide-other-targets": ((1 << 12, 16, 256, 32, 0.3), ("float32",)),
    "blocks": ((1 << 12, 64, 4096, 7, -1.0), ("float32",)),
}
# Eq. 12 around the terms: n, k, d, C.
EQUATION_CASES = {"equation": (1 << 16, 7, 256, 7)}
# FD over all pairs of samples: n, k, d, C.
PAIR_CASES = {"pairs": (1 << 16, 7, 256, 7), "pairs-long-rows": (1 << 14, 7, 512, 7)}
PRECISIONS = ("highest", "high", "medium")
# The most of H100's budget that issuing a loop's instructions may take.
MOST_OF_H100 = {
    ("warp_statistics", "float32"): 0.55,
    ("warp_gradient", "float32"): 0.55,
    ("gram_statistics", "bfloat16"): 0.45,
    ("gram_statistics", "float16"): 0.45,
    ("warp_statistics", "bfloat16"): 0.75,
    ("warp_gradient", "bfloat16"): 0.65,
    ("warp_statistics", "float16"): 0.75,
    ("warp_gradient", "float16"): 0.65,
}
STREAMING = ("gram_statistics", "warp_statistics", "warp_gradient", "program_statistics", "program_gradient")
TILED = ("pair_values", "pair_gradient")


@dataclass
class Row:
    """One compiled kernel. Loop figures are of the loop over samples, per warp; empty where the tools show none."""

    case: str
    dtype: str
    kernel: str
    target: str
    triton: str
    registers: int
    stack: int
    shared: int
    programs_per_sm: int | str = ""
    loop_instructions: int | str = ""
    loop_barriers: int | str = ""
    loop_spills: int | str = ""
    load_bits: int | str = ""
    store_bits: int | str = ""
    issue_cycles: float | str = ""
    traffic: int | str = ""
    bytes_in_flight: int | str = ""
    h100_share: float | str = ""
    h200_share: float | str = ""
    a100_share: float | str = ""
    matrix_instructions: int | str = ""
    matrix_share: float | str = ""
    matrix_cycles: float | str = ""
    binds: str = ""


def cases() -> dict[str, tuple[str, ...]]:
    """Every case, and its dtypes or precisions."""
    around = dict.fromkeys(EQUATION_CASES, ("float32",))
    return {case: dtypes for case, (_, dtypes) in CASES.items()} | around | dict.fromkeys(PAIR_CASES, PRECISIONS)


def launches_of(case: str, dtype: str, architecture: str = "sm_90") -> list[Launch]:
    if case in PAIR_CASES:
        launches = pair_launches(*PAIR_CASES[case], dtype, architecture)
        return [launch for launch in launches if launch.name in TILED or dtype != "high"]  # as for "highest"
    if case in EQUATION_CASES:
        return equation_launches(*EQUATION_CASES[case], architecture)
    (n, k, d, num_classes, target), _ = CASES[case]
    return loss_launches(n, k, d, num_classes, DTYPES[dtype], target, target, target if k <= 16 else -1.0, architecture)


def rows_of(case: str, dtype: str, target: str) -> list[Row]:
    """A case's kernels for one target. Kernels that do not see x's dtype are listed with float32 alone."""
    rows = []
    for launch in launches_of(case, dtype, target):
        if launch.name in STREAMING or dtype == "float32" or case in PAIR_CASES:
            rows.append(row_of(case, dtype, launch, target))
    return rows


def row_of(case: str, dtype: str, launch: Launch, target: str) -> Row:
    compiled = compile_launch(launch, target)
    used = resources(compiled)
    row = Row(case, dtype, launch.name, target, triton.__version__, used.registers, used.stack, used.shared)
    limits = FAMILIES[target]
    if not limits.warps:
        return row
    warps = launch.options["num_warps"]
    per_warp = -(-used.registers * 32 // 256) * 256
    row.programs_per_sm = min(limits.programs, limits.warps // warps, REGISTER_FILE // (per_warp * warps))
    if launch.name in STREAMING:
        row.programs_per_sm = min(row.programs_per_sm, limits.shared // (used.shared + 1024))
    code = machine_code(compiled)
    if launch.name in TILED:
        _tiles(row, launch, code)
    if launch.name not in STREAMING:
        return row
    loop = streaming_loop(code)
    body = code.within(loop)
    row.loop_instructions = len(body)
    row.loop_barriers = _count(r"\bBAR\b", body)
    row.loop_spills = _count(r"\b(LDL|STL)\b", body)
    row.load_bits = _narrowest("LDG(?:STS)?", body)  # straight into registers or, asynchronously, into shared memory
    row.store_bits = _narrowest("STG", body if "gradient" in launch.name else code.instructions)
    if case == "paper":
        _model(row, launch, code, loop)
    return row


def _model(row: Row, launch: Launch, code: Code, loop: tuple[int, int]) -> None:
    """Every instruction of the machine code as often as it runs, beside the bytes, both as counted."""
    samples = launch.constants["BS"]
    assert isinstance(row.programs_per_sm, int)
    x = launch.arguments["x_ptr"]
    sample = launch.constants["K"] * launch.constants["D"] * x.element_size()
    ahead = (launch.constants.get("STAGES", 3) - 1) // 2  # steps; a step's index is loaded as long before it
    row.bytes_in_flight = row.programs_per_sm * samples * ahead * sample
    gpus = {name: gpu for name, gpu in MODELS.items() if gpu.family == row.target}
    if not gpus:
        return
    counts = counted(x.dtype, row.target)[row.kernel]
    row.issue_cycles = round(counts.instructions(code.places, loop) / SCHEDULERS, 1)
    row.traffic = round(counts.traffic)
    for name, gpu in gpus.items():
        share = row.issue_cycles / gpu.cycles(counts.traffic)
        setattr(row, f"{name.lower()}_share", round(share, 3))
        row.binds += f"{name}: {'issue' if share > 1 else 'memory'}  "
    row.binds = row.binds.strip()


def _tiles(row: Row, launch: Launch, code: Code) -> None:
    """Of the loop over tiles, each instruction as often as it is executed: a long row's tile has a loop within."""
    matrix = r"\b(HMMA|HGMMA|UTCHMMA|OMMA|QMMA)\b"
    constants = launch.constants
    width = constants["DP"]
    again = 0 if constants["RESIDENT"] else -(-width // constants["BK"]) - 1
    outer = max((loop for loop in code.loops if _count(matrix, code.within(loop))), key=_length)
    inner = [loop for loop in code.loops if outer[0] <= loop[0] and loop[1] <= outer[1] and loop != outer]

    def executed(pattern: str) -> int:
        return _count(pattern, code.within(outer)) + again * sum(_count(pattern, code.within(loop)) for loop in inner)

    row.loop_instructions = executed("")
    row.loop_barriers = executed(r"\bBAR\b")
    row.loop_spills = executed(r"\b(LDL|STL)\b")
    row.matrix_instructions = executed(matrix)
    row.matrix_share = round(row.matrix_instructions / row.loop_instructions, 3)
    products = 3 if constants["PIECES"] == 2 else 1
    columns = width + constants.get("BV", 0)
    matrix_cycles = 2 * constants["BM"] * constants["BN"] * columns * products / FAMILIES[row.target].matrix_flops
    issue_cycles = (row.loop_instructions - row.matrix_instructions) * launch.options["num_warps"] / SCHEDULERS
    row.matrix_cycles, row.issue_cycles = matrix_cycles, issue_cycles
    row.binds = "matrix units" if matrix_cycles > issue_cycles else "issue"


def streaming_loop(code: Code) -> tuple[int, int]:
    """The innermost loop with matrix units or most of the kernel's float arithmetic: the one over samples."""
    if with_matrix := [loop for loop in code.loops if _count(r"\bHMMA\b", code.within(loop))]:
        return min(with_matrix, key=_length)
    work = {loop: _count(r"\bF(FMA|ADD|MUL)2?\b", code.within(loop)) for loop in code.loops}
    return min((loop for loop in code.loops if work[loop] > 0.6 * max(work.values())), key=_length)


def _length(loop: tuple[int, int]) -> int:
    return loop[1] - loop[0]


def _count(pattern: str, code: list[str]) -> int:
    return sum(bool(re.search(pattern, instruction)) for instruction in code)


def _narrowest(operation: str, code: list[str]) -> int | str:
    """Bits of the most frequent width of a memory operation: 128 where whole vectors move."""
    widths: Counter[int] = Counter()
    for instruction in code:
        if match := re.search(rf"\b{operation}\.\S*", instruction):
            words = match[0].split(".")
            bits = next((int(word) for word in words if word in ("64", "128", "256")), 32)
            bits = next((int(word[1:]) for word in words if word in ("U8", "S8", "U16", "S16")), bits)
            widths[bits] += 1
    return widths.most_common(1)[0][0] if widths else ""


def limits() -> dict[tuple[str, str], dict[str, float]]:
    """bench/limits.csv: the most that a kernel of a case may use, over all targets and dtypes."""
    return {
        (row["case"], row["kernel"]): {name: float(row[name]) for name in row if name not in ("case", "kernel")}
        for row in results.read(LIMITS)
    }


def complaints(row: Row, allowed: dict[str, float]) -> list[str]:
    """Messages for what exceeds its limit. A streaming loop must not spill; if it cannot be inspected, no code may."""
    if row.kernel in STREAMING and row.loop_instructions == "":
        allowed = {**allowed, "stack": 0}
    allowed = {**allowed, "shared": min(allowed["shared"], FAMILIES[row.target].shared)}
    used: list[tuple[str, Any]] = [("registers", row.registers), ("stack", row.stack), ("shared", row.shared)]
    if row.loop_instructions != "":
        used += [("barriers", row.loop_barriers), ("spills", row.loop_spills)]
    if row.h100_share != "":
        allowed = {**allowed, "H100's budget": MOST_OF_H100[row.kernel, row.dtype]}
        used.append(("H100's budget", row.h100_share))
    where = f"{row.case}: {row.kernel}, {row.dtype}, {row.target}"
    return [f"{where}: {name} {value} > {allowed[name]:g}" for name, value in used if value > allowed[name]]


def read(path: Path = RESULTS) -> list[dict[str, str]]:
    """The committed rows, under the kernels' present names."""
    return [row | {"kernel": RENAMED.get(row["kernel"], row["kernel"])} for row in results.read(path)]


def main(argv: list[str]) -> int:
    parser = results.parser("static", __doc__)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS), help="architectures")
    parser.add_argument("--cases", nargs="+", choices=cases(), default=list(cases()), help="what to compile")
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV file to write")
    options = parser.parse_args(argv)
    allowed = limits()
    rows, beyond = [], []
    for case in options.cases:
        for dtype in cases()[case]:
            for target in options.targets:
                for row in rows_of(case, dtype, target):
                    rows.append(row)
                    beyond += complaints(row, allowed[case, row.kernel])
                    print(_line(row), flush=True)
    options.out.unlink(missing_ok=True)
    results.append(options.out, [field.name for field in fields(Row)], map(asdict, rows))
    print(f"{len(rows)} rows in {options.out}")
    print(*times.lines(read()), sep="\n")
    for complaint in beyond:
        print(complaint)
    return 1 if beyond else 0


def _line(row: Row) -> str:
    line = f"{row.case:20} {row.kernel:18} {row.dtype:9} {row.target:7}"
    line += f"{row.registers:4} registers {row.stack:3} stack {row.shared:6} shared"
    if row.loop_instructions != "":
        line += f"  loop: {row.loop_instructions} instructions, {row.loop_barriers} barriers"
    if row.matrix_share != "":
        line += f", {row.matrix_share:.0%} of the matrix units; {row.matrix_cycles:.0f} cycles of these, "
        line += f"{row.issue_cycles:.0f} of the others"
    elif row.issue_cycles != "":
        line += f", {row.issue_cycles:.0f} cycles a sample, {row.bytes_in_flight} bytes in flight"
    for name in ("h100_share", "h200_share", "a100_share"):
        if (share := getattr(row, name)) != "":
            line += f", {share:.0%} of {name[:4].upper()}'s budget"
    return line
