"""Datasets: recognised by looking, mapped into one label order, given as three splits."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from train.data import affectnet, fer2013, ferplus, folders, rafdb, shards
from train.data.base import (
    SPLITS,
    FaceDataset,
    Finding,
    Found,
    Layout,
    Request,
    Splits,
    class_counts,
    count_table,
    printable,
)
from train.data.splitting import make_splits
from train.errors import UserError

__all__ = ["SYNTHETIC", "FaceDataset", "Request", "Splits", "find_data", "load_data"]

SYNTHETIC = "synthetic"
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
    if data == SYNTHETIC:
        return _synthetic(request)
    found = find_data(data, request)
    if request.limit:
        return _usable_parts(make_splits(found, request).limited(request.limit, request.seed), request)
    whole, left_out = _usable(found.whole, request)
    part = np.delete(found.part, np.fromiter(left_out, np.int64)) if left_out else found.part
    findings = (*found.findings, *_about(left_out))
    return make_splits(replace(found, whole=whole, part=part, findings=findings), request)


def find_data(data: str, request: Request) -> Found:
    """What lies at the path `data`, every sample that its layout lists, before any is split off or left out."""
    if request.on_broken not in ("skip", "fail"):
        raise UserError(f"--on-broken {request.on_broken}: expected skip or fail")
    path = Path(data).expanduser()
    if not path.exists():
        raise UserError(f"--data {data}: no such file or folder (or say {SYNTHETIC!r} for drawn faces)")
    layout = _recognise(path)
    if layout is None:
        raise UserError(_nothing_fits(path))
    try:
        return layout.load(path, request)
    except OSError as error:
        raise UserError(f"{path}: {layout.name}: {error.filename}: {error.strerror}") from error


def _usable(faces: FaceDataset, request: Request) -> tuple[FaceDataset, dict[int, str]]:
    """The samples to work with, decoded and kept where asked for, and those that were left out as unreadable."""
    from train.data.decoded import cached
    from train.data.store import unreadable, without

    left_out: dict[int, str] = {}
    if request.cache:
        faces, left_out = cached(faces, Path(request.cache).expanduser(), request.image_size, request.on_broken)
    elif request.on_broken == "skip":
        left_out = unreadable(faces)
    return without(faces, left_out), left_out


def _usable_parts(splits: Splits, request: Request) -> Splits:
    parts, findings = [], []
    for part in (splits.train, splits.validation, splits.test):
        faces, left_out = _usable(part, request)
        parts.append(faces)
        findings += [f"{part.split}: {finding.message}" for finding in _about(left_out)]
    train, validation, test = parts
    return Splits(train, validation, test, splits.layout, "\n".join([splits.report, *findings]))


def _about(left_out: dict[int, str]) -> tuple[Finding, ...]:
    if not left_out:
        return ()
    reasons = tuple(left_out.values())
    more = (f"  and {len(reasons) - 10:,} more",) if len(reasons) > 10 else ()
    lines = (f"left out {len(reasons):,} unreadable:", *(f"  {reason}" for reason in reasons[:10]), *more)
    return (Finding("unreadable", "\n".join(lines), reasons),)


def _recognise(path: Path) -> Layout | None:
    return next((layout for layout in LAYOUTS if layout.recognise(path)), None)


def _nothing_fits(path: Path) -> str:
    looked_for = "".join(f"\n  {layout.looked_for}" for layout in LAYOUTS if layout.looked_for)
    if path.is_file():
        with path.open("rb") as file:
            there = f"a file that begins {file.read(60)!r}"
        return f"{path}: no known dataset. Looked for:{looked_for}\nThere is: {there}"
    entries = sorted(printable(entry.name) + ("/" if entry.is_dir() else "") for entry in path.iterdir())
    there = ", ".join(entries[:12]) + (f" and {len(entries) - 12} more" if len(entries) > 12 else "") or "nothing"
    inside = [entry for entry in sorted(path.iterdir()) if entry.is_dir() and _recognise(entry)]
    hint = f"\nDid you mean {inside[0]}?" if inside else ""
    return f"{path}: no known dataset. Looked for:{looked_for}\nThere is: {there}{hint}"


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
