"""`python -m bench all`: loss, scale and step, one after the other, then report. Rows of `loss` are not run twice."""

from __future__ import annotations

import argparse
import importlib

from bench import measure

PARTS = ("loss", "scale", "step")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench all", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs")
    options = parser.parse_args(argv)
    measure.check_device(parser, options.device)
    for name in options.parts:
        print(f"== {name}", flush=True)
        importlib.import_module(f"bench.{name}").main(["--device", options.device, "--seed", str(options.seed)])
    return importlib.import_module("bench.report").main([])
