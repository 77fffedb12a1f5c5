"""Pictures in, probabilities and annotated pictures out."""

import csv
import glob
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from train.analysis.outputs import with_tta
from train.bars import bar, warn, wrap
from train.data.base import broken, printable
from train.data.crop import Corners, Detector, face_boxes, find_detector
from train.data.decode import read_picture
from train.data.files import ignored, list_images
from train.data.tables import read_table
from train.errors import UserError
from train.owned_folder import prepare
from train.ranks import ALONE
from train.run_folder import load_trained
from train.transforms import Transform

TABLE = "predictions.csv"
WIDTH, TALLEST = 320, 640  # pixels of an annotated picture, without its bars
SMALLEST = 1 / 3
MARGIN = 0.1  # added on each side of a face, as a share of its box
WHOLE_UP_TO = 2  # times the network's input: a picture of that size or less is a face already, as data sets have them
FRAME, BAR, OTHER_BAR, BEHIND = "#d55e00", "#0072B2", "#8fb8d3", "#e6e6e6"
Named = tuple[Path, str]  # where a picture is, and its name in the output folder


@dataclass(frozen=True)
class Face:
    """A face to predict on: its picture, the network's input, and the picture with the face framed, to annotate."""

    path: Path
    name: str
    box: Corners | None  # None: the whole picture
    note: str  # in place of the box
    pixels: torch.Tensor
    shown: Image.Image | None


@dataclass
class Pictures:
    """How many pictures were read, and in how many of them no face was seen."""

    read: int = 0
    faceless: int = 0


def predict(
    run: Path,
    images: Sequence[Path],
    *,
    out: Path = Path("predictions"),
    whole: bool = False,
    detector: Path | None = None,
    margin: float = MARGIN,
    pictures: bool = True,
    tta: str = "none",
    batch_size: int = 32,
    device: str = "auto",
) -> Path:
    """Predict the class of the faces in pictures and in folders of them; write predictions.csv, a row for each face,
    and annotated pictures into `out`. A picture of at most twice the network's input is taken as one face, as it is;
    with `whole`, every picture is.

    Pictures are read as training reads them. Those that cannot be read are named on stderr and left out; those in which
    no face is seen are named there, taken whole, and have "none seen" as their `face` in the table. Files of an earlier
    prediction in `out` are replaced. Raises UserError where nothing is left.
    """
    places = list(list_pictures(images, out))
    on = ALONE.device(device)
    trained = load_trained(run, on)
    model = with_tta(trained.model, tta)
    find = None if whole else find_detector(detector)
    prepare(out, "predictions", _earlier_files(out), alone=True)
    seen, count = Pictures(), 0
    size = trained.preprocessing.image_size
    faces = find_faces(places, find, size, margin, trained.preprocessing.evaluation(), pictures, seen)
    with (out / TABLE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "face", "class", *trained.class_names, *(["picture"] if pictures else [])])
        while batch := list(islice(faces, batch_size)):
            with torch.inference_mode():
                logits, _ = model(torch.stack([face.pixels for face in batch]).to(on))
            rows = logits.double().softmax(1).tolist()
            for face, row in zip(batch, rows, strict=True):
                best = trained.class_names[row.index(max(row))]
                target = [f"pictures/{face.name}.png"] if pictures else []
                box = " ".join(map(str, face.box)) if face.box else face.note
                writer.writerow([printable(str(face.path)), box, best, *(f"{value:.6f}" for value in row), *target])
            file.flush()  # before the pictures: the table names all that are there, whenever this ends
            for face, row in zip(batch, rows, strict=True):
                if face.shown:
                    target_file = out / "pictures" / f"{face.name}.png"
                    target_file.parent.mkdir(parents=True, exist_ok=True)
                    annotate(face.shown, trained.class_names, row).save(target_file)
            count += len(batch)
    if not seen.read:
        raise UserError(f"none of {len(places):,} pictures could be read")
    left_out = f", {len(places) - seen.read:,} left out" if seen.read < len(places) else ""
    count -= seen.faceless
    shown = "" if whole else f", {count:,} face{'' if count == 1 else 's'}"
    shown += f", none seen in {seen.faceless:,} of them, taken whole" if seen.faceless else ""
    annotated = f", {out / 'pictures'}" if pictures else ""
    print(wrap(f"{seen.read:,} pictures{left_out}{shown}; {out / TABLE}{annotated}"))
    return out


def find_faces(
    places: Sequence[Named],
    detect: Detector | None,
    size: int,
    margin: float,
    transform: Transform,
    pictures: bool,
    seen: Pictures,
) -> Iterator[Face]:
    """The faces of each picture, the largest first; without a detector, the pictures. Adds up what was `seen`.

    A picture that `is_small` for the network's `size` is one face.

    A box of less than SMALLEST of the largest one's width is more often no face than one.
    """
    for path, name in bar(places, "pictures"):
        if (picture := open_picture(path)) is None:
            continue
        seen.read += 1
        boxes: list[Corners | None] = []
        note = "whole"
        if detect and not is_small(picture, size):
            detected = face_boxes(picture, detect, margin)
            boxes = [box for box in detected if box[2] - box[0] >= SMALLEST * (detected[0][2] - detected[0][0])]
            if not boxes:
                warn(f"no face seen: {printable(str(path))}")
                seen.faceless, note = seen.faceless + 1, "none seen"
        for number, box in enumerate(boxes or [None], 1):
            pixels = transform(picture.crop(box) if box else picture)
            shown = frame(picture, box, (WIDTH, TALLEST)) if pictures else None
            yield Face(path, name if number == 1 else f"{name}.face{number}", box, note, pixels, shown)


def is_small(picture: Image.Image, size: int) -> bool:
    """Whether the picture is a face already, for a network that sees `size` pixels."""
    return max(picture.size) <= WHOLE_UP_TO * size


def frame(picture: Image.Image, box: Corners | None, largest: tuple[int, int]) -> Image.Image:
    """The picture, enlarged or shrunk to this size, with a frame at the box."""
    scale = min(bound / side for bound, side in zip(largest, picture.size, strict=True))
    shown = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.BICUBIC)
    if box:
        x0, y0, x1, y1 = (edge * scale for edge in box)
        ImageDraw.Draw(shown).rectangle((x0, y0, x1 - 1, y1 - 1), outline=FRAME, width=max(2, max(shown.size) // 160))
    return shown


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
        warn(f"left out: {broken(printable(str(path)), error)}")
        return None


def annotate(image: Image.Image, class_names: Sequence[str], probabilities: Iterable[float]) -> Image.Image:
    """The picture, enlarged or shrunk, with a bar per class below it, the most likely one in bold colour."""
    image, width, line = frame(image, None, (WIDTH, TALLEST)), WIDTH, 22
    height = image.height
    canvas = Image.new("RGB", (width, height + line * len(class_names) + 8), "white")
    canvas.paste(image, ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    font: Any = ImageFont.load_default(14)
    if not (names := "".join(class_names)).isascii():
        from train.fonts import file_for

        font = ImageFont.truetype(file_for(names), 14)
    row = list(probabilities)
    start, end = 96, width - 52
    for index, (name, value) in enumerate(zip(class_names, row, strict=True)):
        top = height + 6 + line * index
        best = value == max(row)
        draw.rectangle((start, top + 3, end, top + line - 5), fill=BEHIND)
        draw.rectangle(
            (start, top + 3, start + round((end - start) * value), top + line - 5),
            fill=BAR if best else OTHER_BAR,
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
