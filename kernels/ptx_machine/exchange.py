"""What lanes of a warp do together: shuffles, votes, reductions, matrices. (warps, 32) arrays; all need every lane."""

from __future__ import annotations

import numpy as np

from ptx_machine.decode import Bind, Op, Run, Step, instruction
from ptx_machine.numbers import Mask, from_bf16
from ptx_machine.requests import Request, grant
from ptx_machine.warps import Warps

LANE = np.arange(32)
GROUP, THREAD = LANE >> 2, LANE & 3  # where a lane stands in a matrix fragment (9.7.14)


def together(op: Op, members: str | None, bind: Bind) -> Step:
    """A step of whole warps: computed for every lane, stored for those of the mask."""

    def bound(warps: Warps) -> Run:
        compute = bind(warps)
        all_lanes = members is None or members in ("-1", "0xffffffff", "0xFFFFFFFF", "4294967295")
        named = None if all_lanes else warps.read(str(members), "u32")

        def run(mask: Mask) -> None:
            warps.require_converged(op.at, mask, named)
            compute(mask)

        return run

    return Step(bound, waits=True)


def store(mask: Mask, *pairs: tuple[np.ndarray, np.ndarray]) -> None:
    for register, values in pairs:
        if mask is None:
            register[...] = values.reshape(-1)
        else:
            np.copyto(register, values.reshape(-1), where=mask, casting="unsafe")


@instruction("shfl")  # 9.7.9.6
def shuffle(op: Op) -> Step:
    if op.parts[1] != "sync":
        raise op.unknown()
    mode = op.parts[2]
    target, _, valid = (part.strip() for part in op.operands[0].partition("|"))

    def bind(warps: Warps) -> Run:
        value, lane, clamp = (
            warps.read(name, kind) for name, kind in zip(op.operands[1:4], ("b32", "u32", "u32"), strict=True)
        )
        out = warps.write(target, "b32")
        flag = warps.write(valid, "pred") if valid else None
        own = np.arange(warps.lanes)
        within, first = own & 31, own & ~31
        cache: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

        def sources() -> tuple[np.ndarray, np.ndarray]:
            segment = (clamp >> np.uint32(8)).astype(np.int64) & 31
            low = within & segment
            high = low | (clamp.astype(np.int64) & 31 & ~segment)
            by = lane.astype(np.int64) & 31
            if mode == "up":
                source = within - by
                good = source >= high
            else:
                source = {"down": within + by, "bfly": within ^ by, "idx": low | (by & ~segment)}[mode]
                good = source <= high
            return np.where(good, source, within) + first, good

        def compute(mask: Mask) -> None:
            key = lane.tobytes() + clamp.tobytes() if warps.count == 1 else b""
            cached = cache.get(key) if key else None
            if cached is None:
                cached = sources()
                if key and len(cache) < 64:
                    cache[key] = cached
            store(mask, (out, value[cached[0]]))
            if flag is not None:
                store(mask, (flag, cached[1]))

        return compute

    return together(op, op.operands[4], bind)


@instruction("vote")  # 9.7.13.10
def vote(op: Op) -> Step:
    source = op.operands[1].lstrip("!")
    negated = op.operands[1].startswith("!")

    def bind(warps: Warps) -> Run:
        value = warps.read(source, "pred")
        out = warps.write(op.operands[0], "pred" if op.type == "pred" else "b32")

        def compute(mask: Mask) -> None:
            rows = (value ^ negated).reshape(-1, 32)
            result = {
                "ballot": lambda: (rows.astype(np.uint64) << LANE.astype(np.uint64)).sum(1).astype(np.uint32),
                "all": lambda: rows.all(1),
                "any": lambda: rows.any(1),
                "uni": lambda: rows.all(1) | ~rows.any(1),
            }[op.parts[2]]()
            store(mask, (out, np.repeat(result, 32)))

        return compute

    return together(op, op.operands[2], bind)


@instruction("redux")  # 9.7.13.12
def redux(op: Op) -> Step:
    reduce = {
        "add": np.add.reduce, "min": np.minimum.reduce, "max": np.maximum.reduce, "and": np.bitwise_and.reduce,
        "or": np.bitwise_or.reduce, "xor": np.bitwise_xor.reduce,
    }[op.parts[2]]  # fmt: skip

    def bind(warps: Warps) -> Run:
        value, out = warps.read(op.operands[1], op.type), warps.write(op.operands[0], op.type)
        return lambda mask: store(mask, (out, np.repeat(reduce(value.reshape(-1, 32), axis=1, dtype=value.dtype), 32)))

    return together(op, op.operands[2], bind)


