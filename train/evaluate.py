"""`python -m train.evaluate RUN`: a trained model on a split of a dataset; tables, intervals and pictures."""

import sys
from pathlib import Path

from train.command import CommandParser, add_seed_and_device, add_tta, at_least

parser = CommandParser(
    "evaluate",
    "train.analysis.evaluate:evaluate_run",
    "Evaluate the best checkpoint of a run: accuracy, average accuracy, precision, recall, F1 (the paper's Tables "
    "5 to 7) with bootstrap intervals, confusion matrix (Fig. 4), t-SNE (Fig. 5), correlations within and between "
    "classes and between the k embedding vectors, retrieval by nearest neighbours (precision at 1, R-precision, "
    "MAP@R), samples right and wrong (Fig. 7).",
)
parser.add_argument("run", metavar="RUN", type=Path, help="run folder, or a checkpoint folder in it")
parser.add_argument("--data", help="dataset to use (default: the run's)")
parser.add_argument("--protocol", help="protocol of FER-2013, as in python -m train (default: the run's)")
parser.add_argument("--split", default="test", choices=("train", "validation", "test"), help="split to use")
parser.add_argument("--limit", type=at_least(0), help="maximum number of images; 0: all (default: the run's)")
parser.add_argument("--batch-size", type=at_least(1), default=64, help="images per forward pass")
parser.add_argument("--workers", type=at_least(0), default=0, help="processes that load images")
add_tta(parser)
parser.add_argument("--resamples", type=at_least(1), default=1000, help="bootstrap resamples")
parser.add_argument("--tsne", type=at_least(0), default=1000, metavar="N", help="samples in the t-SNE; 0: no t-SNE")
parser.add_argument(
    "--retrieval", type=at_least(0), default=10000, metavar="N", help="samples for retrieval metrics; 0: none"
)
parser.add_argument(
    "--samples", type=at_least(0), default=4, metavar="N", help="faces to show per class, right and wrong; 0: none"
)
parser.add_argument("--out", type=Path, help="output folder (default: RUN/evaluation-SPLIT)")
add_seed_and_device(parser, "the bootstrap, t-SNE and the samples shown")
main = parser.main

if __name__ == "__main__":
    sys.exit(main())
