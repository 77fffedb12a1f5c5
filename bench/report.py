"""`python -m bench report`: the rows of bench/results as tables in README.md and docs/benchmarks.md, and as pictures.

Tables stand between a line `<!-- bench: NAME -->` and a line `<!-- /bench -->`; what is between them is written anew,
from the newest row of each case. With --check nothing is written: exit status 1 if a text would change.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from bench import measure
from bench.rivals import CONTENDERS

TEXTS = (measure.ROOT / "README.md", measure.ROOT / "docs" / "benchmarks.md")
PICTURES = measure.ROOT / "docs"
Rows = list[dict[str, str]]


def newest(file: str, part: str, device: str = "cpu", *, key: tuple[str, ...] = ("contender",)) -> Rows:
    """The last row of each case of a part, on CPUs or on GPUs, in the order in which cases first came."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for row in measure.read(measure.RESULTS / file):
        if row["part"] == part and (row["driver"] == "") == (device == "cpu"):
            found[tuple(row[name] for name in key)] = row
    return list(found.values())


def seconds(text: str) -> str:
    value = float(text)
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def number(text: str, digits: int = 2) -> str:
    return f"{float(text):,.{digits}f}" if text else ""


def table(head: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def conditions(rows: Rows) -> str:
    """Where and when rows were measured, as a sentence."""
    if not rows:
        return "Not measured yet."
    last = max(rows, key=lambda row: row["date"])
    threads = f", {last['threads']} threads" if not last["driver"] else f", driver {last['driver']}"
    return f"{last['device']}{threads}, PyTorch {last['torch']}, commit {last['commit']}, {last['date'][:10]}."


def loss_table() -> str:
    rows = newest("loss.csv", "n", key=("contender", "n"))
    sizes = sorted({int(row["n"]) for row in rows})
    by = {(row["contender"], int(row["n"])): row for row in rows}
    lines = []
    for name in [name for name in CONTENDERS if any(row["contender"] == name for row in rows)]:
        line = [f"`{name}`"]
        wall = False
        for n in sizes:
            row = by.get((name, n))
            if row is None:
                line.append("wall" if wall else "")
            elif row["note"]:
                wall = True
                line.append("wall")
            else:
                slower = f" ({float(row['times_slower']):.3g}x)" if row["times_slower"] else ""
                line.append(seconds(row["seconds"]) + slower)
        lines.append(line)
    head = ["", *(f"n = {n:,}" for n in sizes)]
    return f"{table(head, lines)}\n\n{conditions(rows)}".lstrip()


def axes_table() -> str:
    lines, rows = [], []
    for part in ("k", "d", "classes", "dtype"):
        for row in newest("loss.csv", part, key=("contender", "k", "d", "classes", "dtype")):
            rows.append(row)
            shape = [f"`{row['contender']}`", row["k"], row["d"], row["classes"], row["dtype"]]
            lines.append([*shape, seconds(row["seconds"]), number(row["gb_per_s"]), row["peak_extra_mib"]])
    head = ["", "k", "d", "C", "dtype", "time", "GB/s of the least traffic", "MiB more"]
    return f"{table(head, lines)}\n\n{conditions(rows)}".lstrip()


def step_table() -> str:
    rows = [row for part in ("loss", "levers") for row in newest("step.csv", part, key=("contender", "image_size"))]
    lines = [
        [
            row["part"], row["image_size"], row["contender"], row["images_per_second"],
            f"{float(row['ratio']):.2f} x {row['against']}",
            f"{100 * float(row['loss_share']):.2f} %" if row["loss_share"] else "", row["peak_extra_mib"],
        ]
        for row in rows
    ]  # fmt: skip
    head = ["part", "px", "step", "images/s", "speed", "share of FD + MD + ED", "MiB"]
    return f"{table(head, lines)}\n\n{conditions(rows)}".lstrip()


def scale_table() -> str:
    lines, rows = [], []
    for part in ("n", "virtual", "ranks"):
        for row in newest("scale.csv", part, key=("n", "virtual", "ranks")):
            rows.append(row)
            figures = [row["microseconds_per_sample"], row["slope"], row["peak_extra_mib"], row["bytes_on_the_wire"]]
            lines.append([part, f"{int(row['n']):,}", row["virtual"], row["ranks"], seconds(row["seconds"]), *figures])
    head = ["part", "n", "b", "ranks", "time", "µs a sample", "slope", "MiB more", "bytes all-reduced"]
    return f"{table(head, lines)}\n\n{conditions(rows)}".lstrip()


TABLES: dict[str, Callable[[], str]] = {
    "loss": loss_table,
    "axes": axes_table,
    "step": step_table,
    "scale": scale_table,
}


def filled(text: str) -> str:
    """A text with its tables written anew. ValueError for a name that there is no table of."""

    def anew(found: re.Match[str]) -> str:
        if (name := found[1]) not in TABLES:
            raise ValueError(f"<!-- bench: {name} -->: expected one of {', '.join(TABLES)}")
        return f"<!-- bench: {name} -->\n{TABLES[name]()}\n<!-- /bench -->"

    return re.sub(r"(?s)<!-- bench: (\w+) -->.*?<!-- /bench -->", anew, text)


def draw(folder: Path) -> None:
    """Time over n with the wall of each contender; share of a copy's bandwidth over n; the speed of each lever."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = newest("loss.csv", "n", key=("contender", "n"))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for index, name in enumerate(name for name in CONTENDERS if any(row["contender"] == name for row in rows)):
        own = [row for row in rows if row["contender"] == name]
        timed = sorted((int(row["n"]), float(row["seconds"])) for row in own if row["seconds"])
        style = {"color": f"C{index % 10}", "linestyle": "-" if index < 10 else "--", "marker": "."}
        if timed:
            left.plot(*zip(*timed, strict=True), label=name, **style)
            if any(row["note"] for row in own):
                left.plot(*timed[-1], marker="X", markersize=10, color=style["color"])
        shares = sorted((int(row["n"]), 100 * float(row["copy_share"])) for row in own if row["copy_share"])
        if shares:
            right.plot(*zip(*shares, strict=True), label=name, **style)
    for axes, label in ((left, "seconds, forward + backward"), (right, "% of a copy's bandwidth, on 3 n k d elements")):
        axes.set(xscale="log", yscale="log", xlabel="n", ylabel=label)
        axes.grid(alpha=0.3)
    left.set_title("a cross: the next size meets the limit of memory or time")
    right.set_title("100 %: the roof of memory bandwidth")
    left.legend(fontsize="small")
    figure.savefig(folder / "benchmark-loss.png", dpi=110)
    pyplot.close(figure)

    steps = newest("step.csv", "levers", key=("contender", "image_size"))
    if not steps:
        return
    sizes = sorted({int(row["image_size"]) for row in steps})
    figure, all_axes = pyplot.subplots(1, len(sizes), figsize=(5 * len(sizes), 4), layout="constrained", squeeze=False)
    for axes, size in zip(all_axes[0], sizes, strict=True):
        own = [row for row in steps if int(row["image_size"]) == size]
        axes.barh([row["contender"] for row in own], [float(row["images_per_second"]) for row in own], color="C0")
        axes.invert_yaxis()
        axes.set(title=f"{size} px", xlabel="images/s, a whole training step")
    figure.savefig(folder / "benchmark-step.png", dpi=110)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench report", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; tell whether a text is out of date")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="folder of the pictures")
    options = parser.parse_args(argv)
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
    draw(options.pictures)
    print("\n".join(f"written: {path}" for path in stale) or "tables were up to date")
    print(f"pictures in {options.pictures}")
    return 0
