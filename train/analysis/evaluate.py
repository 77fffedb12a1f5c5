"""A trained model on a split, written into a folder.

metrics.json                          every figure, with its bootstrap interval; retrieval metrics without
tables.md, per-class.csv              precision, recall and F1 as the paper's Tables 5 to 7 have them
confusion.csv, confusion.png          Fig. 4
predictions.csv                       of each sample: its name, its class, the predicted one, all probabilities
correlations.json, correlations.png   within and between classes, between class means, between the k vectors
vectors.png                           the last of these
tsne.csv, tsne.png                    Fig. 5
samples.png                           Fig. 7, from the user's own data
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.analysis import pictures
from train.analysis.correlations import mean_correlations, sample_correlations, within_and_between
from train.analysis.intervals import bootstrap
from train.analysis.outputs import Outputs, collect_outputs, random_positions, with_tta
from train.bars import bar, format_table, markdown_table, wrap
from train.data.base import FaceDataset
from train.data.loading import evaluation_batches
from train.disk import read_json, write_json, write_rows
from train.errors import UserError
from train.evaluation import Evaluation, evaluation_from_logits, nan_to_none, percent
from train.owned_folder import prepare
from train.ranks import ALONE
from train.retrieval import METRICS, retrieval_metrics
from train.run_data import load_run_data
from train.run_folder import DESCRIPTION, find_checkpoint, load_trained

KIND = "evaluation"
OUTPUTS = (
    *("metrics.json", "metrics.json.partial", "tables.md", "per-class.csv", "confusion.csv", "confusion.png"),
    *("predictions.csv", "correlations.json", "correlations.json.partial", "correlations.png", "vectors.png"),
    *("tsne.csv", "tsne.png", "samples.png"),
)
WHOLE = {"accuracy": "Accuracy", "average_accuracy": "Average accuracy", "macro_f1": "Macro F1"}
CLASSWISE = {"Precision": "precision", "Recall": "recall", "F1-score": "f1"}
HEADS = ["", "%", "95 % interval"]
OTHER_DATA = (
    "NOTE: these are not the data that the run was trained on, by their fingerprints; whether some of the images were "
    "trained on cannot be told"
)


def evaluate_run(
    run: Path,
    *,
    data: str | None = None,
    protocol: str | None = None,
    split: str = "test",
    limit: int | None = None,
    batch_size: int = 64,
    workers: int = 0,
    tta: str = "none",
    resamples: int = 1000,
    tsne: int = 1000,
    retrieval: int = 10000,
    samples: int = 4,
    out: Path | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Path:
    """Evaluate the run's best checkpoint on a split of its data, or of `data`. Returns the folder of the results.

    Files of an earlier evaluation in that folder are replaced. Raises UserError, above all where images that the run
    was trained on would be among those it is evaluated on.
    """
    on = ALONE.device(device)
    trained = load_trained(run, on)
    faces, splits, own = load_run_data(run, trained, split, data=data, protocol=protocol, limit=limit)
    if not len(faces):
        raise UserError(f"the {split} split has no images")
    batches = evaluation_batches(faces, trained.preprocessing.evaluation(), batch_size, workers, on.type == "cuda")
    model = with_tta(trained.model, tta)
    sample = random_positions(len(faces), max(tsne, retrieval), seed)
    print(f"{wrap(splits.report)}\n\nevaluating {len(faces):,} images of {split} on {on}", flush=True)
    outputs = collect_outputs(model, bar(batches, split), len(trained.class_names), on, sample)
    print("computing intervals, retrieval, t-SNE and pictures", flush=True)
    retrieved = outputs.subset(random_positions(len(faces), retrieval, seed))
    shown = outputs.subset(random_positions(len(faces), tsne, seed))

    out = prepare(out or default_folder(run, split), KIND, OUTPUTS, alone=True)
    about = {
        "split": split,
        "layout": splits.layout,
        "fingerprint": faces.fingerprint,
        "own_data": own,
        "epoch": trained.description["epoch"],
        "tta": tta,
        "seed": seed,
    }
    if retrieval:
        labels = outputs.targets[torch.from_numpy(retrieved.sample)]
        metrics = retrieval_metrics(retrieved.embeddings, labels)
        about["retrieval"] = {"samples": len(labels), **{name: nan_to_none(metrics[name]) for name in metrics}}
    evaluation = evaluation_from_logits(outputs.logits, outputs.targets, trained.class_names)
    figures = about | with_intervals(evaluation, resamples, seed)
    evaluation.write_tables(out / "confusion.csv", out / "per-class.csv")
    note = "" if own else f"\n{OTHER_DATA}\n"
    (out / "tables.md").write_text(tables(evaluation, figures) + note, encoding="utf-8")
    probabilities = outputs.logits.double().softmax(1)
    write_predictions(out / "predictions.csv", faces, outputs.targets, probabilities, trained.class_names)
    title = f"{split}, {len(faces):,} images, epoch {about['epoch']}"
    pictures.draw_confusion(out / "confusion.png", evaluation.confusion, trained.class_names, title)
    write_correlations(out, outputs, trained.class_names, title)
    if len(shown.sample) > 3:
        write_tsne(out, shown, trained.class_names, seed, title)
    if samples:
        shown_of = outputs.targets.numpy(), probabilities.numpy(), trained.class_names
        pictures.draw_samples(out / "samples.png", faces.image, *shown_of, samples, seed)
    write_json(out / "metrics.json", figures)  # the last file: where it is, the others are
    print(f"\n{wrap(describe(evaluation, figures))}\n")
    for note in (evaluation.collapse, "" if own else OTHER_DATA):
        print(f"{wrap(note)}\n" if note else "", end="")
    print(f"written to {out} (tables.md has every interval)")
    return out


def default_folder(run: Path, split: str) -> Path:
    """RUN/evaluation-SPLIT, and RUN/evaluation-last-SPLIT for RUN/last: never inside a checkpoint of a run."""
    run = run.resolve()
    if not (run / DESCRIPTION).is_file() or not (run.parent / "settings.json").is_file():
        return run / f"evaluation-{split}"
    return run.parent / f"evaluation-{split}" if run.name == "best" else run.parent / f"evaluation-{run.name}-{split}"


def is_current(folder: Path, run: Path, split: str = "test") -> bool:
    """Whether an evaluation of the run's best checkpoint on a split of its own data lies in the folder."""
    if not (folder / "metrics.json").is_file():
        return False
    metrics, trained = read_json(folder / "metrics.json"), read_json(find_checkpoint(run) / DESCRIPTION)
    expected = trained["epoch"], trained["data"]["fingerprints"][split]
    return (metrics["epoch"], metrics["fingerprint"]) == expected


