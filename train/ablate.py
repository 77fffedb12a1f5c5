"""`python -m train.ablate STUDY…`: the paper's Tables 8 to 11 and Fig. 6, and what they lack, over seeds."""

import os
import sys
from collections.abc import Sequence
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
    result.add_argument(
        "--rows",
        help="CSV file that gets a row for each run that ends; one that has a row is not trained "
        "(default: OUT/runs.csv)",
    )
    result.add_argument(
        "--minutes",
        type=at_least(0, float),
        default=0.0,
        metavar="M",
        help="stop after so long, with a checkpoint of each run begun, to go on by the same command; 0: train all",
    )
    result.add_argument(
        "--processes",
        type=at_least(0),
        default=0,
        metavar="N",
        help="runs at a time, each with one thread if there are several; 0: one per core, and one alone on a GPU or "
        "with --threads",
    )
    add_settings(result, but=("out", "overwrite", "resume"))
    return result


def run(options: Any) -> None:
    from train.ablation import complexity, rows, runs, tables
    from train.ablation.driver import default_processes, train_all
    from train.run_folder import is_run
    from train.stopping import Stopped

    if "WORLD_SIZE" in os.environ:
        raise UserError("ablate runs without torchrun: start a process per GPU, each with seeds of its own")
    given = dict(vars(options))
    studies, out = dict.fromkeys(given.pop("studies")), expand(given.pop("out"))
    minutes, processes, rows_file = given.pop("minutes"), given.pop("processes"), given.pop("rows")
    first = given.pop("seed", 0)
    seeds = range(first, first + given.pop("seeds"))
    trained = [name for name in studies if name != "table11"]
    planned = runs.plan(trained, given, out, seeds)
    wanted = runs.in_order(planned, seeds)
    runs.check_same_data(planned)
    file = expand(rows_file) if rows_file else out / "runs.csv"
    done = {row["digest"] for row in rows.read(file)}
    for one in wanted:
        if rows.digest(one) not in done and one.result():  # it ended, and this process was killed
            rows.append(file, one)
            done.add(rows.digest(one))
    left = [one for one in wanted if not one.failure and rows.digest(one) not in done]
    if any(is_run(folder) for folder in out.glob("runs/*/seed-*")):
        owned_folder.mark(make_folder(out), "ablation")  # of a version without marks
    else:
        owned_folder.prepare(out, "ablation", ())
    if wanted:
        print(f"{len(wanted)} runs, {len(left)} of them to train, in {out / 'runs'}", flush=True)

    def after() -> None:
        runs.check_same_data(planned)
        tables.write(out, planned, seeds)

    try:
        train_all(left, out, file, processes or default_processes(given), minutes, after)
    except Stopped as stopped:
        print(f"\n{stopped}; so does the same command again", file=sys.stderr)
        raise SystemExit(128 + stopped.number) from None
    text = tables.write(out, planned, seeds) if wanted else ""
    if "table11" in studies:
        text += ("\n" if text else "") + complexity.write(out, given)
        (out / "tables.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\nwritten to {out}")


def main(arguments: Sequence[str] | None = None) -> int:
    return execute(parser(), run, arguments)


if __name__ == "__main__":
    sys.exit(main())
