"""Table 11: parameters and multiply-adds with k embedding vectors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from adcorre import EmbeddingSpace
from train.bars import markdown_table
from train.disk import write_rows
from train.model import build_model
from train.settings import DataSettings, ModelSettings

PAPER = {
    0: (20_861_480, 4_554_344_528),
    1: (21_386_281, 4_554_919_764),
    3: (22_437_419, 4_555_971_420),
    7: (24_545_839, 4_558_080_876),
    10: (26_132_530, 4_559_668_344),
}


def counts(backbone: nn.Module, image_size: int, classes: int, k: int, d: int) -> tuple[int, int]:
    """(parameters, multiply-adds per image); for k = 0, of the backbone alone.

    Parameters are counted as the paper does: BatchNorm's running means and variances too. Multiply-adds are those of
    convolutions and matrix products, half of what PyTorch's counter gives.
    """
    modules: list[nn.Module] = [backbone.eval()]
    images = torch.zeros(1, 3, image_size, image_size)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        features = backbone(images)
        if k:
            head = EmbeddingSpace(features.shape[1], classes, k=k, d=d).eval()
            head(features)
            modules.append(head)
    parameters = sum(tensor.numel() for module in modules for tensor in module.parameters())
    running = sum(tensor.numel() for module in modules for tensor in module.buffers() if tensor.is_floating_point())
    return parameters + running, counter.get_total_flops() // 2


def write(out: Path, given: Mapping[str, Any]) -> str:
    """Table 11 for the user's backbone, image size and d, written into `out`. Returns the Markdown."""
    model = ModelSettings(
        given.get("backbone", ModelSettings().backbone),
        k=1,
        d=given.get("d", ModelSettings().d),
    )
    size = given.get("image_size", DataSettings().image_size)
    backbone = build_model(model, 7, size)[0].backbone
    papers = (model.backbone, model.d, size) == (ModelSettings().backbone, ModelSettings().d, DataSettings().image_size)
    heads = ["model", "parameters", "multiply-adds"]
    heads += ["parameters (paper)", "multiply-adds (paper)"] if papers else []
    rows: list[list[Any]] = []
    for k, published in PAPER.items():
        name = f"{k} embedding vector{'s' if k > 1 else ''}" if k else model.backbone
        rows.append([name, *counts(backbone, size, k, k, model.d), *(published if papers else ())])
    write_rows(out / "table11.csv", [heads, *rows])
    table = [[name, *(f"{number:,}" for number in numbers)] for name, *numbers in rows]
    lines = [
        *("## Table 11: size", "", *markdown_table(heads, table), ""),
        f"Images of {size} x {size}, d = {model.d}; as in the paper, k embedding vectors are used with k classes, and "
        "BatchNorm's running statistics count as parameters. Multiply-adds: convolutions and matrix products.",
    ]
    return "\n".join(lines) + "\n"
