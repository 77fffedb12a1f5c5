"""PTX's types as numpy's, and the formats numpy lacks. bfloat16 is computed in float32 and rounded."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

# A packed type is a view of twice as many numbers: lane 0's low half, lane 0's high half, lane 1's low half ...
DTYPES: dict[str, type] = {
    "pred": np.bool_, "b8": np.uint8, "u8": np.uint8, "s8": np.int8, "b16": np.uint16, "u16": np.uint16,
    "s16": np.int16, "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "b64": np.uint64, "u64": np.uint64,
    "s64": np.int64, "f16": np.float16, "f32": np.float32, "f64": np.float64, "bf16": np.uint16, "tf32": np.uint32,
    "f16x2": np.float16, "bf16x2": np.uint16, "f32x2": np.float32, "u16x2": np.uint16, "s16x2": np.int16,
}  # fmt: skip
Mask = np.ndarray | None  # the lanes that take part, None for all
WIDER = {"s16": "s32", "u16": "u32", "s32": "s64", "u32": "u64"}


def is_float(kind: str) -> bool:
    return kind.startswith(("f", "bf"))


def from_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(x: np.ndarray) -> np.ndarray:
    """To nearest even, from float32 or, with no second rounding, from float64."""
    if x.dtype != np.float32:
        single = x.astype(np.float32)
        # Where rounding to float32 made a tie of what is none, step off it towards the true value.
        tied = ((single.view(np.uint32) & np.uint32(0xFFFF)) == 0x8000) & (single != x)
        x = np.where(tied, np.nextafter(single, np.where(x > single, np.inf, -np.inf).astype(np.float32)), single)
    bits = np.ascontiguousarray(x).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
    return np.where(np.isnan(x), 0x7FFF, rounded).astype(np.uint16)


def to_tf32(x: np.ndarray) -> np.ndarray:
    """`cvt.rna.tf32.f32`: ten bits of mantissa, ties away from zero."""
    bits = (x.view(np.uint32).astype(np.uint64) + 0x1000).astype(np.uint32) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(x), bits, x.view(np.uint32))


_TAIL, _TIE = np.int64(0x1FFFFFFF), np.int64(0x10000000)


def fma32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a b + c, rounded once. The product is exact in float64; the sum is, but for ties that rounding it made."""
    product = np.multiply(a, b, dtype=np.float64)
    total = product + c
    result = total.astype(np.float32)
    if ((total.view(np.int64) & _TAIL) == _TIE).any():
        rest = (product - (total - c)) + (c - (total - (total - c)))  # what the sum's rounding left out, exactly
        aside = np.nextafter(total, np.where(rest > 0, np.inf, -np.inf))
        result = np.where((rest != 0) & np.isfinite(rest), aside, total).astype(np.float32)
    return result


def fma16(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return (a.astype(np.float64) * b + c).astype(np.float16)


def fma64(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a b + c, rounded once: in fractions, number by number, since numpy has no wider format."""
    result = a * b + c  # with the sign of zero, infinity and NaN
    for i in np.flatnonzero(np.isfinite(a) & np.isfinite(b) & np.isfinite(c)):
        if exact := Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(c[i])):
            result[i] = _nearest(exact)
    return result


def _nearest(exact: Fraction) -> float:
    try:
        return float(exact)  # Python divides integers with one rounding
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


def to_integer(x: np.ndarray, kind: str, how: str) -> np.ndarray:
    """Rounded as `how` says, clamped to the type's range, NaN -> 0."""
    rounding = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}[how]
    info = np.iinfo(DTYPES[kind])
    whole = rounding(x.astype(np.float64))
    inside = np.where(np.isnan(whole) | (whole < float(info.min)) | (whole >= float(info.max)), 0, whole)
    result: np.ndarray = inside.astype(DTYPES[kind])
    result = np.where(whole >= float(info.max), DTYPES[kind](info.max), result)
    return np.where(whole < float(info.min), DTYPES[kind](info.min), result)


def flush(x: np.ndarray) -> np.ndarray:
    """.ftz: subnormal float32 -> zero of its sign."""
    return np.where(np.abs(x) < np.float32(1.1754943508222875e-38), np.copysign(np.float32(0), x), x)


def flushing(fn: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    def flushed(*sources: np.ndarray) -> np.ndarray:
        result = fn(*(flush(x) if x.dtype == np.float32 else x for x in sources))
        return flush(result) if result.dtype == np.float32 else result

    return flushed
