"""The pictures of the benchmarks, drawn from their rows: what `python -m bench report` puts beside its tables."""

from __future__ import annotations

import statistics
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
            ("step", step, ("loss", "levers"), ("contender", "image_size", "batch")),
        ):
            found = measure.newest(f"{name}.csv", parts, gpu, key)
            if rows := [row for row in max(found.values(), key=_date, default=[]) if row["seconds"] or row["note"]]:
                done.append(folder / f"benchmark-{name}{suffix}.png")
                picture(rows, done[-1])
    return done


def _date(rows: measure.Rows) -> str:
    return max(row["date"] for row in rows)


def loss(rows: measure.Rows, path: Path) -> None:
    """Time over n, each contender up to its wall; below the roof of memory bandwidth, over n and for every shape."""
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(18, 5.5), layout="constrained")
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
            middle.plot(*zip(*shares, strict=True), **style)
    middle.axhline(100, color="black", linewidth=1)
    left.set(xlabel="n", ylabel="seconds, forward + backward")
    left.set_title("a cross: the next size meets the limit of memory or time")
    left.legend(fontsize="small")
    middle.set(xlabel="n", ylabel="% of a copy's bandwidth, on 3 n k d elements")
    middle.set_title("100 %: x read twice and dL/dx written once, as fast as a copy")
    _roofline(rows, right)
    for axes in (left, middle, right):
        axes.set(xscale="log", yscale="log")
        axes.grid(alpha=0.3)
    figure.suptitle(rows[-1]["device"])
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _roofline(rows: measure.Rows, axes: Any) -> None:
    """Of the linear backends: 6 k + 13 operations an element of x, most of them in three products of k x k matrices."""
    bandwidths, reached = [], []
    for part in dict.fromkeys(row["part"] for row in rows):
        points = []
        for row in rows:
            if row["part"] == part and row["contender"] in ("triton", "torch") and row["copy_share"]:
                traffic = 3 * (4 if row["dtype"] == "float32" else 2)
                intensity = (6 * int(row["k"]) + 13) / traffic
                points.append((intensity, intensity * float(row["gb_per_s"])))
                if traffic * int(row["n"]) * int(row["k"]) * int(row["d"]) > 1 << 28:  # beyond the caches
                    bandwidths.append(float(row["gb_per_s"]) / float(row["copy_share"]))
        if points:
            name = {"classes": "C"}.get(part, part)
            axes.plot(*zip(*points, strict=True), linestyle="", marker="o", alpha=0.6, label=f"{name} varied")
            reached += [intensity for intensity, _ in points]
    if bandwidths:
        ends = [min(reached) / 1.5, max(reached) * 1.5]
        bandwidth = statistics.median(bandwidths)
        axes.plot(ends, [bandwidth * end for end in ends], color="black", label=f"a copy, {bandwidth:.3g} GB/s")
        axes.legend(fontsize="small")
    axes.set(xlabel="operations a byte of the least traffic", ylabel="Gflop/s")
    axes.set_title("roofline of triton and torch")


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
        halted = [row for row in halted if row["batch"] == halted[0]["batch"]]
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
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(PHASES))
    figure.suptitle(rows[-1]["device"])
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
