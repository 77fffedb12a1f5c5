"""What a drawn face is made of: a person, how the picture was taken, and what the facial muscles do.

Lengths are in units of half a face's width; x points right and y down, the origin lies between the eyes and the nose.
Every sampler draws a fixed set of numbers from its generator, so that one choice never shifts the next.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np

from train.data.labels import CLASS_NAMES

Color = tuple[float, float, float]
T = TypeVar("T")

# Action units are numbered as in the Facial Action Coding System; intensities are indexed by that number.
ACTION_UNITS = {
    1: "inner brow raiser",
    2: "outer brow raiser",
    4: "brow lowerer",
    5: "upper lid raiser",
    6: "cheek raiser",
    7: "lid tightener",
    9: "nose wrinkler",
    10: "upper lip raiser",
    12: "lip corner puller",
    15: "lip corner depressor",
    16: "lower lip depressor",
    17: "chin raiser",
    20: "lip stretcher",
    23: "lip tightener",
    24: "lip pressor",
    25: "lips part",
    26: "jaw drop",
    43: "eyes closed",
}
NUM_UNITS = max(ACTION_UNITS) + 1

# Per class, in the canonical order: {unit: (intensity relative to the expression's, how often it takes part)}.
EXPRESSIONS: dict[str, dict[int, tuple[float, float]]] = {
    "Neutral": {},
    "Happy": {6: (0.9, 0.9), 12: (1.0, 1.0), 25: (0.9, 0.65), 26: (0.35, 0.25)},
    "Sad": {1: (1.0, 0.95), 4: (0.7, 0.85), 15: (1.0, 0.95), 17: (0.7, 0.5), 43: (0.35, 0.5)},
    "Surprise": {1: (1.0, 1.0), 2: (1.0, 1.0), 5: (0.8, 0.9), 25: (0.8, 0.9), 26: (1.0, 0.95)},
    "Fear": {
        1: (1.0, 1.0),
        2: (0.6, 0.8),
        4: (0.7, 0.95),
        5: (1.0, 0.95),
        7: (0.4, 0.7),
        20: (1.0, 0.95),
        25: (0.9, 0.9),
        26: (0.4, 0.6),
    },
    "Disgust": {
        4: (0.4, 0.5),
        7: (0.5, 0.5),
        9: (1.0, 1.0),
        10: (0.9, 0.8),
        15: (0.6, 0.7),
        16: (0.7, 0.5),
        17: (0.5, 0.4),
        25: (0.6, 0.5),
    },
    "Anger": {4: (1.0, 1.0), 5: (0.6, 0.7), 7: (0.9, 0.9), 17: (0.5, 0.4), 23: (1.0, 0.9), 24: (0.8, 0.6)},
}

SKIN: tuple[Color, ...] = (
    (250, 220, 200),
    (241, 200, 172),
    (226, 178, 142),
    (203, 150, 112),
    (170, 118, 82),
    (130, 86, 58),
    (92, 60, 42),
)
HAIR: tuple[Color, ...] = (
    (28, 24, 24),
    (52, 36, 28),
    (84, 56, 36),
    (122, 84, 50),
    (176, 138, 84),
    (212, 180, 124),
    (150, 68, 36),
)
GREY_HAIR: Color = (178, 176, 174)
IRIS: tuple[Color, ...] = ((60, 36, 20), (84, 54, 30), (96, 110, 62), (80, 120, 160), (110, 130, 140))
HAIR_STYLES = ("short", "fringe", "long", "parted", "bald")
BEARDS = ("none", "stubble", "moustache", "goatee", "full")
OCCLUDERS = ("none", "hand", "bar", "hat", "scarf")


def mix(a: Color, b: Color, t: float) -> Color:
    """The colour a fraction t of the way from a to b."""
    return (a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t)


def scaled(color: Color, factor: float) -> Color:
    return (color[0] * factor, color[1] * factor, color[2] * factor)


def between(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(rng.random())


def one_of(rng: np.random.Generator, options: tuple[T, ...], weights: tuple[float, ...] | None = None) -> T:
    if weights is None:
        return options[int(rng.random() * len(options))]
    edges = np.cumsum(weights)
    return options[min(int(np.searchsorted(edges, rng.random() * edges[-1], side="right")), len(options) - 1)]


def _muted(rng: np.random.Generator) -> Color:
    grey = between(rng, 40, 220)
    red, green, blue = (0.55 * grey + 0.45 * between(rng, 20, 240) for _ in range(3))
    return red, green, blue


def drawn(draw: Callable[[np.random.Generator], Any]) -> Any:
    """A field that is drawn independently of the others, in their order."""
    return field(metadata={"draw": draw})


def draw_fields(kind: type[Any], rng: np.random.Generator) -> dict[str, Any]:
    return {item.name: item.metadata["draw"](rng) for item in fields(kind) if item.metadata}


def spread(low: float, high: float) -> Any:
    return drawn(lambda rng: between(rng, low, high))


@dataclass(frozen=True)
class Person:
    """What stays the same in every picture of one person."""

    skin: Color
    lips: Color
    hair: Color
    brow: Color
    iris: Color
    shirt: Color
    hair_style: str
    beard: str
    age: float
    width: float = spread(0.90, 1.06)
    jaw: float = spread(0.64, 0.76)
    chin: float = spread(1.14, 1.26)
    eye_x: float = spread(0.36, 0.43)
    eye_y: float = spread(-0.16, -0.08)
    eye_width: float = spread(0.19, 0.235)
    eye_height: float = spread(0.095, 0.125)
    eye_tilt: float = spread(-0.02, 0.05)
    lid_fold: float = spread(0.0, 1.0)
    lashes: float = spread(0.026, 0.036)
    brow_gap: float = spread(0.25, 0.31)
    brow_thickness: float = spread(0.042, 0.062)
    brow_arch: float = spread(0.02, 0.08)
    nose_length: float = spread(0.42, 0.54)
    nose_width: float = spread(0.12, 0.18)
    mouth_y: float = spread(0.66, 0.72)
    mouth_width: float = spread(0.31, 0.38)
    upper_lip: float = spread(0.04, 0.065)
    lower_lip: float = spread(0.055, 0.09)
    corner_rest: float = spread(-0.02, 0.02)
    brow_rest: float = spread(-0.02, 0.02)
    glasses: str = drawn(lambda rng: one_of(rng, ("none", "round", "square"), (7, 1, 1)))
    hairline: float = spread(-0.95, -0.78)

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Person":
        tone = between(rng, 0, len(SKIN) - 1.001)
        skin = mix(SKIN[int(tone)], SKIN[int(tone) + 1], tone % 1)
        age, feminine = between(rng, 0, 1), float(rng.random()) < 0.5
        hair = one_of(rng, HAIR, (5, 4, 3, 2, 1.2, 1, 0.7) if tone < 3 else (8, 3, 1, 0.2, 0.05, 0.05, 0.05))
        greying, makeup = between(rng, -0.2, 0.9), between(rng, 0, 1)
        hair = mix(hair, GREY_HAIR, max(0.0, age - 0.6) * 2.5 * max(0.0, greying))
        style = one_of(rng, HAIR_STYLES, (1, 3, 5, 3, 0.05) if feminine else (6, 2, 0.7, 2, 1.3))
        beard = one_of(rng, BEARDS, (1, 0, 0, 0, 0) if feminine else (5, 2, 0.8, 0.8, 1.4))
        reddish = mix(scaled(skin, 0.82), (176, 74, 78), 0.45)
        lips = mix(reddish, (176, 32, 52), max(0.0, makeup - 0.5) * 1.4) if feminine else reddish
        brow = mix(scaled(hair, 0.75), scaled(skin, 0.45), 0.25)
        iris = one_of(rng, IRIS, (4, 4, 1.5, 2, 1) if tone < 3 else (6, 3, 0.2, 0.05, 0.05))
        shirt = _muted(rng)
        rest = draw_fields(cls, rng)
        rest["jaw"] += 0.0 if feminine else 0.06
        rest["lashes"] += 0.012 if feminine else 0.0
        rest["brow_thickness"] += 0.0 if feminine else 0.015
        return cls(skin, lips, hair, brow, iris, shirt, style, beard, age, **rest)


def tilted(deviation: float, most: float) -> Any:
    """A normal field around 0."""
    return drawn(lambda rng: float(np.clip(rng.normal(0, deviation), -most, most)))


@dataclass(frozen=True)
class View:
    """How one picture was taken: pose, light, what is in the way, and the camera. Angles are in radians."""

    light: tuple[float, float, float]
    roll: float = tilted(0.08, 0.3)
    yaw: float = tilted(0.15, 0.4)
    pitch: float = tilted(0.08, 0.25)
    scale: float = spread(0.42, 0.47)
    shift: tuple[float, float] = drawn(lambda rng: (between(rng, -0.04, 0.04), between(rng, -0.07, 0.01)))
    gaze: tuple[float, float] = drawn(lambda rng: (between(rng, -1, 1), between(rng, -0.6, 0.6)))
    asymmetry: float = tilted(0.12, 0.3)
    light_strength: float = spread(0.1, 0.6)
    exposure: float = spread(0.75, 1.15)
    contrast: float = spread(0.75, 1.2)
    tint: tuple[float, float, float] = drawn(lambda rng: (between(rng, 0.93, 1.07), 1.0, between(rng, 0.9, 1.07)))
    background: tuple[Color, Color] = drawn(lambda rng: (_muted(rng), _muted(rng)))
    grey: bool = drawn(lambda rng: float(rng.random()) < 0.15)
    occluder: str = drawn(lambda rng: one_of(rng, OCCLUDERS, (88, 4, 3, 3, 2)))
    occluder_place: tuple[float, float, float] = drawn(lambda rng: (rng.random(), rng.random(), rng.random()))
    blur: float = drawn(lambda rng: max(0.0, between(rng, -0.012, 0.012)))
    noise: float = drawn(lambda rng: between(rng, 0, 1) ** 2 * 7)
    noise_seed: int = drawn(lambda rng: int(rng.integers(2**63)))

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "View":
        direction = between(rng, -np.pi, np.pi)
        aside = between(rng, 0.2, 0.9)
        light = aside * np.cos(direction), 0.8 * aside * np.sin(direction) - 0.15, 0.85
        return cls(light, **draw_fields(cls, rng))


def sample_units(label: int, rng: np.random.Generator) -> np.ndarray:
    """Intensities (NUM_UNITS,) in [0, 1] of the action units of one expression of class `label`, some of them weak."""
    strength = 1.0 - 0.5 * between(rng, 0, 1) ** 2
    takes_part, vary, stray, stray_size = rng.random((4, NUM_UNITS))
    units = np.zeros(NUM_UNITS)
    for unit, (weight, often) in EXPRESSIONS[CLASS_NAMES[label]].items():
        if takes_part[unit] < often:
            units[unit] = strength * weight * (0.75 + 0.35 * vary[unit])
    known = list(ACTION_UNITS)
    # Stray movements: a talking mouth, a blink, a raised brow that means nothing.
    units[known] += np.where(stray[known] < 0.08, 0.3 * stray_size[known], 0.0)
    return np.clip(units, 0.0, 1.0)
