"""`python -m train.ablate STUDY…`: the paper's Tables 8 to 11 and Fig. 6, and what they lack, over seeds."""

import sys

from train.ablation.studies import STUDIES
from train.command import CommandParser, at_least
from train.options import add_settings

OUT = "runs/ablation"

parser = CommandParser(
    "ablate",
    "train.ablation.ablate:ablate",
    "Train every row of the studies at every seed and compare them. After each run a line is printed, and "
    "tables.md and a CSV per study are written anew. A row is the training that all other options describe, as of "
    "python -m train, but for what it varies. Called again, it continues where it stopped; processes with other "
    "seeds may work in one folder.\n\nstudies:\n"
    + "\n".join(f"  {name:<10}  {study.title}" for name, study in STUDIES.items())
    + "\n  table11     Table 11: parameters and multiply-adds, without training",
    epilog="Every option of python -m train may be given too, but --out, --overwrite and --resume: --data PATH, "
    "--recipe NAME, --epochs N and so on; python -m train --help lists them.",
)
parser.add_argument("studies", metavar="STUDY", nargs="+", choices=[*STUDIES, "table11"], help="what to compare")
parser.add_argument("--seeds", type=at_least(1), default=3, metavar="N", help="number of seeds, from --seed on")
parser.add_argument("--out", default=OUT, help="folder of runs and tables")
parser.add_argument(
    "--rows",
    help="CSV file that gets a row for each run that ends; one that has a row is not trained (default: OUT/runs.csv)",
)
parser.add_argument(
    "--minutes",
    type=at_least(0, float),
    default=0.0,
    metavar="M",
    help="stop after so long, with a checkpoint of each run; the same command continues; 0: train all",
)
parser.add_argument(
    "--processes",
    type=at_least(0),
    default=0,
    metavar="N",
    help="runs at a time, each with one thread if there are several; 0: one per core, and one alone on a GPU or "
    "with --threads",
)
parser.add_argument(
    "--models", action="store_true", help="leave each run's best model in its folder, for evaluate and pictures"
)
add_settings(parser, but=("out", "overwrite", "resume"), hidden=True)
main = parser.main

if __name__ == "__main__":
    sys.exit(main())
