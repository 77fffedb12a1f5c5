"""Recipes: small YAML files of settings by name, those of `train/recipes/` or the user's own."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from train.disk import read_text
from train.errors import UserError

FOLDER = Path(__file__).parent / "recipes"


def names() -> list[str]:
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"set twice: {', '.join(twice)}", node.start_mark)
        return super().construct_mapping(node, deep)


@cache
def read_recipe(name: str) -> Mapping[str, Any]:
    """The settings of a recipe as they are written, unchecked. `name` is one of `names()` or a file's path.

    Raises UserError where there is none, or it is no YAML mapping.
    """
    file = FOLDER / f"{name}.yaml" if name in names() else Path(name).expanduser()
    if not file.is_file():
        raise UserError(f"--recipe {name}: no such file, nor one of {', '.join(names())}")
    try:
        content = yaml.load(read_text(file), _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"--recipe {name}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"--recipe {name}: expected lines `setting: value`, got {type(content).__name__}")
    return content
