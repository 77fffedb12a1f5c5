"""The work of `python -m train.ablate`: train the missing runs, and rewrite the tables after each."""

import os
import sys
from collections.abc import Sequence
from typing import Any

from train import owned_folder
from train.ablation import complexity, runs, tables
from train.ablation import rows as run_rows
from train.ablation.driver import default_processes, train_all
from train.bars import format_markdown
from train.disk import expand
from train.errors import UserError
from train.stopping import Stopped


def ablate(
    studies: Sequence[str],
    *,
    out: str,
    seeds: int,
    rows: str | None = None,
    minutes: float = 0,
    processes: int = 0,
    models: bool = False,
    seed: int = 0,
    **given: Any,
) -> None:
    """Train every row of the studies with the seeds `seed`, `seed` + 1, ..., and write comparison tables to `out`.

    Each finished run gets a row in the file `rows` (None: out/runs.csv); a run that has a row is not trained again.
    `minutes`, `processes` (0 for its defaults) and `models` are those of `train_all`. `given` are the settings that
    the user named. Raises UserError for settings that a study itself varies.
    """
    if "WORLD_SIZE" in os.environ:
        raise UserError("ablate runs without torchrun: start a process per GPU, each with seeds of its own")
    folder, all_seeds = expand(out), range(seed, seed + seeds)
    trained = [name for name in dict.fromkeys(studies) if name != "table11"]
    planned = runs.plan(trained, given, folder, all_seeds)
    selected = runs.in_order(planned, all_seeds)
    runs.check_same_data(planned)
    file = expand(rows) if rows else folder / "runs.csv"
    done = {row["digest"] for row in run_rows.read(file)}
    remaining = [run for run in selected if not run.failure and run_rows.digest(run) not in done]
    owned_folder.prepare(folder, "ablation", ())
    if selected:
        counts = f"{len(selected)} runs, {len(remaining)} of them to train"
        print(f"{counts}, in {folder / 'runs'}, each with a log", flush=True)

    def compare() -> None:
        runs.check_same_data(planned)
        tables.write(folder, planned, all_seeds)

    try:
        train_all(remaining, folder, file, processes or default_processes(given), minutes, models, compare)
    except Stopped as stopped:
        print(f"\n{stopped}; so does the same command again", file=sys.stderr)
        raise SystemExit(128 + stopped.number) from None
    text = tables.write(folder, planned, all_seeds) if selected else ""
    if "table11" in studies:
        text += ("\n" if text else "") + complexity.write(folder, given)
        (folder / "tables.md").write_text(text, encoding="utf-8")
    print(f"\n{format_markdown(text)}\nwritten to {folder}")
