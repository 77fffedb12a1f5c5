"""`python -m train.demo RUN`: a page in the browser to try a trained model on pictures of one's own."""

import sys
from collections.abc import Sequence
from pathlib import Path

from train.command import CommandParser, at_least, execute
from train.options import add_options


def parser() -> CommandParser:
    result = CommandParser(
        "demo",
        "Serve a page on this machine alone: drop or take a picture, and see the face found in it, the probability of "
        "each class, and the nearest training faces by embedding. Ends with Ctrl-C; pictures are deleted then.",
    )
    result.add_argument("run", metavar="RUN", type=Path, help="run folder, or a checkpoint folder in it")
    result.add_argument("--data", help="where the training faces are now (default: where the run had them)")
    result.add_argument(
        "--faces",
        type=at_least(0),
        default=1000,
        metavar="N",
        help="training faces to search for the nearest ones; 0: none",
    )
    result.add_argument("--detector", metavar="ONNX", type=Path, help="YuNet's file (default: OpenCV's Haar cascade)")
    result.add_argument(
        "--port", type=at_least(0), default=0, help="port on 127.0.0.1 (0: the first free one from 7860)"
    )
    result.add_argument("--open", action="store_true", help="open the page in the browser too")
    add_options(result, "device")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    return execute(parser(), "train.analysis.demo:serve", arguments)


if __name__ == "__main__":
    sys.exit(main())
