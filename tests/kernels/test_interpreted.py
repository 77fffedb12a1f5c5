"""Runs every file of launched/ in Triton's interpreter, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted(path.name for path in (Path(__file__).parent / "launched").glob("test_*.py"))


def run(file: str, marks: str) -> None:
    path = f"tests/kernels/launched/{file}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marks, path]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("ADCORRE_DEVICE", None)
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    no_tests = done.returncode == 5 and marks == "slow"
    assert done.returncode == 0 or no_tests, done.stdout[-8000:] + done.stderr[-2000:]
    assert no_tests or " passed" in done.stdout, done.stdout


@pytest.mark.parametrize("file", FILES)
def test_in_the_interpreter(file: str) -> None:
    run(file, "not slow")


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_the_rest_in_the_interpreter(file: str) -> None:
    run(file, "slow")
