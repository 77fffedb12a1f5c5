import os
import subprocess
import sys
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
