"""Every setting of a run, in named groups. The defaults are the paper's recipe (Sec. IV-B of the paper).

A run's settings come from three layers, the later ones winning: the defaults below, the recipe of the data
(`RECIPES`, for data that the paper's recipe does not suit), and what the user gave.
"""

import argparse
import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from train.errors import UserError

SYNTHETIC = "synthetic"


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
    """A field with what the command line needs: its help, parser, choices, inclusive bounds and shown default."""
    extra = {
        "help": help,
        "parse": parse or type(default),
        "choices": choices,
        "low": low,
        "high": high,
        "shown": shown,
    }
    return field(default=default, metadata=extra)


def target(text: str) -> float | Literal["simplex"]:
    if text == "simplex":
        return "simplex"
    if not -1 <= (value := _number(text)) <= 1:
        raise argparse.ArgumentTypeError(f"expected 'simplex' or a number from -1 to 1, got {text!r}")
    return value


def components(text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.lower().split(",") if name not in ("", "none"))
    if not set(names) <= {"fd", "nfd", "md", "ed"} or {"fd", "nfd"} <= set(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"expected some of fd (or nfd), md, ed by commas, or none, got {text!r}")
    return names


def ce_weight(text: str) -> str | tuple[float, ...]:
    if text in ("none", "balanced"):
        return text
    weights = tuple(_number(part) for part in text.split(","))
    if not all(0 <= weight < math.inf for weight in weights) or sum(weights) == 0:
        raise argparse.ArgumentTypeError(f"expected none, balanced or numbers by commas, got {text!r}")
    return weights


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


@dataclass
class DataSettings:
    data: str = option(SYNTHETIC, "a dataset's folder or file, or 'synthetic' for procedurally drawn faces")
    protocol: str = option(
        "official",
        "FER-2013's test split: official = PrivateTest, with PublicTest for validation; "
        "paper = both together (7,178), with validation held out of Training",
        choices=("official", "paper"),
    )
    validation_fraction: float = option(
        0.1, "share of each class held out where validation comes from training", low=0.01, high=0.5
    )
    limit: int = option(0, "use at most this many images of each split, drawn in proportion (0: all)", low=0)
    image_size: int = option(224, "side of the square images that the network sees", low=16)
    batch_size: int = option(60, "images per forward pass, on each of torchrun's processes", low=2)
    virtual_batch: int = option(
        1, "batches per step: the exact gradient of all of them together, in the memory of one", low=1
    )
    workers: int = option(-1, "processes that load images (-1: up to 8 for a GPU, 0 for a CPU)", low=-1)
    rotation: float = option(45.0, "random rotation, up to this many degrees either way", low=0, high=180)
    crop: float = option(0.8, "random crops take at least this share of the area (1: none)", low=0.05, high=1)
    contrast: float = option(0.2, "random contrast, factors 1 - c to 1 + c", low=0, high=1)
    brightness: float = option(0.2, "random brightness, factors 1 - b to 1 + b", low=0, high=1)
    flip: bool = option(False, "mirror half of the training images (not in the paper)")


@dataclass
class ModelSettings:
    backbone: str = option("legacy_xception", "any timm model by name")
    pretrained: bool = option(False, "start from timm's pretrained weights (fetched over the network, cached by timm)")
    k: int = option(7, "embedding vectors per image", low=1)
    d: int = option(256, "entries per embedding vector", low=2)
    dropout: float = option(0.5, "dropout before the classifier", low=0, high=0.99)


@dataclass
class LossSettings:
    lambd: float = option(0.5, "weight λ of FD + MD + ED beside cross-entropy (Eq. 12)", low=0)
    lambd_warmup: int = option(0, "steps over which λ rises from 0 to its value (not in the paper)", low=0)
    window: int = option(5, "steps δ that the adaptive attention map remembers (Eq. 7)", low=1)
    components: tuple[str, ...] = option(
        ("fd", "md", "ed"),
        "terms of the loss: some of fd or nfd, md, ed by commas; 'none' is plain cross-entropy",
        parse=components,
    )
    between_target: float | Literal["simplex"] = option(
        -1.0, "correlation that FD asks between classes: -1 to 1, or 'simplex'", parse=target
    )
    mean_target: float | Literal["simplex"] = option(
        -1.0, "correlation that MD asks between class means: -1 to 1, or 'simplex'", parse=target
    )
    embedding_target: float | Literal["simplex"] = option(
        -1.0, "correlation that ED asks between an image's vectors: -1 to 1, or 'simplex'", parse=target
    )
    ce_weight: str | tuple[float, ...] = option(
        "none", "class weights of cross-entropy: none, balanced, or a number per class by commas", parse=ce_weight
    )
    label_smoothing: float = option(0.0, "label smoothing of cross-entropy", low=0, high=1)
    backend: str = option("auto", "backend of the loss", choices=("auto", "torch", "triton", "reference"))

    def lambd_at(self, step: int) -> float:
        return self.lambd * min(1.0, step / self.lambd_warmup) if self.lambd_warmup else self.lambd


