"""What every dataset is to the rest of `train`, and the pieces that datasets are made of."""

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from train.bars import format_table
from train.data.decode import read_picture
from train.errors import UserError
from train.settings import DataOptions, check_bounds

Labels = NDArray[np.int64]
MOST_CLASSES = 12  # of a table of counts
SPLITS = ("train", "validation", "test")


class FaceDataset:
    """One split of a labelled set of faces. Labels are known without opening an image; the order of samples is stable.

    `fingerprint` is a hash of the samples' names, labels and sizes in bytes; it is stored with a run. `stamp` changes
    with the files' times too: what is derived from the pictures is cached under it.
    """

    class_names: tuple[str, ...]
    split: str
    labels: Labels
    fingerprint: str
    stamp: str
    shard: NDArray[np.int64] | None = None  # (n,) the tar file that each sample lies in, of shards

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int, /) -> str:
        """Where the sample is, for people: its file's path, or its row or member of a file."""
        raise NotImplementedError

    def image(self, index: int, /) -> Image.Image:
        """The sample as a PIL image in mode RGB. Raises UserError, naming the file, where it cannot be read."""
        raise NotImplementedError

    def encoded(self, index: int, /) -> tuple[str, bytes]:
        """(suffix, an image file's bytes) that decode to the sample: the bytes of its own file where it has one."""
        return png(self.image(index))


@dataclass(frozen=True)
class Splits:
    """The three splits of a dataset, the name of its layout, and a report to print."""

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
        if lost := [self.train.class_names[at] for at in sorted({*self.train.labels} - {*train.labels})]:
            report += f"\ntrain has no image of {', '.join(lost)} under this limit"
        return Splits(train, validation, test, self.layout, report)


@dataclass(frozen=True)
class Request(DataOptions):
    """What the user asked of a dataset, beside its path: the options of the command line, and a seed for what is drawn.

    on_broken: "fail" raises UserError when an unreadable image is met; "skip" looks for them all before anything
    else and leaves them out. cache: a folder for decoded images, "" for none.
    """

    seed: int = 0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Request":
        """From settings by field name, among others that are no part of it. UserError for one out of its bounds."""
        check_bounds(values)
        return cls(**{item.name: values[item.name] for item in fields(cls) if item.name in values})


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be; `items` names the files, where it is about files."""

    kind: str
    message: str
    items: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadedDataset:
    """A dataset on disk before it is split: all samples, and the part that the dataset itself puts each one in.

    roles: for each part, in the report's order, what it serves for ("train", "validation", "test"). official: the
    published counts per class of each part, in the order of class_names; empty where there are none.
    """

    layout: str
    source: Path
    whole: FaceDataset
    part: NDArray[np.str_] = field(repr=False)
    roles: Mapping[str, str]
    dataset: str = ""
    official: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Layout:
    """A form in which a dataset lies on disk, and how to load it. What `find` gives is true where it lies at a path."""

    name: str
    looked_for: str
    find: Callable[[Path], object]
    load: Callable[[Path, Request], LoadedDataset]


@dataclass
class ImageFiles(FaceDataset):
    """Samples that are image files `root`/`names`[i], or the face inside `boxes`[i] (x0, y0, x1, y1) of one."""

    root: Path
    names: Sequence[str] = field(repr=False)
    labels: Labels
    class_names: tuple[str, ...]
    split: str
    fingerprint: str
    stamp: str
    boxes: NDArray[np.int64] | None = field(default=None, repr=False)

    def path(self, index: int, /) -> Path:
        return self.root / self.names[index]

    def name(self, index: int, /) -> str:
        box = "" if self.boxes is None else f", box {','.join(map(str, self.boxes[index]))}"
        return printable(str(self.path(index))) + box

    def image(self, index: int, /) -> Image.Image:
        try:
            return read_picture(self.path(index), None if self.boxes is None else self.boxes[index])
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and more for broken files
            raise broken(self.name(index), error) from error

    def encoded(self, index: int, /) -> tuple[str, bytes]:
        if self.boxes is not None:
            return super().encoded(index)
        path = self.path(index)
        try:
            return path.suffix.lower(), path.read_bytes()
        except OSError as error:
            raise broken(self.name(index), error) from error


@dataclass
class GreyArray(FaceDataset):
    """Samples that are grey images in one array, (n, h, w) uint8."""

    pixels: NDArray[np.uint8] = field(repr=False)
    labels: Labels
    class_names: tuple[str, ...]
    split: str
    fingerprint: str
    source: str = "array"

    def __post_init__(self) -> None:
        self.stamp = self.fingerprint

    def name(self, index: int, /) -> str:
        return f"{self.source}, row {index + 1}"

    def image(self, index: int, /) -> Image.Image:
        return Image.fromarray(self.pixels[index]).convert("RGB")

    def encoded(self, index: int, /) -> tuple[str, bytes]:
        return png(Image.fromarray(self.pixels[index]))


class Subset(FaceDataset):
    """Some samples of another dataset, under a split's name of its own."""

    def __init__(self, parent: FaceDataset, indices: NDArray[np.int64], split: str) -> None:
        self.parent = parent
        self.indices = indices
        self.split = split
        self.class_names = parent.class_names
        self.labels = parent.labels[indices]
        self.fingerprint = digest(parent.fingerprint, indices.tobytes())
        self.stamp = digest(parent.stamp, indices.tobytes())
        self.shard = None if parent.shard is None else parent.shard[indices]

    def name(self, index: int, /) -> str:
        return self.parent.name(int(self.indices[index]))

    def image(self, index: int, /) -> Image.Image:
        return self.parent.image(int(self.indices[index]))

    def encoded(self, index: int, /) -> tuple[str, bytes]:
        return self.parent.encoded(int(self.indices[index]))


