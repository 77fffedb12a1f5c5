"""Runs every file of launched/ in Triton's interpreter, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PATHS = sorted((Path(__file__).parent / "launched").glob("test_*.py"))
FILES = [path.name for path in PATHS]
WITH_SLOW_TESTS = [path.name for path in PATHS if "mark.slow" in path.read_text()]


def run(file: str, marks: str) -> None:
    path = f"tests/kernels/launched/{file}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marks, path]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("ADCORRE_DEVICE", None)
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout, done.stdout


@pytest.mark.parametrize("file", FILES)
def test_in_the_interpreter(file: str) -> None:
    run(file, "not slow")


@pytest.mark.slow
@pytest.mark.parametrize("file", WITH_SLOW_TESTS)
def test_slow_tests_in_the_interpreter(file: str) -> None:
    run(file, "slow")


@pytest.mark.slow
@pytest.mark.sample(6)
@pytest.mark.parametrize("share", range(6))
def test_planted_faults_are_found(share: int) -> None:
    """Each fault planted in the kernels' source text makes the test named for it fail."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((".", "kernels"))}
    environment = {name: value for name, value in environment.items() if not name.startswith(("PYTEST_", "ADCORRE_"))}
    command = [sys.executable, "-W", "ignore", "-m", "tests.kernels.planted", str(share)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
