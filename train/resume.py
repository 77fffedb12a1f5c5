"""`--resume`: which run goes on, with what settings, and whether its data are still the same."""

import math
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision

import adcorre
from train.checkpoint import State, checkpoints, read_checkpoint
from train.data import Splits
from train.disk import expand
from train.errors import UserError
from train.ranks import Ranks
from train.run_folder import is_run
from train.settings import Settings, flag, format_value

# What the weights do not depend on. The data are known by their fingerprints, wherever they lie.
FREE = {"data", "cache", "workers", "device", "recipe", "out", "overwrite", "resume", "threads"}
FREE |= {"checkpoint_every", "checkpoint_minutes", "log_every", "keep"}


def find_run(settings: Settings) -> Path | None:
    """The run folder to go on in; None where `--resume auto` begins a run."""
    if settings.run.resume != "auto":
        path = expand(settings.run.resume)
        if settings.run.out and expand(settings.run.out).absolute() != path.absolute():
            raise UserError(
                f"--resume {path} continues in that folder, got --out {settings.run.out} too; leave out --out"
            )
        return path
    if not settings.run.out:
        raise UserError("--resume auto: give the run folder by --out")
    path = expand(settings.run.out)
    if checkpoints(path):
        return path
    if not is_run(path):
        return None
    if any((path / name).exists() for name in ("last", "results.json")):
        raise UserError(
            f"--resume auto: {path} holds a run without a checkpoint to continue from; choose another --out"
        )
    return None


def load_resumed(run: Path, chosen: Mapping[str, Any], ranks: Ranks) -> tuple[Settings, State]:
    """The newest checkpoint of a run, and its settings with what may change of the `chosen` ones in their place.

    Raises UserError naming whatever was chosen otherwise than the run has it.
    """
    state = read_checkpoint(run)
    settings = Settings.of(state["settings"])
    before = settings.values()
    # Only the cosine schedule knows the number of epochs.
    may_end_later = settings.optimizer.schedule != "cosine" and chosen.get("epochs", math.inf) >= state["epoch"] - 1
    free = {*FREE, "epochs"} if may_end_later else FREE
    if refused := changed(before, chosen, free):
        epochs = "epochs" in chosen and chosen["epochs"] != before["epochs"] and "epochs" not in free
        hint = f"; --init-from {run} starts another from its weights" if epochs else ""
        raise UserError(f"--resume {run}: the run has {'; '.join(refused)}. A resumed run keeps its settings{hint}")
    settings = settings.replace({name: chosen[name] for name in free & chosen.keys()})
    _check_processes(run, settings, state, ranks)
    return settings.replace({"out": str(run), "resume": str(run)}), state


def changed(before: Mapping[str, Any], now: Mapping[str, Any], free: set[str]) -> list[str]:
    """What differs from the settings of a run, by name, but for the `free` ones and those left open."""
    return [
        f"{flag(name)} {format_value(before[name])}, not {format_value(value)}"
        for name, value in now.items()
        if name not in free and value not in (before[name], "auto")
    ]


def _check_processes(run: Path, settings: Settings, state: State, ranks: Ranks) -> None:
    """What is left of a run has to be the same on this number of processes: the test of the best model is, a step not.

    UserError, with the reason, where a step is left.
    """
    before = state["processes"]
    left = state["done"] or not has_ended(settings, state["epoch"], state["best"][0])
    if before != ranks.world and left:
        images = settings.data.batch_size * settings.data.virtual_batch
        raise UserError(
            f"{run} was trained by {before} processes, this is {ranks.world}: start as many. A step would be of "
            f"{images * ranks.world:,} images, not {images * before:,}, and BatchNorm's batches and dropout's random "
            "numbers are each process's own"
        )


def has_ended(settings: Settings, epoch: int, best_epoch: int) -> bool:
    """Whether a run whose next epoch is `epoch` has no step left."""
    epochs, patience = settings.optimizer.epochs, settings.optimizer.patience
    return epoch > epochs or 0 < patience <= epoch - 1 - best_epoch


def newest_checkpoint_note(run: Path) -> str:
    """What to resume from after a run ended with an error."""
    newest = next(iter(checkpoints(run)), None)
    return f"the checkpoint {newest.name} is kept in {run}" if newest else "no checkpoint was written before it"


def check_same_data(state: State, data: Splits) -> None:
    """UserError where classes or samples are not those that the run began with."""
    before, now = state["data"], describe_data(data)
    if before["class_names"] != now["class_names"]:
        classes = ", ".join(before["class_names"]), ", ".join(now["class_names"])
        raise UserError(f"the run was trained on the classes {classes[0]}, in this order; the data have {classes[1]}")
    for split, fingerprint in before["fingerprints"].items():
        if now["fingerprints"][split] != fingerprint:
            counts = f"{before['images'][split]:,} images then, {now['images'][split]:,} now"
            raise UserError(
                f"the {split} split differs from that at the start of the run (fingerprints differ; {counts})"
            )


def describe_data(data: Splits) -> dict[str, Any]:
    parts = {part.split: part for part in (data.train, data.validation, data.test)}
    return {
        "layout": data.layout,
        "class_names": list(data.train.class_names),
        "images": {name: len(part) for name, part in parts.items()},
        "fingerprints": {name: part.fingerprint for name, part in parts.items()},
    }


def conditions(device: torch.device) -> dict[str, Any]:
    """What the last bits of a run depend on beside its settings."""
    versions = {package.__name__: str(package.__version__) for package in (adcorre, torch, torchvision, timm)}
    return {"device": device.type, "threads": torch.get_num_threads(), "python": platform.python_version(), **versions}


def origin() -> dict[str, str]:
    """When, how and at which commit of this checkout a run was started."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git
        commit = ""
    date = datetime.now().strftime("%Y-%m-%d %H:%M")
    return {"date": date, "command": shlex.join(["python", *sys.orig_argv[1:]]), "commit": commit}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """A sentence about conditions that differ; "" if none does."""
    changed = [f"{name} {before.get(name)} is now {value}" for name, value in now.items() if before.get(name) != value]
    return (
        f"note: results may differ in their last bits from an uninterrupted run: {', '.join(changed)}"
        if changed
        else ""
    )
