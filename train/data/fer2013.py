"""FER-2013 in its three public layouts: class folders, fer2013.csv and icml_face_data.csv."""

import csv
import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from train.data.base import (
    FaceDataset,
    GreyArray,
    ImageFiles,
    Layout,
    Request,
    Splits,
    Subset,
    count_table,
    digest,
    draw_stratified,
)
from train.data.labels import CLASS_NAMES, FER_CSV_CODES, FOLDER_NAMES
from train.errors import UserError

SIDE = 48
OFFICIAL_COUNTS: Mapping[str, tuple[int, ...]] = {
    # in the order of CLASS_NAMES
    "Training": (4965, 7215, 4830, 3171, 4097, 436, 3995),
    "PublicTest": (607, 895, 653, 415, 496, 56, 467),
    "PrivateTest": (626, 879, 594, 416, 528, 55, 491),
}
USAGES = tuple(OFFICIAL_COUNTS)
TEST = "test"  # the usage of a test image whose name does not tell PublicTest from PrivateTest
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def make_splits(whole: FaceDataset, usage: NDArray[np.str_], layout: str, source: Path, request: Request) -> Splits:
    """The three splits of the set, from each sample's usage, with a report of what was found.

    The checkpoint is chosen on the validation split, so it never overlaps the test split: where PublicTest belongs to
    the test split, or cannot be told apart, validation is held out of Training.
    """
    members = {name: np.flatnonzero(usage == name) for name in (*USAGES, TEST) if np.any(usage == name)}
    tests = [name for name in members if name != "Training"]
    if "Training" not in members or not tests:
        raise UserError(f"{source}: {layout} without a {'test' if not tests else 'training'} image")

    training = members["Training"]
    if request.protocol == "official" and tests == ["PublicTest", "PrivateTest"]:
        indices = (training, members["PublicTest"], members["PrivateTest"])
        use = "train = Training, validation = PublicTest, test = PrivateTest"
    else:
        held = draw_stratified(whole.labels[training], request.validation_fraction, request.seed)
        test = np.sort(np.concatenate([members[name] for name in tests]))
        indices = (np.delete(training, held), training[held], test)
        use = (
            f"train = Training without validation, validation = {request.validation_fraction:.0%} of Training "
            f"(stratified, seed {request.seed}), test = {' + '.join(tests)}"
        )
    train, validation, test_split = (
        Subset(whole, index.astype(np.int64), split)
        for index, split in zip(indices, ("train", "validation", "test"), strict=True)
    )

    found = {
        name: tuple(np.bincount(whole.labels[at], minlength=len(CLASS_NAMES)).tolist()) for name, at in members.items()
    }
    rows: list[tuple[str, tuple[int, ...]]] = []
    for name in (*USAGES, TEST):
        rows += [(name, found[name])] if name in found else []
        rows += [("  official", OFFICIAL_COUNTS[name])] if name in OFFICIAL_COUNTS else []
    report = f"{layout} at {source}\n{count_table(CLASS_NAMES, rows)}\n{verdict(found)}\n{use}"
    return Splits(train, validation, test_split, layout, report)


def verdict(found: Mapping[str, tuple[int, ...]]) -> str:
    """Whether counts per class and usage are the official ones, and if not, where they differ."""
    if dict(found) == dict(OFFICIAL_COUNTS):
        return "matches FER-2013, official split"
    differences = []
    for name in (*USAGES, TEST):
        ours, official = found.get(name, ()), OFFICIAL_COUNTS.get(name, ())
        if sum(ours) != sum(official):
            differences.append(f"{name} has {sum(ours):,} images (official {sum(official):,})")
        elif ours != official:
            differences.append(f"{name} has other counts per class")
    return "does not match FER-2013, official split: " + ", ".join(differences)


# Class folders: {train,test}/<class>/{Training,PublicTest,PrivateTest}_<id>.jpg


