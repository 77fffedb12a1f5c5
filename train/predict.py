"""`python -m train.predict RUN IMAGES…`: pictures of faces to a CSV of probabilities and annotated pictures."""

import argparse
import sys
from pathlib import Path

from train.command import CommandParser, add_tta, at_least
from train.options import add_options

parser = CommandParser(
    "predict",
    "train.analysis.predict:predict",
    "Find the faces in pictures and predict the expression of each. Writes predictions.csv, a row for each "
    "face, and annotated pictures. A picture in which no face is seen is named and used whole; one that cannot be "
    "read is named and left out.",
)
parser.add_argument("run", metavar="RUN", type=Path, help="run folder, or a checkpoint folder in it")
parser.add_argument("images", metavar="IMAGES", type=Path, nargs="+", help="pictures, or folders of them")
parser.add_argument(
    "--out", type=Path, default=Path("predictions"), help="output folder: new, empty, or of an earlier prediction"
)
parser.add_argument(
    "--whole", action="store_true", help="the pictures are faces already, cropped as the training images were"
)
parser.add_argument("--detector", metavar="ONNX", type=Path, help="YuNet's file (default: OpenCV's Haar cascade)")
parser.add_argument(
    "--margin",
    type=at_least(0, float),
    default=0.1,
    help="margin added on each side of a face, as a share of its box",
)
parser.add_argument(
    "--pictures", action=argparse.BooleanOptionalAction, default=True, help="write annotated pictures too"
)
add_tta(parser)
parser.add_argument("--batch-size", type=at_least(1), default=32, help="pictures per forward pass")
add_options(parser, "device")
main = parser.main

if __name__ == "__main__":
    sys.exit(main())
