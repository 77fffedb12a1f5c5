"""Every layout of FER-2013, recognised and refused; labels, splits and counts."""

import os
from pathlib import Path

import numpy as np
import pytest

from tests.train.conftest import (
    CANONICAL,
    Counts,
    csv_rows,
    even,
    write_fer2013_csv,
    write_folders,
    write_icml_csv,
)
from train.data import Request, Splits, load_data
from train.data.base import class_counts
from train.data.fer2013 import OFFICIAL_COUNTS
from train.data.labels import CLASS_NAMES, FER_CSV_CODES, FOLDER_NAMES
from train.data.splitting import verdict
from train.errors import UserError

# A different count for each class, so that swapping two classes changes a count.
UNEVEN: Counts = {
    "Training": dict(zip(CANONICAL, (4, 5, 6, 7, 8, 2, 3), strict=True)),
    "PublicTest": dict(zip(CANONICAL, (3, 2, 1, 4, 5, 6, 7), strict=True)),
    "PrivateTest": dict(zip(CANONICAL, (1, 7, 6, 2, 4, 3, 5), strict=True)),
}
WRITERS = {
    "folders": lambda root: write_folders(root / "data", UNEVEN),
    "fer2013.csv": lambda root: write_fer2013_csv(root / "fer2013.csv", UNEVEN),
    "icml_face_data.csv": lambda root: write_icml_csv(root / "icml_face_data.csv", UNEVEN),
}


