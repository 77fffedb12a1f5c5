"""`python -m train.ablation.summary`: the tables of docs/reproduction.md and README from bench/results/study.csv."""

import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from train.ablation import rows
from train.ablation.comparison import (
    Difference,
    difference,
    format_difference,
    format_spread,
    holm,
    spread,
)
from train.ablation.studies import STUDIES
from train.bars import markdown_table
from train.command import CommandParser
from train.disk import write_text
from train.errors import UserError

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "bench/results/study.csv"
PAGE, README = ROOT / "docs/reproduction.md", ROOT / "README.md"
BEGIN, END = "<!-- rows begin -->", "<!-- rows end -->"
PERCENT = {"accuracy", "average_accuracy", "ece", "map_at_r"}
METRICS = {
    "accuracy": "accuracy",
    "average_accuracy": "average accuracy",
    "nll": "NLL",
    "ece": "ECE",
    "map_at_r": "MAP@R",
}
SPLITS = ("validation", "test")
SCREENING, CONFIRMATION = range(3), range(10, 20)  # seeds; the latter no choice has seen
FINAL = {"all-images", "finetune", "resnet18", "xception"}  # studies whose first seeds are their last
Rows = list[dict[str, str]]


def markdown(file: Path) -> str:
    """Tables of each study's rows: means over seeds, and paired differences to the control.

    Screening is shown on PublicTest, with the difference in accuracy; confirmation and larger studies on PrivateTest,
    with the differences in every metric, in bold where p is below 0.05 after Holm's correction over the arms.
    """
    read = rows.read(file)
    lines = [f"{len(read)} runs so far, {sum(float(row['minutes']) for row in read) / 60:.1f} hours."]
    for title, group in compared_groups(read).items():
        final = _final_rows(group)
        if final:
            lines += _final_tables(title, final)
        screening = [row for row in group if int(row["seed"]) not in CONFIRMATION]
        if screening and not (final and group[0]["study"] in FINAL):
            lines += _screening_table(title, screening)
    return "\n".join(lines)


def _final_rows(group: Rows) -> Rows:
    """The rows of the arms that have their last seed: only those are looked at on PrivateTest."""
    last = SCREENING if FINAL.intersection(row["study"] for row in group) else CONFIRMATION
    seeds: dict[str, set[int]] = {}
    for row in group:
        seeds.setdefault(row["arm"], set()).add(int(row["seed"]))
    return [row for row in group if int(row["seed"]) in last and seeds[row["arm"]].issuperset(last)]


def compared_groups(read: Rows) -> dict[str, Rows]:
    """The rows that are compared with each other, by their regime or their study's name, in the studies' order."""
    order = list(STUDIES)
    groups: dict[str, Rows] = {}
    for row in sorted(read, key=lambda row: order.index(row["study"])):
        groups.setdefault(row["regime"] or row["study"], []).append(row)
    return groups


def _screening_table(title: str, group: Rows) -> list[str]:
    heads = ["arm", "seeds", *METRICS.values(), "accuracy, difference"]
    table = []
    for arm, control in _arms(group):
        gain = _difference(group, arm, control, "validation", "accuracy")
        table.append([*_cells(group, arm, "validation", METRICS), format_difference(gain) if control else ""])
    return ["", f"**{title}**, screening, PublicTest", "", *markdown_table(heads, table)]


def _final_tables(title: str, group: Rows) -> list[str]:
    heads = ["arm", "seeds", "PublicTest", "PrivateTest", "both", *list(METRICS.values())[1:]]
    table = []
    for arm, _ in _arms(group):
        name, seeds, *figures = _cells(group, arm, "test", METRICS)
        public = _cells(group, arm, "validation", ["accuracy"])[-1]
        table.append([name, seeds, public, figures[0], format_spread(spread(_both(group, arm))), *figures[1:]])
    lines = ["", f"**{title}**, PrivateTest (accuracy: each split, and both together)", ""]
    lines += markdown_table(heads, table)
    if differences := _differences(group, list(METRICS)):
        lines += ["", f"**{title}**, PrivateTest, difference to cross-entropy", ""]
        lines += markdown_table(["arm", *METRICS.values()], differences)
    return lines


