"""Training on real faces: `python -m train --data PATH`. Runs from a checkout, is not shipped."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "kernels"))  # a checkout's adcorre_kernels, where none is installed
