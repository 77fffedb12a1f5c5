"""AffectNet: the old release (tables of paths, boxes and codes) and that of 2021 (cropped faces, .npy annotations)."""

import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from train.data.base import Layout, LoadedDataset, Request, digest
from train.data.files import ImageCollection, is_hidden, list_images, single_folder
from train.data.labels import CLASS_NAMES_8
from train.data.store import cached_json
from train.data.tables import header, read_table
from train.errors import UserError

# AffectNet's codes are this project's order. 8 None, 9 Uncertain and 10 No-Face are no classes.
TRAIN_COUNTS = (74874, 134415, 25459, 14090, 6378, 3803, 24882, 3750)
OFFICIAL_COUNTS = {"train": TRAIN_COUNTS, "validation": (500,) * 8}
OFFICIAL_COUNTS_2021 = {"train": TRAIN_COUNTS, "validation": (*(500,) * 7, 499)}
ROLES = {"train": "train", "validation": "test"}  # the test set was never published
COLUMNS = (
    "subDirectory_filePath", "face_x", "face_y", "face_width", "face_height", "facial_landmarks", "expression",
    "valence", "arousal",
)  # fmt: skip
USED = (*COLUMNS[:5], "expression")
TABLES = {"train": "training.csv", "validation": "validation.csv"}
TABLE_FOLDERS = ("", "Manually_Annotated_file_lists")
IMAGE_FOLDERS = ("Manually_Annotated_Images", "Manually_Annotated/Manually_Annotated_Images")
SETS = {"train": ("train_set",), "validation": ("val_set", "valid_set", "eval_set")}


def _build_dataset(
    layout: str,
    path: Path,
    images: ImageCollection,
    root: Path,
    request: Request,
    official: Mapping[str, tuple[int, ...]],
    note: str,
    missing: str,
) -> LoadedDataset:
    roles = {name: role for name, role in ROLES.items() if name in images.parts}
    class_names = _class_names(request)
    counts = {name: row[: len(class_names)] for name, row in official.items()}
    whole, findings = images.dataset(root, class_names), images.missing_finding(missing)
    return LoadedDataset(layout, path, whole, images.part(), roles, "AffectNet", counts, (note,), findings)


def _class_names(request: Request) -> tuple[str, ...]:
    return CLASS_NAMES_8[: request.classes or 7]


# The old release: several faces in a picture, each with its box.


def _tables(path: Path) -> dict[str, Path]:
    files = {}
    for part, name in TABLES.items():
        for folder in TABLE_FOLDERS:
            file = path / folder / name
            if file.is_file() and (part == "validation" or COLUMNS[0] in header(file)):
                files[part] = file
                break
    return files


def load_old(path: Path, request: Request) -> LoadedDataset:
    tables = _tables(path)
    if "validation" not in tables:
        raise UserError(f"{path}: AffectNet's training.csv without validation.csv, on which it is tested")
    images = next((path / name for name in IMAGE_FOLDERS if (path / name).is_dir()), None)
    if images is None:
        raise UserError(f"{path}: AffectNet's tables without pictures (looked for {' and '.join(IMAGE_FOLDERS)})")
    classes = len(_class_names(request))
    by_name = {file.name: file for file in list_images(images).images}
    samples = ImageCollection()
    for part, table in tables.items():
        headed = COLUMNS[0] in header(table)  # validation.csv is seen without a header too
        for number, row in read_table(table, USED if headed else COLUMNS, headed):
            try:
                label = int(row["expression"])
                if label >= classes or float(row["face_width"]) < 0:
                    samples.skipped += 1
                    continue
                x, y, width, height = (round(float(row[f"face_{side}"])) for side in ("x", "y", "width", "height"))
            except ValueError as error:
                raise UserError(f"{table}, line {number}: expected numbers for the box and the expression") from error
            name = row["subDirectory_filePath"]
            if name in by_name:
                samples.add(by_name[name], label, part, (x, y, x + width, y + height))
            else:
                samples.missing.append(name)
    note = (
        f"faces: cropped by the tables' boxes; {samples.skipped:,} rows of other classes or without a face are left out"
    )
    missing = "in the tables, but not there"
    return _build_dataset(
        "AffectNet, release with boxes", path, samples, images, request, OFFICIAL_COUNTS, note, missing
    )


# The release of 2021: cropped to 224 x 224, <id>.jpg with <id>_exp.npy.


def _sets(path: Path) -> dict[str, Path]:
    """Raises UserError where two folders are the same part."""
    sets = {}
    for part, names in SETS.items():
        folders = [path / name for name in names]
        folders = [
            folder for folder in folders if all((folder / inner).is_dir() for inner in ("images", "annotations"))
        ]
        if folder := single_folder(folders, f"AffectNet's {part} images"):
            sets[part] = folder
    return sets


def load_2021(path: Path, request: Request) -> LoadedDataset:
    samples = ImageCollection()
    sets = _sets(path)
    if "validation" not in sets:
        raise UserError(f"{path}: AffectNet's train_set without {', '.join(SETS['validation'])}, on which it is tested")
    for part, folder in sets.items():
        listing = list_images(path, folder.name, "images")
        by_name = {Path(file.name).stem: file for file in listing.images}
        annotated = expressions(folder / "annotations")
        for stem, label in annotated.items():
            if not 0 <= label < len(_class_names(request)):
                samples.skipped += 1
            elif stem in by_name:
                samples.add(by_name[stem], label, part)
            else:
                samples.missing.append(f"{folder.name}/images/{stem}.jpg")
        alone = sorted(by_name.keys() - annotated.keys())
        samples.missing += [f"{folder.name}/annotations/{stem}_exp.npy" for stem in alone]
    note = f"{samples.skipped:,} annotations of other classes are left out"
    missing = "missing: image or annotation alone"
    return _build_dataset(
        "AffectNet, release of 2021", path, samples, path, request, OFFICIAL_COUNTS_2021, note, missing
    )


def expressions(annotations: Path) -> dict[str, int]:
    """The code of each <id>_exp.npy, by id in sorted order: opened once, then only when a size or time changes."""
    with os.scandir(annotations) as entries:
        files = [entry for entry in entries if entry.name.endswith("_exp.npy") and not is_hidden(entry.name)]
        scanned = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    stems = [name.removesuffix("_exp.npy") for name, _, _ in scanned]
    key = digest(str(annotations.resolve()), *(f"{name} {size} {time}" for name, size, time in scanned), "2")

    codes = cached_json(f"affectnet-{key}", lambda: [_code(annotations / name) for name, _, _ in scanned])
    return dict(zip(stems, codes, strict=True))


def _code(file: Path) -> int:
    """The one value of a file: a string such as "3", or a number."""
    try:
        value = np.load(io.BytesIO(file.read_bytes()), allow_pickle=False)
        return int(value.item())
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file}: expected one expression's code, as a string or a number: {error}") from error


LAYOUTS = (
    Layout(
        "AffectNet, release with boxes",
        "training.csv and validation.csv (subDirectory_filePath,…) with Manually_Annotated_Images/ (AffectNet)",
        lambda path: "train" in _tables(path),
        load_old,
    ),
    Layout(
        "AffectNet, release of 2021",
        "train_set/ and val_set/, each with images/ and annotations/<id>_exp.npy (AffectNet)",
        lambda path: "train" in _sets(path),
        load_2021,
    ),
)
