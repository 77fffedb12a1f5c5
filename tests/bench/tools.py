"""The benchmarks as processes."""

import os
import subprocess
import sys

from bench.rows import ROOT


def bench(*words: object, interpret: bool = True) -> subprocess.CompletedProcess[str]:
    """`python -m bench` on one thread, with Triton's interpreter if `interpret`."""
    environment = {**os.environ, "TRITON_INTERPRET": "1" if interpret else "0", "OMP_NUM_THREADS": "1"}
    for name in [name for name in environment if name.startswith(("PYTEST_", "ADCORRE_"))]:
        del environment[name]
    command = [sys.executable, "-W", "ignore", "-m", "bench", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
