"""A rank is killed during a run; torchrun restarts all ranks, and they continue from the checkpoint."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.conftest import ROOT, even, write_folders
from tests.train.test_command import QUICK
from tests.train.test_resume import assert_same, outcome

RUN = (*QUICK, "--batch-size", "4", "--virtual-batch", "2", "--epochs", "3", "--ema", "0.9", "--checkpoint-every", "2")


def torchrun(tmp_path: Path, data: Path, run: Path, die_after: int) -> str:
    """The output of both ranks of a run."""
    paths = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"GLOO_SOCKET_IFNAME": "lo", "ADCORRE_CACHE": str(tmp_path / "cache")}
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    # Otherwise ranks may read addresses of killed ranks from torchrun's store, and Gloo cannot connect.
    environment |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    script = ("--max-restarts", "1", "--", "tests/distributed/killed.py", die_after)  # `--`: --d is one of ours
    options = ("--data", data, "--out", run, "--resume", "auto", *RUN)
    command = [str(word) for word in (*launcher, *script, *options)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_killed_rank_and_a_restart(tmp_path: Path) -> None:
    """42 images in steps of 16, 16 and 10, 3 epochs; a checkpoint after step 4, death after step 5."""
    data = write_folders(tmp_path / "fer2013", even(6, 2, 3))
    output = torchrun(tmp_path, data, tmp_path / "undisturbed", die_after=100)
    assert "continuing" not in output
    output = torchrun(tmp_path, data, tmp_path / "killed", die_after=5)
    resumed = [line for line in output.splitlines() if line.startswith("continuing ")]
    assert resumed
    assert all("after step 4" in line for line in resumed)
    killed, undisturbed = outcome(tmp_path / "killed"), outcome(tmp_path / "undisturbed")
    assert [row["step"] for row in killed["steps"]] == [str(step) for step in range(1, 10)]
    assert_same(killed, undisturbed)
