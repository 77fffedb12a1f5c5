"""docs/scale.md: its first example runs, and its payload sizes are those that a rank packs."""

import re
from pathlib import Path

import pytest
import torch

from adcorre import AdCorreLoss

TEXT = (Path(__file__).parents[2] / "docs/scale.md").read_text()


def test_the_example_runs() -> None:
    code = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)[0]
    names: dict[str, object] = {}
    exec(code, names)
    assert bool(names["out"].loss.isfinite())  # type: ignore[attr-defined]


@pytest.mark.parametrize("num_classes", [7, 1000])
def test_payloads(num_classes: int) -> None:
    row = re.search(rf"(?m)^\| {num_classes:,} \| ([\d.,]+) (bytes|MB) \|$", TEXT)
    assert row
    loss = AdCorreLoss(num_classes)
    logits, x, targets = torch.randn(2, num_classes), torch.randn(2, 7, 256), torch.arange(2)
    packed = loss.part(logits, x, targets).sums.pack()
    size = packed.numel() * packed.element_size()
    assert row[1] == (f"{size:,}" if row[2] == "bytes" else f"{size / 1e6:.1f}")
