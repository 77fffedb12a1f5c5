"""Arithmetic and logic, in each lane by itself. The numbers are sections of the PTX ISA (9.x)."""

from __future__ import annotations

import numpy as np

from ptx_machine.decode import Compute, Op, Step, instruction
from ptx_machine.numbers import DTYPES, WIDER, fma16, fma32, fma64, is_float


@instruction("add", "sub")  # 9.7.1.1-2, 9.7.3.3-4, 9.7.4.1-2, 9.7.5.1-2
def add(op: Op) -> Step:
    if op.has("cc", "sat") and not is_float(op.type):
        raise op.unknown()
    if len(op.parts) > 2 and op.parts[-2] == "f32" and op.type in ("f16", "bf16"):  # add.f32.bf16 d, a, c
        pairs = [(op.operands[1], op.type), (op.operands[2], "f32")]
        return op.compute({"add": np.add, "sub": np.subtract}[op.name], pairs, type=op.type, result="f32")
    return op.compute({"add": np.add, "sub": np.subtract}[op.name], 2)


@instruction("mul")  # 9.7.1.3, 9.7.3.5, 9.7.4.3
def mul(op: Op) -> Step:
    if op.has("wide"):
        wide = DTYPES[WIDER[op.type]]
        return op.compute(lambda a, b: np.multiply(a, b, dtype=wide), 2, result=WIDER[op.type])
    if op.has("hi"):
        return op.compute(lambda a, b: _high(a, b), 2)
    return op.compute(np.multiply, 2)


@instruction("mad", "fma")  # 9.7.1.4, 9.7.3.6-7, 9.7.4.4
def mad(op: Op) -> Step:
    if op.has("wide"):
        wide = DTYPES[WIDER[op.type]]
        pairs = [(op.operands[1], op.type), (op.operands[2], op.type), (op.operands[3], WIDER[op.type])]
        return op.compute(lambda a, b, c: np.multiply(a, b, dtype=wide) + c, pairs, result=WIDER[op.type])
    if op.has("hi"):
        return op.compute(lambda a, b, c: _high(a, b) + c, 3)
    if not is_float(op.type):
        return op.compute(lambda a, b, c: a * b + c, 3)
    if len(op.parts) > 2 and op.parts[-2] == "f32" and op.type in ("f16", "bf16"):  # fma.f32.bf16 d, a, b, c
        pairs = [(op.operands[1], op.type), (op.operands[2], op.type), (op.operands[3], "f32")]
        return op.compute(lambda a, b, c: fma32(a.astype(np.float32), b.astype(np.float32), c), pairs, result="f32")
    if op.type.startswith("bf16"):
        fn: Compute = lambda a, b, c: a.astype(np.float64) * b + c  # noqa: E731
    else:
        fn = {"f16": fma16, "f16x2": fma16, "f32": fma32, "f32x2": fma32, "f64": fma64}[op.type]
    if op.has("relu"):
        return op.compute(lambda a, b, c: np.where((r := fn(a, b, c)) > 0, r, np.where(np.isnan(r), r, 0)), 3)
    return op.compute(fn, 3)


