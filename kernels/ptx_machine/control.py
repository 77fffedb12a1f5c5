"""Branches, barriers and what only orders or hints. `schedule` decides when and for whom."""

from __future__ import annotations

from ptx_machine.decode import Op, Run, Step, instruction
from ptx_machine.numbers import Mask
from ptx_machine.warps import Warps


def _nothing(warps: Warps) -> Run:
    return lambda mask: None


@instruction("bra")  # 9.7.12.2
def bra(op: Op) -> Step:
    return Step(_nothing, control="bra", target=op.operands[0])


@instruction("ret", "exit")  # 9.7.12.6, 9.7.12.7
def ret(op: Op) -> Step:
    return Step(_nothing, control="ret")


@instruction("trap")  # 9.7.19.4
def trap(op: Op) -> Step:
    def bind(warps: Warps) -> Run:
        def run(mask: Mask) -> None:
            warps.find("trap", op.at, "the kernel gave up", mask)

        return run

    return Step(bind)


@instruction("bar", "barrier")  # 9.7.13.1-2
def bar(op: Op) -> Step:
    if op.has("warp"):
        members = op.operands[0]

        def bind(warps: Warps) -> Run:
            named = warps.read(members, "u32")
            return lambda mask: warps.require_converged(op.at, mask, named)

        return Step(bind, waits=True)
    if not op.has("sync") or op.has("cluster"):
        raise op.unknown()
    name = int(op.operands[0], 0)
    threads = int(op.operands[1], 0) if len(op.operands) > 1 else 0
    return Step(_nothing, control="bar", barrier=(name, threads), waits=True)


@instruction("fence", "membar", "nanosleep", "griddepcontrol", "prefetch", "prefetchu", "discard", "applypriority")
def ignored(op: Op) -> Step:
    """9.7.13.4 and others: order that no access here can be seen to lack, time, hints."""
    if any(op.has(part) for part in ("proxy", "mbarrier_init")):
        raise op.unknown()
    return Step(_nothing)
