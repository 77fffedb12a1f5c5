"""Tar shards in WebDataset's style, with an index that makes every sample addressable.

index.json          class names, and per split: fingerprint, shards, and each sample's label, offset and bytes
train-00000.tar, …  <number>.jpg (or .png, …: the file's own bytes), <number>.cls (the label), <number>.json (its name)

An uncompressed tar keeps each file's bytes in one piece, so that a sample is one read at a known place: the same
samplers as for everything else work on it, exact resume included. `stream_order` is for disks and networks that want
long reads: every worker of every rank then reads shards of its own from one end to the other. Shards may be links to
other disks.
"""

import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from train import owned_folder
from train.data.base import SPLITS, FaceDataset, Labels, Layout, LoadedDataset, Request, Splits, broken, digest
from train.data.decode import read_picture
from train.data.splitting import default_roles
from train.data.store import fault
from train.errors import UserError

FORMAT = "adcorre shards 1"
INDEX = "index.json"
SHARD_FILES = (INDEX, f"*-{'[0-9]' * 5}.tar")


class Shards(FaceDataset):
    """One or more splits in tar files: samples (file, offset, bytes) with labels."""

    shard: NDArray[np.int64]

    def __init__(self, folder: Path, index: dict[str, Any], splits: Sequence[str]) -> None:
        self.folder, self.split = folder, "all"
        self.class_names = tuple(index["class_names"])
        parts = [index["splits"][split] for split in splits]
        self.files = [shard["file"] for part in parts for shard in part["shards"]]
        sizes = [shard["samples"] for part in parts for shard in part["shards"]]
        self.shard = np.repeat(np.arange(len(sizes)), sizes)
        self.labels, self.offsets, self.sizes = (
            np.concatenate([np.array(part[name], dtype=np.int64) for part in parts])
            for name in ("labels", "offsets", "bytes")
        )
        self.part = np.repeat(np.array(splits, np.str_), [len(part["labels"]) for part in parts])
        self.fingerprint = digest(*(part["fingerprint"] for part in parts))
        self.stamp = digest(os.path.abspath(folder), self.fingerprint, str((folder / INDEX).stat().st_mtime_ns))
        self._handles: dict[int, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_handles": {}}

    def name(self, index: int, /) -> str:
        return f"{self.folder / self.files[self.shard[index]]}, byte {self.offsets[index]}"

    def image(self, index: int, /) -> Image.Image:
        try:
            return read_picture(self._bytes(index))
        except Exception as error:  # as for files of their own
            raise broken(self.name(index), error) from error

    def encoded(self, index: int, /) -> tuple[str, bytes]:
        data = self._bytes(index)
        with Image.open(io.BytesIO(data)) as picture:
            return "." + (picture.format or "jpg").lower().replace("jpeg", "jpg"), data

    def _bytes(self, index: int) -> bytes:
        shard = int(self.shard[index])
        if shard not in self._handles:  # one per process; reading at a place moves no other reader
            self._handles[shard] = os.open(self.folder / self.files[shard], os.O_RDONLY)
        return os.pread(self._handles[shard], int(self.sizes[index]), int(self.offsets[index]))

    def __del__(self) -> None:
        for handle in getattr(self, "_handles", {}).values():
            os.close(handle)


def stream_order(
    faces: FaceDataset, seed: int, epoch: int, window: int, world: int, lanes: int, batch_size: int
) -> NDArray[np.int64]:
    """(n,) int64: the samples of an epoch for `world` ranks, each with `lanes` workers, that read shards as streams.

    `faces` is a split of a folder of shards. Place p of the order is rank p % world's, and of a rank's places each run
    of `batch_size` is the next worker's. Every worker has a span of its own of the shards, in a random order, and goes
    through it from its beginning to its end, samples shuffled within about `window` places; the last batches of an
    epoch mix what is left of the spans. Every sample comes once, and the order is a function of the arguments alone, so
    that it can be taken up anywhere.
    """
    shard = faces.shard
    assert shard is not None
    rng = np.random.default_rng([seed, epoch])
    rank = rng.permutation(int(shard.max(initial=0)) + 1)
    order = np.empty(len(shard), np.int64)
    for at, local in enumerate(np.array_split(np.argsort(rank[shard], kind="stable"), world)):
        blocks: list[NDArray[np.int64]] = []
        places: list[float] = []
        for lane, span in enumerate(np.array_split(local, lanes)):
            mixed = span[np.argsort(np.arange(len(span)) + rng.uniform(0, window, len(span)), kind="stable")]
            parts = [mixed[start : start + batch_size] for start in range(0, len(mixed), batch_size)]
            blocks += parts
            places += [
                number * lanes + lane if len(part) == batch_size else np.inf for number, part in enumerate(parts)
            ]
        turns = np.argsort(places, kind="stable")
        order[at::world] = np.concatenate([blocks[turn] for turn in turns]) if blocks else local
    return order


def is_shards(path: Path) -> bool:
    try:
        with (path / INDEX).open(encoding="utf-8") as file:
            return FORMAT in file.read(200)
    except (OSError, ValueError):
        return False


def load(path: Path, request: Request) -> LoadedDataset:
    try:
        index = json.loads((path / INDEX).read_text(encoding="utf-8"))
        splits = [split for split in SPLITS if split in index["splits"]]
        whole = Shards(path, index, splits)
        expected = {s["file"]: s["bytes"] for split in splits for s in index["splits"][split]["shards"]}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / INDEX}: damaged: {error}") from error
    for name, size in expected.items():
        stored_size = (path / name).stat().st_size if (path / name).is_file() else -1
        if stored_size != size:
            state = f"has {stored_size:,} bytes" if stored_size >= 0 else "is missing"
            raise UserError(f"{path / name} {state}; the index says {size:,}: copy it again")
    notes = (f"shards of: {index['layout']}", f"{len(expected):,} tar files, {sum(expected.values()) / 2**20:,.1f} MiB")
    roles = default_roles(splits)
    return LoadedDataset("tar shards", path, whole, whole.part, roles, notes=notes)


