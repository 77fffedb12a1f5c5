"""Datasets: recognised by looking, mapped into one label order, given as three splits."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from train.data import affectnet, fer2013, ferplus, folders, rafdb, shards
from train.data.base import (
    SPLITS,
    FaceDataset,
    Finding,
    Layout,
    LoadedDataset,
    Request,
    Splits,
    Subset,
    class_counts,
    count_table,
    list_reasons,
    printable,
)
from train.data.files import is_hidden
from train.data.regimes import add_label_noise, subsample_long_tail
from train.data.splitting import counts_by_part, make_splits
from train.data.store import unreadable
from train.errors import UserError
from train.settings import SYNTHETIC

__all__ = ["SYNTHETIC", "FaceDataset", "Request", "Splits", "find_data", "load_data"]

# FERPlus's votes come with fer2013.csv, so they are looked for first; class folders are what is left.
LAYOUTS: tuple[Layout, ...] = (
    *shards.LAYOUTS,
    *ferplus.LAYOUTS,
    *fer2013.LAYOUTS,
    *rafdb.LAYOUTS,
    *affectnet.LAYOUTS,
    *folders.LAYOUTS,
)


def load_data(data: str, request: Request) -> Splits:
    """The dataset at the path `data`, or the procedurally drawn faces for "synthetic".

    Raises UserError where nothing known lies there, saying what was looked for and what is there.
    """
    splits = _synthetic(request) if data == SYNTHETIC else _load(data, request)
    train, notes = splits.train, [splits.report]
    if request.long_tail:
        train = subsample_long_tail(train, request.long_tail, request.seed)
        notes.append(f"train thinned out to a long tail: {_counts(train)}")
    if request.label_noise:
        before, train = train.labels, add_label_noise(train, request.label_noise, request.seed)
        changed = f"{np.count_nonzero(before != train.labels):,} of {len(train):,} differ"
        notes.append(f"{request.label_noise:.0%} of the training labels redrawn ({changed})")
    return replace(splits, train=train, report="\n".join(notes))


def _counts(faces: FaceDataset) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in zip(faces.class_names, class_counts(faces), strict=True))


def _load(data: str, request: Request) -> Splits:
    dataset = find_data(data, request)
    whole = dataset.whole
    left_out: dict[int, str] = {}
    if request.cache and not request.limit:
        whole, left_out = _cached(whole, request)
    elif request.on_broken == "skip":
        left_out = unreadable(whole)
    if left_out:  # before the draw: with or without a limit or a cache it is the same
        rest = np.setdiff1d(np.arange(len(whole)), np.fromiter(left_out, np.int64))
        message = f"left out {len(left_out):,} unreadable:{list_reasons(left_out.values())}"
        finding = Finding("unreadable", message, tuple(left_out.values()))
        whole, part = Subset(whole, rest, whole.split), dataset.part[rest]
        dataset = replace(dataset, part=part, findings=(*dataset.findings, finding))
    dataset = replace(dataset, whole=whole)
    dataset = replace(dataset, findings=tuple(dict.fromkeys((*dataset.findings, *_absent(dataset)))))
    splits = make_splits(dataset, request).limited(request.limit, request.seed)
    if request.cache and request.limit:
        train, validation, test = (_cached(part, request)[0] for part in (splits.train, splits.validation, splits.test))
        splits = replace(splits, train=train, validation=validation, test=test)
    return splits


def find_data(data: str, request: Request) -> LoadedDataset:
    """What lies at the path `data`, every sample that its layout lists, before any is split off or left out."""
    path = Path(data).expanduser()
    if not path.exists():
        raise UserError(f"--data {data}: no such file or folder (or say {SYNTHETIC!r} for drawn faces)")
    layout = _find_layout(path)
    if layout is None:
        raise UserError(_unknown_layout(path))
    try:
        dataset = layout.load(path, request)
    except OSError as error:
        raise UserError(f"{path}: {layout.name}: {error.filename}: {error.strerror}") from error
    return replace(dataset, findings=(*dataset.findings, *_absent(dataset)))


def _cached(faces: FaceDataset, request: Request) -> tuple[FaceDataset, dict[int, str]]:
    from train.data.decoded import cached

    return cached(faces, Path(request.cache).expanduser(), request.image_size, request.on_broken)


def _absent(dataset: LoadedDataset) -> tuple[Finding, ...]:
    """Classes that some part has no image of."""
    lacking = {
        part: [name for name, count in zip(dataset.whole.class_names, counts, strict=True) if not count]
        for part, counts in counts_by_part(dataset).items()
    }
    return tuple(
        Finding("absent classes", f"{part} has no image of {', '.join(absent)}")
        for part, absent in lacking.items()
        if absent
    )


def _find_layout(path: Path) -> Layout | None:
    return next((layout for layout in LAYOUTS if layout.find(path)), None)


def _unknown_layout(path: Path) -> str:
    looked_for = "".join(f"\n  {layout.looked_for}" for layout in LAYOUTS if layout.looked_for)
    if path.is_file():
        with path.open("rb") as file:
            content = f"a file that begins {file.read(60)!r}"
        return f"{path}: no known dataset. Looked for:{looked_for}\nThere is: {content}"
    entries = sorted(printable(entry.name) + ("/" if entry.is_dir() else "") for entry in path.iterdir())
    content = ", ".join(entries[:12]) + (f" and {len(entries) - 12} more" if len(entries) > 12 else "") or "nothing"
    inside = [entry for entry in sorted(path.iterdir()) if _is_inside(entry) and _find_layout(entry)]
    hint = f"\nDid you mean {inside[0]}?" if inside else ""
    return f"{path}: no known dataset. Looked for:{looked_for}\nThere is: {content}{hint}"


def _is_inside(entry: Path) -> bool:
    return not is_hidden(entry.name) and (entry.is_dir() or entry.suffix.lower() == ".csv")


def _synthetic(request: Request) -> Splits:
    from train.data.synthetic.dataset import COUNTS, SyntheticFaces

    if request.protocol != "official":
        raise UserError(f"--protocol {request.protocol} is for FER-2013; drawn faces have splits of their own")
    if request.classes not in (0, 7):
        raise UserError(f"--classes {request.classes}: drawn faces have 7")
    parts: list[FaceDataset] = []
    for split in SPLITS:
        count = min(request.limit or COUNTS[split], COUNTS[split])
        part = SyntheticFaces(split, size=request.image_size, count=count, seed=request.seed)
        part.array()  # all at once, on every core
        parts.append(part)
    rows = [(part.split, class_counts(part)) for part in parts]
    report = f"procedurally drawn faces (synthetic: no picture of a person)\n{count_table(parts[0].class_names, rows)}"
    train, validation, test = parts
    return Splits(train, validation, test, "synthetic faces", report)
