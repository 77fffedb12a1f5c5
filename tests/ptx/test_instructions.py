"""Each single-lane instruction against plain Python, on random operands and all pairs of edge values."""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from ptx_machine import MachineError
from tests.ptx.assembly import lanewise
from tests.ptx.oracle import NP, bf16, exactly, nearest, operands, same, truncated, wrap

INTEGERS = ["s32", "u32", "s64", "u64", "s16", "u16"]
CASES: list[tuple[str, str, list[str], Callable]] = []
for t in INTEGERS:
    bits = int(t[1:])
    CASES += [
        (f"add.{t} $0, $1, $2", t, [t, t], lambda a, b, t=t: wrap(a + b, t)),
        (f"sub.{t} $0, $1, $2", t, [t, t], lambda a, b, t=t: wrap(a - b, t)),
        (f"mul.lo.{t} $0, $1, $2", t, [t, t], lambda a, b, t=t: wrap(a * b, t)),
        (f"mul.hi.{t} $0, $1, $2", t, [t, t], lambda a, b, t=t, n=bits: wrap(a * b >> n, t)),
        (f"mad.lo.{t} $0, $1, $2, $3", t, [t, t, t], lambda a, b, c, t=t: wrap(a * b + c, t)),
        (f"min.{t} $0, $1, $2", t, [t, t], min),
        (f"max.{t} $0, $1, $2", t, [t, t], max),
        (f"shr.{t} $0, $1, $2", t, [t, "u32"], lambda a, n: a >> min(n, 200)),
        (
            f"shl.b{bits} $0, $1, $2",
            f"b{bits}",
            [f"b{bits}", "u32"],
            lambda a, n, k=bits: wrap(a << min(n, 200), f"b{k}"),
        ),
    ]
for t in INTEGERS[:4]:
    nonzero = lambda fn: lambda a, b: fn(a, b) if b else None  # noqa: E731
    CASES += [
        (f"div.{t} $0, $1, $2", t, [t, t], nonzero(lambda a, b, t=t: wrap(truncated(a, b), t))),
        (f"rem.{t} $0, $1, $2", t, [t, t], nonzero(lambda a, b, t=t: wrap(a - truncated(a, b) * b, t))),
    ]
for t, w in [("s32", "s64"), ("u32", "u64"), ("s16", "s32"), ("u16", "u32")]:
    CASES += [
        (f"mul.wide.{t} $0, $1, $2", w, [t, t], lambda a, b: a * b),
        (f"mad.wide.{t} $0, $1, $2, $3", w, [t, t, w], lambda a, b, c, w=w: wrap(a * b + c, w)),
    ]
for t in ("b32", "b64", "b16"):
    full = (1 << int(t[1:])) - 1
    CASES += [
        (f"and.{t} $0, $1, $2", t, [t, t], lambda a, b: a & b),
        (f"or.{t} $0, $1, $2", t, [t, t], lambda a, b: a | b),
        (f"xor.{t} $0, $1, $2", t, [t, t], lambda a, b: a ^ b),
        (f"not.{t} $0, $1", t, [t], lambda a, f=full: ~a & f),
    ]
for t in ("s32", "s64", "s16"):
    CASES += [
        (f"neg.{t} $0, $1", t, [t], lambda a, t=t: wrap(-a, t)),
        (f"abs.{t} $0, $1", t, [t], lambda a, t=t: wrap(abs(a), t)),
    ]
for t in ("b32", "b64"):
    n = int(t[1:])
    CASES += [
        (f"popc.{t} $0, $1", "u32", [t], lambda a: bin(a).count("1")),
        (f"clz.{t} $0, $1", "u32", [t], lambda a, n=n: n - len(bin(a)[2:]) if a else n),
        (f"brev.{t} $0, $1", t, [t], lambda a, n=n: int(bin(a)[2:].zfill(n)[::-1], 2)),
    ]


def lookup(a: int, b: int, c: int, table: int = 0xD8) -> int:
    return sum((table >> ((a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1)) & 1) << i for i in range(32))


def permuted(a: int, b: int, s: int) -> int:
    source = a.to_bytes(4, "little") + b.to_bytes(4, "little")
    picked = [(source[s >> 4 * i & 7], s >> 4 * i + 3 & 1) for i in range(4)]
    return int.from_bytes(bytes((255 if byte & 128 else 0) if sign else byte for byte, sign in picked), "little")


