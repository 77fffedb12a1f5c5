"""`python -m bench all`: loss, step and scale, one after the other, then report. What has its row is not run again."""

from __future__ import annotations

import importlib
import time

from bench import rows

PARTS = ("loss", "step", "scale")


def main(argv: list[str] | None = None) -> int:
    parser = rows.parser("all", __doc__, measures=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    options = parser.parse_args(argv)
    rows.check_device(parser, options.device)
    if options.minutes is not None and not options.minutes > 0:
        parser.error("--minutes: expected more than 0")
    began, status = time.monotonic(), 0
    for name in options.parts:
        print(f"== {name}", flush=True)
        words = ["--device", options.device, "--seed", str(options.seed), *(["--busy"] if options.busy else [])]
        if options.minutes:
            words += ["--minutes", str(max(1e-6, options.minutes - (time.monotonic() - began) / 60))]
        status |= importlib.import_module(f"bench.{name}").main(words)
    return importlib.import_module("bench.report").main([]) or status
