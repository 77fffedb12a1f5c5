"""`python -m train.html_report RUN ...`: one self-contained HTML file about a run, or several side by side."""

import argparse
import sys
from pathlib import Path

from train.command import CommandParser, add_seed_and_device

parser = CommandParser(
    "html_report",
    "train.analysis.html_report:write_report",
    "Write one HTML file about a run: curves of the loss's parts, class weights, confusion matrix, correlations, "
    "t-SNE and settings. The file needs no network and runs no script. Several runs are compared side by side. "
    "What it shows of test images comes from RUN/evaluation-test; if that is not of the best checkpoint, the run "
    "is evaluated first, as by python -m train.evaluate.",
)
parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="run folder")
parser.add_argument("--out", type=Path, help="file to write (default: report.html in RUN, or beside several runs)")
parser.add_argument("--data", help="dataset to evaluate on (default: the run's)")
parser.add_argument(
    "--evaluate",
    action=argparse.BooleanOptionalAction,
    default=True,
    help="evaluate where needed; --no-evaluate leaves out what would need it, and reads no data",
)
parser.add_argument("--samples", action="store_true", help="show faces of the data, predicted right and wrong")
add_seed_and_device(parser, "the evaluation")
main = parser.main

if __name__ == "__main__":
    sys.exit(main())
