"""A barrier is called redundant only if the text proves it."""

import numpy as np
import pytest
import torch

from ptx_machine import Settings, execute
from ptx_machine.parse import parse
from ptx_machine.program import Program
from tests.ptx.assembly import entry
from tests.ptx.redundant import Footprints, watched, why_redundant

OWN = "shl.b32 %r1, %r100, 2;\nmov.b32 %r2, global_smem;\nadd.s32 %r3, %r2, %r1;\n"  # a word of each thread's own
OTHER = (
    "xor.b32 %r4, %r100, 32;\nshl.b32 %r5, %r4, 2;\nadd.s32 %r6, %r2, %r5;\n"  # the same of a thread of another warp
)
SAME_WARP = "xor.b32 %r4, %r100, 1;\nshl.b32 %r5, %r4, 2;\nadd.s32 %r6, %r2, %r5;\n"
STORE, LOAD = "st.shared.b32 [%r3], %r100;\n", "ld.shared.b32 %r7, [%r6];\n"
BAR = "bar.sync 0;\n"
OUT = "mul.wide.u32 %rd1, %r100, 4;\nadd.s64 %rd2, %rd100, %rd1;\nadd.s64 %rd3, %rd101, %rd1;\n"
COPY = "cp.async.ca.shared.global [%r3], [%rd2], 4;\ncp.async.commit_group;\n"
WAIT = "cp.async.wait_group 0;\n"

# Body, index of the barrier, and words of the reason, or "".
BODIES = {
    "another warp's word": (OWN + OTHER + STORE + BAR + LOAD, 0, ""),
    "a word of the same warp": (OWN + SAME_WARP + STORE + BAR + LOAD, 0, "no two warps"),
    "only loads": (OWN + OTHER + STORE + BAR + LOAD + BAR + LOAD, 1, "no two accesses"),
    "nothing behind it": (OWN + OTHER + STORE + BAR + LOAD + BAR, 1, "no two accesses"),
    "a load, then another warp's store": (OWN + OTHER + STORE + BAR + LOAD + BAR + STORE, 1, ""),
    "around a loop": (
        OWN + OTHER + f"mov.b32 %r9, 0;\n$L1:\n{BAR}{STORE}{BAR}{LOAD}"
        "add.s32 %r9, %r9, 1;\nsetp.lt.s32 %p1, %r9, 3;\n@%p1 bra $L1;\n",
        0,
        "",
    ),
    "an address out of memory": (
        OWN + STORE + BAR + OUT + "ld.global.b32 %r8, [%rd2];\nadd.s32 %r6, %r2, %r8;\n" + BAR + STORE + BAR + LOAD,
        2,
        "",
    ),
    "an address that changes": (OWN + "add.s32 %r3, %r3, 128;\n" + OTHER + STORE + BAR + LOAD, 0, ""),
    "two tensors": (
        OUT + "st.global.b32 [%rd2], %r100;\n" + BAR + "ld.global.b32 %r7, [%rd3];\n", 0, "no two accesses"
    ),
    "one tensor": (OUT + "st.global.b32 [%rd2], %r100;\n" + BAR + "ld.global.b32 %r7, [%rd2+4];\n", 0, ""),
    "one of two tensors": (
        OUT + "st.global.b32 [%rd2], %r100;\nsetp.eq.b32 %p1, %r100, 0;\nselp.b64 %rd4, %rd2, %rd3, %p1;\n"
        + BAR + "ld.global.b32 %r7, [%rd4];\n",
        0,
        "",
    ),
    "an address out of nowhere": (
        OUT + "st.global.b32 [%rd2], %r100;\n" + BAR + "ld.global.b64 %rd5, [%rd3];\nld.global.b32 %r7, [%rd5];\n",
        0,
        "",
    ),
    "a copy that was waited for": (OWN + OTHER + OUT + COPY + BAR + WAIT + BAR + LOAD, 1, ""),
    "a copy under way": (OWN + OTHER + OUT + COPY + BAR + WAIT + BAR + LOAD, 0, ""),
    "a barrier of some warps": (
        OWN + OTHER + STORE + "bar.sync 1, 64;\n" + BAR + LOAD + BAR, 1, ""
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_why_redundant(name: str) -> None:
    body, which, words = BODIES[name]
    ptx = entry(2, body)
    program = Program(parse(ptx), 64, 1024)
    barriers = [at for at, step in enumerate(program.steps) if step.control == "bar"]
    barriers = [at for at in barriers if program.entry.instructions[at].text == "bar.sync 0"]

    def footprints() -> Footprints:
        tensors = [torch.from_numpy(np.zeros(512, np.uint8)) for _ in range(2)]
        with watched("kernel") as seen:
            execute(ptx, (1, 1, 1), tensors, num_warps=2, shared=1024, settings=Settings())
        return seen

    reason = why_redundant(program, barriers[which], footprints)
    assert (words in reason) if words else not reason, reason
