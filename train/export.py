"""`python -m train.export RUN --to FORMAT DIR`: a trained model for use elsewhere."""

import sys
from collections.abc import Sequence
from pathlib import Path

from train.command import CommandParser, add_seed_and_device, at_least, execute


def parser() -> CommandParser:
    result = CommandParser(
        "export",
        "Export the best checkpoint of a run, with its preprocessing. onnx: model.onnx, checked against onnxruntime. "
        "torch_export: model.pt2, for torch.export.load. hub: a folder that can be pushed to the Hugging Face hub as "
        "it is. The first two take RGB images of the right size with values 0 to 1 and normalize them themselves.",
    )
    result.add_argument("run", metavar="RUN", type=Path, help="run folder, or a checkpoint folder in it")
    result.add_argument("out", metavar="DIR", type=Path, help="folder to write, new or empty")
    result.add_argument("--to", required=True, choices=("onnx", "torch_export", "hub"), help="format (required)")
    result.add_argument("--opset", type=at_least(1), default=18, help="ONNX opset")
    add_seed_and_device(result, "the images that the exported model is checked on")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    return execute(parser(), "train.analysis.export:export", arguments)


if __name__ == "__main__":
    sys.exit(main())
