"""The data that a run was trained on, loaded again to evaluate it, and nothing that it has learnt from among them."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.command import read_run_file
from train.data import Request, Splits, load_data
from train.data.base import FaceDataset, Subset, digest
from train.data.labels import CLASS_NAMES_8, EXPRESSIONS
from train.errors import UserError
from train.resume import describe_data
from train.run_folder import Trained

KEEP = (
    "Put the images back as they were (what was added, to another folder), or evaluate on other data by --data. "
    "What the run itself measured stands in its results.json"
)


def load_run_data(
    run: Path,
    trained: Trained,
    split: str,
    *,
    data: str | None = None,
    protocol: str | None = None,
    limit: int | None = None,
) -> tuple[FaceDataset, Splits, bool]:
    """(the split of that name, all splits, whether they are of the data that the run was trained on).

    They are drawn as for the run, with its seed, unless the arguments say otherwise. Raises UserError where nothing
    says which data, where no class is one of the model's, and where the run's own data have changed or the split
    would hold images that the run was trained on.
    """
    stored = read_run_file(run, "settings.json").get("settings", {})
    values = dict(stored.get("data", {}))
    path = data or values.get("data")
    if not path:
        raise UserError(f"{run}: no settings.json says what it was trained on; give --data")
    values |= {"image_size": trained.preprocessing.image_size, "seed": stored.get("run", {}).get("seed", 0)}
    request = Request.of(values)
    requested: dict[str, Any] = {
        name: value for name, value in (("protocol", protocol), ("limit", limit)) if value is not None
    }

    before = trained.description.get("data", {})
    if data is None or is_same_place(data, values.get("data", "")):
        splits = _load(path, request, trained)
        if changed := _changes(before, splits, split):
            raise UserError(f"{path} is not what the run was trained on ({changed}). {KEEP}")
    else:
        copy = _own_data_elsewhere(path, request, trained, split)
        if copy is None:
            default = Request()
            classes = 8 if request.classes == 8 else default.classes
            other = dataclasses.replace(request, protocol=default.protocol, limit=default.limit, classes=classes)
            splits = _load(path, dataclasses.replace(other, **requested), trained)
            return getattr(splits, split), splits, False
        splits = copy
    if any(getattr(request, name) != value for name, value in requested.items()):
        learnt = sample_names(splits.train)
        splits = _load(path, dataclasses.replace(request, **requested), trained)
        seen = len(learnt & sample_names(getattr(splits, split))) if split != "train" else 0
        if seen:
            options = " ".join(f"--{name} {value}" for name, value in requested.items())
            raise UserError(f"{options}: the run was trained on {seen:,} images of this {split} split; leave it out")
    return getattr(splits, split), splits, True


def _load(path: str, request: Request, trained: Trained) -> Splits:
    """The splits, their classes the model's, by name."""
    return map_classes(load_data(path, request), trained.class_names, path)


class Renamed(Subset):
    """The samples whose class is one of `class_names`, by name, labelled by their place among these."""

    def __init__(self, parent: FaceDataset, class_names: tuple[str, ...], places: NDArray[np.int64]) -> None:
        """`places`: for each class of the parent its place in class_names, or -1."""
        labels = places[parent.labels]
        super().__init__(parent, np.flatnonzero(labels >= 0), parent.split)
        self.class_names, self.labels = class_names, labels[labels >= 0]
        self.fingerprint = digest(self.fingerprint, *class_names)


def map_classes(splits: Splits, class_names: tuple[str, ...], path: str) -> Splits:
    """The splits with the classes that a model knows: angry is Anger. Images of other classes are left out, and said.

    Raises UserError where no class is known.
    """
    data_names = splits.test.class_names
    if data_names == class_names:
        return splits
    known = {canonical_class(name): place for place, name in enumerate(class_names)}
    places = np.array([known.get(canonical_class(name), -1) for name in data_names])
    if (places < 0).all():
        raise UserError(
            f"--data {path} has the classes {', '.join(data_names)}; the model was trained on "
            f"{', '.join(class_names)}: no name is the same"
        )
    same = [(name, class_names[at]) for name, at in zip(data_names, places, strict=True) if at >= 0]
    renamed = ", ".join(f"{name} = {own}" for name, own in same if name != own)
    lines = [f"classes are the model's, by name{f': {renamed}' if renamed else ''}"]
    parts = (splits.train, splits.validation, splits.test)
    for place in np.flatnonzero(places < 0):
        counts = ", ".join(f"{(part.labels == place).sum():,} of {part.split}" for part in parts)
        lines.append(f"left out, as the model has no class {data_names[place]}: {counts}")
    if absent := [name for at, name in enumerate(class_names) if at not in places]:
        lines.append(f"without images, though the model may predict them: {', '.join(absent)}")
    train, validation, test = (Renamed(part, class_names, places) for part in parts)
    return Splits(train, validation, test, splits.layout, "\n".join([splits.report, *lines]))


def canonical_class(name: str) -> str:
    """One name for an expression, however a folder calls it; of any other class its own, in lower case."""
    plain = name.strip().lower()
    return CLASS_NAMES_8[EXPRESSIONS[plain]] if plain in EXPRESSIONS else plain


def is_same_place(one: str, other: str) -> bool:
    return one == other or Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def _own_data_elsewhere(path: str, request: Request, trained: Trained, split: str) -> Splits | None:
    """The splits of a copy of the run's data; None where these are others."""
    try:
        splits = load_data(path, request)
    except UserError:
        return None
    before = trained.description.get("data", {})
    return None if not before or _changes(before, splits, split) else splits


def _changes(before: dict[str, Any], splits: Splits, split: str) -> str:
    """What differs from the data that the run began with; "" where the split is the same."""
    now = describe_data(splits)
    if not before:
        return "its checkpoint does not say which images those were"
    if before["fingerprints"][split] == now["fingerprints"][split]:
        return ""
    counts = [
        f"{name} {before['images'][name]:,} images then, {now['images'][name]:,} now"
        for name in now["images"]
        if before["images"][name] != now["images"][name]
    ]
    layout = f"{before['layout']} then, {now['layout']} now; " if before["layout"] != now["layout"] else ""
    return f"{layout}{'; '.join(counts) or 'as many images, with other names, sizes or labels'}; fingerprints differ"


def sample_names(faces: FaceDataset) -> set[str]:
    return {faces.name(index) for index in range(len(faces))}
