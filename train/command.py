"""What the commands beside `python -m train` share: their options, exit codes, and a run with its data."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.entry import Parser, exit_code
from train.errors import UserError

if TYPE_CHECKING:
    import torch

    from train.data import Splits


class _ShowDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Each option's help ends with its default, unless the help itself says what it is."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        words = action.help or ""
        if action.default is None or "default:" in words or action.required:
            return words
        return super()._get_help_string(action)


class CommandParser(Parser):
    def __init__(self, name: str, description: str) -> None:
        super().__init__(
            prog=f"python -m train.{name}",
            description=description,
            allow_abbrev=False,
            formatter_class=_ShowDefaults,
        )

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        return self.parse_args(arguments)


def add_seed_and_device(parser: argparse.ArgumentParser, seeds: str) -> None:
    parser.add_argument("--seed", type=int, default=0, help=f"seed of {seeds}")
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to run; auto = a GPU if there is one"
    )


def add_data(parser: argparse.ArgumentParser) -> None:
    """Which samples of which data: those of the run, unless the user says otherwise."""
    parser.add_argument("--data", help="dataset to look at (default: the run's)")
    parser.add_argument("--protocol", help="its protocol, as of python -m train (default: the run's)")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"), help="which part of it")
    parser.add_argument("--limit", type=int, help="at most so many images of it; 0: all (default: the run's)")
    parser.add_argument("--batch-size", type=int, default=64, help="images per forward pass")
    parser.add_argument("--workers", type=int, default=0, help="processes that load images")


def check_at_least(options: Any, **least: int) -> None:
    """UserError for an option that is below its least value."""
    for name, value in least.items():
        given = getattr(options, name)
        if given is not None and given < value:
            raise UserError(f"--{name.replace('_', '-')} {given}: expected at least {value}")


def execute(parser: CommandParser, command: Callable[[Any], Any], arguments: Sequence[str] | None = None) -> int:
    """The exit code of a command whose result is of no concern."""

    def call() -> int:
        command(parser.parse(arguments))
        return 0

    return exit_code(call)


def device_of(name: str) -> torch.device:
    """The device for --device, as in training, but for one process."""
    from train.ranks import ALONE

    return ALONE.device(name)


def made(folder: Path) -> Path:
    """The folder, which is there afterwards."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot make the folder: {error}") from error
    return folder


def run_settings(path: Path) -> dict[str, Any]:
    """`settings.json` of the run folder (or of the checkpoint folder in it) at `path`; {} if there is none."""
    for folder in (path, path.parent):
        file = folder / "settings.json"
        if file.is_file():
            try:
                return dict(json.loads(file.read_text(encoding="utf-8")))
            except ValueError as error:
                raise UserError(f"{file}: cannot read the settings: {error}") from error
    return {}


def data_of(run: Path, options: Any, class_names: tuple[str, ...], image_size: int) -> Splits:
    """The run's data, or what --data, --protocol and --limit say in their place; drawn with the run's seed.

    Raises UserError where nothing says which, or the classes are not those that the model tells apart.
    """
    from train.data import Request, load_data

    stored = run_settings(run).get("settings", {})
    values = dict(stored.get("data", {}))
    data = options.data or values.get("data")
    if not data:
        raise UserError(f"{run}: no settings.json says what it was trained on; give --data")
    values |= {"image_size": image_size, "seed": stored.get("run", {}).get("seed", 0)}
    for name in ("protocol", "limit"):
        if getattr(options, name) is not None:
            values[name] = getattr(options, name)
        elif options.data:
            values.pop(name, None)  # another dataset's
    names = {field.name for field in dataclasses.fields(Request)}
    splits = load_data(data, Request(**{name: value for name, value in values.items() if name in names}))
    if splits.test.class_names != class_names:
        raise UserError(
            f"--data {data} has the classes {', '.join(splits.test.class_names)}; "
            f"the model was trained on {', '.join(class_names)}"
        )
    return splits
