"""Tables as Excel, Notepad and pandas save them, and folders as macOS and notebooks leave them."""

import csv
import errno
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.train import layouts
from tests.train.conftest import even, write_fer2013_csv, write_folders, write_icml_csv
from tests.train.test_command import QUICK
from tests.train.test_data_layouts import LINES, OLD, load, refused
from train.__main__ import main as train
from train.data import Request, find_data
from train.data.base import class_counts
from train.data.fer2013 import OFFICIAL_COUNTS, is_folders
from train.data.ferplus import COLUMNS
from train.data.tables import read_table
from train.errors import UserError
from train.owned_folder import prepare


def resaved(file: Path, encoding: str = "utf-8", **how: object) -> None:
    """The table written again: `index` adds pandas's column, the rest goes to csv.writer."""
    text = file.read_text()
    if file.suffix == ".csv":
        index = how.pop("index", False)
        rows = list(csv.reader(io.StringIO(text)))
        if index:
            rows = [[str(number - 1) if number else "", *row] for number, row in enumerate(rows)]
        with io.StringIO() as lines:
            csv.writer(lines, **how).writerows(rows)  # type: ignore[arg-type]
            text = lines.getvalue()
    file.write_bytes(text.encode(encoding))


SAVED = {
    "Excel": {"encoding": "utf-8-sig"},
    "Notepad": {"encoding": "utf-16"},
    "pandas": {"index": True},
    "quotes": {"quoting": csv.QUOTE_ALL, "encoding": "utf-8-sig"},
    "semicolons": {"delimiter": ";", "encoding": "utf-8-sig"},
}


def fer(root: Path) -> list[Path]:
    return [write_fer2013_csv(root / "fer2013.csv", even(2, 1, 1))]


def icml(root: Path) -> list[Path]:
    return [write_icml_csv(root / "icml_face_data.csv", even(2, 1, 1))]


def ferplus(root: Path) -> list[Path]:
    [pictures] = fer(root)
    with pictures.open() as lines, (root / "fer2013new.csv").open("w", newline="") as file:
        usages = [row["Usage"] for row in csv.DictReader(lines)]
        rows = [
            [use, f"fer{n}.png", *("9" if n % 7 == at else "0" for at in range(10))] for n, use in enumerate(usages)
        ]
        csv.writer(file).writerows([COLUMNS, *rows])
    return [pictures, root / "fer2013new.csv"]


def raf(root: Path) -> list[Path]:
    layouts.raf_original(root, LINES, aligned=False)
    return [root / "EmoLabel/list_patition_label.txt", *sorted((root / "boundingbox").iterdir())]


def raf_numbered(root: Path) -> list[Path]:
    layouts.raf_numbered(root)
    (root / "DATASET/train/1/train_00010_aligned.jpg").rename(root / "DATASET/train/2/train_00010_aligned.jpg")
    return [root / "train_labels.csv", root / "test_labels.csv"]


def affectnet(root: Path) -> list[Path]:
    layouts.affectnet_old(root, OLD)
    return [root / "training.csv", root / "validation.csv"]


@pytest.mark.parametrize("saved", SAVED)
@pytest.mark.parametrize("write", [fer, icml, ferplus, raf, raf_numbered, affectnet])
def test_a_table_saved_again_is_the_same_table(write: Callable[[Path], list[Path]], saved: str, tmp_path: Path) -> None:
    files = write(tmp_path)
    before = load(tmp_path)
    for file in files:
        resaved(file, **SAVED[saved])  # type: ignore[arg-type]
    after = load(tmp_path)
    assert after.report == before.report
    for split in ("train", "validation", "test"):
        assert getattr(after, split).fingerprint == getattr(before, split).fingerprint


