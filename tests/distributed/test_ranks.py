"""Every case in groups of 1 to 4 processes on this machine: one spawn per size, one thread a rank, gloo."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.distributed.cases import CASES, SLOW

ROOT = Path(__file__).parents[2]


def run(world: int, folder: Path, names: list[str]) -> None:
    paths = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "tests.distributed.ranks", str(world)]
    logs = [(folder / f"rank{rank}.log").open("w+") for rank in range(world)]
    ranks = [
        subprocess.Popen([*command, str(rank), str(folder), *names], env=environment, cwd=ROOT, stdout=log, stderr=log)
        for rank, log in enumerate(logs)
    ]
    deadline = time.monotonic() + 280
    try:
        for process in ranks:
            process.wait(max(1.0, deadline - time.monotonic()))
    finally:
        for process in ranks:
            process.kill()
    problems = []
    for rank, log in enumerate(logs):
        log.seek(0)
        result = folder / f"rank{rank}.json"
        failed = json.loads(result.read_text()) if result.exists() else {"(no result)": log.read()[-4000:]}
        problems += [f"rank {rank} of {world}, case {name}:\n{trace}" for name, trace in failed.items()]
        log.close()
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("world", [1, 2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_every_case(world: int, tmp_path: Path) -> None:
    run(world, tmp_path, [name for name in CASES if name not in SLOW])


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_compilers_and_sharded_parameters(world: int, tmp_path: Path) -> None:
    run(world, tmp_path, sorted(SLOW))
