"""The documentation site: all pages are in the navigation; generated pages match the code."""

import json
import re
import sys
import types
from pathlib import Path

import pytest

from train.settings import Settings, flag

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CONFIG = (DOCS / "mkdocs.yml").read_text(encoding="utf-8")


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """docs/site/hooks.py; MkDocs itself is only in the environment of `make docs`."""
    for name, members in {"latex2mathml.converter": ["convert"], "mkdocs.structure.files": ["File"]}.items():
        module = types.ModuleType(name)
        for member in members:
            setattr(module, member, lambda text, **_: f"<math>{text}</math>")
        monkeypatch.setitem(sys.modules, name, module)
    module = types.ModuleType("hooks")
    module.__file__ = str(DOCS / "site/hooks.py")
    exec(compile((DOCS / "site/hooks.py").read_text(encoding="utf-8"), module.__file__, "exec"), module.__dict__)
    return module


def test_every_page_is_in_the_navigation(hooks: types.ModuleType) -> None:
    navigation = re.findall(r"(?m)^  - [^:]+: (\S+\.md)$", CONFIG[CONFIG.index("\nnav:") :])
    assert len(navigation) == len(set(navigation))
    assert set(navigation) == {path.name for path in DOCS.glob("*.md")} | {*hooks.SOURCES, "options.md"}
    assert all((ROOT / path).is_file() for path in hooks.SOURCES.values())


def test_options_are_those_of_the_settings(hooks: types.ModuleType) -> None:
    page = hooks.options_page()
    assert {flag(name) for group in vars(Settings()).values() for name in vars(group)} <= set(
        re.findall(r"(?m)^\| `(--[\w-]+)` \|", page)
    )
    assert re.search(r"\| `--image-size` \| `224` \| .*; 48 with --data synthetic \|", page)
    assert re.search(r"\| `--backend` \|.*one of auto, .*torch", page)


@pytest.mark.parametrize(
    ("source", "text", "expected"),
    [
        ("loss.md", "[the kernels](../kernels/README.md#traffic)", "[the kernels](kernels.md#traffic)"),
        ("kernels.md", "[rows](../bench/results/gpu.csv)", "rows"),
        ("hardware.md", "[k](../kernels/README.md)", "[k](kernels.md)"),
        ("index.md", "[p](https://a.b/c), ![i](targets.png)", "[p](https://a.b/c), ![i](targets.png)"),
        ("index.md", "[gone](gone.md)", "[gone](gone.md)"),
    ],
)  # fmt: skip
def test_links(hooks: types.ModuleType, source: str, text: str, expected: str) -> None:
    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri=source))
    assert hooks.on_page_markdown(text, page=page) == expected


def test_equations_become_mathml(hooks: types.ModuleType) -> None:
    html = '<p>a <span class="arithmatex">\\(x &lt; y\\)</span></p><div class="arithmatex">\\[\nz\n\\]</div>'
    assert hooks.on_page_content(html) == "<p>a <math>x < y</math></p><math>z</math>"


def test_notebook_becomes_a_page(hooks: types.ModuleType) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Title"]},
        {
            "cell_type": "code",
            "source": ["print(1)"],
            "outputs": [
                {"output_type": "stream", "text": ["1\n"]},
                {"output_type": "display_data", "data": {"image/png": "aGk=", "text/plain": ["<Figure>"]}},
            ],
        },
    ]
    text, pictures = hooks.notebook_page(json.loads(json.dumps({"cells": cells})), "it")
    assert text == "# Title\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n![<Figure>](it-1.png)"
    assert pictures == {"it-1.png": b"hi"}


@pytest.mark.parametrize(
    "path", ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in DOCS.glob("*.md"))]
)
def test_links_between_files_exist(path: str) -> None:
    """As on a site that hosts the repository; `make docs` checks those of the pages, and their anchors."""
    text = re.sub(r"(?ms)^```.*?^```", "", (ROOT / path).read_text(encoding="utf-8"))
    for target in re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", text):
        assert ((ROOT / path).parent / target).is_file(), target


def test_nothing_comes_from_another_host() -> None:
    assert "font: false" in CONFIG
    assert not re.findall(r"https?://", CONFIG + (DOCS / "site/extra.css").read_text(encoding="utf-8"))
