"""`python -m bench metric`: retrieval by embeddings that were trained with each metric loss, alike but for the loss.

A small network; its initial weights, batches, steps and optimizer (Adam) are the same for every loss. Each loss gets
the learning rate, out of LEARNING_RATES, with the best MAP@R on the validation split at seed 0. Then one run for each
of the other seeds is evaluated on the test split, by cosine similarity for every loss. Losses of
pytorch-metric-learning have their defaults and no miner. Many classes are numbers of three or four digits, 1,000 or
10,000. Time and memory of the same losses: `python -m bench loss --parts metric`.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bench import rows
from bench.rivals import METRIC_LOSSES, metric_loss
from train.retrieval import METRICS, retrieval_metrics

FIELDS = (
    *rows.ORIGIN, "part", "contender", "learning_rate", "seed", "split", "steps", "batch", *METRICS, "seconds", "note",
)  # fmt: skip
KEY = ("part", "contender", "learning_rate", "seed", "split")
LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2)
SEEDS = (1, 2, 3)
BATCH, SIZE = 128, 64  # samples of a batch; numbers of an embedding
STEPS = {"digits": 200, "fer2013": 300, "numbers-1000": 300, "numbers-10000": 600}
PLACES = {"numbers-1000": 3, "numbers-10000": 4}  # digits side by side
PER_CLASS = 4  # samples of a class in a batch of numbers, and in their validation and test splits
IMAGES = {"train": 5000, "validation": 1500, "test": 2000}  # of FER-2013, which is drawn from its own splits


class Split(NamedTuple):
    """images (n, 1, h, w) float32 and labels (n,)."""

    images: Tensor
    labels: Tensor


def digits() -> dict[str, Split]:
    """scikit-learn's 1,797 digits of 8 x 8 pixels: half for training, a quarter each for validation and test."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 8 - 1
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    labels = torch.from_numpy(data.target).long()
    edges = (0, 898, 1347, 1797)
    parts = [order[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    names = ("train", "validation", "test")
    return {name: Split(images[part], labels[part]) for name, part in zip(names, parts, strict=True)}


def numbers(places: int) -> dict[str, Split]:
    """Every number of so many digits is a class: images of 8 x 8 pixels from the split of `digits`, side by side.

    For training twice PER_CLASS images of each number; for validation and test 500 numbers, which training has seen in
    other images of their digits.
    """
    rng = torch.Generator().manual_seed(0)
    every = torch.arange(10**places)
    splits: dict[str, Split] = {}
    for name, single in digits().items():
        chosen = every.repeat(2) if name == "train" else every[torch.randperm(len(every), generator=rng)[:500]]
        labels = chosen.repeat(PER_CLASS)
        images = []
        for place in range(places):
            digit = labels // 10 ** (places - 1 - place) % 10
            order = single.labels.argsort(stable=True)  # images of a digit stand together
            count = single.labels.bincount()
            start = count.cumsum(0) - count
            picks = (torch.rand(len(labels), generator=rng) * count[digit]).long()
            images.append(single.images[order[start[digit] + picks]])
        splits[name] = Split(torch.cat(images, -1), labels)
    return splits


def faces(data: str) -> dict[str, Split]:
    """FER-2013 at 24 x 24 pixels: some images of its training split, the rest of the paper's protocol's splits."""
    from train.data import Request, load_data

    splits = load_data(data, Request(image_size=48, seed=0))
    chosen_images: dict[str, Split] = {}
    for name, count in IMAGES.items():
        part = getattr(splits, name)
        chosen = np.sort(np.random.default_rng(0).permutation(len(part))[:count])
        grey = [np.asarray(part.image(int(index)).convert("L").resize((24, 24))) for index in chosen]
        images = torch.from_numpy(np.stack(grey)).float()[:, None] / 128 - 1
        chosen_images[name] = Split(images, torch.from_numpy(np.asarray(part.labels)[chosen]).long())
    return chosen_images


def network(pixels: int, seed: int) -> nn.Module:
    """Two strided convolutions and a hidden layer."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2 if pixels > 8 else 1, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(128),
        nn.ReLU(),
        nn.Linear(128, SIZE),
    )


def epoch(labels: Tensor, per_class: int, rng: torch.Generator) -> Tensor:
    """The order of an epoch's samples, (n,): at random, as many of a class together as `per_class`."""
    order = torch.randperm(len(labels), generator=rng)
    if per_class == 1:
        return order
    groups = order[labels[order].argsort(stable=True)].view(-1, per_class)
    return groups[torch.randperm(len(groups), generator=rng)].flatten()


def train(
    loss: nn.Module, data: Split, steps: int, learning_rate: float, seed: int, per_class: int = 1
) -> tuple[nn.Module, float]:
    """The trained network, in eval mode, and the seconds of its training."""
    model = network(data.images.shape[-1], seed)
    model(data.images[:1])  # gives the lazy layer its size
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64)
    began = time.perf_counter()
    for _ in range(steps):
        if len(order) < BATCH:
            order = epoch(data.labels, per_class, rng)
        chosen, order = order[:BATCH], order[BATCH:]
        optimizer.zero_grad()
        loss(model(data.images[chosen]), data.labels[chosen]).backward()
        optimizer.step()
        schedule.step()
    return model.eval(), time.perf_counter() - began


@torch.no_grad()
def evaluate(model: nn.Module, data: Split) -> dict[str, float]:
    embeddings = torch.cat([model(images) for images in data.images.split(500)])
    if not embeddings.isfinite().all():
        return dict.fromkeys(METRICS, float("nan"))
    return retrieval_metrics(embeddings, data.labels, "cosine")


def main(argv: list[str] | None = None) -> int:
    parser = rows.parser("metric", __doc__, rows.RESULTS / "metric.csv")
    parser.add_argument("--data", help="FER-2013 in any of its layouts; default: leave fer2013 out")
    parser.add_argument("--parts", **rows.some_of(STEPS))
    parser.add_argument("--contenders", **rows.some_of(METRIC_LOSSES))
    default = ", ".join(f"{steps} of {part}" for part, steps in STEPS.items())
    parser.add_argument("--steps", type=int, help=f"optimizer steps; default: {default}")
    options = parser.parse_args(argv)
    session = rows.Session(parser, options, FIELDS, KEY)
    for part in options.parts or STEPS:
        if part == "fer2013" and not options.data:
            continue
        data = faces(options.data) if part == "fer2013" else numbers(PLACES[part]) if part in PLACES else digits()
        for name in options.contenders or METRIC_LOSSES:
            if session.stops(f"{part}, {name}"):
                return session.status
            measure_one(session, part, data, name, options.steps or STEPS[part])
    return session.status


def measure_one(session: rows.Session, part: str, data: dict[str, Split], name: str, steps: int) -> None:
    """Rows of one loss: seed 0 at each learning rate on the validation split, then SEEDS on the test split."""

    def row(rate: float, seed: int, split: str) -> None:
        case = {"part": part, "contender": name, "learning_rate": rate, "seed": seed, "split": split}
        if session.done(**case):
            return
        per_class = PER_CLASS if part in PLACES else 1
        model, seconds = train(metric_loss(name), data["train"], steps, rate, seed, per_class)
        figures: dict[str, Any] = {key: f"{value:.4f}" for key, value in evaluate(model, data[split]).items()}
        session.append({**case, "steps": steps, "batch": BATCH, **figures, "seconds": f"{seconds:.3g}"})

    for rate in LEARNING_RATES:
        row(rate, 0, "validation")
    rows_of_class = [
        line
        for line in rows.read(session.options.out)
        if (line["part"], line["contender"], line["split"]) == (part, name, "validation")
        and line["session"] == session.origin["session"]
    ]
    best = max(rows_of_class, key=lambda line: float(line["map_at_r"]) if line["map_at_r"] != "nan" else -1)
    for seed in SEEDS:
        row(float(best["learning_rate"]), seed, "test")
