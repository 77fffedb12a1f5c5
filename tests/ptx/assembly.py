"""PTX written by hand around one instruction: operands from memory, the result back to memory."""

import numpy as np
import torch

from ptx_machine import Report, Settings, execute

HEADER = ".version 8.7\n.target sm_90a\n.address_size 64\n.extern .shared .align 16 .b8 global_smem[];\n"
REGISTER = {1: "b16", 2: "b16", 4: "b32", 8: "b64"}


def entry(params: int, body: str) -> str:
    """An entry with pointers p0, p1 ... in %rd100, %rd101 ...; %r100 is the thread; many registers of each kind."""
    listed = ", ".join(f".param .u64 .ptr .global .align 1 p{i}" for i in range(params))
    loads = "".join(f"ld.param.b64 %rd{100 + i}, [p{i}];\n" for i in range(params))
    return (
        f"{HEADER}.visible .entry kernel({listed})\n.reqntid 1024\n{{\n.reg .pred %p<10>;\n.reg .b16 %rs<20>;\n"
        f".reg .b32 %r<120>;\n.reg .b64 %rd<120>;\n{loads}mov.u32 %r100, %tid.x;\n{body}\nret;\n}}\n"
    )


def lanewise(text: str, operands: list[np.ndarray], result: type, seed: int = 0) -> np.ndarray:
    """`text` uses $0 for its result and $1 ... for operands; one lane for each element of the operands."""
    count = len(operands[0])
    lanes = -(-count // 32) * 32
    sources = [np.concatenate([x, np.repeat(x[:1], lanes - count)]) for x in operands]
    out = np.zeros(lanes, result)
    body, names = "", []
    for i, x in enumerate([out, *sources]):
        size = x.dtype.itemsize
        name = "%p1" if x.dtype == np.bool_ else {1: "%rs", 2: "%rs", 4: "%r", 8: "%rd"}[size] + str(i)
        names.append(name)
        body += f"mul.wide.u32 %rd50, %r100, {size};\nadd.s64 %rd{60 + i}, %rd{100 + i}, %rd50;\n"
        if i and x.dtype == np.bool_:
            body += f"ld.global.b8 %rs{i}, [%rd{60 + i}];\nsetp.ne.b16 %p1, %rs{i}, 0;\n"
        elif i:
            body += f"ld.global.b{8 * size} {name}, [%rd{60 + i}];\n"
    for i, name in reversed(list(enumerate(names))):
        text = text.replace(f"${i}", "%p2" if i == 0 and result is np.bool_ else name)
    body += text + ";\n"
    if result is np.bool_:
        body += "selp.b16 %rs0, 1, 0, %p2;\nst.global.b8 [%rd60], %rs0;\n"
    else:
        body += f"st.global.b{8 * out.dtype.itemsize} [%rd60], {names[0]};\n"
    settings = Settings(seed=seed)
    tensors = [torch.from_numpy(x.view(np.uint8)) for x in (out, *sources)]
    execute(entry(len(tensors), body), (1, 1, 1), tensors, num_warps=lanes // 32, settings=settings)
    settings.report.raise_if_any()
    return out[:count]


def run(body: str, *arrays: np.ndarray, num_warps: int = 1, shared: int = 0, blocks: int = 1, seed: int = 0) -> Report:
    tensors = [torch.from_numpy(x.view(np.uint8)) for x in arrays]
    return execute(
        entry(len(arrays), body),
        (blocks, 1, 1),
        tensors,
        num_warps=num_warps,
        shared=shared,
        settings=Settings(seed=seed),
    )
