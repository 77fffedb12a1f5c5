"""Random commands with faults, for $ADCORRE_SOAK seconds; `python -m tests.train.soak` takes a seed and ten minutes."""

import os
import subprocess
import sys
import tempfile

import pytest

from tests.train.conftest import ROOT


@pytest.mark.slow
def test_soak() -> None:
    seconds = os.environ.get("ADCORRE_SOAK", "30")
    paths = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, "-m", "tests.train.soak", "--seconds", seconds]
    with tempfile.TemporaryFile("w+") as output:  # a pipe would be waited for while a loading process has it open
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        output.seek(0)
        assert done.returncode == 0, output.read()
