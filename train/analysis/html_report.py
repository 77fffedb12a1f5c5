"""One self-contained HTML file about one or several runs: no script, nothing from a network, light and dark."""

import base64
import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train import palette
from train.analysis.evaluate import evaluate_run, is_current
from train.analysis.pictures import Line, lines_svg, tsne_svg
from train.analysis.templates import render
from train.bars import format_table, wrap
from train.command import read_run_file
from train.disk import read_json, read_rows, read_text, write_text
from train.errors import UserError
from train.evaluation import percent
from train.hub import describe_loss
from train.settings import format_value

Rows = list[dict[str, str]]
NO_BEST = "no run is called the best: they were not all validated, on the same images"
Charts = list[tuple[str, str]]  # title, SVG


def write_report(
    runs: Sequence[Path],
    *,
    out: Path | None = None,
    data: str | None = None,
    evaluate: bool = True,
    samples: bool = False,
    seed: int = 0,
    device: str = "auto",
) -> Path:
    """Write the report of the runs and return its path. Evaluates those without an evaluation of their best epoch.

    Raises UserError where there is no run, or `out` is a file of another kind.
    """
    for run in runs:
        if not _rows(run / "epochs.csv"):
            raise UserError(f"{run}: no run with a finished epoch there (looked for epochs.csv)")
    out = out or (runs[0] if len(runs) == 1 else runs[0].parent) / "report.html"
    if os.path.lexists(out) and not _is_report(out):
        raise UserError(f"--out {out} is there already and no report of this program: choose another name")
    for run in runs:
        if evaluate and (data or not is_current(run / "evaluation-test", run)):
            evaluate_run(run, data=data, seed=seed, device=device)
    names = [run.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = list(map(str, runs))
    described = [_describe_run(run, name, samples) for run, name in zip(runs, names, strict=True)]
    page = render(
        "report.html.j2",
        {"percent": percent, "number": _number, "text": _text},
        title=f"Run {names[0]}" if len(runs) == 1 else f"{len(runs)} runs side by side",
        runs=described,
        comparison=_compare(described) if len(runs) > 1 else None,
        light=palette.COLORS,
        dark=palette.DARK,
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, page)
    except OSError as error:
        raise UserError(f"--out {out}: cannot write it: {error}") from error
    if len(runs) > 1:
        columns = list(dict.fromkeys(name for row in described for name in row["figures"] if " accuracy" in name))
        rows = [[row["name"], *(row["figures"].get(name, "–") for name in columns)] for row in described]
        best = best_run(described)
        chosen = f"best by validation accuracy: {best}" if best else NO_BEST
        print(f"{format_table([['', *columns], *rows])}\n\n{wrap(chosen)}")
    print(f"written to {out}")
    return out


def _is_report(file: Path) -> bool:
    """Whether the file is a page that `write_report` wrote."""
    try:
        with file.open("rb") as opened:
            return b'<meta name="generator" content="adcorre">' in opened.read(1000)
    except OSError:
        return False


def best_run(runs: Sequence[Mapping[str, Any]]) -> str:
    """The name of the run with the highest validation accuracy; "" for one run, or where the data were not the same."""
    figures = [run["validation"] for run in runs]
    if len(runs) < 2 or None in figures or len({run["validated_on"] for run in runs}) > 1:
        return ""
    return str(runs[figures.index(max(figures))]["name"])


def _describe_run(run: Path, name: str, samples: bool) -> dict[str, Any]:
    """All that the template shows of a run. Every test figure comes from the same place: the evaluation, if any."""
    stored = read_run_file(run, "settings.json")
    epochs = _rows(run / "epochs.csv")
    steps = _rows(run / "steps.csv")
    results = read_json(run / "results.json") if (run / "results.json").is_file() else {}
    folder = run / "evaluation-test"
    current = is_current(folder, run)
    test: Any = read_json(folder / "metrics.json") if current else results.get("test")
    confusion = folder / "confusion.csv" if current else run / "test-confusion.csv"
    has_correlations = current and (folder / "correlations.json").is_file()
    settings = {**stored.get("settings", {}), "versions": stored.get("versions", {})}
    if images := stored.get("data", {}):
        settings["dataset"] = {"layout": images.get("layout", "")} | images.get("images", {})
    model = settings.get("model", {})
    started = stored.get("started", {})
    return {
        "name": name,
        "model": f"{model.get('backbone', '?')}, k = {model.get('k', '?')}, d = {model.get('d', '?')}; "
        + describe_loss(settings.get("loss", {})),
        "origin": {key: started[key] for key in ("date", "command", "commit") if started.get(key)}
        | ({"weights from": f"{parent['run']} (epoch {parent['epoch']})"} if (parent := stored.get("parent")) else {}),
        "figures": _figures(epochs, results, test, _test_note(test, stored) if current else ""),
        "validation": results.get("validation", {}).get("accuracy"),
        "validated_on": stored.get("data", {}).get("fingerprints", {}).get("validation"),
        "steps": steps,
        "epochs": epochs,
        "charts": _charts(steps, epochs),
        "test": test,
        "tta": _tta(test or {}),
        "confusion": _confusion(confusion) if test and confusion.is_file() else None,
        "correlations": read_json(folder / "correlations.json") if has_correlations else None,
        "tsne": _tsne(folder / "tsne.csv", list(test["classes"])) if current else None,
        "samples": _data_uri(folder / "samples.png") if samples and current else None,
        "settings": settings,
    }


def _test_note(test: Mapping[str, Any], stored: Mapping[str, Any]) -> str:
    """What distinguishes these test figures from those of the run's own test split."""
    own = stored.get("data", {}).get("fingerprints", {}).get("test")
    other = f" on {test['layout']}" if test["fingerprint"] != own else ""
    return other + (f" with {tta}" if (tta := _tta(test)) != "none" else "")


def _tta(test: Mapping[str, Any]) -> str:
    """The --tta of an evaluation; one of an earlier version has flip alone, results.json none."""
    return str(test.get("tta", "flip" if test.get("flip") else "none"))


def _figures(epochs: Rows, results: Mapping[str, Any], test: Mapping[str, Any] | None, note: str) -> dict[str, str]:
    best = results.get("epoch")
    row = next((row for row in epochs if row["epoch"] == str(best)), epochs[-1])
    minutes = sum(float(row["seconds"]) for row in epochs) / 60
    figures = {
        "epochs": epochs[-1]["epoch"],
        "best epoch": str(best or "–"),
        "minutes": f"{minutes:.{1 if minutes >= 1 else 2}f}",
        "total loss": f"{float(row['train_loss']):.4f}",
    }
    for split, values, suffix in (("validation", results.get("validation"), ""), ("test", test, note)):
        if values:
            figures[f"{split} accuracy{suffix}"] = f"{percent(values['accuracy'])} %"
            figures[f"{split} average accuracy{suffix}"] = f"{percent(values['average_accuracy'])} %"
    return figures


def _line(rows: Rows, column: str, name: str) -> Line:
    present = [row for row in rows if row.get(column)]
    unit = 100 if column.endswith("accuracy") else 1
    return Line(name, [float(row["step"]) for row in present], [unit * float(row[column]) for row in present])


def _charts(steps: Rows, epochs: Rows) -> Charts:
    training = steps
    if len(steps) < 2:
        training = [{key.removeprefix("train_"): value for key, value in row.items()} for row in epochs]
    source = steps if any(key.startswith("weight_") for key in (steps or [{}])[0]) else epochs
    weights = [key for key in source[0] if key.startswith("weight_")]
    charts = {
        "Total loss": [_line(training, "loss", "training")],
        "Cross-entropy": [
            _line(training, "ce", "training"),
            _line(epochs, "validation_nll", "validation"),
        ],
        "Accuracy, %": [
            _line(epochs, "train_accuracy", "training"),
            _line(epochs, "validation_accuracy", "validation"),
            _line(epochs, "validation_average_accuracy", "validation, average"),
        ],
        "Feature Discriminator": [_line(training, "fd", "FD"), _line(training, "nfd", "NFD (w = 1/2)")],
        "Mean Discriminator": [_line(training, "md", "MD")],
        "Embedding Discriminator": [_line(training, "ed", "ED")],
        "Gradients with respect to the embeddings, norms": [
            _line(training, f"gradient_{name}", name) for name in ("ce", "fd", "nfd", "md", "ed")
        ],
        "Gradients' cosines with cross-entropy's": [
            _line(training, f"cosine_{name}", name) for name in ("fd", "nfd", "md", "ed")
        ],
        "Mean attention weight": [_line(training, "mean_weight", "mean weight")],
        "Attention weight of each class": [_line(source, key, key.removeprefix("weight_")) for key in weights],
        "Learning rate": [_line(steps, "lr", "learning rate")],
    }
    return _render_charts(charts)


def _render_charts(charts: Mapping[str, Sequence[Line]]) -> Charts:
    return [(title, svg) for title, lines in charts.items() if (svg := lines_svg(title, lines, "step"))]


def _compare(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rows of the comparison, each (name, a cell for each run); charts of one line for each run."""
    flat = [
        {f"{group}.{key}": value for group, values in run["settings"].items() for key, value in values.items()}
        for run in runs
    ]
    columns = {
        "Total loss, training": "train_loss",
        "NLL, validation": "validation_nll",
        "Accuracy, validation, %": "validation_accuracy",
    }
    charts = {title: [_line(run["epochs"], column, run["name"]) for run in runs] for title, column in columns.items()}
    return {
        "figures": _side_by_side([run["origin"] | run["figures"] for run in runs]),
        "settings": [
            (key, cells) for key, cells in _side_by_side(flat) if key != "run.out" and len(set(map(str, cells))) > 1
        ],
        "charts": _render_charts(charts),
        "best": best_run(runs),
        "no_best": NO_BEST,
    }


def _side_by_side(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    return [(key, [run.get(key, "–") for run in runs]) for key in dict.fromkeys(key for run in runs for key in run)]


def _confusion(file: Path) -> tuple[list[str], list[tuple[str, list[tuple[int, float]]]]]:
    """The classes, and for each true class the counts and shares of the predictions."""
    [_, *names], *rows = csv.reader(read_text(file).splitlines())
    table = []
    for name, *cells in rows:
        counts = list(map(int, cells))
        table.append((name, [(count, count / (sum(counts) or 1)) for count in counts]))
    return names, table


def _tsne(file: Path, names: Sequence[str]) -> str | None:
    rows = _rows(file)
    points = np.array([(float(row["x"]), float(row["y"])) for row in rows])
    return tsne_svg(points, np.array([names.index(row["class"]) for row in rows]), names) if rows else None


def _data_uri(picture: Path) -> str | None:
    if not picture.is_file():
        return None
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def _rows(file: Path) -> Rows:
    return read_rows(file) if file.is_file() else []


def _text(value: Any) -> str:
    return format_value(value, ", ") or "none"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:z.2f}"
