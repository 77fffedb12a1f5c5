"""`python -m bench gpu`: checks and measures the kernels on a GPU, part by part; rows go to bench/results/gpu.csv.

Needs a checkout, PyTorch and Triton (pytest and hypothesis for the parts `tests-*`); nothing is installed. Parts that
are done are noted beside the rows and not run again, so that a call that was cut short goes on where it stopped; each
takes less than ten minutes. Nothing is timed before `agrees` has passed. With --device cpu and TRITON_INTERPRET=1 all
of it runs at toy size in Triton's interpreter: a test of this script, whose times mean nothing and go to no file unless
--out says so.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import re
import shutil
import subprocess
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import triton

from bench import gpu_pairs, gpu_parts
from bench.gpu_parts import ROOT, Bench, Failed
from train.entry import SuggestingParser

RESULTS = Path(__file__).parent / "results" / "gpu.csv"
PARTS = {**gpu_parts.PARTS, **gpu_pairs.PARTS}
FIELDS = (
    "date", "commit", "device", "driver", "torch", "triton", "part", "case", "n", "k", "d", "classes", "dtype",
    "metric", "value", "p20", "p80", "unit", "target", "met",
)  # fmt: skip


def about(bench: Bench) -> dict[str, str]:
    """What every row says about where it came from."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    device, driver = "interpreter", ""
    if bench.device.type == "cuda":
        device = torch.cuda.get_device_name(bench.device)
        if tool := shutil.which("nvidia-smi"):
            query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
            driver = subprocess.run(query, capture_output=True, text=True).stdout.strip().partition("\n")[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M"),
        "commit": commit.stdout.strip() or "unknown",
        "device": device,
        "driver": driver,
        "torch": torch.__version__,
        "triton": triton.__version__,
    }


def append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, restval="", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def main(argv: list[str]) -> int:
    parser = SuggestingParser(
        prog="python -m bench gpu", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to do, in this order")
    parser.add_argument("--device", default="cuda", help="where to run; cpu: at toy size in the interpreter")
    parser.add_argument("--out", type=Path, help="CSV file to append to (default on a GPU: bench/results/gpu.csv)")
    parser.add_argument("--again", action="store_true", help="also run parts that are done")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn inputs")
    options = parser.parse_args(argv)
    if options.device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("--device cpu runs in Triton's interpreter: set TRITON_INTERPRET=1")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", options.device):
        parser.error(f"--device: expected cpu, cuda or cuda:N, got {options.device!r}")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("no CUDA device here; --device cpu with TRITON_INTERPRET=1 runs the script at toy size")
    bench = Bench(options.device, options.seed)
    out: Path | None = options.out or (None if bench.toy else RESULTS)
    origin = about(bench)
    state = None if out is None else out.with_suffix(".done.json")
    done = json.loads(state.read_text()) if state is not None and state.exists() else {}
    mark = " ".join(origin[name] for name in ("commit", "device", "torch", "triton"))
    failed = []
    for name in options.parts:
        if done.get(name) == mark and not options.again:
            print(f"{name}: done before")
            continue
        print(f"{name}: {(PARTS[name].__doc__ or '').splitlines()[0]}", flush=True)
        bench.part, bench.rows = name, []
        try:
            PARTS[name](bench)
            done[name] = mark
        except Failed as reason:
            failed.append(name)
            print(f"{name} FAILED: {reason}")
        except Exception:  # what breaks one part leaves the others their time on the device
            failed.append(name)
            print(f"{name} FAILED:\n{traceback.format_exc()}")
        if out is not None and state is not None:
            append(out, [{**origin, **row} for row in bench.rows])
            state.write_text(json.dumps(done, indent=1) + "\n")
        if name == "agrees" and failed:
            break
    print("failed: " + ", ".join(failed) if failed else "all parts passed")
    return 1 if failed else 0
