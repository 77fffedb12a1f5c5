"""Images to tensors: the paper's augmentation for training, a plain resize for everything else (torchvision v2)."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from train.settings import DataSettings

Transform = Callable[[Image.Image], Tensor]
BILINEAR = v2.InterpolationMode.BILINEAR


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

    def evaluation(self) -> Transform:
        resize = v2.Resize((self.image_size, self.image_size), BILINEAR, antialias=True)
        return v2.Compose([v2.PILToTensor(), resize, *self._to_input()])

    def training(self, settings: DataSettings) -> Transform:
        """Rotation, crop, brightness and contrast (paper, Sec. IV-B), at random and in this order."""
        crop = v2.RandomResizedCrop(
            self.image_size, scale=(settings.crop, 1.0), ratio=(0.9, 1.1), interpolation=BILINEAR, antialias=True
        )
        resize = v2.Resize((self.image_size, self.image_size), BILINEAR, antialias=True)
        steps = [
            v2.PILToTensor(),
            v2.RandomRotation(settings.rotation, interpolation=BILINEAR),
            crop if settings.crop < 1 else resize,
            v2.ColorJitter(brightness=settings.brightness, contrast=settings.contrast),
            v2.RandomHorizontalFlip(0.5 if settings.flip else 0.0),
        ]
        return v2.Compose([*steps, *self._to_input()])
