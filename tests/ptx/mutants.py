"""`python -m tests.ptx.mutants`: how many planted faults are found, as a table.

Planted: each barrier and each wait left out; instructions changed that were drawn among those that ran and whose result
is read; x compiled for an alignment that it has not; each tensor one element short; orderings of the machine's own
kernels weakened. Found: a finding, an error, or an output outside of its budget. Equivalent: the same machine code from
ptxas, or a proof in one line: `redundant`'s, or a reader's in remarks.csv, which also says what finding the missed ones
would take. A table that is there already is taken up where it ended.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch

import ptx_machine
from bench import static
from ptx_machine import launch as machine_launch
from ptx_machine.mutate import Mutant, draw, drop
from ptx_machine.parse import parse
from ptx_machine.program import Program
from tests.ptx import redundant, samples
from tests.ptx.package import Case, PairCase, machine
from tests.ptx.planted import OPERATORS, Kernel, Step, kernels_of, machine_code, steps_of, verdict
from tests.ptx.redundant import why_redundant

RESULTS = Path(__file__).parents[2] / "bench" / "results" / "ptx_mutants.csv"
REMARKS = Path(__file__).parent / "remarks.csv"
CASES = [
    Case("narrow, odd d", torch.float32, "sm_90", "plain"),
    Case("narrow, aligned", torch.bfloat16, "sm_80", "plain"),
    Case("narrow, aligned", torch.float32, "sm_120", "other aims"),
    Case("wide, sorted", torch.float32, "sm_120", "plain"),
    Case("wide, counted", torch.float16, "sm_90", "plain"),
    Case("blocks, the largest k", torch.float32, "sm_80", "plain"),
    PairCase("odd d", "highest", "sm_80", "plain"),
]
SAME_CODE = "equivalent: the same machine code"
BARRIERS = r"(@!?%p\d+ )?(bar\.sync|cp\.async\.wait)"


class Row(NamedTuple):
    number: int
    kind: str
    case: str
    kernel: str
    code: str  # a digest of the kernel's PTX without source positions
    place: str
    before: str
    after: str
    verdict: str = ""


Job = tuple[Row, Callable[[], str]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="mutants drawn over executed instructions")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing")
    parser.add_argument("--minutes", type=float, default=180, help="stop after so long; another call goes on")
    parser.add_argument(
        "--cases",
        type=int,
        nargs="+",
        default=range(len(CASES) + 1),
        help="only these, a process each; alone, one prints as it goes",
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="the table")
    options = parser.parse_args()
    if len(options.cases) > 1:
        return side_by_side(options)
    began, known = time.monotonic(), read(options.output)
    rows = {number: row for number, row in known.items() if number // 1000 not in options.cases}
    for row, judge in jobs(options.count, options.seed, options.cases):
        before = known.get(row.number)
        if before is not None and before._replace(place=row.place, verdict="") == row:
            rows[row.number] = before._replace(place=row.place)
            continue
        if time.monotonic() - began > 60 * options.minutes:
            print("time is up: call again to go on")
            return 1
        rows[row.number] = row._replace(verdict=judge())
        print(*rows[row.number], sep=" | ", flush=True)
        write(options.output, known | rows)
    rows = {number: remarked(row) for number, row in rows.items()}
    write(options.output, rows)
    print(summary(list(rows.values())))
    return 0


def side_by_side(options: argparse.Namespace) -> int:
    """Run one process per case, one per core at a time; then merge their tables."""
    parts = {case: options.output.with_suffix(f".{case}.csv") for case in options.cases}
    known = read(options.output)

    def one(case: int) -> int:
        write(parts[case], {number: row for number, row in known.items() if number // 1000 == case})
        command = [sys.executable, "-m", "tests.ptx.mutants", f"--cases={case}", f"--output={parts[case]}"]
        command += [f"--{name}={getattr(options, name)}" for name in ("count", "seed", "minutes")]
        return subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        failed = sum(pool.map(one, options.cases))
    rows = {number: row for number, row in known.items() if number // 1000 not in options.cases}
    for part in parts.values():
        rows |= read(part)
        part.unlink(missing_ok=True)
    write(options.output, rows)
    print(summary(list(rows.values())))
    return int(bool(failed))


def read(path: Path) -> dict[int, Row]:
    if not path.exists():
        return {}
    return {int(row["number"]): Row(**{**row, "number": int(row["number"])}) for row in static.read(path)}


def write(path: Path, rows: dict[int, Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows(row for _, row in sorted(rows.items()))


def remarked(row: Row) -> Row:
    """A missed mutant with a remark: the proof that it changes nothing, or the check that is missing."""
    if row.verdict != "missed":
        return row
    with REMARKS.open(newline="") as file:
        for entry in csv.DictReader(file):
            if (entry["code"], entry["before"], entry["after"]) == (row.code, row.before, row.after):
                return row._replace(verdict=f"{entry['verdict']}: {entry['why']}")
    return row


def jobs(count: int, seed: int, cases: Iterable[int]) -> Iterator[Job]:
    """In the order of their numbers: 1000 per case."""
    for number in cases:
        share = count // len(CASES) + (number < count % len(CASES))
        planted = _weakened() if number == len(CASES) else draw_mutants(number, share, seed)
        for place, (row, judge) in enumerate(planted):
            yield row._replace(number=1000 * number + place), judge


def draw_mutants(number: int, count: int, seed: int) -> Iterator[Job]:
    """`count` mutants of a case, then all other faults planted in it."""
    case, rng = CASES[number], random.Random(1000 * seed + number)
    steps = steps_of(case)
    kernels = kernels_of(case, steps)
    names, weights = list(kernels), [len(kernel.places) for kernel in kernels.values()]
    for _ in range(count):
        kernel = kernels[rng.choices(names, weights)[0]]
        mutant = draw(kernel.ptx, kernel.places, rng)
        row = Row(0, mutant.kind, str(case), kernel.name, kernel.code, mutant.place, mutant.before, mutant.after)
        dropped_barrier = not mutant.after and re.match(BARRIERS, mutant.before)
        yield row, partial(_barrier if dropped_barrier else _drawn, case, steps, kernel, mutant)
    for kernel in kernels.values():
        for nth, mutant in enumerate(drop(kernel.ptx, BARRIERS), 1):
            before = f"{mutant.before} ({nth})"
            row = Row(0, "barrier", str(case), kernel.name, kernel.code, mutant.place, before, "")
            yield row, partial(_barrier, case, steps, kernel, mutant)
    yield from _short(case, steps, kernels)
    yield from _misaligned(case, steps, kernels)


def _drawn(case: Case | PairCase, steps: list[Step], kernel: Kernel, mutant: Mutant) -> str:
    outcome = verdict(case, steps, kernel, mutant.ptx)
    if outcome:
        return outcome
    code = machine_code(mutant.ptx)
    if code is None:
        return "found: ptxas refuses it"
    return SAME_CODE if code == machine_code(kernel.ptx) else "missed"


def _barrier(case: Case | PairCase, steps: list[Step], kernel: Kernel, mutant: Mutant) -> str:
    if not kernel.executed[mutant.at]:
        return "not reached"

    def footprints() -> redundant.Footprints:
        with machine(case.target), redundant.watched(kernel.name) as seen:
            next(step for step in steps if step.operator == OPERATORS[kernel.name]).run()
        return seen

    program = Program(parse(kernel.ptx), kernel.threads, 1 << 17)
    if program.steps[mutant.at].control == "bar" and (reason := why_redundant(program, mutant.at, footprints)):
        return f"equivalent: {reason}"
    return verdict(case, steps, kernel, mutant.ptx, seeds=2) or "missed"


def _short(case: Case | PairCase, steps: list[Step], kernels: dict[str, Kernel]) -> Iterator[Job]:
    """Each tensor of each launch one element short."""
    tensors = sorted({(name, arg) for name in kernels for arg in _arguments(case, steps, name)})
    for name, argument in tensors:

        def judge(name: str = name, argument: str = argument) -> str:
            whole = machine_launch._window

            def shortened(memory, buffers, arg, value, written):  # type: ignore[no-untyped-def]
                address = whole(memory, buffers, arg, value, written)
                window = memory.windows[-1] if memory.windows else None
                if arg == argument and value is not None and window is not None and value.numel():
                    window.high -= value.element_size()
                return address

            with mock.patch.object(machine_launch, "_window", shortened):
                outcome = verdict(case, steps, kernels[name], kernels[name].ptx)
            return outcome or "equivalent: the host function makes it longer than a launch uses"

        yield Row(0, "one element short", str(case), name, kernels[name].code, "", argument, f"{argument}[:-1]"), judge


def _arguments(case: Case | PairCase, steps: list[Step], kernel: str) -> list[str]:
    with machine(case.target, lockstep=True) as report:
        next(step for step in steps if step.operator == OPERATORS[kernel]).run()
    launch = next(launch for launch in report.counts if launch.kernel == kernel)
    return sorted({key.split()[0] for key in launch.global_requests})


def _misaligned(case: Case | PairCase, steps: list[Step], kernels: dict[str, Kernel]) -> Iterator[Job]:
    """Code compiled for aligned rows of x, given unaligned rows."""
    shift = {"x one element on": (1, 0), "rows of x one element longer": (0, 1)}
    for name, kernel in kernels.items():
        if "x_ptr" not in _arguments(case, steps, name) or not _takes_several(kernel):  # x is their first argument
            continue
        for what, (start, longer) in shift.items():

            def judge(kernel: Kernel = kernel, start: int = start, longer: int = longer) -> str:
                def rewrite(ptx: str) -> str:
                    return kernel.ptx if f".entry {kernel.name}(" in ptx else ptx

                step = next(step for step in steps if step.operator == OPERATORS[kernel.name])
                x = step.x
                n, k, d = x.shape
                room = torch.zeros(n * k * (d + longer) + start, dtype=x.dtype)
                moved = room[start:].as_strided(x.shape, (k * (d + longer), d + longer, 1), start)
                moved.copy_(x)
                try:
                    with machine(case.target, rewrite=rewrite, limit=4 * kernel.most) as report:
                        step.again(moved)
                except ptx_machine.MachineError as error:
                    return f"found: error: {str(error)[:50]}"
                return f"found: {report.findings[0].kind}" if report.findings else "missed"

            yield Row(0, "divisibility", str(case), name, kernel.code, "", "x as it was compiled for", what), judge


def _takes_several(kernel: Kernel) -> bool:
    """Whether a load takes several numbers of the first argument at once."""
    program = Program(parse(kernel.ptx), kernel.threads, 1 << 17)
    return any(
        source.name == "ld" and {"v2", "v4", "v8"} & set(source.parts) and 0 in program.arguments_of(at)
        for at, source in enumerate(program.entry.instructions)
    )


def _weakened() -> Iterator[Job]:
    """A kernel in which the last program adds up all partial results, with a synchronization too weak for it."""
    for target in ("sm_80", "sm_90", "sm_120"):
        for semantics in ("relaxed", "acquire", "release", "a block's scope", "no barrier"):

            def judge(target: str = target, semantics: str = semantics) -> str:
                def rewrite(ptx: str) -> str:
                    if semantics == "a block's scope":
                        return re.sub(r"(atom\S*)\.gpu\.", r"\1.cta.", ptx)
                    return re.sub(r"bar\.sync\s+0;", "", ptx) if semantics == "no barrier" else ptx

                sem = semantics if semantics in ("relaxed", "acquire", "release") else "acq_rel"
                sums, out = torch.full((8,), float("nan")), torch.zeros(1)
                with ptx_machine.target(target, rewrite=rewrite) as report:
                    samples.last_one_sums[(4,)](
                        torch.ones(500), sums, torch.zeros(1, dtype=torch.int32), out, 500, B=128, P=8, SEM=sem
                    )
                return f"found: {report.findings[0].kind}" if report.findings else "missed"

            yield Row(0, "ordering", target, "last_one_sums", "", "", "acq_rel, and a barrier", semantics), judge


def summary(rows: list[Row]) -> str:
    """Markdown: verdicts by kind of fault. kernels/README.md holds the one of the committed table."""
    lines = [
        "| fault | planted | found | same machine code | proved to change nothing | missed | found of the rest |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in [*sorted({row.kind for row in rows}), "all"]:
        of_kind = [row.verdict for row in rows if kind in (row.kind, "all")]
        count = Counter(verdict.split(":")[0] for verdict in of_kind)
        same = of_kind.count(SAME_CODE)
        outcome, missed = count["found"], count["missed"]
        figures = (len(of_kind), outcome, same, count["equivalent"] - same, missed, _share(outcome, outcome + missed))
        lines.append(f"| {kind} | {' | '.join(map(str, figures))} |")
    return "\n".join(lines)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


if __name__ == "__main__":
    sys.exit(main())