LAYOUTS = (Layout("tar shards", f"{INDEX} beside tar files, as `python -m train.data shard` writes", is_shards, load),)


def shard(data: str, out: Path, *, samples_per_shard: int, **options: Any) -> None:
    """Write the dataset at the path `data` to `out` and say what is there; `options` are fields of the request."""
    from train.data import load_data

    request = Request.of(options)
    splits = load_data(data, request)
    print(splits.report)
    index = write_shards(splits, out, samples_per_shard, request.on_broken)
    for name, split in index["splits"].items():
        size = sum(shard["bytes"] for shard in split["shards"]) / 2**20
        print(f"{name}: {len(split['labels']):,} images in {len(split['shards']):,} tar files, {size:,.1f} MiB")
    for reason in index["left_out"]:
        print(f"left out: {reason}")
    print(f"written to {out}")


def write_shards(splits: Splits, out: Path, samples_per_shard: int, on_broken: str = "fail") -> dict[str, Any]:
    """Write the three splits to the folder `out`, which appears once it is whole; what index.json says.

    Every image is decoded once, so that no shard holds one that cannot be read: it is left out and listed under
    "left_out", or raises UserError where on_broken is "fail". So does a folder that has something in it.
    """
    owned_folder.check_vacant(out)
    partial = owned_folder.prepare(out.with_name(out.name + ".partial"), "shards", SHARD_FILES, "shards are written to")
    try:
        index: dict[str, Any] = {"format": FORMAT, "class_names": list(splits.train.class_names)}
        index |= {"layout": splits.layout, "splits": {}, "left_out": []}
        for split in (splits.train, splits.validation, splits.test):
            index["splits"][split.split] = _write_split(split, partial, samples_per_shard, on_broken, index["left_out"])
        (partial / INDEX).write_text(json.dumps(index, ensure_ascii=True), encoding="utf-8")
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        raise UserError(f"{out}: cannot write the shards: {error.strerror or error}") from error
    finally:
        owned_folder.clear(partial, (*SHARD_FILES, owned_folder.MARK))
        owned_folder.remove_if_empty(partial)
    return index


def _write_split(
    faces: FaceDataset, folder: Path, samples_per_shard: int, on_broken: str, left_out: list[str]
) -> dict[str, Any]:
    readable = []
    for at in range(len(faces)):
        if (reason := fault(faces, at)) is None:
            readable.append(at)
        elif on_broken == "fail":
            raise UserError(f"{reason} (--on-broken skip leaves such images out)")
        else:
            left_out.append(reason)
    shards, offsets, sizes = [], [], []
    for start in range(0, len(readable), samples_per_shard):
        file = folder / f"{faces.split}-{start // samples_per_shard:05d}.tar"
        members = readable[start : start + samples_per_shard]
        with file.open("wb") as stream, tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for number, at in enumerate(members, start=start):
                suffix, data = faces.encoded(at)
                key, label = f"{number:08d}", int(faces.labels[at])
                offsets.append(_add(tar, f"{key}{suffix or '.img'}", data))
                sizes.append(len(data))
                _add(tar, f"{key}.cls", str(label).encode())
                about = {"name": faces.name(at), "label": label, "class": faces.class_names[label]}
                _add(tar, f"{key}.json", json.dumps(about, ensure_ascii=True).encode())
        shards.append({"file": file.name, "samples": len(members), "bytes": file.stat().st_size})
    labels: Labels = faces.labels[np.array(readable, dtype=np.int64)]
    counts = np.bincount(labels, minlength=len(faces.class_names)).tolist()
    fingerprint = faces.fingerprint if len(readable) == len(faces) else digest(faces.fingerprint, *map(str, readable))
    return {
        "fingerprint": fingerprint,
        "counts": dict(zip(faces.class_names, counts, strict=True)),
        "shards": shards,
        "labels": labels.tolist(),
        "offsets": offsets,
        "bytes": sizes,
    }


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a file; the place of its first byte. Nothing of the machine or the hour goes in."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(member, io.BytesIO(data))
    return offset
