"""`python -m bench loading`: images per second that loading delivers, and that a training step processes.

Part "loading": from the files as they lie, from the decoded cache and from tar shards of the same data, augmented one
by one where they are loaded or in batches on the device, by 0 workers (the training process itself) or more. The time
goes from file to batch on the device; the files are in the disk cache. Part "step": forward, loss, backward and
optimizer on a batch that is there already, in bf16 on a GPU, channels_last.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench import measure, rows

FIELDS = (
    *rows.ORIGIN, "part", "source", "image_size", "augmented", "workers", "cores", "batch_size", "images_per_second",
    "per_process", "note",
)  # fmt: skip
KEY = ("part", "source", "image_size", "augmented", "workers", "batch_size")
SOURCES = ["files", "cache", "shards"]
AUGMENTED = ["loading", "batch"]


def sources(data: str, image_size: int, work: Path, seed: int) -> dict[str, Any]:
    """The training split of the data in each of SOURCES; generated files go to `work`."""
    from train.data import Request, load_data
    from train.data.shards import write_shards

    plain = load_data(data, Request(image_size=image_size, seed=seed))
    cached = load_data(data, Request(image_size=image_size, seed=seed, cache=str(work / "cache")))
    shards = work / "shards"
    if not shards.exists():
        write_shards(plain, shards, 4096)
    return {"files": plain.train, "cache": cached.train, "shards": load_data(str(shards), Request(seed=seed)).train}


def rate(batches: Iterator[int], device: torch.device, warm: int, seconds: float) -> float:
    """Images per second over about so many seconds, after `warm` batches."""
    for _ in range(warm):
        next(batches)
    measure.synchronize(device)
    images, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        images += next(batches)
    measure.synchronize(device)
    return images / (time.perf_counter() - began)


def loaded(
    faces: Any, image_size: int, augmented: str, workers: int, batch_size: int, device: torch.device
) -> Iterator[int]:
    """Sizes of batches that are on the device, epoch after epoch."""
    from train.data.decoded import uniform_side
    from train.data.loading import train_batches
    from train.settings import DataSettings
    from train.transforms import BatchAugmentation, Preprocessing

    preprocessing, settings = Preprocessing(image_size, (0.5,) * 3, (0.5,) * 3), DataSettings()
    later = BatchAugmentation(preprocessing, settings) if augmented == "batch" else None
    transform = preprocessing.raw(uniform_side(faces)) if later else preprocessing.training(settings)
    pin = device.type == "cuda"
    steps = train_batches(faces, transform, batch_size, workers, pin, 0, device=device, augmentation=later)
    epoch = 0
    while True:
        epoch += 1
        steps.set_epoch(epoch)
        for chunks, size in steps:
            for _ in chunks():
                yield size


def stepped(options: argparse.Namespace, backbone: str, image_size: int, device: torch.device) -> Iterator[int]:
    """Sizes of batches that were trained on."""
    from bench.step import Levers, Step

    settings = argparse.Namespace(backbone=backbone, batch=options.batch_size, seed=options.seed, device=device)
    step = Step(settings, image_size, "auto", Levers(channels_last=True, bf16=device.type == "cuda", fused=True))
    while True:
        step()
        yield options.batch_size


def main(argv: list[str]) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = rows.parser("loading", __doc__, rows.RESULTS / "loading.csv")
    parser.add_argument("--data", default="synthetic", help="a dataset, as for python -m train")
    parser.add_argument("--sizes", type=int, nargs="+", default=[48, 112, 224], help="image sizes")
    parser.add_argument("--workers", type=int, nargs="+", default=sorted({0, 1, cores}), help="numbers of processes")
    parser.add_argument(
        "--augmented", nargs="+", choices=AUGMENTED, default=AUGMENTED, help="where images are augmented"
    )
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=SOURCES, help="where images are read from")
    parser.add_argument(
        "--backbones", nargs="*", default=["resnet18", "legacy_xception"], help="backbones of the training steps"
    )
    parser.add_argument("--batch-size", type=int, default=60, help="images per batch")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds of each measurement")
    options = parser.parse_args(argv)
    if min(options.sizes) < 16 or min(options.workers) < 0 or options.batch_size < 2 or not options.seconds > 0:
        parser.error("--sizes: expected at least 16; --workers: 0; --batch-size: 2; --seconds: more than 0")
    session = rows.Session(parser, options, FIELDS, KEY)
    device = session.device

    def measure_case(batches: Iterator[int], warm: int, **case: Any) -> bool:
        """Measure and append a case that is not there yet; False when the session stops."""
        case["batch_size"] = options.batch_size
        name = " ".join(str(value) for value in case.values() if value != "")
        if session.done(**case):
            return True
        if session.stops(name):
            return False
        per_second = rate(batches, device, warm, options.seconds)
        per_process = per_second / max(1, int(case["workers"] or 1))
        figures = {"images_per_second": f"{per_second:.0f}", "per_process": f"{per_process:.0f}"}
        session.append({**case, "cores": cores, **figures})
        return True

    with tempfile.TemporaryDirectory() as work:
        for size in options.sizes:
            for backbone in options.backbones:
                batches = stepped(options, backbone, size, device)
                case = {"part": "step", "source": backbone, "image_size": size, "augmented": "", "workers": ""}
                if not measure_case(batches, 5, **case):
                    return session.status
            for source, faces in sources(options.data, size, Path(work), options.seed).items():
                for augmented in options.augmented if source in options.sources else []:
                    for workers in options.workers:
                        batches = loaded(faces, size, augmented, workers, options.batch_size, device)
                        case = {"part": "loading", "source": source, "image_size": size}
                        if not measure_case(batches, 2 * workers + 2, **case, augmented=augmented, workers=workers):
                            return session.status
    return session.status
