"""The memory of a virtual batch is that of one chunk: the peak of fresh processes, inputs made chunk by chunk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
MIB = 2**20
STEP = """
import resource, sys
import torch
from torch import nn
from adcorre import AdCorreLoss, EmbeddingSpace, VirtualBatch

n, keep_graphs, device = int(sys.argv[1]), sys.argv[2] == "keep", sys.argv[3]

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(8))
        self.head = EmbeddingSpace(16 * 16, 7, k=7, d=256)
    def forward(self, images):
        return self.head(self.body(images).flatten(1))

def chunks():
    for start in range(0, n, 60):
        rng = torch.Generator().manual_seed(start)
        images = torch.randn(60, 3, 32, 32, generator=rng)
        yield images.to(device), torch.randint(0, 7, (60,), generator=rng).to(device)

model = Model().to(device)
step = VirtualBatch(model, AdCorreLoss(7).to(device), keep_graphs=keep_graphs)
step(chunks)
if device == "cuda":
    print(torch.cuda.max_memory_allocated())
else:
    try:  # of this program alone; ru_maxrss begins with what the process was before it became this program
        with open("/proc/self/status") as status:
            print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024)
    except FileNotFoundError:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Compile the kernels into their cache: compiling takes more memory than a batch."""
    peak(60)


def peak(n: int, mode: str = "replay", device: str = "cpu") -> int:
    paths = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    done = subprocess.run(
        [sys.executable, "-c", STEP, str(n), mode, device],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_hundred_chunks_take_the_memory_of_two() -> None:
    """Not the memory of one chunk, which uses other kernels, of 60 MiB."""
    two, hundred = peak(120), peak(6000)
    assert hundred <= max(1.1 * two, two + 64 * MIB), f"{hundred / MIB:.0f} MiB against {two / MIB:.0f} MiB"


@pytest.mark.slow
def test_keeping_the_graphs_takes_more() -> None:
    """Shows that the test above can fail: it would if graphs were kept."""
    one, twenty = peak(60), peak(1200, "keep")
    assert twenty > max(1.1 * one, one + 64 * MIB), f"{twenty / MIB:.0f} MiB against {one / MIB:.0f} MiB"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu() -> None:
    one, hundred = peak(60, device="cuda"), peak(6000, device="cuda")
    assert hundred <= max(1.1 * one, one + 64 * MIB), f"{hundred / MIB:.0f} MiB against {one / MIB:.0f} MiB"
