"""`python -m train.ablate STUDY…`: the paper's Tables 8 to 11 and Fig. 6, and what they lack, over seeds."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train import owned_folder
from train.ablation.studies import STUDIES
from train.command import CommandParser, at_least, execute, make_folder
from train.disk import expand
from train.errors import UserError
from train.settings import add_settings

OUT = "runs/ablation"


def parser() -> CommandParser:
    result = CommandParser(
        "ablate",
        "Train every row of the studies at every seed and compare them: "
        + "; ".join(f"{name} = {study.title}" for name, study in STUDIES.items())
        + "; table11 = parameters and multiply-adds, without training. After each run tables.md and a CSV per study "
        "are written anew. A row is the training that all other options describe, as of python -m train, but for what "
        "it varies. Called again, it goes on where it stopped; processes with other seeds may work in one folder.",
    )
    result.add_argument("studies", metavar="STUDY", nargs="+", choices=[*STUDIES, "table11"], help="what to compare")
    result.add_argument("--seeds", type=at_least(1), default=3, metavar="N", help="seeds: --seed and the next ones")
    result.add_argument("--out", default=OUT, help="folder of runs and tables")
    add_settings(result, but=("out", "overwrite", "resume"))
    return result


def run(options: Any) -> None:
    from train.ablation import complexity, runs, tables
    from train.run_folder import is_run

    if "WORLD_SIZE" in os.environ:
        raise UserError("ablate runs without torchrun: start a process per GPU, each with seeds of its own")
    given = dict(vars(options))
    studies, out = dict.fromkeys(given.pop("studies")), expand(given.pop("out"))
    first = given.pop("seed", 0)
    seeds = range(first, first + given.pop("seeds"))
    trained = [name for name in studies if name != "table11"]
    planned = runs.plan(trained, given, out, seeds)
    wanted = runs.in_order(planned, seeds)
    runs.check_same_data(planned)
    left = [one for one in wanted if not one.failure and not one.result()]
    if any(is_run(folder) for folder in out.glob("runs/*/seed-*")):
        owned_folder.mark(make_folder(out), "ablation")  # of a version without marks
    else:
        owned_folder.prepare(out, "ablation", ())
    if wanted:
        print(f"{len(wanted)} runs, {len(left)} of them to train, in {out / 'runs'}", flush=True)
    for number, one in enumerate(left, 1):
        print(f"\n=== run {number} of {len(left)}: {one.folder.parent.name}, seed {one.seed}", flush=True)
        _train(one, out)
        runs.check_same_data(planned)
        tables.write(out, planned, seeds)
    text = tables.write(out, planned, seeds) if wanted else ""
    if "table11" in studies:
        text += ("\n" if text else "") + complexity.write(out, given)
        (out / "tables.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\nwritten to {out}")


def _train(one: Any, out: Path) -> None:
    from train.ablation.runs import train
    from train.loop import Stopped

    try:
        train(one, out)
    except Stopped as stopped:
        print(f"\n{stopped}; so does the same command again", file=sys.stderr)
        raise SystemExit(128 + stopped.number) from None


def main(arguments: Sequence[str] | None = None) -> int:
    return execute(parser(), run, arguments)


if __name__ == "__main__":
    sys.exit(main())
