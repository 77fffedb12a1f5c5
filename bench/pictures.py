"""The pictures of the benchmarks, drawn from their rows: what `python -m bench report` puts beside its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import measure
from bench.rivals import CONTENDERS

LOSS = ("contender", "n", "k", "d", "classes", "dtype")
PHASES = ("forward", "loss", "backward", "optimizer")


def draw(folder: Path) -> list[Path]:
    """Draws what there are rows for, CPUs and GPUs apart, the newest device of each; the files written."""
    import matplotlib

    matplotlib.use("Agg")
    done = []
    for gpu, suffix in ((False, ""), (True, "-gpu")):
        for name, picture, parts, key in (
            ("loss", loss, ("n", "k", "d", "classes", "dtype"), LOSS),
            ("step", step, ("loss", "levers"), ("contender", "image_size")),
        ):
            found = measure.newest(f"{name}.csv", parts, gpu, key)
            if rows := [row for row in max(found.values(), key=_date, default=[]) if row["seconds"] or row["note"]]:
                done.append(folder / f"benchmark-{name}{suffix}.png")
                picture(rows, done[-1])
    return done


def _date(rows: measure.Rows) -> str:
    return max(row["date"] for row in rows)


def loss(rows: measure.Rows, path: Path) -> None:
    """Time over n, each contender up to its wall; and how near to the roof of memory bandwidth each shape comes."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5.5), layout="constrained")
    over_n = [row for row in rows if row["part"] == "n"]
    names = [name for name in CONTENDERS if any(row["contender"] == name for row in over_n)]
    for index, name in enumerate(names):
        own = [row for row in over_n if row["contender"] == name]
        timed = sorted((int(row["n"]), float(row["seconds"])) for row in own if row["seconds"])
        style: dict[str, Any] = {"color": f"C{index % 10}", "linestyle": "-" if index < 10 else "--", "marker": "."}
        if timed:
            left.plot(*zip(*timed, strict=True), label=name, **style)
            if any(row["note"] for row in own):
                left.plot(*timed[-1], marker="X", markersize=10, color=style["color"])
        shares = sorted((int(row["n"]), 100 * float(row["copy_share"])) for row in own if row["copy_share"])
        if shares:
            right.plot(*zip(*shares, strict=True), **style)
    right.axhline(100, color="black", linewidth=1)
    for axes, label in ((left, "seconds, forward + backward"), (right, "% of a copy's bandwidth, on 3 n k d elements")):
        axes.set(xscale="log", yscale="log", xlabel="n", ylabel=label)
        axes.grid(alpha=0.3)
    left.set_title("a cross: the next size meets the limit of memory or time")
    right.set_title("100 %: the roof, x read twice and dL/dx written once")
    left.legend(fontsize="small")
    figure.suptitle(rows[-1]["device"])
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def step(rows: measure.Rows, path: Path) -> None:
    """Where the time of a step goes, and images per second with each lever."""
    from matplotlib import pyplot

    sizes = sorted({int(row["image_size"]) for row in rows})
    figure, grid = pyplot.subplots(
        2, len(sizes), figsize=(6.5 * len(sizes), 6.5), layout="constrained", squeeze=False, height_ratios=[1, 2]
    )
    for column, size in enumerate(sizes):
        own = [row for row in rows if int(row["image_size"]) == size and row["seconds"]]
        halted = [row for row in own if row["forward"]]
        left = [0.0] * len(halted)
        for phase in PHASES:
            widths = [1e3 * float(row[phase]) for row in halted]
            grid[0, column].barh([row["contender"] for row in halted], widths, left=left, label=phase)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        grid[0, column].set(title=f"{size} px", xlabel="ms, a whole training step with a halt after each phase")
        levers = [row for row in own if row["part"] == "levers"]
        speeds = [float(row["images_per_second"]) for row in levers]
        grid[1, column].barh([row["contender"] for row in levers], speeds, color="C0")
        grid[1, column].set(xlabel="images/s, each lever by itself, then together")
        for axes in grid[:, column]:
            axes.invert_yaxis()
    grid[0, 0].legend(fontsize="small")
    figure.suptitle(rows[-1]["device"])
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