def extracted(a: int, p: int, n: int, signed: bool) -> int:
    p, n = p & 255, n & 255
    sign = signed and n > 0 and (a >> min(p + n - 1, 31)) & 1
    return wrap(
        sum(((a >> p + i & 1) if i < n and p + i < 32 else bool(sign)) << i for i in range(32)),
        "s32" if signed else "u32",
    )


def inserted(a: int, b: int, p: int, n: int) -> int:
    p, n = p & 255, n & 255
    return sum(((a >> i - p & 1) if p <= i < p + n else (b >> i & 1)) << i for i in range(32))


CASES += [
    ("lop3.b32 $0, $1, $2, $3, 0xD8", "b32", ["b32", "b32", "b32"], lookup),
    ("prmt.b32 $0, $1, $2, $3", "b32", ["b32", "b32", "b32"], permuted),
    (
        "shf.l.wrap.b32 $0, $1, $2, $3",
        "b32",
        ["b32"] * 3,
        lambda a, b, n: ((b << 32 | a) << (n & 31)) >> 32 & 0xFFFFFFFF,
    ),
    ("shf.r.wrap.b32 $0, $1, $2, $3", "b32", ["b32"] * 3, lambda a, b, n: (b << 32 | a) >> (n & 31) & 0xFFFFFFFF),
    (
        "shf.l.clamp.b32 $0, $1, $2, $3",
        "b32",
        ["b32"] * 3,
        lambda a, b, n: ((b << 32 | a) << min(n, 32)) >> 32 & 0xFFFFFFFF,
    ),
    ("shf.r.clamp.b32 $0, $1, $2, $3", "b32", ["b32"] * 3, lambda a, b, n: (b << 32 | a) >> min(n, 32) & 0xFFFFFFFF),
    ("bfe.u32 $0, $1, $2, $3", "u32", ["u32"] * 3, lambda a, p, n: extracted(a, p, n, False)),
    ("bfe.s32 $0, $1, $2, $3", "s32", ["s32", "u32", "u32"], lambda a, p, n: extracted(a, p, n, True)),
    ("bfe.u32 $0, $1, 5, 2", "u32", ["u32"], lambda a: a >> 5 & 3),
    ("bfe.s32 $0, $1, 24, 1", "s32", ["s32"], lambda a: -(a >> 24 & 1)),
    ("bfi.b32 $0, $1, $2, $3, $4", "b32", ["b32"] * 4, inserted),
    ("selp.b32 $0, $1, $2, $3", "b32", ["b32", "b32", "pred"], lambda a, b, c: a if c else b),
    ("selp.f32 $0, $1, 0fFF800000, $2", "f32", ["f32", "pred"], lambda a, c: a if c else -math.inf),
    ("and.pred $0, $1, $1", "pred", ["pred"], lambda a: a),
    ("not.pred $0, $1", "pred", ["pred"], lambda a: not a),
    ("mov.b64 $0, {$1, $2}", "b64", ["b32", "b32"], lambda a, b: b << 32 | a),
    ("mov.b32 {%rs5, %rs6}, $1;\nmov.b32 $0, {%rs6, %rs5}", "b32", ["b32"], lambda a: a >> 16 | (a & 0xFFFF) << 16),
    ("copysign.f32 $0, $1, $2", "f32", ["f32", "f32"], lambda a, b: math.copysign(b, a)),
    ("mad.hi.s32 $0, $1, $2, $3", "s32", ["s32"] * 3, lambda a, b, c: wrap((a * b >> 32) + c, "s32")),
    ("mov.pred $0, $1", "pred", ["pred"], lambda a: a),
    ("cvta.to.global.u64 $0, $1", "u64", ["u64"], lambda a: a),
    ("createpolicy.fractional.L2::evict_first.b64 $0, 1.0;\nmov.b64 $0, $1", "b64", ["b64"], lambda a: a),
]
for t in ("f32", "f64", "f16", "bf16"):
    rn = ".rn" if t in ("f32", "f64") else ""
    CASES += [
        (f"add{rn}.{t} $0, $1, $2", t, [t, t], exactly(lambda a, b: a + b, t)),
        (f"sub{rn}.{t} $0, $1, $2", t, [t, t], exactly(lambda a, b: a - b, t)),
        (f"mul{rn}.{t} $0, $1, $2", t, [t, t], exactly(lambda a, b: a * b, t)),
    ]
    CASES.append((f"fma.rn.{t} $0, $1, $2, $3", t, [t, t, t], exactly(lambda a, b, c: a * b + c, t)))
