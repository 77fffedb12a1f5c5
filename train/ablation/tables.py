"""What an ablation writes: OUT/tables.md, OUT/<study>.csv, OUT/runs.csv, OUT/figure6.png."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from train import palette
from train.ablation.comparison import (
    Difference,
    Spread,
    difference,
    format_difference,
    format_spread,
    holm,
    spread,
)
from train.ablation.runs import Plan, Planned, Result, results_of
from train.ablation.studies import STUDIES, Study, Variant
from train.bars import markdown_table
from train.disk import write_rows

METRICS = {"accuracy": "accuracy", "average_accuracy": "average accuracy"}
Results = dict[int, Result]  # by seed


def write(out: Path, planned: Plan, seeds: Sequence[int]) -> str:
    """Write the tables of the runs finished so far into `out`. Returns the Markdown."""
    sections = []
    for name in dict.fromkeys(study for study, _ in planned):
        study = STUDIES[name]
        runs = {variant.name: planned[name, variant.name] for variant in study.variants}
        results = {key: results_of(value) for key, value in runs.items()}
        rows = _rows(study, results)
        _write_csv(out / f"{name}.csv", rows)
        sections.append(_markdown(study, rows, results, [run for value in runs.values() for run in value], len(seeds)))
        if name == "figure6":
            _draw(out / "figure6.png", study, results)
    text = "\n".join(sections)
    (out / "tables.md").write_text(text, encoding="utf-8")
    return text


def _rows(study: Study, results: dict[str, Results]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for variant in study.variants:
        by_seed, control = results[variant.name], results.get(variant.against, {})
        row: dict[str, Any] = {"variant": variant, "seeds": sorted(by_seed)}
        for metric in METRICS:
            values = _values(by_seed, metric)
            row[metric] = spread(list(values.values()))
            row[f"{metric} difference"] = difference(values, _values(control, metric)) if variant.against else None
        rows.append(row)
    for metric in METRICS:
        tested = [row for row in rows if row[f"{metric} difference"]]
        corrected = holm([row[f"{metric} difference"].p for row in tested])
        for row, p in zip(tested, corrected, strict=True):
            row[f"{metric} holm"] = p
    return rows


def _values(results: Results, metric: str) -> dict[int, float]:
    """A metric on the test split, by seed."""
    return {seed: result.results["test"][metric] for seed, result in results.items()}


def _markdown(
    study: Study, rows: list[dict[str, Any]], results: dict[str, Results], runs: list[Planned], seeds: int
) -> str:
    several = len({variant.against for variant in study.variants if variant.against}) > 1
    heads = ["", *(["compared with"] if several else []), "seeds"]
    for words in METRICS.values():
        heads += [words, "difference", "p"]
    if study.paper:
        heads.append(f"paper ({study.paper})")
    table = []
    for row in rows:
        variant: Variant = row["variant"]
        cells = [variant.name, *([variant.against] if several else []), str(len(row["seeds"]))]
        for metric in METRICS:
            gain = row[f"{metric} difference"]
            cells += [
                format_spread(row[metric]),
                format_difference(gain) if gain else "",
                _p(row.get(f"{metric} holm")),
            ]
        table.append([*cells, variant.paper] if study.paper else cells)
    lines = [f"## {study.title}", "", *markdown_table(heads, table)]
    ended = [result for value in results.values() for result in value.values()]
    if ended:
        against = "the row named" if several else next(v.against for v in study.variants if v.against)
        lines += ["", _conditions(ended, against, seeds)]
    failures = dict.fromkeys(f"{run.folder.parent.name}, seed {run.seed}: {run.failure}" for run in runs if run.failure)
    lines += [f"\n**Not counted**: {failure}" for failure in failures]
    return "\n".join(lines) + "\n"


def _conditions(ended: Sequence[Result], against: str, seeds: int) -> str:
    layouts = ", ".join(sorted({result.about["data"]["layout"] for result in ended}))
    images = " or ".join(sorted({f"{result.results['test']['samples']:,}" for result in ended}))
    text = f"{layouts}, {images} test images; in percent, mean ± standard deviation over {seeds} seeds"
    return (
        f"{text}, each the best checkpoint by validation. Difference: to {against} at the same seeds, with its 95 % "
        "interval. p: paired t-test, two-sided, after Holm over the rows."
    )


def _write_csv(file: Path, rows: list[dict[str, Any]]) -> None:
    figures = ("mean", "deviation", "difference", "low", "high", "p", "p_holm")
    heads = [f"{metric}_{figure}" for metric in METRICS for figure in figures]
    lines = [["variant", "against", "seeds", *heads, "paper"]]
    for row in rows:
        variant = row["variant"]
        cells: list[Any] = [variant.name, variant.against, " ".join(map(str, row["seeds"]))]
        for metric in METRICS:
            mean: Spread = row[metric]
            gain: Difference = row[f"{metric} difference"] or Difference(0, *4 * [math.nan])
            corrected = row.get(f"{metric} holm", math.nan)
            values = (mean.mean, mean.deviation, gain.mean, gain.low, gain.high, gain.p, corrected)
            cells += ["" if math.isnan(value) else f"{value:.6g}" for value in values]
        lines.append([*cells, variant.paper])
    write_rows(file, lines)


@matplotlib.rc_context(palette.STYLE)
def _draw(path: Path, study: Study, results: dict[str, Results]) -> None:
    """Fig. 6: accuracy over λ, every seed and their mean."""
    points = sorted((float(variant.settings["lambd"]), results[variant.name]) for variant in study.variants)
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    for index, (metric, words) in enumerate(METRICS.items(), 1):
        color = palette.color(index)
        ended = [(x, [100 * value for value in _values(seeds, metric).values()]) for x, seeds in points if seeds]
        means = [sum(ys) / len(ys) for _, ys in ended]
        axes.plot([x for x, _ in ended], means, color=color, linestyle=palette.dash(index), label=f"{words}, mean")
        for x, ys in ended:
            axes.plot([x] * len(ys), ys, palette.marker(index), color=color, alpha=0.5, ms=5, lw=0)
    axes.set_xscale("log")
    axes.set_xticks([x for x, _ in points], [f"{x:g}" for x, _ in points])
    axes.minorticks_off()
    axes.set(xlabel="λ", ylabel="% of the test images", title="Accuracy over λ; points are seeds")
    axes.grid()
    axes.legend()
    figure.savefig(path)


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "–" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
