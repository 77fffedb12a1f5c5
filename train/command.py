"""What the commands beside `python -m train` share: their options, exit codes, and a run with its data."""

from __future__ import annotations

import argparse
import pkgutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from train.disk import read_json
from train.entry import Parser, ShowDefaults, exit_code
from train.errors import UserError
from train.options import add_options
from train.settings import LARGEST_SEED


class CommandParser(Parser):
    """A command: its options, and the function, named as module:name, that takes them as keywords.

    Its module is imported after the options are read: --help and their errors do not wait for PyTorch. `starting`: what
    a terminal is told that the command begins with.
    """

    def __init__(
        self, name: str, function: str, description: str, epilog: str = "", starting: str = "PyTorch, the run"
    ) -> None:
        super().__init__(
            prog=f"python -m train.{name}",
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=ShowDefaults,
        )
        self.function, self.starting = function, starting

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Run the command. Returns the exit code: what the function returns where that is a number, else 0."""

        def call() -> int:
            options = vars(self.parse_args(arguments))
            if self.starting and sys.stderr.isatty():
                print(f"starting: {self.starting}", file=sys.stderr, flush=True)
            result = pkgutil.resolve_name(self.function)(**options)
            return result if isinstance(result, int) else 0

        return exit_code(call)


def add_seed_and_device(parser: argparse.ArgumentParser, seeds: str) -> None:
    parser.add_argument("--seed", type=at_least(0, most=LARGEST_SEED), default=0, help=f"seed of {seeds}")
    add_options(parser, "device")


def add_tta(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tta",
        choices=("none", "flip", "tencrop"),
        default="none",
        help="average the probabilities over views of a face: flip = it and its mirror image; tencrop = its corners "
        "and centre, and their mirror images",
    )


def at_least(least: int, number: Callable[[str], Any] = int, most: float = sys.float_info.max) -> Callable[[str], Any]:
    """The type of an option that is a finite number of at least `least`, and at most `most`."""

    def parse(text: str) -> Any:
        if not (value := number(text)) >= least:
            raise argparse.ArgumentTypeError(f"expected at least {least}, got {text}")
        if value > most:
            raise argparse.ArgumentTypeError(f"expected at most {most}, got {text}")
        return value

    parse.__name__ = number.__name__  # which argparse names where the text is no number
    return parse


def make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot make the folder: {error}") from error
    return folder


def read_run_file(path: Path, name: str) -> dict[str, Any]:
    """That file of the run folder (or of the checkpoint folder in it) at `path`; {} if there is none."""
    files = [folder / name for folder in (path, path.parent)]
    return next((dict(read_json(file)) for file in files if file.is_file()), {})
