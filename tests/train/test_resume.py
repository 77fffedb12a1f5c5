"""A run that was stopped, by whatever, and goes on: the same weights bit for bit, and nothing lost on the way."""

import errno
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import train.loop
from tests.train import trainer
from tests.train.conftest import even, write_folders
from tests.train.test_command import QUICK, rows
from train.__main__ import main
from train.checkpoint import checkpoints, read_checkpoint, write_checkpoint
from train.errors import UserError
from train.ranks import ALONE
from train.stopping import Watch, ignore_in_worker

RUN = (*QUICK, "--batch-size", "8", "--epochs", "3", "--ema", "0.9", "--checkpoint-every", "2")


def outcome(run: Path) -> dict[str, Any]:
    """Everything of a run that has to be the same: not the times."""

    def table(name: str, *left_out: str) -> list[dict[str, str]]:
        return [{key: row[key] for key in row if key not in left_out} for row in rows(run / f"{name}.csv")]

    weights = {name: (run / name / "model.safetensors").read_bytes() for name in ("last", "best")}
    state = read_checkpoint(run)
    return weights | {
        "steps": table("steps", "images_per_second"),
        "epochs": table("epochs", "seconds"),
        "results": json.loads((run / "results.json").read_text()),
        "ema": {key: value.tolist() for key, value in (state["ema"] or {}).items()},
        "random": state["random"],
        "attention": state["loss"]["attention_map.counts"].tolist(),
    }


def same(ours: Any, theirs: Any) -> bool:
    """Equal to the last bit, NaN too."""
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    return bool(ours == theirs)


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert [key for key in ours if not same(ours[key], theirs[key])] == []