@dataclass
class OptimizerSettings:
    epochs: int = option(60, "passes over the training images", low=1)
    lr: float = option(1e-3, "Adam's learning rate", low=1e-12)
    beta1: float = option(0.9, "Adam's first beta", low=0, high=0.9999999)
    beta2: float = option(0.999, "Adam's second beta", low=0, high=0.9999999)
    lr_decay: float = option(1e-5, "inverse-time decay: lr / (1 + decay * step); this is not weight decay", low=0)


@dataclass
class RunSettings:
    out: str = option("", "run folder", shown="runs/<date>-<time>")
    overwrite: bool = option(False, "replace an earlier run in the run folder")
    select: str = option(
        "accuracy", "validation figure that chooses the best checkpoint", choices=("accuracy", "average_accuracy")
    )
    log_every: int = option(50, "steps between log lines", low=1)
    seed: int = option(0, "seed of weights, order, augmentation, held-out and drawn samples", low=0, high=2**32 - 1)
    device: str = option("auto", "where to train; auto = a GPU where there is one", choices=("auto", "cpu", "cuda"))


@dataclass
class Settings:
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    run: RunSettings = field(default_factory=RunSettings)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        return dataclasses.asdict(self)


RECIPES: Mapping[str, Mapping[str, Any]] = {
    # About 5 minutes on 2 CPU cores: 560 steps. λ is small and rises slowly, since from its full value at once FD, MD
    # and ED hold so short a run at its collapsed start; the learning rate falls to about a quarter.
    SYNTHETIC: {
        "image_size": 64,
        "batch_size": 30,
        "rotation": 5.0,
        "crop": 0.9,
        "lambd": 0.1,
        "lambd_warmup": 140,
        "epochs": 3,
        "lr_decay": 0.005,
        "log_every": 20,
    },
}


def _groups() -> list[tuple[str, tuple[dataclasses.Field[Any], ...]]]:
    return [(name, dataclasses.fields(group)) for name, group in vars(Settings()).items()]


def resolve(given: Mapping[str, Any]) -> Settings:
    """Settings from defaults, the recipe of the data, and the given values (by field name)."""
    settings = Settings()
    recipe = RECIPES.get(given.get("data", DataSettings().data), {})
    values = {**recipe, **given}
    for name, fields in _groups():
        for item in fields:
            if item.name in values:
                setattr(getattr(settings, name), item.name, values[item.name])
            _check(item, getattr(getattr(settings, name), item.name))
    return settings


def _check(item: dataclasses.Field[Any], value: Any) -> None:
    low, high = item.metadata["low"], item.metadata["high"]
    if isinstance(value, (int, float)) and not (low <= value <= high and math.isfinite(value)):
        bounds = (
            f"at least {low:g}"
            if high == math.inf
            else f"at most {high:g}"
            if low == -math.inf
            else f"{low:g} to {high:g}"
        )
        raise UserError(f"{flag(item.name)} {value}: expected {bounds}")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _text(value: Any) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def _help(item: dataclasses.Field[Any]) -> str:
    shown = item.metadata["shown"] or _text(item.default)
    recipes = "".join(
        f"; {_text(recipe[item.name])} with --data {name}" for name, recipe in RECIPES.items() if item.name in recipe
    )
    return f"{item.metadata['help']} (default: {shown}{recipes})".replace("%", "%%")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def parser() -> Parser:
    """The command line: one flag per setting. Its result has only what the user gave."""
    result = Parser(
        prog="python -m train",
        allow_abbrev=False,
        description="Train a face classifier with the Ad-Corre loss. The defaults are the paper's recipe.",
        argument_default=argparse.SUPPRESS,
    )
    for name, fields in _groups():
        group = result.add_argument_group(name)
        for item in fields:
            if isinstance(item.default, bool):
                group.add_argument(flag(item.name), action=argparse.BooleanOptionalAction, help=_help(item))
            else:
                choices = item.metadata["choices"]
                metavar = "{" + ",".join(choices) + "}" if choices else item.name.upper()
                group.add_argument(
                    flag(item.name), type=item.metadata["parse"], choices=choices, metavar=metavar, help=_help(item)
                )
    return result


def describe(settings: Settings) -> str:
    """The resolved settings as text, a line per group."""
    lines = []
    for name, group in settings.as_dict().items():
        lines.append(f"{name:<10}" + "  ".join(f"{key}={_text(value)}" for key, value in group.items()))
    return "\n".join(lines)
