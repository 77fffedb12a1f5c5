"""`python -m bench step`: a whole training step, and what the loss and each lever of speed are in it.

Images are drawn noise that is on the device already: the step is forward pass, loss, backward pass and optimizer. Part
`loss` holds cross-entropy alone against Ad-Corre, by backend, batch and virtual batch. Its columns `forward`, `loss`,
`backward` and `optimizer` are of rounds with a halt between them, and `loss_share` is what the loss took there beyond
cross-entropy, over the whole step: a difference of two steps would be too noisy to show it. Part `levers` switches each
lever on by itself and all of them together, beside a step made of timm's own pieces with the defaults of timm's script.
All contenders of a size take turns within one process. Sizes that the file has already are not run again.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise, product
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.transforms.v2.functional import to_pil_image

from adcorre import AdCorreLoss, EmbeddingSpace, VirtualBatch
from bench import measure
from train.entry import SuggestingParser
from train.settings import DataSettings
from train.transforms import DRAWS, BatchAugmentation, Preprocessing

RESULTS = measure.RESULTS / "step.csv"
FIELDS = (
    *measure.ORIGIN, "part", "contender", "backbone", "image_size", "batch", "virtual", "seconds", "p20", "p80",
    "images_per_second", "against", "ratio", "forward", "loss", "backward", "optimizer", "loss_share",
    "peak_extra_mib", "joules", "clock_mhz", "celsius", "note",
)  # fmt: skip
KEY = ("commit", "device", "torch", "triton", "threads", "part", "contender", "backbone", "image_size", "batch")
AUGMENT = ("batch", "loading")
PHASES = ("forward", "loss", "backward", "optimizer")
CLASSES = 7


@dataclass(frozen=True)
class Levers:
    """What is switched on. `graph`: a CUDA graph of the whole step.

    `augment`: the training script's augmentation is in the step: "batch", a batch at once on the device, or "loading",
    image by image in this process, as a worker of a loader does it.
    """

    channels_last: bool = False
    bf16: bool = False
    fused: bool = False
    compiled: bool = False
    augment: str = ""
    graph: bool = False


class Classifier(nn.Module):
    """images -> (logits, embeddings): a timm backbone and the embedding space, as the training script has them."""

    def __init__(self, backbone: str, image_size: int) -> None:
        super().__init__()
        import timm

        self.backbone = timm.create_model(backbone, num_classes=0)
        with torch.no_grad():
            features = self.backbone.eval()(torch.zeros(1, 3, image_size, image_size)).shape[1]
        self.backbone.train()
        self.head = EmbeddingSpace(features, CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(self.backbone(images))


class Step:
    """One contender. `loss`: None for cross-entropy alone, else a backend of AdCorreLoss."""

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
        if levers.augment:
            settings, self.pixels = DataSettings(), (255 * images).to(torch.uint8)
            preprocessing = Preprocessing(image_size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
            self.in_batch = BatchAugmentation(preprocessing, settings)
            self.one_by_one = preprocessing.training(settings)
            self.pictures = [to_pil_image(image) for image in self.pixels.cpu()]
        if levers.compiled:
            self.model.compile()
        self.loss = None
        if loss is not None:
            self.loss = AdCorreLoss(CLASSES, validate=False, backend=loss).to(self.device)
        self.virtual_batch = VirtualBatch(self.model, self.loss, options.batch) if self.loss and virtual > 1 else None
        self.can_halt = virtual == 1 and not levers.graph and not levers.augment
        self.replay: Callable[[], None] | None = None
        if levers.graph:
            self._capture()

    def __call__(self) -> None:
        if self.levers.augment:
            self.images.copy_(self.augmented())
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

    def augmented(self) -> Tensor:
        if self.levers.augment == "batch":
            return self.in_batch(self.pixels, torch.rand(len(self.pixels), DRAWS, device=self.device))
        return torch.stack([self.one_by_one(image) for image in self.pictures])

    def phases(self) -> list[float]:
        """Seconds of each of PHASES in one step with a halt after each; `loss` is the loss forward and backward."""
        marks = [self._mark()]
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.levers.bf16):
            outputs = self.model(self.images)
        marks.append(self._mark())
        cut = [tensor.detach().requires_grad_() for tensor in outputs]
        upstream = torch.autograd.grad(self._loss(*cut), cut, allow_unused=True)
        marks.append(self._mark())
        used = [(tensor, g) for tensor, g in zip(outputs, upstream, strict=True) if g is not None]
        torch.autograd.backward([tensor for tensor, _ in used], [g for _, g in used])
        marks.append(self._mark())
        self.optimizer.step()
        marks.append(self._mark())
        return [after - before for before, after in pairwise(marks)]

    def _mark(self) -> float:
        measure.synchronise(self.device)
        return time.perf_counter()

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


@dataclass(frozen=True)
class Group:
    """Contenders of one size, which take turns. `against`: whose time ratios are of; `virtual`: b of a contender."""

    steps: dict[str, Callable[[], Callable[[], None]]]
    against: str
    virtual: Mapping[str, int] = field(default_factory=dict)


def loss_part(options: argparse.Namespace, image_size: int) -> Group:
    on_gpu = options.device != "cpu"
    base = Levers(channels_last=on_gpu, bf16=on_gpu, fused=True)
    backends = ["triton", "torch", "reference"] if on_gpu else ["torch", "reference"]
    made = partial(Step, options, image_size)
    steps: dict[str, Callable[[], Callable[[], None]]] = {"ce": partial(made, None, base)}
    steps |= {backend: partial(made, backend, base) for backend in backends}
    virtual = f"virtual, b = {options.virtual}"
    steps[virtual] = partial(made, "auto", base, options.virtual)
    return Group(steps, "ce", {virtual: options.virtual})


def levers_part(options: argparse.Namespace, image_size: int) -> Group:
    on_gpu = options.device != "cpu"
    names = ["channels_last", "bf16", "fused", *(["graph"] if on_gpu else [])]
    together = Levers(channels_last=True, bf16=True, fused=True, graph=on_gpu)
    names += ["compiled"] if options.compiled else []
    made = partial(Step, options, image_size, "auto")
    steps: dict[str, Callable[[], Callable[[], None]]] = {"timm": partial(timm_default, options, image_size)}
    steps["none"] = partial(made, Levers())
    steps |= {name: partial(made, replace(Levers(), **cast("dict[str, Any]", {name: True}))) for name in names}
    steps["all but compile"] = partial(made, together)
    if options.compiled:
        steps["all"] = partial(made, replace(together, compiled=True))
    steps |= {f"all but compile, augment: {way}": partial(made, replace(together, augment=way)) for way in AUGMENT}
    return Group(steps, "timm")


PARTS = {"loss": loss_part, "levers": levers_part}


def rows_of(group: Group, options: argparse.Namespace, deadline: measure.Deadline) -> Iterator[dict[str, Any]]:
    """The rows of one size: all contenders that could be made before the deadline, then those that could not."""
    device = torch.device(options.device)
    made: dict[str, Callable[[], None]] = {}
    peaks: dict[str, int] = {}
    for name, make in group.steps.items():
        if deadline.passed(name):
            break
        try:
            step = make()
            step()
            peaks[name] = measure.peak_during(step, device)
            made[name] = step
        except Exception as error:  # out of memory, a model that cannot be captured: the others are measured
            if name == group.against:
                raise
            said = str(error).strip().partition("\n")[0]
            yield {"contender": name, "note": f"failed: {type(error).__name__}: {said}"[:200]}
    seconds = min(options.seconds, deadline.left())
    times = measure.in_turns(made, device, seconds=seconds, most=options.runs)
    halted = {name: step for name, step in made.items() if isinstance(step, Step) and step.can_halt}
    parts: dict[str, list[list[float]]] = {name: [] for name in halted}
    if group.against in halted:
        for _ in range(max(3, len(times[group.against]) // 3)):
            for name, step in halted.items():
                parts[name].append(step.phases())
    nvml = measure.Nvml(device)
    for name, own in times.items():
        virtual = group.virtual.get(name, 1)
        middle = statistics.median(own)
        row = {
            "contender": name, "virtual": virtual, **measure.spread(own),
            "images_per_second": f"{options.batch * virtual / middle:.4g}", "against": group.against,
            "ratio": f"{virtual * measure.ratio(times[group.against], own):.4g}",
        }  # fmt: skip
        if peaks[name]:  # the memory of a captured graph is taken before
            row["peak_extra_mib"] = f"{peaks[name] / 2**20:.0f}"
        if parts.get(name):
            middles = [statistics.median(seconds) for seconds in zip(*parts[name], strict=True)]
            row |= {phase: f"{value:.4g}" for phase, value in zip(PHASES, middles, strict=True)}
            beyond = statistics.median(
                own[1] - other[1] for own, other in zip(parts[name], parts[group.against], strict=True)
            )
            row["loss_share"] = f"{beyond / middle:.4g}" if name != group.against else ""
        yield row | nvml.during(made[name], device)


def main(argv: list[str] | None = None) -> int:
    parser = SuggestingParser(
        prog="python -m bench step", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
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
    parser.add_argument("--runs", type=int, default=30, help="most counted rounds")
    parser.add_argument("--seconds", type=float, help="no further round begins after so many; default: 30, on a GPU 10")
    measure.add_options(parser, RESULTS)
    options = parser.parse_args(argv)
    on_gpu = measure.check_options(parser, options).type == "cuda"
    if importlib.util.find_spec("timm") is None:
        parser.error("timm is not installed: the models are its models")
    import timm

    if not timm.is_model(options.backbone):
        parser.error(f"--backbone: timm has no model {options.backbone!r}")
    if min(options.runs, options.virtual, *(options.batch or [1]), *options.image_size) < 1:
        parser.error("--runs, --virtual, --batch and --image-size: expected at least 1")
    batches = options.batch or ([60, 240] if on_gpu else [12])
    options.seconds = (10.0 if on_gpu else 30.0) if options.seconds is None else options.seconds
    options.compiled = on_gpu if options.compiled is None else options.compiled
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = True  # as timm's script has it, and TensorFloat-32 too: for every contender
    torch.set_float32_matmul_precision("high")
    deadline = measure.Deadline(options.minutes)
    origin = measure.origin(options.device)
    done = set() if options.again else measure.done_before(options.out, KEY)
    failed = False
    for part, image_size, batch in product(options.parts, options.image_size, batches):
        if part == "levers" and batch != batches[0]:
            continue
        options.batch = batch
        group = PARTS[part](options, image_size)
        shared = {
            **origin, "part": part, "backbone": options.backbone, "image_size": image_size, "batch": batch,
        }  # fmt: skip
        keys = [tuple(str({**shared, "contender": name}[key]) for key in KEY) for name in group.steps]
        if all(key in done for key in keys):
            continue
        if deadline.passed(f"{part} at {image_size} px, {batch} a step"):
            break
        for row in rows_of(group, options, deadline):
            measure.append(options.out, FIELDS, [{**shared, **row}])
            failed |= "note" in row
            print(f"{part:7} {image_size:4} px {batch:4} a step  {row['contender']:16} {_words(row)}", flush=True)
    return 1 if failed else 0


def _words(row: dict[str, Any]) -> str:
    if "note" in row:
        return str(row["note"])
    share = f", the loss beyond CE {100 * float(row['loss_share']):.2f} % of it" if row.get("loss_share") else ""
    memory = f", {row['peak_extra_mib']} MiB" if "peak_extra_mib" in row else ""
    return f"{row['images_per_second']:>8} images/s, {row['ratio']} times the speed of {row['against']}{share}{memory}"
