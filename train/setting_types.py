"""How the text of a setting becomes its value, where that is more than a number or a word."""

import argparse
import math
from typing import Literal


def target(text: str) -> float | Literal["simplex"]:
    if text == "simplex":
        return "simplex"
    if not -1 <= (value := _number(text)) <= 1:
        raise argparse.ArgumentTypeError(f"expected 'simplex' or a number from -1 to 1, got {text!r}")
    return value


def components(text: str) -> tuple[str, ...] | dict[str, float]:
    """Names by commas, or a weight for each: fd=1,md=0.3."""
    parts = [part.partition("=") for part in text.lower().split(",") if part not in ("", "none")]
    names = tuple(name.strip() for name, _, _ in parts)
    weights = {name: _number(weight) if equals else 1.0 for name, (_, equals, weight) in zip(names, parts, strict=True)}
    known = set(names) <= {"fd", "nfd", "md", "ed"} and not {"fd", "nfd"} <= set(names)
    if not known or len(weights) < len(names) or not all(0 <= weight < math.inf for weight in weights.values()):
        raise argparse.ArgumentTypeError(
            f"expected some of fd (or nfd), md, ed by commas (weighted: fd=1,md=0.3), or none, got {text!r}"
        )
    return weights if "=" in text else names


def ce_weight(text: str) -> str | tuple[float, ...]:
    if text in ("none", "balanced", "effective"):
        return text
    weights = tuple(_number(part) for part in text.split(","))
    if not all(0 <= weight < math.inf for weight in weights) or sum(weights) == 0:
        raise argparse.ArgumentTypeError(f"expected none, balanced, effective or numbers by commas, got {text!r}")
    return weights


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
