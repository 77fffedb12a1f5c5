"""Realistic messy folders: every odd picture is used, or reported with what is wrong with it."""

import io
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.train import layouts
from tests.train.test_command import QUICK
from train.__main__ import main as train
from train.data import Request, load_data
from train.data.__main__ import main
from train.data.decode import ORIENTATION, read_picture
from train.data.store import fault


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    with io.BytesIO() as file:
        image.save(file, kind, **options)
        return file.getvalue()


GREY = Image.fromarray(layouts.pixels(3, 40))
RGB = GREY.convert("RGB")
JPEG = encoded(RGB, "JPEG", quality=95)
SIXTEEN = Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257)
EXIF = Image.Exif()
EXIF[ORIENTATION] = 6

GOOD = {
    "grey.jpg": encoded(GREY, "JPEG"),
    "cmyk.jpg": encoded(RGB.convert("CMYK"), "JPEG", quality=95),
    "sixteen.png": encoded(SIXTEEN, "PNG"),
    "sixteen.tif": encoded(SIXTEEN, "TIFF"),
    "palette.png": encoded(RGB.convert("P"), "PNG"),
    "palette.gif": encoded(RGB.convert("P"), "GIF"),
    "alpha.png": encoded(RGB.convert("RGBA"), "PNG"),
    "grey-alpha.png": encoded(GREY.convert("LA"), "PNG"),
    "turned.jpg": encoded(RGB, "JPEG", exif=EXIF),
    "wrong-suffix.png": JPEG,
    "WEBP.JPEG": encoded(RGB, "WEBP", quality=95),
    "trailing.jpg": JPEG + b"\0" * 100 + b"something else",
    "progressive.jpg": encoded(RGB, "JPEG", progressive=True),
    "имя 表情 😀.jpg": JPEG,
    "spaces and 'quotes' \"too\".jpg": JPEG,
    "line\nbreak.jpg": JPEG,
    "-dash.jpg": JPEG,
    "tiny.png": encoded(Image.fromarray(layouts.pixels(3, 1)), "PNG"),
    "flat.png": encoded(RGB.resize((300, 2)), "PNG"),
    "bad-exif.jpg": encoded(RGB, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
}
BAD = {
    "truncated.jpg": (JPEG[: len(JPEG) // 2], "truncated"),
    "header-only.jpg": (JPEG[:30], ""),
    "empty.jpg": (b"", "no image file that Pillow knows"),
    "text.jpg": (b"this is no picture", "no image file that Pillow knows"),
    "torn.png": (encoded(RGB, "PNG")[:120], ""),
    "crc.png": (encoded(RGB, "PNG").replace(b"IDAT", b"IDAX"), ""),
    "float.tif": (encoded(Image.fromarray(np.full((8, 8), 300, np.float32)), "TIFF"), "pixels of 32 bits"),
    "bomb.png": (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 60000, 60000, 8, 2, 0, 0, 0) + b"\0" * 40,
        "",
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_odd_pictures_are_read_as_they_are_meant(name: str) -> None:
    picture = read_picture(GOOD[name])
    assert picture.mode == "RGB"
    assert layouts.label_seen(picture) == 3


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures_raise(name: str) -> None:
    with pytest.raises(Exception) as caught:
        read_picture(BAD[name][0])
    assert not isinstance(caught.value, (AssertionError, MemoryError))


def test_pictures_are_decoded_as_intended() -> None:
    marked = Image.new("RGB", (40, 20))
    marked.putpixel((0, 0), (255, 255, 255))
    turned = read_picture(encoded(marked, "PNG", exif=EXIF))
    assert turned.size == (20, 40)
    assert turned.getpixel((19, 0)) == (255, 255, 255), "orientation 6: a quarter turn to the right"
    clear = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    assert read_picture(encoded(clear, "PNG")).getpixel((0, 0)) == (255, 255, 255), "transparent is white"
    half = Image.fromarray(np.full((4, 4), 0x80FF, np.uint16))
    assert read_picture(encoded(half, "PNG")).getpixel((0, 0)) == (0x80,) * 3
    boxed = read_picture(encoded(RGB, "PNG"), box=(-5, 10, 20, 100))
    assert boxed.size == (20, 30)


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """Class folders with every good picture, links in circles, a pipe, hidden files, depth, undecodable names."""
    root = layouts.class_folders(
        tmp_path / "d", {"train": {"x": (0, 6), "y": (3, 6)}, "test": {"x": (0, 2), "y": (3, 2)}}
    )
    folder = root / "train/y"
    for name, content in GOOD.items():
        (folder / name).write_bytes(content)
    (folder / "deep/deeper").mkdir(parents=True)
    (folder / "deep/deeper/a.jpg").write_bytes(JPEG)
    (folder / "loop").symlink_to(folder)
    (folder / "up").symlink_to(root)
    (folder / "itself.jpg").symlink_to(folder / "itself.jpg")
    (folder / "linked.jpg").symlink_to(folder / "grey.jpg")
    (folder / ".hidden.jpg").write_bytes(b"")
    (folder / "Thumbs.db").write_bytes(b"")
    os.mkfifo(folder / "pipe.jpg")
    (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(JPEG)
    return root


def test_a_messy_folder_trains(messy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (messy / "train/y/itself.jpg").unlink()
    splits = load_data(str(messy), Request())
    names = [part.name(i) for part in (splits.train, splits.validation) for i in range(len(part))]
    assert len(names) == len(set(names))
    assert sum("/y/" in name for name in names) == 6 + len(GOOD) + 3
    assert all(name.isprintable() for name in names)
    assert train(["--data", str(messy), "--out", str(tmp_path / "run"), *QUICK]) == 0
    assert main(["check", str(messy)]) == 1  # the same picture under several names
    capsys.readouterr()


def test_a_link_to_nowhere_is_an_unreadable_image(messy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(messy)]) == 1
    output = capsys.readouterr().out
    assert "unreadable: 1 unreadable images" in output
    assert "itself.jpg" in output


@pytest.mark.parametrize("cache", [False, True])
def test_bad_pictures_are_named_and_can_be_left_out(
    cache: bool, messy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (messy / "train/y/itself.jpg").unlink()
    for name, (content, _) in BAD.items():
        (messy / "train/x" / name).write_bytes(content)
    run = ["--data", str(messy), "--out", str(tmp_path / "run"), *QUICK]
    run += ["--cache", str(tmp_path / "cache")] if cache else []
    assert train(run) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "Traceback" not in error
    assert any(f"cannot read the image {messy}/train/x/{name}" in error for name in BAD)
    assert train([*run, "--overwrite", "--on-broken", "skip"]) == 0
    output = capsys.readouterr().out
    assert f"left out {len(BAD)} unreadable:" in output
    for name, (_, reason) in BAD.items():
        assert f"{messy}/train/x/{name}: " in output
        assert reason in output


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    result = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        result[rng.randrange(len(result))] ^= 1 << rng.randrange(8)
    return bytes(result)


def cut(data: bytes, rng: random.Random) -> bytes:
    start, stop = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
    return data[:start] + data[stop:]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on damaged EXIF
@pytest.mark.parametrize("damage", [flip_bits, cut])
def test_random_damage_ends_in_a_picture_or_in_one_message(
    damage: Callable[[bytes, random.Random], bytes], tmp_path: Path
) -> None:
    rng = random.Random(0)
    root = layouts.class_folders(tmp_path / "d", {"": {"x": (0, 1), "y": (1, 1)}})
    sources = [content for name, content in GOOD.items() if name.endswith(("jpg", "png", "gif", "tif"))]
    for number in range(300):
        (root / f"x/{number}.jpg").write_bytes(damage(rng.choice(sources), rng))
    whole = load_data(str(root), Request(validation_fraction=0.01)).train
    faults = [fault(whole, index) for index in range(len(whole))]
    reasons = [reason for reason in faults if reason is not None]
    assert all(reason.startswith(f"cannot read the image {root}") and "\n" not in reason for reason in reasons)
    assert 20 < len(reasons) < len(whole) - 20, "some of both"
