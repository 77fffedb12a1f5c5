"""The pictures of the benchmarks, from their rows: what `python -m bench report` puts beside its tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import rows as results
from bench.rivals import CONTENDERS, OURS, ours_on
from train import palette

OVERVIEW = {"reference": "reference, n x n", "supcon": "SupCon", "multi-similarity": "Multi-Similarity"}
WALL = "Cross: the next larger size exceeds the memory or the time limit."
RIVAL = "#8a8a8a"


def draw(folder: Path) -> list[Path]:
    """Draw what there are rows for, CPUs and GPUs apart, the newest device of each. Returns the files written."""
    import matplotlib

    matplotlib.use("Agg")
    written = []
    for gpu, suffix in ((False, ""), (True, "-gpu")):
        if rows := results.select("loss.csv", ("n",), gpu):
            newest_device = [row for row in rows if row["device"] == rows[-1]["device"]]
            newest = list({(row["contender"], row["n"]): row for row in newest_device}.values())
            for name, picture in (("time-over-n", overview), ("benchmark-loss", loss)):
                written.append(folder / f"{name}{suffix}.png")
                with matplotlib.rc_context(palette.STYLE):
                    picture(newest, written[-1])
    return written


def curve(rows: results.Rows, name: str, column: str = "seconds") -> list[tuple[int, float]]:
    """(n, figure) of a contender, by n."""
    return sorted((int(row["n"]), float(row[column])) for row in rows if row["contender"] == name and row[column])


def has_wall(rows: results.Rows, name: str) -> bool:
    return any(row["note"] for row in rows if row["contender"] == name)


def log_axes(axes: Any, y_label: str, show: Callable[[float], str]) -> None:
    axes.set(xscale="log", yscale="log", xlabel="batch size n", ylabel=y_label)
    axes.xaxis.set_major_formatter(lambda n, _: f"{n:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: show(value))
    axes.grid()
    axes.spines[["top", "right"]].set_visible(False)


def show_seconds(value: float) -> str:
    return f"{value:g} s" if value > 0.999 else f"{1e3 * value:g} ms" if value > 0.999e-3 else f"{1e6 * value:g} µs"


def overview(rows: results.Rows, path: Path) -> None:
    """Time over n for the README: a strong line for this package, gray lines for others, each labelled at its end."""
    from matplotlib.figure import Figure

    names = {row["contender"] for row in rows}
    kind = "cuda" if rows[-1]["driver"] else "cpu"
    own = next((name for name in (*ours_on(kind), *OURS) if name in names), "")
    figure = Figure(figsize=(8.2, 4.1), layout="constrained")
    axes = figure.subplots()
    ends = []
    for name, label in ((own, "adcorre"), *OVERVIEW.items()):
        if not (points := curve(rows, name)):
            continue
        style: dict[str, Any] = {
            "color": palette.COLORS[2] if name == own else RIVAL,
            "lw": 3 if name == own else 1.4,
        }
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, zorder=3 if name == own else 2, **style)
        if has_wall(rows, name):
            axes.plot(*points[-1], marker="X", markersize=11, color=style["color"])
        ends.append((*points[-1], label, style["color"], "bold" if name == own else "normal"))
    log_axes(axes, "time, forward + backward", show_seconds)
    low, high = axes.get_ylim()
    axes.set_ylim(low, 2 * high)
    gap, last = (2 * high / low) ** 0.065, (0, 0.0)
    for n, seconds, label, color, weight in sorted(ends):
        height = max(seconds, last[1] * gap) if n == last[0] else seconds  # no label on top of another
        offset: Any = {"xytext": (9, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(label, (n, height), color=color, weight=weight, fontsize=11, annotation_clip=False, **offset)
        last = n, height
    axes.set_title(f"Time of the loss over the batch size ({results.processor_and_threads(rows[-1])})", loc="left")
    if any(has_wall(rows, name) for name in (own, *OVERVIEW)):
        figure.supxlabel(WALL, fontsize=9)
    figure.savefig(path)


def loss(rows: results.Rows, path: Path) -> None:
    """Time over n of every contender, and its share of a copy's bandwidth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = [name for name in CONTENDERS if any(row["contender"] == name for row in rows)]
    for index, name in enumerate(names):
        style: dict[str, Any] = {"color": palette.color(index), "linestyle": palette.dash(index), "marker": "."}
        if points := curve(rows, name):
            left.plot(*zip(*points, strict=True), label=name, lw=2.5 if name in OURS else 1.5, **style)
            if has_wall(rows, name):
                left.plot(*points[-1], marker="X", markersize=10, color=style["color"])
        if shares := curve(rows, name, "copy_share"):
            right.plot(*zip(*((n, 100 * share) for n, share in shares), strict=True), **style)
    right.axhline(100, color=palette.TEXT, linewidth=1)
    log_axes(left, "time, forward + backward", show_seconds)
    log_axes(right, "share of a copy's bandwidth", "{:g} %".format)
    left.set_title("Time")
    right.set_title("Bandwidth, for the minimum traffic")
    walls = any(has_wall(rows, name) for name in names)
    figure.legend(loc="outside lower center", ncols=4, title=WALL if walls else None)
    figure.suptitle(f"The loss over the batch size ({results.processor_and_threads(rows[-1])})")
    figure.savefig(path)
