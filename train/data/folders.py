"""Any folder of class folders: train/<class>/…, val/, test/ where there are any, or <class>/… alone."""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from train.data import fer2013, rafdb
from train.data.base import Finding, Layout, LoadedDataset, Request, printable
from train.data.files import (
    ImageCollection,
    has_images,
    ignored,
    image_names,
    list_images,
    single_folder,
    subfolders,
    summarize_names,
)
from train.data.labels import (
    ALIKE,
    CLASS_NAMES,
    CLASS_NAMES_8,
    EXPRESSIONS,
    FER_CSV_CODES,
    PART_NAMES,
    RAF_CODES,
    TEST_NAMES,
    TRAIN_NAMES,
    VALIDATION_NAMES,
)
from train.data.splitting import default_roles
from train.errors import UserError

PARTS = {"train": TRAIN_NAMES, "validation": VALIDATION_NAMES, "test": TEST_NAMES}
# What numbers for classes stand for elsewhere
NUMBERINGS = {
    "FER-2013 (fer2013.csv)": {str(code): CLASS_NAMES[label] for code, label in enumerate(FER_CSV_CODES)},
    "AffectNet": {str(code): name for code, name in enumerate(CLASS_NAMES_8)},
    "RAF-DB": {str(code): CLASS_NAMES[label] for code, label in enumerate(RAF_CODES, start=1)},
}


def find_parts(path: Path) -> dict[str, Path]:
    """The folders of parts that hold class folders; "train" is `path` itself where it has no such parts.

    Pictures that lie in train/ and test/ themselves have no classes. Raises UserError where two folders are the same
    part.
    """
    inner = subfolders(path)
    parts = {}
    for part, names in PARTS.items():
        present = [folder for folder in inner if folder.name.lower() in names and _classes(folder)]
        if folder := single_folder(present, f"the {part} images"):
            parts[part] = folder
    if "train" in parts:
        return parts
    classes = [folder.name.lower() for folder in _classes(path)]
    return {"train": path} if not parts and len(classes) >= 2 and not set(classes) <= PART_NAMES else {}


def _classes(part: Path) -> list[Path]:
    """The folders in a part, where images lie in at least one of them."""
    folders = subfolders(part)
    return folders if any(map(has_images, folders)) else []


def order_classes(names: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str], str]:
    """(class names in their order, each folder's class, what to say about it) for the folders' names."""
    if all(_plain(name) in EXPRESSIONS for name in names):
        labels = {name: EXPRESSIONS[_plain(name)] for name in names}
        used = [CLASS_NAMES_8[label] for label in sorted(set(labels.values()))]
        mapped = {name: CLASS_NAMES_8[label] for name, label in labels.items()}
        return tuple(used), mapped, f"classes are expressions, in the canonical order: {', '.join(used)}"
    mapped = {name: unicodedata.normalize("NFC", printable(name)) for name in names}  # macOS writes e and ´ apart
    ordered = sorted(set(mapped.values()), key=lambda name: (not name.isdecimal(), _int(name), name))
    return tuple(ordered), mapped, f"classes are the folders' names: {', '.join(ordered)}"


def _plain(name: str) -> str:
    return name.strip().lower()


def _int(name: str) -> int:
    return int(name) if name.isdecimal() else 0


def load(path: Path, request: Request) -> LoadedDataset:
    parts = find_parts(path)
    folders = {part: _classes(folder) for part, folder in parts.items()}
    names = sorted({folder.name for inner in folders.values() for folder in inner})
    class_names, mapped, note = order_classes(names)
    _check_classes(path, class_names, {part: {mapped[one.name] for one in inner} for part, inner in folders.items()})
    if request.classes == 7 and class_names == CLASS_NAMES_8:
        class_names, note = CLASS_NAMES, f"{note}; without Contempt"
        mapped = {folder: name for folder, name in mapped.items() if name in class_names}
    samples = ImageCollection()
    filled: set[str] = set()
    for part, inner in folders.items():
        for folder in inner:
            if folder.name not in mapped:
                continue
            listing = list_images(path, folder.relative_to(path).as_posix())
            samples.add_folder(listing, class_names.index(mapped[folder.name]), part)
            filled |= {folder.name} if listing.images else set()
    if empty := [name for name in names if name in mapped and name not in filled]:
        raise UserError(
            f"{path}: no image in the class folder{'' if len(empty) == 1 else 's'} {', '.join(empty)}; "
            "remove what is no class"
        )
    whole = samples.dataset(path, class_names)
    findings = _numbers(names, np.bincount(whole.labels, minlength=len(class_names)).tolist())
    findings += (*_misspelt(names, beside=parts["train"] == path), *_unread(path, parts))
    layout = "class folders, " + (f"{', '.join(parts)}" if parts["train"] != path else "no parts")
    roles, notes = default_roles(list(parts)), (note, *ignored(samples.others), *_loose(parts.values()))
    return LoadedDataset(layout, path, whole, samples.part(), roles, notes=notes, findings=findings)


