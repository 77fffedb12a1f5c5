"""`python -m train.ablation.summary`: the tables of docs/reproduction.md from the rows of bench/results/study.csv."""

import sys
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

from train.ablation import rows
from train.ablation.comparison import difference, spread
from train.ablation.studies import STUDIES
from train.command import CommandParser, execute

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "bench/results/study.csv"
PAGE = ROOT / "docs/reproduction.md"
BEGIN, END = "<!-- rows begin -->", "<!-- rows end -->"
PERCENT = {"accuracy", "average_accuracy", "ece", "map_at_r"}
METRICS = {
    "accuracy": "accuracy",
    "average_accuracy": "average accuracy",
    "nll": "NLL",
    "ece": "ECE",
    "map_at_r": "MAP@R",
}
Values = dict[str, dict[int, float]]  # of each metric, by seed


def markdown(file: Path, split: str = "validation") -> str:
    """A table for each study and regime that has rows: means, and paired differences in accuracy to cross-entropy."""
    by_arm: dict[tuple[str, str], Values] = defaultdict(lambda: defaultdict(dict))
    read = rows.read(file)
    for row in read:
        for metric in METRICS:
            if row[f"{split}_{metric}"]:
                by_arm[row["regime"], row["arm"]][metric][int(row["seed"])] = float(row[f"{split}_{metric}"])
    lines = [f"{len(read)} runs so far, {sum(float(row['minutes']) for row in read) / 60:.1f} hours."]
    regimes = dict.fromkeys(regime for regime, _ in by_arm)
    for regime in regimes:
        lines += ["", f"**{regime}**, PublicTest", ""]
        heads = ["arm", "seeds", *METRICS.values(), "accuracy, difference"]
        lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for study in ("small", "factors", "regimes", "all-images"):
            for variant in STUDIES[study].variants:
                values = by_arm.pop((regime, variant.arm), None) if variant.regime == regime else None
                if values is None:
                    continue
                against = variant.against.removeprefix(f"{regime}: ")
                base = controls(read, regime, against, split)
                cells = [variant.arm, str(len(values["accuracy"]))]
                cells += [_mean(list(values[metric].values()), metric in PERCENT) for metric in METRICS]
                lines.append(f"| {' | '.join([*cells, _difference(values['accuracy'], base) if against else ''])} |")
    return "\n".join(lines)


def in_study_order(arms: Collection[str]) -> list[str]:
    """The arms in the order of the studies, then the arms of no study."""
    order = {variant.arm: None for study in STUDIES.values() for variant in study.variants}
    return [arm for arm in order if arm in arms] + sorted(set(arms) - order.keys())


def controls(read: list[dict[str, str]], regime: str, arm: str, split: str) -> dict[int, float]:
    """The accuracy of an arm, by seed."""
    return {
        int(row["seed"]): float(row[f"{split}_accuracy"])
        for row in read
        if (row["regime"], row["arm"]) == (regime, arm)
    }


def _mean(values: list[float], percent: bool) -> str:
    scale, digits = (100, 2) if percent else (1, 3)
    statistics = spread([scale * value for value in values])
    return f"{statistics.mean:.{digits}f}" + (f" ± {statistics.deviation:.{digits}f}" if statistics.n > 1 else "")


def _difference(one: dict[int, float], other: dict[int, float]) -> str:
    gain = difference(one, other)
    if not gain.n:
        return "–"
    interval = f" ({100 * gain.low:+.2f} to {100 * gain.high:+.2f})" if gain.low == gain.low else ""
    return f"{100 * gain.mean:+.2f}{interval}"


def write() -> None:
    """Write the tables between the two marks in the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{markdown(ROWS)}\n{END}{after}", encoding="utf-8")
    print(f"written to {PAGE}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandParser("ablation.summary", "Rewrite the tables of docs/reproduction.md from the study's rows.")
    return execute(parser, "train.ablation.summary:write", arguments)


if __name__ == "__main__":
    sys.exit(main())
