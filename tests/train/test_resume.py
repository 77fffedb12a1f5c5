"""A run that is stopped, however, and resumed: the same weights bit for bit, and nothing lost."""

import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import train.loop
from adcorre import AdCorreLoss
from tests.train import trainer
from tests.train.test_command import QUICK, rows
from tests.train.trainer import RUN, assert_same, outcome, resumes, steps_in, stop_after
from train import owned_folder
from train.__main__ import main
from train.checkpoint import checkpoints, read_checkpoint, write_checkpoint
from train.data.loading import TrainSteps
from train.ranks import ALONE
from train.stopping import Watch, ignore_in_worker


def kill_and_resume(data: Path, run: Path, kills: int, seed: int) -> str:
    """The output of a run that is killed with SIGKILL at random moments and resumed until it ends."""
    rng = random.Random(seed)
    log = run.with_suffix(".log")
    for _ in range(kills):
        process = trainer.start(log, "--data", data, "--out", run, "--resume", "auto", *RUN)
        before, more = steps_in(run), rng.choice((0, 0, 1, 2, 3))
        deadline = time.monotonic() + 200
        while steps_in(run) < before + more and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.3 if more else 1.5))  # while loading, training, evaluating, writing
        process.kill()
        process.join()
    assert trainer.finish(trainer.start(log, "--data", data, "--out", run, "--resume", "auto", *RUN)) == 0
    return log.read_text()


