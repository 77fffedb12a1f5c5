"""--init-from, --freeze backbone and --lr-backbone: what a new run inherits, and its exact resume."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train import layouts
from tests.train.test_command import PLAIN, QUICK
from tests.train.trainer import assert_same, main, outcome, stop_after
from train.model import build_model
from train.optimization import build_optimizer
from train.settings import ModelSettings, OptimizerSettings

CHILD = (*PLAIN, "--batch-size", "8", "--epochs", "2", "--log-every", "1", "--device", "cpu")


def weights(run: Path, name: str = "best") -> dict[str, torch.Tensor]:
    return load_file(run / name / "model.safetensors")


def moved(run: Path, parent: Path) -> set[str]:
    """Which of "backbone" and "head" have a tensor that differs from the parent's."""
    child, original = weights(run, "last"), weights(parent)
    return {key.split(".")[0] for key in child if not torch.equal(child[key], original[key])}


def test_a_frozen_backbone_with_a_parents_weights_resumes_exactly(
    finished_run: Path, fer_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*CHILD, "--data", str(fer_folders), "--init-from", str(finished_run)]
    assert main([*command, "--freeze", "backbone", "--out", str(tmp_path / "whole")]) == 0
    output = capsys.readouterr().out
    assert f"weights of {finished_run / 'best'} (epoch " in output
    assert "of them trained" in output
    assert moved(tmp_path / "whole", finished_run) == {"head"}
    about = json.loads((tmp_path / "whole/settings.json").read_text())
    assert about["parent"]["run"] == str(finished_run / "best")
    assert about["parent"]["classifier"]
    assert (about["settings"]["model"]["k"], about["settings"]["data"]["image_size"]) == (2, 32), "the parent's"

    with pytest.MonkeyPatch.context() as patch:
        stop_after(8, patch)
        assert main([*command, "--freeze", "backbone", "--out", str(tmp_path / "run")]) == 128 + signal.SIGTERM
    torch.manual_seed(77)
    assert main(["--resume", str(tmp_path / "run")]) == 0
    assert_same(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))
    assert json.loads((tmp_path / "run/settings.json").read_text())["parent"] == about["parent"]


def test_a_backbones_own_rate_resumes_exactly(finished_run: Path, fer_folders: Path, tmp_path: Path) -> None:
    command = [*CHILD, "--data", str(fer_folders), "--init-from", str(finished_run), "--weight-decay", "0.1"]
    command += ["--optimizer", "adamw", "--schedule", "cosine"]
    own = ("--lr-backbone", "1e-5")
    assert main([*command, *own, "--out", str(tmp_path / "whole")]) == 0
    assert main([*command, "--out", str(tmp_path / "one-rate")]) == 0
    changes = {}
    for name in ("whole", "one-rate"):
        before, after = weights(finished_run), weights(tmp_path / name, "last")
        convolutions = [key for key in before if key.startswith("backbone.") and before[key].ndim == 4]
        changes[name] = max(float((after[key] - before[key]).abs().max()) for key in convolutions)
    assert 0 < changes["whole"] < 0.1 * changes["one-rate"], "the control has one rate for all"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(8, patch)
        assert main([*command, *own, "--out", str(tmp_path / "run")]) == 128 + signal.SIGTERM
    assert main(["--resume", str(tmp_path / "run")]) == 0
    assert_same(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


def test_groups_of_parameters() -> None:
    model, _ = build_model(ModelSettings("test_resnet", k=2, d=8), 7, 32)
    backbone = {id(parameter) for parameter in model.backbone.parameters()}
    for decay in (0.0, 0.1):
        settings = OptimizerSettings(lr=1e-2, lr_backbone=1e-3, weight_decay=decay)
        groups = build_optimizer(model, settings).param_groups
        assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
        for group in groups:
            inside = {id(parameter) in backbone for parameter in group["params"]}
            assert (inside, group["lr_scale"]) in (({True}, pytest.approx(0.1)), ({False}, 1.0))
    model.freeze_backbone()
    model.train()
    assert not model.backbone.training
    assert model.head.training
    [group] = build_optimizer(model, OptimizerSettings(lr_backbone=1e-3)).param_groups
    assert len(group["params"]) == len(list(model.head.parameters()))


def test_other_classes_and_other_models(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = layouts.class_folders(tmp_path / "data", {"": {"cat": (1, 9), "dog": (2, 9)}})
    command = [*CHILD, "--epochs", "1", "--data", str(data), "--init-from", str(finished_run)]
    assert main([*command, "--freeze", "backbone", "--out", str(tmp_path / "run")]) == 0
    assert "a new classifier, as its classes were Neutral, Happy" in capsys.readouterr().out
    child, original = weights(tmp_path / "run"), weights(finished_run)
    assert child["head.classifier.weight"].shape == (2, 16)
    assert all(torch.equal(child[key], original[key]) for key in child if key.startswith("backbone."))
    for options, message in (
        (("--k", "3"), "has --k 2, not 3"),
        (("--backbone", "resnet10t"), "has --backbone test_resnet, not resnet10t"),
        (("--init-from", str(data)), "no checkpoint there"),
    ):
        assert main([*command, *options, "--out", str(tmp_path / "other")]) == 2
        assert message in capsys.readouterr().err
    assert main([*QUICK, "--data", str(data), "--freeze", "backbone", "--out", str(tmp_path / "random")]) == 0
    assert "its weights stay random" in capsys.readouterr().out
