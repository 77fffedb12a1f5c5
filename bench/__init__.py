"""Benchmarks, run from a checkout; the kernels' folder joins the path where the package is not installed."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("ptx_machine") is None:
    sys.path.append(str(Path(__file__).resolve().parents[1] / "kernels"))
