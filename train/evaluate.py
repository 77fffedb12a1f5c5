"""`python -m train.evaluate RUN`: a trained model on a split of a dataset; tables, intervals and pictures."""

import sys
from collections.abc import Sequence
from pathlib import Path

from train.command import CommandParser, add_data, add_seed_and_device, add_tta, at_least, execute


def parser() -> CommandParser:
    result = CommandParser(
        "evaluate",
        "Evaluate the best checkpoint of a run: accuracy, average accuracy, precision, recall, F1 (the paper's Tables "
        "5 to 7) with bootstrap intervals, confusion matrix (Fig. 4), t-SNE (Fig. 5), correlations within and between "
        "classes and between the k embedding vectors, retrieval by nearest neighbours (precision at 1, R-precision, "
        "MAP@R), samples right and wrong (Fig. 7).",
    )
    result.add_argument("run", metavar="RUN", type=Path, help="run folder, or a checkpoint folder in it")
    add_data(result)
    add_tta(result)
    result.add_argument("--resamples", type=at_least(1), default=1000, help="bootstrap resamples")
    result.add_argument("--tsne", type=at_least(0), default=1000, metavar="N", help="samples in the t-SNE; 0: no t-SNE")
    result.add_argument(
        "--retrieval", type=at_least(0), default=10000, metavar="N", help="samples for retrieval metrics; 0: none"
    )
    result.add_argument(
        "--samples", type=at_least(0), default=4, metavar="N", help="faces to show per class, right and wrong; 0: none"
    )
    result.add_argument("--out", type=Path, help="output folder (default: RUN/evaluation-SPLIT)")
    add_seed_and_device(result, "the bootstrap, t-SNE and the samples shown")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    return execute(parser(), "train.analysis.evaluate:evaluate_run", arguments)


if __name__ == "__main__":
    sys.exit(main())
