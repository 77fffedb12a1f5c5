"""`python -m train.data NAME …`: look at a dataset, crop faces out of pictures, write shards."""

import sys
from collections.abc import Sequence
from pathlib import Path

from train.command import CommandParser, at_least
from train.entry import exit_code, nearest
from train.errors import UserError
from train.options import add_options

check = CommandParser(
    "data check",
    "train.data.check:check",
    "Say which dataset lies at PATH, its counts beside the official ones, equal images within and across its "
    "parts, conflicting labels and unreadable images. Exit status: 0 clean, 1 something found, 2 an error of use.",
    starting="",
)
check.add_argument("data", metavar="PATH", help="the dataset's folder or file")
check.add_argument("--json", dest="as_json", action="store_true", help="print JSON, with every item")
check.add_argument("--all", dest="every", action="store_true", help="list every item of a finding, not the first ten")
add_options(check, "classes", "votes")

crop = CommandParser(
    "data crop",
    "train.data.crop:crop",
    "Write the largest face of each picture in IN to OUT, under the same folders, as PNG. Pictures without a face "
    "and unreadable ones are listed. Exit status: 0 all cropped, 1 some not, 2 an error of use.",
    starting="",
)
crop.add_argument("source", metavar="IN", type=Path, help="folder of pictures, at any depth")
crop.add_argument("out", metavar="OUT", type=Path, help="folder to write, new or empty")
crop.add_argument("--detector", metavar="ONNX", type=Path, help="YuNet's file (default: OpenCV's Haar cascade)")
crop.add_argument(
    "--margin", type=at_least(0, float), default=0.1, help="margin added on each side, as a share of the box"
)
crop.add_argument("--score", type=at_least(0, float), default=0.6, help="minimum score of a face (YuNet)")

shard = CommandParser(
    "data shard",
    "train.data.shards:shard",
    "Write the splits of the dataset at PATH to OUT as tar shards.",
    starting="",
)
shard.add_argument("--seed", type=at_least(0), default=0, help="seed of the split")
shard.add_argument("data", metavar="PATH", help="the dataset's folder or file")
shard.add_argument("out", metavar="OUT", type=Path, help="folder to write, new or empty")
shard.add_argument(
    "--samples-per-shard",
    type=at_least(1),
    default=4096,
    metavar="N",
    help="samples per tar file; the last one may have fewer",
)
add_options(shard, "protocol", "validation_fraction", "limit", "on_broken", "classes", "votes")

COMMANDS = {
    "check": (check, "which dataset lies at a path: counts, duplicates, conflicting labels, unreadable images"),
    "crop": (crop, "cut the faces out of the pictures in a folder"),
    "shard": (shard, "write a dataset as tar shards that are read at any place or as a stream"),
}


def usage() -> str:
    lines = [f"  {name:8}{words}" for name, (_, words) in COMMANDS.items()]
    return "\n".join(["usage: python -m train.data NAME [-h] …", "", *lines])


def main(arguments: Sequence[str] | None = None) -> int:
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or [""]

    def call() -> int:
        if name in ("-h", "--help"):
            print(usage())
            return 0
        if name not in COMMANDS:
            raise UserError(
                f"expected one of {', '.join(COMMANDS)}; got {name!r}{nearest(name, list(COMMANDS))}\n{usage()}"
            )
        return COMMANDS[name][0].main(rest)

    return exit_code(call)


if __name__ == "__main__":
    sys.exit(main())
