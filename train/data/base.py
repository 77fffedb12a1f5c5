"""What every dataset is to the rest of `train`, and the pieces that datasets are made of."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from train.errors import UserError

Labels = NDArray[np.int64]
SPLITS = ("train", "validation", "test")


class FaceDataset(Protocol):
    """One split of a labelled set of faces. Labels are known without opening an image; the order of samples is stable.

    `fingerprint` changes when the samples or their labels do; it is stored with a run.
    """

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def split(self) -> str: ...

    @property
    def labels(self) -> Labels: ...

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def image(self, index: int, /) -> Image.Image:
        """The sample as a PIL image in mode RGB. Raises UserError, naming the file, where it cannot be read."""
        ...


@dataclass(frozen=True)
class Splits:
    """A dataset as found: its three splits, the name of its layout, and what there is to say about it."""

    train: FaceDataset
    validation: FaceDataset
    test: FaceDataset
    layout: str
    report: str

    def limited(self, count: int, seed: int) -> "Splits":
        """At most `count` images of each split, drawn in the classes' proportions; 0 is no limit."""
        if not count:
            return self
        train, validation, test = (limit(part, count, seed) for part in (self.train, self.validation, self.test))
        report = f"{self.report}\nlimited to {len(train):,} train, {len(validation):,} validation, {len(test):,} test"
        return Splits(train, validation, test, self.layout, report)


@dataclass(frozen=True)
class Request:
    """What the user asked of a dataset, beside its path."""

    image_size: int = 224
    protocol: str = "official"
    validation_fraction: float = 0.1
    limit: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Layout:
    """One way in which a dataset is found on disk."""

    name: str
    looked_for: str
    recognise: Callable[[Path], bool]
    load: Callable[[Path, Request], Splits]


@dataclass(frozen=True)
class ImageFiles:
    """Samples that are image files of their own."""

    samples: Sequence[Path]
    labels: Labels
    class_names: tuple[str, ...]
    split: str
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int, /) -> Image.Image:
        path = self.samples[index]
        try:
            with Image.open(path) as picture:
                return picture.convert("RGB")
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and more for broken files
            raise UserError(f"cannot read the image {path}: {error}") from error


@dataclass(frozen=True)
class GreyArray:
    """Samples that are grey images in one array, (n, h, w) uint8."""

    pixels: NDArray[np.uint8] = field(repr=False)
    labels: Labels
    class_names: tuple[str, ...]
    split: str
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int, /) -> Image.Image:
        return Image.fromarray(self.pixels[index]).convert("RGB")


class Subset:
    """Some samples of another dataset, under a split's name of its own."""

    def __init__(self, parent: FaceDataset, indices: NDArray[np.int64], split: str) -> None:
        self.parent = parent
        self.indices = indices
        self.split = split
        self.class_names = parent.class_names
        self.labels = parent.labels[indices]
        self.fingerprint = digest(parent.fingerprint, indices.tobytes())

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int, /) -> Image.Image:
        return self.parent.image(int(self.indices[index]))


def digest(*parts: str | bytes) -> str:
    """A short hash of the parts in their order."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()[:16]


def draw_stratified(labels: Labels, fraction: float, seed: int) -> NDArray[np.int64]:
    """Sorted indices of about `fraction` of each class: one at least, and one at least left, where a class has two."""
    rng = np.random.default_rng(seed)
    drawn = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        drawn.append(rng.permutation(members)[:count])
    return np.sort(np.concatenate(drawn)).astype(np.int64) if drawn else np.empty(0, np.int64)


def limit(dataset: FaceDataset, count: int, seed: int) -> FaceDataset:
    """At most `count` samples, drawn in the classes' proportions."""
    if count >= len(dataset):
        return dataset
    order = np.random.default_rng(seed).permutation(len(dataset))
    by_class = order[np.argsort(dataset.labels[order], kind="stable")]
    spread = np.linspace(0, len(dataset) - 1, count).round().astype(np.int64)
    return Subset(dataset, np.sort(by_class[spread]).astype(np.int64), dataset.split)


def class_counts(dataset: FaceDataset) -> tuple[int, ...]:
    return tuple(np.bincount(dataset.labels, minlength=len(dataset.class_names)).tolist())


def count_table(class_names: Sequence[str], rows: Sequence[tuple[str, Sequence[int]]]) -> str:
    """Counts per class as text: one row per (title, counts), a column per class and the total."""
    width = max(len(title) for title, _ in rows)
    lines = [" " * width + "".join(f"{name:>10}" for name in (*class_names, "total"))]
    for title, counts in rows:
        lines.append(f"{title:<{width}}" + "".join(f"{count:>10,}" for count in (*counts, sum(counts))))
    return "\n".join(lines)
