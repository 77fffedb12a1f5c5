"""Moves from register to register, and from type to type. The numbers are sections of the PTX ISA (9.x)."""

from __future__ import annotations

import numpy as np

from ptx_machine.decode import Compute, Op, Run, Step, assign, instruction
from ptx_machine.numbers import DTYPES, Mask, from_bf16, is_float, to_bf16, to_integer, to_tf32
from ptx_machine.warps import Warps


@instruction("mov", "cvta", "createpolicy")  # 9.7.9.4, 9.7.9.20: addresses are the same in every space here
def mov(op: Op) -> Step:
    if op.name == "createpolicy":
        return assign(op.operands[0], "b64", lambda: np.zeros((), np.uint64), [])
    if op.operands[0].startswith("{") or op.operands[1].startswith("{"):
        return _pack(op)
    kind = "pred" if op.type == "pred" else "b" + op.type.lstrip("bsuf")
    return assign(op.operands[0], kind, np.positive if kind != "pred" else np.copy, [(op.operands[1], kind)])


def _pack(op: Op) -> Step:
    """{a, b} to a register of their joint width, or the other way round."""
    pack = op.operands[1].startswith("{")
    parts = op.registers(1 if pack else 0)
    whole = op.operands[0 if pack else 1]
    part = f"b{int(op.type[1:]) // len(parts)}"

    def bind(warps: Warps) -> Run:
        joint = (warps.write if pack else warps.read)(whole, op.type)
        pieces: np.ndarray = np.ascontiguousarray(joint).view(DTYPES[part]).reshape(warps.lanes, len(parts))
        views = [None if p == "_" else (warps.read if pack else warps.write)(p, part) for p in parts]

        def run(mask: Mask) -> None:
            lanes = slice(None) if mask is None else mask
            for k, view in enumerate(views):
                if view is not None and pack:
                    pieces[lanes, k] = view[lanes]
                elif view is not None:
                    view[lanes] = pieces[lanes, k]

        return run

    return Step(bind)


@instruction("cvt")  # 9.7.9.21
def cvt(op: Op) -> Step:
    to, of = op.parts[-2], op.parts[-1]
    if to in ("bf16x2", "f16x2") and of == "f32":  # cvt.rn.bf16x2.f32 d, high, low
        if not op.has("rn"):
            raise op.unknown()
        encode: Compute = to_bf16 if to == "bf16x2" else (lambda x: x.astype(np.float16).view(np.uint16))
        relu: Compute = (lambda x: np.where(x < 0, np.float32(0), x)) if op.has("relu") else (lambda x: x)
        join: Compute = lambda high, low: (encode(relu(high)).astype(np.uint32) << np.uint32(16)) | encode(relu(low))  # noqa: E731
        return assign(op.operands[0], "b32", join, [(op.operands[1], "f32"), (op.operands[2], "f32")])
    if to == "tf32":
        if not op.has("rna"):
            raise op.unknown()
        return assign(op.operands[0], "b32", to_tf32, [(op.operands[1], "f32")])
    return assign(op.operands[0], to, _conversion(op, to, of), [(op.operands[1], of)])


def _conversion(op: Op, to: str, of: str) -> Compute:
    DTYPES[to], DTYPES[of]
    decode: Compute = from_bf16 if of == "bf16" else (lambda x: x)
    rounding = next((part for part in op.parts[1:-2] if part in ("rni", "rzi", "rmi", "rpi")), "")
    if not is_float(to):
        if is_float(of):
            return lambda x: to_integer(decode(x), to, rounding)
        if op.has("sat"):
            info = np.iinfo(DTYPES[to])
            return lambda x: np.clip(
                x, max(info.min, np.iinfo(x.dtype).min), min(info.max, np.iinfo(x.dtype).max)
            ).astype(DTYPES[to])
        return lambda x: x.astype(DTYPES[to])
    if op.has("rm", "rp") or (op.has("rz") and to != "bf16"):
        raise op.unknown()
    if rounding:
        whole = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}[rounding]
        source, decode = decode, lambda x: whole(source(x))
    if to == "bf16":
        if op.has("rz"):
            return lambda x: (decode(x).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        return lambda x: to_bf16(_float(decode(x)))
    saturate: Compute = (lambda x: np.clip(np.where(np.isnan(x), 0, x), 0, 1)) if op.has("sat") else (lambda x: x)
    return lambda x: saturate(decode(x).astype(DTYPES[to]))


def _float(x: np.ndarray) -> np.ndarray:
    return x if x.dtype.kind == "f" and x.dtype != np.float16 else x.astype(np.float64)
