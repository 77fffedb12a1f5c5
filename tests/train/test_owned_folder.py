"""Only files that this program names are deleted, and only in folders that carry its mark."""

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train.test_command import QUICK
from train import disk, owned_folder
from train.__main__ import main
from train.checkpoint import write_checkpoint
from train.errors import UserError
from train.model import build_model
from train.run_folder import MODEL_FILES, RunFolder, check_run_folder, is_run
from train.settings import ModelSettings, Settings

OURS = {"settings": Settings().as_dict(), "data": {}, "versions": {}, "processes": 1}


def write(root: Path, *names: str, text: str = "mine") -> list[Path]:
    paths = [root / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return paths


def contents_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def contents(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("options", [("--resume", "auto"), ("--overwrite",), ("--resume", "auto", "--overwrite"), ()])
@pytest.mark.parametrize(
    "settings",
    [
        '{"editor.fontSize": 12}',
        "{}",
        "no json",
        "[]",
        '{"settings": {"data": {}, "model": {}, "loss": {}, "run": {}}, "data": {}, "versions": {}}',
        json.dumps(OURS),  # a copy of a run's settings makes no run
    ],
)
def test_a_folder_without_the_mark_is_refused_untouched(
    options: tuple[str, ...], settings: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "thesis.tex", "src/a.py", "validation/mine.csv", "best/notes.txt", "steps.csv", "x.partial")
    write(tmp_path, "settings.json", text=settings)
    before = contents(tmp_path)
    assert main([*QUICK, "--limit", "14", "--out", str(tmp_path), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --out {tmp_path} is not empty and holds no run (no mark .adcorre.json)")
    assert error.count("\n") == 1
    assert contents(tmp_path) == before


def test_resume_leaves_another_programs_settings_alone(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "project", "thesis.tex", "settings.json")
    (stopped / "checkpoints").rename(tmp_path / "project/checkpoints")
    assert main(["--resume", str(tmp_path / "project")]) == 2
    assert "settings.json there is of no run" in capsys.readouterr().err
    assert (tmp_path / "project/settings.json").read_text() == "mine"
    assert not (tmp_path / "project/.lock").exists()


def test_an_overwritten_run_keeps_what_is_the_users(stopped: Path, fer_folders: Path) -> None:
    foreign = write(
        stopped,
        *("notes.txt", "src/a.py", "evaluation-test/metrics.json", "best/evaluation/x.csv", "validation/mine.csv"),
        *("checkpoints/backup/x.pt", "checkpoints/notes.txt", "tensorboard/mine", "last/README.md", "x.partial"),
        *("tensorboard/events.out.tfevents.1.host.2.0", "best.old/model.safetensors", "last.bak/model.json"),
    )
    link = stopped / "elsewhere"
    link.symlink_to(fer_folders)
    assert main([*QUICK, "--data", str(fer_folders), "--out", str(stopped), "--overwrite"]) == 0
    assert [path.read_text() for path in foreign] == ["mine"] * len(foreign)
    assert link.is_symlink()
    assert any(fer_folders.iterdir())
    assert len(list((stopped / "checkpoints").glob("*.pt"))) == 1  # none of the run before
    assert len(list((stopped / "validation").glob("epoch-*"))) == 1
    assert main(["--resume", str(stopped)]) == 0
    assert [path.read_text() for path in foreign] == ["mine"] * len(foreign)


def test_a_run_that_ended_meanwhile_is_not_replaced(stopped: Path) -> None:
    """Two runs start at once in one new folder; the second has loaded its data when the first has ended."""
    before = contents_of(stopped)
    with pytest.raises(UserError, match="is not empty: choose another folder, or replace the run in it by --overwrite"):
        RunFolder(stopped, {})
    assert contents_of(stopped) == before


@pytest.mark.parametrize("name", ["best", "last"])
def test_a_linked_model_folder_is_refused(name: str, stopped: Path, fer_folders: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    (stopped / name).rename(foreign)
    (foreign / "thesis.tex").write_text("years of work")
    (stopped / name).symlink_to(foreign)
    before = sorted(foreign.iterdir())
    for words in (["--overwrite"], ["--resume", "auto"]):
        assert main(["--data", str(fer_folders), "--out", str(stopped), *QUICK, *words]) == 2
        assert sorted(foreign.iterdir()) == before


def test_runs_without_a_mark_are_recognized_by_their_files(stopped: Path) -> None:
    (stopped / owned_folder.MARK).unlink()
    assert is_run(stopped)
    assert check_run_folder(str(stopped), overwrite=True) == stopped
    (stopped / "settings.json").write_text('{"editor.fontSize": 12}')
    assert not is_run(stopped)


@pytest.mark.parametrize(
    "mark", ["", "{}", '{"adcorre": "evaluation", "format": 1}', '{"adcorre": "run", "format": 2}']
)
def test_marks_of_others_are_none(mark: str, tmp_path: Path) -> None:
    write(tmp_path, owned_folder.MARK, text=mark)
    write(tmp_path, "results.json")
    with pytest.raises(UserError, match="holds no run"):
        check_run_folder(str(tmp_path), overwrite=True)


def test_a_folder_of_results_is_prepared(tmp_path: Path) -> None:
    out, outputs = tmp_path / "out", ("figures.csv", "pictures/*.png")
    assert owned_folder.prepare(out, "evaluation", outputs) == out
    write(out, "figures.csv", "pictures/a.png", text="ours")
    foreign = write(out, "notes.txt", "other/b.png")
    owned_folder.prepare(out, "evaluation", outputs)
    assert contents(out).keys() == {owned_folder.MARK, "notes.txt", "other/b.png"}
    assert not (out / "pictures").exists()
    assert [path.read_text() for path in foreign] == ["mine"] * 2
    with pytest.raises(UserError, match=r"something else \(evaluation\) and has no mark of predictions"):
        owned_folder.prepare(out, "predictions", outputs)
    bare, file = tmp_path / "bare", tmp_path / "file"
    write(bare, "figures.csv")
    file.touch()
    for path in (bare, file):
        with pytest.raises(UserError, match=f"--to {path}"):
            owned_folder.prepare(path, "evaluation", outputs, "--to")
    assert contents(bare) == {"figures.csv": "mine"}


def test_two_processes_do_not_write_into_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = (
        "import sys; from pathlib import Path; from train.owned_folder import prepare; "
        f"prepare(Path({str(out)!r}), 'predictions', ('x.csv',), alone=True); "
        "print('there', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdout.readline() == b"there\n"
        (out / "x.csv").write_text("foreign")
        with pytest.raises(UserError, match="another process is writing there: choose another folder"):
            owned_folder.prepare(out, "predictions", ("x.csv",), alone=True)
        assert (out / "x.csv").read_text() == "foreign"
        other.communicate()
    for _ in range(2):  # the same process may
        owned_folder.prepare(out, "predictions", ("x.csv",), alone=True)
    assert not (out / "x.csv").exists()


def test_models_replace_each_other_and_nothing_else(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, {})
    model, preprocessing = build_model(ModelSettings("test_resnet", k=2, d=8), 3, 32)
    about = {
        "model": {"backbone": "test_resnet", "k": 2, "d": 8, "dropout": 0.5},
        "class_names": ["a", "b", "c"],
        "preprocessing": preprocessing.as_dict(),
        "epoch": 1,
    }
    run.save("best", model, about)
    write(tmp_path, "best/evaluation/x.csv", "best.partial/mine", "best.replaced/mine")
    run.save("best", model, about | {"epoch": 2})
    names = {"evaluation/x.csv", "mine", "mine.old", *MODEL_FILES[:2]}
    assert {
        str(path.relative_to(tmp_path / "best")) for path in (tmp_path / "best").rglob("*") if path.is_file()
    } == names
    assert not (tmp_path / "best.replaced").exists()
    assert run.saved_epoch("best") == 2


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    """As in timm's coat_*: two names for the same layers."""
    run = RunFolder(tmp_path, {})
    model, preprocessing = build_model(ModelSettings("test_resnet", k=2, d=8), 3, 32)
    model.backbone.again = model.backbone.layer1  # type: ignore[assignment]
    model.backbone.register_buffer("part", next(model.backbone.layer1.parameters()).detach()[:1])  # type: ignore[union-attr]
    run.save("last", model, {"epoch": 1})
    stored, expected = load_file(tmp_path / "last/model.safetensors"), model.state_dict()
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[key], expected[key]) for key in expected)


@pytest.mark.parametrize("fault", ["locks", "fsync of folders", "fsync of files", "fsync of read-only handles"])
def test_filesystems_that_do_less(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = os.fsync

    def fail(number: int) -> None:
        raise OSError(number, os.strerror(number))

    def fsync(handle: int) -> None:
        if fault == f"fsync of {'folders' if stat.S_ISDIR(os.fstat(handle).st_mode) else 'files'}":
            fail(errno.EINVAL)
        if fault == "fsync of read-only handles" and fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            fail(errno.EBADF)
        real(handle)

    monkeypatch.setattr(disk, "_noted", set())
    if fault == "locks":
        monkeypatch.setattr(fcntl, "lockf", lambda *_: fail(errno.ENOLCK))
    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("a", "b"):
        RunFolder(tmp_path / name, {})
        write_checkpoint(tmp_path / name, {"epoch": 1, "done": 1, "step": 1})
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1, "one note, once"
    assert f"has no {'fsync of folders' if fault == 'fsync of read-only handles' else fault}: " in printed


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_failed_fsync_is_an_error(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    for call in (lambda: disk.sync_folder(tmp_path), lambda: disk.write_json(tmp_path / "x.json", {})):
        with pytest.raises(OSError, match=os.strerror(number)):
            call()


def test_a_home_folder_that_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--limit", "14", "--out", "~no-such-user/run"]) == 2
    assert "~no-such-user/run: the home folder is not known" in capsys.readouterr().err