@pytest.fixture(scope="module")
def undisturbed(fer_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert trainer.finish(trainer.start(run.with_suffix(".log"), "--data", fer_folders, "--out", run, *RUN)) == 0
    return outcome(run)


def steps_in(run: Path) -> int:
    try:
        return (run / "steps.csv").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def kill_and_resume(data: Path, run: Path, kills: int, seed: int) -> str:
    """Everything printed by a run that is killed with -9 at random moments, until it has ended all the same."""
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
    said = kill_and_resume(fer_folders, tmp_path / "run", kills=3, seed=1)
    assert_same(outcome(tmp_path / "run"), undisturbed)
    assert "not bit for bit" not in said


@pytest.mark.slow
def test_killed_twenty_times(fer_folders: Path, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    said = kill_and_resume(fer_folders, tmp_path / "run", kills=20, seed=2)
    assert said.count("going on in epoch") > 5
    assert_same(outcome(tmp_path / "run"), undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint(
    number: signal.Signals, fer_folders: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    slow = ("--checkpoint-every", "0")  # so that only the signal writes one
    process = trainer.start(log, "--data", fer_folders, "--out", run, *RUN, *slow)
    deadline = time.monotonic() + 200
    while steps_in(run) < 3 and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid or 0, number)
    assert trainer.finish(process) == 128 + number
    assert f"stopped by {number.name}, with a checkpoint; python -m train --resume {run} goes on" in log.read_text()
    done = read_checkpoint(run)["step"]
    assert done >= 2
    assert trainer.finish(trainer.start(log, "--data", fer_folders, "--resume", run, "--checkpoint-every", "2")) == 0
    assert f"after step {done}" in log.read_text()
    assert_same(outcome(run), undisturbed)


def stop_after(steps: int, patch: pytest.MonkeyPatch) -> None:
    """As if SIGTERM came in step `steps` of this process's next run."""
    seen = [0]

    def poll(self: Watch) -> tuple[int, bool]:
        seen[0] += 1
        self.number = signal.SIGTERM if seen[0] == steps else 0
        return self.number, False

    patch.setattr(Watch, "poll", poll)


@pytest.mark.parametrize(
    "options",
    [
        ("--amp", "fp16", "--clip", "1"),
        ("--amp", "bf16", "--channels-last", "yes", "--optimizer", "adamw", "--weight-decay", "0.1"),
        ("--optimizer", "sgd", "--schedule", "cosine", "--warmup-epochs", "0.5", "--label-smoothing", "0.1"),
        ("--virtual-batch", "2", "--sampler", "balanced", "--ce-weight", "balanced"),
        ("--augment", "loading", "--workers", "1", "--deterministic", "--flip"),
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


@pytest.fixture
def stopped(fer_folders: Path, tmp_path: Path) -> Path:
    """A run of three epochs that was stopped in its second, with two checkpoints."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(8, patch)
        arguments = ["--data", str(fer_folders), "--out", str(tmp_path / "run"), *RUN]
        assert main(arguments) == 128 + signal.SIGTERM
    assert [path.name.split("-")[1] for path in checkpoints(tmp_path / "run")] == ["step000000008", "step000000006"]
    return tmp_path / "run"


def resumes(run: Path, *options: str | Path, code: int = 0) -> None:
    assert main(["--resume", str(run), *map(str, options)]) == code


def test_a_truncated_checkpoint_is_passed_over(
    stopped: Path, undisturbed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    newest = checkpoints(stopped)[0]
    newest.write_bytes(newest.read_bytes()[:-1000])
    resumes(stopped)
    said = capsys.readouterr().out
    assert f"{newest} is damaged (it is not what was written); going on from the one before" in said
    assert "after step 6" in said
    assert_same(outcome(stopped), undisturbed)


def test_no_checkpoint_is_whole(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in checkpoints(stopped):
        path.write_bytes(b"")
    resumes(stopped, code=2)
    error = capsys.readouterr().err
    assert "is damaged" in error
    assert error.strip().endswith("there is no other")
    resumes(stopped.parent, code=2)
    assert "no checkpoint there (looked for" in capsys.readouterr().err


def test_checkpoints_hold_no_code(tmp_path: Path) -> None:
    """A pickle that would run a program is refused, not run."""

    class Evil:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    write_checkpoint(tmp_path, {"epoch": 1, "step": 1, "model": Evil()})
    with pytest.raises(UserError, match="is damaged"):
        read_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_other_classes_are_refused(stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_folders(tmp_path / "other", even(6, 2, 3))
    for part in ("train", "test"):  # now no set of expressions: classes by their folders' names
        for folder in list((other / part).iterdir()):
            folder.rename(folder.with_name(f"class-{folder.name}"))
    resumes(stopped, "--data", other, code=2)
    error = capsys.readouterr().err
    assert "the run was trained on the classes Neutral, Happy, Sad" in error
    assert "in this order; the data have class-angry, class-disgust" in error


def test_other_images_are_refused(stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_folders(tmp_path / "other", even(6, 2, 3))
    (other / "train/sad/Training_00000.jpg").rename(other / "train/happy/Training_00077.jpg")
    resumes(stopped, "--data", other, code=2)
    assert "the train split is not what the run began with (fingerprints differ; 42 images" in capsys.readouterr().err


def test_other_settings_are_refused(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resumes(stopped, "--lr", "0.5", "--batch-size", "8", code=2)
    assert "the run has --lr 0.001, not 0.5. A run goes on as it began" in capsys.readouterr().err
    resumes(stopped, "--out", "elsewhere", code=2)
    assert "goes on in that folder" in capsys.readouterr().err


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


def test_two_processes_do_not_share_a_folder(stopped: Path, tmp_path: Path) -> None:
    import fcntl

    from train.run_folder import LOCK

    pid = os.fork()
    if not pid:  # the other process: holds the lock until it is killed
        with (stopped / LOCK).open("w") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            (tmp_path / "held").touch()
            time.sleep(300)
            os._exit(0)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    try:
        assert trainer.finish(trainer.start(tmp_path / "log", "--resume", stopped)) == 2
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert "another process is training in this folder" in (tmp_path / "log").read_text()


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("what", ["checkpoint", "weights", "log"])
def test_a_full_disk_loses_nothing(
    what: str, stopped: Path, undisturbed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in checkpoints(stopped)}
    with pytest.MonkeyPatch.context() as patch:
        if what == "checkpoint":
            patch.setattr(torch, "save", full_disk)
        elif what == "weights":
            patch.setattr("train.run_folder.save_file", full_disk)
        else:
            patch.setattr(train.loop.RunFolder, "log", full_disk)
        resumes(stopped, code=2)
    error = capsys.readouterr().err
    assert error.startswith("error: the disk is full (")
    assert "the last checkpoints are kept, --resume goes on" in error
    assert not list(stopped.rglob("*.partial")) or what == "weights"
    if what != "weights":
        assert {path.name: path.read_bytes() for path in checkpoints(stopped)} == before
    resumes(stopped)
    assert_same(outcome(stopped), undisturbed)


def test_a_file_size_limit_as_the_disk_would_have_it(tmp_path: Path) -> None:
    """What PyTorch makes of a write that fails half way is the disk's error again, and leaves nothing behind."""
    state = {"epoch": 1, "step": 1, "model": torch.zeros(500_000)}
    pid = os.fork()
    if not pid:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        try:
            write_checkpoint(tmp_path, state)
        except OSError as error:
            os._exit(error.errno or 99)
        os._exit(98)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == errno.EFBIG
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_loss_that_is_no_number_keeps_the_checkpoints(
    stopped: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in checkpoints(stopped)}
    calls = [0]
    ordinary = train.loop.VirtualBatch.__call__

    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        output = ordinary(self, *arguments, **options)
        return output._replace(loss=output.loss * float("nan")) if calls[0] == 2 else output

    monkeypatch.setattr(train.loop.VirtualBatch, "__call__", call)
    assert main(["--resume", str(stopped), "--log-every", "100"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the loss or a weight is no longer finite (epoch 2, step 10)")
    assert "the one before is kept" in error
    assert before.items() <= {path.name: path.read_bytes() for path in checkpoints(stopped)}.items()


def test_only_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, {"epoch": 1, "step": step})
    (tmp_path / "checkpoints/123.partial").touch()
    write_checkpoint(tmp_path, {"epoch": 2, "step": 4})
    assert [path.name[:25] for path in checkpoints(tmp_path)] == [
        "epoch00002-step000000004-",
        "epoch00001-step000000003-",
    ]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    write_checkpoint(tmp_path, {"epoch": 1, "step": 3})  # gone back to: what came after it is of another history
    assert [path.name[:25] for path in checkpoints(tmp_path)] == ["epoch00001-step000000003-"]


def test_resume_auto(fer_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["--resume", "auto", *QUICK]) == 2
    assert "say by --out in which folder" in capsys.readouterr().err
    begin = ["--data", str(fer_folders), "--out", str(run), "--resume", "auto", *QUICK]
    run.mkdir()
    (run / "settings.json").write_text("{}")  # it ended before its first checkpoint
    assert main(begin) == 0
    assert main(begin) == 0
    assert "this run has ended" in capsys.readouterr().out
    for path in checkpoints(run):
        path.unlink()
    assert main(begin) == 2
    assert "holds a run without a checkpoint to go on from" in capsys.readouterr().err
    assert load_file(run / "last/model.safetensors")


def test_the_clock_asks_for_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("train.stopping.time.monotonic", lambda: now[0])
    watch = Watch(ALONE, minutes=1)
    asked = []
    for now[0] in (0, 59, 61, 62, 122):
        asked.append(watch.poll()[1])
        if asked[-1]:
            watch.written()
    assert asked == [False, False, True, False, True]
    assert not Watch(ALONE, minutes=0).poll()[1]


def test_workers_outlive_a_signal_to_their_group_but_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.stopping.GRACE", 1)
    pid = os.fork()
    if not pid:
        ignore_in_worker()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        began = time.monotonic()
        while time.monotonic() < began + 100:
            time.sleep(0.05)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGALRM


def test_resume_auto_needs_no_more_than_the_folder(
    stopped: Path, undisturbed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """What was not named is the run's, the drawn faces' recipe too."""
    assert main(["--out", str(stopped), "--resume", "auto"]) == 0
    assert_same(outcome(stopped), undisturbed)
    assert main(["--out", str(stopped), "--resume", "auto", "--recipe", "fer2013-modern"]) == 2
    assert "--backbone test_resnet, not resnet18" in capsys.readouterr().err


@pytest.mark.parametrize("evaluation", [1, 4], ids=["validation", "test"])
def test_a_signal_during_an_evaluation(
    evaluation: int, fer_folders: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    calls = [0]
    ordinary = Watch.over

    def over(self: Watch, batches: Any) -> Any:
        calls[0] += 1
        if calls[0] == evaluation:
            self.number = signal.SIGINT
        return ordinary(self, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watch, "over", over)
        assert main(["--data", str(fer_folders), "--out", str(tmp_path / "run"), *RUN]) == 128 + signal.SIGINT
    assert calls == [evaluation]
    resumes(tmp_path / "run")
    assert_same(outcome(tmp_path / "run"), undisturbed)
