"""`python -m train.ablation.pictures`: the pictures of docs/reproduction.md, from the study's rows and from runs.

study-<name>.png         accuracy, calibration error and MAP@R of each arm of a regime, or of a study without regimes:
                         every seed, means, 95 % intervals
study-correlations.png   of each run, the correlations between its class means
study-curves.png         of each run, its terms and, where it logged them, their gradients' norms
study-tsne.png           of each run, its embeddings
"""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from train import palette
from train.ablation import rows
from train.ablation.comparison import spread
from train.ablation.summary import PAGE, ROWS, Rows, compared_groups, in_study_order, values_by_seed
from train.analysis.evaluate import default_folder, evaluate_run, is_current, read_tsne
from train.analysis.pictures import Line, draw_correlations, draw_lines, draw_tsne
from train.command import CommandParser, make_folder
from train.disk import read_json, read_rows
from train.errors import UserError

PANELS = {"accuracy": "Accuracy, %", "ece": "Calibration error, %", "map_at_r": "MAP@R, %"}
CURVES = {
    "Cross-entropy": ("ce",),
    "Terms": ("fd", "md", "ed"),
    "Gradients' norms": ("gradient_ce", "gradient_fd", "gradient_md", "gradient_ed"),
    "Cosine with cross-entropy's": ("cosine_fd", "cosine_md", "cosine_ed"),
}


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half the width of its 95 % interval (Student's t); 0 below three values, where it says nothing."""
    mean = spread(values)
    if mean.n < 3:
        return mean.mean, 0.0
    return mean.mean, float(mean.deviation / math.sqrt(mean.n) * stats.t.ppf(0.975, mean.n - 1))


def draw_pictures(
    runs: Sequence[str], *, file: Path = ROWS, split: str = "validation", out: Path = PAGE.parent
) -> None:
    """Draw the pictures of the existing rows and of `runs` (NAME=FOLDER) into `out`; evaluate a run if needed.

    Raises UserError if there is neither a row nor a run.
    """
    named = dict(run.partition("=")[::2] for run in runs)
    if bad := [run for run in runs if not run.partition("=")[2]]:
        raise UserError(f"{bad[0]}: expected NAME=FOLDER, the name of the run in the picture")
    read = rows.read(file)
    if not read and not named:
        raise UserError(f"{file} has no rows, and no run is named: nothing to draw")
    make_folder(out)
    paths = draw_arms(read, split, out)
    if named:
        paths += draw_runs({name: Path(path) for name, path in named.items()}, split, out)
    for path in paths:
        print(f"written to {path}")


def draw_arms(read: Rows, split: str, out: Path) -> list[Path]:
    """A picture for each group of arms that are compared."""
    paths = []
    for title, group in compared_groups(read).items():
        name = re.sub(r"\W+", "-", title.lower()).strip("-")
        paths.append(out / f"study-{name}.png")
        _draw_group(paths[-1], title, group, split)
    return paths


@matplotlib.rc_context(palette.STYLE)
def _draw_group(path: Path, heading: str, group: Rows, split: str) -> None:
    """A dot per arm with its interval, arms from top to bottom; a dotted line at cross-entropy's mean."""
    arms = in_study_order({row["arm"] for row in group})
    figure = Figure(figsize=(9, 1.4 + 0.24 * len(arms)), layout="constrained")
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for axes, (metric, title) in zip(panels, PANELS.items(), strict=True):
        for index, arm in enumerate(arms):
            if values := [100 * value for value in values_by_seed(group, arm, split, metric).values()]:
                mean, half = mean_interval(values)
                axes.plot(values, [index] * len(values), "o", ms=3, color=palette.TEXT, alpha=0.35)
                axes.errorbar(mean, index, xerr=half or None, fmt="o", ms=4, capsize=2, color=palette.color(2))
                if arm == "CE":
                    axes.axvline(mean, color=palette.TEXT, lw=1, ls=":")
        axes.set(title=title, ylim=(len(arms) - 0.5, -0.5))
        axes.grid(axis="x")
    panels[0].set_yticks(range(len(arms)), arms)
    figure.suptitle(f"{heading}: seeds, their means, 95 % intervals from three seeds on")
    figure.savefig(path)


def draw_runs(runs: Mapping[str, Path], split: str, out: Path) -> list[Path]:
    """Class-mean correlations, curves and t-SNE of the runs side by side."""
    correlations, points = [], []
    names: Sequence[str] = ()
    for name, run in runs.items():
        folder = default_folder(run, split)
        if not is_current(folder, run, split):
            evaluate_run(run, split=split)
        stored = read_json(folder / "correlations.json")
        names = stored["classes"]
        correlations.append((name, np.array(stored["class_means"], float)))
        points.append(read_tsne(folder / "tsne.csv", names, name))
    paths = [out / "study-correlations.png", out / "study-curves.png"]
    draw_correlations(paths[0], correlations, names, f"correlations between class means, {split}")
    draw_lines(paths[1], {name: _curves(run / "steps.csv") for name, run in runs.items()}, "step")
    if all(len(labels) for _, _, labels in points):
        paths.append(out / "study-tsne.png")
        draw_tsne(paths[-1], points, names)
    return paths


def _curves(file: Path) -> dict[str, list[Line]]:
    """The logged columns as lines, by panel; panels without a line are left out."""
    logged: list[Any] = read_rows(file)
    steps = [float(row["step"]) for row in logged]
    panels = {
        title: [
            Line(column.rpartition("_")[2], steps, [float(row[column]) for row in logged])
            for column in columns
            if logged and column in logged[0]
        ]
        for title, columns in CURVES.items()
    }
    return {title: lines for title, lines in panels.items() if lines}


parser = CommandParser(
    "ablation.pictures",
    "train.ablation.pictures:draw_pictures",
    "Draw the pictures of docs/reproduction.md: each arm's accuracy, calibration and retrieval from the study's "
    "rows; class-mean correlations, curves and t-SNE of runs (with --log-gradients, gradients too).",
)
parser.add_argument("runs", metavar="NAME=RUN", nargs="*", help="run folders and their names in the pictures")
parser.add_argument("--rows", dest="file", type=Path, default=ROWS, help="the study's rows")
parser.add_argument("--split", choices=("validation", "test"), default="validation", help="split to draw")
parser.add_argument("--out", type=Path, default=PAGE.parent, help="folder to draw into")
main = parser.main

if __name__ == "__main__":
    sys.exit(main())
