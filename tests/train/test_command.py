"""`python -m train` from end to end at tiny size, and its errors for users' mistakes."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tqdm import tqdm

from tests.train.conftest import even, write_folders
from train.__main__ import main
from train.checkpoint import read_checkpoint
from train.data import Request, load_data
from train.data.labels import CLASS_NAMES
from train.data.loading import evaluation_batches
from train.evaluation import Evaluation, evaluate
from train.run_folder import load_trained

Train = Callable[..., subprocess.CompletedProcess[str]]
TINY = ("--backbone", "test_resnet", "--k", "2", "--d", "8", "--image-size", "32", "--batch-size", "16")
PLAIN = ("--amp", "none", "--channels-last", "no")  # nothing to measure first
QUICK = (*TINY, *PLAIN, "--epochs", "1", "--log-every", "1", "--device", "cpu")


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def evaluate_best(run: Path, data: Path, split: str) -> Evaluation:
    """The best checkpoint, rebuilt from its folder alone, on a split of the data."""
    trained = load_trained(run)
    part = getattr(load_data(str(data), Request()), split)
    assert trained.class_names == part.class_names
    batches = evaluation_batches(part, trained.preprocessing.evaluation(), 5, 0, False)
    return evaluate(trained.model, batches, trained.class_names, torch.device("cpu"))


def test_fer_folders_end_to_end(
    train: Train, fer_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = ("--epochs", "3", "--log-every", "2", "--rotation", "0", "--lr", "0.003", "--lr-decay", "0.1")
    done = train("--data", fer_folders, "--out", run, *TINY, *options)
    assert "FER-2013 folders" in done.stdout
    assert "does not match FER-2013" in done.stdout
    assert "test (21 images)" in done.stdout
    assert all(line.startswith("adcorre: ") for line in done.stderr.splitlines())  # of a first use of Numba
    step_lines = [line for line in done.stdout.splitlines() if "  step " in line]
    assert len(step_lines) == 4  # 42 images in batches of 16: 3 steps per epoch
    for figure in ("ce", "fd", "md", "ed", "nfd", "mean weight"):
        assert all(f"  {figure} " in line for line in step_lines)

    names = {path.name for path in run.iterdir()}
    assert names >= {"settings.json", "steps.csv", "epochs.csv", "last", "best", "results.json", "tensorboard"}
    assert names >= {"test-confusion.csv", "test-confusion.png", "test-per-class.csv"}
    assert len(list((run / "validation").iterdir())) == 3
    assert len(list((run / "checkpoints").iterdir())) == 1
    assert list((run / "tensorboard").glob("events.*"))
    settings = json.loads((run / "settings.json").read_text())
    assert settings["data"] == {
        "layout": "FER-2013 folders",
        "class_names": list(CLASS_NAMES),
        "images": {"train": 42, "validation": 14, "test": 21},
        "fingerprints": settings["data"]["fingerprints"],
    }
    assert settings["settings"]["data"]["rotation"] == 0
    assert settings["settings"]["loss"]["lambd"] == 0.5
    assert settings["settings"]["run"]["device"] == "cpu"

    epochs = rows(run / "epochs.csv")
    assert [row["epoch"] for row in epochs] == ["1", "2", "3"]
    rates = [float(row["lr"]) for row in rows(run / "steps.csv")]
    assert rates == pytest.approx([0.003 / (1 + 0.1 * step) for step in (1, 3, 5, 7)])  # of steps 2, 4, 6, 8
    accuracies = [float(row["validation_accuracy"]) for row in epochs]
    results = json.loads((run / "results.json").read_text())
    assert results["validation"]["accuracy"] == max(accuracies) == accuracies[results["epoch"] - 1]
    assert results["validation"]["samples"] == 14
    assert results["test"]["samples"] == 21
    assert [row[0] for row in csv.reader((run / "test-confusion.csv").open())][1:] == list(CLASS_NAMES)

    description = json.loads((run / "best/model.json").read_text())
    assert description["epoch"] == results["epoch"]
    assert description["class_names"] == list(CLASS_NAMES)
    assert evaluate_best(run, fer_folders, "validation").accuracy == max(accuracies)
    assert evaluate_best(run, fer_folders, "test").nll == pytest.approx(results["test"]["nll"])
    state = read_checkpoint(run)
    assert (state["epoch"], state["done"], state["step"]) == (4, 0, 9)
    assert state["loss"]["attention_map.counts"].shape == (5, 2, 7)
    assert set(load_file(run / "last/model.safetensors")) == set(load_trained(run).model.state_dict())

    assert main(["--data", str(fer_folders), "--out", str(run), *QUICK]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --out {run} is not empty")
    assert error.count("\n") == 1


def test_drawn_faces_end_to_end(train: Train, tmp_path: Path) -> None:
    done = train(*QUICK, "--limit", "28", cwd=tmp_path)
    [run] = (tmp_path / "runs").iterdir()
    assert "synthetic" in done.stdout
    results = json.loads((run / "results.json").read_text())
    assert results["test"]["samples"] == 28
    assert json.loads((run / "settings.json").read_text())["settings"]["data"]["data"] == "synthetic"


def test_learns_a_small_dataset_from_csv(fer_csv: Path, tmp_path: Path) -> None:
    """Accuracy far above chance (1/7) on waves that are separable by their spectrum; the paper's protocol."""
    options = ("--lr", "0.003", "--rotation", "0", "--crop", "1", "--dropout", "0", "--d", "32")
    run = ("--data", str(fer_csv), "--out", str(tmp_path / "run"), *TINY, *options, "--device", "cpu")
    assert main([*run, "--epochs", "12", "--protocol", "paper", "--validation-fraction", "0.2"]) == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["test"]["samples"] == 35
    assert results["validation"]["samples"] == 7
    assert results["test"]["accuracy"] > 0.6