def _differences(group: Rows, metrics: Sequence[str]) -> list[list[str]]:
    """Of each arm that has a control: its name, and the difference in each metric on PrivateTest."""
    compared = [(arm, control) for arm, control in _arms(group) if control]
    columns = []
    for metric in metrics:
        gains = [_difference(group, arm, control, "test", metric) for arm, control in compared]
        cells = [format_difference(gain, metric in PERCENT) for gain in gains]
        corrected = holm([gain.p for gain in gains])
        columns.append([f"**{cell}**" if p < 0.05 else cell for cell, p in zip(cells, corrected, strict=True)])
    return [[arm, *cells] for (arm, _), *cells in zip(compared, *columns, strict=True)]


def short_table(file: Path) -> str:
    """README's table: on clean labels, confirmed: means of cross-entropy, differences of the other arms; or nothing."""
    metrics = ["accuracy", "ece", "map_at_r"]
    final = _final_rows(compared_groups(rows.read(file)).get("clean", []))
    if not final:
        return ""
    _, seeds, *means = _cells(final, "CE", "test", metrics)
    heads = [f"{seeds} seeds", *(METRICS[metric] for metric in metrics)]
    return "\n".join(markdown_table(heads, [["CE", *means], *_differences(final, metrics)]))


def _arms(group: Rows) -> list[tuple[str, str]]:
    """The arms that have rows, in the studies' order, each with its control's name ('' for a control)."""
    present = {(row["study"], row["regime"], row["arm"]) for row in group}
    arms = {
        variant.arm: variant.against.removeprefix(f"{variant.regime}: ")
        for name, study in STUDIES.items()
        for variant in study.variants
        if (name, variant.regime, variant.arm) in present
    }
    return list(arms.items())


def values_by_seed(group: Rows, arm: str, split: str, metric: str) -> dict[int, float]:
    """A metric of an arm, by seed."""
    column = f"{split}_{metric}"
    return {int(row["seed"]): float(row[column]) for row in group if row["arm"] == arm and row[column]}


def _both(group: Rows, arm: str) -> list[float]:
    """The accuracy on PublicTest and PrivateTest together, of each seed."""
    result = []
    for row in group:
        if row["arm"] == arm:
            counts = [int(row[f"{split}_samples"]) for split in SPLITS]
            right = [count * float(row[f"{split}_accuracy"]) for count, split in zip(counts, SPLITS, strict=True)]
            result.append(sum(right) / sum(counts))
    return result


def _cells(group: Rows, arm: str, split: str, metrics: Iterable[str]) -> list[str]:
    values = {metric: list(values_by_seed(group, arm, split, metric).values()) for metric in metrics}
    seeds = max(len(value) for value in values.values())
    return [arm, str(seeds), *(format_spread(spread(value), metric in PERCENT) for metric, value in values.items())]


def _difference(group: Rows, arm: str, control: str, split: str, metric: str) -> Difference:
    return difference(values_by_seed(group, arm, split, metric), values_by_seed(group, control, split, metric))


def in_study_order(arms: Collection[str]) -> list[str]:
    """The arms in the order of the studies, then the arms of no study."""
    order = {variant.arm: None for study in STUDIES.values() for variant in study.variants}
    return [arm for arm in order if arm in arms] + sorted(set(arms) - order.keys())


def write() -> None:
    """Write the tables between the two marks in the page and in README. Raises UserError where a mark is missing."""
    for page, tables in ((PAGE, markdown(ROWS)), (README, short_table(ROWS))):
        before, begin, rest = page.read_text(encoding="utf-8").partition(f"{BEGIN}\n")
        _, end, after = rest.partition(END)
        if not (begin and end):
            raise UserError(f"{page}: expected the lines {BEGIN} and {END}, for the tables between them")
        write_text(page, f"{before}{begin}{tables}\n{end}{after}")
        print(f"written to {page}")


main = CommandParser(
    "ablation.summary",
    "train.ablation.summary:write",
    "Rewrite the tables of docs/reproduction.md and README.md from the study's rows.",
).main

if __name__ == "__main__":
    sys.exit(main())
