"""The layers of the project: no module imports from a higher layer, and there are no import cycles."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What each part may import from the project, besides itself.
BELOW = {
    "adcorre_kernels": set(),
    "ptx_machine": set(),
    "adcorre": {"adcorre_kernels"},
    "train": {"adcorre"},
    "bench": {"adcorre", "adcorre_kernels", "ptx_machine", "train"},
}


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[parts[0] == "kernels" :]).removesuffix(".__init__")


MODULES = {
    module_name(file): ast.parse(file.read_text(encoding="utf-8"))
    for part in BELOW
    for file in (ROOT / "kernels" / part if (ROOT / "kernels" / part).is_dir() else ROOT / part).rglob("*.py")
}


def imported(tree: ast.AST, *, at_import: bool = False) -> Iterator[str]:
    """The modules imported anywhere, or only at the top level (not for types)."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}  # modules of a package, or its names
            yield from inside & MODULES.keys()
            if not inside <= MODULES.keys():
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        )
        if not (at_import and later):
            yield from imported(node, at_import=at_import)


@pytest.mark.parametrize("part", BELOW)
def test_imports_only_lower_layers(part: str) -> None:
    own = {name: tree for name, tree in MODULES.items() if name.split(".")[0] == part}
    assert own, "no module found"
    tops = {(name, module.split(".")[0]) for name, tree in own.items() for module in imported(tree)}
    allowed = BELOW[part] | {part}
    assert not [(name, top) for name, top in sorted(tops) if top in {*BELOW, "tests"} - allowed]


def test_no_circular_imports() -> None:
    graph = {
        name: {module for module in imported(tree, at_import=True) if module in MODULES and module != name}
        for name, tree in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these modules import each other: {' -> '.join(error.args[1])}")
