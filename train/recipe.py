"""Recipes: small YAML files of settings by name, those of `train/recipes/` or the user's own.

A run's settings come from three layers, the later ones winning: the defaults, a recipe, and what the user gave. A run
that is resumed has those it began with.
"""

import argparse
import dataclasses
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from train.disk import read_text
from train.entry import nearest
from train.errors import UserError
from train.settings import SYNTHETIC, Settings, check_bounds, flag, setting_fields

FOLDER = Path(__file__).parent / "recipes"
NOT_IN_RECIPES = ("data", "recipe", "out", "overwrite", "resume", "init_from")


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


def recipe_values(name: str) -> dict[str, Any]:
    """The settings of a recipe, checked. Raises UserError naming the recipe, the setting, and what is wrong."""
    fields = {key: item for key, item in setting_fields().items() if key not in NOT_IN_RECIPES}
    values = {}
    for key, value in read_recipe(name).items():
        if key not in fields:
            raise UserError(f"--recipe {name}: no setting is called {key!r}{nearest(str(key), list(fields))}")
        try:
            values[key] = _parsed(fields[key], value)
            check_bounds({key: values[key]})
        except (UserError, ValueError, argparse.ArgumentTypeError) as error:
            raise UserError(f"--recipe {name}: {key}: {error}") from error
    return values


def _parsed(item: dataclasses.Field[Any], value: Any) -> Any:
    """A value of a YAML file, as the command line would have it."""
    if value is None:
        raise ValueError("expected a value, got none")
    choices = item.metadata["choices"] or ()
    if isinstance(value, bool) and "yes" in choices:
        value = "yes" if value else "no"  # YAML's reading of yes and no
    if isinstance(item.default, bool) or isinstance(value, bool):
        if type(item.default) is not type(value):
            raise ValueError(f"expected {type(item.default).__name__}, got {value!r}")
        return value
    value = [f"{key}={weight}" for key, weight in value.items()] if isinstance(value, dict) else value
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    if choices and text not in choices:
        raise ValueError(f"expected one of {', '.join(choices)}, got {text!r}")
    return item.metadata["parse"](text)


def merge_given(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the user chose, by field name: the settings of a recipe that was named and, over them, the given ones."""
    return {**(recipe_values(given["recipe"]) if given.get("recipe") else {}), **given}


def resolve(given: Mapping[str, Any]) -> Settings:
    """Settings from defaults, the recipe, and the given values (by field name)."""
    for name in ("data", "recipe", "resume", "init_from"):
        if given.get(name) == "":  # of a shell's variable that is not set
            raise UserError(f"{flag(name)}: expected a value, got an empty one")
    synthetic = given.get("data", SYNTHETIC) == SYNTHETIC
    settings = Settings().replace(
        merge_given(given if given.get("recipe") or not synthetic else {**given, "recipe": SYNTHETIC})
    )
    check_bounds(settings.values())
    return settings
