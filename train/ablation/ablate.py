"""The work of `python -m train.ablate`: train what is not there yet, and write the tables anew after each run."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train import owned_folder
from train.ablation import complexity, runs, tables
from train.command import make_folder
from train.disk import expand
from train.errors import UserError
from train.run_folder import is_run
from train.stopping import Stopped


def ablate(studies: Sequence[str], *, out: str, seeds: int, seed: int = 0, **given: Any) -> None:
    """Train every row of the studies at `seeds` seeds from `seed` on, and compare them in tables in the folder `out`.

    `given` are the settings that the user named. Raises UserError for settings that a study itself varies.
    """
    if "WORLD_SIZE" in os.environ:
        raise UserError("ablate runs without torchrun: start a process per GPU, each with seeds of its own")
    folder, all_seeds = expand(out), range(seed, seed + seeds)
    trained = [name for name in dict.fromkeys(studies) if name != "table11"]
    planned = runs.plan(trained, given, folder, all_seeds)
    wanted = runs.in_order(planned, all_seeds)
    runs.check_same_data(planned)
    left = [one for one in wanted if not one.failure and not one.result()]
    if any(is_run(run) for run in folder.glob("runs/*/seed-*")):
        owned_folder.mark(make_folder(folder), "ablation")  # of a version without marks
    else:
        owned_folder.prepare(folder, "ablation", ())
    if wanted:
        print(f"{len(wanted)} runs, {len(left)} of them to train, in {folder / 'runs'}", flush=True)
    for number, one in enumerate(left, 1):
        print(f"\n=== run {number} of {len(left)}: {one.folder.parent.name}, seed {one.seed}", flush=True)
        _train(one, folder)
        runs.check_same_data(planned)
        tables.write(folder, planned, all_seeds)
    text = tables.write(folder, planned, all_seeds) if wanted else ""
    if "table11" in studies:
        text += ("\n" if text else "") + complexity.write(folder, given)
        (folder / "tables.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\nwritten to {folder}")


def _train(one: runs.Planned, out: Path) -> None:
    try:
        runs.train(one, out)
    except Stopped as stopped:
        print(f"\n{stopped}; so does the same command again", file=sys.stderr)
        raise SystemExit(128 + stopped.number) from None
