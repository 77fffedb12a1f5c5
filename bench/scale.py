"""`python -m bench scale`: time and memory as something doubles.

Part `n`: the loss alone, forward and backward; the slope is that of log time over log n, 1 where time is linear. Part
`virtual`: one step of `VirtualBatch` over b chunks of a small model, per sample. Part `ranks`: the loss over 1, 2 and 4
processes with the same global batch, each bound to one thread (gloo on the CPU, NCCL on GPUs), and the bytes of the one
all-reduce. Where processes outnumber cores, time shows the cores; the bytes are what grows with neither n nor ranks.
"""

from __future__ import annotations

import argparse
import math
import os
import socket
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adcorre import AdCorreLoss, EmbeddingSpace, VirtualBatch, adcorre_terms
from bench import measure

RESULTS = measure.RESULTS / "scale.csv"
FIELDS = (
    *measure.ORIGIN, "part", "contender", "n", "virtual", "ranks", "seconds", "p20", "p80", "microseconds_per_sample",
    "slope", "peak_extra_mib", "bytes_on_the_wire", "note",
)  # fmt: skip
K, D, CLASSES, CHUNK = 7, 256, 7, 60


def n_part(options: argparse.Namespace) -> list[dict[str, Any]]:
    device = torch.device(options.device)
    backend = "triton" if device.type == "cuda" else "torch"
    last = options.last_n or (4194304 if device.type == "cuda" else 262144)
    sizes = [last >> shift for shift in range(6, -1, -1)]
    x = torch.randn(last, K, D, device=device)
    targets = torch.randint(0, CLASSES, (last,), device=device)
    attention = torch.rand(CLASSES, device=device)

    def call(n: int) -> Tensor:
        part = x[:n].requires_grad_()
        terms = adcorre_terms(part, targets[:n], attention, backend=backend, validate=False)
        return torch.autograd.grad(terms.fd + terms.md + terms.ed, part)[0]

    call(sizes[0])
    peaks = {n: measure.peak_during(lambda n=n: call(n), device) - n * K * D * 4 for n in sizes}  # type: ignore[misc]
    turns = {str(n): lambda n=n: call(n) for n in sizes}
    times = measure.in_turns(turns, device, seconds=options.seconds, most=20)
    middles = {n: statistics.median(times[str(n)]) for n in sizes}
    rows = []
    for before, n in zip([None, *sizes], sizes, strict=False):
        row = {"part": "n", "contender": backend, "n": n, **measure.spread(times[str(n)])}
        row["microseconds_per_sample"] = f"{1e6 * middles[n] / n:.4g}"
        row["peak_extra_mib"] = f"{max(0, peaks[n]) / 2**20:.1f}"
        if before is not None:
            row["slope"] = f"{math.log2(measure.ratio(times[str(n)], times[str(before)])):.3f}"
        rows.append(row)
    return rows


def virtual_part(options: argparse.Namespace) -> list[dict[str, Any]]:
    device = torch.device(options.device)
    torch.manual_seed(options.seed)

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 512), nn.ReLU())
            self.head = EmbeddingSpace(512, CLASSES)

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return self.head(self.body(images))

    model = Small().to(device)
    step = VirtualBatch(model, AdCorreLoss(CLASSES, validate=False).to(device), CHUNK)
    rows = []
    for b in [1, 2, 4, 16, 64]:

        def call(b: int = b) -> None:
            def chunks() -> Any:
                for index in range(b):  # made anew each time, so that inputs do not count
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
        rows.append(row)
    return rows


def ranks_part(options: argparse.Namespace) -> list[dict[str, Any]]:
    on_gpu = torch.device(options.device).type == "cuda"
    worlds = [w for w in (1, 2, 4, 8) if w <= (torch.cuda.device_count() if on_gpu else 4)]
    n = options.rank_n or (262144 if on_gpu else 16384)
    rows = []
    for world in worlds:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = torch.multiprocessing.get_context("spawn")
        found = context.SimpleQueue()
        torch.multiprocessing.spawn(_rank, (world, port, n, on_gpu, options.seed, found), nprocs=world)
        times, nbytes = found.get()
        row = {"part": "ranks", "contender": "AdCorreLoss", "n": n, "ranks": world, **measure.spread(times)}
        row["microseconds_per_sample"] = f"{1e6 * statistics.median(times) / n:.4g}"
        rows.append(row | {"bytes_on_the_wire": nbytes})
    return rows


def _rank(rank: int, world: int, port: int, n: int, on_gpu: bool, seed: int, found: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    dist.init_process_group("nccl" if on_gpu else "gloo", rank=rank, world_size=world)
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
        times = []
        for turn in range(8):
            sent[0] = 0
            dist.barrier()
            measure.synchronise(device)
            began = time.perf_counter()
            torch.autograd.grad(loss(logits, x, targets).loss, (logits, x))
            measure.synchronise(device)
            if turn:
                times.append(time.perf_counter() - began)
        if rank == 0:
            found.put((times, sent[0]))
        dist.barrier()
    finally:
        dist.destroy_process_group()


PARTS = {"n": n_part, "virtual": virtual_part, "ranks": ranks_part}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench scale", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what grows")
    parser.add_argument("--last-n", type=int, help="largest n of part n; default: 262,144, on a GPU 4,194,304")
    parser.add_argument("--rank-n", type=int, help="global batch of part ranks; default: 16,384, on a GPU 262,144")
    parser.add_argument("--seconds", type=float, default=15.0, help="after so many seconds no further round begins")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV file to which the rows are appended")
    options = parser.parse_args(argv)
    measure.check_device(parser, options.device)
    if min(options.threads, options.last_n or 64, options.rank_n or 64) < 1 or (options.last_n or 64) < 64:
        parser.error("--last-n: expected at least 64; --rank-n and --threads: at least 1")
    torch.set_num_threads(options.threads)
    origin = measure.origin(options.device)
    for part in options.parts:
        for row in PARTS[part](options):
            measure.append(options.out, FIELDS, [{**origin, **row}])
            words = ("n", "virtual", "ranks", "seconds", "microseconds_per_sample", "slope", "peak_extra_mib")
            shown = [f"{word.replace('_', ' ')} {row[word]}" for word in (*words, "bytes_on_the_wire") if word in row]
            print(f"{part:8}" + ", ".join(shown), flush=True)
    return 0
