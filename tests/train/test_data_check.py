"""`python -m train.data check`: finds planted damage in datasets, and nothing in a clean one."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.train import layouts
from tests.train.conftest import even, write_fer2013_csv, write_folders
from train.data import find_data
from train.data.__main__ import main
from train.data.base import Request
from train.data.check import inspect
from train.data.fer2013 import OFFICIAL_COUNTS
from train.data.splitting import order_hint


def check_json(path: Path, capsys: pytest.CaptureFixture[str], code: int, *options: str) -> dict:
    assert main(["check", str(path), "--json", *options]) == code
    return json.loads(capsys.readouterr().out)


def kinds(content: dict) -> list[str]:
    return [finding["kind"] for finding in content["findings"]]


def clean(root: Path) -> Path:
    parts = {"train": {"x": (0, 6), "y": (1, 6)}, "test": {"x": (0, 2), "y": (1, 2)}}
    return layouts.class_folders(root, parts)


def test_a_clean_set_is_clean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = check_json(clean(tmp_path / "d"), capsys, 0)
    assert content["findings"] == []
    assert content["parts"] == {"train": {"x": 6, "y": 6}, "test": {"x": 2, "y": 2}}
    assert content["class_names"] == ["x", "y"]
    assert main(["check", str(tmp_path / "d")]) == 0
    text = capsys.readouterr().out
    assert "no problem found" in text
    assert "16 images decoded" in text


def test_equal_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = clean(tmp_path / "d")
    shutil.copy(root / "train/x/0.png", root / "train/x/again.png")  # within a part
    shutil.copy(root / "train/x/1.png", root / "test/x/leak.png")  # across parts
    shutil.copy(root / "train/x/2.png", root / "train/y/other.png")  # another label
    with Image.open(root / "train/x/3.png") as picture:  # the same pixels in another file format
        picture.save(root / "train/x/3.bmp")
    content = check_json(root, capsys, 1)
    assert kinds(content) == ["duplicates across parts", "conflicting labels", "duplicates"]
    across, conflicting, within = (finding["items"] for finding in content["findings"])
    assert across == ["train/x/1.png (x) = test/x/leak.png (x)"]
    assert conflicting == ["train/x/2.png (x) = train/y/other.png (y)"]
    assert len(within) == 3
    figures = content["figures"]
    assert (figures["duplicate_groups"], figures["images_in_them"]) == (4, 8)
    assert figures["across"] == {"train + test": 1}
    assert main(["check", str(root)]) == 1
    assert "equal images: 4 groups with 8 images in them, 1 with conflicting labels; 1 in train + test" in (
        capsys.readouterr().out
    )


def test_unreadable_images_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = clean(tmp_path / "d")
    (root / "train/x/0.png").write_bytes((root / "train/x/0.png").read_bytes()[:100])
    (root / "train/y/0.png").write_bytes(b"")
    content = check_json(root, capsys, 1)
    assert kinds(content) == ["unreadable"]
    assert [item.split(": ")[0] for item in content["findings"][0]["items"]] == [
        f"cannot read the image {root}/train/{name}/0.png" for name in "xy"
    ]


def test_long_lists_are_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = clean(tmp_path / "d")
    for number in range(12):
        (root / f"train/x/broken{number}.png").touch()
    assert main(["check", str(root)]) == 1
    output = capsys.readouterr()
    assert "and 2 more (--all lists them)" in output.out
    assert output.err.count("\n") == 1
    assert output.err.endswith("; to look at: unreadable\n")
    assert main(["check", str(root), "--all"]) == 1
    assert capsys.readouterr().out.count("broken") == 12


@pytest.mark.parametrize("layout", ["folders", "csv"])
def test_counts_beside_the_official_ones(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = (
        write_folders(tmp_path / "d", even(2, 1, 1))
        if layout == "folders"
        else write_fer2013_csv(tmp_path / "fer2013.csv", even(2, 1, 1))
    )
    content = check_json(root, capsys, 1)
    assert kinds(content) == ["counts"]
    assert content["official"]["Training"]["Disgust"] == 436
    assert "Training has 14 images (official 28,709)" in content["findings"][0]["message"]


def test_another_order_of_the_labels() -> None:
    """Alphabetical positions used as labels: the right counts under wrong names."""
    names = ("Neutral", "Happy", "Sad", "Surprise", "Fear", "Disgust", "Anger")
    alphabetical = sorted(range(7), key=lambda label: ("Anger", *sorted(set(names) - {"Anger"})).index(names[label]))
    wrong = {part: tuple(row[label] for label in alphabetical) for part, row in OFFICIAL_COUNTS.items()}
    hint = order_hint(wrong, OFFICIAL_COUNTS, names)
    assert hint.startswith(
        "the labels look like another order of the classes: in Training, Neutral has the count of Anger"
    )
    assert order_hint(OFFICIAL_COUNTS, OFFICIAL_COUNTS, names) == ""


def test_compound_raf_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = layouts.raf_original(tmp_path / "d", [("train_0001.jpg", 1), ("test_0001.jpg", 9)])
    assert main(["check", str(root)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "RAF-DB's compound set" in error
    assert error.count("\n") == 1


def test_missing_pictures_are_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [(f"train_{n:05d}.jpg", n) for n in range(1, 8)] + [("test_0001.jpg", 1)]
    root = layouts.raf_original(tmp_path / "d", lines)
    (root / "Image/aligned/train_00003_aligned.jpg").unlink()
    assert kinds(check_json(root, capsys, 1)) == ["missing", "absent classes", "absent classes", "counts"]


def test_many_processes_find_the_same(tmp_path: Path) -> None:
    root = layouts.class_folders(tmp_path / "d", {"": {"x": (0, 150), "y": (1, 150)}})
    shutil.copy(root / "x/0.png", root / "y/copy.png")
    (root / "x/9.png").touch()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(root / "x/black.png")
    whole = find_data(str(root), Request())
    alone, shared = (inspect(whole, processes) for processes in (1, 3))
    assert alone == shared
    assert alone[1]["conflicting_labels"] == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "expected one of check, crop, shard; got ''"),
        (["look"], "got 'look'"),
        (["check"], "required: PATH"),
        (["check", "/nowhere"], "no such file or folder"),
        (["check", "synthetic"], "drawn faces need no check"),
        (["check", "x", "--classes", "9"], "--classes 9: expected 0 to 8"),
        (["shard", "x", "y", "--samples-per-shard", "0"], "expected at least 1"),
        (["shard", "x", "y", "--validation-fraction", "2"], "--validation-fraction 2.0: expected 0.01 to 0.5"),
        (["crop", "/nowhere", "y"], "no such folder"),
        (["crop", "x", "y", "--margin", "-1"], "expected at least 0"),
        (["crop", "x", "y", "--margin", "inf"], "expected at most 1.79"),
        (["crop", "x", "y", "--score", "nan"], "expected at least 0"),
    ],
)
def test_mistakes_are_one_message(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "check", "crop", "shard"])
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [name, "--help"] if name else ["--help"]
    try:
        code = main(arguments)
    except SystemExit as left:
        code = int(left.code or 0)
    assert code == 0
    assert "usage: python -m train.data" in capsys.readouterr().out
