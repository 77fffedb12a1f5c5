"""A trained model on a split, written into a folder.

metrics.json                          every figure, with its bootstrap interval
tables.md, per-class.csv              precision, recall and F1 as the paper's Tables 5 to 7 have them
confusion.csv, confusion.png          Fig. 4
predictions.csv                       of each sample: its name, its class, the predicted one, all probabilities
correlations.json, correlations.png   within and between classes, between class means, between the k vectors
vectors.png                           the last of these
tsne.csv, tsne.png                    Fig. 5
samples.png                           Fig. 7, from the user's own data
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.analysis import pictures
from train.analysis.correlations import mean_correlations, sample_correlations, within_and_between
from train.analysis.intervals import bootstrap, figures_of
from train.analysis.outputs import Flipped, Outputs, collect, drawn
from train.command import check_at_least, data_of, device_of, made
from train.data.base import FaceDataset
from train.data.loading import evaluation_batches
from train.errors import UserError
from train.evaluation import Evaluation, evaluation_of
from train.run_folder import load_trained, write_json


def evaluate_run(options: Any) -> Path:
    """`options` as `train.evaluate.parser` gives them. Returns the folder. Raises UserError."""
    check_at_least(options, batch_size=1, resamples=1, tsne=0, samples=0, workers=0, limit=0)
    device = device_of(options.device)
    trained = load_trained(options.run, device)
    splits = data_of(options.run, options, trained.class_names, trained.preprocessing.image_size)
    faces: FaceDataset = getattr(splits, options.split)
    if not len(faces):
        raise UserError(f"the {options.split} split has no images")
    batches = evaluation_batches(
        faces, trained.preprocessing.evaluation(), options.batch_size, options.workers, device.type == "cuda"
    )
    model = Flipped(trained.model) if options.flip else trained.model
    sample = drawn(len(faces), options.tsne, options.seed)
    print(f"{splits.report}\n\nevaluating {len(faces):,} images of {options.split} on {device}", flush=True)
    outputs = collect(model, batches, len(trained.class_names), device, sample)

    out = made(options.out or options.run / f"evaluation-{options.split}")
    about = {
        "split": options.split,
        "layout": splits.layout,
        "fingerprint": faces.fingerprint,
        "epoch": trained.description["epoch"],
        "flip": options.flip,
        "seed": options.seed,
    }
    names = [faces.name(index) for index in range(len(faces))]
    found = write_figures(out, outputs, trained.class_names, names, about, options.resamples, options.seed)
    title = f"{options.split}, {len(faces):,} images, epoch {about['epoch']}"
    found.draw_confusion(out / "confusion.png", title)
    write_correlations(out, outputs, trained.class_names, title)
    if len(sample) > 3:
        write_tsne(out, outputs, trained.class_names, options.seed, title)
    if options.samples:
        probabilities = outputs.logits.softmax(1).numpy()
        pictures.draw_samples(
            out / "samples.png",
            faces.image,
            outputs.targets.numpy(),
            probabilities,
            trained.class_names,
            options.samples,
            options.seed,
        )
    print(f"\n{(out / 'tables.md').read_text(encoding='utf-8')}\nwritten to {out}")
    return out


def write_figures(
    out: Path,
    outputs: Outputs,
    class_names: Sequence[str],
    names: Sequence[str],
    about: dict[str, Any],
    resamples: int,
    seed: int,
) -> Evaluation:
    found = evaluation_of(outputs.logits, outputs.targets, class_names)
    figures = figures_of(found.confusion)
    intervals = bootstrap(found.confusion, resamples, seed)
    described = found.as_dict() | {"macro_f1": float(figures["macro_f1"])}
    described["intervals"] = {
        "level": 0.95,
        "resamples": resamples,
        **{name: intervals[name].tolist() for name in ("accuracy", "average_accuracy", "macro_f1")},
    }
    for index, name in enumerate(class_names):
        described["classes"][name]["intervals"] = {
            key: [None if np.isnan(value) else float(value) for value in intervals[key][:, index]]
            for key in ("precision", "recall", "f1")
        }
    write_json(out / "metrics.json", about | described)
    found.write_tables(out / "confusion.csv", out / "per-class.csv")
    (out / "tables.md").write_text(tables(found, described, intervals), encoding="utf-8")
    probabilities = outputs.logits.double().softmax(1)
    with (out / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["sample", "name", "class", "predicted", *class_names])
        rows = zip(names, outputs.targets.tolist(), probabilities.tolist(), strict=True)
        for index, (name, target, row) in enumerate(rows):
            best = class_names[row.index(max(row))]
            writer.writerow([index, name, class_names[target], best, *(f"{value:.6f}" for value in row)])
    return found


def tables(found: Evaluation, described: dict[str, Any], intervals: dict[str, NDArray[np.float64]]) -> str:
    """Markdown: the figures of the whole split, and the paper's table of the classes; in percent, 95 % intervals."""
    percent = _percent
    lines = ["| | % | 95 % interval |", "|---|---|---|"]
    for key, words in (("accuracy", "Accuracy"), ("average_accuracy", "Average accuracy"), ("macro_f1", "Macro F1")):
        low, high = intervals[key]
        lines.append(f"| {words} | {percent(described[key])} | {_interval(low, high)} |")
    lines += ["", "| | " + " | ".join(found.class_names) + " |", "|---" * (len(found.class_names) + 1) + "|"]
    for words, values in (("Precision", found.precision), ("Recall", found.recall), ("F1-score", found.f1)):
        lines.append(f"| {words} | " + " | ".join(map(percent, values)) + " |")
        low, high = intervals["f1" if words == "F1-score" else words.lower()]
        lines.append("| | " + " | ".join(map(_interval, low, high)) + " |")
    lines.append("| Images | " + " | ".join(f"{count:,}" for count in found.support) + " |")
    if found.absent:
        lines += ["", f"No images of {', '.join(found.absent)}: averages are over the other classes."]
    return "\n".join(lines) + "\n"