def _check_classes(path: Path, class_names: Sequence[str], by_part: Mapping[str, set[str]]) -> None:
    """UserError for one class alone, or for one that another part writes with other capitals, spaces or zeros."""
    if len(class_names) < 2:
        raise UserError(f"{path}: expected two classes or more, found {', '.join(class_names)} alone")
    alike: dict[str, list[str]] = {}
    for name in class_names:
        alike.setdefault(str(_int(name)) if name.isdecimal() else _plain(name), []).append(name)
    for same in alike.values():
        where = {part: [name for name in same if name in present] for part, present in by_part.items()}
        if len(same) > 1 and all(len(present) < 2 for present in where.values()):
            locations = ", ".join(f"{part}/{present[0]}" for part, present in where.items() if present)
            raise UserError(f"{path}: {locations} would be different classes: give the folders the same name")


def _loose(parts: Iterable[Path]) -> tuple[str, ...]:
    """A note on images that lie beside the class folders of a part."""
    names = [f"{part.name}/{name}" for part in parts for name in sorted(image_names(part))]
    return (f"{summarize_names(names)} beside the class folders: not read",) if names else ()


def _numbers(names: Sequence[str], counts: list[int]) -> tuple[Finding, ...]:
    """Classes that are numbers could be anyone's codes: which of the known ones they may be, by their counts if so."""
    if not all(name.isdecimal() for name in names):
        return ()
    lines = ["classes are numbers; what they mean cannot be seen. Rename the folders to expressions. Known codes:"]
    fits = [title for title, codes in NUMBERINGS.items() if set(names) <= set(codes)]
    lines += [f"  {title}: " + ", ".join(f"{c} {n}" for c, n in NUMBERINGS[title].items()) for title in fits]
    for title, official in (("FER-2013 (fer2013.csv)", fer2013.OFFICIAL_COUNTS), ("RAF-DB", rafdb.OFFICIAL_COUNTS)):
        totals = dict(zip(CLASS_NAMES, np.sum(list(official.values()), axis=0).tolist(), strict=True))
        codes = NUMBERINGS[title]
        if title in fits and [totals[codes[name]] for name in sorted(names, key=int)] == counts:
            lines.append(f"  the counts are those of {title}")
    return (Finding("class numbers", "\n".join(lines)),) if len(lines) > 1 else ()


def _misspelt(names: Sequence[str], beside: bool) -> tuple[Finding, ...]:
    """Class folders that are almost called by an expression, beside others that are, or several of them; and those
    called like a part of the data where there are no parts (`beside`)."""
    if beside and (parts := [name for name in names if _plain(name) in VALIDATION_NAMES | TEST_NAMES]):
        message = f"read as a class, beside the others: {', '.join(map(printable, parts))}; a part has class folders"
        return (Finding("class names", message, tuple(map(printable, parts))),)
    others = [name for name in names if _plain(name) not in EXPRESSIONS]
    close = {printable(name): like for name in others if (like := _expression_like(name))}
    if not close or (len(others) == len(names) and 2 * len(close) <= len(names)):
        return ()
    suggestions = ", ".join(f"{name} ({like}?)" for name, like in close.items())
    several = len(close) > 1
    message = (
        f"{'classes' if several else 'a class'} of {'their' if several else 'its'} own, by folder name: {suggestions}; "
        "rename the folder to the expression if it is one"
    )
    return (Finding("class names", message, tuple(close)),)


def _expression_like(name: str) -> str:
    """The expression that a folder's name may mean: 1_happy, hapy, suprise, AF; "" for none."""
    for word in re.findall(r"[^\W\d_]+", name.lower()):
        if word in ALIKE:
            return ALIKE[word]
        if like := [word] if word in EXPRESSIONS else difflib.get_close_matches(word, EXPRESSIONS, n=1, cutoff=0.7):
            return CLASS_NAMES_8[EXPRESSIONS[like[0]]]
    return ""


def _unread(path: Path, parts: Mapping[str, Path]) -> tuple[Finding, ...]:
    """Folders beside the parts of which nothing is read: misspelt parts, with class folders, and parts without."""
    if parts["train"] == path:
        return ()
    beside = [folder for folder in subfolders(path) if folder not in parts.values()]
    findings = []
    if others := [folder.name for folder in beside if folder.name.lower() not in PART_NAMES and _classes(folder)]:
        message = f"{summarize_names(others, what='folder')} beside {parts['train'].name}/ with class folders in it: "
        message += f"not read; parts are called {', '.join('/'.join(sorted(names)) for names in PARTS.values())}"
        findings.append(Finding("unread folders", message, tuple(map(printable, others))))
    if unsorted := [folder.name for folder in beside if folder.name.lower() in PART_NAMES]:
        message = (
            f"{summarize_names(unsorted, what='folder')} without class folders that hold images themselves: not read"
        )
        findings.append(Finding("unread folders", message, tuple(map(printable, unsorted))))
    return tuple(findings)


LAYOUTS = (
    Layout(
        "class folders",
        "train/<class>/ with val/ or test/ or neither, or two <class>/ folders and more, of image files",
        find_parts,
        load,
    ),
)
