"""`python -m bench step`: a whole training step, and what the loss and each lever of speed are in it.

Images are drawn noise that is on the device already: the step is forward pass, loss, backward pass and optimizer. Part
`loss` holds cross-entropy alone against Ad-Corre, by backend, batch and virtual batch; its column `loss_share` is the
time of FD, MD and ED by themselves over that of the step, which a difference of two steps would be too noisy to show.
Part `levers` switches each lever on by itself and all of them together, beside a step made of timm's own pieces with
timm's defaults. All contenders of a size take turns within one process.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from adcorre import AdCorreLoss, EmbeddingSpace, VirtualBatch, adcorre_terms
from bench import measure

RESULTS = measure.RESULTS / "step.csv"
FIELDS = (
    *measure.ORIGIN, "part", "contender", "backbone", "image_size", "batch", "virtual", "seconds", "p20", "p80",
    "images_per_second", "against", "ratio", "loss_share", "peak_extra_mib", "joules", "clock_mhz", "celsius", "note",
)  # fmt: skip
CLASSES = 7


@dataclass(frozen=True)
class Levers:
    """What is switched on. `graph`: a CUDA graph of the whole step; `augment`: images are turned and cropped in it."""

    channels_last: bool = False
    bf16: bool = False
    fused: bool = False
    compiled: bool = False
    augment: bool = False
    graph: bool = False


class Classifier(nn.Module):
    """images -> (logits, embeddings): a timm backbone and the embedding space, as the training script has them."""

    def __init__(self, backbone: str, image_size: int) -> None:
        super().__init__()
        self.backbone = timm.create_model(backbone, num_classes=0)
        with torch.no_grad():
            features = self.backbone.eval()(torch.zeros(1, 3, image_size, image_size)).shape[1]
        self.backbone.train()
        self.head = EmbeddingSpace(features, CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(self.backbone(images))


class Step:
    """One contender. `loss`: None for cross-entropy alone, else a backend of AdCorreLoss, or "pairs"."""

    def __init__(
        self, options: argparse.Namespace, image_size: int, loss: str | None, levers: Levers, virtual: int = 1
    ):
        self.device = torch.device(options.device)
        self.levers = levers
        self.virtual = virtual
        torch.manual_seed(options.seed)
        layout = torch.channels_last if levers.channels_last else torch.contiguous_format
        self.model: Any = Classifier(options.backbone, image_size).to(self.device)
        self.model.to(memory_format=layout)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(),
            fused=levers.fused,
            foreach=False if levers.fused else None,
            capturable=levers.graph,
        )
        images = torch.rand(options.batch * virtual, 3, image_size, image_size, device=self.device)
        self.images = images.contiguous(memory_format=layout)
        self.targets = torch.randint(0, CLASSES, (len(images),), device=self.device)
        if levers.compiled:
            self.model.compile()
        self.loss = None
        if loss is not None:
            extra: dict[str, Any] = {"pairs": "sample"} if loss == "pairs" else {"backend": loss}
            self.loss = AdCorreLoss(CLASSES, validate=False, **extra).to(self.device)
        self.virtual_batch = VirtualBatch(self.model, self.loss, options.batch) if self.loss and virtual > 1 else None
        self.replay: Callable[[], None] | None = None
        if levers.graph:
            self._capture()

    def __call__(self) -> None:
        if self.replay is not None:
            self.replay()
        else:
            self._step()

    def _step(self) -> None:
        self.optimizer.zero_grad(set_to_none=not self.levers.graph)
        images = augmented(self.images) if self.levers.augment else self.images
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.levers.bf16):
            if self.virtual_batch is not None:
                self.virtual_batch(images, self.targets)
            else:
                logits, embeddings = self.model(images)
        if self.virtual_batch is None:
            if self.loss is None:
                loss = cross_entropy(logits.float(), self.targets)
            else:
                loss = self.loss(logits, embeddings, self.targets).loss
            loss.backward()
        self.optimizer.step()

    def _capture(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        self.replay = graph.replay


def augmented(images: Tensor) -> Tensor:
    """A random turn and crop of each image, as one batched resampling on the device."""
    n = len(images)
    angle = (torch.rand(n, device=images.device) - 0.5) * (torch.pi / 2)
    scale = 0.9 + 0.1 * torch.rand(n, device=images.device)
    cos, sin, zero = angle.cos() * scale, angle.sin() * scale, torch.zeros_like(angle)
    affine = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = nn.functional.affine_grid(affine, list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, align_corners=False)


def timm_default(options: argparse.Namespace, image_size: int) -> Callable[[], None]:
    """timm's training step with timm's defaults: its model with its own classifier, float32, its loss and optimizer."""
    device = torch.device(options.device)
    torch.manual_seed(options.seed)
    model = timm.create_model(options.backbone, num_classes=CLASSES).to(device)
    optimizer = create_optimizer_v2(model, opt="adam", lr=1e-3)
    images = torch.rand(options.batch, 3, image_size, image_size, device=device)
    targets = torch.randint(0, CLASSES, (options.batch,), device=device)
    criterion = nn.CrossEntropyLoss().to(device)

    def step() -> None:
        loss = criterion(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def terms_alone(options: argparse.Namespace, batch: int, backend: str) -> float:
    """Seconds of FD, MD and ED, forward and backward, on a batch's embeddings."""
    device = torch.device(options.device)
    x = torch.randn(batch, 7, 256, device=device, requires_grad=True)
    targets = torch.randint(0, CLASSES, (batch,), device=device)
    attention = torch.rand(CLASSES, device=device)
    extra: dict[str, Any] = {"pairs": "sample"} if backend == "pairs" else {"backend": backend}

    def call() -> None:
        terms = adcorre_terms(x, targets, attention, validate=False, **extra)
        torch.autograd.grad(terms.fd + terms.md + terms.ed, x)

    times = measure.in_turns({"terms": call}, device, seconds=1.0, most=50, warm=2)
    return statistics.median(times["terms"])


