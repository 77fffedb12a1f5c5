"""`python -m tests.ptx.mutants`: how many planted faults of the package's kernels are found.

Found: a finding, a machine error, or an output outside the error budget. Not found and the same machine code from
ptxas: equivalent. The rest is missed, and listed. The table goes to bench/results/ptx_mutants.csv.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch
import triton

import ptx_machine
from ptx_machine.mutate import Mutant, draw, drop
from tests.kernels.launched import tools
from tests.ptx.package import Case, machine, problem_of

RESULTS = Path(__file__).parents[2] / "bench" / "results" / "ptx_mutants.csv"
CASES = [
    Case("narrow, odd d", torch.float32, "sm_90", "ignored"),
    Case("narrow, sorted", torch.bfloat16, "sm_80", "plain"),
    Case("wide, k > 16", torch.float32, "sm_120", "ignored"),
    Case("blocks, long rows", torch.float16, "sm_90", "plain"),
]
_NAME = re.compile(r"\.entry\s+(\w+)")


def kernels_of(case: Case) -> dict[str, tuple[str, set[str], float]]:
    """PTX, the instructions that run and how many, by kernel."""
    texts: dict[str, str] = {}

    def keep(ptx: str) -> str:
        match = _NAME.search(ptx)
        assert match is not None
        texts[match[1]] = ptx
        return ptx

    problem, x = problem_of(case)
    with machine(case.target, rewrite=keep) as report:
        tools.assert_within_budget(problem, x, tools.launch(problem, x))
    report.raise_if_any()
    counts = {launch.kernel: launch for launch in report.counts}
    return {
        name: (ptx, {text for _, text, _ in counts[name].by_instruction}, sum(counts[name].instructions.values()))
        for name, ptx in texts.items()
    }


def verdict(case: Case, original: str, mutant: Mutant, most: int) -> str:
    """What gives the mutant away, or "": two schedules, the second one of another problem for the same code."""

    def rewrite(ptx: str) -> str:
        return mutant.ptx if ptx == original else ptx

    for seed in range(2):
        problem, x = problem_of(case, seed)
        try:
            with machine(case.target, seed, rewrite=rewrite, limit=16 * most) as report:
                got = tools.launch(problem, x)
        except ptx_machine.MachineError as error:
            return f"error: {str(error)[:60]}"
        if report.findings:
            return f"finding: {report.findings[0].kind}"
        try:
            tools.assert_within_budget(problem, x, got)
        except AssertionError:
            return "output"
    return ""


def machine_code(ptx: str, target: str) -> bytes | None:
    """What ptxas makes of it; None if it refuses."""
    tools_at = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    arch = re.search(r"\.target\s+(\w+)", ptx)
    assert arch is not None
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder) / "k.ptx", Path(folder) / "k.cubin"
        source.write_text(re.sub(r"\n\s*\.loc[^\n]*|\n\s*\.section[\s\S]*", "", ptx))
        newer = tools_at / "ptxas-blackwell"
        for ptxas in [tools_at / "ptxas", newer] if newer.exists() else [tools_at / "ptxas"]:
            done = subprocess.run([ptxas, f"-arch={arch[1]}", source, "-o", cubin], capture_output=True, check=False)
            if done.returncode == 0:
                dump = subprocess.run([tools_at / "cuobjdump", "-sass", cubin], capture_output=True, check=False)
                return dump.stdout
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="mutants drawn over executed instructions")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing")
    parser.add_argument(
        "--barriers", action=argparse.BooleanOptionalAction, default=True, help="each barrier and wait dropped"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="the table")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    rows = []
    for case in CASES:
        kernels = kernels_of(case)
        most = int(max(number for _, _, number in kernels.values()))
        jobs = []
        if options.barriers:
            for name, (ptx, _, _) in kernels.items():
                jobs += [(name, "barrier", m) for m in drop(ptx, r"(@!?%p\d+ )?(bar\.sync|cp\.async\.wait)")]
        names, weights = list(kernels), [len(executed) for _, executed, _ in kernels.values()]
        for _ in range(options.count // len(CASES)):
            name = rng.choices(names, weights)[0]
            mutant = draw(kernels[name][0], kernels[name][1], rng)
            jobs.append((name, mutant.kind, mutant))
        for name, kind, mutant in jobs:
            found = verdict(case, kernels[name][0], mutant, most)
            if not found:
                original, changed = machine_code(kernels[name][0], case.target), machine_code(mutant.ptx, case.target)
                same = changed is None or changed == original
                found = "" if not same else "equivalent: ptxas" if changed else "error: ptxas refuses it"
            rows.append([str(case), name, kind, mutant.place, mutant.before, mutant.after, found or "missed"])
            print(*rows[-1], sep=" | ", flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "kernel", "kind", "place", "before", "after", "verdict"])
        writer.writerows(rows)
    summary(rows)
    return 0


def summary(rows: list[list[str]]) -> None:
    for kind in sorted({row[2] for row in rows}):
        verdicts = Counter(row[6].split(":")[0] for row in rows if row[2] == kind)
        real = sum(verdicts.values()) - verdicts["equivalent"]
        share = f"{100 * (real - verdicts['missed']) / real:.0f} %" if real else "-"
        drawn, same, missed = sum(verdicts.values()), verdicts["equivalent"], verdicts["missed"]
        print(f"{kind:10} {drawn:4} planted, {same} equivalent, {missed} missed: {share} found")


if __name__ == "__main__":
    sys.exit(main())
