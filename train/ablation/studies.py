"""The studies of `python -m train.ablate`: which settings are compared with which."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CE: dict[str, Any] = {"components": ()}
BALANCED: dict[str, Any] = {"ce_weight": "effective"}
ADJUSTED: dict[str, Any] = {"logit_adjustment": 1.0}


@dataclass(frozen=True)
class Variant:
    """One row of a table: settings by name over the user's, and the name of the row that it is compared with.

    paper: the accuracy in percent that the paper reports for it.
    """

    name: str
    settings: Mapping[str, Any]
    against: str = ""
    paper: str = ""


@dataclass(frozen=True)
class Study:
    """A table. `defaults` are settings of all its rows that the user's own options replace."""

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
}
