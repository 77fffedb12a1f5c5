"""`python -m bench scale`: time and memory as something grows.

Part `n`: the loss alone, forward and backward; the slope is that of log time over log n, 1 where time is linear. Part
`classes`: the same as C grows. Part `virtual`: one step of `VirtualBatch` over b chunks of a small model, per sample.
Part `ranks`: the loss over 1, 2 and 4 processes with the same global batch, each bound to one thread (gloo on the CPU,
NCCL on GPUs), and the bytes of the one all-reduce. Where processes outnumber cores, time shows the cores; the bytes are
what grows with neither n nor ranks. Parts that the file has already are not run again.
"""

from __future__ import annotations

import argparse
import math
import os
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adcorre import AdCorreLoss, EmbeddingSpace, VirtualBatch, adcorre_terms
from bench import measure
from train.entry import SuggestingParser

RESULTS = measure.RESULTS / "scale.csv"
FIELDS = (
    *measure.ORIGIN, "part", "contender", "n", "classes", "virtual", "ranks", "seconds", "p20", "p80",
    "microseconds_per_sample", "slope", "peak_extra_mib", "bytes_on_the_wire", "note",
)  # fmt: skip
KEY = ("commit", "device", "torch", "triton", "threads", "part")
K, D, CLASSES, CHUNK = 7, 256, 7, 60


def n_part(options: argparse.Namespace) -> list[dict[str, Any]]:
    last = options.last_n or (4194304 if options.device != "cpu" else 262144)
    return loss_rows(options, "n", [(last >> shift, CLASSES) for shift in range(6, -1, -1)])


def classes_part(options: argparse.Namespace) -> list[dict[str, Any]]:
    n = options.class_n or (65536 if options.device != "cpu" else 4096)
    return loss_rows(options, "classes", [(n, classes) for classes in (7, 28, 112, 448, 1792, 7168)])


def loss_rows(options: argparse.Namespace, part: str, cases: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """The terms forward and backward in cases (n, C), of which `part` names what grows."""
    device = torch.device(options.device)
    backend = "triton" if device.type == "cuda" else "torch"
    last = max(n for n, _ in cases)
    x = torch.randn(last, K, D, device=device)

    def make(n: int, classes: int) -> Callable[[], Tensor]:
        targets = torch.randint(0, classes, (n,), device=device)
        attention = torch.rand(classes, device=device)

        def call() -> Tensor:
            part = x[:n].requires_grad_()
            terms = adcorre_terms(part, targets, attention, backend=backend, validate=False)
            return torch.autograd.grad(terms.fd + terms.md + terms.ed, part)[0]

        return call

    turns = {f"{n} {classes}": make(n, classes) for n, classes in cases}
    peaks = {}
    for name, (n, _) in zip(turns, cases, strict=True):
        turns[name]()
        peaks[name] = measure.peak_during(turns[name], device) - n * K * D * 4
    times = measure.in_turns(turns, device, seconds=options.seconds, most=20)
    rows: list[dict[str, Any]] = []
    before: str | None = None
    for name, (n, classes) in zip(turns, cases, strict=True):
        row = {"part": part, "contender": backend, "n": n, "classes": classes, **measure.spread(times[name])}
        row["microseconds_per_sample"] = f"{1e6 * statistics.median(times[name]) / n:.4g}"
        row["peak_extra_mib"] = f"{max(0, peaks[name]) / 2**20:.1f}"
        if before is not None:
            grown = row[part] / rows[-1][part]
            row["slope"] = f"{math.log(measure.ratio(times[name], times[before])) / math.log(grown):.3f}"
        rows.append(row)
        before = name
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


PARTS = {"n": n_part, "classes": classes_part, "virtual": virtual_part, "ranks": ranks_part}


def main(argv: list[str] | None = None) -> int:
    parser = SuggestingParser(
        prog="python -m bench scale", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what grows")
    parser.add_argument("--last-n", type=int, help="largest n of part n; default: 262,144, on a GPU 4,194,304")
    parser.add_argument("--class-n", type=int, help="n of part classes; default: 4,096, on a GPU 65,536")
    parser.add_argument("--rank-n", type=int, help="global batch of part ranks; default: 16,384, on a GPU 262,144")
    parser.add_argument("--seconds", type=float, default=15.0, help="after so many seconds no further round begins")
    measure.add_options(parser, RESULTS)
    options = parser.parse_args(argv)
    measure.check_options(parser, options)
    if min(options.last_n or 64, options.rank_n or 64, options.class_n or 64) < 64:
        parser.error("--last-n, --class-n and --rank-n: expected at least 64")
    torch.set_num_threads(options.threads)
    deadline = measure.Deadline(options.minutes)
    origin = measure.origin(options.device)
    done = set() if options.again else measure.done_before(options.out, KEY)
    for part in options.parts:
        if tuple(str({**origin, "part": part}[key]) for key in KEY) in done:
            continue
        if deadline.passed(part):
            break
        options.seconds = min(options.seconds, deadline.left())
        rows = PARTS[part](options)
        measure.append(options.out, FIELDS, [{**origin, **row} for row in rows])
        for row in rows:
            words = ("n", "classes", "virtual", "ranks", "seconds", "microseconds_per_sample", "slope")
            shown = [f"{word.replace('_', ' ')} {row[word]}" for word in words if word in row]
            shown += [f"{row['peak_extra_mib']} MiB more"] if "peak_extra_mib" in row else []
            shown += [f"{row['bytes_on_the_wire']} bytes on the wire"] if "bytes_on_the_wire" in row else []
            print(f"{part:8}" + ", ".join(shown), flush=True)
    return 0
