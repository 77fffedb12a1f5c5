"""`python -m train.data NAME …`: look at a dataset, crop faces out of pictures, write shards."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from train.command import CommandParser, at_least
from train.data.base import Request
from train.entry import exit_code, nearest
from train.errors import UserError
from train.options import add_options
from train.settings import check_bounds

COMMANDS = {
    "check": "which dataset lies at a path: counts, duplicates, conflicting labels, unreadable images",
    "crop": "cut the faces out of the pictures in a folder",
    "shard": "write a dataset as tar shards that are read at any place or as a stream",
}


def _request(options: argparse.Namespace) -> Request:
    check_bounds(vars(options))
    return Request.of(vars(options))


def check(arguments: Sequence[str]) -> int:
    parser = CommandParser(
        "data check",
        "Say which dataset lies at PATH, its counts beside the official ones, equal images within and across its "
        "parts, conflicting labels and unreadable images. Exit status: 0 clean, 1 something found, 2 an error of use.",
    )
    parser.add_argument("path", metavar="PATH", help="the dataset's folder or file")
    parser.add_argument("--json", action="store_true", help="print JSON, with every item")
    parser.add_argument("--all", action="store_true", help="list every item of a finding, not the first ten")
    add_options(parser, "classes", "votes")
    options = parser.parse_args(arguments)

    from train.data import check as checking

    return checking.check(options.path, _request(options), options.json, options.all)


def crop(arguments: Sequence[str]) -> int:
    parser = CommandParser(
        "data crop",
        "Write the largest face of each picture in IN to OUT, under the same folders, as PNG. Pictures without a face "
        "and unreadable ones are listed. Exit status: 0 all cropped, 1 some not, 2 an error of use.",
    )
    parser.add_argument("source", metavar="IN", type=Path, help="folder of pictures, at any depth")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write, new or empty")
    parser.add_argument("--detector", metavar="ONNX", type=Path, help="YuNet's file (default: OpenCV's Haar cascade)")
    parser.add_argument(
        "--margin", type=at_least(0, float), default=0.1, help="margin added on each side, as a share of the box"
    )
    parser.add_argument("--score", type=at_least(0, float), default=0.6, help="minimum score of a face (YuNet)")
    options = parser.parse_args(arguments)

    from train.data import crop as cropping

    return cropping.crop(options.source, options.out, options.detector, options.margin, options.score)


def shard(arguments: Sequence[str]) -> int:
    parser = CommandParser("data shard", "Write the splits of the dataset at PATH to OUT as tar shards.")
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed of the split")
    parser.add_argument("path", metavar="PATH", help="the dataset's folder or file")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write, new or empty")
    parser.add_argument(
        "--samples-per-shard",
        type=at_least(1),
        default=4096,
        metavar="N",
        help="samples per tar file; the last one may have fewer",
    )
    add_options(parser, "protocol", "validation_fraction", "limit", "on_broken", "classes", "votes")
    options = parser.parse_args(arguments)

    from train.data import load_data
    from train.data.shards import write_shards

    request = _request(options)
    splits = load_data(options.path, request)
    print(splits.report)
    index = write_shards(splits, options.out, options.samples_per_shard, request.on_broken)
    for name, split in index["splits"].items():
        size = sum(shard["bytes"] for shard in split["shards"]) / 2**20
        print(f"{name}: {len(split['labels']):,} images in {len(split['shards']):,} tar files, {size:,.1f} MiB")
    for reason in index["left_out"]:
        print(f"left out: {reason}")
    print(f"written to {options.out}")
    return 0


def usage() -> str:
    lines = [f"  {name:8}{words}" for name, words in COMMANDS.items()]
    return "\n".join(["usage: python -m train.data NAME [-h] …", "", *lines])


def main(arguments: Sequence[str] | None = None) -> int:
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or [""]
    commands: dict[str, Callable[[Sequence[str]], int]] = {"check": check, "crop": crop, "shard": shard}

    def call() -> int:
        if name in ("-h", "--help"):
            print(usage())
            return 0
        if name not in commands:
            raise UserError(
                f"expected one of {', '.join(COMMANDS)}; got {name!r}{nearest(name, list(COMMANDS))}\n{usage()}"
            )
        return commands[name](rest)

    return exit_code(call)


if __name__ == "__main__":
    sys.exit(main())
