"""`python -m bench gpu`: checks and measures the kernels on a GPU, part by part; rows go to bench/results/gpu.csv.

Needs a checkout, PyTorch and Triton (pytest and hypothesis for the parts `tests-*`); nothing is installed. A part that
passed has a row and is not run again, so that an interrupted call continues where it stopped; each part takes under ten
minutes. Nothing is timed before `agrees` has passed. With --device cpu and TRITON_INTERPRET=1 everything runs at toy
size in Triton's interpreter: a test of this script, whose times are meaningless and are written only with --out.
"""

from __future__ import annotations

import os
import traceback
from pathlib import Path

import torch

from bench import gpu_pairs, gpu_parts, rows
from bench.gpu_parts import Bench, Failed

PARTS = {**gpu_parts.PARTS, **gpu_pairs.PARTS}
FIELDS = (
    "date", "commit", "device", "driver", "torch", "triton", "part", "case", "n", "k", "d", "classes", "dtype",
    "metric", "value", "p20", "p80", "unit", "target", "met",
)  # fmt: skip
PASSED = {"metric": "passed", "value": True}


def main(argv: list[str]) -> int:
    parser = rows.parser("gpu", __doc__, rows.RESULTS / "gpu.csv")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to do, in this order")
    parser.set_defaults(device="cuda")
    options = parser.parse_args(argv)
    toy = options.device == "cpu"
    if toy and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("--device cpu runs in Triton's interpreter: set TRITON_INTERPRET=1")
    if not toy and not torch.cuda.is_available() and options.device.startswith("cuda"):
        parser.error("no CUDA device here; --device cpu with TRITON_INTERPRET=1 runs the script at toy size")
    if toy:
        options.busy = True
        options.out = Path(os.devnull) if options.out == parser.get_default("out") else options.out
    session = rows.Session(parser, options, FIELDS, ("part", "metric", "value"))
    failed: list[str] = []
    for name in options.parts:
        if session.done(part=name, **PASSED):
            print(f"{name}: done before")
            continue
        if session.stops(name) or (failed and failed[-1] == "agrees"):
            break
        print(f"{name}: {(PARTS[name].__doc__ or '').splitlines()[0]}", flush=True)
        try:
            PARTS[name](Bench(session, name))
            session.append({"part": name, **PASSED})
        except Failed as reason:
            failed.append(name)
            print(f"{name} FAILED: {reason}")
        except Exception:  # what breaks one part leaves the others their time on the device
            failed.append(name)
            print(f"{name} FAILED:\n{traceback.format_exc()}")
    if failed or session.status:
        print("failed: " + ", ".join(failed) if failed else "not all parts ran")
        return session.status or 1
    print("all parts passed")
    return 0
