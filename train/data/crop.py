"""`python -m train.data crop`: the largest face of each picture, found by OpenCV, as a picture of its own.

By YuNet (a file the user gives), or by the Haar cascade that OpenCV 4's wheels hold; OpenCV 5's hold none.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from train.data.base import broken, printable
from train.data.decode import read_picture
from train.data.files import list_images, summarize_names
from train.errors import UserError
from train.owned_folder import check_vacant

CASCADE = "haarcascade_frontalface_default.xml"
LARGEST = 1280  # pixels of the longer side at which faces are looked for
Box = tuple[float, float, float, float]  # x, y, width, height
Corners = tuple[int, int, int, int]  # x0, y0, x1, y1
Detector = Callable[[NDArray[np.uint8]], list[Box]]  # of (h, w, 3) RGB


def yunet(file: Path, score: float) -> Detector:
    import cv2

    if not file.is_file():
        raise UserError(f"--detector {file}: no such file")
    try:
        network = cv2.FaceDetectorYN.create(str(file), "", (320, 320), score)
    except cv2.error as error:
        raise UserError(f"--detector {file}: not a network that OpenCV {cv2.__version__} reads: {error.err}") from error

    def detect(pixels: NDArray[np.uint8]) -> list[Box]:
        network.setInputSize((pixels.shape[1], pixels.shape[0]))
        try:
            faces = network.detect(np.ascontiguousarray(pixels[:, :, ::-1]))[1]
        except cv2.error as error:
            raise UserError(f"--detector {file}: not YuNet's outputs: {error.err}") from error
        return [] if faces is None else [tuple(map(float, face[:4])) for face in faces]  # type: ignore[misc]

    return detect


def haar() -> Detector:
    import cv2
    import cv2.data

    file = os.path.join(cv2.data.haarcascades, CASCADE)
    if not hasattr(cv2, "CascadeClassifier") or not os.path.isfile(file):
        raise UserError(
            f"OpenCV {cv2.__version__} comes without the Haar cascade: give YuNet's file by --detector "
            '(face_detection_yunet_2023mar.onnx of OpenCV\'s model zoo), or pip install "opencv-python-headless<5"'
        )
    cascade = cv2.CascadeClassifier(file)

    def detect(pixels: NDArray[np.uint8]) -> list[Box]:
        grey = cv2.equalizeHist(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
        return [tuple(map(float, face)) for face in cascade.detectMultiScale(grey, 1.1, 5)]  # type: ignore[misc]

    return detect


def find_detector(file: Path | None, score: float = 0.6) -> Detector:
    """YuNet from the file, or the Haar cascade where there is none."""
    return yunet(file, score) if file else haar()


def face_box(picture: Image.Image, detect: Detector, margin: float) -> Corners | None:
    """Of the largest face, as `face_boxes` gives it."""
    return next(iter(face_boxes(picture, detect, margin)), None)


def face_boxes(picture: Image.Image, detect: Detector, margin: float) -> list[Corners]:
    """Of each face, the largest first, with `margin` of its sides added on each, inside the picture."""
    scale = min(1.0, LARGEST / max(picture.size))
    smaller = picture.resize([max(1, round(side * scale)) for side in picture.size]) if scale < 1 else picture
    boxes = sorted(detect(np.asarray(smaller)), key=lambda box: box[2] * box[3], reverse=True)
    result = []
    for x, y, width, height in ((value / scale for value in box) for box in boxes if box[2] > 0 and box[3] > 0):
        x0, y0 = max(0, round(x - margin * width)), max(0, round(y - margin * height))
        x1 = min(picture.width, round(x + (1 + margin) * width))
        y1 = min(picture.height, round(y + (1 + margin) * height))
        if x1 > x0 and y1 > y0:
            result.append((x0, y0, x1, y1))
    return result


def crop(source: Path, out: Path, detector: Path | None, margin: float, score: float) -> int:
    """Crop every picture below `source` into the same place below `out`; 1 where some have no face, else 0."""
    if not source.is_dir():
        raise UserError(f"{source}: no such folder")
    check_vacant(out)
    if source.resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(f"{out} lies in {source}, which is read: choose another place")
    detect = find_detector(detector, score)
    pictures = list_images(source).images
    if not pictures:
        raise UserError(f"{source}: no picture in it")
    faceless: list[str] = []
    faults: list[str] = []
    taken: set[str] = set()
    for file in pictures:
        try:
            picture = read_picture(source / file.name)
        except Exception as error:  # as everywhere, Pillow raises many kinds
            faults.append(str(broken(printable(str(source / file.name)), error)))
            continue
        box = face_box(picture, detect, margin)
        if box is None:
            faceless.append(file.name)
            continue
        name = os.path.splitext(file.name)[0]
        name = f"{file.name}.png" if f"{name}.png" in taken else f"{name}.png"  # a.jpg beside a.png
        taken.add(name)
        target = out / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{target.name}.partial")
            picture.crop(box).save(partial, "PNG")
            partial.rename(target)
        except OSError as error:
            raise UserError(f"{target}: cannot write: {error.strerror or error}") from error
    print(f"{len(taken):,} of {len(pictures):,} pictures cropped to {out}")
    if faceless:
        print(f"without a face: {summarize_names(faceless, most=len(faceless), what='picture')}")
    for reason in faults:
        print(reason)
    return int(bool(faceless or faults))
