"""docs/digits.ipynb runs from top to bottom, and its outputs are small."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

PATH = Path(__file__).parents[2] / "docs/digits.ipynb"


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def test_outputs_exist_and_are_small() -> None:
    notebook = nbformat.read(PATH, as_version=4)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    assert PATH.stat().st_size < 400_000


@pytest.mark.slow
def test_it_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = PATH.parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{root}:{root / 'kernels'}")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))  # the kernels compile, as on a newcomer's machine
    monkeypatch.delenv("MPLBACKEND", raising=False)  # a kernel shows figures only where no backend is named
    notebook = nbformat.read(PATH, as_version=4)
    expected = len(outputs(notebook))
    client = NotebookClient(notebook, timeout=300, coalesce_streams=True, resources={"metadata": {"path": PATH.parent}})
    client.execute()
    text = "".join(output.get("text", "") for output in outputs(notebook))
    assert len(outputs(notebook)) == expected
    assert text.count("test accuracy 9") == 4
    assert "written: best, checkpoints, epochs.csv" in text
