"""Recipes: small YAML files of settings by name, those of `train/recipes/` or the user's own."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from train.errors import UserError

FOLDER = Path(__file__).parent / "recipes"


def names() -> list[str]:
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


@cache
def read_recipe(name: str) -> Mapping[str, Any]:
    """The settings of a recipe as they are written, unchecked. `name` is one of `names()` or a file's path.

    Raises UserError where there is none, or it is no YAML mapping.
    """
    file = FOLDER / f"{name}.yaml" if name in names() else Path(name).expanduser()
    if not file.is_file():
        raise UserError(f"--recipe {name}: no such file, nor one of {', '.join(names())}")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--recipe {name}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"--recipe {name}: expected lines `setting: value`, got {type(content).__name__}")
    return content
