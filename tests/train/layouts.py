"""Small generated copies of every dataset's layouts. Each class has its own gray: `GREY`, in label order."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

GREY = tuple(range(20, 220, 25))  # of Neutral, Happy, Sad, Surprise, Fear, Disgust, Anger, Contempt
RAF = (3, 4, 5, 1, 2, 6, 0)  # what RAF-DB's 1 to 7 are
_written = [0]


def pixels(label: int, side: int = 24) -> np.ndarray:
    """(side, side) uint8 with the gray of the class; no two are equal."""
    _written[0] += 1
    rng = np.random.default_rng(_written[0])
    return (GREY[label] + rng.integers(-6, 7, (side, side))).astype(np.uint8)


def write_picture(file: Path, label: int, side: int = 24) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(label, side)).convert("RGB").save(file)


def label_seen(image: Image.Image) -> int:
    """The class that a picture was drawn for."""
    mean = np.asarray(image.convert("L"), dtype=float).mean()
    return int(np.argmin([abs(mean - grey) for grey in GREY]))


def class_folders(root: Path, parts: Mapping[str, Mapping[str, tuple[int, int]]]) -> Path:
    """parts: for each part ("" for none) and folder, (label, number of images)."""
    for part, classes in parts.items():
        for name, (label, count) in classes.items():
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                write_picture(root / part / name / f"{number}.png", label)
    return root


def raf_original(root: Path, lines: Sequence[tuple[str, int]], aligned: bool = True) -> Path:
    """lines: (name such as train_00001.jpg, RAF-DB's label). Originals hold the face in a box, in a white picture."""
    (root / "EmoLabel").mkdir(parents=True)
    (root / "EmoLabel/list_patition_label.txt").write_text("".join(f"{name} {label}\n" for name, label in lines))
    for name, label in lines:
        stem = name.removesuffix(".jpg")
        face = RAF[label - 1] if label <= 7 else 0
        if aligned:
            write_picture(root / f"Image/aligned/{stem}_aligned.jpg", face, 100)
            continue
        (root / "Image/original").mkdir(parents=True, exist_ok=True)
        (root / "boundingbox").mkdir(exist_ok=True)
        picture = Image.new("L", (80, 60), 255)
        picture.paste(Image.fromarray(pixels(face, 32)), (40, 16))
        picture.convert("RGB").save(root / f"Image/original/{name}", quality=95)
        (root / f"boundingbox/{stem}_boundingbox.txt").write_text("40.2 16.0\n71.9 47.8\n")
    return root


def raf_numbered(root: Path, per_class: int = 2, classes: Sequence[int] = range(1, 8)) -> Path:
    tables = {}
    for part, digits in (("train", 5), ("test", 4)):
        lines = ["image,label"]
        for code in classes:
            for number in range(per_class):
                name = f"{part}_{code * 10 + number:0{digits}d}_aligned.jpg"
                write_picture(root / f"DATASET/{part}/{code}/{name}", RAF[code - 1] if code <= 7 else 0, 100)
                lines.append(f"{name},{code}")
        tables[part] = "\n".join(lines) + "\n"
        (root / f"{part}_labels.csv").write_text(tables[part])
    return root


COLUMNS = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"


def affectnet_old(root: Path, rows: Mapping[str, Sequence[tuple[str, int, int]]], headed: bool = True) -> Path:
    """rows: for training and validation, (path, face at 0 or 1 of its picture, expression); 24-pixel faces."""
    faces: dict[str, dict[int, int]] = {}
    for part, lines in rows.items():
        text = [COLUMNS] if headed or part == "training" else []
        for name, place, expression in lines:
            width = -1 if expression == 10 else 24
            text.append(f"{name},{place * 40},10,{width},24,1;2;3,{expression},0.1,-0.2")
            faces.setdefault(name, {})[place] = min(expression, 7)
        (root / f"{part}.csv").parent.mkdir(parents=True, exist_ok=True)
        (root / f"{part}.csv").write_text("\n".join(text) + "\n")
    for name, places in faces.items():
        picture = Image.new("L", (64, 44), 255)
        for place, label in places.items():
            picture.paste(Image.fromarray(pixels(label, 24)), (place * 40, 10))
        file = root / "Manually_Annotated_Images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.convert("RGB").save(file)
    return root


def affectnet_2021(root: Path, sets: Mapping[str, Sequence[int]]) -> Path:
    """sets: for train_set and val_set (or another name), the expressions of its images; every other is a string."""
    for part, labels in sets.items():
        (root / part / "annotations").mkdir(parents=True)
        for number, label in enumerate(labels):
            write_picture(root / part / f"images/{number}.jpg", min(label, 7), 224)
            np.save(root / part / f"annotations/{number}_exp.npy", np.array(str(label) if number % 2 else label))
            np.save(root / part / f"annotations/{number}_val.npy", np.array("0.5"))
    return root
