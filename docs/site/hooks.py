"""For MkDocs, which calls on_*: pages from files outside of docs/, the options page, notebooks, MathML."""

import base64
import json
import posixpath
import re
import sys
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SOURCES = {  # pages that are made from other files
    "kernels.md": "kernels/README.md",
    "hardware.md": "bench/HARDWARE.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "digits.md": "docs/digits.ipynb",
}
PAGES = {path: page for page, path in SOURCES.items()} | {"README.md": "index.md"}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]+)?\)")
MATH = re.compile(r'(?s)<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>')


def on_config(config: Any) -> Any:
    config.docs_dir = str(DOCS)
    sys.path.insert(0, str(ROOT))
    return config


def on_files(files: Any, config: Any) -> Any:
    for page, path in SOURCES.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        if path.endswith(".ipynb"):
            text, pictures = notebook_page(json.loads(text), page.removesuffix(".md"))
            for name, picture in pictures.items():
                files.append(File.generated(config, name, content=picture))
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "options.md", content=options_page()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A link to a file of the repository becomes a link to its page; if it has none, the link's text remains."""
    source = SOURCES.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not (ROOT / path).exists():
            return match[0]  # MkDocs warns
        if path in PAGES or path.startswith("docs/"):
            return f"[{text}]({PAGES.get(path, path.removeprefix('docs/'))}{anchor or ''})"
        return text

    return LINK.sub(link, markdown)


def on_page_content(html: str, **_: Any) -> str:
    def mathml(match: re.Match[str]) -> str:
        return convert(unescape(match[2]).strip(), display="block" if match[1] == "div" else "inline")

    return MATH.sub(mathml, html)


def options_page() -> str:
    """The options of `python -m train`, from its parser."""
    from train.options import parser

    lines = [
        "# Options",
        "",
        "Every option of `python -m train`. A recipe sets them with underscores: see [Training](training.md).",
    ]
    for group in parser()._action_groups[2:]:
        lines += ["", f"## {str(group.title).capitalize()}", "", "| option | default | meaning |", "|---|---|---|"]
        for action in group._group_actions:
            meaning, default = re.fullmatch(r"(?s)(.*) \(default: (.*)\)", str(action.help).replace("%%", "%")).groups()
            default, _, more = default.partition("; ")
            if missing := [choice for choice in action.choices or () if f"{choice} =" not in meaning]:
                meaning += f"; one of {', '.join(action.choices)}" if len(missing) > 1 else ""
            cells = [f"`{action.option_strings[0]}`", f"`{default}`", f"{meaning}; {more}" if more else meaning]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def notebook_page(notebook: dict[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """A notebook with its outputs as Markdown, and its pictures by file name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                file = f"{name}-{len(pictures) + 1}.png"
                pictures[file] = base64.b64decode(data["image/png"])
                parts.append(f"![{''.join(data['text/plain'])}]({file})")
            elif text := "".join(output.get("text") or data.get("text/plain", "")):
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts), pictures