@instruction("ldmatrix", "stmatrix")  # 9.7.14.5.15-16: lanes 8 i to 8 i + 7 hold the addresses of matrix i's rows
def ldmatrix(op: Op) -> Step:
    loads = op.name == "ldmatrix"
    if not op.has("m8n8") or op.type != "b16":
        raise op.unknown()
    registers = op.registers(0 if loads else 1)
    base, offset = op.address(1 if loads else 0)
    transposed = op.has("trans")

    def bind(warps: Warps) -> Run:
        address = warps.read(base, "u32")
        views = [(warps.write if loads else warps.read)(name, "b32") for name in registers]
        every = np.arange(warps.count)

        def run(mask: Mask) -> None:
            warps.require_converged(op.at, mask, None)
            here = every if mask is None else np.flatnonzero(mask.reshape(-1, 32).any(1))
            lanes = (here[:, None] * 32 + np.arange(8 * len(views))).reshape(-1)
            where = address[lanes].astype(np.int64) + offset
            values = None
            if not loads:  # (warps, matrices, rows, columns), as the lanes' addresses lie
                tiles = np.stack([view.view(np.uint16).reshape(-1, 8, 8)[here] for view in views], 1)
                tiles = tiles.swapaxes(2, 3) if transposed else tiles
                values = np.ascontiguousarray(tiles).reshape(-1, 8)
            access = grant(warps, Request("shared", op.at, where, lanes, 16, write=not loads, values=values))
            if access is None:
                return
            if values is not None:
                access.scatter(2, values[np.isin(lanes, access.lanes)])
                return
            rows = np.zeros((warps.lanes, 8), np.uint16)
            rows[access.lanes] = access.gather(2, 8)
            tiles = rows[lanes].reshape(len(here), len(views), 8, 8)
            tiles = np.ascontiguousarray(tiles.swapaxes(2, 3) if transposed else tiles)
            for view, tile in zip(views, tiles.swapaxes(0, 1), strict=True):
                view.reshape(-1, 32)[here] = np.ascontiguousarray(tile).reshape(len(here), 64).view(np.uint32)

        return run

    return Step(bind)


def _as_hardware_sums(total: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """total + left @ right into float32, as an H200 does it: float16, bfloat16 and tf32, the same bits.

    Products are exact. Of all terms of a sum what lies 25 bits below the largest exponent is cut off, a product's
    exponent being its factors' added up; the sum is cut to float32, not rounded.
    """
    products = left[:, :, :, None] * right[:, None]
    terms = np.concatenate([products, total[:, :, None]], 2)
    none = -5000  # the exponent of zero
    a, b, c = (np.where(x == 0, none, np.frexp(x)[1]) for x in (left, right, total))
    exponent = np.maximum((a[:, :, :, None] + b[:, None]).max(2) - 1, c)
    unit = np.ldexp(1.0, np.maximum(exponent, -900) - 26)
    exact = (np.trunc(terms / unit[:, :, None]) * unit[:, :, None]).sum(2)
    rounded = exact.astype(np.float32)
    beyond = np.abs(rounded.astype(np.float64)) > np.abs(exact)
    return np.where(beyond, np.nextafter(rounded, np.float32(0)), rounded)


@instruction("mma")  # 9.7.14.5; sums of integers and into float16: exact, rounded once
def mma(op: Op) -> Step:
    shape = next(part for part in op.parts if part.startswith("m") and "n" in part and "k" in part)
    m, n, k = (int(x) for x in shape.replace("m", " ").replace("n", " ").replace("k", " ").split())
    result, kind = op.parts[-4], op.parts[-3]
    if (m, n) != (16, 8) or op.parts[-2] != kind or kind not in ("tf32", "f16", "bf16", "s8", "u8"):
        raise op.unknown()
    if result not in ("f32", "f16", "s32") or not op.has("row") or not op.has("col"):
        raise op.unknown()
    per = {"tf32": 1, "f16": 2, "bf16": 2, "s8": 4, "u8": 4}[kind]  # numbers in a register
    names = [op.registers(i) for i in range(4)]

    def numbers(bits: np.ndarray) -> np.ndarray:
        """(lanes,) registers -> (lanes, per) float64."""
        if kind == "tf32":
            return (bits & np.uint32(0xFFFFE000)).view(np.float32)[:, None].astype(np.float64)
        if per == 4:
            return bits.view(np.int8 if kind == "s8" else np.uint8).reshape(-1, 4).astype(np.float64)
        halves = from_bf16(bits.view(np.uint16)) if kind == "bf16" else bits.view(np.float16)
        return halves.reshape(-1, 2).astype(np.float64)

    # Rows and columns of what the registers hold: (registers, lanes, numbers in a register).
    group, thread = GROUP[:, None], THREAD[:, None]
    of_a, of_b, of_c = (np.arange(len(names[i]))[:, None, None] for i in (1, 2, 3))
    at_a = group + 8 * (of_a & 1), per * thread + np.arange(per) + 4 * per * (of_a >> 1)
    at_b = per * thread + np.arange(per) + 4 * per * of_b, group
    dtype = {"f32": np.float32, "f16": np.float16, "s32": np.int32}[result]
    if result == "f16":
        at_c = group + 8 * of_c, 2 * thread + np.arange(2)
    else:
        at_c = group + 8 * (of_c >> 1), 2 * thread + (of_c & 1)

    def bind(warps: Warps) -> Run:
        d = [warps.write(name, "b32") for name in names[0]]
        a, b, c = ([warps.read(name, "b32") for name in names[i]] for i in (1, 2, 3))

        def compute(mask: Mask) -> None:
            left, right, total = (np.zeros((warps.count, *shape)) for shape in ((16, k), (k, 8), (16, 8)))
            for matrix, place, values in (
                (left, at_a, map(numbers, a)),
                (right, at_b, map(numbers, b)),
                (total, at_c, (bits.view(dtype) for bits in c)),
            ):
                matrix[:, *place] = np.stack([value.reshape(warps.count, 32, -1) for value in values], 1)
            total = _as_hardware_sums(total, left, right) if result == "f32" else total + left @ right
            results = total[:, *at_c].astype(dtype).swapaxes(0, 1)
            store(mask, *zip(d, (one.reshape(-1).view(np.uint32) for one in results), strict=True))

        return compute

    return together(op, None, bind)
