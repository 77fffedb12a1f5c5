"""`python -m train.predict RUN IMAGES…`: pictures of faces to a CSV of probabilities and annotated pictures."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from train.command import CommandParser, add_tta, at_least, execute
from train.options import add_options


def parser() -> CommandParser:
    result = CommandParser(
        "predict",
        "Find the faces in pictures and predict the expression of each. Writes predictions.csv, a row for each "
        "face, and annotated pictures. A picture in which no face is seen is named and used whole; one that cannot be "
        "read is named and left out.",
    )
    result.add_argument("run", metavar="RUN", type=Path, help="run folder, or a checkpoint folder in it")
    result.add_argument("images", metavar="IMAGES", type=Path, nargs="+", help="pictures, or folders of them")
    result.add_argument(
        "--out", type=Path, default=Path("predictions"), help="output folder: new, empty, or of an earlier prediction"
    )
    result.add_argument(
        "--whole", action="store_true", help="the pictures are faces already, cropped as the training images were"
    )
    result.add_argument("--detector", metavar="ONNX", type=Path, help="YuNet's file (default: OpenCV's Haar cascade)")
    result.add_argument(
        "--margin",
        type=at_least(0, float),
        default=0.1,
        help="margin added on each side of a face, as a share of its box",
    )
    result.add_argument(
        "--pictures", action=argparse.BooleanOptionalAction, default=True, help="write annotated pictures too"
    )
    add_tta(result)
    result.add_argument("--batch-size", type=at_least(1), default=32, help="pictures per forward pass")
    add_options(result, "device")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    return execute(parser(), "train.analysis.predict:predict", arguments)


if __name__ == "__main__":
    sys.exit(main())
