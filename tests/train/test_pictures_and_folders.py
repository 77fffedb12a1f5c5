"""Pictures of every kind, used folders, odd names: training, train.predict and the hub's classifier."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from train.data import Request, load_data
from train.data.labels import CLASS_NAMES
from train.hub import HubClassifier
from train.predict import main
from train.run_folder import load_trained


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def grey(seed: int, height: int = 40, width: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)


def test_pictures_are_read_as_in_training(finished_run: Path, tmp_path: Path) -> None:
    """One picture in every format: training, train.predict and HubClassifier see the very same pixels."""
    pixels = grey(6)
    folder = tmp_path / "d/x"
    (folder / "__MACOSX").mkdir(parents=True)
    (folder / ".ipynb_checkpoints").mkdir()
    (tmp_path / "d/y").mkdir()
    upright, turned = Image.fromarray(pixels), Image.Exif()
    turned[0x0112] = 6
    see_through = np.dstack([np.where(pixels == 255, 0, pixels), np.where(pixels == 255, 0, 255)]).astype(np.uint8)
    written = {
        "8bit.png": upright,
        "16bit.png": Image.fromarray(pixels.astype(np.uint16) * 257),
        "16bit.TIF": Image.fromarray(pixels.astype(np.uint16) * 257),
        "float.tiff": Image.fromarray(pixels.astype(np.float32) / 255),
        "colour.bmp": upright.convert("RGB"),
        "palette.gif": upright.convert("P"),
        "alpha.png": Image.fromarray(see_through, "LA"),  # transparent black where white is meant
        "lossless.webp": upright.convert("RGBA"),
    }
    for name, image in written.items():
        image.save(folder / name, **({"lossless": True} if name.endswith("webp") else {}))
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "phone.png", exif=turned)
    for name in ("web.jfif", "web.jpe", ".hidden.png", "._8bit.png", "__MACOSX/8bit.png", ".ipynb_checkpoints/a.png"):
        (folder / name).write_bytes((folder / "8bit.png").read_bytes())
    upright.save(tmp_path / "d/y/8bit.png")
    expected = {*written, "phone.png", "web.jfif", "web.jpe"}

    assert main([str(finished_run), str(folder), "--out", str(tmp_path / "out"), "--no-pictures"]) == 0
    predicted = {Path(row["path"]).name: row for row in rows(tmp_path / "out")}
    splits = load_data(str(tmp_path / "d"), Request())
    parts = (splits.train, splits.validation, splits.test)
    seen = {Path(part.name(i)): part.image(i) for part in parts for i in range(len(part))}
    seen_in_training = {path.name: image for path, image in seen.items() if path.parent.name == "x"}
    assert predicted.keys() == seen_in_training.keys() == expected

    trained = load_trained(finished_run)
    with torch.no_grad():
        logits = trained.model(trained.preprocessing.evaluation()(upright.convert("RGB"))[None])[0]
    right = pytest.approx(logits.softmax(1)[0].tolist(), abs=2e-6)
    hub = HubClassifier.of(trained)
    for name in expected:
        assert np.array_equal(np.asarray(seen_in_training[name]), np.dstack([pixels] * 3)), name
        assert [float(predicted[name][c]) for c in CLASS_NAMES] == right, name
        with Image.open(folder / name) as image:
            assert list(hub.train(name == "8bit.png").predict(image).values()) == right, name
    hub.train().model.backbone.eval()  # frozen layers, say: predict restores the mode of every module
    modes = [module.training for module in hub.modules()]
    with Image.open(folder / "8bit.png") as image:
        hub.predict(image)
    assert [module.training for module in hub.modules()] == modes
    assert set(modes) == {True, False}
    with pytest.raises(TypeError, match="image: expected a PIL image, as Image.open gives it; got str"):
        hub.predict("8bit.png")  # type: ignore[arg-type]


def test_a_used_folder(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faces = tmp_path / "faces"
    faces.mkdir()
    files = [faces / f"{number}[a].png" for number in range(3)]
    for number, file in enumerate(files):
        Image.fromarray(grey(number)).save(file)
    out = faces / "out"

    def predict(*arguments: str | Path, code: int = 0) -> None:
        assert main([str(finished_run), *map(str, arguments)]) == code

    predict(*files[:2], "--out", out)
    (out / "pictures/my own.png").write_bytes(b"mine")
    predict(files[2], "--out", out)
    assert {path.name for path in (out / "pictures").iterdir()} == {"2[a].png.png", "my own.png"}
    assert len(rows(out)) == 1
    (out / "pictures/my own.png").unlink()
    predict(files[2], "--out", out, "--no-pictures")
    assert not (out / "pictures").exists()
    predict(faces, "--out", out)
    predict(faces, "--out", out)
    assert len(rows(out)) == 3, "none of the annotated pictures, which lie in the folder too"

    own = tmp_path / "own"
    own.mkdir()
    (own / "predictions.csv").write_text("mine")
    capsys.readouterr()
    predict(*files, "--out", own, code=2)
    assert f"--out {own} is not empty and has no mark" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in own.iterdir()] == [("predictions.csv", "mine")]


def test_odd_names_and_shapes(finished_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    Image.fromarray(grey(0, 3000, 1)).save(folder / "tall.png")
    Image.fromarray(grey(1, 1, 3000)).save(folder / "wide.png")
    Image.fromarray(grey(2)).save(folder / os.fsdecode(b"\xff.png"))
    Image.fromarray(grey(3)).save(folder / "line\nbreak.png")
    out = tmp_path / "out"
    assert main([str(finished_run), str(folder), "--out", str(out)]) == 0
    assert sorted(Path(row["path"]).name for row in rows(out)) == [
        "\\udcff.png", "line\\nbreak.png", "tall.png", "wide.png",
    ]  # fmt: skip
    sizes = {}
    for path in (out / "pictures").iterdir():
        with Image.open(path) as image:
            sizes[path.name] = image.size
    bars = 22 * 7 + 8
    assert (sizes["tall.png.png"], sizes["wide.png.png"]) == ((320, 640 + bars), (320, 1 + bars))
    assert {row["picture"] for row in rows(out)} == {f"pictures/{name}" for name in sizes}
