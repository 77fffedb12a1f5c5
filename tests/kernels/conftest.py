"""Tests of the kernels run where kernels can be launched: in Triton's interpreter, or on a GPU.

Triton decides when it is imported, so a process is either one or the other. `launched/` holds the tests that launch;
`test_interpreted.py` runs each file of it in a process with TRITON_INTERPRET=1. By hand:

    TRITON_INTERPRET=1 pytest tests/kernels/launched        in the interpreter, on CPU tensors
    ADCORRE_DEVICE=cuda pytest tests/kernels/launched       on a GPU
"""

import os

if os.environ.get("TRITON_INTERPRET") != "1" and "ADCORRE_DEVICE" not in os.environ:
    collect_ignore = ["launched"]
