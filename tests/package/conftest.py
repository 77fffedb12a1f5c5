import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def run() -> Run:
    """Runs a command as a user of the checkout would: from its root, with this interpreter's `python` and no stdin."""

    def run(*command: object, cwd: Path = ROOT, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable if word == "python" else str(word) for word in command]
        path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
        return subprocess.run(
            words,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": path, "COLUMNS": "120", **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def run_module(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`python -m MODULE ARGUMENT...` in this process, where PyTorch and the rest are imported once for all commands."""

    def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["python -m", *arguments])
        monkeypatch.setenv("COLUMNS", "120")
        with pytest.raises(SystemExit) as end, warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        captured = capsys.readouterr()
        return subprocess.CompletedProcess([module, *arguments], int(end.value.code or 0), captured.out, captured.err)

    return run
