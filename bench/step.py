"""`python -m bench step`: a whole training step, the share of the loss in it, and the gain of each speed option.

Images are random noise, already on the device: the step is forward pass, loss, backward pass and optimizer. Part
`loss` compares cross-entropy alone with Ad-Corre, by backend, batch and virtual batch. Its column `loss` is the loss by
itself, forward and backward, and `loss_share` what that takes beyond cross-entropy, over the whole step: a difference
of two steps would be too noisy to show it. Part `levers` switches each lever on by itself and all of them, beside
a step built from timm's own functions with the defaults of timm's script.
All contenders of a size take turns within one process. Sizes that the file has already are not run again.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from adcorre import AdCorreLoss, VirtualBatch
from bench import measure, rows
from bench.rivals import ours_on

FIELDS = (
    *rows.ORIGIN, "part", "contender", "backbone", "image_size", "batch", "virtual", "seconds", "p20", "p80",
    "images_per_second", "against", "ratio", "forward", "loss", "backward", "optimizer", "loss_share",
    "peak_extra_mib", "joules", "clock_mhz", "celsius", "note",
)  # fmt: skip
KEY = ("part", "contender", "backbone", "image_size", "batch")
CLASSES = 7


@dataclass(frozen=True)
class Levers:
    """What is switched on. `graph`: a CUDA graph of the whole step."""

    channels_last: bool = False
    bf16: bool = False
    fused: bool = False
    compiled: bool = False
    graph: bool = False


class Step:
    """One contender. `loss`: None for cross-entropy alone, else a backend of AdCorreLoss."""

    def __init__(
        self, options: argparse.Namespace, image_size: int, loss: str | None, levers: Levers, virtual: int = 1
    ):
        from train.model import build_model  # needs timm
        from train.settings import ModelSettings

        self.device = torch.device(options.device)
        self.levers = levers
        self.virtual = virtual
        torch.manual_seed(options.seed)
        layout = torch.channels_last if levers.channels_last else torch.contiguous_format
        self.model: Any = build_model(ModelSettings(options.backbone), CLASSES, image_size)[0].to(self.device)
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
            self.loss = AdCorreLoss(CLASSES, validate=False, backend=loss).to(self.device)
        self.virtual_batch = VirtualBatch(self.model, self.loss, options.batch) if self.loss and virtual > 1 else None
        self.can_halt = virtual == 1 and not levers.graph
        self.outputs: list[Tensor] | None = None
        self.replay: Callable[[], None] | None = None
        if levers.graph:
            self.replay = measure.capture(self._step)[0].replay

    def __call__(self) -> None:
        if self.replay is not None:
            self.replay()
        else:
            self._step()

    def _step(self) -> None:
        self.optimizer.zero_grad(set_to_none=not self.levers.graph)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.levers.bf16):
            if self.virtual_batch is not None:
                self.virtual_batch(self.images, self.targets)
            else:
                outputs = self.model(self.images)
        if self.virtual_batch is None:
            self._loss(*outputs).backward()
        self.optimizer.step()

    def _loss(self, logits: Tensor, embeddings: Tensor) -> Tensor:
        if self.loss is None:
            return cross_entropy(logits.float(), self.targets)
        return self.loss(logits, embeddings, self.targets).loss

    def loss_alone(self) -> None:
        """The loss, forward and backward, on outputs of the model that are there already."""
        if self.outputs is None:
            with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.levers.bf16):
                self.outputs = [tensor.requires_grad_() for tensor in self.model(self.images)]
        torch.autograd.grad(self._loss(*self.outputs), self.outputs, allow_unused=True)


def timm_default(options: argparse.Namespace, image_size: int) -> Callable[[], None]:
    """timm's training step with timm's defaults: its model with its own classifier, float32, its loss and optimizer."""
    import timm
    from timm.optim import create_optimizer_v2

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


# Contenders of one size, which take turns; ratios are of the first one's time.
Steps = dict[str, Callable[[], Callable[[], None]]]


def loss_part(options: argparse.Namespace, image_size: int) -> Steps:
    on_gpu = options.device != "cpu"
    base = Levers(channels_last=on_gpu, bf16=on_gpu, fused=True)
    kind = "cuda" if on_gpu else "cpu"
    backends = [*ours_on(kind), "reference"]
    build = partial(Step, options, image_size)
    steps: Steps = {"ce": partial(build, None, base)}
    steps |= {backend: partial(build, backend, base) for backend in backends}
    steps[f"virtual, b = {options.virtual}"] = partial(build, "auto", base, options.virtual)
    return steps


def levers_part(options: argparse.Namespace, image_size: int) -> Steps:
    on_gpu = options.device != "cpu"
    names = ["channels_last", "bf16", "fused", *(["graph"] if on_gpu else [])]
    together = Levers(channels_last=True, bf16=True, fused=True, graph=on_gpu)
    names += ["compiled"] if options.compiled else []
    build = partial(Step, options, image_size, "auto")
    steps: Steps = {"timm": partial(timm_default, options, image_size)}
    steps["none"] = partial(build, Levers())
    steps |= {name: partial(build, replace(Levers(), **cast("dict[str, Any]", {name: True}))) for name in names}
    steps["all but compile"] = partial(build, together)
    if options.compiled:
        steps["all"] = partial(build, replace(together, compiled=True))
    return steps


PARTS = {"loss": loss_part, "levers": levers_part}


def rows_of(steps: Steps, options: argparse.Namespace, session: rows.Session) -> Iterator[dict[str, Any]]:
    """The rows of one size: the contenders that could be built before the deadline, then those that failed."""
    device, against = torch.device(options.device), next(iter(steps))
    ready: dict[str, Callable[[], None]] = {}
    peaks: dict[str, int] = {}
    for name, make in steps.items():
        if session.left() <= 0:
            break
        try:
            step = make()
            step()
            peaks[name] = measure.peak_during(step, device)
            ready[name] = step
        except Exception as error:  # out of memory, a model that cannot be captured: the others are measured
            if name == against:
                raise
            message = str(error).strip().partition("\n")[0]
            yield {"contender": name, "note": f"failed: {type(error).__name__}: {message}"[:200]}
    seconds = min(options.seconds, session.left())
    times = measure.in_turns(ready, device, seconds=seconds, most=options.runs)
    alone = {name: step.loss_alone for name, step in ready.items() if isinstance(step, Step) and step.can_halt}
    if against not in alone:
        alone = {}
    losses = measure.in_turns(alone, device, seconds=seconds / 4, most=options.runs)
    for name, own in times.items():
        step, middle = ready[name], statistics.median(own)
        virtual = step.virtual if isinstance(step, Step) else 1
        row = {
            "contender": name, "virtual": virtual, **measure.spread(own),
            "images_per_second": f"{options.batch * virtual / middle:.4g}", "against": against,
            "ratio": f"{virtual * measure.ratio(times[against], own):.4g}",
        }  # fmt: skip
        if peaks[name]:  # the memory of a captured graph is taken before
            row["peak_extra_mib"] = f"{peaks[name] / 2**20:.0f}"
        if name in losses:
            row["loss"] = f"{statistics.median(losses[name]):.4g}"
            if name != against:
                row["loss_share"] = f"{measure.difference(losses[name], losses[against]) / middle:.4g}"
        yield row


def main(argv: list[str] | None = None) -> int:
    parser = rows.parser("step", __doc__, rows.RESULTS / "step.csv")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument("--backbone", default="legacy_xception", help="any timm model")
    parser.add_argument("--image-size", type=int, nargs="+", default=[96, 224], help="sides of the images")
    parser.add_argument(
        "--batch", type=int, nargs="+", help="images a step, for levers the first; default: 60 240, on a CPU 12"
    )
    parser.add_argument("--virtual", type=int, default=4, help="chunks of the virtual batch")
    parser.add_argument(
        "--compiled", action=argparse.BooleanOptionalAction, help="torch.compile too; default: on a GPU"
    )
    parser.add_argument("--runs", type=int, default=30, help="maximum number of timed rounds")
    parser.add_argument(
        "--seconds", type=float, help="seconds after which no further round starts; default: 30, on a GPU 10"
    )
    options = parser.parse_args(argv)
    if importlib.util.find_spec("timm") is None:
        parser.error("timm is not installed: the models are its models")
    import timm

    if not timm.is_model(options.backbone):
        parser.error(f"--backbone: timm has no model {options.backbone!r}")
    if min(options.runs, options.virtual, *(options.batch or [1]), *options.image_size) < 1:
        parser.error("--runs, --virtual, --batch and --image-size: expected at least 1")
    session = rows.Session(parser, options, FIELDS, KEY)
    on_gpu = session.device.type == "cuda"
    batches = options.batch or ([60, 240] if on_gpu else [12])
    options.seconds = (10.0 if on_gpu else 30.0) if options.seconds is None else options.seconds
    options.compiled = on_gpu if options.compiled is None else options.compiled
    torch.backends.cudnn.benchmark = True  # as timm's script has it, and TensorFloat-32 too: for every contender
    torch.set_float32_matmul_precision("high")
    for part, image_size, batch in product(options.parts, options.image_size, batches):
        if part == "levers" and batch != batches[0]:
            continue
        options.batch = batch
        steps = PARTS[part](options, image_size)
        case = {"part": part, "backbone": options.backbone, "image_size": image_size, "batch": batch}
        if all(session.done(**case, contender=name) for name in steps):
            continue
        if session.stops(f"{part} at {image_size} px, {batch} a step"):
            break
        for row in rows_of(steps, options, session):
            session.append({**case, **row})
    return session.status
