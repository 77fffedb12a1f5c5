"""Datasets: recognised by looking, mapped into one label order, given as three splits."""

from pathlib import Path

from train.data import fer2013
from train.data.base import SPLITS, FaceDataset, Layout, Request, Splits, class_counts, count_table
from train.errors import UserError

__all__ = ["SYNTHETIC", "FaceDataset", "Request", "Splits", "load_data"]

SYNTHETIC = "synthetic"
LAYOUTS: tuple[Layout, ...] = (*fer2013.LAYOUTS,)


def load_data(data: str, request: Request) -> Splits:
    """The dataset at the path `data`, or the procedurally drawn faces for "synthetic".

    Raises UserError where nothing known lies there, saying what was looked for and what is there.
    """
    if data == SYNTHETIC:
        return _synthetic(request)
    path = Path(data).expanduser()
    if not path.exists():
        raise UserError(f"--data {data}: no such file or folder (or say {SYNTHETIC!r} for drawn faces)")
    layout = _recognise(path)
    if layout is None:
        raise UserError(_nothing_fits(path))
    return layout.load(path, request).limited(request.limit, request.seed)


def _recognise(path: Path) -> Layout | None:
    return next((layout for layout in LAYOUTS if layout.recognise(path)), None)


def _nothing_fits(path: Path) -> str:
    looked_for = "".join(f"\n  {layout.looked_for}" for layout in LAYOUTS if layout.looked_for)
    if path.is_file():
        with path.open("rb") as file:
            there = f"a file that begins {file.read(60)!r}"
        return f"{path}: no known dataset. Looked for:{looked_for}\nThere is: {there}"
    entries = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in path.iterdir())
    there = ", ".join(entries[:12]) + (f" and {len(entries) - 12} more" if len(entries) > 12 else "") or "nothing"
    inside = [entry for entry in sorted(path.iterdir()) if entry.is_dir() and _recognise(entry)]
    hint = f"\nDid you mean {inside[0]}?" if inside else ""
    return f"{path}: no known dataset. Looked for:{looked_for}\nThere is: {there}{hint}"


def _synthetic(request: Request) -> Splits:
    from train.data.synthetic import COUNTS, SyntheticFaces

    if request.protocol != "official":
        raise UserError(f"--protocol {request.protocol} is for FER-2013; drawn faces have splits of their own")
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