def test_missing_columns_are_named(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    for text, message in (
        ("a,b\n1,2\n", "expected the columns a,c; there is no c"),
        ("a,c,b\n1,2,3\n\n4\n", r"t.csv, line 4: expected 3 cells, got 1"),
        ("a,c\n1," + "2" * 200_000, "expected a table of comma-separated values: field larger"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            list(read_table(file, ("a", "c")))


def test_csv_copies_with_other_columns_and_cells(tmp_path: Path) -> None:
    """Each is the same table: with another column, capitals or order, pixels as a list or in quotes."""
    file = write_fer2013_csv(tmp_path / "fer2013.csv", even(2, 1, 1))
    [_, *rows] = csv.reader(io.StringIO(file.read_text()))
    expected = load(file).train
    for header, cells in (
        ("id,emotion,pixels,Usage", lambda n, e, p, u: (n, e, p, u)),
        ("Emotion,Pixels,usage", lambda n, e, p, u: (e, p, u)),
        ("Usage,emotion,pixels", lambda n, e, p, u: (u, e, p)),
        ("emotion,pixels,Usage", lambda n, e, p, u: (f"{e}.0", f"'{p}'", u)),
        ("emotion,pixels,Usage", lambda n, e, p, u: (e, f"[{p.replace(' ', ', ')}]", u)),
    ):
        with file.open("w", newline="") as lines:
            csv.writer(lines).writerows([header.split(","), *(cells(n, *row) for n, row in enumerate(rows))])
        splits = load(file)
        assert (splits.layout, splits.train.fingerprint) == ("fer2013.csv", expected.fingerprint), header
    file.rename(tmp_path / "fer2013 (1).csv")
    refused(tmp_path, r"Did you mean .*fer2013 \(1\)\.csv\?")


# Folders


def test_two_folders_of_one_part_are_refused(tmp_path: Path) -> None:
    few = {"happy": (1, 2), "sad": (2, 2)}
    for names in (("val", "validation"), ("test", "testing"), ("train", "Training"), ("dev", "valid")):
        root = layouts.class_folders(tmp_path / names[0], dict.fromkeys({"train", *names}, few))
        refused(root, f"{min(names)} and {max(names)} are both the .* images: merge them")
    fer_named = write_folders(tmp_path / "fer", even(1, 1, 1))
    shutil.copytree(fer_named / "test", fer_named / "testing")
    refused(fer_named, "test and testing are both the test images")
    sets = {"train_set": [0, 1] * 4, "val_set": [0, 1], "eval_set": [0, 1]}
    refused(layouts.affectnet_2021(tmp_path / "affect", sets), "val_set and eval_set are both AffectNet's validation")


def test_system_files_are_ignored(tmp_path: Path) -> None:
    few = {"happy": (1, 3), "sad": (2, 3), "neutral": (0, 3)}
    root = layouts.class_folders(tmp_path / "d", {"train": few, "test": few})
    before = load(root).report
    flat = layouts.class_folders(tmp_path / "flat", {"": few})
    flat_before = load(flat).report
    affect = layouts.affectnet_2021(tmp_path / "affect", {"train_set": [0, 1] * 4, "val_set": [0, 1]})
    affect_before = load(affect).report
    for folder in (root, flat, root / "train/happy"):  # --out in the data
        prepare(folder / "run", "run", ())
        layouts.write_picture(folder / "run/test-confusion.png", 1)
    for folder in (root, root / "train", root / "train/happy", flat, flat / "sad"):
        for name in ("__MACOSX/happy", ".ipynb_checkpoints", "@eaDir"):
            (folder / name).mkdir(parents=True)
            (folder / name / "0.png").write_bytes(b"")
            (folder / name / "._0.png").write_bytes(b"")
        (folder / "._0.png").write_bytes(b"")
    for name in ("images/._0.jpg", "annotations/._0_exp.npy"):
        (affect / "train_set" / name).write_bytes(b"Mac OS X")
    assert (load(root).report, load(flat).report, load(affect).report) == (before, flat_before, affect_before)


def test_misspelt_folders_are_asked_about(tmp_path: Path) -> None:
    few = {"happy": (1, 9), "sad": (2, 9)}
    root = layouts.class_folders(tmp_path / "a", {"train": few | {"hapy": (1, 9)}, "tets": few})
    report = load(root).report
    assert "a class of its own, by folder name: hapy (Happy?); rename the folder to the expression" in report
    assert "1 folder (tets) beside train/ with class folders in it: not read" in report
    other = load(layouts.class_folders(tmp_path / "b", {"": {"cat": (1, 9), "hapy": (2, 9)}})).report
    assert "of its own" not in other
    coded = {name: (label, 9) for label, name in enumerate(("AF", "1_angry", "suprise", "zebra"))}
    report = load(layouts.class_folders(tmp_path / "c", {"": coded})).report
    assert "classes of their own, by folder name: 1_angry (Anger?), AF (Fear?), suprise (Surprise?); rename" in report
    spaced = load(layouts.class_folders(tmp_path / "d", {"": {"Happy ": (1, 9), "sad": (2, 9)}}))
    assert spaced.train.class_names == ("Happy", "Sad")


def test_nothing_is_left_out_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"cat": (1, 9), "dog": (2, 9)}
    root = layouts.class_folders(tmp_path / "a", {"train": few})
    layouts.write_picture(root / "test/1.png", 1)  # without classes
    layouts.write_picture(root / "val/deep/cat/1.png", 1)
    layouts.write_picture(root / "train/2.png", 1)
    report = load(root).report
    assert "2 folders (test, val) without class folders that hold images themselves: not read" in report
    assert "1 file (train/2.png) beside the class folders: not read" in report
    flat = layouts.class_folders(tmp_path / "b", {"": {**few, "test": (1, 9)}})
    assert "read as a class, beside the others: test; a part has class folders" in load(flat).report

    scandir = os.scandir

    def refuse(path: Path) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    layouts.write_picture(root / "train/cat/closed/1.png", 1)
    with pytest.raises(UserError, match="train/cat/closed: Permission denied"):
        load(root)


def test_parts_are_no_classes(tmp_path: Path) -> None:
    """Pictures in train/ and test/ themselves, their labels elsewhere."""
    root = layouts.class_folders(tmp_path / "a", {"": {"train": (1, 9), "Test": (2, 9)}})
    with pytest.raises(UserError, match="no known dataset"):
        load(root)
    with pytest.raises(UserError, match="expected two classes or more, found Happy alone"):
        load(layouts.class_folders(tmp_path / "b", {"train": {"happy": (1, 9)}, "test": {"happy": (1, 9)}}))


def test_one_file_in_two_places(tmp_path: Path) -> None:
    few = {"cat": (1, 9), "dog": (2, 9)}
    root = layouts.class_folders(tmp_path / "a", {"train": few})
    (root / "test").symlink_to(root / "train")
    with pytest.raises(
        UserError, match=r"train/cat/0.png and test/cat/0.png are one file, .* in two parts of the data"
    ):
        load(root)
    root = layouts.class_folders(tmp_path / "b", {"": few})
    (root / "dog/0.png").unlink()
    os.link(root / "cat/3.png", root / "dog/0.png")
    with pytest.raises(UserError, match=r"cat/3.png and dog/0.png are one file, by a link, in two classes"):
        load(root)
    fer = write_folders(tmp_path / "fer", even(2, 1, 1))
    shutil.rmtree(fer / "test")
    (fer / "test").symlink_to(fer / "train")
    with pytest.raises(UserError, match="in two parts of the data: remove one"):
        load(fer)


def test_one_class_under_two_names(tmp_path: Path) -> None:
    """macOS stores an accent as a separate character; capitals vary."""
    train, test = {"caf\u00e9": (1, 9), "tea": (2, 9)}, {"cafe\u0301": (1, 9), "tea": (2, 9)}
    splits = load(layouts.class_folders(tmp_path / "a", {"train": train, "test": test}))
    assert splits.test.class_names == ("caf\u00e9", "tea")
    assert class_counts(splits.test) == (9, 9)
    with pytest.raises(UserError, match="train/01, test/1 would be different classes"):
        load(layouts.class_folders(tmp_path / "c", {"train": {"00": (1, 9), "01": (2, 9)}, "test": {"1": (2, 9)}}))
    for other in ("Tea", "tea "):
        root = layouts.class_folders(tmp_path / other, {"train": train, "test": {"caf\u00e9": (1, 9), other: (2, 9)}})
        with pytest.raises(UserError, match="train/tea, test/.* would be different classes: give the folders the same"):
            load(root)
    letters = {"a": (1, 9), "A": (2, 9)}
    assert load(layouts.class_folders(tmp_path / "b", {"train": letters})).train.class_names == ("A", "a")


def test_own_pictures_are_not_fer2013(tmp_path: Path) -> None:
    few = {"happy": (1, 20), "sad": (2, 20)}
    root = layouts.class_folders(tmp_path / "own", {"train": few, "test": few})
    splits = load(root)
    assert splits.layout == "class folders, train, test"
    assert splits.train.class_names == ("Happy", "Sad")
    assert "FER-2013" not in splits.report
    assert find_data(str(root), Request()).findings == ()
    assert load(write_folders(tmp_path / "named", even(3, 1, 1))).layout == "FER-2013 folders"


def test_fer2013_is_known_by_its_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folders(tmp_path / "d", even(3, 1, 2))
    for file in root.rglob("*.jpg"):
        file.rename(file.with_name(f"im{file.stem}.jpg"))
    assert not is_folders(root)
    few = {name: (count,) * 7 for name, count in zip(OFFICIAL_COUNTS, (3, 1, 2), strict=True)}
    monkeypatch.setattr("train.data.fer2013.OFFICIAL_COUNTS", few)
    assert is_folders(root)
    next(root.rglob("*.jpg")).unlink()
    assert not is_folders(root)


@pytest.mark.parametrize("write", [fer, raf, affectnet])
def test_a_class_without_a_training_image_is_reported(write: Callable[[Path], list[Path]], tmp_path: Path) -> None:
    write(tmp_path)
    assert "train has no image" not in load(tmp_path).report
    folders = write_folders(tmp_path / "folders", even(3, 1, 1))
    shutil.rmtree(folders / "train/disgust")
    splits = load(folders)
    assert splits.layout == "FER-2013 folders"
    assert "Training has no image of Disgust" in splits.report
    assert class_counts(splits.train)[5] == 0
    file = write_fer2013_csv(tmp_path / "few.csv", {**even(3, 1, 1), "Training": {"happy": 3, "sad": 3}})
    assert "Training has no image of Neutral, Surprise, Fear, Disgust, Anger" in load(file).report


def test_a_limit_below_the_number_of_classes_says_what_it_leaves_out(fer_folders: Path) -> None:
    assert (
        "train has no image of Happy, Sad, Surprise, Fear, Disgust under this limit"
        in load(fer_folders, limit=2).report
    )


def test_classes_and_folders_whose_names_are_no_utf8(tmp_path: Path) -> None:
    odd, root = os.fsdecode(b"caf\xe9"), tmp_path / os.fsdecode(b"d\xff")
    layouts.class_folders(root, {"train": {odd: (0, 9), "tea": (3, 9)}, "test": {odd: (0, 2), "tea": (3, 2)}})
    layouts.write_picture(root / "train/tea/tall.png", 3, 1)
    assert train(["--data", str(root), "--out", str(tmp_path / "run"), *QUICK]) == 0
    assert load(root).train.class_names == ("caf\\udce9", "tea")


@pytest.mark.parametrize("augment", ["loading", "batch"])
def test_pictures_one_pixel_wide_train(augment: str, tmp_path: Path) -> None:
    from PIL import Image

    root = layouts.class_folders(tmp_path / "d", {"": {"x": (0, 12), "y": (3, 12)}})
    Image.new("L", (1, 3000), 90).save(root / "x/tall.png")
    Image.new("L", (3000, 1), 90).save(root / "y/wide.png")
    assert train(["--data", str(root), "--out", str(tmp_path / "run"), *QUICK, "--augment", augment]) == 0
