"""`python -m bench NAME ...` calls `bench.NAME.main`. Exit status 2 for a name that does not exist."""

import importlib
import sys

from train.entry import exit_code, nearest

COMMANDS = {
    "all": "loss, step and scale, then report: what `make bench` runs",
    "loss": "time and memory of the loss beside its alternatives",
    "step": "a whole training step: the share of the loss, and the gain of each speed option",
    "scale": "time as ranks and virtual batches grow",
    "metric": "retrieval after equal training with metric losses",
    "loading": "images per second from files, cache and shards, and of a training step",
    "report": "the rows as tables in the README and docs, and as pictures",
    "host": "host time of a step, without launching kernels: no GPU needed",
    "spin": "how long OpenMP threads spin: images/s alone and beside another process",
    "gate": "compares ratios, operations and launches with limits: part of .ci/run",
    "targets": "class correlations after optimizing free vectors, for each target",
    "static": "registers, spills and instruction counts of the compiled kernels: no GPU needed",
    "tune": "launch settings of the streaming kernels for a family of GPUs; --dry: by the static model",
    "gpu": "builds, checks and measures the kernels on a GPU; resumable",
}


def usage() -> str:
    lines = [f"  {name:9}{words}" for name, words in COMMANDS.items()]
    return "\n".join(["usage: python -m bench NAME [-h] ...", "", *lines])


def main(argv: list[str]) -> int:
    if argv and argv[0] in COMMANDS:
        return importlib.import_module(f"bench.{argv[0]}").main(argv[1:]) or 0
    help_requested = bool(argv) and argv[0] in ("-h", "--help")
    print(usage(), file=sys.stdout if help_requested else sys.stderr)
    if argv and not help_requested:
        print(
            f"\nbench: expected one of {', '.join(COMMANDS)}; got {argv[0]!r}{nearest(argv[0], list(COMMANDS))}",
            file=sys.stderr,
        )
    return 0 if help_requested else 2


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
