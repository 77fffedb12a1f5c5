"""Operands for single instructions, and their results in plain Python: exact, then rounded once."""

import itertools
import math
import struct
from collections.abc import Callable
from fractions import Fraction

import numpy as np

NP = {
    "s16": np.int16, "u16": np.uint16, "b16": np.uint16, "s32": np.int32, "u32": np.uint32, "b32": np.uint32,
    "s64": np.int64, "u64": np.uint64, "b64": np.uint64, "f32": np.float32, "f64": np.float64, "f16": np.float16,
    "pred": np.bool_, "bf16": np.uint16, "s8": np.int8,
}  # fmt: skip
EDGES = {
    "f32": [0.0, -0.0, 1.0, -1.5, 3.0, 1e-3, -7e30, 3e38, 1e-40, -1e-45, math.inf, -math.inf, math.nan, 16777217.0],
    "f16": [0.0, -0.0, 1.0, -1.5, 65504.0, 6e-8, 1e-3, math.inf, -math.inf, math.nan],
    "f64": [0.0, -0.0, 1.0, -1.5, 1e300, 1e-310, 1e-3, math.inf, -math.inf, math.nan],
}
BF16_EDGES = [0x0000, 0x8000, 0x3F80, 0xBFC0, 0x7F7F, 0x0001, 0x3A83, 0x7F80, 0xFF80, 0x7FC0]


def edges(kind: str) -> np.ndarray:
    if kind == "pred":
        return np.array([False, True])
    if kind == "bf16":
        return np.array(BF16_EDGES, np.uint16)
    if kind in EDGES:
        return np.array(EDGES[kind], np.float64).astype(NP[kind])
    info = np.iinfo(NP[kind])
    values = [0, 1, 2, 3, 7, 31, 32, 33, 63, 64, 100, info.max, info.max - 1, info.min, info.min + 1, info.max // 3]
    values += [-1, -2, -7, -100] if info.min else [info.max // 2, info.max // 2 + 1]
    return np.array([v for v in values if info.min <= v <= info.max], NP[kind])


def random_values(kind: str, count: int, rng: np.random.Generator) -> np.ndarray:
    if kind == "pred":
        return rng.random(count) < 0.5
    if kind == "bf16":
        return (rng.normal(size=count).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if kind in EDGES:
        return (rng.normal(size=count) * 2.0 ** rng.integers(-8, 9, count)).astype(NP[kind])
    size = np.dtype(NP[kind]).itemsize
    return np.frombuffer(rng.bytes(count * size), NP[kind])


def operands(kinds: list[str]) -> list[np.ndarray]:
    rng = np.random.default_rng(len(kinds))
    cross = list(itertools.product(*(edges(kind) for kind in kinds)))
    if len(cross) > 600:
        cross = [cross[i] for i in rng.choice(len(cross), 600, replace=False)]
    columns = [np.array(column, NP[kind]) for column, kind in zip(zip(*cross, strict=True), kinds, strict=True)]
    return [
        np.concatenate([column, random_values(kind, 200, rng)]) for column, kind in zip(columns, kinds, strict=True)
    ]


def wrap(value: int, kind: str) -> int:
    bits = 8 * np.dtype(NP[kind]).itemsize
    value &= (1 << bits) - 1
    return value - (1 << bits) if kind[0] == "s" and value >> (bits - 1) else value


def bf16(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", int(bits) << 16))[0]


def nearest(exact: Fraction | float, kind: str) -> float:
    """The nearest number of the type, ties to even; in Python's integers."""
    if isinstance(exact, float) and (math.isnan(exact) or math.isinf(exact)):
        return exact
    exact = Fraction(exact)
    if exact == 0:
        return 0.0
    precision, lowest, highest = {
        "f32": (24, -126, 127),
        "f16": (11, -14, 15),
        "bf16": (8, -126, 127),
        "f64": (53, -1022, 1023),
    }[kind]
    magnitude = abs(exact)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    exponent -= Fraction(2) ** exponent > magnitude
    unit = Fraction(2) ** (max(exponent, lowest) - precision + 1)
    whole, rest = divmod(magnitude, unit)
    whole += rest * 2 > unit or (rest * 2 == unit and whole % 2)
    value = whole * unit
    sign = -1 if exact < 0 else 1
    return sign * (math.inf if value >= Fraction(2) ** (highest + 1) else float(value))


def exactly(fn: Callable[..., Fraction], kind: str) -> Callable[..., float]:
    """The rounded value where all operands are finite; numpy's float64 says what NaN and infinity do."""

    def rounded(*xs: float) -> float:
        xs = tuple(bf16(x) if kind == "bf16" else float(x) for x in xs)
        with np.errstate(all="ignore"):
            special = float(fn(*(np.float64(x) for x in xs)))
        if not all(math.isfinite(x) for x in xs):
            return special
        exact = fn(*(Fraction(x) for x in xs))
        return nearest(exact, kind) if exact else 0.0

    return rounded


def truncated(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def same(got: np.ndarray, want: list, kind: str) -> None:
    if kind == "bf16":
        got = np.array([bf16(x) for x in got])
    if kind in ("f32", "f16", "f64", "bf16"):
        want = np.array(want, np.float64)
        wrong = ~((got.astype(np.float64) == want) | (np.isnan(got) & np.isnan(want)))
    else:
        want = np.array([int(w) for w in want], object)
        wrong = np.array([int(g) for g in got], object) != want
    assert not wrong.any(), (
        f"{int(wrong.sum())} wrong, first {np.flatnonzero(wrong)[0]}: {got[wrong][0]} for {want[wrong][0]}"
    )
