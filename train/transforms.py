"""Images to tensors: the paper's augmentation for training, a plain resize for everything else (torchvision v2).

For training there are two ways, of the same distributions: `Preprocessing.training`, image by image where it is loaded,
and `BatchAugmentation`, a whole batch at once on the device. With the second, loading only decodes.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from train.settings import DataSettings

Transform = Callable[[Image.Image], Tensor]
BILINEAR = v2.InterpolationMode.BILINEAR
RATIO = 0.9, 1.1  # of a crop's sides
DRAWS = 11  # uniform numbers that an augmentation is made of
SMALL = 64  # up to this size BatchAugmentation is the faster one on a CPU


@dataclass(frozen=True)
class Preprocessing:
    """What turns an RGB image into the network's input; stored with the weights."""

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"color": "RGB", "resize": "bilinear, antialiased, to a square"}

    def _to_input(self) -> list[Any]:
        return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(self.mean), list(self.std))]

    def _resize(self) -> Any:
        return v2.Resize((self.image_size, self.image_size), BILINEAR, antialias=True)

    def evaluation(self) -> Transform:
        return v2.Compose([v2.PILToTensor(), self._resize(), *self._to_input()])

    def raw(self, side: int) -> Transform:
        """uint8 (3, h, h): h is `side` where all images are squares of that side up to image_size (0: they are not)."""
        return v2.PILToTensor() if 0 < side <= self.image_size else v2.Compose([v2.PILToTensor(), self._resize()])

    def training(self, settings: DataSettings) -> Transform:
        """Rotation, crop, brightness and contrast (paper, Sec. IV-B) and more where asked, at random, in this order."""
        crop = v2.RandomResizedCrop(
            self.image_size, scale=(settings.crop, 1.0), ratio=RATIO, interpolation=BILINEAR, antialias=True
        )
        steps = [
            v2.PILToTensor(),
            v2.RandomAffine(
                settings.rotation,
                translate=(settings.shift, settings.shift) if settings.shift else None,
                scale=(1 - settings.scale, 1 + settings.scale) if settings.scale else None,
                interpolation=BILINEAR,
            ),
            crop if settings.crop < 1 else self._resize(),
            v2.ColorJitter(brightness=settings.brightness, contrast=settings.contrast),
            v2.RandomHorizontalFlip(0.5 if settings.flip else 0.0),
        ]
        return v2.Compose([*steps, *self._to_input(), v2.RandomErasing(settings.erasing)])


class BatchAugmentation:
    """`Preprocessing.training` for a batch on a device: uint8 images (n, 3, h, h) -> (n, 3, s, s).

    Its other arguments are the images' `draws`, stacked, so that what an image becomes does not depend on its batch.
    Rotation, shift, crop, mirroring and size are one bilinear interpolation; brightness comes before contrast.
    """

    def __init__(self, preprocessing: Preprocessing, settings: DataSettings) -> None:
        self.size = preprocessing.image_size
        self.settings = settings
        self.erasing = v2.RandomErasing(settings.erasing)
        self.mean, self.std = list(preprocessing.mean), list(preprocessing.std)

    def draws(self, seed: int) -> tuple[Tensor, ...]:
        """For one image: (DRAWS,) uniform in [0, 1) and, with erasing, a mask (1, s, s) of what is left of it."""
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(DRAWS, generator=generator)
        if not self.settings.erasing:
            return (uniform,)
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(generator.get_state())
            return uniform, self.erasing(torch.ones(1, self.size, self.size))

    def __call__(self, images: Tensor, draws: Tensor, left: Tensor | None = None) -> Tensor:
        settings = self.settings
        pixels = images.to(torch.float32) / 255
        moved = settings.rotation or settings.shift or settings.scale
        if moved or settings.crop < 1 or settings.flip or images.shape[-1] != self.size:
            grid = nn.functional.affine_grid(self._moves(draws), [len(images), 3, self.size, self.size], False)
            pixels = nn.functional.grid_sample(pixels, grid, "bilinear", "border", False)
            if moved:  # what comes from beyond the picture is black
                pixels = pixels * (grid.abs().amax(-1) <= 1).unsqueeze(1)
        brightness, contrast = (
            (1 + strength * (2 * draw - 1))[:, None, None, None]
            for strength, draw in ((settings.brightness, draws[:, 6]), (settings.contrast, draws[:, 7]))
        )
        if settings.brightness:
            pixels = (pixels * brightness).clamp(0, 1)
        if settings.contrast:
            grey = pixels[:, 0] * 0.2989 + pixels[:, 1] * 0.587 + pixels[:, 2] * 0.114
            mean = grey.mean((1, 2))[:, None, None, None]
            pixels = (contrast * pixels + (1 - contrast) * mean).clamp(0, 1)
        result = v2.functional.normalize(pixels, self.mean, self.std)
        return result if left is None else result * left

    def _moves(self, draws: Tensor) -> Tensor:
        """(n, 2, 3): from a place in the result to the place in the image, both from -1 to 1."""
        settings = self.settings
        turn, area, ratio, across, down, mirror = draws[:, :6].unbind(1)
        angle = (2 * turn - 1) * math.radians(settings.rotation)
        if settings.crop < 1:
            share = settings.crop + (1 - settings.crop) * area
            low, high = (math.log(value) for value in RATIO)
            stretch = torch.exp(low + (high - low) * ratio)
            width, height = (share * stretch).sqrt().clamp(max=1), (share / stretch).sqrt().clamp(max=1)
        else:
            width = height = torch.ones_like(area)
        x, y = (1 - width) * (2 * across - 1), (1 - height) * (2 * down - 1)
        if settings.shift or settings.scale:
            factor = 1 + settings.scale * (2 * draws[:, 8] - 1)
            right, below = (2 * settings.shift * (2 * draws[:, at] - 1) for at in (9, 10))
            width, height, x, y = width / factor, height / factor, (x - right) / factor, (y - below) / factor
        if settings.flip:
            width = torch.where(mirror < 0.5, -width, width)
        cos, sin = angle.cos(), angle.sin()
        rows = [cos * width, -sin * height, cos * x - sin * y, sin * width, cos * height, sin * x + cos * y]
        return torch.stack(rows, 1).view(-1, 2, 3)
