"""docs/metric-learning.md: its examples run, one after the other."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "metric-learning.md"


def test_the_examples_run() -> None:
    pytest.importorskip("pytorch_metric_learning")
    names: dict[str, object] = {}
    for code in re.findall(r"(?ms)^```python\n(.*?)^```$", PAGE.read_text()):
        exec(code, names)
    assert 0.5 < names["accuracies"]["precision_at_1"] <= 1  # type: ignore[index]
    assert bool(names["loss"].isfinite())  # type: ignore[attr-defined]
