"""`python -m bench all`: loss, step and scale, one after the other, then report. What has its row is not run again."""

from __future__ import annotations

import argparse
import importlib

from bench import measure
from train.entry import SuggestingParser

PARTS = ("loss", "step", "scale")


def main(argv: list[str] | None = None) -> int:
    parser = SuggestingParser(
        prog="python -m bench all", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument("--minutes", type=float, help="stop after so many; rows are kept; default: no limit")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    options = parser.parse_args(argv)
    measure.check_device(parser, options.device)
    if options.minutes is not None and not options.minutes > 0:
        parser.error("--minutes: expected more than 0")
    deadline = measure.Deadline(options.minutes)
    failed = 0
    for name in options.parts:
        if deadline.passed(name):
            break
        print(f"== {name}", flush=True)
        words = ["--device", options.device, "--seed", str(options.seed)]
        words += ["--minutes", str(deadline.left() / 60)] if options.minutes else []
        failed |= importlib.import_module(f"bench.{name}").main(words)
    return importlib.import_module("bench.report").main([]) or failed
