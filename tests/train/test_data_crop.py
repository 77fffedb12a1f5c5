"""Faces cut out of pictures: the largest one, with a margin, whichever detector finds it."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.train import layouts
from train.data import crop as cropping
from train.data.__main__ import main
from train.data.crop import CASCADE, Box, face_box, haar, yunet
from train.data.synthetic.dataset import SyntheticFaces
from train.errors import UserError


def finds(*boxes: Box) -> cropping.Detector:
    return lambda pixels: list(boxes)


def test_the_largest_face_with_its_margin_inside_the_picture() -> None:
    picture = Image.new("RGB", (200, 100))
    small, large = (10.0, 10.0, 20.0, 20.0), (100.0, 20.0, 40.0, 50.0)
    assert face_box(picture, finds(small, large), 0.0) == (100, 20, 140, 70)
    assert face_box(picture, finds(large, small), 0.1) == (96, 15, 144, 75)
    assert face_box(picture, finds((180.0, 80.0, 40.0, 40.0)), 0.1) == (176, 76, 200, 100)
    assert face_box(picture, finds(), 0.1) is None
    assert face_box(picture, finds((10.0, 10.0, 0.0, 5.0)), 0.1) is None
    assert face_box(picture, finds((300.0, 10.0, 20.0, 20.0)), 0.0) is None, "outside"


def test_large_pictures_are_looked_at_smaller() -> None:
    seen: list[Sequence[int]] = []

    def detect(pixels: np.ndarray) -> list[Box]:
        seen.append(pixels.shape)
        return [(64.0, 32.0, 128.0, 64.0)]

    assert face_box(Image.new("RGB", (2560, 1280)), detect, 0.0) == (128, 64, 384, 192)
    assert seen == [(640, 1280, 3)]


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A white square on black is a face here."""

    def detect(pixels: np.ndarray) -> list[Box]:
        rows, columns = np.nonzero(pixels[:, :, 0] > 200)
        if not len(rows):
            return []
        return [(columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)]

    monkeypatch.setattr(cropping, "haar", lambda: detect)
    folder = tmp_path / "in"
    (folder / "happy").mkdir(parents=True)
    for name in ("happy/a.png", "happy/a.bmp", "happy/b.png"):
        pixels = np.zeros((60, 80), np.uint8)
        pixels[20:40, 30:50] = 255
        Image.fromarray(pixels).save(folder / name)
    Image.new("L", (40, 40)).save(folder / "happy/dark.png")
    (folder / "happy/torn.png").write_bytes((folder / "happy/b.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_the_command(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["crop", str(pictures), str(out), "--margin", "0"]) == 1
    output = capsys.readouterr().out
    assert "3 of 5 pictures cropped" in output
    assert "without a face: 1 picture (happy/dark.png)" in output
    assert f"cannot read the image {pictures}/happy/torn.png" in output
    written = sorted(file.relative_to(out).as_posix() for file in out.rglob("*.*"))
    assert written == ["happy/a.png", "happy/a.png.png", "happy/b.png"], "a.bmp and a.png both"
    with Image.open(out / "happy/b.png") as face:
        assert face.size == (20, 20)
        assert np.asarray(face).min() == 255
    for name in ("dark.png", "torn.png"):
        (pictures / "happy" / name).unlink()
    assert main(["crop", str(pictures), str(tmp_path / "clean")]) == 0


def test_invalid_output_folders(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crop", str(pictures), str(pictures / "out")]) == 2
    assert "lies in" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").touch()
    assert main(["crop", str(pictures), str(tmp_path / "full")]) == 2
    assert "is there already and not empty" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    assert main(["crop", str(tmp_path / "none"), str(tmp_path / "new")]) == 2
    assert "no picture in it" in capsys.readouterr().err


HAS_CASCADE = hasattr(cv2, "CascadeClassifier") and (Path(cv2.data.haarcascades) / CASCADE).is_file()


@pytest.mark.skipif(not HAS_CASCADE, reason="this OpenCV comes without the cascade")
def test_the_cascade_of_opencvs_wheel() -> None:
    """It detects real faces; it finds drawn ones sometimes, and none in a gray picture."""
    faces = SyntheticFaces("test", size=160, count=30)
    actual = [face_box(faces.image(index), haar(), 0.0) for index in range(30)]
    assert sum(box is not None for box in actual) >= 1
    assert face_box(Image.new("RGB", (160, 160), "grey"), haar(), 0.0) is None


def test_an_opencv_without_the_cascade_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.data.crop.CASCADE", "no-such-file.xml")
    with pytest.raises(UserError, match=r"comes without the Haar cascade: give YuNet's file by --detector"):
        haar()


def test_files_that_are_no_yunet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--detector .*missing\.onnx: no such file"):
        yunet(tmp_path / "missing.onnx", 0.6)
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(UserError, match="not a network that OpenCV"):
        yunet(tmp_path / "text.onnx", 0.6)


def test_yunets_answers_become_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV gives rows of x, y, width, height, ten landmark coordinates and a score, or None."""

    class Network:
        def setInputSize(self, size: tuple[int, int]) -> None:
            self.size = size

        def detect(self, pixels: np.ndarray) -> tuple[int, np.ndarray | None]:
            assert self.size == (pixels.shape[1], pixels.shape[0])
            assert pixels[0, 0].tolist() == [3, 2, 1], "blue first"
            face = np.array([[4, 6, 8, 10, *[0] * 10, 0.9]], np.float32)
            return 1, face if pixels.shape[0] > 20 else None

    monkeypatch.setattr(cv2.FaceDetectorYN, "create", lambda *arguments: Network())
    file = tmp_path / "yunet.onnx"
    file.touch()
    detect = yunet(file, 0.6)
    assert face_box(Image.new("RGB", (60, 40), (1, 2, 3)), detect, 0.0) == (4, 6, 12, 16)
    assert face_box(Image.new("RGB", (60, 20), (1, 2, 3)), detect, 0.0) is None


def test_cropped_folders_are_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cropping, "haar", lambda: lambda pixels: [(2.0, 2.0, 20.0, 20.0)])
    root = layouts.class_folders(
        tmp_path / "d", {"train": {"x": (0, 3), "y": (1, 3)}, "test": {"x": (0, 1), "y": (1, 1)}}
    )
    assert main(["crop", str(root), str(tmp_path / "faces")]) == 0
    assert main(["check", str(tmp_path / "faces")]) == 0
