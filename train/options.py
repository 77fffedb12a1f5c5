"""The settings as options of the command line: one for each, with its default, bounds and recipes in its help."""

import argparse
import dataclasses
from typing import Any

from train.entry import Parser
from train.recipe import names as recipe_names
from train.recipe import recipe_values
from train.settings import SYNTHETIC, flag, format_value, setting_fields, setting_groups

FIRST = ("data", "recipe", "out", "resume", "epochs")  # of --help


def parser() -> Parser:
    """The command line: one flag per setting. Its result has only what the user gave."""
    result = Parser(
        prog="python -m train",
        usage="python -m train [--data PATH] [--recipe NAME] [--out FOLDER]\n"
        "                       [--resume FOLDER|auto] [any setting below]",
        allow_abbrev=False,
        description="Train a face classifier with the Ad-Corre loss. The defaults are the paper's recipe; a --recipe "
        "goes over them, and what is given here over both.",
        epilog="python -m train.data check PATH looks at a dataset first; docs/training.md says more.",
    )
    add_settings(result)
    return result


def add_settings(parser: argparse.ArgumentParser, but: tuple[str, ...] = (), hidden: bool = False) -> None:
    """An option for every setting, `but` those named; the parser's result has only what the user gave.

    `hidden` ones are not in its help.
    """
    first = parser.add_argument_group("main options")
    for name in FIRST:
        if name not in but:
            _add_option(first, setting_fields()[name], hidden)
    for name, fields in setting_groups():
        group = parser.add_argument_group(name)
        for item in fields:
            if item.name not in (*but, *FIRST):
                _add_option(group, item, hidden)


def add_options(parser: argparse.ArgumentParser, *names: str) -> None:
    """The options of these settings, as `add_settings` adds them."""
    for name in names:
        _add_option(parser, setting_fields()[name])


def _add_option(parser: argparse._ActionsContainer, item: dataclasses.Field[Any], hidden: bool = False) -> None:
    extra: dict[str, Any] = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS if hidden else _help(item)}
    if isinstance(item.default, bool):
        parser.add_argument(flag(item.name), action=argparse.BooleanOptionalAction, **extra)
        return
    choices = item.metadata["choices"]
    numbers = {int: "N", float: "X"}
    metavar = "{" + ",".join(choices) + "}" if choices else numbers.get(type(item.default), item.name.upper())
    extra |= {"type": item.metadata["parse"], "choices": choices, "metavar": metavar}
    parser.add_argument(flag(item.name), **extra)


def _help(item: dataclasses.Field[Any]) -> str:
    shown = item.metadata["shown"] or format_value(item.default)
    synthetic = recipe_values(SYNTHETIC)
    recipe = f"; {format_value(synthetic[item.name])} with --data {SYNTHETIC}" if item.name in synthetic else ""
    recipe += f"; there are {', '.join(recipe_names())}" if item.name == "recipe" else ""
    return f"{item.metadata['help']} (default: {shown}{recipe})".replace("%", "%%")