for t in ("f32", "f16", "f64"):
    number = lambda fn: lambda a, b: b if math.isnan(a) else a if math.isnan(b) else fn(float(a), float(b))  # noqa: E731
    CASES += [
        (f"min.{t} $0, $1, $2", t, [t, t], number(min)),
        (f"max.{t} $0, $1, $2", t, [t, t], number(max)),
        (f"max.NaN.{t} $0, $1, $2", t, [t, t], lambda a, b: math.nan if math.isnan(a) or math.isnan(b) else max(a, b)),
        (f"neg.{t} $0, $1", t, [t], lambda a: -float(a)),
        (f"abs.{t} $0, $1", t, [t], lambda a: abs(float(a))),
    ]
ORDER = {"eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b, "le": lambda a, b: a <= b,
         "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b}  # fmt: skip
for name, compare in ORDER.items():
    for t in ("s32", "u32", "s64"):
        CASES.append((f"setp.{name}.{t} $0, $1, $2", "pred", [t, t], compare))
    unordered = lambda a, b: math.isnan(a) or math.isnan(b)  # noqa: E731
    for t in ("f32", "f16"):
        CASES.append(
            (
                f"setp.{name}.{t} $0, $1, $2",
                "pred",
                [t, t],
                lambda a, b, c=compare, u=unordered: c(a, b) and not u(a, b),
            )
        )
        CASES.append(
            (f"setp.{name}u.{t} $0, $1, $2", "pred", [t, t], lambda a, b, c=compare, u=unordered: c(a, b) or u(a, b))
        )
CASES += [
    ("setp.num.f32 $0, $1, $2", "pred", ["f32", "f32"], lambda a, b: not (math.isnan(a) or math.isnan(b))),
    ("setp.nan.f32 $0, $1, $2", "pred", ["f32", "f32"], lambda a, b: math.isnan(a) or math.isnan(b)),
    ("setp.lt.and.s32 $0, $1, $2, $3", "pred", ["s32", "s32", "pred"], lambda a, b, c: a < b and c),
    ("setp.lt.bf16 $0, $1, $2", "pred", ["bf16", "bf16"], lambda a, b: bf16(a) < bf16(b)),
]


def clamped(value: float, kind: str, rounding: Callable[[float], float]) -> int:
    info = np.iinfo(NP[kind])
    if math.isnan(value):
        return 0
    if math.isinf(value):
        return int(info.max if value > 0 else info.min)
    return int(min(max(int(rounding(value)), info.min), info.max))


def saturated(value: float) -> float:
    return 0.0 if math.isnan(value) else min(max(float(value), 0.0), 1.0)


def relu(value: float) -> float:
    return value if math.isnan(value) else max(value, 0.0)


for t in ("s32", "u32", "s64", "s16", "u16"):
    CASES += [(f"cvt.rzi.{t}.f32 $0, $1", t, ["f32"], lambda a, t=t: clamped(float(a), t, math.trunc))]
for t in ("s32", "u32", "s64", "u64"):
    for to in ("f32", "f64", "f16"):
        CASES.append((f"cvt.rn.{to}.{t} $0, $1", to, [t], lambda a, k=to: nearest(Fraction(int(a)), k)))
CASES += [
    ("cvt.rmi.s32.f32 $0, $1", "s32", ["f32"], lambda a: clamped(float(a), "s32", math.floor)),
    ("cvt.rni.s32.f32 $0, $1", "s32", ["f32"], lambda a: clamped(float(a), "s32", round)),
    ("cvt.rn.f16.f32 $0, $1", "f16", ["f32"], lambda a: nearest(float(a), "f16")),
    ("cvt.rn.f32.f64 $0, $1", "f32", ["f64"], lambda a: nearest(float(a), "f32")),
    ("cvt.rn.bf16.f32 $0, $1", "bf16", ["f32"], lambda a: nearest(float(a), "bf16")),
    ("cvt.f32.f16 $0, $1", "f32", ["f16"], float),
    ("cvt.f32.bf16 $0, $1", "f32", ["bf16"], bf16),
    ("cvt.s64.s32 $0, $1", "s64", ["s32"], int),
    ("cvt.u64.u32 $0, $1", "u64", ["u32"], int),
    ("cvt.s64.s8 $0, $1", "s64", ["s64"], lambda a: (int(a) & 255) - (int(a) & 128) * 2),
    ("cvt.u32.u64 $0, $1", "u32", ["u64"], lambda a: int(a) & 0xFFFFFFFF),
    ("cvt.u16.u32 $0, $1", "u16", ["u32"], lambda a: int(a) & 0xFFFF),
    ("cvt.sat.s8.s32 $0, $1;\nand.b16 $0, $0, 255", "b16", ["s32"], lambda a: min(max(a, -128), 127) & 255),
    ("cvt.sat.f32.f32 $0, $1", "f32", ["f32"], lambda a: 0.0 if math.isnan(a) else min(max(float(a), 0.0), 1.0)),
    ("add.sat.f32 $0, $1, $2", "f32", ["f32", "f32"], lambda a, b: saturated(np.float32(a) + np.float32(b))),
    ("cvt.rpi.s32.f32 $0, $1", "s32", ["f32"], lambda a: clamped(float(a), "s32", math.ceil)),
    ("cvt.rmi.f32.f32 $0, $1", "f32", ["f32"], lambda a: float(np.floor(np.float32(a)))),
    ("cvt.f64.f32 $0, $1", "f64", ["f32"], float),
    (
        "fma.rn.relu.f16 $0, $1, $2, $3",
        "f16",
        ["f16"] * 3,
        lambda *x: relu(exactly(lambda a, b, c: a * b + c, "f16")(*x)),
    ),
    ("neg.bf16 $0, $1", "b16", ["b16"], lambda a: a ^ 0x8000),
    ("abs.bf16 $0, $1", "b16", ["b16"], lambda a: a & 0x7FFF),
    ("neg.bf16x2 $0, $1", "b32", ["b32"], lambda a: a ^ 0x80008000),
    ("min.f32 $0, $1, $2, $3", "f32", ["f32"] * 3, lambda *x: min((float(v) for v in x if v == v), default=math.nan)),
    ("div.full.f32 $0, $1, $2", "f32", ["f32", "f32"], lambda a, b: float(np.float32(a) / np.float32(b))),
]


@pytest.mark.parametrize("text, result, kinds, want", CASES, ids=[case[0].split(" $")[0] for case in CASES])
def test_instruction(text: str, result: str, kinds: list[str], want: Callable) -> None:
    columns = operands(kinds)
    plain = [[x.item() for x in column] for column in columns]
    with np.errstate(all="ignore"):
        expected = [want(*row) for row in zip(*plain, strict=True)]
    defined = [i for i, value in enumerate(expected) if value is not None]
    got = lanewise(text, columns, NP[result])
    same(got[defined], [expected[i] for i in defined], result)


APPROXIMATE: dict[str, Callable[[float], float]] = {
    "rcp.approx.ftz": lambda x: 1 / x, "rsqrt.approx": lambda x: 1 / math.sqrt(x), "sqrt.approx": math.sqrt,
    "ex2.approx.ftz": lambda x: 2.0**x, "lg2.approx": math.log2, "sin.approx": math.sin, "cos.approx": math.cos,
    "tanh.approx": math.tanh,
}  # fmt: skip


@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximate_instruction(name: str) -> None:
    x = np.abs(np.random.default_rng(0).normal(size=500)).astype(np.float32) + np.float32(0.01)
    want = np.array([APPROXIMATE[name](float(v)) for v in x])
    got = lanewise(f"{name}.f32 $0, $1", [x], np.float32)
    assert np.abs(got - want).max() <= np.abs(np.spacing(want.astype(np.float32))).max()


def test_edges_of_approximate_instructions() -> None:
    x = np.array([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-40], np.float32)
    inf, nan = math.inf, math.nan
    same(lanewise("rcp.approx.ftz.f32 $0, $1", [x], np.float32), [inf, -inf, 0, 0, nan, inf], "f32")
    same(lanewise("rsqrt.approx.ftz.f32 $0, $1", [x], np.float32), [inf, -inf, 0, nan, nan, inf], "f32")
    same(lanewise("ex2.approx.ftz.f32 $0, $1", [x], np.float32), [1, 1, inf, 0, nan, 1], "f32")
    same(lanewise("lg2.approx.ftz.f32 $0, $1", [x], np.float32), [-inf, -inf, inf, nan, nan, -inf], "f32")


def test_flush_to_zero() -> None:
    x, y = np.array([1e-40, 1.5e-38, -1e-40], np.float32), np.array([1.0, 0.5, 1.0], np.float32)
    same(lanewise("mul.ftz.f32 $0, $1, $2", [x, y], np.float32), [0, 0, 0], "f32")
    same(lanewise("mul.f32 $0, $1, $2", [x, y], np.float32), [float(a * b) for a, b in zip(x, y, strict=True)], "f32")


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("name", ["add", "mul"])
def test_packed_pairs(kind: str, name: str) -> None:
    a, b = operands([kind, kind])
    a, b = (x[: len(x) // 2 * 2] for x in (a, b))
    got = lanewise(f"{name}.{kind}x2 $0, $1, $2", [a.view(np.uint32), b.view(np.uint32)], np.uint32).view(a.dtype)
    want = lanewise(f"{name}.{kind} $0, $1, $2", [a, b], a.dtype.type)
    assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_packed_comparison(kind: str) -> None:
    """setp.f16x2 p|q: p of the low halves, q of the high ones."""
    a, b = operands([kind, kind])
    a, b = (x[: len(x) // 2 * 2] for x in (a, b))
    text = f"setp.lt.{kind}x2 %p3|%p4, $1, $2;\nselp.b32 %r6, 1, 0, %p3;\nselp.b32 %r7, 2, 0, %p4;\nor.b32 $0, %r6, %r7"
    got = lanewise(text, [a.view(np.uint32), b.view(np.uint32)], np.uint32)
    less = lanewise(f"setp.lt.{kind} $0, $1, $2", [a, b], np.bool_)
    assert got.tolist() == (less[::2] + 2 * less[1::2]).tolist()


def test_packed_float32_and_conversion() -> None:
    rng = np.random.default_rng(3)
    x, y = (rng.normal(size=64).astype(np.float32) for _ in range(2))
    got = lanewise("fma.rn.f32x2 $0, $1, $2, $1", [x.view(np.uint64), y.view(np.uint64)], np.uint64).view(np.float32)
    same(
        got,
        [
            nearest(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(a)), "f32")
            for a, b in zip(x, y, strict=True)
        ],
        "f32",
    )
    for kind in ("bf16", "f16"):
        both = lanewise(f"cvt.rn.{kind}x2.f32 $0, $1, $2", [x, y], np.uint32)
        one = (
            lanewise(f"cvt.rn.{kind}.f32 $0, $1", [x], np.uint16),
            lanewise(f"cvt.rn.{kind}.f32 $0, $1", [y], np.uint16),
        )
        assert (both >> 16 == one[0]).all()
        assert (both & 0xFFFF == one[1]).all()


def test_tf32_rounds_ties_away() -> None:
    x = np.array([1.0, 1 + 2**-11, 1 + 2**-10 + 2**-11, -(1 + 2**-11), 1 + 2**-12], np.float32)
    got = lanewise("cvt.rna.tf32.f32 $0, $1", [x], np.uint32).view(np.float32)
    same(got, [1, 1 + 2**-10, 1 + 2**-9, -(1 + 2**-10), 1], "f32")


def test_mixed_precision() -> None:
    """add.f32.bf16: sm_100 and newer."""
    a, b = operands(["bf16", "f32"])
    want = [exactly(lambda x, y: x + y, "f32")(bf16(x), y) for x, y in zip(a, b, strict=True)]
    same(lanewise("add.rn.f32.bf16 $0, $1, $2", [a, b], np.float32), want, "f32")


@pytest.mark.parametrize(
    "text", ["frobnicate.b32 $0, $1", "cvt.rp.f32.f64 $0, $1", "add.rz.f32 $0, $1, $1", "popc $0, $1"]
)
def test_unknown_instructions_raise_an_error(text: str) -> None:
    with pytest.raises(MachineError, match=rf"unknown instruction {text.split()[0]} in kernel: "):
        lanewise(text, [np.zeros(1, np.float32)], np.float32)
