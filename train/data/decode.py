"""One picture from a file or its bytes, whatever kind it is, to 8-bit RGB the way it is meant to be seen."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

ORIENTATION = 0x0112  # the EXIF tag


def read_picture(source: Path | bytes, box: Sequence[int] | np.ndarray | None = None) -> Image.Image:
    """The whole picture, or the part inside box (x0, y0, x1, y1), in mode RGB.

    The format is detected from the content, not from the suffix; the pixels are those of `to_rgb`. Raises whatever
    Pillow does for a file that is damaged, cut short or no image, and ValueError for a kind that `to_rgb` refuses or a
    box outside the picture.
    """
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
        picture = to_rgb(file)
    if box is None:
        return picture
    x0, y0, x1, y1 = (int(edge) for edge in box)
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, picture.width), min(y1, picture.height)
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"its face's box lies outside of its {picture.width} x {picture.height} pixels")
    return picture.crop((x0, y0, x1, y1))


def to_rgb(picture: Image.Image) -> Image.Image:
    """A picture, as Pillow opened it, in mode RGB: how every picture is read, in training and after.

    A camera's rotation (EXIF) is applied; 16 bits a channel become 8; floats from 0 to 1 become 0 to 255; transparent
    pixels become white. Raises ValueError for other pixels of 32 bits, which have no one meaning in 8.
    """
    picture.load()
    return _eight_bits(_upright(picture))


def _upright(picture: Image.Image) -> Image.Image:
    try:
        turned = picture.getexif().get(ORIENTATION, 1) != 1
    except Exception:  # damaged EXIF of a picture that is whole
        return picture
    return ImageOps.exif_transpose(picture) if turned else picture


def _eight_bits(picture: Image.Image) -> Image.Image:
    if picture.mode in ("L", "RGB") and "transparency" not in picture.info:
        return picture.convert("RGB")
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG"):
        values = np.asarray(picture).astype(np.int64) >> 8
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        numbers = np.asarray(picture)
        low, high = numbers.min(), numbers.max()
        if picture.mode == "F" and low >= 0 and high <= 1:  # false for NaN
            return Image.fromarray((numbers * 255).round().astype(np.uint8)).convert("RGB")
        expected = "floats from 0 to 1, or at most 16 bits"
        raise ValueError(f"pixels of 32 bits (mode {picture.mode}) from {low:g} to {high:g}; expected {expected}")
    if "A" in picture.getbands() or "transparency" in picture.info:
        over = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return picture.convert("RGB")
