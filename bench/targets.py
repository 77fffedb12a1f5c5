"""Correlations of class means after minimizing the terms over free vectors, for each target.

`python -m bench targets` draws docs/targets.png: FD between classes with equal weights, and with the fixed unequal
weights of an attention map over FER-2013's class sizes.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from adcorre import adcorre_terms
from adcorre.checks import Target
from adcorre.reference import normalize
from bench import rows
from train import palette

NAMES = ("Neutral", "Happy", "Sad", "Surprise", "Fear", "Disgust", "Anger")
# A hundredth of FER-2013's training images per class, and w = 1 - recall of a network that finds fear and disgust hard.
COUNTS = (50, 72, 48, 32, 41, 4, 40)
ATTENTION = (0.2, 0.1, 0.45, 0.15, 0.5, 0.5, 0.35)


class Optimised(NamedTuple):
    """Free vectors after optimisation.

    loss: the weighted sum of terms that was left.
    directions (k, C, C): correlations of the classes' mean directions, which FD sees.
    means (k, C, C): correlations of the class means of x, which MD sees.
    vectors (n, k, k): correlations of each sample's vectors, which ED sees.
    resultant: the largest |sum_a n_a m_a| / n over k, m_a the mean direction of class a: what FD at -1 asks to vanish.
    """

    loss: float
    directions: Tensor
    means: Tensor
    vectors: Tensor
    resultant: float


def optimise(
    counts: tuple[int, ...],
    attention: tuple[float, ...],
    *,
    weights: tuple[float, float, float] = (1.0, 0.0, 0.0),
    k: int = 1,
    d: int = 16,
    steps: int = 400,
    seed: int = 0,
    device: str = "cpu",
    **term_targets: Target,
) -> Optimised:
    """Adam on free vectors (n, k, d), n = sum(counts), under `weights` of (FD, MD, ED) alone.

    term_targets: between_target, mean_target and embedding_target of `adcorre_terms`.
    """
    rng = torch.Generator().manual_seed(seed)
    targets = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    targets = targets.to(device)
    x = torch.randn(len(targets), k, d, generator=rng, dtype=torch.float64).to(device).requires_grad_()
    w = torch.tensor(attention, dtype=torch.float64, device=device)
    optimizer = torch.optim.Adam([x], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        terms = adcorre_terms(x, targets, w, **term_targets)  # type: ignore[arg-type]
        loss = torch.stack([weight * term for weight, term in zip(weights, terms, strict=True)]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        z = normalize(x)
        resultant = torch.linalg.vector_norm(z.mean(0), dim=-1).max()
        directions, means = (_class_correlations(v, targets, len(counts)) for v in (z, x))
        return Optimised(loss.item(), directions.cpu(), means.cpu(), (z @ z.mT).cpu(), resultant.item())


def _class_correlations(x: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    means = normalize(torch.stack([x[targets == a].mean(0) for a in range(num_classes)], 1))
    return means @ means.mT


def draw(path: Path, seed: int, device: str) -> None:
    """The picture for the docs: one heat map of class correlations per target and weighting."""
    import matplotlib
    from matplotlib.figure import Figure

    targets: tuple[Target, ...] = (-1, "simplex", 0)
    with matplotlib.rc_context(palette.STYLE):
        figure = Figure(figsize=(11, 8.2), layout="constrained")
        axes = figure.subplots(2, 3, sharex=True, sharey=True)
        for row, (attention, title) in enumerate((((0.3,) * 7, "equal weights"), (ATTENTION, "weights by recall"))):
            for column, target in enumerate(targets):
                result = optimise(COUNTS, attention, between_target=target, seed=seed, device=device)
                off = result.directions[0][~torch.eye(7, dtype=torch.bool)]
                axis = axes[row, column]
                image = axis.imshow(result.directions[0], vmin=-1, vmax=1, cmap="RdBu_r")
                for a, b in itertools.product(range(7), repeat=2):
                    value = float(result.directions[0, a, b])
                    color = "white" if abs(value) > 0.6 else "black"
                    axis.text(b, a, f"{value:z.2f}", ha="center", va="center", fontsize=8, color=color)
                axis.set_title(
                    f"Target {target}, {title}\npairs from {float(off.min()):z.2f} to {float(off.max()):z.2f}"
                )
                axis.set_xticks(range(7), NAMES, rotation=45, ha="right", rotation_mode="anchor")
                axis.set_yticks(range(7), NAMES)
        figure.colorbar(image, ax=axes, shrink=0.6, label="correlation of class means")
        figure.suptitle("Correlations of class means after minimizing FD over free vectors")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main(argv: list[str] | None = None) -> None:
    parser = rows.parser("targets", __doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/targets.png"), help="picture to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial vectors")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    options = parser.parse_args(argv)
    rows.check_device(parser, options.device)
    draw(options.out, options.seed, options.device)
    print(f"wrote {options.out}")
