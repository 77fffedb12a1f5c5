"""FER-2013 in its three public layouts: class folders, fer2013.csv and icml_face_data.csv."""

import hashlib
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from train.data.base import FaceDataset, GreyArray, Layout, LoadedDataset, Request, digest
from train.data.files import ImageCollection, ignored, image_names, list_images, subfolders
from train.data.labels import CLASS_NAMES, FER_CSV_CODES, FOLDER_NAMES, PART_NAMES
from train.data.store import load_cached
from train.data.tables import find_csv, read_table
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
COLUMNS = ("emotion", "pixels", "Usage")
IMAGE_NAME = re.compile(r"(Training|PublicTest|PrivateTest)_\d+\.")
PUNCTUATION = str.maketrans("[],\"'", " " * 5)  # of copies that hold the pixels as a list, or in quotes twice
ARRAYS = ("pixels.npy", "labels.npy", "usage.npy")


def build_dataset(
    source: Path, layout: str, whole: FaceDataset, usage: NDArray[np.str_], request: Request
) -> LoadedDataset:
    """The dataset with each usage in its role.

    PublicTest is for validation, unless the paper's protocol tests on it too, or some image's name does not tell it
    from PrivateTest: validation is then held out of Training.
    """
    present = [name for name in (*USAGES, TEST) if np.any(usage == name)]
    tests = [name for name in present if name != "Training"]
    if "Training" not in present or not tests:
        raise UserError(f"{source}: {layout} without a {'test' if not tests else 'training'} image")
    roles = {name: "train" if name == "Training" else "test" for name in present}
    if request.protocol == "official" and tests == ["PublicTest", "PrivateTest"]:
        roles["PublicTest"] = "validation"
    return LoadedDataset(layout, source, whole, usage, roles, "FER-2013", OFFICIAL_COUNTS)


# Class folders: {train,test}/<class>/{Training,PublicTest,PrivateTest}_<id>.jpg


def is_folders(path: Path) -> bool:
    """True where train/ and test/, and no third part, hold classes of FER-2013, and the images are FER-2013's.

    They are by their names, or by their counts. Others' own pictures of expressions are class folders.
    """
    if [folder.name for folder in subfolders(path) if folder.name.lower() in PART_NAMES] != ["test", "train"]:
        return False
    classes = {part: subfolders(path / part) for part in ("train", "test")}
    if not all(inner and all(folder.name.lower() in FOLDER_NAMES for folder in inner) for inner in classes.values()):
        return False
    if any(IMAGE_NAME.match(name) for inner in classes.values() for folder in inner for name in image_names(folder, 5)):
        return True
    counts = {part: [0] * len(CLASS_NAMES) for part in classes}
    for part, inner in classes.items():
        for folder in inner:
            counts[part][FOLDER_NAMES[folder.name.lower()]] += sum(1 for _ in image_names(folder))
    training, *tests = OFFICIAL_COUNTS.values()
    return counts == {"train": list(training), "test": [sum(both) for both in zip(*tests, strict=True)]}


def load_folders(path: Path, request: Request) -> LoadedDataset:
    images = ImageCollection()
    for part in ("train", "test"):
        for folder in subfolders(path / part):
            images.add_folder(list_images(path, part, folder.name), FOLDER_NAMES[folder.name.lower()], part)
    prefixes = [file.name.rsplit("/", 1)[-1].split("_")[0] for file in images.files]
    usage = np.array(
        [
            "Training" if part == "train" else prefix if prefix in USAGES[1:] else TEST
            for part, prefix in zip(images.parts, prefixes, strict=True)
        ],
        dtype=np.str_,
    )
    dataset = build_dataset(path, "FER-2013 folders", images.dataset(path, CLASS_NAMES), usage, request)
    return replace(dataset, notes=ignored(images.others))


# fer2013.csv: emotion,pixels,Usage. icml_face_data.csv: the same rows as "emotion, Usage, pixels".


