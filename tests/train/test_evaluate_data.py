"""What is evaluated on was not trained on: the run's own split, or a refusal that says what changed."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.train import layouts
from tests.train.test_command import QUICK
from train.__main__ import main as train
from train.data import Request, load_data
from train.errors import UserError
from train.evaluate import main
from train.finetune import check_parents, run_of_weights
from train.html_report import main as html_report

CLASSES = {"happy": (1, 20), "sad": (2, 20), "fear": (4, 20)}
FEW = ("--resamples", "10", "--tsne", "0", "--samples", "0", "--device", "cpu")
BROKEN = ("happy/3.png", "happy/11.png", "sad/7.png", "fear/0.png")


def broken_folders(root: Path) -> Path:
    layouts.class_folders(root, {"": CLASSES})
    for name in BROKEN:
        (root / name).write_bytes(b"no picture")
    return root


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, set[str]]:
    """(run, data, names of its training images): class folders without splits; broken images are left out."""
    folder = tmp_path_factory.mktemp("own")
    data = broken_folders(folder / "data")
    assert train(["--data", str(data), "--out", str(folder / "run"), "--on-broken", "skip", *QUICK]) == 0
    part = load_data(str(data), Request(image_size=32, on_broken="skip")).train
    return folder / "run", data, {part.name(index) for index in range(len(part))}


def evaluated(run: Path, out: Path, *options: str | Path, code: int = 0) -> tuple[dict[str, Any], list[str]]:
    """(metrics.json, the names of the images evaluated on)."""
    assert main([str(run), "--out", str(out), *FEW, *map(str, options)]) == code
    if code:
        return {}, []
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        names = [row["name"] for row in csv.DictReader(file)]
    return json.loads((out / "metrics.json").read_text()), names


def test_the_runs_own_split(own: tuple[Path, Path, set[str]], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run, data, learnt = own
    figures = json.loads((run / "results.json").read_text())["test"]
    for options in ((), ("--data", data), ("--data", shutil.copytree(data, tmp_path / "copy"))):
        actual, names = evaluated(run, tmp_path / "out", *options)
        assert (actual["accuracy"], actual["samples"]) == (figures["accuracy"], figures["samples"])
        assert actual["own_data"]
        assert "NOTE" not in capsys.readouterr().out
        assert not learnt & set(names)
    actual, names = evaluated(run, tmp_path / "out", "--limit", "3")
    assert actual["samples"] == 3
    assert not learnt & set(names)


def test_data_that_changed_are_refused(
    own: tuple[Path, Path, set[str]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run, data, learnt = own
    added = data / "happy/00new.png"
    Image.fromarray(layouts.pixels(1)).convert("RGB").save(added)
    try:
        for options in ((), ("--data", data), ("--limit", "3"), ("--split", "validation"), ("--workers", "1")):
            evaluated(run, tmp_path / "out", *options, code=2)
            error = capsys.readouterr().err
            assert "is not what the run was trained on (train 44 images then, 45 now" in error
            assert "evaluate on other data by --data" in error
        assert html_report([str(run), "--device", "cpu"]) == 2
        copy = shutil.copytree(data, tmp_path / "copy")
        actual, names = evaluated(run, tmp_path / "out", "--data", copy)
        assert not actual["own_data"]
        assert "NOTE: these are not the data that the run was trained on" in capsys.readouterr().out
        assert "NOTE" in (tmp_path / "out/tables.md").read_text()
    finally:
        added.unlink()
    one = data / "sad/1.png"
    content = one.read_bytes()
    layouts.write_picture(one, 2, side=30)
    evaluated(run, tmp_path / "out", code=2)
    assert "as many images, with other names, sizes or labels" in capsys.readouterr().err
    one.write_bytes(content)
    actual, names = evaluated(run, tmp_path / "out")
    assert not learnt & set(names)


def test_a_new_run_is_not_tested_on_what_its_parent_was_trained_on(
    own: tuple[Path, Path, set[str]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """--init-from with another seed splits the same pictures differently."""
    run, data, learnt = own
    child = ["--init-from", str(run), "--data", str(data), "--on-broken", "skip", *QUICK[6:]]
    other = load_data(str(data), Request(image_size=32, on_broken="skip", seed=1))
    seen = [len(learnt & {part.name(at) for at in range(len(part))}) for part in (other.validation, other.test)]
    assert min(seen) > 0
    assert train([*child, "--seed", "1", "--out", str(tmp_path / "child")]) == 2
    error = capsys.readouterr().err
    counts = f"{seen[0]} validation and {seen[1]} test images of this run"
    assert f"{run}, whose weights this run begins with, was trained on {counts}" in error
    assert not (tmp_path / "child").exists()
    assert train([*child, "--out", str(tmp_path / "child")]) == 0
    assert "NOTE" not in capsys.readouterr().out
    assert run_of_weights(str(run / "best/model.safetensors")) == str(run / "best")
    assert run_of_weights(str(data / "x.pt")) == run_of_weights("lite0") == run_of_weights("") == ""
    with pytest.raises(UserError, match=r"(child|run/best), whose weights .* was trained on"):  # a parent's parent too
        check_parents(other, str(data), str(tmp_path / "child"))
    moved = shutil.copytree(data, tmp_path / "moved")
    with pytest.raises(UserError, match="was trained on"):
        check_parents(load_data(str(moved), Request(image_size=32, on_broken="skip", seed=1)), str(moved), str(run))
    added = data / "happy/00new.png"
    layouts.write_picture(added, 1)
    try:
        check_parents(load_data(str(data), Request(image_size=32, on_broken="skip")), str(data), str(run))
        assert f"NOTE: {data} has changed since {run} was trained on it" in capsys.readouterr().out
    finally:
        added.unlink()


def test_another_protocol_may_not_test_on_what_was_trained_on(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    actual, _ = evaluated(finished_run, tmp_path / "out", "--protocol", "paper")
    assert (actual["samples"], actual["own_data"]) == (35, True)
    evaluated(finished_run, tmp_path / "out", "--protocol", "paper", "--split", "validation", code=2)
    assert "--protocol paper: the run was trained on 7 images of this validation split" in capsys.readouterr().err


@pytest.mark.parametrize("cached", [False, True])
def test_broken_pictures_leave_before_the_draw(cached: bool, tmp_path: Path) -> None:
    data = broken_folders(tmp_path / "d")
    cache = str(tmp_path / "cache") if cached else ""

    def names(split: str, limit: int) -> set[str]:
        part = getattr(load_data(str(data), Request(on_broken="skip", limit=limit, cache=cache, image_size=24)), split)
        return {part.name(index) for index in range(len(part))}

    for split in ("train", "validation", "test"):
        assert names(split, 9) <= names(split, 0), split
    assert len(names("train", 9)) == 9, "as many as asked for, none of them broken"


def test_a_used_folder(own: tuple[Path, Path, set[str]], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run, _, _ = own
    evaluated(run, tmp_path / "out", "--samples", "1", "--tsne", "10")
    (tmp_path / "out/notes.txt").write_text("mine")
    assert {"samples.png", "vectors.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    evaluated(run, tmp_path / "out")
    assert not {"samples.png", "tsne.png", "tsne.csv"} & {path.name for path in (tmp_path / "out").iterdir()}
    assert (tmp_path / "out/notes.txt").read_text() == "mine"
    before = {path.name for path in run.iterdir()}
    evaluated(run, run, code=2)
    assert f"--out {run} holds something else (run)" in capsys.readouterr().err
    assert {path.name for path in run.iterdir()} == before
    assert main([str(run / "best"), *FEW]) == 0
    assert main([str(run / "last"), *FEW]) == 0
    assert {path.name for path in run.iterdir()} - before == {"evaluation-test", "evaluation-last-test"}


def test_a_report_shows_no_other_data(
    own: tuple[Path, Path, set[str]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = shutil.copytree(own[0], tmp_path / "run")
    other = layouts.class_folders(tmp_path / "other", {"": CLASSES})
    assert main([str(run), "--data", str(other), *FEW]) == 0
    assert not json.loads((run / "evaluation-test/metrics.json").read_text())["own_data"]
    assert html_report([str(run), "--device", "cpu"]) == 0
    assert json.loads((run / "evaluation-test/metrics.json").read_text())["own_data"]
    assert np.isfinite(json.loads((run / "evaluation-test/metrics.json").read_text())["accuracy"])


def test_other_data_with_other_classes_are_mapped_by_name(
    own: tuple[Path, Path, set[str]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Labels are the model's, whatever the folders' names; images of unknown classes are left out."""
    run, _, _ = own  # Happy, Sad, Fear
    names = {"Sadness": (2, 20), "contempt": (6, 20), "fearful": (4, 20)}
    data = layouts.class_folders(tmp_path / "other", {"train": names, "test": names})
    actual, files = evaluated(run, tmp_path / "out", "--data", data)
    output = capsys.readouterr().out
    assert "left out, as the model has no class Contempt: 18 of train, 2 of validation, 20 of test" in output
    assert "without images, though the model may predict them: Happy" in output
    assert actual["samples"] == 40
    assert {name: row["samples"] for name, row in actual["classes"].items()} == {"Happy": 0, "Sad": 20, "Fear": 20}
    with (tmp_path / "out/predictions.csv").open(newline="", encoding="utf-8") as file:
        assert {(row["class"], Path(row["name"]).parent.name) for row in csv.DictReader(file)} == {
            ("Sad", "Sadness"),
            ("Fear", "fearful"),
        }
    nothing = layouts.class_folders(tmp_path / "cats", {"": {"cat": (1, 9), "dog": (2, 9)}})
    evaluated(run, tmp_path / "out", "--data", nothing, code=2)
    assert "no name is the same" in capsys.readouterr().err
