"""Pictures in, probabilities and annotated pictures out."""

import csv
import glob
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from train.analysis.outputs import Flipped
from train.command import device_of
from train.data.base import broken, printable
from train.data.decode import read_picture
from train.data.files import ignored, list_images
from train.data.tables import read_table
from train.errors import UserError
from train.owned_folder import prepare
from train.run_folder import load_trained

TABLE = "predictions.csv"
WIDTH, TALLEST = 320, 640  # pixels of an annotated picture, without its bars
Named = tuple[Path, str]  # where a picture is, and its name in the output folder


def predict(
    run: Path,
    images: Sequence[Path],
    *,
    out: Path = Path("predictions"),
    pictures: bool = True,
    flip: bool = False,
    batch_size: int = 32,
    device: str = "auto",
) -> Path:
    """Predict the class of pictures and of those in folders; write predictions.csv and annotated pictures into `out`.

    Pictures are read as training reads them. Those that cannot be read are named on stderr and left out. Files of an
    earlier prediction in `out` are replaced. Raises UserError where no picture at all can be read.
    """
    places = list(list_pictures(images, out))
    on = device_of(device)
    trained = load_trained(run, on)
    model = Flipped(trained.model) if flip else trained.model
    transform = trained.preprocessing.evaluation()
    prepare(out, "predictions", _earlier_files(out))
    remaining, read = iter(places), 0
    with (out / TABLE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "class", *trained.class_names, *(["picture"] if pictures else [])])
        while batch := list(islice(remaining, batch_size)):
            opened = [(path, name, image) for path, name in batch if (image := open_picture(path)) is not None]
            if not opened:
                continue
            with torch.inference_mode():
                logits, _ = model(torch.stack([transform(image) for _, _, image in opened]).to(on))
            rows = logits.double().softmax(1).tolist()
            for (path, name, _), row in zip(opened, rows, strict=True):
                best = trained.class_names[row.index(max(row))]
                target = [f"pictures/{name}.png"] if pictures else []
                writer.writerow([printable(str(path)), best, *(f"{value:.6f}" for value in row), *target])
            file.flush()  # before the pictures: the table names all that are there, whenever this ends
            for (_, name, image), row in zip(opened, rows, strict=True) if pictures else ():
                target_file = out / "pictures" / f"{name}.png"
                target_file.parent.mkdir(parents=True, exist_ok=True)
                annotate(image, trained.class_names, row).save(target_file)
            read += len(opened)
    if not read:
        raise UserError(f"none of {len(places):,} pictures could be read")
    left_out = f", {len(places) - read:,} left out" if read < len(places) else ""
    annotated = f", {out / 'pictures'}" if pictures else ""
    print(f"{read:,} pictures{left_out}; {out / TABLE}{annotated}")
    return out


def _earlier_files(out: Path) -> list[str]:
    """Patterns of the files that an earlier prediction wrote into `out`, as its table names them."""
    try:
        rows = list(read_table(out / TABLE, ("picture",)))
    except (OSError, UserError):  # none, or without pictures
        return [TABLE]
    names = [row["picture"] for _, row in rows if ".." not in Path(row["picture"]).parts]
    return [TABLE, *(glob.escape(name) for name in names if name.startswith("pictures/"))]


def list_pictures(places: Sequence[Path], out: Path) -> Iterator[Named]:
    """The pictures at the places: a file as it is, whatever its name, of a folder those that training would read.

    What lies in `out` is left out. No two get the same name, and none one that leads out of a folder.
    """
    taken: set[str] = set()
    for place in places:
        if place.is_dir():
            listing = list_images(place)
            names = [file.name for file in listing.images if out.resolve() not in (place / file.name).resolve().parents]
            for note in ignored(listing.others):
                print(f"{place}: {note}", file=sys.stderr)
            if not names:
                raise UserError(f"{place}: no pictures in this folder")
        elif place.is_file():
            names = [place.name]
        else:
            raise UserError(f"{place}: no such file or folder")
        for name in names:
            plain = Path(printable(name))
            unique, number = plain, 2
            while str(unique) in taken:
                unique = plain.with_name(f"{plain.stem}-{number}{plain.suffix}")
                number += 1
            taken.add(str(unique))
            yield place / name if place.is_dir() else place, unique.as_posix()


def open_picture(path: Path) -> Image.Image | None:
    """The picture as training reads it; None, and its name on stderr, where it cannot be read."""
    try:
        return read_picture(path)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and more for broken files
        print(f"left out: {broken(printable(str(path)), error)}", file=sys.stderr)
        return None


def annotate(image: Image.Image, class_names: Sequence[str], probabilities: Iterable[float]) -> Image.Image:
    """The picture, enlarged or shrunk, with a bar per class below it, the most likely one in bold colour."""
    scale = min(WIDTH / image.width, TALLEST / image.height)
    across, height = (max(1, round(side * scale)) for side in image.size)
    width, line = WIDTH, 22
    canvas = Image.new("RGB", (width, height + line * len(class_names) + 8), "white")
    canvas.paste(image.resize((across, height), Image.Resampling.BICUBIC), ((width - across) // 2, 0))
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
