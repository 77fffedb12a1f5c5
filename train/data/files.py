"""The image files and folders below a folder."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from train.data.base import Finding, ImageFiles, digest, printable
from train.errors import UserError
from train.owned_folder import MARK

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
)
# Folders that operating systems and network drives leave beside one's own
SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is left out everywhere: .ipynb_checkpoints, ._1.jpg, __MACOSX."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES and not is_hidden(name)


@dataclass(frozen=True)
class File:
    """A file below some root. bytes is -1 where a link leads nowhere; all links to one file have its identity."""

    name: str
    bytes: int
    time: int
    identity: tuple[int, int] = (0, 0)


@dataclass
class Listing:
    """Files that are images by their suffix, sorted by name, and the names of all others."""

    images: list[File] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def list_images(root: Path, *below: str) -> Listing:
    """Every file in the folder `root`/`below`, at any depth; names are relative to `root`.

    Hidden ones are left out, and folders that this program wrote: a run's confusion matrix is no face.
    Links are followed, but not into a folder that leads here. Pipes and devices are no files.
    """
    listing = Listing()
    parents = [folder.stat() for folder in (root / "/".join(below)).resolve().parents]
    _walk(root, "/".join(below), tuple((status.st_dev, status.st_ino) for status in parents), listing)
    listing.images.sort(key=lambda file: file.name)
    listing.others.sort()
    return listing


def _walk(root: Path, name: str, above: tuple[tuple[int, int], ...], listing: Listing) -> None:
    here = root / name
    status = here.stat()
    identity = status.st_dev, status.st_ino
    if identity in above:
        return
    with os.scandir(here) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            inner = f"{name}/{entry.name}" if name else entry.name
            is_image = is_image_name(entry.name)
            try:
                if entry.is_dir():
                    if not os.path.lexists(os.path.join(entry.path, MARK)):
                        _walk(root, inner, (*above, identity), listing)
                elif entry.is_file():
                    if is_image:
                        status = entry.stat()
                        identity_of = status.st_dev, status.st_ino
                        listing.images.append(File(inner, status.st_size, status.st_mtime_ns, identity_of))
                    else:
                        listing.others.append(inner)
                    continue
            except OSError:
                if not entry.is_symlink():  # a link to itself; a folder that may not be read is an error
                    raise
            if entry.is_symlink() and is_image and not os.path.exists(entry.path):
                listing.images.append(File(inner, -1, 0))


def ignored(others: Sequence[str]) -> tuple[str, ...]:
    """A note on files in class folders that are no images by their suffix."""
    return (f"{summarize_names(others)} ignored: no image's suffix",) if others else ()


def summarize_names(names: Sequence[str], most: int = 5, what: str = "file") -> str:
    """ "3 files (a, b, c)", with the first few of many."""
    shown = ", ".join(printable(name) for name in names[:most])
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{len(names):,} {what}{'' if len(names) == 1 else 's'} ({shown}{more})"


def image_names(folder: Path, most: int | None = None) -> Iterator[str]:
    """The names of images in the folder itself, in no order, at most so many: a look, for recognising."""
    try:
        with os.scandir(folder) as entries:
            yield from islice((e.name for e in entries if is_image_name(e.name) and e.is_file()), most)
    except OSError:
        return


def has_images(folder: Path) -> bool:
    return any(image_names(folder, 1))


def subfolders(path: Path) -> list[Path]:
    """The folders in a folder, sorted by name; [] if `path` is not a folder.

    Hidden ones are left out, and those that this program wrote. Raises OSError for a folder that cannot be read, so
    that nothing is left out silently.
    """
    try:
        folders = [entry for entry in path.iterdir() if not is_hidden(entry.name) and entry.is_dir()]
        return sorted(entry for entry in folders if not os.path.lexists(entry / MARK))
    except (FileNotFoundError, NotADirectoryError):
        return []


def single_folder(folders: Sequence[Path], what: str) -> Path | None:
    """The one folder; None where there is none. Raises UserError that names them where there are several."""
    if len(folders) > 1:
        names = " and ".join(printable(folder.name) for folder in folders)
        raise UserError(f"{folders[0].parent}: {names} are both {what}: merge them, or move one elsewhere")
    return folders[0] if folders else None


def _is_linked(one: Path, other: Path) -> bool:
    """Whether paths with the same number of a file are links to one: there are filesystems that repeat numbers."""
    return os.path.realpath(one) == os.path.realpath(other) or one.stat().st_nlink > 1


@dataclass
class ImageCollection:
    """Image files with a label and a part each, as a loader comes upon them, and what it could not use."""

    files: list[File] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    boxes: list[Sequence[int]] = field(default_factory=list)  # one for each file, or none at all
    others: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    skipped: int = 0

    def add(self, file: File, label: int, part: str, box: Sequence[int] | None = None) -> None:
        self.files.append(file)
        self.labels.append(label)
        self.parts.append(part)
        if box is not None:
            self.boxes.append(box)

    def add_folder(self, listing: Listing, label: int, part: str) -> None:
        for file in listing.images:
            self.add(file, label, part)
        self.others += listing.others

    def part(self) -> NDArray[np.str_]:
        return np.array(self.parts, np.str_)

    def _check_links(self, root: Path) -> None:
        """A test/ that is a link to train/ is tested on what was trained on. With boxes a file is several faces."""
        if self.boxes:
            return
        seen: dict[tuple[int, int], int] = {}
        for place, file in enumerate(self.files):
            first = seen.setdefault(file.identity, place) if file.identity[1] else place  # Windows may have no number
            several = self.parts[first] != self.parts[place]
            differ = several or self.labels[first] != self.labels[place]
            if differ and _is_linked(root / self.files[first].name, root / file.name):
                kind = "parts of the data" if several else "classes"
                names = " and ".join(printable(self.files[at].name) for at in (first, place))
                raise UserError(f"{names} are one file, by a link, in two {kind}: remove one of them")

    def missing_finding(self, words: str) -> tuple[Finding, ...]:
        finding = Finding("missing", f"{summarize_names(self.missing)} {words}", tuple(self.missing))
        return (finding,) if self.missing else ()

    def dataset(self, root: Path, class_names: tuple[str, ...]) -> ImageFiles:
        """The files as one dataset, in their order. UserError for one file, without boxes, in two parts or classes."""
        self._check_links(root)
        corners = np.array(self.boxes, dtype=np.int64).reshape(len(self.files), 4) if self.boxes else None
        lines = [f"{file.name} {label} {file.bytes}" for file, label in zip(self.files, self.labels, strict=True)]
        fingerprint = digest(*lines, *([] if corners is None else [corners.tobytes()]))
        stamp = digest(os.path.abspath(root), fingerprint, *(str(file.time) for file in self.files))
        names, labels = [file.name for file in self.files], np.array(self.labels, dtype=np.int64)
        return ImageFiles(root, names, labels, class_names, "all", fingerprint, stamp, corners)
