"""`python -m bench NAME ...` hands the arguments to `bench.NAME.main`. Exit status 2 for a name that does not exist."""

import importlib
import sys

from train.entry import exit_code, nearest

COMMANDS = {
    "all": "loss, step and scale, then report: what `make bench` runs",
    "loss": "time and memory of the loss against what a user would pick instead",
    "step": "a whole training step: what the loss costs in it, and what each lever of speed gains",
    "scale": "as n, ranks and virtual batches grow",
    "loading": "training images per second from files, cache and shards, beside those that a step takes",
    "report": "the rows as tables in the README and docs, and as pictures",
    "host": "what a step costs the host, with launches replaced by nothing: no GPU needed",
    "spin": "how long OpenMP threads spin: images/s alone and beside another process",
    "gate": "what must not get worse, on a noisy machine: part of the tests",
    "targets": "where the terms lead free vectors, target by target",
    "static": "what the compiled kernels use, and how fast they can be: no GPU needed",
    "tune": "launch settings of the streaming kernels for a family of GPUs; --dry: by the static model",
    "gpu": "builds, checks and measures the kernels on a GPU; resumable",
}


def usage() -> str:
    lines = [f"  {name:9}{words}" for name, words in COMMANDS.items()]
    return "\n".join(["usage: python -m bench NAME [-h] ...", "", *lines])


def main(argv: list[str]) -> int:
    if argv and argv[0] in COMMANDS:
        return importlib.import_module(f"bench.{argv[0]}").main(argv[1:]) or 0
    asked = bool(argv) and argv[0] in ("-h", "--help")
    print(usage(), file=sys.stdout if asked else sys.stderr)
    if argv and not asked:
        print(
            f"\nbench: expected one of {', '.join(COMMANDS)}; got {argv[0]!r}{nearest(argv[0], list(COMMANDS))}",
            file=sys.stderr,
        )
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
