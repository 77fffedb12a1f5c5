"""Procedurally drawn faces: the data that needs no download. They are synthetic, and no measure of real pictures.

A person, an expression made of facial action units, and a view (pose, light, occlusion, camera) are drawn for each
sample from generators that depend on the seed, the split and the sample's index alone.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from train.bars import bar
from train.data.base import SPLITS, FaceDataset, Labels, digest
from train.data.labels import CLASS_NAMES
from train.data.synthetic.drawing import draw_face
from train.data.synthetic.face import Person, View, sample_units
from train.errors import UserError
from train.workers import default_processes, map_in_processes

GENERATOR_VERSION = 1  # to be raised with every change that changes a picture or a label
TABLE_1 = (6198, 8989, 6077, 4002, 5121, 547, 4953)  # FER-2013's faces per class as the paper counts them
COUNTS = {"train": 4200, "validation": 700, "test": 700}
PEOPLE = {"train": 800, "validation": 200, "test": 200}
SMALLEST, LARGEST = 16, 1024  # pixels


class SyntheticFaces(FaceDataset):
    """One split of the drawn faces: FER-2013's class imbalance in "train", equal classes in "validation" and "test".

    Args: split, one of "train", "validation" and "test" (they share no person); size, the pictures' height and width
    in pixels; count, the number of samples, where None is 4,200 for "train" and 700 for the others; seed, >= 0.
    Sample i is the same picture for every `count`. Raises UserError for any other argument.
    """

    class_names = CLASS_NAMES

    def __init__(self, split: str, size: int = 64, count: int | None = None, seed: int = 0) -> None:
        if split not in SPLITS:
            raise UserError(f"split is {split!r}; drawn faces have {', '.join(SPLITS)}")
        if not SMALLEST <= size <= LARGEST:
            raise UserError(f"image size is {size}; drawn faces need {SMALLEST} to {LARGEST} pixels")
        if count is not None and count < 1:
            raise UserError(f"count is {count}; expected at least one sample")
        if seed < 0:
            raise UserError(f"seed is {seed}; expected an integer of at least 0")
        self.split, self.size, self.seed = split, size, seed
        weights = TABLE_1 if split == "train" else (1,) * len(CLASS_NAMES)
        self.labels = _spread_labels(weights, COUNTS[split] if count is None else count)
        self.fingerprint = digest("synthetic", *(str(v) for v in (GENERATOR_VERSION, split, size, len(self), seed)))
        self.stamp = self.fingerprint
        self._drawn: NDArray[np.uint8] | None = None

    def image(self, index: int, /) -> Image.Image:
        """Sample `index` as a PIL image in mode RGB; raises IndexError where there is none."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return Image.fromarray(self._draw(index) if self._drawn is None else self._drawn[index])

    def name(self, index: int, /) -> str:
        return f"drawn face {index} of {self.split}"

    def array(self, processes: int | None = None) -> NDArray[np.uint8]:
        """All samples, uint8 (count, size, size, 3), drawn by `processes` (None: one per core) once and then kept.

        To be called before a DataLoader starts its workers: they may not start processes of their own.
        """
        if self._drawn is None:
            if processes is None:
                processes = min(default_processes(), len(self) // 100)
            parts = [range(start, min(start + 50, len(self))) for start in range(0, len(self), 50)]
            parts_drawn = map_in_processes(self._draw_all, parts, processes, "drawing faces")
            self._drawn = np.concatenate([*bar(parts_drawn, f"drawing faces, {self.split}", total=len(parts))])
        return self._drawn

    def person(self, index: int, /) -> Person:
        """Who is in sample `index`; a person recurs in several samples of one split and in no other split."""
        return self._person(self._generator(index))

    def _generator(self, index: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, SPLITS.index(self.split), 1, index])

    def _person(self, rng: np.random.Generator) -> Person:
        who = int(rng.integers(PEOPLE[self.split]))
        return Person.sample(np.random.default_rng([self.seed, SPLITS.index(self.split), 0, who]))

    def _draw(self, index: int) -> NDArray[np.uint8]:
        rng = self._generator(index)
        person, view = self._person(rng), View.sample(rng)
        return draw_face(person, view, sample_units(int(self.labels[index]), rng), self.size)

    def _draw_all(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        return np.stack([self._draw(index) for index in indices])


def _spread_labels(weights: Sequence[int], count: int) -> Labels:
    """(count,) labels in the proportions of `weights`, each class spread evenly, so that any prefix has them too."""
    shares = np.asarray(weights) / sum(weights)
    members = np.ceil(shares * count).astype(int) + 1
    labels = np.repeat(np.arange(len(shares)), members)
    times = np.concatenate([(np.arange(m) + 0.5) / share for m, share in zip(members, shares, strict=True)])
    return labels[np.argsort(times, kind="stable")][:count].astype(np.int64)
