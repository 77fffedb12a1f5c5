"""`python -m train.evaluate` on a small run: what it writes agrees with the run, with scikit-learn and with itself."""

import csv
import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, log_loss
from sklearn.metrics import precision_recall_fscore_support as scores

from train.data.labels import CLASS_NAMES
from train.evaluate import main


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def evaluated(run: Path, out: Path, *options: str) -> Path:
    assert main([str(run), "--out", str(out), "--device", "cpu", *options]) == 0
    return out


@pytest.fixture(scope="module")
def folder(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluated(finished_run, tmp_path_factory.mktemp("evaluation"), "--resamples", "200", "--tsne", "15")


def test_figures_are_the_runs_own(folder: Path, finished_run: Path) -> None:
    actual, run = read(folder / "metrics.json"), read(finished_run / "results.json")["test"]
    for name in ("samples", "accuracy", "average_accuracy", "average_accuracy_over"):
        assert actual[name] == run[name]
    assert actual["nll"] == pytest.approx(run["nll"], rel=1e-5)
    assert actual["epoch"] == read(finished_run / "results.json")["epoch"]


def test_figures_are_scikit_learns(folder: Path, fer_folders: Path) -> None:
    actual = read(folder / "metrics.json")
    predictions = rows(folder / "predictions.csv")
    true, predicted = [row["class"] for row in predictions], [row["predicted"] for row in predictions]
    labels = list(CLASS_NAMES)
    assert actual["samples"] == len(predictions) == 21
    assert actual["average_accuracy"] == pytest.approx(balanced_accuracy_score(true, predicted), abs=1e-6)
    assert actual["macro_f1"] == pytest.approx(f1_score(true, predicted, average="macro", labels=labels))
    precision, recall, f1, _ = scores(true, predicted, labels=labels, zero_division=np.nan)
    for index, name in enumerate(labels):
        for key, value in (("precision", precision), ("recall", recall), ("f1", f1)):
            stored_value = actual["classes"][name][key]
            assert (np.nan if stored_value is None else stored_value) == pytest.approx(
                value[index], abs=1e-6, nan_ok=True
            )
    with (folder / "confusion.csv").open() as file:
        counts = [[int(cell) for cell in row[1:]] for row in list(csv.reader(file))[1:]]
    assert counts == confusion_matrix(true, predicted, labels=labels).tolist()
    probabilities = np.array([[float(row[name]) for name in labels] for row in predictions])
    probabilities /= probabilities.sum(1, keepdims=True)  # they are rounded
    order = np.array([labels.index(name) for name in true])
    assert actual["nll"] == pytest.approx(log_loss(order, probabilities, labels=range(7)), abs=1e-4)
    assert {Path(row["name"]).parent.name for row in predictions if row["class"] == "Anger"} == {"angry"}
    assert all((fer_folders / "test" / Path(row["name"]).parent.name).is_dir() for row in predictions)


def test_intervals_and_tables(folder: Path) -> None:
    actual = read(folder / "metrics.json")
    for name in ("accuracy", "average_accuracy", "macro_f1"):
        low, high = actual["intervals"][name]
        assert 0 <= low <= actual[name] <= high <= 1
    text = (folder / "tables.md").read_text()
    low, high = actual["intervals"]["accuracy"]
    assert f"| Accuracy | {100 * actual['accuracy']:.2f} | {100 * low:.2f} to {100 * high:.2f} |" in text
    assert "|  | Neutral | Happy | Sad | Surprise | Fear | Disgust | Anger |" in text
    assert "| Images | 3 | 3 | 3 | 3 | 3 | 3 | 3 |" in text
    assert {row["class"] for row in rows(folder / "per-class.csv")} == set(CLASS_NAMES)


def test_correlations_and_pictures(folder: Path) -> None:
    actual = read(folder / "correlations.json")
    means, vectors = np.array(actual["class_means"]), np.array(actual["vectors"])
    assert means.shape == (7, 7)
    assert vectors.shape == (2, 2)
    np.testing.assert_allclose(means.diagonal(), 1)
    np.testing.assert_allclose(vectors, vectors.T)
    assert -1 <= actual["between"] <= actual["within"] + 0.1 <= 1.1
    points = rows(folder / "tsne.csv")
    assert len(points) == 15
    assert len({(row["x"], row["y"]) for row in points}) == 15
    for name in ("confusion", "correlations", "vectors", "tsne", "samples"):
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 300
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 20, name  # something is drawn on it


def test_retrieval(folder: Path, finished_run: Path, tmp_path: Path) -> None:
    """For 21 faces, three per class, with clustered embeddings; the t-SNE shows 15 of them."""
    actual = read(folder / "metrics.json")["retrieval"]
    assert actual.pop("samples") == 21
    assert set(actual) == {"precision_at_1", "r_precision", "map_at_r"}
    assert 0 <= actual["map_at_r"] <= actual["r_precision"] <= 1
    assert f"| MAP@R | {100 * actual['map_at_r']:.2f} |  |" in (folder / "tables.md").read_text()
    options = ("--resamples", "1", "--tsne", "9", "--samples", "0")
    one = evaluated(finished_run, tmp_path / "one", "--retrieval", "1", *options)
    assert read(one / "metrics.json")["retrieval"] == {"samples": 1} | dict.fromkeys(actual)
    assert len(rows(one / "tsne.csv")) == 9
    none = evaluated(finished_run, tmp_path / "none", "--retrieval", "0", *options)
    assert "retrieval" not in read(none / "metrics.json")
    assert "MAP@R" not in (none / "tables.md").read_text()


def test_batches_do_not_matter(folder: Path, finished_run: Path, tmp_path: Path) -> None:
    options = ("--batch-size", "5", "--resamples", "200", "--tsne", "0", "--samples", "0")
    other = evaluated(finished_run, tmp_path, *options)
    assert {path.name for path in other.iterdir()}.isdisjoint({"tsne.csv", "tsne.png", "samples.png"})
    one, two = read(folder / "metrics.json"), read(other / "metrics.json")
    assert one.pop("nll") == pytest.approx(two.pop("nll"), rel=1e-6)
    assert one.pop("retrieval") == pytest.approx(two.pop("retrieval"), abs=0.1)  # rounding may swap two neighbours
    assert one == two
    for a, b in zip(rows(folder / "predictions.csv"), rows(other / "predictions.csv"), strict=True):
        assert a["name"] == b["name"]
        assert all(float(a[name]) == pytest.approx(float(b[name]), abs=1e-5) for name in CLASS_NAMES)
    a, b = (read(path / "correlations.json") for path in (folder, other))
    np.testing.assert_allclose(a["samples"], b["samples"], atol=1e-5)


def test_other_data_split_protocol_and_tta(
    finished_run: Path, fer_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = ("--tsne", "0", "--samples", "0", "--resamples", "10")
    options = ("--data", str(fer_csv), "--protocol", "paper", "--tta", "tencrop", *plain)
    actual = read(evaluated(finished_run, tmp_path / "paper", *options) / "metrics.json")
    assert (actual["samples"], actual["tta"], actual["layout"]) == (35, "tencrop", "fer2013.csv")
    actual = read(evaluated(finished_run, tmp_path / "validation", "--split", "validation", *plain) / "metrics.json")
    assert (actual["samples"], actual["split"]) == (14, "validation")
    assert actual["accuracy"] == read(finished_run / "results.json")["validation"]["accuracy"]
    assert "written to" in capsys.readouterr().out


def test_mistakes(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = shutil.copytree(finished_run / "best", tmp_path / "model")
    two = tmp_path / "two"
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (two / split / name).mkdir(parents=True)
            Image.new("L", (8, 8)).save(two / split / name / "0.png")
            Image.new("L", (8, 8)).save(two / split / name / "1.png")
    for arguments, message in (
        ((alone,), "no settings.json says what it was trained on; give --data"),
        ((finished_run, "--data", two), "has the classes cat, dog; the model was trained on Neutral, Happy"),
        ((tmp_path / "nowhere",), "no checkpoint there"),
        ((finished_run, "--resamples", "0"), "--resamples: expected at least 1, got 0"),
        ((finished_run, "--seed", str(2**32)), "--seed: expected at most 4294967295, got 4294967296"),
        ((finished_run, "--split", "other"), "invalid choice: 'other'"),
    ):
        assert main([*map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1


def test_an_evaluation_that_broke_off_has_no_metrics(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """metrics.json is what a report takes for a whole evaluation."""
    whole = evaluated(finished_run, tmp_path, "--resamples", "5", "--tsne", "0", "--samples", "0")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("train.analysis.evaluate.write_correlations", full)
    assert main([str(finished_run), "--out", str(whole), "--device", "cpu", "--resamples", "5"]) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert not (whole / "metrics.json").exists()
