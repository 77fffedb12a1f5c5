"""Pictures of a run and of its model, as PNG files or as inline SVG for the report."""

import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from train import palette
from train.bars import shorten
from train.fonts import use_fonts_for

Points = tuple[str, NDArray[np.float64], NDArray[np.int64]]  # title, places (n, 2), labels (n,)
LONGEST = 24  # letters of a name in a picture
VARIABLES = {hex: f"var(--c{index})" for index, hex in enumerate(palette.COLORS)}
VARIABLES |= {palette.TEXT: "var(--dim)", palette.GRID: "var(--grid)"}


class Line(NamedTuple):
    name: str
    x: Sequence[float]
    y: Sequence[float]


@matplotlib.rc_context(palette.STYLE)
def lines_svg(title: str, series: Sequence[Line], x_label: str) -> str:
    """Inline SVG of lines with a legend; "" if no point is finite."""
    finite = []
    for name, xs, ys in series:
        points = [(x, y) for x, y in zip(xs, ys, strict=True) if np.isfinite(x) and np.isfinite(y)]
        if points:
            finite.append(Line(name, *zip(*points, strict=True)))
    if not finite:
        return ""
    use_fonts_for(line.name for line in finite)
    names = [shorten(line.name, LONGEST) for line in finite]
    columns = max(1, min(4, 60 // (max(map(len, names)) + 9)))
    figure = Figure(figsize=(4.6, 2.9 + 0.2 * max(0, len(names) / columns - 3)), layout="constrained")
    axes = figure.subplots()
    for index, (name, (_, x, y)) in enumerate(zip(names, finite, strict=True)):
        style: dict[str, Any] = {"marker": "o"} if len(x) == 1 else {"linestyle": palette.dash(index)}
        axes.plot(x, y, label=name, color=palette.color(index), **style)
    low, high = min(min(line.y) for line in finite), max(max(line.y) for line in finite)
    if high - low < 0.02 * max(abs(low), abs(high), 1e-9):  # nearly constant
        margin = abs(low) * 0.1 or 1.0
        axes.set_ylim(low - margin, high + margin)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(x_label)
    axes.grid(axis="y")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    figure.legend(loc="outside lower left", ncols=columns)
    values = "; ".join(f"{name} from {y[0]:.3g} to {y[-1]:.3g}, minimum {min(y):.3g}" for name, _, y in finite)
    return _svg(figure, f"{title}. {values}.")


def tsne(embeddings: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    """(n, k, d) -> (n, 2): t-SNE of the concatenated embedding vectors, from a PCA start."""
    from sklearn.manifold import TSNE

    flat = embeddings.reshape(len(embeddings), -1)
    perplexity = min(30.0, (len(flat) - 1) / 3)
    points = TSNE(2, perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed).fit_transform(flat)
    return np.asarray(points, dtype=np.float64)


def _tsne_figure(every: Sequence[Points], class_names: Sequence[str]) -> Figure:
    """Side by side. The legend has the first one's counts. Axes are scaled separately."""
    use_fonts_for(class_names)
    class_names = [shorten(name, LONGEST) for name in class_names]
    columns = max(1, min(4 * len(every), 72 * len(every) // (max(map(len, class_names)) + 12)))
    height = 6.4 + 0.2 * max(0, len(class_names) / columns - 3)
    figure = Figure(figsize=(5.8 * len(every), height), layout="constrained")
    for place, (axes, (title, points, labels)) in enumerate(
        zip(figure.subplots(1, len(every), squeeze=False)[0], every, strict=True)
    ):
        for index, name in enumerate(class_names):
            x, y = points[labels == index].T
            style: dict[str, Any] = {"marker": palette.marker(index), "color": palette.color(index)}
            style |= {"label": f"{name} ({len(x)})"} if not place else {}
            axes.scatter(x, y, s=26 if len(points) < 600 else 12, lw=0, **style)
        axes.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2", box_aspect=1, title=title)
        axes.margins(0.03)
    figure.legend(loc="outside lower center", ncols=columns, markerscale=1.5)
    return figure


@matplotlib.rc_context(palette.STYLE)
def draw_tsne(path: Path, every: Sequence[Points], class_names: Sequence[str]) -> None:
    """t-SNE of one model, or of several side by side."""
    _tsne_figure(every, class_names).savefig(path)


@matplotlib.rc_context(palette.STYLE)
def draw_lines(path: Path, runs: Mapping[str, Mapping[str, Sequence[Line]]], x_label: str) -> None:
    """A row of panels for each run, by name, the panels by title; a panel's values have one scale over the runs."""
    titles = list(dict.fromkeys(title for panels in runs.values() for title in panels))
    figure = Figure(figsize=(3.6 * len(titles), 0.6 + 2.4 * len(runs)), layout="constrained")
    every = figure.subplots(len(runs), len(titles), squeeze=False, sharex=True, sharey="col")
    for axes, title in zip(every[0], titles, strict=True):
        axes.set_title(title)
    for row, (name, panels) in zip(every, runs.items(), strict=True):
        row[0].set_ylabel(name)
        for axes, title in zip(row, titles, strict=True):
            for index, line in enumerate(panels.get(title, ())):
                axes.plot(line.x, line.y, label=line.name, color=palette.color(index), linestyle=palette.dash(index))
            axes.grid(axis="y")
            if panels.get(title):
                axes.legend(fontsize=8)
    for axes in every[-1]:
        axes.set_xlabel(x_label)
    figure.savefig(path)


@matplotlib.rc_context(palette.STYLE)
def tsne_svg(points: NDArray[np.float64], labels: NDArray[np.int64], class_names: Sequence[str]) -> str:
    counts = ", ".join(f"{(labels == index).sum()} of {name}" for index, name in enumerate(class_names))
    return _svg(_tsne_figure([("", points, labels)], class_names), f"t-SNE of the embeddings. Points: {counts}.")


@matplotlib.rc_context(palette.STYLE)
def draw_confusion(path: Path, confusion: NDArray[np.int64], class_names: Sequence[str], title: str) -> None:
    """The confusion matrix (true, predicted): the share of each true class, with the counts below."""
    use_fonts_for(class_names)
    class_names = [shorten(name, LONGEST) for name in class_names]
    totals = confusion.sum(axis=1, keepdims=True)
    share = np.divide(confusion, totals, out=np.zeros(confusion.shape), where=totals > 0)
    size = 2.0 + 0.8 * len(class_names)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap=LinearSegmentedColormap.from_list("shares", palette.SHADES), vmin=0, vmax=1)
    for row, column in np.ndindex(*share.shape):
        text = f"{100 * share[row, column]:.1f}\n{confusion[row, column]}" if totals[row] else "–"
        color = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(len(class_names)), class_names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(class_names)), class_names)
    axes.set(xlabel="predicted", ylabel="true", title=f"{_capitalized(title)}\n% of the true class, and images")
    figure.savefig(path)


@matplotlib.rc_context(palette.STYLE)
def draw_correlations(
    path: Path,
    matrices: Sequence[tuple[str, NDArray[np.float64]]],
    names: Sequence[str],
    title: str,
    axis: str = "class",
) -> None:
    """Square matrices of correlations side by side, each (title, matrix), on one scale from -1 to 1.

    axis: the label of both axes.
    """
    use_fonts_for(names)
    names = [shorten(name, LONGEST) for name in names]
    size = 1.6 + 0.6 * len(names)
    figure = Figure(figsize=(size * len(matrices) + 0.9, size + 0.5), layout="constrained")
    every = figure.subplots(1, len(matrices), squeeze=False)[0]
    upright = max(map(len, names)) <= 3
    for axes, (heading, matrix) in zip(every, matrices, strict=True):
        image = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
        for (row, column), value in np.ndenumerate(matrix):
            text, color = "–" if np.isnan(value) else f"{value:z.2f}", "white" if abs(value) > 0.6 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=9, color=color)
        axes.set_xticks(
            range(len(names)),
            names,
            rotation=0 if upright else 45,
            ha="center" if upright else "right",
            rotation_mode="anchor",
        )
        axes.set_yticks(range(len(names)), names)
        axes.set(title=_capitalized(heading), xlabel=axis, ylabel=axis if axes is every[0] else "")
    figure.colorbar(image, ax=every.tolist(), shrink=0.7, label="correlation")
    figure.suptitle(_capitalized(title))
    figure.savefig(path)


@matplotlib.rc_context(palette.STYLE)
def draw_samples(
    path: Path,
    image: Callable[[int], Image.Image],
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    class_names: Sequence[str],
    each: int,
    seed: int,
) -> None:
    """`each` random samples of each class predicted right (left), and of those predicted wrong (right)."""
    use_fonts_for(class_names)
    class_names = [shorten(name, LONGEST) for name in class_names]
    predicted = probabilities.argmax(1)
    rng = np.random.default_rng(seed)
    present = [index for index in range(len(class_names)) if (labels == index).any()]
    figure = Figure(figsize=(2.7 * each + 1.2, 1.6 * len(present) + 0.4), layout="constrained")
    sides: Any = figure.subfigures(1, 2, width_ratios=[1.35 * each + 1.0, 1.35 * each + 0.2])
    grids = [side.subplots(len(present), each, squeeze=False) for side in sides]
    sides[0].suptitle("Predicted right")
    sides[1].suptitle("Predicted wrong")
    for row, label in enumerate(present):
        grids[0][row, 0].set_ylabel(class_names[label], rotation=0, ha="right", va="center", labelpad=8)
        choices = (predicted == label, palette.RIGHT), (predicted != label, palette.WRONG)
        for cells, (choice, color) in zip((grid[row] for grid in grids), choices, strict=True):
            members = rng.permutation(np.flatnonzero((labels == label) & choice))[:each]
            for axes in cells:
                axes.set(xticks=[], yticks=[], box_aspect=1, title=" ")  # a title, so that both sides have equal rows
                axes.spines[:].set_visible(False)
            if not len(members):
                cells[0].text(0.5, 0.5, "none", transform=cells[0].transAxes, ha="center", va="center", color=color)
            for axes, index in zip(cells, members, strict=False):
                axes.imshow(image(int(index)))
                guess = predicted[index]
                name = shorten(class_names[guess], 12)
                axes.set_title(f"{name} {100 * probabilities[index, guess]:.0f} %", fontsize=9, color=color, pad=3)
    figure.savefig(path)


def _svg(figure: Figure, label: str) -> str:
    """The figure as inline SVG. Its colours are the page's CSS variables, so it follows light and dark mode."""
    file = StringIO()
    figure.savefig(file, format="svg", transparent=True)
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"(?<=: )#[0-9a-f]{6}", lambda match: VARIABLES.get(match[0], match[0]), text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]
