"""The studies of `python -m train.ablate`: which settings are compared with which."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CE: dict[str, Any] = {"components": ()}
BALANCED: dict[str, Any] = {"ce_weight": "effective"}
ADJUSTED: dict[str, Any] = {"logit_adjustment": 1.0}


@dataclass(frozen=True)
class Variant:
    """One row of a table: settings that override the user's, and the name of the row that it is compared with.

    paper: the accuracy in percent that the paper reports. regime: the data of the row, in a study of several
    regimes; `name` begins with it.
    """

    name: str
    settings: Mapping[str, Any]
    against: str = ""
    paper: str = ""
    regime: str = ""

    @property
    def arm(self) -> str:
        """The name without the regime."""
        return self.name.removeprefix(f"{self.regime}: ")


@dataclass(frozen=True)
class Study:
    """A table. `defaults` are settings of all its rows; the user's options override them."""

    title: str
    variants: tuple[Variant, ...]
    paper: str = ""  # what the paper's figures were measured on
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def varied(self) -> set[str]:
        """The names of the settings that its rows differ in."""
        return {name for variant in self.variants for name in variant.settings}


def _against_ce(name: str, settings: Mapping[str, Any], paper: str = "") -> Variant:
    return Variant(name, settings, "CE", paper)


# The small study of docs/reproduction.md, one factor at a time.
PAPER: dict[str, Any] = {"components": ("fd", "md", "ed")}
RISE = 378  # 30 % of the 1,260 steps on 5,000 images
RISING: dict[str, Any] = {"lambd_warmup": RISE}
SIMPLEX: dict[str, Any] = {"between_target": "simplex", "mean_target": "simplex", "embedding_target": 0.0}
ZERO: dict[str, Any] = {"between_target": 0.0, "mean_target": 0.0, "embedding_target": 0.0}
HALF: dict[str, Any] = {"class_weight": 0.5}
ARMS: dict[str, dict[str, Any]] = {
    "CE": CE,
    "paper": PAPER,
    "paper, rising λ": PAPER | RISING,
    "simplex, rising λ": PAPER | SIMPLEX | RISING,
    "FD": {"components": ("fd",)},
    "MD": {"components": ("md",)},
    "ED": {"components": ("ed",)},
    "CE, smoothed": CE | {"label_smoothing": 0.1},
    "simplex": PAPER | SIMPLEX,
    "FD at simplex, w = 1/2": {"components": ("fd",)} | SIMPLEX | HALF,
    "paper, w = 1/2": PAPER | HALF,
    "paper, λ = 0.1": PAPER | {"lambd": 0.1},
    "paper, rising and falling λ": PAPER | RISING | {"lambd_cooldown": 882},
    "CE, balanced": CE | BALANCED,
    "CE, logit-adjusted": CE | ADJUSTED,
    "FD + MD": {"components": ("fd", "md")},
    "FD + ED": {"components": ("fd", "ed")},
    "MD + ED": {"components": ("md", "ed")},
    "FD at simplex": {"components": ("fd",)} | SIMPLEX,
    "MD at simplex": {"components": ("md",)} | SIMPLEX,
    "ED at 0": {"components": ("ed",)} | SIMPLEX,
    "zero": PAPER | ZERO,
    "zero, rising λ": PAPER | ZERO | RISING,
    "paper, λ = 0.02": PAPER | {"lambd": 0.02},
    "paper, λ = 1": PAPER | {"lambd": 1.0},
    "simplex, w = 1/2, rising λ": PAPER | SIMPLEX | HALF | RISING,
    "simplex, λ = 0.1": PAPER | SIMPLEX | {"lambd": 0.1},
    "simplex, sample pairs, rising λ": PAPER | SIMPLEX | RISING | {"pairs": "sample"},
    "CE, batch 600": CE | {"virtual_batch": 10},
    "paper, batch 600": PAPER | {"virtual_batch": 10},
    "CE, batch 3,000": CE | {"virtual_batch": 50},
    "paper, batch 3,000": PAPER | {"virtual_batch": 50},
}
REGIMES: dict[str, dict[str, Any]] = {
    "clean": {},
    "30 % noise": {"label_noise": 0.3},
    "long tail": {"long_tail": 100.0},
    "all images": {"limit": 0},
}
RISES = {"long tail": 176, "all images": 2156}  # 30 % of the steps in that regime
FIRST = list(ARMS)[:8]  # the arms that are run in every regime


def _small(title: str, arms: Mapping[str, Sequence[str]]) -> Study:
    """The arms of each regime, compared with cross-entropy in that regime at the same batch size."""
    variants = []
    for regime, names in arms.items():
        for arm in names:
            same_batch = f"CE, {batch}" if (batch := arm.rpartition(", ")[2]).startswith("batch") else "CE"
            against = "" if arm == same_batch else f"{regime}: {same_batch}"
            settings = ARMS[arm] | REGIMES[regime]
            if "lambd_warmup" in settings:
                settings["lambd_warmup"] = RISES.get(regime, RISE)
            variants.append(Variant(f"{regime}: {arm}", settings, against, regime=regime))
    return Study(title, tuple(variants), defaults={"recipe": "fer2013-small"})


