"""Any dataset decoded once into one memory-mapped array of uint8, which all processes of a machine then share."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from train.data.base import FaceDataset, GreyArray, Subset, digest
from train.data.store import map_samples
from train.disk import allocate, lock, sync_handle, write_json
from train.errors import UserError

SAVE_SECONDS = 5.0  # of work that a killed process loses


class DecodedImages(FaceDataset):
    """The samples of `source`, their pixels from a file of (n, side, side, 3) bytes; `broken` has the unreadable ones.

    The file is opened by each process for itself, so that an instance travels to a worker as a few names.
    """

    def __init__(self, source: FaceDataset, file: Path, side: int, broken: dict[int, str]) -> None:
        self.source, self.file, self.side, self.broken = source, file, side, broken
        self.class_names, self.split, self.labels = source.class_names, source.split, source.labels
        self.fingerprint, self.stamp = source.fingerprint, source.stamp
        self._pixels: NDArray[np.uint8] | None = None

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """(n, side, side, 3) uint8, memory-mapped; zeros where a sample is broken."""
        if self._pixels is None:
            self._pixels = np.memmap(self.file, np.uint8, "r", shape=(len(self), self.side, self.side, 3))
        return self._pixels

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_pixels": None}

    def name(self, index: int, /) -> str:
        return self.source.name(index)

    def image(self, index: int, /) -> Image.Image:
        if index in self.broken:
            raise UserError(self.broken[index])
        return Image.fromarray(self.pixels[index])

    def encoded(self, index: int, /) -> tuple[str, bytes]:
        return self.source.encoded(index)


def uniform_side(faces: FaceDataset) -> int:
    """The side of the square pictures that all samples are, where that is known without opening them; else 0."""
    if isinstance(faces, Subset):
        return uniform_side(faces.parent)
    if isinstance(faces, GreyArray):
        height, width = faces.pixels.shape[1:]
        return int(height) if height == width else 0
    return faces.side if isinstance(faces, DecodedImages) else 0


def decode(dataset: FaceDataset, folder: Path, size: int, processes: int | None = None) -> DecodedImages:
    """All images in one file in `folder`, named after the dataset's fingerprint and its files' times.

    Pictures that are all of one square size up to `size` are stored unchanged; others are resized as for evaluation,
    to size x size. What a killed process has done is taken up by the next; of several at once, one works and the others
    wait. Raises UserError where the folder cannot be written or the disk is too small.
    """
    name = f"{dataset.fingerprint}-{digest(dataset.stamp)[:8]}-{size}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder, f"{name}.lock", wait=True):  # of a killed process it is free again
            about = folder / f"{name}.json"
            if not _is_whole(about, len(dataset)):
                for side in (_native_side(dataset, size), size):
                    if side and _fill(dataset, folder / name, side, native=side != size, processes=processes):
                        break
            content = json.loads(about.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{folder}: cannot keep decoded images there: {error.strerror or error}") from error
    broken = {int(index): reason for index, reason in content["broken"].items()}
    return DecodedImages(dataset, folder / f"{name}.u8", content["side"], broken)


def _is_whole(about: Path, samples: int) -> bool:
    """Whether the pixels that the file describes are all there: of a copied cache or after a power cut some may not."""
    try:
        side = json.loads(about.read_text(encoding="utf-8"))["side"]
        return about.with_suffix(".u8").stat().st_size == samples * side * side * 3
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _native_side(dataset: FaceDataset, size: int) -> int:
    """The side of the first readable picture where it is square and below `size`, else 0."""
    for index in range(len(dataset)):
        try:
            width, height = dataset.image(index).size
        except UserError:
            continue
        return width if width == height < size else 0
    raise UserError("none of the images can be read" if len(dataset) else "a dataset without an image")


def _fill(dataset: FaceDataset, stem: Path, side: int, native: bool, processes: int | None) -> bool:
    """Decode into `stem`.u8, then write `stem`.json. False where a picture of another size turns up in `native`."""
    partial, progress = stem.with_suffix(".partial"), stem.with_suffix(".progress")
    row = side * side * 3
    state: dict[str, Any] = {"side": side, "done": 0, "broken": {}}
    try:
        earlier = json.loads(progress.read_text(encoding="utf-8"))
        state = earlier if earlier["side"] == side and partial.exists() else state
    except (OSError, ValueError):
        pass
    handle = os.open(partial, os.O_RDWR | os.O_CREAT, 0o644)

    def save() -> None:
        sync_handle(handle, stem.parent)
        write_json(progress, state)

    try:
        os.ftruncate(handle, row * len(dataset))
        allocate(handle, max(row * len(dataset), 1))
        print(f"decoding {len(dataset) - state['done']:,} images, once, to {stem}.u8", flush=True)
        saved = time.monotonic()
        for chunk, results in map_samples(dataset, _decoder(handle, side, native), state["done"], processes):
            if native and "" in results:
                progress.unlink(missing_ok=True)
                return False
            state["broken"] |= {str(i): why for i, why in zip(chunk, results, strict=True) if why is not None}
            state["done"] = chunk.stop
            if time.monotonic() > saved + SAVE_SECONDS:
                save()
                saved = time.monotonic()
        sync_handle(handle, stem.parent)
    except BaseException:
        save()
        raise
    finally:
        os.close(handle)
    partial.rename(stem.with_suffix(".u8"))
    write_json(stem.with_suffix(".json"), {"side": side, "samples": len(dataset), "broken": state["broken"]})
    progress.unlink(missing_ok=True)
    return True


def _decoder(handle: int, side: int, native: bool) -> Callable[[FaceDataset, int], str | None]:
    """Writes one sample to its row: None, or why it cannot be read, or "" for a size that is not the native one."""

    def put(dataset: FaceDataset, index: int) -> str | None:
        try:
            picture = dataset.image(index)
        except UserError as error:
            return str(error)
        if picture.size != (side, side):
            if native:
                return ""
            picture = resized(picture, side)
        os.pwrite(handle, picture.tobytes(), index * side * side * 3)
        return None

    return put


def resized(picture: Image.Image, side: int) -> Image.Image:
    """To a square by the very operation of the evaluation's transform, so that both see the same pixels."""
    import torch
    from torchvision.transforms.v2 import functional

    pixels = functional.resize(functional.pil_to_tensor(picture), [side, side], antialias=True)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().to(torch.uint8).numpy())
