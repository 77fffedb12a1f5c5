"""Every failure of a run ends in one message, and nothing is lost."""

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import train.loop
from tests.train.conftest import even, write_folders
from tests.train.test_command import QUICK
from tests.train.trainer import assert_same, outcome, resumes
from train.__main__ import main
from train.checkpoint import checkpoints, read_checkpoint, write_checkpoint
from train.errors import UserError


def test_a_truncated_checkpoint_is_passed_over(
    stopped: Path, undisturbed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    newest = checkpoints(stopped)[0]
    newest.write_bytes(newest.read_bytes()[:-1000])
    resumes(stopped)
    printed = capsys.readouterr().out
    assert f"{newest} is damaged (it is not what was written); continuing from the previous one" in printed
    assert "after step 6" in printed
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

    write_checkpoint(tmp_path, {"epoch": 1, "done": 1, "step": 1, "model": Evil()})
    with pytest.raises(UserError, match="is damaged"):
        read_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_other_classes_are_refused(stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_folders(tmp_path / "other", even(6, 2, 3))
    for part in ("train", "test"):  # now not the seven expressions: classes are named by their folders
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
    assert (
        "the train split differs from that at the start of the run (fingerprints differ; 42 images"
        in capsys.readouterr().err
    )


def test_other_settings_are_refused(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resumes(stopped, "--lr", "0.5", "--batch-size", "8", code=2)
    assert "the run has --lr 0.001, not 0.5. A resumed run keeps its settings" in capsys.readouterr().err
    resumes(stopped, "--out", "elsewhere", code=2)
    assert "continues in that folder" in capsys.readouterr().err


def test_two_processes_do_not_share_a_folder(stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import fcntl

    from train.owned_folder import LOCK

    pid = os.fork()
    if not pid:  # the other process: holds the lock until it is killed
        with (stopped / LOCK).open("w") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            (tmp_path / "held").touch()
            time.sleep(300)
            os._exit(0)
    deadline = time.monotonic() + 60
    while not (tmp_path / "held").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        resumes(stopped, code=2)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert "another process is training in this folder" in capsys.readouterr().err


def test_files_of_the_user_among_the_checkpoints_survive(tmp_path: Path) -> None:
    foreign = ["notes.txt", "backup.pt", "epoch00001-step000000001-backup.pt", "123.partial", "old/x.pt"]
    (tmp_path / "checkpoints/old").mkdir(parents=True)
    for name in foreign:
        (tmp_path / "checkpoints" / name).write_text("mine")
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, {"epoch": 1, "done": 1, "step": step})
    assert len(checkpoints(tmp_path)) == 2
    assert [(tmp_path / "checkpoints" / name).read_text() for name in foreign] == ["mine"] * len(foreign)


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
    note = f"the checkpoint {checkpoints(stopped)[0].name} is kept in {stopped}"
    assert error.rstrip().endswith(note) or what == "weights"
    assert not list(stopped.rglob("*.partial")) or what == "weights"
    if what != "weights":
        assert {path.name: path.read_bytes() for path in checkpoints(stopped)} == before
    resumes(stopped)
    assert_same(outcome(stopped), undisturbed)


@pytest.mark.parametrize("fault", ["disk", "diverged"])
def test_no_checkpoint_is_promised_where_there_is_none(
    fault: str, fer_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if fault == "disk":
            patch.setattr(train.loop.RunFolder, "log", full_disk)
        options = () if fault == "disk" else ("--lr", "1e30")
        assert main([*QUICK, "--data", str(fer_folders), "--out", str(tmp_path / "run"), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the disk is full (" if fault == "disk" else "error: the loss is no longer finite")
    assert error.rstrip().endswith("no checkpoint was written before it")
    assert not checkpoints(tmp_path / "run")


def test_a_file_size_limit_is_handled_like_a_full_disk(tmp_path: Path) -> None:
    """PyTorch's error of a write that fails half way is reported as a full disk, and no file is left behind."""
    state = {"epoch": 1, "done": 1, "step": 1, "model": torch.zeros(500_000)}
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
    assert "no checkpoint was written; the checkpoint epoch00002-step000000008" in error
    assert f" is kept in {stopped}" in error
    assert before.items() <= {path.name: path.read_bytes() for path in checkpoints(stopped)}.items()


def test_only_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, {"epoch": 1, "done": 1, "step": step})
    (tmp_path / "checkpoints/checkpoint.partial").touch()  # killed half written
    write_checkpoint(tmp_path, {"epoch": 2, "done": 1, "step": 4})
    assert [path.name[:25] for path in checkpoints(tmp_path)] == [
        "epoch00002-step000000004-",
        "epoch00001-step000000003-",
    ]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    # Training went back to this checkpoint: later ones belong to another history.
    write_checkpoint(tmp_path, {"epoch": 1, "done": 1, "step": 3})
    assert [path.name[:25] for path in checkpoints(tmp_path)] == ["epoch00001-step000000003-"]