def _larger(recipe: str, **settings: Any) -> Study:
    """Cross-entropy, the paper's form and the best of the small study, for a network that takes long to train."""
    arms = (Variant("CE", CE), _against_ce("paper", PAPER), _against_ce("FD", ARMS["FD"]))
    defaults = {"recipe": recipe, **settings}
    return Study(f"Cross-entropy, the paper's form and FD with --recipe {recipe}", arms, defaults=defaults)


def _equal_steps() -> tuple[Variant, ...]:
    """Exact virtual batches with as many steps as batches of 60 have: 10 and 50 times the images."""
    variants = []
    for batch, images in (("600", 10), ("3,000", 50)):
        longer = {"virtual_batch": images, "epochs": 15 * images, "warmup_epochs": images}
        control = f"clean: CE, batch {batch}, equal steps"
        variants.append(Variant(control, CE | longer, regime="clean"))
        variants.append(Variant(f"clean: paper, batch {batch}, equal steps", PAPER | longer, control, regime="clean"))
    return tuple(variants)


STUDIES: dict[str, Study] = {
    "table8": Study(
        "Table 8: the terms of the loss",
        (
            Variant("CE", CE, paper="56.46"),
            _against_ce("CE + MD", {"components": ("md",)}, "57.75"),
            _against_ce("CE + ED", {"components": ("ed",)}, "59.51"),
            _against_ce("CE + FD", {"components": ("fd",)}, "61.86"),
            _against_ce("Ad-Corre", {"components": ("fd", "md", "ed")}, "63.36"),
        ),
        "AffectNet",
    ),
    "table9": Study(
        "Table 9: the number k of embedding vectors",
        (
            Variant("k = 7", {"k": 7}, paper="63.36"),
            Variant("k = 3", {"k": 3}, "k = 7", "59.88"),
            Variant("k = 10", {"k": 10}, "k = 7", "63.56"),
        ),
        "AffectNet",
    ),
    "table10": Study(
        "Table 10: another backbone",
        (
            Variant("CE", CE, paper="68.25 / 82.13 / 55.57"),
            _against_ce("Ad-Corre", {"components": ("fd", "md", "ed")}, "71.48 / 85.93 / 62.78"),
        ),
        "FER-2013 / RAF-DB / AffectNet",
        {"backbone": "resnet50"},
    ),
    "figure6": Study(
        "Figure 6: the weight λ of the terms",
        (
            Variant("λ = 0.5", {"lambd": 0.5}, paper="63.36"),
            Variant("λ = 0.01", {"lambd": 0.01}, "λ = 0.5", "49.33"),
            Variant("λ = 0.1", {"lambd": 0.1}, "λ = 0.5", "54.85"),
            Variant("λ = 1", {"lambd": 1.0}, "λ = 0.5", "60.14"),
        ),
        "AffectNet",
    ),
    "losses": Study(
        "Other losses (the paper's Sec. V)",
        (
            Variant("CE", CE),
            _against_ce("class-balanced CE", {**CE, **BALANCED}),
            _against_ce("logit-adjusted CE", {**CE, **ADJUSTED}),
            _against_ce("CE + Center loss", {"objective": "center"}),
            _against_ce("CE + Island loss", {"objective": "island"}),
            _against_ce("CE + Separate loss", {"objective": "separate"}),
            _against_ce("CE + triplet loss", {"objective": "triplet"}),
            _against_ce("CE + naive FD", {"components": ("nfd",)}),
            _against_ce("Ad-Corre with naive FD", {"components": ("nfd", "md", "ed")}),
            _against_ce("Ad-Corre", {"components": ("fd", "md", "ed")}),
        ),
    ),
    "control": Study(
        "Control: Ad-Corre on top of what already handles imbalance",
        (
            Variant("CE", CE),
            _against_ce("CE + Ad-Corre", {"components": ("fd", "md", "ed")}),
            Variant("balanced CE", {**CE, **BALANCED}),
            Variant("balanced CE + Ad-Corre", BALANCED, "balanced CE"),
            Variant("logit-adjusted CE", {**CE, **ADJUSTED}),
            Variant("logit-adjusted CE + Ad-Corre", ADJUSTED, "logit-adjusted CE"),
        ),
    ),
    "small": _small(
        "The small study: a residual network of 0.7 M parameters on 5,000 images of FER-2013", {"clean": FIRST}
    ),
    "factors": _small("The small study's other arms", {"clean": ["CE", *(arm for arm in ARMS if arm not in FIRST)]}),
    "regimes": _small(
        "The small study's first arms with 30 % of the labels redrawn, and with a long tail",
        {"30 % noise": FIRST, "long tail": FIRST},
    ),
    "confirm": _small(
        "Confirmation on 5,000 images: what differed from cross-entropy in the small study",
        {"clean": ["CE", "paper", "FD", "ED", "CE, smoothed"]},
    ),
    "confirm-regimes": _small(
        "Confirmation of what differed from cross-entropy with labels redrawn or a long tail",
        {"30 % noise": ["CE", "paper"], "long tail": ["CE", "paper, rising λ", "FD"]},
    ),
    "all-images": _small("The small study's first arms on all training images", {"all images": FIRST}),
    "equal-steps": Study(
        "The small study's large batches at equal steps", _equal_steps(), defaults={"recipe": "fer2013-small"}
    ),
    "finetune": _larger("fer2013-lite0", epochs=3),
    "resnet18": _larger("fer2013-resnet18", epochs=4, warmup_epochs=1),
    "xception": _larger("fer2013-xception"),
}
