"""FERPlus: fer2013new.csv, ten votes a row, beside the fer2013.csv that holds the pictures."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from train.data.base import GreyArray, Layout, LoadedDataset, Request, Subset, digest
from train.data.fer2013 import build_dataset, find_fer2013_csv, find_icml_csv, read_csv
from train.data.labels import CLASS_NAMES_8, FERPLUS_COLUMNS
from train.data.tables import find_csv, read_table
from train.errors import UserError

VOTES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF")
COLUMNS = ["Usage", "Image name", *VOTES]
RULES = {
    "majority": "single votes do not count; the class with more than half of the others",
    "plurality": "the class with the most votes, where there is one",
}


def find_votes(path: Path) -> Path | None:
    return find_csv(path, "fer2013new.csv", COLUMNS)


def decide(votes: NDArray[np.int64], rule: str) -> NDArray[np.int64]:
    """The column that each row of votes (n, 10) chooses by the rule of RULES, or -1 where none does."""
    counted = np.where(votes > 1, votes, 0) if rule == "majority" else votes
    most = counted.max(axis=1)
    if rule == "majority":
        chosen = 2 * most > counted.sum(axis=1)
    else:
        chosen = (counted == most[:, None]).sum(axis=1) == 1
    return np.where(chosen, counted.argmax(axis=1), -1)


def read_votes(file: Path) -> tuple[NDArray[np.str_], NDArray[np.bool_], NDArray[np.int64]]:
    """(usage (n,), whether the row has an image's name (n,), votes (n, 10)), in the file's order."""
    usage, named, votes = [], [], []
    for number, row in read_table(file, COLUMNS):
        use, name, *cells = row.values()
        if not all(cell.isdecimal() for cell in cells):
            raise UserError(f"{file}, line {number}: expected a usage, a name and {len(VOTES)} numbers of votes")
        usage.append(use)
        named.append(bool(name))
        votes.append([int(cell) for cell in cells])
    return np.array(usage, np.str_), np.array(named, bool), np.array(votes, np.int64).reshape(-1, len(VOTES))


def load(path: Path, request: Request) -> LoadedDataset:
    file = find_votes(path)
    assert file is not None
    pictures = find_fer2013_csv(file.parent) or find_icml_csv(file.parent)
    if pictures is None:
        raise UserError(
            f"{file} holds FERPlus's votes and no pictures: put fer2013.csv beside it. It joins that file row by row; "
            "to FER-2013's folders it cannot be joined"
        )
    if request.votes not in RULES:
        raise UserError(f"--votes {request.votes}: expected {' or '.join(RULES)}")
    usage, named, votes = read_votes(file)
    pixels, fer_labels, fer_usage = read_csv(pictures)
    if len(usage) != len(fer_usage):
        raise UserError(f"{file} has {len(usage):,} rows, {pictures} {len(fer_usage):,}: they belong to other sets")
    if (differing := np.flatnonzero(usage != fer_usage)).size:
        at = int(differing[0])
        raise UserError(f"{file}, line {at + 2}: Usage {usage[at]}, and {fer_usage[at]} in {pictures}: rows were moved")

    classes = request.classes or 7
    column = decide(votes, request.votes)
    labels = np.array([*FERPLUS_COLUMNS, 8, 9, -1])[column]  # 8 unknown, 9 no face, -1 undecided
    usable = named & (labels >= 0) & (labels < classes)
    left_out = {
        "without a name": ~named,
        "undecided": named & (labels < 0),
        "contempt": named & (labels == 7) & (classes == 7),
        "unknown or no face": named & (labels >= 8),
    }
    counts = ", ".join(f"{int(rows.sum()):,} {why}" for why, rows in left_out.items() if rows.any())
    names = CLASS_NAMES_8[:classes]
    fingerprint = digest(str(pixels.shape), np.ascontiguousarray(pixels).data.tobytes(), labels.tobytes())
    whole = GreyArray(pixels, np.where(usable, labels, 0), names, "all", fingerprint, str(pictures))
    part = Subset(whole, np.flatnonzero(usable), "all")
    dataset = build_dataset(file, f"FERPlus ({request.votes} of votes)", part, usage[usable], request)
    notes = (
        f"votes to labels by {request.votes}: {RULES[request.votes]}",
        f"left out: {counts or 'nothing'}",
        f"the labels of {pictures.name} itself: --data {pictures}",
    )
    return replace(dataset, dataset="FER-2013", official={}, notes=notes)


LAYOUTS = (Layout("FERPlus", "fer2013new.csv (FERPlus's votes) beside fer2013.csv", find_votes, load),)
