"""`python -m train.predict`: pictures of every kind in, the model's own probabilities and annotated pictures out."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from train.analysis.predict import annotate, list_pictures
from train.data.labels import CLASS_NAMES
from train.predict import main
from train.run_folder import load_trained


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (50, 40)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six pictures, a broken one, and a file that is no picture."""
    folder = tmp_path / "faces"
    (folder / "inside").mkdir(parents=True)
    picture(0).save(folder / "a.png")
    picture(1, "L").save(folder / "b.jpg")
    picture(2, "RGBA").save(folder / "c.webp")
    picture(3, "P").save(folder / "inside/a.gif")
    picture(4).save(folder / "inside/a.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # upright once turned by 90 degrees
    picture(5).save(folder / "turned.png", exif=turned)
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("nothing to see")
    return folder


def test_probabilities_are_the_models(
    finished_run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--whole", "--out", str(out), "--batch-size", "4", "--device", "cpu"]
    assert main([str(finished_run), str(pictures), *options]) == 0
    captured = capsys.readouterr()
    assert f"left out: cannot read the image {pictures / 'broken.jpg'}" in captured.err
    assert f"{pictures}: 1 file (notes.txt) ignored: no image's suffix" in captured.err
    assert captured.err.count("\n") == 2
    assert "6 pictures, 1 left out" in captured.out
    actual = {row["path"]: row for row in rows(out / "predictions.csv")}
    assert len(actual) == 6
    trained = load_trained(finished_run)
    transform = trained.preprocessing.evaluation()
    for path, row in actual.items():
        with Image.open(path) as image:
            upright = image.convert("RGB")
            if Path(path).name == "c.webp":  # what is transparent is white
                upright = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
            if Path(path).name == "turned.png":
                upright = upright.transpose(Image.Transpose.ROTATE_270)
        with torch.no_grad():
            expected = trained.model(transform(upright)[None])[0].softmax(1)[0]
        assert [float(row[name]) for name in CLASS_NAMES] == pytest.approx(expected.tolist(), abs=2e-6)
        assert row["face"] == "whole"
        assert row["class"] == CLASS_NAMES[int(expected.argmax())]
    pictures = {path.relative_to(out / "pictures").as_posix() for path in (out / "pictures").rglob("*.png")}
    names = "a.png.png", "b.jpg.png", "c.webp.png", "inside/a.gif.png", "inside/a.png.png", "turned.png.png"
    assert pictures == {*names}
    with Image.open(out / "pictures/turned.png.png") as image:
        assert image.size == (320, 400 + 22 * 7 + 8)  # 40 x 50, upright, enlarged; one bar per class


def test_flip_is_the_mean_of_both(finished_run: Path, tmp_path: Path) -> None:
    image = picture(0)
    image.save(tmp_path / "one.png")
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "other.png")
    files = [str(tmp_path / name) for name in ("one.png", "other.png")]
    values = {}
    for name, options in (("plain", []), ("flip", ["--tta", "flip"])):
        out = tmp_path / name
        assert main([str(finished_run), *files, "--out", str(out), "--no-pictures", "--whole", *options]) == 0
        assert not (out / "pictures").exists()
        values[name] = np.array([[float(row[c]) for c in CLASS_NAMES] for row in rows(out / "predictions.csv")])
    np.testing.assert_allclose(values["flip"], values["plain"].mean(0, keepdims=True).repeat(2, 0), atol=3e-6)


def test_faces_are_found_in_pictures(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each row is of one face's pixels; a box much smaller than the largest is left out."""
    boxes = {100: [(10.0, 10.0, 20.0, 20.0), (40.0, 30.0, 40.0, 40.0), (0.0, 0.0, 5.0, 5.0)], 70: [(0, 0, 50, 50)]}
    monkeypatch.setattr("train.data.crop.haar", lambda: lambda pixels: boxes.get(pixels.shape[1], []))
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, size in (("group.png", (100, 80)), ("one.png", (70, 60)), ("wall.png", (90, 70)), ("crop.png", (64, 64))):
        picture(1, size=size).save(photos / name)
    out = tmp_path / "out"
    assert main([str(finished_run), str(photos), "--out", str(out), "--margin", "0", "--batch-size", "2"]) == 0
    captured = capsys.readouterr()
    assert captured.err == f"no face seen: {photos / 'wall.png'}\n"
    assert "4 pictures, 4 faces, none seen in 1 of them, taken whole;" in captured.out
    actual = rows(out / "predictions.csv")
    assert [(Path(row["path"]).name, row["face"]) for row in actual] == [
        ("crop.png", "whole"),
        ("group.png", "40 30 80 70"),
        ("group.png", "10 10 30 30"),
        ("one.png", "0 0 50 50"),
        ("wall.png", "none seen"),
    ]
    trained = load_trained(finished_run)
    with Image.open(photos / "group.png") as image, torch.no_grad():
        pixels = trained.preprocessing.evaluation()(image.convert("RGB").crop((10, 10, 30, 30)))
        expected = trained.model(pixels[None])[0].softmax(1)[0]
    assert [float(actual[2][name]) for name in CLASS_NAMES] == pytest.approx(expected.tolist(), abs=2e-6)
    assert [row["picture"] for row in actual] == [
        f"pictures/{n}.png" for n in ("crop.png", "group.png", "group.png.face2", "one.png", "wall.png")
    ]
    with Image.open(out / "pictures/group.png.face2.png") as image:
        assert image.convert("RGB").getpixel((32, 60)) == (0xD5, 0x5E, 0), (
            "the frame, in the picture enlarged 3.2 times"
        )


def test_pictures_of_one_name_do_not_replace_each_other(tmp_path: Path) -> None:
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        picture(0).save(tmp_path / folder / "face.png")
    places = [tmp_path / "one", tmp_path / "other", tmp_path / "one/face.png"]
    names = [name for _, name in list_pictures(places, tmp_path / "out")]
    assert names == ["face.png", "face-2.png", "face-3.png"]


def test_the_likeliest_class_has_the_longest_bar() -> None:
    picture = np.asarray(
        annotate(Image.new("RGB", (48, 48), "gray"), ("Happy", "Sad", "A very long name"), [0.2, 0.7, 0.1])
    )
    strong, weak = (np.all(picture == colour, axis=2) for colour in ((0, 0x72, 0xB2), (0x8F, 0xB8, 0xD3)))
    assert picture.shape[:2] == (320 + 3 * 22 + 8, 320)
    bars = [strong.sum(1).max(), weak[320 : 320 + 28].sum(1).max(), weak[320 + 45 :].sum(1).max()]
    assert bars == pytest.approx([0.7 * 172, 0.2 * 172, 0.1 * 172], abs=2)
    assert strong[320 + 28 : 320 + 50].any()
    assert not strong[: 320 + 28].any()


def test_mistakes(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    picture(0).save(tmp_path / "face.png")
    for run, images, message in (
        (finished_run, "nowhere.png", "no such file or folder"),
        (finished_run, "empty", "no pictures in this folder"),
        (finished_run, "broken.png", "none of 1 pictures could be read"),
        (tmp_path / "empty", "face.png", "no checkpoint there"),
    ):
        assert main([str(run), str(tmp_path / images), "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ")
        assert message in error
