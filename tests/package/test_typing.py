"""A user's type checker sees the public API: correct use passes `mypy --strict`, incorrect use does not."""

from pathlib import Path

import pytest

RIGHT = """
from typing import assert_type
import torch
import adcorre

embeddings, targets, attention = torch.randn(8, 3, 16), torch.arange(8) % 7, torch.full((7,), 0.5)
terms = adcorre.adcorre_terms(embeddings, targets, attention)
assert_type(terms.fd, torch.Tensor)
assert_type(adcorre.AdaptiveAttentionMap(7, window=5).weights(), torch.Tensor)
loss: torch.nn.Module = adcorre.AdCorreLoss(7, lambd=0.5, between_target="simplex")
space: torch.nn.Module = adcorre.EmbeddingSpace(2048, 7, k=7, d=256)
assert_type(adcorre.__version__, str)
"""
WRONG = {
    "adcorre.AdCorreLoss('seven')": "arg-type",
    "adcorre.AdCorreLoss(7, alpha=0.5)": "call-arg",
    "adcorre.EmbeddingSpace()": "call-arg",
    "adcorre.adcorre_terms([1.0], [0], [0.5])": "arg-type",
}


@pytest.mark.slow
def test_public_api_is_typed(run, tmp_path: Path) -> None:
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(RIGHT)
    wrong.write_text("\n".join(["import adcorre", *WRONG]) + "\n")
    root = Path(__file__).parents[2]
    result = run(
        *("python", "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path / 'cache'}"),
        *("--follow-imports=silent", right, wrong),
        cwd=tmp_path,
        timeout=600,
        MYPYPATH=f"{root}:{root / 'kernels'}",
    )
    assert "right.py" not in result.stdout, result.stdout
    for line, (use, code) in enumerate(WRONG.items(), start=2):
        assert any(
            f"wrong.py:{line}: error" in message and f"[{code}]" in message for message in result.stdout.splitlines()
        ), (
            use,
            result.stdout + result.stderr,
        )
