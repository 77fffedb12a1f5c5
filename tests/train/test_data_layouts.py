"""FERPlus, RAF-DB, AffectNet and class folders: recognized, mapped to one label order, rejected if damaged."""

import csv
from pathlib import Path

import numpy as np
import pytest

from tests.train import layouts
from tests.train.conftest import csv_rows, even, write_fer2013_csv
from train.data import FaceDataset, Request, Splits, load_data
from train.data.base import class_counts
from train.data.ferplus import COLUMNS, decide
from train.data.labels import CLASS_NAMES, CLASS_NAMES_8, FERPLUS_COLUMNS, RAF_CODES
from train.errors import UserError

EVERY = dict(enumerate(CLASS_NAMES))


def load(path: Path, **request: object) -> Splits:
    return load_data(str(path), Request(**request))  # type: ignore[arg-type]


def refused(path: Path, message: str, **request: object) -> None:
    with pytest.raises(UserError, match=message):
        load(path, **request)


def assert_pictures_fit(faces: FaceDataset) -> None:
    for index in range(len(faces)):
        assert layouts.label_seen(faces.image(index)) == faces.labels[index], faces.name(index)


def test_maps_are_the_documented_ones() -> None:
    assert RAF_CODES == (3, 4, 5, 1, 2, 6, 0) == layouts.RAF
    assert FERPLUS_COLUMNS == (0, 1, 3, 2, 6, 5, 4, 7)
    assert (*CLASS_NAMES, "Contempt") == CLASS_NAMES_8


# FERPlus


