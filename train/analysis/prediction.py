"""Pictures in, probabilities and annotated pictures out."""

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from train.analysis.outputs import Flipped
from train.command import check_at_least, device_of, made
from train.errors import UserError
from train.run_folder import load_trained

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
Named = tuple[Path, Path]  # where a picture is, and its name in the output folder


def predict(options: Any) -> None:
    """`options` as `train.predict.parser` gives them. Raises UserError where no picture at all can be read."""
    check_at_least(options, batch_size=1)
    pictures = list(found_pictures(options.images))
    device = device_of(options.device)
    trained = load_trained(options.run, device)
    model = Flipped(trained.model) if options.flip else trained.model
    transform = trained.preprocessing.evaluation()
    out = made(options.out)
    annotated = made(out / "pictures") if options.pictures else None
    remaining, broken, read = iter(pictures), 0, 0
    with (out / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "class", *trained.class_names])
        while batch := list(islice(remaining, options.batch_size)):
            opened = [(named, image) for named in batch if (image := opened_picture(named[0])) is not None]
            broken += len(batch) - len(opened)
            if not opened:
                continue
            with torch.inference_mode():
                logits, _ = model(torch.stack([transform(image) for _, image in opened]).to(device))
            for ((path, name), image), row in zip(opened, logits.double().softmax(1).tolist(), strict=True):
                best = max(range(len(row)), key=row.__getitem__)
                writer.writerow([path, trained.class_names[best], *(f"{value:.6f}" for value in row)])
                if annotated:
                    target = annotated / name.with_name(name.name + ".png")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    annotate(image, trained.class_names, row).save(target)
            read += len(opened)
    if not read:
        raise UserError(f"none of {len(pictures):,} pictures could be read")
    left_out = f", {broken:,} left out" if broken else ""
    print(f"{read:,} pictures{left_out}; {out / 'predictions.csv'}{f', {annotated}' if annotated else ''}")


def found_pictures(places: Sequence[Path]) -> Iterator[Named]:
    """The pictures at the places: a file as it is, whatever its name, of a folder all that are called as pictures are.

    No two get the same name, and none one that leads out of a folder.
    """
    taken: set[Path] = set()
    for place in places:
        if place.is_dir():
            inside = [path for path in sorted(place.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
            if not inside:
                raise UserError(f"{place}: no pictures in this folder")
        elif place.is_file():
            inside = [place]
        else:
            raise UserError(f"{place}: no such file or folder")
        for path in inside:
            name = path.relative_to(place) if place.is_dir() else Path(path.name)
            number = 2
            plain = name
            while name in taken:
                name = plain.with_name(f"{plain.stem}-{number}{plain.suffix}")
                number += 1
            taken.add(name)
            yield path, name


def opened_picture(path: Path) -> Image.Image | None:
    """The picture in RGB, upright; None, and its name on stderr, where it cannot be read."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and more for broken files
        print(f"left out: cannot read the image {path}: {error}", file=sys.stderr)
        return None


def annotate(image: Image.Image, class_names: Sequence[str], probabilities: Iterable[float]) -> Image.Image:
    """The picture, enlarged if small, with a bar per class below it, the most likely one in bold colour."""
    width = 320
    height = max(1, round(image.height * width / image.width))
    line = 22
    canvas = Image.new("RGB", (width, height + line * len(class_names) + 8), "white")
    canvas.paste(image.resize((width, height), Image.Resampling.BICUBIC), (0, 0))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(14)
    row = list(probabilities)
    start, end = 96, width - 52
    for index, (name, value) in enumerate(zip(class_names, row, strict=True)):
        top = height + 6 + line * index
        best = value == max(row)
        draw.rectangle((start, top + 3, end, top + line - 5), fill="#e6e6e6")
        draw.rectangle(
            (start, top + 3, start + round((end - start) * value), top + line - 5),
            fill="#0072B2" if best else "#8fb8d3",
        )
        draw.text((start - 6, top + line / 2 - 1), _shortened(name, font, start - 10), "black", font, anchor="rm")
        draw.text((end + 6, top + line / 2 - 1), f"{100 * value:.1f}%", "black", font, anchor="lm")
    return canvas


def _shortened(name: str, font: Any, room: int) -> str:
    if font.getlength(name) <= room:
        return name
    while len(name) > 1 and font.getlength(name + "…") > room:
        name = name[:-1]
    return name + "…"