def _high(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    bits = 8 * a.dtype.itemsize
    if bits < 64:
        wide = np.int64 if a.dtype.kind == "i" else np.uint64
        return (np.multiply(a, b, dtype=wide) >> wide(bits)).astype(a.dtype)
    exact = [(int(x) * int(y)) >> 64 for x, y in zip(a, b, strict=True)]
    return np.array([x & (1 << 64) - 1 for x in exact], np.uint64).view(a.dtype)


@instruction("div", "rem")  # 9.7.1.8-9, 9.7.3.8
def div(op: Op) -> Step:
    if is_float(op.type):
        return op.compute(np.divide, 2)
    quotient = op.name == "div"

    def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        ones = {"u": -1 & (1 << 8 * a.dtype.itemsize) - 1, "i": -1}[a.dtype.kind]
        safe = np.where(b == 0, b.dtype.type(1), b)
        q = a // safe
        inexact = (q * safe != a) & ((a < 0) != (safe < 0))
        q = q + inexact.astype(a.dtype)
        return np.where(b == 0, a.dtype.type(ones) if quotient else a, q if quotient else a - q * safe)

    return op.compute(divide, 2)


@instruction("neg", "abs", "not")  # 9.7.1.10-11, 9.7.8.4-5
def unary(op: Op) -> Step:
    if op.name == "not" and op.type == "pred":
        return op.compute(np.logical_not, 1)
    if op.type.startswith("bf16"):  # bits, so that a NaN stays one and nothing is rounded
        flip = (lambda a: a ^ np.uint16(0x8000)) if op.name == "neg" else (lambda a: a & np.uint16(0x7FFF))
        kind = {"bf16": "b16", "bf16x2": "u16x2"}[op.type]
        return op.compute(flip, 1, type=kind)
    return op.compute({"neg": np.negative, "abs": np.abs, "not": np.invert}[op.name], 1)


@instruction("min", "max")  # 9.7.1.12-13, 9.7.3.11-12, 9.7.4.7-8
def extremum(op: Op) -> Step:
    if not is_float(op.type):
        return op.compute({"min": np.minimum, "max": np.maximum}[op.name], 2)
    if op.has("abs", "xorsign"):
        raise op.unknown()
    pick = {("min", True): np.minimum, ("max", True): np.maximum, ("min", False): np.fmin, ("max", False): np.fmax}
    pick_one = pick[op.name, op.has("NaN")]
    negative_zero = op.name == "min"

    def extreme(a: np.ndarray, b: np.ndarray) -> np.ndarray:  # -0 < +0
        value = pick_one(a, b)
        if not value.all():
            sign = (np.signbit(a) | np.signbit(b)) if negative_zero else (np.signbit(a) & np.signbit(b))
            value = np.where((a == 0) & (b == 0), np.where(sign, -0.0, 0.0).astype(a.dtype), value)
        return value

    if len(op.operands) == 4:
        return op.compute(lambda a, b, c: extreme(extreme(a, b), c), 3)
    return op.compute(extreme, 2)


@instruction("and", "or", "xor")  # 9.7.8.1-3
def logic(op: Op) -> Step:
    return op.compute({"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[op.name], 2)


@instruction("lop3")  # 9.7.8.6
def lop3(op: Op) -> Step:
    table = int(op.operands[4], 0)

    def look_up(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        result = np.zeros_like(a)
        for row in range(8):
            if table >> row & 1:
                result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
        return result

    return op.compute(look_up, 3)


@instruction("shl", "shr")  # 9.7.8.8-9: amounts beyond the width are clamped, not wrapped
def shift(op: Op) -> Step:
    dtype = np.dtype(DTYPES[op.type])
    bits, left = 8 * dtype.itemsize, op.name == "shl"

    def shifted(a: np.ndarray, amount: np.ndarray) -> np.ndarray:
        near = np.minimum(amount, np.uint32(bits - 1)).astype(dtype)
        value = np.left_shift(a, near) if left else np.right_shift(a, near)
        over = amount >= bits
        if over.any():
            value = np.where(over, value >> dtype.type(bits - 1) if not left and dtype.kind == "i" else 0, value)
        return value

    return op.compute(shifted, [(op.operands[1], op.type), (op.operands[2], "u32")])


@instruction("shf")  # 9.7.8.7
def funnel(op: Op) -> Step:
    left, wrap = op.has("l"), op.has("wrap")

    def shifted(a: np.ndarray, b: np.ndarray, amount: np.ndarray) -> np.ndarray:
        n = ((amount & 31) if wrap else np.minimum(amount, 32)).astype(np.uint64)
        both = (b.astype(np.uint64) << np.uint64(32)) | a
        if not left:
            return (both >> n).astype(np.uint32)
        whole = n == 32  # both << 32 would be a, and so it is
        return np.where(whole, a, ((both << n) >> np.uint64(32)).astype(np.uint32))

    return op.compute(shifted, 3, type="b32")


@instruction("bfe")  # 9.7.1.20
def bit_field_extract(op: Op) -> Step:
    def extract(a: np.ndarray, position: np.ndarray, length: np.ndarray) -> np.ndarray:
        wide = np.int64 if a.dtype.kind == "i" else np.uint64
        p, n = (x.astype(wide) & wide(255) for x in (position, length))
        moved = a.astype(wide) >> np.minimum(p, wide(63)) >> (p > 63).astype(wide)
        above = wide(64) - np.clip(n, 1, 64).astype(wide)  # bits to the left of the field
        return np.where(n == 0, wide(0), moved << above >> above).astype(a.dtype)

    return op.compute(extract, [(op.operands[1], op.type), (op.operands[2], "u32"), (op.operands[3], "u32")])


@instruction("bfi")  # 9.7.1.21
def bit_field_insert(op: Op) -> Step:
    dtype = DTYPES[op.type]
    bits = 8 * np.dtype(dtype).itemsize

    def one(x: int, y: int, p: int, n: int) -> int:
        p, n = p & 255, n & 255
        field = ((1 << n) - 1 << p) & (1 << bits) - 1
        return (y & ~field) | (x << p & field)

    def insert(*sources: np.ndarray) -> np.ndarray:
        return np.array([one(*numbers) for numbers in zip(*map(np.ndarray.tolist, sources), strict=True)], dtype)

    kinds = (op.type, op.type, "u32", "u32")
    return op.compute(insert, list(zip(op.operands[1:5], kinds, strict=True)))


@instruction("popc", "clz", "brev")  # 9.7.1.14-15, 9.7.1.17
def bits(op: Op) -> Step:
    width = 8 * np.dtype(DTYPES[op.type]).itemsize
    mask = (1 << width) - 1

    def one(x: int) -> int:
        if op.name == "popc":
            return (x & mask).bit_count()
        if op.name == "clz":
            return width - (x & mask).bit_length()
        return int(format(x & mask, f"0{width}b")[::-1], 2)

    result = op.type if op.name == "brev" else "u32"
    return op.compute(lambda a: np.array([one(x) for x in a.tolist()], DTYPES[result]), 1, result=result)


@instruction("prmt")  # 9.7.9.7
def permute(op: Op) -> Step:
    if len(op.parts) > 2:
        raise op.unknown()

    def permuted(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
        both = (b.astype(np.uint64) << np.uint64(32)) | a
        result = np.zeros_like(a)
        for byte in range(4):
            select = (selector >> np.uint32(4 * byte)) & np.uint32(15)
            value = (both >> ((select & 7).astype(np.uint64) * np.uint64(8))).astype(np.uint32) & np.uint32(255)
            sign = np.where(value & 128, np.uint32(255), np.uint32(0))
            result |= np.where(select & 8, sign, value) << np.uint32(8 * byte)
        return result

    return op.compute(permuted, 3)


@instruction("rcp", "sqrt", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh")  # 9.7.3.13-21: computed in float64
def special(op: Op) -> Step:
    table: dict[str, Compute] = {
        "rcp": lambda x: 1 / x, "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "ex2": np.exp2, "lg2": np.log2,
        "sin": np.sin, "cos": np.cos, "tanh": np.tanh,
    }  # fmt: skip
    exact = table[op.name]
    if op.type.startswith("bf16") or op.type == "f64":
        return op.compute(lambda x: exact(x.astype(np.float64)), 1)
    dtype = DTYPES[op.type]
    return op.compute(lambda x: exact(x.astype(np.float64)).astype(dtype), 1)


@instruction("copysign")  # 9.7.3.2: the sign of a on b
def copysign(op: Op) -> Step:
    return op.compute(lambda a, b: np.copysign(b, a), 2)