def _class_folders(part: Path) -> list[Path]:
    return sorted(entry for entry in part.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def is_folders(path: Path) -> bool:
    """True where train/ and test/ both hold at least one folder named after a class."""
    return all(
        (path / part).is_dir() and any(entry.name.lower() in FOLDER_NAMES for entry in _class_folders(path / part))
        for part in ("train", "test")
    )


def load_folders(path: Path, request: Request) -> Splits:
    files: list[Path] = []
    labels: list[int] = []
    usage: list[str] = []
    sizes: list[str] = []
    for part in ("train", "test"):
        for folder in _class_folders(path / part):
            label = FOLDER_NAMES.get(folder.name.lower())
            if label is None:
                raise UserError(
                    f"{folder}: no class of FER-2013 is called {folder.name!r} (known: {', '.join(FOLDER_NAMES)})"
                )
            for file in sorted(folder.iterdir()):
                if file.suffix.lower() not in IMAGE_SUFFIXES:
                    continue
                prefix = file.name.split("_")[0]
                files.append(file)
                labels.append(label)
                usage.append("Training" if part == "train" else prefix if prefix in USAGES[1:] else TEST)
                sizes.append(f"{file.relative_to(path).as_posix()} {label} {file.stat().st_size}")
    whole = ImageFiles(files, np.array(labels, dtype=np.int64), CLASS_NAMES, "all", digest(*sizes))
    return make_splits(whole, np.array(usage), "FER-2013 folders", path, request)


# fer2013.csv: emotion,pixels,Usage. icml_face_data.csv: the same rows as "emotion, Usage, pixels".


def _header(file: Path) -> list[str]:
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            return [name.strip() for name in lines.readline(1000).split(",")]
    except OSError:
        return []


def _find_csv(path: Path, name: str, columns: list[str]) -> Path | None:
    """`path` itself, or the file of that name in it, where its header names these columns."""
    file = path / name if path.is_dir() else path
    return file if file.suffix.lower() == ".csv" and file.is_file() and _header(file) == columns else None


def find_fer2013_csv(path: Path) -> Path | None:
    return _find_csv(path, "fer2013.csv", ["emotion", "pixels", "Usage"])


def find_icml_csv(path: Path) -> Path | None:
    return _find_csv(path, "icml_face_data.csv", ["emotion", "Usage", "pixels"])


def read_csv(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.str_]]:
    """(pixels (n, 48, 48), labels in the canonical order (n,), usage (n,)) in the order of the file's rows."""
    pixels: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    usage: list[str] = []
    with file.open(newline="", encoding="utf-8", errors="replace") as lines:
        for number, row in enumerate(csv.DictReader(lines), start=2):
            record = {(key or "").strip(): value for key, value in row.items()}
            values = _numbers(record["pixels"] or "")
            if len(values) != SIDE * SIDE or values.min() < 0 or values.max() > 255:
                raise UserError(f"{file}, line {number}: expected {SIDE * SIDE} pixels, numbers from 0 to 255")
            code, use = (record["emotion"] or "").strip(), (record["Usage"] or "").strip()
            if not (code.isdigit() and int(code) < len(FER_CSV_CODES)):
                raise UserError(
                    f"{file}, line {number}: expected an emotion from 0 to {len(FER_CSV_CODES) - 1}, got {code!r}"
                )
            if use not in USAGES:
                raise UserError(f"{file}, line {number}: expected a Usage of {', '.join(USAGES)}, got {use!r}")
            pixels.append(values.astype(np.uint8).reshape(SIDE, SIDE))
            labels.append(FER_CSV_CODES[int(code)])
            usage.append(use)
    if not pixels:
        raise UserError(f"{file}: no row below the header")
    return np.stack(pixels), np.array(labels, dtype=np.int64), np.array(usage)


def _numbers(text: str) -> NDArray[np.int64]:
    """The numbers of a text, or none where it has anything else (which older versions of numpy only warn about)."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        try:
            return np.fromstring(text, dtype=np.int64, sep=" ")
        except (ValueError, DeprecationWarning):
            return np.empty(0, np.int64)


def _load_csv(file: Path, layout: str, request: Request) -> Splits:
    pixels, labels, usage = read_csv(file)
    fingerprint = digest(hashlib.sha256(pixels.data).digest(), labels.tobytes(), *usage.tolist())
    whole = GreyArray(pixels, labels, CLASS_NAMES, "all", fingerprint)
    return make_splits(whole, usage, layout, file, request)


def load_fer2013_csv(path: Path, request: Request) -> Splits:
    return _load_csv(find_fer2013_csv(path) or path, "fer2013.csv", request)


def load_icml_csv(path: Path, request: Request) -> Splits:
    return _load_csv(find_icml_csv(path) or path, "icml_face_data.csv", request)


# train.csv and test.csv of the same competition: nothing to evaluate on.


def find_competition_csv(path: Path) -> Path | None:
    return _find_csv(path, "train.csv", ["emotion", "pixels"]) or _find_csv(path, "test.csv", ["pixels"])


def refuse_competition_csv(path: Path, request: Request) -> Splits:
    raise UserError(
        f"{find_competition_csv(path)} is of the competition's train.csv and test.csv: they hold no labels for the "
        "test images, so nothing can be evaluated on them. Use icml_face_data.csv or fer2013.csv, which label all rows."
    )


LAYOUTS = (
    Layout("FER-2013 folders", "train/<class>/ and test/<class>/ (angry, disgust, fear, …)", is_folders, load_folders),
    Layout(
        "fer2013.csv", "fer2013.csv (emotion,pixels,Usage)", lambda p: find_fer2013_csv(p) is not None, load_fer2013_csv
    ),
    Layout(
        "icml_face_data.csv",
        "icml_face_data.csv (emotion, Usage, pixels)",
        lambda p: find_icml_csv(p) is not None,
        load_icml_csv,
    ),
    Layout("competition csv", "", lambda p: find_competition_csv(p) is not None, refuse_competition_csv),
)
