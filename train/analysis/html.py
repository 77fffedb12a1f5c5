"""One self-contained HTML file about a run: no script, nothing from a network, light and dark."""

import base64
import csv
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from train.analysis.evaluation_folder import evaluate_run, is_current, read_json
from train.analysis.svg import Line, lines, scatter
from train.command import run_settings
from train.errors import UserError
from train.hub import described_loss
from train.run_folder import DESCRIPTION, find_checkpoint

TEMPLATE = Path(__file__).with_name("report.html")
Rows = list[dict[str, str]]


def write_report(options: Any) -> Path:
    """`options` as `train.html_report.parser` gives them. Raises UserError where there is no run."""
    run: Path = options.run
    steps, epochs = _rows(run / "steps.csv"), _rows(run / "epochs.csv")
    if not epochs:
        raise UserError(f"{run}: no run with a finished epoch there (looked for epochs.csv)")
    folder = run / "evaluation-test"
    if not options.no_evaluate and (options.data or not is_current(folder, run)):
        evaluate_run(run, data=options.data, seed=options.seed, device=options.device)
    sections = [
        _head(run),
        _curves(steps, epochs),
        _evaluation(folder) if _current(folder, run) else _results(run),
        _samples(folder / "samples.png") if options.samples and _current(folder, run) else "",
        _settings(run),
    ]
    out: Path = options.out or run / "report.html"
    title = f"Run {run.resolve().name}"
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(title=escape(title), body="\n".join(sections))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {out}: cannot write it: {error}") from error
    print(f"written to {out}")
    return out


def _current(folder: Path, run: Path) -> bool:
    """Whether an evaluation is there, and of the checkpoint that is the best by now."""
    if not (folder / "metrics.json").is_file():
        return False
    return bool(read_json(folder / "metrics.json")["epoch"] == read_json(find_checkpoint(run) / DESCRIPTION)["epoch"])


def _head(run: Path) -> str:
    settings = run_settings(run).get("settings", {})
    model, loss = settings.get("model", {}), settings.get("loss", {})
    text = f"{model.get('backbone', '?')}, k = {model.get('k', '?')}, d = {model.get('d', '?')}"
    text += f"; {described_loss(loss)}"
    tiles = ""
    if (run / "results.json").is_file():
        results = read_json(run / "results.json")
        figures = [("best epoch", str(results["epoch"]))]
        for split in ("validation", "test"):
            if split in results:
                figures.append((f"{split} accuracy", _percent(results[split]["accuracy"]) + " %"))
                figures.append((f"{split} average accuracy", _percent(results[split]["average_accuracy"]) + " %"))
        tiles = "".join(f"<li>{escape(name)}<strong>{value}</strong></li>" for name, value in figures)
        tiles = f'<ul class="tiles">{tiles}</ul>'
    return f"<h1>Run {escape(run.resolve().name)}</h1><p class=dim>{escape(text)}</p>{tiles}"


def _curves(steps: Rows, epochs: Rows) -> str:
    def column(rows: Rows, name: str, shown: str | None = None) -> Line:
        kept = [row for row in rows if row.get(name)]
        return Line(shown or name, [float(row["step"]) for row in kept], [float(row[name]) for row in kept])

    short = steps if len(steps) > 1 else [_unprefixed(row) for row in epochs]
    validation = column(epochs, "validation_cross_entropy", "validation")
    weights = [name for name in (steps or epochs)[0] if name.startswith("weight_")]
    weighted = steps if weights and steps else epochs
    weights = weights or [name for name in epochs[0] if name.startswith("weight_")]
    accuracies = [
        column(epochs, "train_accuracy", "training"),
        column(epochs, "validation_accuracy", "validation"),
        column(epochs, "validation_average_accuracy", "validation, average"),
    ]
    charts = (
        lines("Cross-entropy", [column(short, "ce", "training"), validation], "step"),
        lines("Accuracy", accuracies, "step"),
        lines("Feature Discriminator", [column(short, "fd", "FD"), column(short, "nfd", "NFD (w = 1/2)")], "step"),
        lines("Mean Discriminator", [column(short, "md", "MD")], "step"),
        lines("Embedding Discriminator", [column(short, "ed", "ED")], "step"),
        lines("Mean attention weight", [column(short, "mean_weight", "mean weight")], "step"),
        lines(
            "Attention weight of each class", [column(weighted, w, w.removeprefix("weight_")) for w in weights], "step"
        ),
        lines("Learning rate", [column(steps, "lr", "learning rate")], "step"),
    )
    note = (
        "FD is proportional to the mean attention weight: it fades as training accuracy rises, even where NFD, and so "
        "no embedding, moves."
    )
    return f'<h2>Training</h2><p class="dim">{note}</p><div class="grid">{"".join(charts)}</div>'