def write_votes(folder: Path, rows: list[list[str]]) -> Path:
    with (folder / "fer2013new.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return folder


@pytest.fixture
def ferplus(tmp_path: Path) -> tuple[Path, list[list[str]]]:
    """fer2013.csv with votes that agree: 10 for the class of each row."""
    counts = even(2, 1, 1)
    write_fer2013_csv(tmp_path / "fer2013.csv", counts)
    # the columns of FERPlus
    plus_order = {"angry": 4, "disgust": 5, "fear": 6, "happy": 1, "sad": 3, "surprise": 2, "neutral": 0}
    names = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    rows = []
    for number, (code, usage, _) in enumerate(csv_rows(counts)):
        votes = ["0"] * 10
        votes[plus_order[names[code]]] = "10"
        rows.append([usage, f"fer{number:07d}.png", *votes])
    return tmp_path, rows


def test_ferplus_joins_the_pictures_row_by_row(ferplus: tuple[Path, list[list[str]]]) -> None:
    folder, rows = ferplus
    rows[0][1] = ""  # unusable
    rows[1][2:] = ["4", "4", *"00000002"]  # undecided by either rule
    rows[2][2:] = ["4", "3", "1", "1", "1", *"00000"]  # a majority only of the remaining seven
    rows[3][2:] = [*"0000000", "10", "0", "0"]  # contempt
    rows[4][2:] = [*"000000000", "10"]  # no face
    write_votes(folder, rows)
    plain = load(folder / "fer2013.csv")
    seven = load(folder)
    assert "FERPlus (majority of votes)" in seven.layout
    assert "1 without a name, 1 undecided, 1 contempt, 1 unknown or no face" in seven.report
    assert len(seven.train) == len(plain.train) - 4
    assert class_counts(seven.test) == class_counts(plain.test) == (1,) * 7
    assert seven.test.labels.tolist() == plain.test.labels.tolist(), "the votes agree with the labels"
    assert [seven.test.image(i).tobytes() for i in range(7)] == [plain.test.image(i).tobytes() for i in range(7)]
    eight = load(folder, classes=8)
    assert eight.train.class_names == CLASS_NAMES_8
    assert class_counts(eight.train)[7] == 1
    assert seven.train.labels[0] == 0, "4 of 7 for neutral"
    rows[2][2:] = ["4", "3", "3", *"0000000"]
    write_votes(folder, rows)
    assert len(load(folder).train) == len(seven.train) - 1
    assert len(load(folder, votes="plurality").train) == len(seven.train)


def test_the_rules_of_votes() -> None:
    votes = np.array([[5, 5, 0, 0], [6, 1, 1, 1], [3, 2, 2, 1], [2, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]])
    assert decide(votes, "majority").tolist() == [-1, 0, -1, 0, -1, -1]
    assert decide(votes, "plurality").tolist() == [-1, 0, 0, 0, -1, 0]


def test_ferplus_refused(ferplus: tuple[Path, list[list[str]]], tmp_path: Path) -> None:
    folder, rows = ferplus
    write_votes(folder, rows[:-1])
    refused(folder, "has 27 rows, .*fer2013.csv 28: they belong to other sets")
    write_votes(folder, [*rows[:-1], ["Training", *rows[-1][1:]]])
    refused(folder, "line 29: Usage Training, and PrivateTest in .*rows were moved")
    write_votes(folder, [[*rows[0][:-1], "many"], *rows[1:]])
    refused(folder, "line 2: expected a usage, a name and 10 numbers of votes")
    write_votes(folder, rows)
    refused(folder, "--votes best: expected majority or plurality", votes="best")
    (folder / "fer2013.csv").unlink()
    refused(folder, "FERPlus's votes and no pictures: put fer2013.csv beside it.*cannot be joined")


# RAF-DB

LINES = [
    (f"{part}_{number + 1:0{digits}d}.jpg", 1 + number % 7)
    for part, digits, n in (("train", 5, 21), ("test", 4, 7))
    for number in range(n)
]


@pytest.mark.parametrize("aligned", [True, False])
def test_raf_original(tmp_path: Path, aligned: bool) -> None:
    splits = load(layouts.raf_original(tmp_path / "basic", LINES, aligned))
    assert splits.layout == "RAF-DB basic"
    assert ("aligned by the authors" if aligned else "cropped by boundingbox/") in splits.report
    assert splits.train.class_names == CLASS_NAMES
    assert class_counts(splits.test) == (1,) * 7
    assert len(splits.train) + len(splits.validation) == 21
    assert_pictures_fit(splits.train)
    assert_pictures_fit(splits.test)
    assert splits.test.image(0).size == ((100, 100) if aligned else (32, 32))
    assert "does not match RAF-DB basic, official split: train has 21 images (official 12,271)" in splits.report


def test_raf_original_refused(tmp_path: Path) -> None:
    compound = layouts.raf_original(tmp_path / "compound", [*LINES, ("train_00022.jpg", 11)])
    refused(compound, "has labels up to 11: this is RAF-DB's compound set")
    odd = layouts.raf_original(tmp_path / "odd", [*LINES, ("other_1.jpg", 2)])
    refused(odd, "entry 29: expected train_… or test_… and a label of 1 to 7, got other_1.jpg 2")
    broken = layouts.raf_original(tmp_path / "broken", LINES)
    with (broken / "EmoLabel/list_patition_label.txt").open("a") as file:
        file.write("train_00023.jpg\n")
    refused(broken, "line 29: expected an image's name and a label, got 'train_00023.jpg'")
    empty = tmp_path / "empty"
    (empty / "EmoLabel").mkdir(parents=True)
    (empty / "EmoLabel/list_patition_label.txt").write_text("train_00001.jpg 1\n")
    refused(empty, "RAF-DB's labels without pictures")


def test_raf_boxes_refused(tmp_path: Path) -> None:
    root = layouts.raf_original(tmp_path / "basic", LINES, aligned=False)
    box = root / "boundingbox/train_00003_boundingbox.txt"
    before = load(root).train.fingerprint
    box.write_text("1 2 3")
    refused(root, "train_00003_boundingbox.txt: expected four numbers, x0 y0 x1 y1")
    box.unlink()
    refused(root, "train_00003.jpg has no box of its face")
    box.write_text("200 200 240 240")
    splits = load(root)
    assert splits.train.fingerprint != before, "other faces of the same files"
    parts = (splits.train, splits.validation)
    [(part, index)] = [(p, i) for p in parts for i in range(len(p)) if "train_00003" in p.name(i)]
    with pytest.raises(UserError, match=r"train_00003\.jpg, box 200,200,240,240: its face's box lies outside"):
        part.image(index)


def test_raf_missing_pictures_are_told(tmp_path: Path) -> None:
    root = layouts.raf_original(tmp_path / "basic", LINES)
    (root / "Image/aligned/train_00002_aligned.jpg").unlink()
    report = load(root).report
    assert "1 file (Image/aligned/train_00002_aligned.jpg) in list_patition_label.txt, but not there" in report


@pytest.mark.parametrize("inside", [False, True])
def test_raf_numbered(tmp_path: Path, inside: bool) -> None:
    root = layouts.raf_numbered(tmp_path)
    splits = load(root / "DATASET" if inside else root)
    assert splits.layout == "RAF-DB basic, numbered folders"
    assert class_counts(splits.test) == (2,) * 7
    assert_pictures_fit(splits.train)
    assert_pictures_fit(splits.test)
    assert "another class's folder" not in splits.report


def test_raf_numbered_refused_and_contradicted(tmp_path: Path) -> None:
    compound = layouts.raf_numbered(tmp_path / "compound", classes=range(1, 12))
    refused(compound, "has classes up to 11: this is RAF-DB's compound set")
    odd = layouts.raf_numbered(tmp_path / "odd")
    (odd / "DATASET/test/happy").mkdir()
    refused(odd, "test/happy: RAF-DB's classes are 1 to 7")
    moved = layouts.raf_numbered(tmp_path / "moved")
    (moved / "DATASET/train/1/train_00010_aligned.jpg").rename(moved / "DATASET/train/2/train_00010_aligned.jpg")
    assert "1 file (train/2/train_00010_aligned.jpg) in another class's folder than the tables" in load(moved).report


# AffectNet

OLD = {
    "training": [("1/a.jpg", 0, 0), ("1/a.jpg", 1, 6), *((f"2/{n}.jpg", n % 2, n % 8) for n in range(24))]
    + [("3/none.jpg", 0, 8), ("3/noface.jpg", 0, 10)],
    "validation": [(f"4/{n}.jpg", 0, n % 8) for n in range(8)],
}


@pytest.mark.parametrize("headed", [True, False])
def test_affectnet_with_boxes(tmp_path: Path, headed: bool) -> None:
    root = layouts.affectnet_old(tmp_path, OLD, headed)
    seven, eight = load(root), load(root, classes=8)
    assert seven.layout == "AffectNet, release with boxes"
    assert (seven.train.class_names, eight.train.class_names) == (CLASS_NAMES, CLASS_NAMES_8)
    assert len(seven.train) + len(seven.validation) == 23
    assert len(eight.train) + len(eight.validation) == 26
    for splits, rows in ((seven, 6), (eight, 2)):
        assert f"boxes; {rows} rows of other classes or without a face are left out" in splits.report
    assert class_counts(eight.test) == (1,) * 8, "the published validation set is what is tested on"
    for part in (seven.train, seven.test, eight.train, eight.test):
        assert_pictures_fit(part)
        assert part.image(0).size == (24, 24)
    faces = [seven.train.name(i) for i in range(len(seven.train))]
    faces += [seven.validation.name(i) for i in range(len(seven.validation))]
    assert sum("1/a.jpg, box" in name for name in faces) == 2, "two faces of one picture"


def test_affectnet_with_boxes_refused(tmp_path: Path) -> None:
    root = layouts.affectnet_old(tmp_path / "a", OLD)
    (root / "Manually_Annotated_Images/2/3.jpg").unlink()
    assert "1 file (2/3.jpg) in the tables, but not there" in load(root).report
    with (root / "training.csv").open("a") as file:
        file.write("2/4.jpg,left,10,24,24,1;2,3,0,0\n")
    refused(root, "line 30: expected numbers for the box and the expression")
    alone = layouts.affectnet_old(tmp_path / "b", {"training": OLD["training"]})
    refused(alone, "AffectNet's training.csv without validation.csv")
    bare = layouts.affectnet_old(tmp_path / "c", OLD)
    (bare / "Manually_Annotated_Images").rename(bare / "pictures")
    refused(bare, "AffectNet's tables without pictures")


@pytest.mark.parametrize("name", ["val_set", "valid_set", "eval_set"])
def test_affectnet_of_2021(tmp_path: Path, name: str) -> None:
    labels = [*range(8), *range(8), 9]
    root = layouts.affectnet_2021(tmp_path, {"train_set": labels, name: list(range(8))})
    splits = load(root, classes=8)
    assert splits.layout == "AffectNet, release of 2021"
    assert class_counts(splits.test) == (1,) * 8
    assert len(splits.train) + len(splits.validation) == 16
    assert_pictures_fit(splits.train)
    assert_pictures_fit(splits.test)
    assert "\n1 annotations of other classes are left out" in splits.report
    seven = load(root)
    assert seven.train.class_names == CLASS_NAMES
    assert "\n4 annotations of other classes are left out" in seven.report


def test_annotations_are_read_again_when_they_change(tmp_path: Path) -> None:
    root = layouts.affectnet_2021(tmp_path, {"train_set": [0] * 8 + [1] * 8, "val_set": [0, 1]})
    before = load(root)
    assert class_counts(before.test)[:2] == (1, 1)
    np.save(root / "val_set/annotations/0_exp.npy", np.array("a longer one"))
    refused(root, "0_exp.npy: expected one expression's code, as a string or a number")
    np.save(root / "val_set/annotations/0_exp.npy", np.array(1))
    assert class_counts(load(root).test)[:2] == (0, 2)


def test_affectnet_of_2021_refused(tmp_path: Path) -> None:
    root = layouts.affectnet_2021(tmp_path / "a", {"train_set": [0, 1, 2, 3] * 3, "val_set": [0, 1, 2]})
    (root / "train_set/images/4.jpg").unlink()
    (root / "train_set/annotations/5_exp.npy").unlink()
    report = load(root).report
    assert "2 files (train_set/images/4.jpg, train_set/annotations/5_exp.npy) missing" in report
    (root / "train_set/annotations/6_exp.npy").write_bytes(b"\x93NUMPY")
    refused(root, "6_exp.npy: expected one expression's code")
    alone = layouts.affectnet_2021(tmp_path / "b", {"train_set": [0, 1]})
    refused(alone, "AffectNet's train_set without val_set, valid_set, eval_set")


# Class folders


def test_expressions_are_known_by_name_in_any_spelling(tmp_path: Path) -> None:
    root = layouts.class_folders(
        tmp_path / "d",
        {
            "train": {"Happiness": (1, 4), "ANGER": (6, 4), "neutral": (0, 4), "Contempt": (7, 4)},
            "valid": {"Happiness": (1, 1), "ANGER": (6, 1), "neutral": (0, 1), "Contempt": (7, 1)},
            "test": {"happy": (1, 2), "angry": (6, 2), "neutral": (0, 2), "contempt": (7, 2)},
        },
    )
    splits = load(root)
    assert splits.train.class_names == ("Neutral", "Happy", "Anger", "Contempt")
    assert class_counts(splits.train) == (4, 4, 4, 4)
    assert class_counts(splits.validation) == (1, 1, 1, 1)
    assert class_counts(splits.test) == (2, 2, 2, 2)
    for index in range(len(splits.test)):
        name = splits.test.class_names[splits.test.labels[index]]
        assert CLASS_NAMES_8[layouts.label_seen(splits.test.image(index))] == name


def test_any_classes_without_parts(tmp_path: Path) -> None:
    root = layouts.class_folders(tmp_path / "d", {"": {"b10": (0, 20), "b9": (1, 20), "ärger": (2, 20)}})
    splits = load(root)
    assert splits.train.class_names == ("b10", "b9", "ärger")
    assert splits.layout == "class folders, no parts"
    assert "classes are the folders' names" in splits.report
    assert "validation = 10% of the rest (stratified, seed 0)" in splits.report
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 60
    assert class_counts(splits.test) == (2, 2, 2)
    names = [{part.name(i) for i in range(len(part))} for part in (splits.train, splits.validation, splits.test)]
    assert not names[0] & names[1] | names[0] & names[2] | names[1] & names[2]


def test_a_validation_part_alone_is_tested_on(tmp_path: Path) -> None:
    root = layouts.class_folders(tmp_path / "d", {p: {"x": (0, 10), "y": (1, 10)} for p in ("train", "val")})
    splits = load(root)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (18, 2, 20)


def test_numbers_for_classes_are_a_finding(tmp_path: Path) -> None:
    root = layouts.class_folders(
        tmp_path / "d", {"train": {str(n): (n, 2) for n in range(7)}, "test": {str(n): (n, 1) for n in range(7)}}
    )
    splits = load(root)
    assert splits.train.class_names == tuple("0123456")
    assert "classes are numbers; what they mean cannot be seen" in splits.report
    assert "AffectNet: 0 Neutral, 1 Happy" in splits.report
    assert "FER-2013 (fer2013.csv): 0 Anger" in splits.report
    assert "RAF-DB" not in splits.report, "it has no class 0"


def test_class_folders_refused(tmp_path: Path) -> None:
    root = layouts.class_folders(
        tmp_path / "d", {"train": {"x": (0, 4), "y": (1, 4)}, "test": {"x": (0, 1), "y": (1, 1)}}
    )
    (root / "train/.hidden").mkdir()
    (root / "train/x/notes.txt").touch()
    assert "1 file (train/x/notes.txt) ignored: no image's suffix" in load(root).report
    refused(root, "--classes 7: class folders, train, test has 2", classes=7)
    (root / "train/empty").mkdir()
    refused(root, "no image in the class folder empty; remove what is no class")
    (root / "train/empty").rmdir()
    for file in (root / "test/y").iterdir():
        file.unlink()
    assert "test has no image of y" in load(root).report
    one = layouts.class_folders(tmp_path / "one", {"": {"only": (0, 3)}})
    refused(one, "no known dataset")
