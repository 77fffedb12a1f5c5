"""docs/fidelity.md: its example prints the output shown, and every name in it exists."""

import contextlib
import io
import re
from pathlib import Path

import adcorre
from train.ablation.studies import STUDIES
from train.settings import Settings, flag

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "fidelity.md").read_text(encoding="utf-8")


def test_the_example_prints_what_is_shown() -> None:
    [code] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    assert f"```\n{printed.getvalue()}```" in TEXT


def test_names_in_the_page_exist() -> None:
    for name in ("AdCorreLoss", "EmbeddingSpace", "VirtualBatch", "adcorre_terms", "AdaptiveAttentionMap"):
        assert f"`{name}" in TEXT
        assert hasattr(adcorre, name)
    flags = {flag(name) for group in vars(Settings()).values() for name in vars(group)}
    assert set(re.findall(r"`(--[\w-]+)", TEXT)) <= flags
    assert set(re.findall(r"train\.ablate (\w+)", TEXT)) <= {*STUDIES, "table11"}
    for path in re.findall(r"`((?:tests|adcorre)/[\w/.]+)`", TEXT):
        assert (DOCS.parent / path).is_file(), path
    for path in re.findall(r"\]\((?!http)([^)]+)\)", TEXT):
        assert (DOCS / path).is_file(), path
