"""Random commands with faults, for $ADCORRE_SOAK seconds; `python -m tests.train.soak` takes a seed and ten minutes."""

import os
import subprocess
import sys

import pytest

from tests.train.conftest import ROOT


@pytest.mark.slow
def test_soak() -> None:
    seconds = os.environ.get("ADCORRE_SOAK", "30")
    paths = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, "-m", "tests.train.soak", "--seconds", seconds]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
