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
    def __init__(self, name: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=f"python -m train.{name}",
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=ShowDefaults,
        )


def add_seed_and_device(parser: argparse.ArgumentParser, seeds: str) -> None:
    parser.add_argument("--seed", type=at_least(0, most=LARGEST_SEED), default=0, help=f"seed of {seeds}")
    add_options(parser, "device")


def add_data(parser: argparse.ArgumentParser) -> None:
    """Which samples of which data: those of the run, unless the user says otherwise."""
    parser.add_argument("--data", help="dataset to use (default: the run's)")
    parser.add_argument("--protocol", help="protocol of FER-2013, as in python -m train (default: the run's)")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"), help="split to use")
    parser.add_argument("--limit", type=at_least(0), help="maximum number of images; 0: all (default: the run's)")
    parser.add_argument("--batch-size", type=at_least(1), default=64, help="images per forward pass")
    parser.add_argument("--workers", type=at_least(0), default=0, help="processes that load images")


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


def execute(parser: CommandParser, function: str, arguments: Sequence[str] | None = None) -> int:
    """Call `function`, named as module:name, with the options as its keywords. Returns the exit code.

    Its module is imported after the options are read: --help and their errors do not wait for PyTorch.
    """

    def call() -> int:
        options = vars(parser.parse_args(arguments))
        if sys.stderr.isatty():
            print("starting: PyTorch, the run", file=sys.stderr, flush=True)
        pkgutil.resolve_name(function)(**options)
        return 0

    return exit_code(call)


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