def test_killed_three_times(fer_folders: Path, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    output = kill_and_resume(fer_folders, tmp_path / "run", kills=3, seed=1)
    assert_same(outcome(tmp_path / "run"), undisturbed)
    assert "results may differ in their last bits" not in output


@pytest.mark.slow
def test_killed_twenty_times(fer_folders: Path, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    output = kill_and_resume(fer_folders, tmp_path / "run", kills=20, seed=2)
    assert output.count("\ncontinuing ") > 5
    assert_same(outcome(tmp_path / "run"), undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_leaves_a_checkpoint(
    number: signal.Signals, fer_folders: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    slow = ("--checkpoint-every", "0")  # so that only the signal causes a checkpoint
    process = trainer.start(log, "--data", fer_folders, "--out", run, *RUN, *slow)
    deadline = time.monotonic() + 200
    while steps_in(run) < 3 and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid or 0, number)
    assert trainer.finish(process) == 128 + number
    assert (
        f"stopped by {number.name}, with a checkpoint; python -m train --resume {run} continues it" in log.read_text()
    )
    done = read_checkpoint(run)["step"]
    assert done >= 2
    assert trainer.finish(trainer.start(log, "--data", fer_folders, "--resume", run, "--checkpoint-every", "2")) == 0
    assert f"after step {done}" in log.read_text()
    assert_same(outcome(run), undisturbed)


@pytest.mark.parametrize(
    "options",
    [
        ("--amp", "fp16", "--clip", "1"),
        ("--amp", "bf16", "--channels-last", "yes", "--optimizer", "adamw", "--weight-decay", "0.1"),
        ("--optimizer", "sgd", "--schedule", "cosine", "--warmup-epochs", "0.5", "--label-smoothing", "0.1"),
        ("--virtual-batch", "2", "--sampler", "balanced", "--ce-weight", "balanced"),
        ("--augment", "loading", "--workers", "1", "--deterministic", "--flip"),
        ("--erasing", "0.5", "--shift", "0.1", "--scale", "0.1", "--schedule", "step", "--lr-drop-epochs", "1"),
    ],
    ids=lambda options: options[1],
)
def test_stopped_and_resumed_with(options: tuple[str, ...], fer_folders: Path, tmp_path: Path) -> None:
    run = (*QUICK, "--data", str(fer_folders), "--batch-size", "8", "--epochs", "2", *options)
    assert main([*run, "--out", str(tmp_path / "whole")]) == 0
    with pytest.MonkeyPatch.context() as patch:
        stop_after(2, patch)
        assert main([*run, "--out", str(tmp_path / "run")]) == 128 + signal.SIGTERM
    torch.manual_seed(77)  # whatever happened in between
    assert main(["--resume", str(tmp_path / "run")]) == 0
    assert_same(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


@pytest.mark.parametrize("forget", [False, True])
def test_the_plateau_schedule_is_resumed(forget: bool, fer_folders: Path, tmp_path: Path) -> None:
    """Stopped in epoch 3, after one epoch without improvement; a run that forgets this drops the rate too late."""
    run = (*QUICK, "--data", str(fer_folders), "--batch-size", "8", "--epochs", "4", "--log-every", "1")
    run += ("--schedule", "plateau", "--lr-drop-epochs", "2", "--lr-drop", "0.5")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.loop.evaluate", same_figures(train.loop.evaluate))
        assert main([*run, "--out", str(tmp_path / "whole")]) == 0
        steps = len(rows(tmp_path / "whole/steps.csv")) // 4
        with pytest.MonkeyPatch.context() as stop:
            stop_after(2 * steps + 1, stop)
            assert main([*run, "--out", str(tmp_path / "run")]) == 128 + signal.SIGTERM
        if forget:
            patch.setattr("torch.optim.lr_scheduler.ReduceLROnPlateau.load_state_dict", lambda *_: None)
        assert main(["--resume", str(tmp_path / "run")]) == 0
    whole, resumed = ([float(row["lr"]) for row in rows(tmp_path / name / "steps.csv")] for name in ("whole", "run"))
    assert whole == [1e-3] * 3 * steps + [5e-4] * steps
    assert (resumed == whole) != forget
    if not forget:
        assert_same(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


def same_figures(evaluate: Any) -> Any:
    """An evaluation whose accuracy is always the same."""
    return lambda *args, **kwargs: replace(evaluate(*args, **kwargs), accuracy=0.5)


def test_new_augmentation_options_are_the_runs(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("erasing", "0.5"), ("shift", "0.1"), ("scale", "0.1"), ("schedule", "plateau")):
        resumes(stopped, f"--{name}", value, code=2)
        assert f"not {value}. A resumed run keeps its settings" in capsys.readouterr().err
    resumes(stopped, "--lr-drop-epochs", "3", code=2)


def leave_out(piece: str, patch: pytest.MonkeyPatch) -> None:
    """Have the next restore forget a piece of the state."""
    if piece == "sampler":
        patch.setattr(TrainSteps, "set_epoch", lambda self, epoch, start=0: None)
        return
    if piece == "generator":
        patch.setattr("train.loop.restore_random", lambda *_: None)
        return
    classes = {"optimizer": torch.optim.Adam, "attention map": AdCorreLoss}
    if piece == "EMA":
        restore = train.loop.Run.restore

        def without(self: train.loop.Run, state: Any) -> None:
            fresh = {key: value.clone() for key, value in self.ema.module.state_dict().items()}  # type: ignore[union-attr]
            restore(self, {**state, "ema": fresh})

        patch.setattr(train.loop.Run, "restore", without)
        return
    patch.setattr(classes[piece], "load_state_dict", lambda *_, **__: None)


@pytest.mark.parametrize("piece", ["", "optimizer", "generator", "sampler", "attention map", "EMA"])
def test_each_piece_of_the_state_is_needed(
    piece: str, stopped: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """The control of exact resume: with one piece left out, the weights differ."""
    torch.manual_seed(77)
    with pytest.MonkeyPatch.context() as patch:
        if piece:
            leave_out(piece, patch)
        resumes(stopped)
    result = outcome(stopped)
    same_weights = result["last"] == undisturbed["last"]
    assert same_weights == (not piece)


def test_on_another_number_of_processes(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The steps differ; the best model's test metrics do not."""
    state = read_checkpoint(stopped)
    write_checkpoint(stopped, {**state, "processes": 2, "random": state["random"] * 2})
    resumes(stopped, code=2)
    error = capsys.readouterr().err
    assert "was trained by 2 processes, this is 1: start as many. A step would be of 8 images, not 16" in error
    write_checkpoint(stopped, state)
    resumes(stopped)
    before = outcome(stopped)
    state = read_checkpoint(stopped)
    write_checkpoint(stopped, {**state, "processes": 2, "random": state["random"] * 2})
    (stopped / "results.json").unlink()
    resumes(stopped)
    after = outcome(stopped)
    assert after["results"] == before["results"]
    assert after["last"] == before["last"]
    resumes(stopped, "--epochs", "4", code=2)
    assert "start as many" in capsys.readouterr().err


def test_a_run_that_has_ended_says_so(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resumes(stopped)
    capsys.readouterr()
    before = outcome(stopped)
    resumes(stopped)
    assert "this run has ended" in capsys.readouterr().out
    assert_same(outcome(stopped), before)


def test_more_epochs_of_the_papers_schedule(stopped: Path, fer_folders: Path, tmp_path: Path) -> None:
    resumes(stopped, "--epochs", "4")
    longer = ["--data", str(fer_folders), "--out", str(tmp_path / "longer"), *RUN, "--epochs", "4"]
    assert main(longer) == 0
    assert_same(outcome(stopped), outcome(tmp_path / "longer"))


def test_resume_auto(fer_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["--resume", "auto", *QUICK]) == 2
    assert "give the run folder by --out" in capsys.readouterr().err
    begin = ["--data", str(fer_folders), "--out", str(run), "--resume", "auto", *QUICK]
    run.mkdir()
    owned_folder.mark(run, "run")  # it ended before its first checkpoint
    (run / "settings.json").write_text("{}")
    assert main(begin) == 0
    assert main(begin) == 0
    assert "this run has ended" in capsys.readouterr().out
    for path in checkpoints(run):
        path.unlink()
    assert main(begin) == 2
    assert "holds a run without a checkpoint to continue from" in capsys.readouterr().err
    assert load_file(run / "last/model.safetensors")


def test_the_clock_asks_for_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("train.stopping.time.monotonic", lambda: now[0])
    watch = Watch(ALONE, minutes=1)
    requests = []
    for now[0] in (0, 59, 61, 62, 122):
        requests.append(watch.poll()[1])
        if requests[-1]:
            watch.checkpoint_written()
    assert requests == [False, False, True, False, True]
    assert not Watch(ALONE, minutes=0).poll()[1]


def test_workers_outlive_a_signal_to_their_group_but_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.stopping.GRACE", 1)
    pid = os.fork()
    if not pid:
        ignore_in_worker()
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), number)
        began = time.monotonic()
        while time.monotonic() < began + 100:
            time.sleep(0.05)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGALRM


def test_resume_auto_needs_no_more_than_the_folder(
    stopped: Path, undisturbed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Options that are not given are the run's, the recipe of the drawn faces included."""
    assert main(["--out", str(stopped), "--resume", "auto"]) == 0
    assert_same(outcome(stopped), undisturbed)
    assert main(["--out", str(stopped), "--resume", "auto", "--recipe", "fer2013-modern"]) == 2
    assert "--backbone test_resnet, not resnet18" in capsys.readouterr().err


@pytest.mark.parametrize("evaluation", [1, 4], ids=["validation", "test"])
def test_a_signal_during_an_evaluation(
    evaluation: int, fer_folders: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    calls = [0]
    ordinary = Watch.interruptible

    def over(self: Watch, batches: Any) -> Any:
        calls[0] += 1
        if calls[0] == evaluation:
            self.number = signal.SIGINT
        return ordinary(self, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watch, "interruptible", over)
        assert main(["--data", str(fer_folders), "--out", str(tmp_path / "run"), *RUN]) == 128 + signal.SIGINT
    assert calls == [evaluation]
    resumes(tmp_path / "run")
    assert_same(outcome(tmp_path / "run"), undisturbed)


@pytest.mark.slow
@pytest.mark.compiles
def test_a_compiled_model_is_resumed_too(fer_folders: Path, tmp_path: Path) -> None:
    run = (*QUICK, "--data", str(fer_folders), "--batch-size", "14", "--epochs", "2", "--compile", "--ema", "0.9")
    assert main([*run, "--out", str(tmp_path / "whole")]) == 0
    with pytest.MonkeyPatch.context() as patch:
        stop_after(4, patch)
        assert main([*run, "--out", str(tmp_path / "run")]) == 128 + signal.SIGTERM
    torch.compiler.reset()
    assert main(["--resume", str(tmp_path / "run")]) == 0
    assert_same(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))
