"""`python -m train.demo RUN`: a page in the browser to try a trained model on pictures of one's own."""

import sys
from pathlib import Path

from train.command import CommandParser, at_least
from train.options import add_options

parser = CommandParser(
    "demo",
    "train.analysis.demo:serve",
    "Serve a page on this machine alone: drop or take a picture, and see the face found in it, the probability of "
    "each class, and the nearest training faces by embedding. Ends with Ctrl-C; pictures are deleted then.",
)
parser.add_argument("run", metavar="RUN", type=Path, help="run folder, or a checkpoint folder in it")
parser.add_argument("--data", help="where the training faces are now (default: where the run had them)")
parser.add_argument(
    "--faces",
    type=at_least(0),
    default=1000,
    metavar="N",
    help="training faces to search for the nearest ones; 0: none",
)
parser.add_argument("--detector", metavar="ONNX", type=Path, help="YuNet's file (default: OpenCV's Haar cascade)")
parser.add_argument("--port", type=at_least(0), default=0, help="port on 127.0.0.1 (0: the first free one from 7860)")
parser.add_argument("--open", action="store_true", help="open the page in the browser too")
add_options(parser, "device")
main = parser.main

if __name__ == "__main__":
    sys.exit(main())