def loss_part(options: argparse.Namespace, image_size: int) -> list[dict[str, Any]]:
    on_gpu = options.device != "cpu"
    backends = ["triton", "torch", "reference"] if on_gpu else ["torch", "reference"]
    base = Levers(channels_last=on_gpu, bf16=on_gpu, fused=True)
    steps: dict[str, Callable[[], None]] = {"ce": Step(options, image_size, None, base)}
    for backend in backends:
        steps[backend] = Step(options, image_size, backend, base)
    virtual = f"virtual, b = {options.virtual}"
    steps[virtual] = Step(options, image_size, "auto", base, options.virtual)
    return timed(
        options, "loss", image_size, steps, against="ce", batches={virtual: options.virtual},
        shares={name: terms_alone(options, options.batch, name) for name in backends},
    )  # fmt: skip


def levers_part(options: argparse.Namespace, image_size: int) -> list[dict[str, Any]]:
    on_gpu = options.device != "cpu"
    names = ["channels_last", "bf16", "fused"]
    names += ["compiled"] if options.compiled else []
    names += ["augment", "graph"] if on_gpu else []
    steps: dict[str, Callable[[], None]] = {"timm": timm_default(options, image_size)}
    steps["none"] = Step(options, image_size, "auto", Levers())
    for name in names:
        steps[name] = Step(options, image_size, "auto", replace(Levers(), **{name: True}))
    together = {name: True for name in names if name != "augment"}
    steps["all"] = Step(options, image_size, "auto", Levers(**together))
    return timed(options, "levers", image_size, steps, against="timm")


def timed(
    options: argparse.Namespace,
    part: str,
    image_size: int,
    steps: dict[str, Callable[[], None]],
    *,
    against: str,
    batches: dict[str, int] | None = None,
    shares: dict[str, float] | None = None,
) -> list[dict[str, Any]]:
    device = torch.device(options.device)
    peaks = {name: measure.peak_during(step, device) for name, step in steps.items()}
    times = measure.in_turns(steps, device, seconds=options.seconds, most=options.runs)
    rows = []
    for name, own in times.items():
        virtual = (batches or {}).get(name, 1)
        middle = statistics.median(own)
        row = {
            "part": part, "contender": name, "backbone": options.backbone, "image_size": image_size,
            "batch": options.batch, "virtual": virtual, **measure.spread(own),
            "images_per_second": f"{options.batch * virtual / middle:.4g}", "against": against,
            "ratio": f"{virtual * measure.ratio(times[against], own):.4g}",
            "peak_extra_mib": f"{peaks[name] / 2**20:.0f}",
        }  # fmt: skip
        if shares and name in shares:
            row["loss_share"] = f"{shares[name] / middle:.4g}"
        rows.append(row | measure.Nvml(device).during(steps[name], device))
    return rows


PARTS = {"loss": loss_part, "levers": levers_part}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench step", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument("--backbone", default="legacy_xception", help="any timm model")
    parser.add_argument("--image-size", type=int, nargs="+", default=[96, 224], help="sides of the images")
    parser.add_argument("--batch", type=int, help="images a step; default: 60, on a CPU 12")
    parser.add_argument("--virtual", type=int, default=4, help="chunks of the virtual batch")
    parser.add_argument(
        "--compiled", action=argparse.BooleanOptionalAction, help="torch.compile too; default: on a GPU"
    )
    parser.add_argument("--runs", type=int, default=30, help="most counted rounds")
    parser.add_argument("--seconds", type=float, default=30.0, help="after so many seconds no further round begins")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--seed", type=int, default=0, help="of weights and images")
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV file to which the rows are appended")
    options = parser.parse_args(argv)
    measure.check_device(parser, options.device)
    if not timm.is_model(options.backbone):
        parser.error(f"--backbone: timm has no model {options.backbone!r}")
    if min(options.runs, options.threads, options.virtual, options.batch or 2) < 1:
        parser.error("--runs, --threads, --virtual and --batch: expected at least 1")
    options.batch = options.batch or (12 if options.device == "cpu" else 60)
    options.compiled = options.device != "cpu" if options.compiled is None else options.compiled
    torch.set_num_threads(options.threads)
    origin = measure.origin(options.device)
    for image_size in options.image_size:
        for part in options.parts:
            for row in PARTS[part](options, image_size):
                measure.append(options.out, FIELDS, [{**origin, **row}])
                share = f", terms {100 * float(row['loss_share']):.2f} % of it" if "loss_share" in row else ""
                print(
                    f"{part:7} {image_size:4} px  {row['contender']:16} {row['images_per_second']:>8} images/s, "
                    f"{row['ratio']} times the speed of {row['against']}{share}, {row['peak_extra_mib']} MiB",
                    flush=True,
                )
    return 0
