"""The pictures of the benchmarks, drawn from their rows: what `python -m bench report` puts beside its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from bench import rows as results
from bench.rivals import CONTENDERS
from train import palette


def draw(folder: Path) -> list[Path]:
    """Draws what there are rows for, CPUs and GPUs apart, the newest device of each; the files written."""
    written = []
    for gpu, suffix in ((False, ""), (True, "-gpu")):
        rows = [
            row
            for row in results.read(results.RESULTS / "loss.csv")
            if bool(row["driver"]) == gpu and row["part"] == "n"
        ]
        rows = [
            row for row in rows if row["device"] == rows[-1]["device"] and not row["note"].startswith(results.RETRIED)
        ]
        if rows:
            written.append(folder / f"benchmark-loss{suffix}.png")
            loss(list({(row["contender"], row["n"]): row for row in rows}.values()), written[-1])
    return written


@matplotlib.rc_context(palette.STYLE | {"text.parse_math": True})  # for powers of ten
def loss(rows: results.Rows, path: Path) -> None:
    """Time over n, each contender up to its wall; and the share of a copy's bandwidth."""
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    left, middle = figure.subplots(1, 2)
    names = [name for name in CONTENDERS if any(row["contender"] == name for row in rows)]
    for index, name in enumerate(names):
        own = [row for row in rows if row["contender"] == name]
        timed = sorted((int(row["n"]), float(row["seconds"])) for row in own if row["seconds"])
        style: dict[str, Any] = {"color": palette.color(index), "linestyle": palette.dash(index), "marker": "."}
        if timed:
            left.plot(*zip(*timed, strict=True), label=name, **style)
            if any(row["note"] for row in own):
                left.plot(*timed[-1], marker="X", markersize=10, color=style["color"])
        shares = sorted((int(row["n"]), 100 * float(row["copy_share"])) for row in own if row["copy_share"])
        if shares:
            middle.plot(*zip(*shares, strict=True), **style)
    middle.axhline(100, color="black", linewidth=1)
    left.set(xlabel="n", ylabel="seconds, forward + backward")
    left.set_title("a cross: the next size meets\nthe limit of memory or time")
    left.legend(fontsize="small")
    middle.set(xlabel="n", ylabel="% of a copy's bandwidth, on 3 n k d elements")
    middle.set_title("100 %: x read twice and dL/dx written once,\nas fast as a copy")
    for axes in (left, middle):
        axes.set(xscale="log", yscale="log")
        axes.grid()
    figure.suptitle(rows[-1]["device"])
    figure.savefig(path)
