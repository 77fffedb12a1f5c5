"""The model, its preprocessing and its checkpoints."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from adcorre import AdCorreLoss
from train.errors import UserError
from train.model import FaceClassifier, build_model
from train.run_folder import RunFolder, check_run_folder, find_checkpoint, load_trained, write_json
from train.settings import DataSettings, ModelSettings
from train.transforms import Preprocessing

TINY = ModelSettings(backbone="test_resnet", k=3, d=8)
NAMES = ["a", "b", "c", "d"]


def tiny() -> tuple[FaceClassifier, Preprocessing]:
    torch.manual_seed(0)
    return build_model(TINY, len(NAMES), 32)


def description(preprocessing: Preprocessing) -> dict:
    model = {"backbone": TINY.backbone, "k": TINY.k, "d": TINY.d, "dropout": TINY.dropout}
    return {"model": model, "class_names": NAMES, "preprocessing": preprocessing.as_dict()}


@pytest.mark.parametrize("backbone", ["test_resnet", "mobilenetv3_small_050", "legacy_xception"])
def test_any_backbone_gives_logits_and_embeddings(backbone: str) -> None:
    model, _ = build_model(ModelSettings(backbone=backbone, k=3, d=8), 4, 32)
    logits, embeddings = model.eval()(torch.rand(2, 3, 32, 32))
    assert logits.shape == (2, 4)
    assert embeddings.shape == (2, 3, 8)
    assert embeddings.norm(dim=-1).detach().numpy() == pytest.approx(1, abs=1e-5)


def test_xception_has_the_papers_parameters() -> None:
    model, preprocessing = build_model(ModelSettings(), 7, 64)
    buffers = sum(b.numel() for name, b in model.named_buffers() if "running" in name)
    assert sum(p.numel() for p in model.parameters()) + buffers == 24_545_839  # Table 11, k = 7
    assert (preprocessing.mean, preprocessing.std) == ((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    "backbone, message",
    [("resnet999", "no such model"), ("resnet10", "did you mean .*resnet10t"), ("", "no such model")],
)
def test_unknown_backbone_is_named(backbone: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_model(ModelSettings(backbone=backbone), 7, 32)


def test_images_that_do_not_fit_the_backbone() -> None:
    with pytest.raises(UserError, match="vit_tiny_patch16_224 does not take images of --image-size 32"):
        build_model(ModelSettings(backbone="vit_tiny_patch16_224"), 7, 32)


def test_memorised_batch_trains_to_near_zero_cross_entropy() -> None:
    torch.manual_seed(0)
    model, _ = build_model(ModelSettings(backbone="test_resnet", k=3, d=64), 4, 32)
    generator = torch.Generator().manual_seed(0)
    images, targets = torch.randn(24, 3, 32, 32, generator=generator), torch.arange(24) % 4
    loss_fn = AdCorreLoss(4)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    history = []
    for _ in range(100):
        output = loss_fn(*model(images), targets)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        history.append(float(output.ce))
    assert history[0] > 1
    assert np.mean(history[-5:]) < 0.03
    assert float(loss_fn.attention_map.weights().max()) < 0.01


def test_evaluation_preprocessing() -> None:
    ramp = np.tile(np.arange(0, 240, 5, dtype=np.uint8), (48, 1))
    preprocessing = Preprocessing(48, (0.5, 0.5, 0.25), (0.5, 0.25, 0.5))
    tensor = preprocessing.evaluation()(Image.fromarray(ramp).convert("RGB"))
    assert tensor.shape == (3, 48, 48)
    for channel, (mean, std) in enumerate(zip(preprocessing.mean, preprocessing.std, strict=True)):
        expected = (ramp / 255 - mean) / std
        assert tensor[channel].numpy() == pytest.approx(expected, abs=1e-6)
    assert Preprocessing(16, (0,) * 3, (1,) * 3).evaluation()(Image.new("RGB", (48, 30))).shape == (3, 16, 16)


@pytest.mark.parametrize("off", [False, True])
def test_training_augments_unless_switched_off(off: bool) -> None:
    settings = DataSettings(rotation=0, crop=1, contrast=0, brightness=0) if off else DataSettings()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8))
    preprocessing = Preprocessing(48, (0.5,) * 3, (0.5,) * 3)
    torch.manual_seed(0)
    first, second = (preprocessing.training(settings)(picture) for _ in range(2))
    assert torch.equal(first, second) == off
    assert torch.equal(first, preprocessing.evaluation()(picture)) == off
    torch.manual_seed(0)
    assert torch.equal(first, preprocessing.training(settings)(picture))


@pytest.mark.parametrize("flip", [False, True])
def test_flip_mirrors_half_of_the_images(flip: bool) -> None:
    settings = DataSettings(rotation=0, crop=1, contrast=0, brightness=0, flip=flip)
    preprocessing = Preprocessing(48, (0.5,) * 3, (0.5,) * 3)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8))
    plain = preprocessing.evaluation()(picture)
    torch.manual_seed(0)
    seen = [preprocessing.training(settings)(picture) for _ in range(40)]
    mirrored = sum(torch.equal(tensor, plain.flip(-1)) for tensor in seen)
    assert mirrored + sum(torch.equal(tensor, plain) for tensor in seen) == 40
    assert (10 <= mirrored <= 30) if flip else mirrored == 0


def test_checkpoint_rebuilds_the_model(tmp_path: Path) -> None:
    model, preprocessing = tiny()
    model(torch.rand(8, 3, 32, 32))  # moves BatchNorm's running statistics
    folder = RunFolder(tmp_path / "run", {})
    folder.save("best", model, description(preprocessing))
    images = torch.rand(4, 3, 32, 32)
    expected = model.eval()(images)
    for path in (tmp_path / "run", tmp_path / "run" / "best"):
        trained = load_trained(path)
        assert trained.class_names == tuple(NAMES)
        assert trained.preprocessing == preprocessing
        assert not trained.model.training
        assert all(torch.equal(one, other) for one, other in zip(trained.model(images), expected, strict=True))


def test_saving_again_replaces_the_checkpoint_and_leaves_nothing_else(tmp_path: Path) -> None:
    model, preprocessing = tiny()
    folder = RunFolder(tmp_path / "run", {})
    for epoch in (1, 2):
        nn.init.constant_(model.head.classifier.bias, epoch)
        folder.save("last", model, {**description(preprocessing), "epoch": epoch})
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == [".adcorre.json", ".lock", "last", "settings.json", "tensorboard", "validation"]
    assert folder.saved_epoch("last") == 2
    assert folder.saved_epoch("best") == 0
    trained = load_trained(tmp_path / "run", name="last")
    assert trained.description["epoch"] == 2
    assert (trained.model.head.classifier.bias == 2).all()


def test_equal_models_share_a_file_until_one_is_replaced(tmp_path: Path) -> None:
    model, preprocessing = tiny()
    folder = RunFolder(tmp_path / "run", {})
    last, best = (tmp_path / f"run/{name}/model.safetensors" for name in ("last", "best"))
    folder.save("best", model, description(preprocessing), same_as="last")  # not there: written
    folder.save("last", model, description(preprocessing))
    assert not last.samefile(best)
    folder.save("best", model, description(preprocessing), same_as="last")
    assert last.samefile(best)
    before = best.read_bytes()
    nn.init.constant_(model.head.classifier.bias, 7)
    folder.save("last", model, description(preprocessing))
    assert best.read_bytes() == before
    assert (load_trained(tmp_path / "run", name="last").model.head.classifier.bias == 7).all()


def test_a_kill_between_the_renames_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    model, preprocessing = tiny()
    RunFolder(tmp_path / "run", {}).save("last", model, description(preprocessing))
    (tmp_path / "run/last").rename(tmp_path / "run/last.replaced")
    (tmp_path / "run/last.partial").mkdir()
    assert find_checkpoint(tmp_path / "run", "last") == tmp_path / "run/last.replaced"


def test_damaged_checkpoints_are_named(tmp_path: Path) -> None:
    model, preprocessing = tiny()
    RunFolder(tmp_path / "run", {}).save("best", model, description(preprocessing))
    best = tmp_path / "run/best"
    weights = (best / "model.safetensors").read_bytes()
    (best / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match=f"{best}: cannot read the checkpoint"):
        load_trained(tmp_path / "run")
    (best / "model.safetensors").write_bytes(weights)
    shape = json.loads((best / "model.json").read_text())
    write_json(best / "model.json", {**shape, "class_names": NAMES[:3]})
    with pytest.raises(UserError, match="cannot read the checkpoint"):
        load_trained(tmp_path / "run")
    write_json(best / "model.json", {**shape, "format": 99})
    with pytest.raises(UserError, match="expected checkpoint format 1, got 99"):
        load_trained(tmp_path / "run")
    with pytest.raises(UserError, match="no checkpoint there"):
        load_trained(tmp_path)


def test_run_folders_are_not_overwritten_unasked(tmp_path: Path) -> None:
    assert check_run_folder(str(tmp_path / "new"), False) == tmp_path / "new"
    assert check_run_folder(str(tmp_path), False) == tmp_path  # empty
    assert check_run_folder("", False).parent == Path("runs")
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UserError, match="is not empty"):
        check_run_folder(str(tmp_path), False)
    with pytest.raises(UserError, match="holds no run"):
        check_run_folder(str(tmp_path), True)
    with pytest.raises(UserError, match="a file of that name"):
        check_run_folder(str(tmp_path / "thesis.txt"), True)
    (tmp_path / "settings.json").touch()  # anybody's
    with pytest.raises(UserError, match="holds no run"):
        check_run_folder(str(tmp_path), True)
    RunFolder(tmp_path / "run", {})
    assert check_run_folder(str(tmp_path / "run"), True) == tmp_path / "run"