def broken(name: str, error: Exception) -> UserError:
    """The error of an image that cannot be read: its name first, and Pillow's words without the path again."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error).split(": <_io")[0]
    if type(error).__name__ == "UnidentifiedImageError":
        reason = "no image file that Pillow knows"
    return UserError(f"cannot read the image {name}: {printable(reason) or type(error).__name__}")


def png(image: Image.Image) -> tuple[str, bytes]:
    with io.BytesIO() as file:
        image.save(file, "PNG")
        return ".png", file.getvalue()


def list_reasons(reasons: Iterable[str]) -> str:
    """The first ten, a line each, and how many more there are."""
    lines = list(reasons)
    more = [f"and {len(lines) - 10:,} more"] if len(lines) > 10 else []
    return "".join(f"\n  {line}" for line in [*lines[:10], *more])


def printable(text: str) -> str:
    """The text with what no terminal or JSON file takes escaped: line breaks, undecodable bytes of file names."""
    return text if text.isprintable() else ascii(text)[1:-1]


def digest(*parts: str | bytes) -> str:
    """A short hash of the parts in their order."""
    sha = hashlib.sha256()
    for part in parts:
        data = os.fsencode(part) if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()[:16]


def stratified_sample(labels: Labels, fraction: float, seed: int) -> NDArray[np.int64]:
    """Sorted indices of about `fraction` of each class: one at least, and one at least left, where a class has two."""
    rng = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        chosen.append(rng.permutation(members)[:count])
    return np.sort(np.concatenate(chosen)).astype(np.int64) if chosen else np.empty(0, np.int64)


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


def count_table(class_names: Sequence[str], columns: Sequence[tuple[str, Sequence[int]]]) -> str:
    """Counts per class as text: a row per class and the total, a column per (title, counts).

    Of many classes the first ones are shown, and how many more there are with how few and many images.
    """
    totals = ("total", *(f"{sum(counts):,}" for _, counts in columns))
    rows = [(name, *(f"{counts[at]:,}" for _, counts in columns)) for at, name in enumerate(class_names)]
    if len(rows) > MOST_CLASSES:
        left = [counts[MOST_CLASSES - 1 :] for _, counts in columns]
        spans = (f"{min(counts):,}–{max(counts):,}" for counts in left)
        rows[MOST_CLASSES - 1 :] = [(f"{len(left[0])} more classes", *spans)]
    table = [("", *(title for title, _ in columns)), *rows, totals]
    return format_table(table)