def find_fer2013_csv(path: Path) -> Path | None:
    file = find_csv(path, "fer2013.csv", COLUMNS)
    return None if file == find_icml_csv(path) else file


def find_icml_csv(path: Path) -> Path | None:
    return find_csv(path, "icml_face_data.csv", ["emotion", "Usage", "pixels"], ordered=True)


def _parse_csv(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.str_]]:
    """(pixels (n, 48, 48), labels in the canonical order (n,), usage (n,)) in the order of the file's rows."""
    pixels: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    usage: list[str] = []
    for number, row in read_table(file, COLUMNS):
        code, text, use = (row[name] for name in COLUMNS)
        values = _numbers(text.translate(PUNCTUATION))
        code = code.removesuffix(".0")
        if len(values) != SIDE * SIDE or values.min() < 0 or values.max() > 255:
            raise UserError(f"{file}, line {number}: expected {SIDE * SIDE} pixels, numbers from 0 to 255")
        if not (code.isdecimal() and int(code) < len(FER_CSV_CODES)):
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


def read_csv(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.str_]]:
    """What `_parse_csv` gives, the pixels memory-mapped: parsed once, and again when the file changes."""
    status = file.stat()
    key = digest(str(file.resolve()), str(status.st_size), str(status.st_mtime_ns), "1")

    def decode(folder: Path) -> None:
        pixels, labels, usage = _parse_csv(file)
        np.save(folder / ARRAYS[0], pixels)
        np.save(folder / ARRAYS[1], labels)
        np.save(folder / ARRAYS[2], usage)

    def load(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.str_]]:
        pixels = np.load(folder / ARRAYS[0], mmap_mode="r")
        return pixels, np.load(folder / ARRAYS[1]), np.load(folder / ARRAYS[2])

    return load_cached(f"fer2013-csv-{key}", decode, load) or _parse_csv(file)


def load_array(file: Path, layout: str, request: Request) -> LoadedDataset:
    pixels, labels, usage = read_csv(file)
    fingerprint = digest(hashlib.sha256(np.ascontiguousarray(pixels).data).digest(), labels.tobytes(), *usage.tolist())
    whole = GreyArray(pixels, labels, CLASS_NAMES, "all", fingerprint, str(file))
    return build_dataset(file, layout, whole, usage, request)


def load_fer2013_csv(path: Path, request: Request) -> LoadedDataset:
    return load_array(find_fer2013_csv(path) or path, "fer2013.csv", request)


def load_icml_csv(path: Path, request: Request) -> LoadedDataset:
    return load_array(find_icml_csv(path) or path, "icml_face_data.csv", request)


# train.csv and test.csv of the same competition: nothing to evaluate on.


def find_competition_csv(path: Path) -> Path | None:
    file = find_csv(path, "train.csv", ["emotion", "pixels"]) or find_csv(path, "test.csv", ["pixels"])
    return None if file is None or find_csv(file, "", ["Usage"]) else file


def refuse_competition_csv(path: Path, request: Request) -> LoadedDataset:
    raise UserError(
        f"{find_competition_csv(path)} is of the competition's train.csv and test.csv: they hold no labels for the "
        "test images, so nothing can be evaluated on them. Use icml_face_data.csv or fer2013.csv, which label all rows."
    )


LAYOUTS = (
    Layout(
        "FER-2013 folders",
        "train/<class>/Training_<id>.jpg and test/<class>/ (angry, disgust, fear, …), or FER-2013's counts",
        is_folders,
        load_folders,
    ),
    Layout("fer2013.csv", "fer2013.csv (emotion,pixels,Usage)", find_fer2013_csv, load_fer2013_csv),
    Layout("icml_face_data.csv", "icml_face_data.csv (emotion, Usage, pixels)", find_icml_csv, load_icml_csv),
    Layout("competition csv", "", find_competition_csv, refuse_competition_csv),
)
