"""`python -m train.export RUN --to FORMAT DIR`: a trained model for use elsewhere."""

import sys
from pathlib import Path

from train.command import CommandParser, add_seed_and_device, at_least

parser = CommandParser(
    "export",
    "train.analysis.export:export",
    "Export the best checkpoint of a run, with its preprocessing. onnx: model.onnx, checked against onnxruntime. "
    "torch_export: model.pt2, for torch.export.load. hub: a folder that can be pushed to the Hugging Face hub as "
    "it is. The first two take RGB images of the right size with values 0 to 1 and normalize them themselves.",
)
parser.add_argument("run", metavar="RUN", type=Path, help="run folder, or a checkpoint folder in it")
parser.add_argument("out", metavar="DIR", type=Path, help="folder to write, new or empty")
parser.add_argument("--to", required=True, choices=("onnx", "torch_export", "hub"), help="format (required)")
parser.add_argument("--opset", type=at_least(1), default=18, help="ONNX opset")
add_seed_and_device(parser, "the images that the exported model is checked on")
main = parser.main

if __name__ == "__main__":
    sys.exit(main())