def _evaluation(folder: Path) -> str:
    metrics = read_json(folder / "metrics.json")
    names = list(metrics["classes"])
    figures = []
    for key, words in (("accuracy", "Accuracy"), ("average_accuracy", "Average accuracy"), ("macro_f1", "Macro F1")):
        low, high = metrics["intervals"][key]
        interval = f"{_percent(low)} to {_percent(high)}"
        figures.append(f'<tr><th scope="row">{words}</th><td>{_percent(metrics[key])}</td><td>{interval}</td></tr>')
    flip = ", with test-time flip" if metrics["flip"] else ""
    parts = [
        f"<h2>Test images</h2><p>{metrics['samples']:,} images of {escape(metrics['layout'])}, epoch "
        f"{metrics['epoch']}{flip}. Intervals: 95 %, bootstrap.</p>",
        '<table><thead><tr><td></td><th scope="col">%</th><th scope="col">interval</th></tr></thead>'
        f"<tbody>{''.join(figures)}</tbody></table>",
        _per_class(metrics["classes"]),
        _confusion(folder / "confusion.csv"),
    ]
    if (folder / "correlations.json").is_file():
        found = read_json(folder / "correlations.json")
        vectors = [str(index + 1) for index in range(len(found["vectors"]))]
        parts += [
            f"<h2>Correlations</h2><p>Of two images of one class {_number(found['within'])}, of different classes "
            f"{_number(found['between'])}, mean over k and all pairs of images. The loss asks for 1 and, with the "
            "paper's targets, -1.</p>",
            _heat("Class means", found["class_means"], names),
            _heat("Pairs of images", found["samples"], names),
            _heat("An image's embedding vectors, mean over images", found["vectors"], vectors),
        ]
    if (folder / "tsne.csv").is_file():
        points = [(row["class"], float(row["x"]), float(row["y"])) for row in _rows(folder / "tsne.csv")]
        parts.append("<h2>t-SNE</h2>" + scatter(f"Embeddings of {len(points):,} test images", points, names))
    return "\n".join(parts)


def _results(run: Path) -> str:
    """The little that a run leaves by itself."""
    if not (run / "results.json").is_file():
        return ""
    return f"<h2>Test images</h2>{_per_class(read_json(run / 'results.json')['test']['classes'])}" + _confusion(
        run / "test-confusion.csv"
    )


def _per_class(classes: Mapping[str, Mapping[str, Any]]) -> str:
    def cell(row: Mapping[str, Any], key: str) -> str:
        text = _percent(row[key])
        low, high = row.get("intervals", {}).get(key, (None, None))
        return f"<td>{text}</td>" if low is None else f'<td title="{_percent(low)} to {_percent(high)}">{text}</td>'

    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(cell(row, key) for key in ("precision", "recall", "f1"))}'
        f"<td>{row['samples']:,}</td></tr>"
        for name, row in classes.items()
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("precision", "recall", "F1", "images"))
    return (
        f'<h3>Classes</h3><div class="wide"><table><caption>In percent</caption><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _confusion(file: Path) -> str:
    if not file.is_file():
        return ""
    with file.open(newline="", encoding="utf-8") as opened:
        [_, *names], *rows = csv.reader(opened)
    body = []
    for name, *cells in rows:
        counts = [int(cell) for cell in cells]
        total = sum(counts)
        shares = [count / total if total else 0.0 for count in counts]
        row = "".join(
            f'<td class="heat" style="{_tint("--blue", share)}">{100 * share:.1f}<br><small>{count:,}</small></td>'
            for share, count in zip(shares, counts, strict=True)
        )
        body.append(f'<tr><th scope="row">{escape(name)}</th>{row}</tr>')
    return _matrix("Confusion matrix: % of the true class (rows), and images", names, body)


def _heat(title: str, matrix: Sequence[Sequence[float | None]], names: Sequence[str]) -> str:
    body = []
    for name, row in zip(names, matrix, strict=True):
        cells = "".join(
            f'<td class="heat" style="{_tint("--red" if (value or 0) > 0 else "--blue", abs(value or 0))}">'
            f"{_number(value)}</td>"
            for value in row
        )
        body.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    return _matrix(title, names, body)


def _matrix(title: str, names: Sequence[str], body: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    return (
        f'<h3>{escape(title)}</h3><div class="wide"><table><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _tint(color: str, share: float) -> str:
    """At most two thirds of the colour: the text stays readable on it, light or dark."""
    return f"background: color-mix(in srgb, var({color}) {65 * min(share, 1):.0f}%, transparent)"


def _samples(picture: Path) -> str:
    if not picture.is_file():
        return ""
    data = base64.b64encode(picture.read_bytes()).decode()
    words = "Test images of each class, predicted right on the left and wrong on the right, with the prediction"
    return f'<h2>Samples</h2><img alt="{words}" src="data:image/png;base64,{data}">'


def _settings(run: Path) -> str:
    stored = run_settings(run)
    groups = {**stored.get("settings", {}), "versions": stored.get("versions", {})}
    data = stored.get("data", {})
    if data:
        groups["dataset"] = {"layout": data.get("layout", "")} | data.get("images", {})
    parts = []
    for group, values in groups.items():
        body = "".join(
            f'<tr><th scope="row">{escape(str(key))}</th><td>{escape(_text(value))}</td></tr>'
            for key, value in values.items()
        )
        parts.append(f'<div><table class="words"><caption>{escape(group)}</caption><tbody>{body}</tbody></table></div>')
    return f'<h2>Settings</h2><div class="grid">{"".join(parts)}</div>'


def _rows(file: Path) -> Rows:
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def _unprefixed(row: Mapping[str, str]) -> dict[str, str]:
    return {key.removeprefix("train_"): value for key, value in row.items()}


def _text(value: Any) -> str:
    return (", ".join(map(str, value)) if isinstance(value, list) else str(value)) or "none"


def _percent(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.2f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
