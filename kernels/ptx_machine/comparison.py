"""Comparisons, and what is chosen by them. The numbers are sections of the PTX ISA (9.x)."""

from __future__ import annotations

import numpy as np

from ptx_machine.decode import Compute, Op, Run, Step, assign, instruction
from ptx_machine.numbers import Mask, from_bf16, is_float
from ptx_machine.warps import Warps

_COMPARE: dict[str, Compute] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip


def comparison(name: str, kind: str) -> Compute:
    """9.3.1, 9.3.2: `ne` is ordered, a trailing u means true for NaN as well."""
    if not is_float(kind):
        return _COMPARE[name]
    nan = lambda a, b: np.isnan(a) | np.isnan(b)  # noqa: E731
    if name == "num":
        return lambda a, b: ~nan(a, b)
    if name == "nan":
        return nan
    if name.endswith("u") and name[:2] in _COMPARE:
        return lambda a, b: _COMPARE[name[:2]](a, b) | nan(a, b)
    return (lambda a, b: (a != b) & ~nan(a, b)) if name == "ne" else _COMPARE[name]


@instruction("setp")  # 9.7.6.2, 9.7.7.2
def setp(op: Op) -> Step:
    compare = comparison(op.parts[1], op.type)
    combine = next((part for part in op.parts[2:-1] if part in ("and", "or", "xor")), "")
    targets = [name.strip() for name in op.operands[0].split("|")]
    if op.type in ("f16x2", "bf16x2"):
        return _setp_packed(op, compare, targets)
    if combine:
        third, negated = op.operands[3].lstrip("!"), op.operands[3].startswith("!")
        join = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[combine]
        pairs = [(op.operands[1], op.type), (op.operands[2], op.type), (third, "pred")]
        first: Compute = lambda a, b, c: join(compare(a, b), ~c if negated else c)  # noqa: E731
        second: Compute = lambda a, b, c: join(~compare(a, b), ~c if negated else c)  # noqa: E731
    else:
        pairs = [(op.operands[1], op.type), (op.operands[2], op.type)]
        first, second = compare, lambda a, b: ~compare(a, b)
    if op.type == "bf16":
        first, second = _of_bf16(first), _of_bf16(second)
    steps = [assign(targets[0], "pred", first, pairs)]
    if len(targets) == 2:
        steps.append(assign(targets[1], "pred", second, pairs))
    return steps[0] if len(steps) == 1 else _both(steps)


def _of_bf16(fn: Compute) -> Compute:
    return lambda a, b, *c: fn(from_bf16(a), from_bf16(b), *c)


def _setp_packed(op: Op, compare: Compute, targets: list[str]) -> Step:
    """setp.f16x2 p|q: p compares the low halves, q the high ones."""
    decode: Compute = from_bf16 if op.type == "bf16x2" else (lambda x: x)
    pairs = [(name, op.type) for name in op.operands[1:3]]
    halves: list[Compute] = [lambda a, b, h=h: compare(decode(a[h::2]), decode(b[h::2])) for h in (0, 1)]
    return _both([assign(target, "pred", half, pairs) for target, half in zip(targets, halves, strict=False)])


def _both(steps: list[Step]) -> Step:
    def bind(warps: Warps) -> Run:
        runs = [step.bind(warps) for step in steps]

        def run(mask: Mask) -> None:
            for one in runs:
                one(mask)

        return run

    return Step(bind)


@instruction("selp")  # 9.7.6.3
def selp(op: Op) -> Step:
    kind = "b" + op.type.lstrip("bsuf")
    pairs = [(op.operands[1], kind), (op.operands[2], kind), (op.operands[3], "pred")]

    def pick(a: np.ndarray, b: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        return np.where(chosen, a, b)

    return op.compute(pick, pairs, type=kind)