def write_correlations(out: Path, outputs: Outputs, class_names: Sequence[str], title: str) -> None:
    statistics = outputs.statistics
    samples, means = sample_correlations(statistics), mean_correlations(statistics)
    within, between = within_and_between(statistics)
    write_json(
        out / "correlations.json",
        {
            "classes": list(class_names),
            "within": _nullable(within),
            "between": _nullable(between),
            "samples": _nullable(samples.tolist()),
            "class_means": _nullable(means.tolist()),
            "vectors": outputs.vectors.tolist(),
        },
    )
    headings = (
        (f"pairs of samples (within {within:.2f}, between {between:.2f})", samples),
        ("class means", means),
    )
    pictures.draw_correlations(out / "correlations.png", headings, class_names, f"correlations, mean over k; {title}")
    vectors = outputs.vectors.numpy()
    pictures.draw_correlations(
        out / "vectors.png",
        [("between an image's embedding vectors, mean over images", vectors)],
        [str(index + 1) for index in range(len(vectors))],
        title,
    )


def write_tsne(out: Path, outputs: Outputs, class_names: Sequence[str], seed: int, title: str) -> None:
    points = pictures.tsne(outputs.embeddings.numpy(), seed)
    labels = outputs.targets.numpy()[outputs.sample]
    with (out / "tsne.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["sample", "class", "x", "y"])
        for index, label, (x, y) in zip(outputs.sample.tolist(), labels.tolist(), points.tolist(), strict=True):
            writer.writerow([index, class_names[label], f"{x:.3f}", f"{y:.3f}"])
    shown = f"t-SNE of the embeddings of {len(points):,} images; {title}"
    pictures.draw_tsne(out / "tsne.png", points, labels, class_names, shown)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _percent(value: float) -> str:
    return "–" if np.isnan(value) else f"{100 * value:.2f}"


def _interval(low: float, high: float) -> str:
    return "–" if np.isnan(low) else f"{_percent(low)} to {_percent(high)}"


def _nullable(value: Any) -> Any:
    """For JSON: None in place of NaN."""
    if isinstance(value, list):
        return [_nullable(item) for item in value]
    return None if np.isnan(value) else value
