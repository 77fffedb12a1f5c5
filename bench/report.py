"""`python -m bench report`: the rows of bench/results in README.md and docs/benchmarks.md, and as pictures.

Tables and sentences stand between a line `<!-- bench: NAME -->` and a line `<!-- /bench -->`; what is between them is
written anew, from the newest row of each case. With --check nothing is written: exit status 1 if a text would change.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

from bench import measure
from bench.claims import claims
from bench.pictures import draw
from bench.rivals import CONTENDERS, OURS
from train.entry import SuggestingParser

TEXTS = (measure.ROOT / "README.md", measure.ROOT / "docs" / "benchmarks.md")
PICTURES = measure.ROOT / "docs"
Rows = measure.Rows


def seconds(text: str) -> str:
    value = float(text)
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def times(text: str) -> str:
    value = float(text)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def number(text: str, digits: int = 2) -> str:
    return f"{float(text):,.{digits}f}" if text else ""


def percent(text: str, digits: int = 1) -> str:
    return f"{100 * float(text):.{digits}f} %" if text else ""


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def conditions(rows: Rows) -> str:
    """Where and when rows were measured, as a sentence."""
    last = max(rows, key=lambda row: row["date"])
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    where = f"driver {last['driver']}" if last["driver"] else f"{last['threads']} threads"
    versions = f"PyTorch {last['torch']}, Triton {last['triton']}"
    walls = [f"`{row['contender']}` at n = {int(row['n']):,} {row['note']}" for row in rows if row["note"]]
    said = f" Walls: {'; '.join(walls)}." if walls else ""
    return f"{last['device']}, {where}, {versions}, commit {commits}, {last['date'][:10]}.{said}"


def loss_lines(rows: Rows) -> tuple[list[str], list[list[str]]]:
    sizes = sorted({int(row["n"]) for row in rows})
    by = {(row["contender"], int(row["n"])): row for row in rows}
    lines = []
    for name in [name for name in CONTENDERS if any(row["contender"] == name for row in rows)]:
        line = [f"`{name}`"]
        wall = False
        for n in sizes:
            row = by.get((name, n))
            wall = wall or (row is not None and bool(row["note"]))
            if row is None or wall:
                line.append("wall" if wall else "")
                continue
            slower = f" ({times(row['times_slower'])}x)" if row["times_slower"] else ""
            line.append(seconds(row["seconds"]) + slower)
        lines.append(line)
    return ["", *(f"n = {n:,}" for n in sizes)], lines


def traffic_lines(rows: Rows) -> tuple[list[str], list[list[str]]]:
    """The columns of the loss table that have no room beside the times, for ours."""
    lines = [
        [
            f"`{row['contender']}`", f"{int(row['n']):,}", seconds(row["forward"]), seconds(row["backward"]),
            number(row["gb_per_s"]), percent(row["copy_share"]), row["launches"], row["peak_extra_mib"], row["joules"],
        ]
        for row in rows if row["contender"] in OURS and row["seconds"]
    ]  # fmt: skip
    head = [
        "",
        "n",
        "forward",
        "backward",
        "GB/s of the least traffic",
        "of a copy",
        "launches",
        "MiB more",
        "J a call",
    ]
    return head, lines


def axes_lines(rows: Rows) -> tuple[list[str], list[list[str]]]:
    lines = []
    for row in rows:
        shape = [f"`{row['contender']}`", row["k"], row["d"], row["classes"], row["dtype"]]
        figures = ["wall"] if row["note"] else [seconds(row["seconds"]), number(row["gb_per_s"]), row["peak_extra_mib"]]
        lines.append(shape + figures + [""] * (3 - len(figures)))
    return ["", "k", "d", "C", "dtype", "time", "GB/s of the least traffic", "MiB more"], lines


def step_lines(rows: Rows) -> tuple[list[str], list[list[str]]]:
    lines = [
        [
            row["part"], row["image_size"], row["batch"], row["contender"], row["images_per_second"],
            f"{float(row['ratio']):.2f} x {row['against']}", percent(row["loss_share"], 2), row["peak_extra_mib"],
        ]
        for row in rows
    ]  # fmt: skip
    return ["part", "px", "batch", "step", "images/s", "speed", "the loss beyond CE", "MiB"], lines


def scale_lines(rows: Rows) -> tuple[list[str], list[list[str]]]:
    lines = []
    for row in rows:
        figures = [row["microseconds_per_sample"], row["slope"], row["peak_extra_mib"], row["bytes_on_the_wire"]]
        grown = [f"{int(row['n']):,}", row["classes"], row["virtual"], row["ranks"]]
        lines.append([row["part"], *grown, seconds(row["seconds"]), *figures])
    return ["grows", "n", "C", "b", "ranks", "time", "µs a sample", "slope", "MiB more", "bytes all-reduced"], lines


CASE = ("contender", "n", "k", "d", "classes", "dtype")
Lines = Callable[[Rows], tuple[list[str], list[list[str]]]]
TABLES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...], Lines]] = {
    "loss": ("loss.csv", ("n",), CASE, loss_lines),
    "traffic": ("loss.csv", ("n",), CASE, traffic_lines),
    "axes": ("loss.csv", ("k", "d", "classes", "dtype"), CASE, axes_lines),
    "step": ("step.csv", ("loss", "levers"), ("contender", "image_size", "batch"), step_lines),
    "scale": ("scale.csv", ("n", "classes", "virtual", "ranks"), ("n", "classes", "virtual", "ranks"), scale_lines),
}
NAMES = (*TABLES, "claims")


def written(name: str) -> str:
    """What stands at a name of NAMES; `NAME-gpu` is the same of GPUs. A table for each device that has rows."""
    base, gpu = name.removesuffix("-gpu"), name.endswith("-gpu")
    if base == "claims":
        return claims(gpu)
    file, parts, key, lines = TABLES[base]
    found = measure.newest(file, parts, gpu, key)
    pieces = [f"{table(*lines(rows))}\n\n{conditions(rows)}" for rows in found.values()]
    return "\n\n".join(pieces) or f"`{base}`: not measured yet."


def filled(text: str) -> str:
    """A text with its tables written anew. ValueError for a name that there is no table of."""

    def anew(found: re.Match[str]) -> str:
        if (name := found[1]).removesuffix("-gpu") not in NAMES:
            raise ValueError(f"<!-- bench: {name} -->: expected one of {', '.join(NAMES)}, or with -gpu behind it")
        return f"<!-- bench: {name} -->\n{written(name)}\n<!-- /bench -->"

    return re.sub(r"(?s)<!-- bench: ([\w-]+) -->.*?<!-- /bench -->", anew, text)


def main(argv: list[str] | None = None) -> int:
    parser = SuggestingParser(
        prog="python -m bench report", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; tell whether a text is out of date")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="folder of the pictures")
    options = parser.parse_args(argv)
    if not options.check and importlib.util.find_spec("matplotlib") is None:
        parser.error("matplotlib is not installed: it draws the pictures; --check does without")
    stale = []
    for path in TEXTS:
        text = path.read_text() if path.exists() else ""
        if filled(text) != text:
            stale.append(path)
            if not options.check:
                path.write_text(filled(text))
    if options.check:
        print("\n".join(f"{path}: its tables are not those of the rows" for path in stale) or "up to date")
        return 1 if stale else 0
    for path in [*stale, *draw(options.pictures)]:
        print(f"written: {path}")
    return 0
