"""Several processes and virtual batches: each image on one rank once, one log, and all stop when one fails."""

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

import pytest

from tests.train.conftest import ROOT, even, write_folders
from tests.train.test_command import QUICK, TINY, Train, evaluate_best, rows
from tests.train.test_evaluate import grey, to_tensor
from train.__main__ import main
from train.checkpoint import read_checkpoint
from train.data.loading import StepSampler, evaluation_batches, train_batches
from train.errors import UserError
from train.ranks import Ranks


def samplers(n: int, batch: int, chunks: int, world: int) -> list[StepSampler]:
    return [StepSampler(n, batch, chunks, Ranks(r, world), seed=0) for r in range(world)]


@pytest.mark.parametrize(
    "n, batch, chunks, world, steps",
    [
        (40, 4, 1, 1, [4] * 10),
        (41, 4, 1, 1, [4] * 10),  # a step of one image is left out
        (42, 4, 1, 1, [4] * 10 + [2]),
        (42, 4, 3, 1, [12, 12, 12, 6]),
        (41, 4, 1, 3, [12, 12, 12]),  # 5 images are too few for two on each rank
        (43, 4, 1, 3, [12, 12, 12, 7]),
        (43, 2, 5, 4, [40]),
        (51, 2, 5, 4, [40, 11]),
        (9, 60, 2, 4, [9]),
    ],
)
def test_each_image_is_in_one_chunk_of_one_rank(n: int, batch: int, chunks: int, world: int, steps: list[int]) -> None:
    ranks = samplers(n, batch, chunks, world)
    seen: list[int] = []
    for sampler in ranks:
        assert sampler.sizes == steps
        local = list(sampler)
        assert len(local) == len(sampler) == sum(sampler.count_chunks(size) for size in steps)
        assert all(2 <= len(chunk) <= max(3, batch) for chunk in local)
        seen += [draw.sample for chunk in local for draw in chunk]
    assert len(seen) == len(set(seen)) == sum(steps)
    # In each step all ranks work on the same part of one order, that of a single process.
    order = [draw.sample for chunk in samplers(n, batch, chunks, 1)[0] for draw in chunk]
    firsts = [list(s)[: s.count_chunks(steps[0])] for s in samplers(n, batch, chunks, world)]
    assert {draw.sample for local in firsts for chunk in local for draw in chunk} == set(order[: steps[0]])


@pytest.mark.parametrize("n, world", [(10, 1), (10, 3), (2, 4)])
def test_evaluation_is_shared_out(n: int, world: int) -> None:
    seen: list[float] = []
    for rank in range(world):
        for images, _ in evaluation_batches(grey(n), to_tensor, 4, 0, False, Ranks(rank, world)):
            seen += images.tolist()
    assert sorted(seen) == list(range(n))


def test_steps_keep_their_chunks() -> None:
    steps = train_batches(grey(22), to_tensor, 4, 0, False, seed=0, chunks=2)
    assert len(steps) == 3
    for chunks, size in steps:
        twice = [[images.tolist() for images, _ in chunks()] for _ in range(2)]
        assert twice[0] == twice[1]
        assert sum(map(len, twice[0])) == size
    with pytest.raises(UserError, match=r"at least 6 images \(2 for each of 3 processes\), the training split has 5"):
        train_batches(grey(5), to_tensor, 4, 0, False, seed=0, ranks=Ranks(0, 3))


def test_virtual_batches(fer_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ("--data", str(fer_folders), "--out", str(tmp_path / "run"), *QUICK, "--batch-size", "8")
    assert main([*run, "--virtual-batch", "2", "--epochs", "2"]) == 0
    steps = rows(tmp_path / "run/steps.csv")
    assert [row["step"] for row in steps] == ["1", "2", "3", "4", "5", "6"]  # 42 images: 16, 16 and 10
    assert json.loads((tmp_path / "run/settings.json").read_text())["settings"]["data"]["virtual_batch"] == 2
    assert main([*run, "--virtual-batch", "2", "--backend", "reference", "--overwrite"]) == 2
    assert "--backend reference does not support several processes" in capsys.readouterr().err


@pytest.mark.parametrize("virtual_batch", ["1", "2"])
def test_deviations_of_every_pair_of_samples(fer_folders: Path, tmp_path: Path, virtual_batch: str) -> None:
    """At a target within the spread of the correlations, their mean deviates less than they do."""
    options = (*QUICK, "--batch-size", "8", "--epochs", "1", "--between-target", "0", "--virtual-batch", virtual_batch)
    fd = {}
    for pairs in ("class", "sample"):
        run = tmp_path / pairs
        assert main(["--data", str(fer_folders), "--out", str(run), *options, "--pairs", pairs]) == 0
        fd[pairs] = float(rows(run / "steps.csv")[0]["fd"])
    assert fd["sample"] > fd["class"] + 1e-3


# argparse, to Python 3.11, takes --d for one of torchrun's own options unless `--` stands before.
MODULE = ("-m", "--", "train")
PLAIN = ("-m", "train")
OPTIONS = ("--backbone", "test_resnet", "--k", "2", "--image-size", "32", "--device", "cpu")


def start_torchrun(processes: int, *command: str | Path, log: IO[str], cwd: Path = ROOT) -> subprocess.Popen[str]:
    paths = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"GLOO_SOCKET_IFNAME": "lo"}
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    whole = [*launcher, *map(str, command)]
    return subprocess.Popen(whole, cwd=cwd, env=environment, stdout=log, stderr=log, text=True)


