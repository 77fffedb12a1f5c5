"""Checkpoints to resume from: RUN/checkpoints/epoch<e>-step<s>-<SHA-256's beginning>.pt.

e is the epoch that step s belongs to. While the run goes on there are the newest two, then as many as --keep says.

Files of other names in there are the user's: they are neither read nor deleted.
"""

import hashlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train.disk import sync_folder, sync_handle, write_error
from train.errors import UserError
from train.owned_folder import remove_if_empty

FORMAT = 1
NEWEST = 2
FOLDER, PARTIAL = "checkpoints", "checkpoint.partial"
NAME = f"epoch{'[0-9]' * 5}-step{'[0-9]' * 9}-{'[0-9a-f]' * 16}.pt"
State = dict[str, Any]


def write_checkpoint(run: Path, state: State) -> Path:
    """Write it and only then delete the checkpoints older than the one before. Raises OSError, with no trace left."""
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    partial = folder / PARTIAL
    try:
        with partial.open("w+b") as file:
            try:
                torch.save({"format": FORMAT, **state}, file)
            except RuntimeError as error:  # what PyTorch makes of a failed write
                raise write_error(error) from error
            file.flush()
            sync_handle(file.fileno(), folder)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        path = folder / f"epoch{state['epoch'] - (not state['done']):05d}-step{state['step']:09d}-{digest}.pt"
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(folder)
    before = [other for other in checkpoints(run) if _place(other) < _place(path)]
    for other in checkpoints(run):  # older, or later than a checkpoint that the run has gone back to
        if other != path and other not in before[: NEWEST - 1]:
            other.unlink()
    return path


def keep_checkpoints(run: Path, count: int) -> None:
    """Delete all but the newest `count`, and the folder where it is empty then."""
    for path in checkpoints(run)[count:]:
        path.unlink()
    remove_if_empty(run / FOLDER)


def _place(path: Path) -> str:
    return path.stem.rsplit("-", 1)[0]


def checkpoints(run: Path) -> list[Path]:
    """Newest first."""
    return sorted((path for path in (run / FOLDER).glob(NAME) if path.is_file()), reverse=True)


def read_checkpoint(run: Path) -> State:
    """The newest checkpoint that is whole; says so where that is not the newest.

    Raises UserError where there is none, or none that is whole, or one of another version.
    """
    damaged = []
    for path in checkpoints(run):
        try:
            with path.open("rb") as file:
                if not path.stem.endswith(hashlib.file_digest(file, "sha256").hexdigest()[:16]):
                    raise ValueError("it is not what was written")
            state: State = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a damaged file or disk makes of it
            damaged.append(f"{path} is damaged ({error})")
            continue
        if state["format"] != FORMAT:
            raise UserError(f"{path}: expected checkpoint format {FORMAT}, got {state['format']}")
        for message in damaged:
            print(f"{message}; continuing from the previous one, {path.name}", flush=True)
        return state
    if damaged:
        raise UserError("; ".join(damaged) + "; there is no other")
    raise UserError(f"--resume {run}: no checkpoint there (looked for {run / 'checkpoints'}/epoch*.pt)")


def random_state(device: torch.device) -> State:
    """Of every generator that a run may draw from, in this process."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), position, has_gauss, gauss),  # type: ignore[union-attr]
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random(state: State, device: torch.device) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
