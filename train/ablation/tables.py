"""What an ablation writes: OUT/tables.md, OUT/<study>.csv, OUT/runs.csv, OUT/figure6.png."""

import math
from collections.abc import Sequence
from pathlib import Path

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
from train.ablation.studies import STUDIES, Study
from train.bars import markdown_table
from train.disk import write_rows

METRICS = {"accuracy": "accuracy", "average_accuracy": "average accuracy"}
Results = dict[int, Result]  # by seed
Compared = tuple[Spread, Difference, float]  # a row's mean, its difference to its control, p after Holm's correction


def write(out: Path, planned: Plan, seeds: Sequence[int]) -> str:
    """Write the tables of the runs finished so far into `out`. Returns the Markdown."""
    sections = []
    for name in dict.fromkeys(study for study, _ in planned):
        study = STUDIES[name]
        runs = {variant.name: planned[name, variant.name] for variant in study.variants}
        results = {key: results_of(value) for key, value in runs.items()}
        columns = {metric: _compare(study, results, metric) for metric in METRICS}
        _write_csv(out / f"{name}.csv", study, results, columns)
        every = [run for value in runs.values() for run in value]
        sections.append(_markdown(study, results, columns, every, len(seeds)))
        if name == "figure6":
            _draw(out / "figure6.png", study, results)
    text = "\n".join(sections)
    (out / "tables.md").write_text(text, encoding="utf-8")
    return text


def _compare(study: Study, results: dict[str, Results], metric: str) -> list[Compared]:
    values = {name: _values(by_seed, metric) for name, by_seed in results.items()}
    means = [spread(list(values[variant.name].values())) for variant in study.variants]
    gains = [difference(values[variant.name], values.get(variant.against, {})) for variant in study.variants]
    return list(zip(means, gains, holm([gain.p for gain in gains]), strict=True))


def _values(results: Results, metric: str) -> dict[int, float]:
    """A metric on the test split, by seed."""
    return {seed: result.results["test"][metric] for seed, result in results.items()}


def _markdown(
    study: Study, results: dict[str, Results], columns: dict[str, list[Compared]], runs: list[Planned], seeds: int
) -> str:
    several = len({variant.against for variant in study.variants if variant.against}) > 1
    heads = ["", *(["compared with"] if several else []), "seeds"]
    for words in METRICS.values():
        heads += [words, "difference", "p"]
    if study.paper:
        heads.append(f"paper ({study.paper})")
    table = []
    for at, variant in enumerate(study.variants):
        cells = [variant.name, *([variant.against] if several else []), str(len(results[variant.name]))]
        for mean, gain, p in (column[at] for column in columns.values()):
            cells += [format_spread(mean), *([format_difference(gain), _p(p)] if variant.against else ["", ""])]
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


def _write_csv(file: Path, study: Study, results: dict[str, Results], columns: dict[str, list[Compared]]) -> None:
    figures = ("mean", "deviation", "difference", "low", "high", "p", "p_holm")
    heads = [f"{metric}_{figure}" for metric in METRICS for figure in figures]
    lines = [["variant", "against", "seeds", *heads, "paper"]]
    for at, variant in enumerate(study.variants):
        cells = [variant.name, variant.against, " ".join(map(str, sorted(results[variant.name])))]
        for mean, gain, p in (column[at] for column in columns.values()):
            values = (mean.mean, mean.deviation, gain.mean, gain.low, gain.high, gain.p, p)
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


def _p(value: float) -> str:
    return "–" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