def test_a_terminal_gets_a_bar_instead_of_lines(
    fer_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class EveryStep(tqdm):
        """tqdm leaves out what comes within 0.1 s of the line before: a fast machine's whole epoch."""

        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, mininterval=0, **named)

    monkeypatch.setattr("train.bars.tqdm", EveryStep)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["--data", str(fer_folders), "--out", str(tmp_path / "run"), *QUICK]) == 0
    bars = [
        line for line in capsys.readouterr().out.replace("\n", "\r").split("\r") if "/3 [" in line and " ce " in line
    ]
    for figure in ("ce", "fd", "md", "ed", "nfd", "weight", "acc"):
        assert f" {figure} " in bars[-1]


def test_same_seed_same_weights(fer_folders: Path, tmp_path: Path) -> None:
    def weights(name: str, seed: int, *options: str) -> bytes:
        run = ("--data", str(fer_folders), "--out", str(tmp_path / name), *QUICK, "--seed", str(seed), *options)
        assert main(run) == 0
        return (tmp_path / name / "last/model.safetensors").read_bytes()

    first = weights("a", 0)
    assert weights("b", 0) == first
    assert weights("c", 1) != first
    assert weights("d", 0, "--workers", "1") == weights("e", 0, "--workers", "1")


@pytest.mark.parametrize("workers", ["0", "1"])
def test_broken_image_ends_the_run_with_its_name(
    workers: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_folders(tmp_path / "data", even(2, 1, 1))
    broken = data / "train/fear/Training_00001.jpg"
    broken.write_bytes(b"no picture")
    assert main(["--data", str(data), "--out", str(tmp_path / "run"), *QUICK, "--workers", workers]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: cannot read the image {broken}")
    assert captured.err.count("\n") == 1


def test_loss_that_is_not_finite_ends_the_run(
    fer_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ("--data", str(fer_folders), "--out", str(tmp_path / "run"), *QUICK)
    assert main([*run, "--lr", "1e30", "--epochs", "3"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the loss is no longer finite (epoch 1")
    assert "--lr" in error
    assert main([*run, "--lr", "1e30", "--epochs", "3", "--log-every", "1000", "--overwrite"]) == 2
    assert "no longer finite" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--data", "nowhere"), "--data nowhere: no such file or folder"),
        (("--backbone", "resnet999"), "no such model"),
        (("--image-size", "8"), "--image-size 8: expected at least 16"),
        (("--protocol", "paper"), "--protocol paper is for FER-2013"),
        (("--ce-weight", "1,2,3"), "--ce-weight: expected 7 numbers (Neutral, Happy,"),
        (("--backend", "triton"), "--backend triton:"),
        (("--out", "."), "--out . is not empty"),
        pytest.param(
            ("--device", "cuda"),
            "--device cuda: this PyTorch sees no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_mistakes_are_one_message(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    assert main([*QUICK, "--limit", "14", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "runs").exists()


def test_exit_code_of_a_bad_option(train: Train) -> None:
    done = train("--epochs", "none", code=2)
    assert done.stderr == "error: argument --epochs: invalid int value: 'none' (see python -m train --help)\n"
    assert done.stdout == ""


def test_pretrained_weights_without_a_network(train: Train, tmp_path: Path) -> None:
    done = train(*QUICK, "--limit", "14", "--pretrained", "--backbone", "resnet10t", cwd=tmp_path, code=2)
    assert done.stderr.startswith("error: --pretrained: timm cannot get the weights of resnet10t; is there a network?")
    assert done.stderr.count("\n") == 1
