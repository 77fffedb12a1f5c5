"""A file of finished runs, one row each: its metrics, and what is needed to repeat it.

Rows are appended and never changed. A run whose digest is in the file is not trained again, here or elsewhere.
"""

import csv
import hashlib
import json
import os
import platform
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.ablation.runs import Planned, Result
from train.command import make_folder
from train.disk import lock, read_table
from train.errors import UserError
from train.resume import FREE
from train.retrieval import METRICS as RETRIEVAL
from train.settings import Settings, flag, format_value

METRICS = ("accuracy", "average_accuracy", "nll", "ece", *RETRIEVAL)
COLUMNS = (
    *("study", "regime", "arm", "seed", "epoch"),
    *(f"{split}_{metric}" for split in ("validation", "test") for metric in ("samples", *METRICS)),
    *("digest", "train_fingerprint", "minutes", "machine", "commit", "date", "command"),
)


def digest(run: Planned) -> str:
    """A hash of the seed and of the non-default settings that the weights depend on."""
    defaults = Settings().values()
    values = {
        key: value for key, value in run.settings().values().items() if key not in FREE and value != defaults[key]
    }
    values["seed"] = run.seed
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=list).encode()).hexdigest()[:16]


def read(file: Path) -> list[dict[str, str]]:
    """The rows. Raises UserError if the file has other columns."""
    if not file.is_file():
        return []
    columns, rows = read_table(file)
    if columns != COLUMNS:
        raise UserError(f"--rows {file}: expected the columns {', '.join(COLUMNS)}; choose another file")
    return rows


def append(file: Path, run: Planned, result: Result) -> None:
    """Append the row of a finished run; other processes may append at the same time."""
    make_folder(file.parent)
    with lock(file.parent, f".{file.name}.lock", wait=True), file.open("a", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, COLUMNS, lineterminator="\n")
        if not opened.tell():
            writer.writeheader()
        elif not file.read_bytes().endswith(b"\n"):  # a row that was cut short
            opened.write("\n")
        writer.writerow(_row(run, result))


def _row(run: Planned, result: Result) -> dict[str, Any]:
    about, results = result.about, result.results
    row: dict[str, Any] = {"study": run.study, "regime": run.variant.regime, "arm": run.variant.arm}
    row |= {"seed": run.seed, "epoch": results["epoch"]}
    for split in ("validation", "test"):
        figures = results[split]
        row[f"{split}_samples"] = figures.get("samples", "")
        row |= {f"{split}_{metric}": _figure(figures.get(metric)) for metric in METRICS}
    started = about.get("started", {})
    measured = {name: about["settings"]["speed"][name] for name in run.open_speed()}
    return row | {
        "digest": digest(run),
        "train_fingerprint": result.fingerprints.get("train", ""),
        "minutes": f"{result.seconds / 60:.2f}",
        "machine": machine(about["settings"]["run"]["device"]),
        "commit": started.get("commit", ""),
        "date": started.get("date", ""),
        "command": command({**run.given, **measured}),
    }


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def command(given: Mapping[str, Any]) -> str:
    """The command that trains this run alone. --data is given as the last part of its path."""
    words = ["python", "-m", "train"]
    for name, value in given.items():
        if name in FREE - {"data", "recipe"}:
            continue
        value = Path(value).name if name == "data" else value
        if isinstance(value, bool):
            words.append(flag(name) if value else flag("no_" + name))
        else:
            words += [flag(name), format_value(value)]
    return shlex.join(words)


def machine(device: str) -> str:
    """The number and name of the GPUs, or of the CPU's cores."""
    if device == "cuda":
        import torch

        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{os.cpu_count()} x {model}"
