"""Pictures of what a model does: t-SNE (Fig. 5), correlations, samples right and wrong (Fig. 7)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

matplotlib.use("agg")
from matplotlib import pyplot

# Told apart by the colour-blind too (Okabe and Ito); beyond eight classes the marker changes.
COLORS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#56B4E9")
MARKERS = "o^sDvP"


def tsne(embeddings: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    """(n, k, d) -> (n, 2): t-SNE of the concatenated embedding vectors, from a PCA start."""
    from sklearn.manifold import TSNE

    flat = embeddings.reshape(len(embeddings), -1)
    perplexity = min(30.0, (len(flat) - 1) / 3)
    found = TSNE(2, perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed).fit_transform(flat)
    return np.asarray(found, dtype=np.float64)


def draw_tsne(
    path: Path, points: NDArray[np.float64], labels: NDArray[np.int64], class_names: Sequence[str], title: str
) -> None:
    figure, axes = pyplot.subplots(figsize=(7.5, 6), layout="constrained")
    for index, name in enumerate(class_names):
        mine = points[labels == index]
        marker = MARKERS[index // len(COLORS) % len(MARKERS)]
        color = COLORS[index % len(COLORS)]
        axes.scatter(mine[:, 0], mine[:, 1], s=9, marker=marker, color=color, label=f"{name} ({len(mine)})", lw=0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", "datalim")
    figure.legend(loc="outside right center", markerscale=2.5, frameon=False)
    axes.set_title(title, fontsize=10)
    _save(figure, path)


def draw_correlations(
    path: Path, matrices: Sequence[tuple[str, NDArray[np.float64]]], names: Sequence[str], title: str
) -> None:
    """Square matrices of correlations side by side, each (title, matrix), on one scale from -1 to 1."""
    size = 1.6 + 0.55 * len(names)
    figure, every = pyplot.subplots(
        1, len(matrices), figsize=(size * len(matrices) + 0.9, size + 0.6), squeeze=False, layout="constrained"
    )
    for axes, (heading, matrix) in zip(every[0], matrices, strict=True):
        drawn = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
        for row, column in np.ndindex(*matrix.shape):
            value = matrix[row, column]
            text = "–" if np.isnan(value) else f"{value:.2f}"
            axes.text(
                column, row, text, ha="center", va="center", fontsize=7, color="white" if abs(value) > 0.6 else "black"
            )
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.set_title(heading, fontsize=9)
    figure.colorbar(drawn, ax=every[0].tolist(), shrink=0.7, label="correlation")
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def draw_samples(
    path: Path,
    image: Callable[[int], Image.Image],
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    class_names: Sequence[str],
    each: int,
    seed: int,
) -> None:
    """Of each class, `each` samples drawn from those predicted right (left) and from those predicted wrong (right)."""
    predicted = probabilities.argmax(1)
    rng = np.random.default_rng(seed)
    present = [index for index in range(len(class_names)) if (labels == index).any()]
    figure, cells = pyplot.subplots(
        len(present), 2 * each + 1, figsize=(1.25 * (2 * each + 1), 1.5 * len(present) + 0.5), squeeze=False
    )
    for row, label in zip(cells, present, strict=True):
        for axes in row:
            axes.axis("off")
        of_class = labels == label
        for start, choice, color in ((0, predicted == label, "#00694b"), (each + 1, predicted != label, "#b3261e")):
            members = rng.permutation(np.flatnonzero(of_class & choice))[:each]
            if not len(members):
                row[start].text(0.5, 0.5, "none", transform=row[start].transAxes, ha="center", fontsize=8, color=color)
            for axes, index in zip(row[start:], members, strict=False):
                axes.imshow(image(int(index)))
                guess = predicted[index]
                share = f"{100 * probabilities[index, guess]:.0f}%"
                axes.set_title(f"{class_names[guess]} {share}", fontsize=7, color=color, pad=2)
        row[0].text(-0.12, 0.5, class_names[label], transform=row[0].transAxes, ha="right", va="center", fontsize=9)
    left, right, top = 0.09, 0.99, 0.93
    for place, words in ((0.22, "predicted right"), (0.78, "predicted wrong, as")):
        figure.text(left + place * (right - left), 0.965, words, ha="center", fontsize=10)
    figure.subplots_adjust(left, 0.01, right, top, 0.08, 0.25)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
