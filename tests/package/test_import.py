"""`import adcorre` needs no Triton, uses no device or network, and imports nothing heavy."""

import pytest

# As if it were not installed: PyTorch looks for Triton with find_spec, which must return None and not raise.
BLOCK_TRITON = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *where: None if name.split(".")[0] == "triton" else find(name, *where)
try:
    import triton
except ImportError:
    pass
else:
    raise AssertionError("triton is not blocked")
"""
NO_NETWORK = """
import socket
def refuse(*_):
    raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
"""
IMPORT = """
import time, torch
def touched(*_):
    raise AssertionError("a device was asked for")
asked = torch.cuda.is_available, torch.cuda.device_count, torch.cuda._lazy_init
torch.cuda.is_available = torch.cuda.device_count = torch.cuda._lazy_init = touched
began = time.perf_counter()
import adcorre
took = time.perf_counter() - began
assert adcorre.__version__
torch.cuda.is_available, torch.cuda.device_count, torch.cuda._lazy_init = asked
assert not torch.cuda.is_initialized(), "CUDA was initialised"
heavy = {"matplotlib", "sklearn", "tensorboard", "timm", "torchvision", "numba", "train", "bench"} & sys.modules.keys()
assert not heavy, heavy
assert took < 5, took
"""
STEP = """
loss = adcorre.AdCorreLoss(7)
logits = torch.randn(8, 7, requires_grad=True)
embeddings = torch.nn.functional.normalize(torch.randn(8, 3, 16), dim=-1).requires_grad_()
loss(logits, embeddings, torch.arange(8) % 7).loss.backward()
assert embeddings.grad.isfinite().all() and embeddings.grad.any()
assert "triton" not in sys.modules
"""


@pytest.mark.parametrize(
    "prelude, step", [("import sys\n", ""), (BLOCK_TRITON, STEP)], ids=["as it is", "triton blocked"]
)
def test_import(run, prelude: str, step: str) -> None:
    """Without Triton the loss trains."""
    result = run("python", "-c", prelude + NO_NETWORK + IMPORT + step)
    assert result.returncode == 0, result.stderr
