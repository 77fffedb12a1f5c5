"""The drawing board: curves, a sheet that projects and paints shapes, and light.

Shapes are given in the units of face.py and turn with the head as points on an ellipsoid.
"""

from functools import lru_cache

import numpy as np
from PIL import ImageDraw

from train.data.synthetic.face import Color, Person, View

CIRCLE = np.stack([np.cos(np.arange(20) * np.pi / 10), np.sin(np.arange(20) * np.pi / 10)], axis=1)
NEUTRAL_SHADE = 160  # the grey of the shading layers that leaves a colour as it is


@lru_cache(maxsize=32)
def _spline(knots: int, closed: bool) -> np.ndarray:
    """(samples, knots) matrix that takes the knots of a Catmull-Rom curve to points on it."""
    steps = 6
    rows = np.zeros((knots * steps if closed else (knots - 1) * steps + 1, knots))
    for row in range(len(rows)):
        piece, t = min(row // steps, knots - 1), (row % steps) / steps
        weights = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2)
        for offset, weight in zip((-1, 0, 1, 2), weights, strict=True):
            knot = (piece + offset) % knots if closed else min(max(piece + offset, 0), knots - 1)
            rows[row, knot] += weight / 2
    return rows


def curve(*knots: tuple[float, float], closed: bool = False) -> np.ndarray:
    return _spline(len(knots), closed) @ np.asarray(knots)


def mirrored(*knots: tuple[float, float]) -> np.ndarray:
    """A closed curve from knots at x >= 0, the first and the last of them on the axis."""
    return curve(*knots, *((-x, y) for x, y in knots[-2:0:-1]), closed=True)


class Sheet:
    """Collects shapes in face coordinates and draws them all at once, after one projection."""

    def __init__(self, person: Person, view: View) -> None:
        self.person, self.view = person, view
        self.shapes: list[tuple[np.ndarray, bool, str, Color | float, float]] = []

    def add(
        self, points: np.ndarray, paint: Color | float, *, layer: str = "color", flat: bool = False, width: float = 0.0
    ) -> None:
        """A filled outline; `flat` things (head, hair, clothes) do not turn with the face's surface."""
        self.shapes.append((points, flat, layer, paint, width))

    def line(
        self, points: np.ndarray, width: float, paint: Color | float, *, layer: str = "color", flat: bool = False
    ) -> None:
        """A stroke that thins towards its ends."""
        self.add(points, paint, layer=layer, flat=flat, width=width)

    def blob(self, x: float, y: float, rx: float, ry: float, paint: Color | float, layer: str = "color") -> None:
        self.add(CIRCLE * (rx, ry) + (x, y), paint, layer=layer)

    def draw(self, pens: dict[str, ImageDraw.ImageDraw], pixels: float) -> None:
        """Draws on pictures `pixels` wide, in the order in which the shapes came."""
        view, lengths = self.view, [len(shape[0]) for shape in self.shapes]
        points = np.concatenate([shape[0] for shape in self.shapes])
        x, y = points[:, 0] * self.person.width, points[:, 1]
        z = np.sqrt(np.maximum(1.0 - x**2 - (y / 1.45) ** 2, 0.0)) * np.repeat(
            [not flat for _, flat, *_ in self.shapes], lengths
        )
        solid = z > 0
        turned = x * np.cos(view.yaw) + z * np.sin(view.yaw)
        nodded = y * np.cos(view.pitch) + z * np.sin(view.pitch)
        x, y = np.where(solid, turned, x), np.where(solid, nodded, y)
        c, s, unit = np.cos(view.roll), np.sin(view.roll), view.scale * pixels
        placed = np.stack([c * x - s * y, s * x + c * y], axis=1) * unit + (np.asarray(view.shift) + 0.5) * pixels
        end = 0
        for length, (_, _, layer, paint, width) in zip(lengths, self.shapes, strict=True):
            start, end = end, end + length
            outline = placed[start:end]
            if width:
                outline = _strip(outline, width * unit / 2)
            if isinstance(paint, tuple):
                fill: int | tuple[int, ...] = tuple(int(c) for c in paint)
            else:
                fill = int(NEUTRAL_SHADE * paint)
            pens[layer].polygon(outline.ravel().tolist(), fill=fill)


@lru_cache(maxsize=64)
def _taper(length: int) -> np.ndarray:
    return (1.0 - np.linspace(-1.0, 1.0, length) ** 4 * 0.75)[:, None]


def _strip(points: np.ndarray, half_width: float) -> np.ndarray:
    along = np.empty_like(points)
    along[1:-1] = points[2:] - points[:-2]
    along[0], along[-1] = points[1] - points[0], points[-1] - points[-2]
    normal = along[:, ::-1] * (-half_width, half_width) / (np.hypot(along[:, 0], along[:, 1])[:, None] + 1e-9)
    normal *= _taper(len(points))
    return np.concatenate([points + normal, (points - normal)[::-1]])


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    return axis[None, :], axis[:, None]


def lit(picture: np.ndarray, view: View, person: Person) -> np.ndarray:
    """Light from one direction on an ellipsoid head, then exposure, contrast and tint; float32 (H, W, 3) in and out."""
    across, down = _grid(len(picture))
    c, s = np.float32(np.cos(view.roll) / view.scale), np.float32(np.sin(view.roll) / view.scale)
    dx, dy = across - np.float32(view.shift[0]), down - np.float32(view.shift[1])
    u, v = (c * dx + s * dy) / np.float32(person.width), (c * dy - s * dx) / np.float32(1.4)
    r2 = u * u + v * v
    n = np.sqrt(np.maximum(1 - 0.8 * r2, np.float32(0.12)))
    lx, ly, lz = (np.float32(l) for l in view.light)
    lambert = np.clip((u * lx + v * ly + n * lz) / lz, 0.15, 1.5)
    face = np.clip((np.float32(1.25) - r2) * 4, 0, 1)
    strength = np.float32(view.light_strength)
    shade = 1 + strength * (lambert - 1) * (np.float32(0.35) + np.float32(0.65) * face)
    picture = picture * shade[:, :, None]
    gain = np.asarray(view.tint, dtype=np.float32) * np.float32(view.exposure * view.contrast)
    return picture * gain + np.float32(112 * (1 - view.contrast))