@pytest.fixture(scope="module", params=list(WRITERS))
def layout(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return WRITERS[request.param](tmp_path_factory.mktemp("layout"))


def parts(splits: Splits) -> list:
    return [splits.train, splits.validation, splits.test]


def test_a_damaged_cache_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut."""
    monkeypatch.setenv("ADCORRE_CACHE", str(tmp_path / "cache"))
    file = write_fer2013_csv(tmp_path / "fer2013.csv", even(2, 1, 1))
    before = load_data(str(file), Request()).test
    for damaged in (tmp_path / "cache").glob("*/*.npy"):
        for size in (200, 0):
            os.truncate(damaged, min(size, damaged.stat().st_size - 1))
            after = load_data(str(file), Request()).test
            assert after.fingerprint == before.fingerprint
            assert after.image(0).tobytes() == before.image(0).tobytes()
            assert damaged.stat().st_size > 200


def test_label_maps_are_the_documented_ones() -> None:
    assert CLASS_NAMES == ("Neutral", "Happy", "Sad", "Surprise", "Fear", "Disgust", "Anger")
    assert FER_CSV_CODES == (6, 5, 4, 1, 2, 3, 0)
    alphabetical = ["angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"]
    assert [FOLDER_NAMES[name] for name in alphabetical] == [6, 5, 4, 1, 0, 2, 3]


def test_official_counts_add_up() -> None:
    assert [sum(OFFICIAL_COUNTS[name]) for name in ("Training", "PublicTest", "PrivateTest")] == [28709, 3589, 3589]
    disgust = CLASS_NAMES.index("Disgust")
    assert [OFFICIAL_COUNTS[name][disgust] for name in OFFICIAL_COUNTS] == [436, 56, 55]


def test_official_split_has_each_class_in_its_place(layout: Path) -> None:
    splits = load_data(str(layout), Request())
    for part, usage, name in zip(parts(splits), UNEVEN, ("train", "validation", "test"), strict=True):
        assert part.split == name
        assert part.class_names == CLASS_NAMES
        assert part.labels.dtype == np.int64
        assert class_counts(part) == tuple(UNEVEN[usage].values())
        assert len(part) == sum(UNEVEN[usage].values())


def test_pictures_belong_to_their_labels(layout: Path) -> None:
    """The waves of a class have one direction and period: the strongest frequency names the class."""
    test = load_data(str(layout), Request()).test
    frequency = []
    for index in range(len(test)):
        image = test.image(index)
        assert image.mode == "RGB"
        assert image.size == (48, 48)
        spectrum = np.abs(np.fft.rfft2(np.asarray(image.convert("L"), dtype=float) - 127))
        row, column = np.unravel_index(np.argmax(spectrum), spectrum.shape)
        frequency.append(np.hypot(min(row, 48 - row), column))
    assert np.abs(np.array(frequency) - (2 + test.labels)).max() < 1


def test_paper_protocol_tests_on_both_and_validates_on_held_out_training(layout: Path) -> None:
    request = Request(protocol="paper", validation_fraction=0.25)
    splits = load_data(str(layout), request)
    both = [a + b for a, b in zip(UNEVEN["PublicTest"].values(), UNEVEN["PrivateTest"].values(), strict=True)]
    assert class_counts(splits.test) == tuple(both)
    held = np.array(class_counts(splits.validation))
    assert (np.array(class_counts(splits.train)) + held == list(UNEVEN["Training"].values())).all()
    assert (held >= 1).all()
    assert abs(held.sum() - 0.25 * 35) <= 3
    pixels = [{part.image(i).tobytes() for i in range(len(part))} for part in parts(splits)]
    assert not pixels[0] & pixels[1]
    assert not pixels[2] & (pixels[0] | pixels[1])


def test_held_out_images_follow_the_seed(fer_folders: Path) -> None:
    def fingerprints(seed: int) -> list[str]:
        return [part.fingerprint for part in parts(load_data(str(fer_folders), Request(protocol="paper", seed=seed)))]

    assert fingerprints(1) == fingerprints(1)
    assert fingerprints(1)[:2] != fingerprints(2)[:2]
    assert fingerprints(1)[2] == fingerprints(2)[2]


def test_fingerprint_changes_with_the_data(tmp_path: Path) -> None:
    first = write_folders(tmp_path / "a", even(2, 1, 1))
    again = write_folders(tmp_path / "b", even(2, 1, 1))
    before = load_data(str(first), Request()).train.fingerprint
    assert load_data(str(again), Request()).train.fingerprint == before
    (again / "train/sad/Training_00000.jpg").rename(again / "train/happy/Training_00009.jpg")
    assert load_data(str(again), Request()).train.fingerprint != before


def test_counts_are_printed_beside_the_official_ones(layout: Path) -> None:
    report = load_data(str(layout), Request()).report
    assert "28,709" in report
    assert "35" in report
    assert "does not match FER-2013, official split: Training has 35 images (official 28,709)" in report


def test_verdict() -> None:
    def count_message(counts: dict[str, tuple[int, ...]]) -> str:
        return verdict(counts, OFFICIAL_COUNTS, "FER-2013", CLASS_NAMES)

    assert count_message(dict(OFFICIAL_COUNTS)) == "matches FER-2013, official split"
    neutral, happy, *rest = OFFICIAL_COUNTS["PublicTest"]
    swapped = count_message({**OFFICIAL_COUNTS, "PublicTest": (happy, neutral, *rest)})
    assert swapped.startswith("does not match FER-2013, official split: PublicTest has other counts per class\n")
    assert "in PublicTest, Neutral has the count of Happy, Happy has the count of Neutral" in swapped
    other = count_message({**OFFICIAL_COUNTS, "PublicTest": (happy + neutral, 0, *rest)})
    assert other == "does not match FER-2013, official split: PublicTest has other counts per class"
    assert "test has 7,178 images (official 0)" in count_message(
        {"Training": OFFICIAL_COUNTS["Training"], "test": (7178,)}
    )


def test_folders_whose_names_do_not_tell_the_test_parts(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "data", even(10, 0, 2))
    for file in (root / "test").glob("*/*.jpg"):
        file.rename(file.with_name(file.name.replace("PrivateTest", "im")))
    splits = load_data(str(root), Request())
    assert class_counts(splits.test) == (2,) * 7
    assert class_counts(splits.validation) == (1,) * 7
    assert class_counts(splits.train) == (9,) * 7
    assert "does not match" in splits.report
    assert "validation = 10% of Training" in splits.report


def test_csv_inside_a_folder_is_found(tmp_path: Path) -> None:
    write_icml_csv(tmp_path / "icml_face_data.csv", even(2, 1, 1))
    (tmp_path / "train.csv").write_text("emotion,pixels\n")
    assert load_data(str(tmp_path), Request()).layout == "icml_face_data.csv"


@pytest.mark.parametrize("name, header", [("train.csv", "emotion,pixels"), ("test.csv", "pixels")])
@pytest.mark.parametrize("inside", [False, True])
def test_competition_files_are_refused(tmp_path: Path, name: str, header: str, inside: bool) -> None:
    (tmp_path / name).write_text(f"{header}\n")
    with pytest.raises(UserError, match=r"no labels for the test images.*fer2013\.csv"):
        load_data(str(tmp_path if inside else tmp_path / name), Request())


def test_an_unknown_dataset_lists_expected_and_existing_files(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError) as caught:
        load_data(str(tmp_path), Request())
    for text in ("train/<class>/", "fer2013.csv", "icml_face_data.csv", "cats/, notes.txt"):
        assert text in str(caught.value)
    with pytest.raises(UserError, match="begins b'hello'"):
        load_data(str(tmp_path / "notes.txt"), Request())
    with pytest.raises(UserError, match="no such file or folder"):
        load_data(str(tmp_path / "missing"), Request())


def test_a_dataset_one_folder_deeper_is_pointed_at(fer_folders: Path) -> None:
    with pytest.raises(UserError, match=f"Did you mean {fer_folders}"):
        load_data(str(fer_folders.parent), Request())


def test_unknown_class_folder_is_named(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "data", even(1, 1, 1))
    (root / "train" / "contempt").mkdir()
    with pytest.raises(UserError, match="contempt"):
        load_data(str(root), Request())


def test_broken_image_is_named(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "data", even(2, 1, 1))
    broken = root / "train/fear/Training_00000.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    train = load_data(str(root), Request()).train
    [index] = [i for i in range(len(train)) if CLASS_NAMES[train.labels[i]] == "Fear" and i % 2 == 0]
    with pytest.raises(UserError, match=str(broken)):
        train.image(index)
    assert train.image(index + 1).size == (48, 48)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda code, usage, pixels: ("7", usage, pixels), "line 2: expected an emotion from 0 to 6, got '7'"),
        (lambda code, usage, pixels: (code, "Final", pixels), "line 2: expected a Usage of Training, .*got 'Final'"),
        (lambda code, usage, pixels: (code, usage, pixels[:-4]), "line 2: expected 2304 pixels"),
        (
            lambda code, usage, pixels: (code, usage, "256" + pixels[pixels.index(" ") :]),
            "line 2: expected 2304 pixels, .* 0 to 255",
        ),
        (lambda code, usage, pixels: (code, usage, "x" + pixels), "line 2: expected 2304 pixels"),
    ],
)
def test_bad_csv_rows_are_named(tmp_path: Path, change, message: str) -> None:
    code, usage, pixels = change(*csv_rows(even(1, 1, 1))[0])
    file = tmp_path / "fer2013.csv"
    file.write_text(f"emotion,pixels,Usage\n{code},{pixels},{usage}\n")
    with pytest.raises(UserError, match=message):
        load_data(str(file), Request())


def test_split_without_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="without a test image"):
        load_data(str(write_fer2013_csv(tmp_path / "fer2013.csv", even(1, 0, 0))), Request())
    with pytest.raises(UserError, match="without a training image"):
        load_data(str(write_fer2013_csv(tmp_path / "other.csv", even(0, 1, 1))), Request())
    (tmp_path / "empty.csv").write_text("emotion,pixels,Usage\n")
    with pytest.raises(UserError, match="no row"):
        load_data(str(tmp_path / "empty.csv"), Request())


def test_paper_protocol_is_for_fer() -> None:
    with pytest.raises(UserError, match="for FER-2013"):
        load_data("synthetic", Request(protocol="paper"))