def torchrun(processes: int, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """The finished process, with its whole output in both `stdout` and `stderr`."""
    with tempfile.TemporaryFile("w+") as log:
        process = start_torchrun(processes, *command, log=log)
        try:
            process.wait(280)
        finally:
            process.kill()
        log.seek(0)
        output = log.read()
    return subprocess.CompletedProcess(process.args, process.returncode, output, output)


def test_two_processes_end_to_end(fer_folders: Path, tmp_path: Path) -> None:
    """One log and one set of files; the metrics count every image once, as in a single process."""
    run = tmp_path / "run"
    options = ("--epochs", "2", "--log-every", "1", "--device", "cpu", "--batch-size", "4", "--virtual-batch", "2")
    done = torchrun(2, *MODULE, "--data", fer_folders, "--out", run, *TINY, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " ".join(done.stdout.split()).count("each of 16 images (4 a pass × 2 passes × 2 processes)") == 1
    assert sum("  step " in line for line in done.stdout.splitlines()) == 6  # 42 images in steps of 16, 16, 10
    assert [row["step"] for row in rows(run / "steps.csv")] == ["1", "2", "3", "4", "5", "6"]
    results = json.loads((run / "results.json").read_text())
    for split, images in (("validation", 14), ("test", 21)):
        alone = evaluate_best(run, fer_folders, split)
        assert results[split]["samples"] == alone.samples == images
        assert results[split]["accuracy"] == alone.accuracy
        assert results[split]["nll"] == pytest.approx(alone.nll, rel=1e-5)
        with (run / "test-confusion.csv").open(newline="") as file:
            assert split == "validation" or list(csv.reader(file))[1][1:] == [str(x) for x in alone.confusion[0]]
    state = read_checkpoint(run)
    assert state["step"] == 6
    assert int(state["loss"]["attention_map.counts"][:, 1].sum()) == 2 * 42 - 16  # the last 5 steps, on both ranks


BREAKS = """
import os, sys
import train.loop
from train.__main__ import main
from train.checkpoint import read_checkpoint
from torch.distributed.elastic.multiprocessing.errors import record

class Breaking(train.loop.VirtualBatch):
    calls = 0
    def __call__(self, *arguments, **options):
        Breaking.calls += 1
        if os.environ["RANK"] == "1" and Breaking.calls == 2:
            raise ArithmeticError("the second step broke")
        return super().__call__(*arguments, **options)

train.loop.VirtualBatch = Breaking
sys.exit(record(main)(sys.argv[1:]))
"""


def test_a_failing_process_ends_all_with_its_own_traceback(fer_folders: Path, tmp_path: Path) -> None:
    script = tmp_path / "breaks.py"
    script.write_text(BREAKS)
    began = time.monotonic()
    done = torchrun(2, script, "--data", fer_folders, "--out", tmp_path / "run", *OPTIONS, "--batch-size", "4")
    assert done.returncode != 0
    assert "ArithmeticError: the second step broke" in done.stderr
    assert "in __call__" in done.stderr
    assert time.monotonic() - began < 200  # and not gloo's half hour


@pytest.mark.slow
def test_a_users_mistake_in_several_processes(tmp_path: Path) -> None:
    data = write_folders(tmp_path / "data", even(2, 1, 1))
    (data / "train/fear/Training_00001.jpg").write_bytes(b"no picture")
    done = torchrun(2, *PLAIN, "--data", data, "--out", tmp_path / "run", *OPTIONS, "--batch-size", "4")
    assert done.returncode != 0
    assert "cannot read the image" in done.stderr


@pytest.mark.slow
def test_one_process_under_torchrun_is_as_without(train: Train, fer_folders: Path, tmp_path: Path) -> None:
    command = ("--data", fer_folders, *QUICK)
    train(*command, "--out", tmp_path / "alone")
    done = torchrun(1, *MODULE, *command, "--out", tmp_path / "launched")
    assert done.returncode == 0, done.stderr
    weights = [(tmp_path / name / "last/model.safetensors").read_bytes() for name in ("alone", "launched")]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_signal_to_all_processes_and_a_resume(fer_folders: Path, tmp_path: Path) -> None:
    """As torchrun sends it: every process stops after the same step, and the resumed run is equal bit for bit."""
    options = (*TINY, "--epochs", "3", "--log-every", "1", "--device", "cpu", "--batch-size", "4", "--amp", "none")
    options += ("--channels-last", "no", "--checkpoint-minutes", "0")
    whole, run = tmp_path / "whole", tmp_path / "run"
    done = torchrun(2, *MODULE, "--data", fer_folders, "--out", whole, *options)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "log").open("w") as log:
        process = start_torchrun(2, *MODULE, "--data", fer_folders, "--out", run, *options, log=log)
        deadline = time.monotonic() + 250
        while not (run / "steps.csv").exists() or len(rows(run / "steps.csv")) < 7:
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.terminate()
        process.wait(100)
    assert "stopped by SIGTERM, with a checkpoint" in (tmp_path / "log").read_text()
    assert 7 <= read_checkpoint(run)["step"] <= 17
    done = torchrun(1, *MODULE, "--resume", run)
    assert done.returncode != 0
    assert "was trained by 2 processes, this is 1: start as many" in done.stderr
    done = torchrun(2, *MODULE, "--out", run, "--resume", "auto")
    assert done.returncode == 0, done.stderr
    for name in ("last", "best"):
        assert (run / name / "model.safetensors").read_bytes() == (whole / name / "model.safetensors").read_bytes()
