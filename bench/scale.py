"""`python -m bench scale`: time and memory as virtual batches and processes grow.

Part `virtual`: one step of `VirtualBatch` over b chunks of a small model, per sample. Part `ranks`: the loss over 1, 2
and 4 processes with the same global batch, each bound to one thread (gloo on the CPU, NCCL on GPUs), and the bytes of
the one all-reduce. Where processes outnumber cores, time shows the cores; the bytes are what grows with neither n nor
ranks. Parts that the file has already are not run again. Growth with n and classes: `python -m bench loss`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adcorre import AdCorreLoss, EmbeddingSpace, VirtualBatch
from bench import measure, rows

FIELDS = (
    *rows.ORIGIN, "part", "contender", "n", "classes", "virtual", "ranks", "seconds", "p20", "p80",
    "microseconds_per_sample", "slope", "peak_extra_mib", "bytes_on_the_wire", "note",
)  # fmt: skip
KEY = ("part",)
K, D, CLASSES, CHUNK = 7, 256, 7, 60


def virtual_part(options: argparse.Namespace) -> list[dict[str, Any]]:
    device = torch.device(options.device)
    torch.manual_seed(options.seed)

    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 512), nn.ReLU(), EmbeddingSpace(512, CLASSES)).to(device)
    step = VirtualBatch(model, AdCorreLoss(CLASSES, validate=False).to(device), CHUNK)
    result = []
    for b in [1, 2, 4, 16, 64]:

        def call(b: int = b) -> None:
            def chunks() -> Any:
                for index in range(b):  # created anew each time, so that inputs do not count
                    rng = torch.Generator(device).manual_seed(index)
                    images = torch.rand(CHUNK, 3, 32, 32, generator=rng, device=device)
                    yield images, torch.randint(0, CLASSES, (CHUNK,), generator=rng, device=device)

            model.zero_grad()
            step(chunks)

        call()
        peak = measure.peak_during(call, device)
        times = measure.in_turns({"step": call}, device, seconds=options.seconds / 3, most=20, warm=0)["step"]
        row = {"part": "virtual", "contender": "VirtualBatch", "n": b * CHUNK, "virtual": b, **measure.spread(times)}
        row["microseconds_per_sample"] = f"{1e6 * statistics.median(times) / (b * CHUNK):.4g}"
        row["peak_extra_mib"] = f"{peak / 2**20:.1f}"
        result.append(row)
    return result


def ranks_part(options: argparse.Namespace) -> list[dict[str, Any]]:
    on_gpu = torch.device(options.device).type == "cuda"
    worlds = [w for w in (1, 2, 4, 8) if w <= (torch.cuda.device_count() if on_gpu else 4)]
    n = options.n or (262144 if on_gpu else 16384)
    result = []
    for world in worlds:
        context = torch.multiprocessing.get_context("spawn")
        queue = context.SimpleQueue()
        with tempfile.TemporaryDirectory() as folder:
            store = f"file://{folder}/store"
            torch.multiprocessing.spawn(_rank, (world, store, n, on_gpu, options.seed, queue), nprocs=world)
        times, nbytes = queue.get()
        row = {"part": "ranks", "contender": "AdCorreLoss", "n": n, "ranks": world, **measure.spread(times)}
        row["microseconds_per_sample"] = f"{1e6 * statistics.median(times) / n:.4g}"
        result.append(row | {"bytes_on_the_wire": nbytes})
    return result


def _rank(rank: int, world: int, store: str, n: int, on_gpu: bool, seed: int, queue: Any) -> None:
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    dist.init_process_group("nccl" if on_gpu else "gloo", init_method=store, rank=rank, world_size=world)
    try:
        sent = [0]
        reduce = dist.all_reduce

        def counted(tensor: Tensor, *rest: Any, **named: Any) -> Any:
            sent[0] += tensor.numel() * tensor.element_size()
            return reduce(tensor, *rest, **named)

        dist.all_reduce = counted
        torch.manual_seed(seed + rank)
        own = n // world
        logits = torch.randn(own, CLASSES, device=device, requires_grad=True)
        x = torch.randn(own, K, D, device=device, requires_grad=True)
        targets = torch.randint(0, CLASSES, (own,), device=device)
        loss = AdCorreLoss(CLASSES, process_group="world", validate=False).to(device)

        def step() -> None:
            sent[0] = 0
            torch.autograd.grad(loss(logits, x, targets).loss, (logits, x))

        # A step begins on all ranks at once.
        turns: dict[str, Callable[[], object]] = {"barrier": dist.barrier, "step": step}
        times = measure.in_turns(turns, device, seconds=float("inf"), most=7)["step"]
        if rank == 0:
            queue.put((times, sent[0]))
        dist.barrier()
    finally:
        dist.destroy_process_group()


PARTS = {"virtual": virtual_part, "ranks": ranks_part}


def main(argv: list[str] | None = None) -> int:
    parser = rows.parser("scale", __doc__, rows.RESULTS / "scale.csv")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what grows")
    parser.add_argument("--n", type=int, help="global batch of part ranks; default: 16,384, on a GPU 262,144")
    parser.add_argument("--seconds", type=float, default=15.0, help="seconds after which no further round starts")
    options = parser.parse_args(argv)
    if (options.n or 64) < 64:
        parser.error("--n: expected at least 64")
    session = rows.Session(parser, options, FIELDS, KEY)
    for part in options.parts:
        if session.done(part=part):
            continue
        if session.stops(part):
            break
        options.seconds = min(options.seconds, session.left())
        session.append(*PARTS[part](options))
    return session.status
