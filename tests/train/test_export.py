"""`python -m train.export`: an exported model gives PyTorch's logits wherever it is loaded."""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from train.analysis import export
from train.data.labels import CLASS_NAMES
from train.export import main
from train.hub import HubClassifier, describe_loss
from train.run_folder import load_trained


def images(n: int) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(7))


def expected(run: Path, values: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and embeddings of RGB images with values 0 to 1."""
    trained = load_trained(run)
    mean, std = (torch.tensor(x)[:, None, None] for x in (trained.preprocessing.mean, trained.preprocessing.std))
    with torch.no_grad():
        logits, embeddings = trained.model((values - mean) / std)
    return logits, embeddings


def test_onnx(finished_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    assert main([str(finished_run), str(tmp_path / "out"), "--to", "onnx"]) == 0
    captured = capfd.readouterr()
    assert "of PyTorch's on batches of 1, 2, 5" in captured.out
    assert (captured.out + captured.err).count("\n") == 1  # no exporter's chatter
    assert logging.getLogger("torch.onnx").isEnabledFor(logging.WARNING)
    session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx", providers=["CPUExecutionProvider"])
    for n in (1, 3, 8):
        logits, embeddings = session.run(["logits", "embeddings"], {"images": images(n).numpy()})
        expected_outputs = expected(finished_run, images(n))
        np.testing.assert_allclose(logits, expected_outputs[0].numpy(), atol=1e-4)
        np.testing.assert_allclose(embeddings, expected_outputs[1].numpy(), atol=1e-4)
    about = json.loads((tmp_path / "out/model.json").read_text())
    assert about["class_names"] == list(CLASS_NAMES)
    assert about["input"] == {
        "name": "images",
        "shape": ["batch", 3, 32, 32],
        "dtype": "float32",
        "values": "RGB, 0 to 1",
    }
    assert about["largest difference of logits"] < 1e-4


def test_an_opset_that_was_not_written_is_refused(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx

    written = torch.onnx.export

    def export(*arguments: Any, opset_version: int, **options: Any) -> Any:
        """Writes opset 18 whatever is requested, as PyTorch does when its converter fails."""
        return written(*arguments, opset_version=18, **options)

    assert main([str(finished_run), str(tmp_path / "newer"), "--to", "onnx", "--opset", "20"]) == 0
    [opset] = [entry.version for entry in onnx.load(tmp_path / "newer/model.onnx").opset_import if not entry.domain]
    assert opset == 20
    capsys.readouterr()
    monkeypatch.setattr(torch.onnx, "export", export)
    assert main([str(finished_run), str(tmp_path / "out"), "--to", "onnx", "--opset", "13"]) == 2
    assert capsys.readouterr().err == "error: --opset 13: PyTorch wrote opset 18 for this model; choose that one\n"
    assert not (tmp_path / "out").exists()
    assert main([str(finished_run), str(tmp_path / "out"), "--to", "onnx", "--opset", "0"]) == 2


def test_torch_export(finished_run: Path, tmp_path: Path) -> None:
    assert main([str(finished_run), str(tmp_path / "out"), "--to", "torch_export"]) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.export.load(tmp_path / "out/model.pt2").module()
    for n in (1, 3, 8):
        logits, embeddings = module(images(n))
        expected_outputs = expected(finished_run, images(n))
        torch.testing.assert_close(logits, expected_outputs[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(embeddings, expected_outputs[1], atol=1e-4, rtol=0)


def test_hub_folder(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([str(finished_run), str(tmp_path / "model"), "--to", "hub"]) == 0
    folder = tmp_path / "model"
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    model = HubClassifier.from_pretrained("model").eval()  # by its local path, as the card says
    trained = load_trained(finished_run)
    face = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8))
    actual = model.predict(face)
    with torch.no_grad():
        logits = trained.model(trained.preprocessing.evaluation()(face)[None])[0][0]
    assert list(actual) == list(CLASS_NAMES)
    assert list(actual.values()) == pytest.approx(logits.softmax(0).tolist(), abs=1e-6)
    assert torch.equal(model(images(2))[0], trained.model(images(2))[0])

    card = huggingface_hub.ModelCard.load(folder / "README.md")
    results = json.loads((finished_run / "results.json").read_text())["test"]
    figures = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert figures == {"accuracy": results["accuracy"], "average_accuracy": results["average_accuracy"]}
    assert card.data.pipeline_tag == "image-classification"
    assert f"accuracy {100 * results['accuracy']:.2f} %" in card.text
    assert "test split, 21 images" in card.text
    assert "# Facial expressions: test_resnet, CE + 0.5 (FD + MD + ED)\n" in card.text
    for place in (str(finished_run.parent), str(tmp_path), "/tmp", str(Path.home())):
        assert place not in card.content
    assert str(finished_run) not in (folder / "config.json").read_text()


def test_the_card_names_the_loss() -> None:
    plain = {"objective": "adcorre", "components": [], "ce_weight": "none", "logit_adjustment": 0.0, "lambd": 0.5}
    assert describe_loss(plain) == "CE"
    assert describe_loss(plain | {"objective": "island"}) == "CE and island loss"
    adjusted = {"components": ["nfd", "md"], "logit_adjustment": 1.0, "ce_weight": "effective"}
    assert describe_loss(plain | adjusted) == "class-balanced logit-adjusted CE + 0.5 (NFD + MD)"
    assert describe_loss(plain | {"ce_weight": [1.0, 2.0]}) == "weighted CE"
    assert describe_loss(plain | {"components": {"fd": 1.0, "md": 0.3}}) == "CE + 0.5 (FD + 0.3 MD)"


def test_a_model_that_differs_is_not_left_behind(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Wrong(export.ExportedModel):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            logits, embeddings = super().forward(images)
            return logits + 2e-4 * torch.compiler.is_exporting(), embeddings

    monkeypatch.setattr(export, "ExportedModel", Wrong)
    assert main([str(finished_run), str(tmp_path / "out"), "--to", "torch_export"]) == 2
    assert "logits differ by 0.0002 from PyTorch's" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_backbone_that_cannot_be_exported(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Unfollowable(export.ExportedModel):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(images + float(images.sum() > 0))

    monkeypatch.setattr(export, "ExportedModel", Unfollowable)
    assert main([str(finished_run), str(tmp_path / "out"), "--to", "torch_export"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --to torch_export: test_resnet cannot be exported: ")
    assert error.count("\n") == 1


def test_mistakes(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "something").touch()
    for arguments, message in (
        ((finished_run, tmp_path, "--to", "hub"), "expected a new or an empty folder"),
        ((finished_run, tmp_path / "something", "--to", "onnx"), "expected a new or an empty folder"),
        ((tmp_path / "nowhere", tmp_path / "out", "--to", "onnx"), "no checkpoint there"),
        ((finished_run, tmp_path / "out", "--to", "paper"), "invalid choice: 'paper'"),
        ((finished_run, tmp_path / "out"), "the following arguments are required: --to"),
    ):
        assert main([*map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1


def test_normalization_is_inside(finished_run: Path) -> None:
    deployed = export.ExportedModel(load_trained(finished_run)).eval()
    assert isinstance(deployed, nn.Module)
    torch.testing.assert_close(deployed(images(3))[0], expected(finished_run, images(3))[0])
