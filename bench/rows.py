"""Rows of results: where they come from, the files that hold them, and one call of a command that appends to one."""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import re
import shlex
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import measure
from train.entry import ShowDefaults, SuggestingParser

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
RETRIED = ("failed", "not installed")  # how the notes begin of rows that do not count as done
RUN = ("commit", "device", "driver", "threads", "torch", "triton")  # what rows of one run have in common
ORIGIN = ("date", *RUN)
Row = Mapping[str, Any]
Rows = list[dict[str, str]]


def read(path: Path) -> Rows:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file, restval=""))


def select(file: str, parts: Sequence[str], gpu: bool) -> Rows:
    """The rows of a file that count, of GPUs (which have a driver) or of CPUs."""
    return [
        row
        for row in read(RESULTS / file)
        if row["part"] in parts and bool(row["driver"]) == gpu and not row.get("note", "").startswith(RETRIED)
    ]


def append(path: Path, fields: Sequence[str], rows: Iterable[Row]) -> None:
    """Append rows to a CSV file that begins with `fields`; refuse a file with other fields and leave it as it is.

    A file whose first line lacks the last of `fields` gets the longer first line. Its rows stay as they are.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        first, _, rest = path.read_text().partition("\n")
        header = next(csv.reader([first]), [])
        if header != list(fields[: len(header)]):
            raise SystemExit(f"{path}: its first line is {header}, expected {list(fields)}; name another file by --out")
        if len(header) < len(fields):
            path.write_text(",".join(fields) + "\n" + rest)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fields, restval="", extrasaction="ignore", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def origin(device: torch.device | str) -> dict[str, Any]:
    """What every row says about where it came from; its keys are ORIGIN."""
    try:
        import triton
    except ImportError:
        triton = None
    on_gpu, interpreted = torch.device(device).type == "cuda", os.environ.get("TRITON_INTERPRET") == "1"
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M"),
        "commit": _output("git", "describe", "--always", "--dirty") or "unknown",
        "device": torch.cuda.get_device_name(device) if on_gpu else "interpreter" if interpreted else processor(),
        "driver": (driver or "unknown") if on_gpu else "",  # an empty driver marks a row of a CPU
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": "" if triton is None else triton.__version__,
    }


def processor() -> str:
    """The CPU's name as its maker gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def processor_and_threads(row: Mapping[str, str]) -> str:
    """Where a row was measured: a GPU, or a CPU with its number of threads."""
    if row["driver"]:
        return row["device"]
    return f"{row['device']}, {row['threads']} thread{'' if row['threads'] == '1' else 's'}"


def _output(tool: str, *words: str) -> str:
    """What a tool prints; "" where it is not installed or fails."""
    if (path := shutil.which(tool)) is None:
        return ""
    return subprocess.run([path, *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def parser(
    command: str, description: str | None, results: Path | None = None, measures: bool = False
) -> argparse.ArgumentParser:
    """The parser of a command; of one that measures, with these options, and with `results`, those of a Session."""
    parser = SuggestingParser(
        prog=f"python -m bench {command}",
        description=description,
        formatter_class=ShowDefaults,
    )
    add = parser.add_argument
    if results is not None or measures:
        add(
            "--minutes", type=float, help="stop after this many minutes; rows measured so far remain; default: no limit"
        )
        add("--busy", action="store_true", help="measure although other processes use the CPU; default: stop")
        add("--device", default="cpu", help="cpu, cuda or cuda:N")
        add("--seed", type=int, default=0, help="seed of the inputs")
    if results is not None:
        add("--again", action="store_true", help="measure again what is in the file already; default: skip it")
        add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
        add("--out", type=Path, default=results, help="CSV file to which the rows are appended")
    return parser


def some_of(names: Iterable[str]) -> dict[str, Any]:
    """What `add_argument` needs for an option that takes some of these names."""
    return {"nargs": "+", "choices": names, "metavar": "NAME", "help": f"some of {shlex.join(names)}; default: all"}


class Session:
    """One call of a command that measures: its limits, its device, and the rows that its file has already.

    Rows of one commit, device and versions share a session id, over several calls, until one has --again.
    """

    def __init__(
        self, parser: argparse.ArgumentParser, options: argparse.Namespace, fields: Sequence[str], key: Sequence[str]
    ) -> None:
        """Check `options` and make its device the current one. `fields`: of the file; `key`: what tells cases apart."""
        if options.threads < 1 or (options.minutes is not None and not options.minutes > 0):
            parser.error("--threads: expected at least 1; --minutes: more than 0")
        self.device = check_device(parser, options.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        options.device = str(self.device)
        torch.set_num_threads(options.threads)
        self.options, self.fields, self.key = options, (*fields, "session"), (*RUN, *key)
        self.end = float("inf") if options.minutes is None else time.monotonic() + 60 * options.minutes
        self.status = 0
        self.origin = origin(self.device)
        stored = read(options.out)
        run = {name: str(self.origin[name]) for name in RUN}
        own = [row for row in stored if all(row.get(name, value) == value for name, value in run.items())]
        again = options.again or self.origin["commit"].endswith("-dirty")
        self.origin["session"] = (own[-1].get("session") if own and not again else "") or uuid.uuid4().hex[:8]
        done = [row for row in own if not (options.again or row.get("note", "").startswith(RETRIED))]
        self._done = {self._key(row) for row in done}

    def _key(self, case: Row) -> tuple[str, ...]:
        return tuple(str({**self.origin, **case}[name]) for name in self.key)

    def done(self, **case: Any) -> bool:
        return self._key(case) in self._done

    def left(self) -> float:
        """Seconds until the end of --minutes, not below 0; infinite without a limit."""
        return max(0.0, self.end - time.monotonic())

    def stops(self, before: str) -> bool:
        """Whether to measure no more: time is up, or the machine is busy. Says so, once."""
        reason = "" if self.left() else "time is up"
        if not reason and not self.options.busy:
            threads = self.options.threads if self.device.type == "cpu" else 1
            if reason := measure.busy(threads):
                reason, self.status = f"{reason}; --busy measures nevertheless", 2
        if reason:
            print(f"stopped before {before}: {reason}. The same command continues from there", flush=True)
        return bool(reason)

    def append(self, *rows: Row) -> None:
        """Print rows and append them to the file; one that says "failed" gives exit status 1."""
        append(self.options.out, self.fields, [{**self.origin, **row} for row in rows])
        for row in rows:
            print("  " + ", ".join(f"{name} {value}" for name, value in row.items() if value != ""), flush=True)
            if str(row.get("note", "")).startswith("failed"):
                self.status = 1


def check_device(parser: argparse.ArgumentParser, name: str) -> torch.device:
    """The device of --device; the parser's error for one that is neither a CPU nor a GPU of this machine."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        parser.error(f"--device: expected cpu, cuda or cuda:N, got {name!r}")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        parser.error(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device if device.type == "cpu" else torch.device("cuda", device.index or 0)


def beyond(figure: float, sign: str, limit: float) -> bool:
    """Whether a figure breaks its limit; sign: ">=" or "<="."""
    return figure < limit if sign == ">=" else figure > limit