def with_intervals(evaluation: Evaluation, resamples: int, seed: int) -> dict[str, Any]:
    """The figures of metrics.json, with their bootstrap intervals."""
    intervals = bootstrap(evaluation.confusion, resamples, seed)
    figures = evaluation.as_dict() | {"macro_f1": evaluation.macro_f1}
    whole = {name: intervals[name].tolist() for name in WHOLE}
    figures["intervals"] = {"level": 0.95, "resamples": resamples, **whole}
    for index, row in enumerate(figures["classes"].values()):
        row["intervals"] = {key: nan_to_none(intervals[key][:, index].tolist()) for key in CLASSWISE.values()}
    return figures


def write_predictions(
    file: Path, faces: FaceDataset, targets: Tensor, probabilities: Tensor, class_names: Sequence[str]
) -> None:
    lines: list[list[Any]] = [["sample", "name", "class", "predicted", *class_names]]
    for index, (target, row) in enumerate(zip(targets.tolist(), probabilities.tolist(), strict=True)):
        best = class_names[row.index(max(row))]
        lines.append([index, faces.name(index), class_names[target], best, *(f"{value:.6f}" for value in row)])
    write_rows(file, lines)


def describe(evaluation: Evaluation, figures: Mapping[str, Any]) -> str:
    """The figures of metrics.json for a terminal, in percent."""
    classes = [["", "precision", "recall", "95 % interval", "F1", "images"]]
    for name, row in figures["classes"].items():
        interval = _interval(*row["intervals"]["recall"])
        shown = [percent(row["precision"]), percent(row["recall"]), interval, percent(row["f1"])]
        classes.append([name, *shown, f"{row['samples']:,}"])
    return f"{format_table([HEADS, *_whole(figures)])}\n\n{format_table(classes)}" + _absence(evaluation)


def tables(evaluation: Evaluation, figures: Mapping[str, Any]) -> str:
    """Markdown: the figures of the whole split, and the paper's table of the classes; in percent, 95 % intervals."""
    classes = figures["classes"].values()
    table = []
    for words, key in CLASSWISE.items():
        table.append([words, *(percent(row[key]) for row in classes)])
        table.append(["", *(_interval(*row["intervals"][key]) for row in classes)])
    table.append(["Images", *(f"{row['samples']:,}" for row in classes)])
    lines = [*markdown_table(HEADS, _whole(figures)), "", *markdown_table(["", *figures["classes"]], table)]
    return "\n".join(lines) + _absence(evaluation) + "\n"


def _whole(figures: Mapping[str, Any]) -> list[list[str]]:
    """Rows of the figures of the whole split."""
    rows = [[words, percent(figures[key]), _interval(*figures["intervals"][key])] for key, words in WHOLE.items()]
    retrieval = figures.get("retrieval")
    return rows + [[words, percent(retrieval[key]), ""] for key, words in METRICS.items() if retrieval]


def _absence(evaluation: Evaluation) -> str:
    absent = ", ".join(evaluation.absent)
    return f"\n\nNo images of {absent}: averages are over the other classes." if absent else ""


def write_correlations(out: Path, outputs: Outputs, class_names: Sequence[str], title: str) -> None:
    statistics = outputs.statistics
    samples, means = sample_correlations(statistics), mean_correlations(statistics)
    within, between = within_and_between(statistics)
    write_json(
        out / "correlations.json",
        {
            "classes": list(class_names),
            "within": nan_to_none(within),
            "between": nan_to_none(between),
            "samples": nan_to_none(samples.tolist()),
            "class_means": nan_to_none(means.tolist()),
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
        "embedding vector",
    )


def write_tsne(out: Path, outputs: Outputs, class_names: Sequence[str], seed: int, title: str) -> None:
    points = pictures.tsne(outputs.embeddings.numpy(), seed)
    labels = outputs.targets.numpy()[outputs.sample]
    rows = zip(outputs.sample.tolist(), labels.tolist(), points.tolist(), strict=True)
    placed = ([index, class_names[label], f"{x:.3f}", f"{y:.3f}"] for index, label, (x, y) in rows)
    write_rows(out / "tsne.csv", [["sample", "class", "x", "y"], *placed])
    shown = f"t-SNE of the embeddings of {len(points):,} images; {title}"
    pictures.draw_tsne(out / "tsne.png", [(shown, points, labels)], class_names)


def _interval(low: float | None, high: float | None) -> str:
    return "–" if low is None or np.isnan(low) else f"{percent(low)} to {percent(high)}"
