"""Entry and exit of commands: terminals, pipes, notebooks, restricted machines, mistyped options."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.__main__ import main as bench
from tests.train.test_command import QUICK
from train import ablate, evaluate, export, predict
from train.__main__ import main
from train.data.__main__ import main as data
from train.entry import SPIN, exit_code, explain
from train.errors import UserError
from train.optimization import warmup_notes
from train.ranks import Ranks
from train.settings import Settings
from train.speed import autotune

ROOT = Path(__file__).parents[2]


def command(*words: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    whole = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    line = ["bash", "-c", f'"$0" "$@" {shell}', sys.executable, *words]
    return subprocess.run(line, cwd=ROOT, env=whole, capture_output=True, text=True, errors="replace", timeout=300)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
@pytest.mark.parametrize("module", ["train", "train.data", "train.ablate"])
def test_terminals_that_cannot_show_every_letter(module: str, encoding: str) -> None:
    done = command("-m", module, "--help", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    if module == "train":
        assert "weight \\u03bb of FD" in done.stdout


def test_errors_in_ascii(tmp_path: Path) -> None:
    done = command("-m", "train", "--data", str(tmp_path / "fée"), PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert "f\\xe9e: no such file or folder" in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [("-m", "train", "--help"), ("-m", "bench", "--help")])
def test_a_closed_stdout_pipe(words: tuple[str, ...], unbuffered: str) -> None:
    done = command(*words, shell="| true; exit ${PIPESTATUS[0]}", PYTHONUNBUFFERED=unbuffered)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert done.returncode in (0, 2, 141)  # here everything was written before


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", ">&-", "2>&-"])
def test_streams_that_were_closed(closed: str, tmp_path: Path) -> None:
    """Opened files must not get stdout's file descriptor, which libraries write to by number."""
    file = str(tmp_path / "f")
    script = f"""
import os
from train.entry import exit_code, leave

def write():
    with open({file!r}, "w") as file:
        print("x", file=file)
        print("y")
        os.write(1, b"z")

leave(exit_code(write))
"""
    assert command("-c", script, shell=closed).returncode == 0
    assert (tmp_path / "f").read_text() == "x\n"
    assert command("-m", "train", "--epochs", "0", shell=closed).returncode == 2


def test_variables_of_a_scheduler_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Ranks.of(os.environ) == Ranks()
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match="WORLD_SIZE is 4, but RANK, .* start by torchrun, or unset WORLD_SIZE"):
        Ranks.of({"WORLD_SIZE": "4", "RANK": "0"})


def test_an_inherited_backend_of_a_notebook(tmp_path: Path) -> None:
    backend = "module://matplotlib_inline.backend_inline"
    options = (*QUICK, "--limit", "14", "--out", str(tmp_path / "run"))
    done = command("-m", "train", *options, MPLBACKEND=backend)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/test-confusion.png").stat().st_size


def test_environment_variables_set_before_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    for chosen in ({}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}, {"KMP_BLOCKTIME": "1"}):
        for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in chosen.items():
            monkeypatch.setenv(name, value)
        assert exit_code(lambda: 0) == 0
        assert os.environ.get("GOMP_SPINCOUNT") == (chosen.get("GOMP_SPINCOUNT") if chosen else SPIN["GOMP_SPINCOUNT"])
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)


@pytest.mark.parametrize(
    "call, words, expected",
    [
        (main, ["--epoch", "3"], "unrecognized argument --epoch; did you mean --epochs?"),
        (main, ["-epochs", "3"], "did you mean --epochs?"),
        (main, ["--batch_size=3"], "did you mean --batch-size?"),
        (main, ["--zzzzzz"], "unrecognized argument --zzzzzz (see"),
        (ablate.main, ["table9", "--seed-s", "3"], "did you mean --seeds?"),
        (evaluate.main, ["--resample", "3"], "did you mean --resamples?"),
        (predict.main, ["--batchsize", "3"], "did you mean --batch-size?"),
        (export.main, ["--op-set", "3"], "did you mean --opset?"),
        (data, ["shard", "--protocoll", "paper"], "did you mean --protocol?"),
        (data, ["chek"], "did you mean check?"),
    ],
)
def test_mistyped_options_get_the_nearest_name(
    call, words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(words) == 2
    assert expected in capsys.readouterr().err


def test_mistyped_options_of_the_benchmarks(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(["losss"]) == 2
    assert "did you mean loss?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench(["spin", "--secconds", "1"])
    assert "did you mean --seconds?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error, words",
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: Permission denied"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            r"a process that loads images (PID 7) was killed (Killed); did the memory run out?",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that ..."),
            "/dev/shm is too small for the processes that load images: --workers 0, or enlarge it",
        ),
        (
            RuntimeError("unable to write to file </torch_12_3_0>: No space left on device (28)"),
            "/dev/shm is too small",
        ),
        (
            RuntimeError("unable to resize file </torch_12_3_0> to the right size: File too large (27)"),
            "/dev/shm is too small",
        ),
        (RuntimeError("InvalidCxxCompiler: No working C++ compiler found in ..."), "install g++ or clang++"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "a smaller --batch-size needs less"),
        (ZeroDivisionError("0"), ""),
        (OSError(errno.EINVAL, "Invalid argument"), ""),
    ],
)
def test_errors_of_the_machine_say_what_to_do(error: Exception, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise error

    if not words:
        with pytest.raises(type(error)):
            exit_code(fail)
        return
    assert exit_code(fail) == 2
    printed = capsys.readouterr().err
    assert words in printed
    assert printed.count("\n") == 1
    assert explain(error)


def test_no_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither $HOME nor an entry in the password database."""
    from train.data.store import cached_dir

    for name in ("HOME", "ADCORRE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    assert cached_dir("speed-x", lambda folder: None) is None
    assert "no home folder; name one by $ADCORRE_CACHE" in capsys.readouterr().err
    monkeypatch.setenv("ADCORRE_CACHE", str(tmp_path))
    assert cached_dir("speed-x", lambda folder: None) == tmp_path / "speed-x"


def test_a_measurement_on_a_busy_machine_is_not_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ADCORRE_CACHE", str(tmp_path))
    monkeypatch.setattr("train.speed._seconds", lambda *_: 1.0)
    now, share = [0.0], [0.5]

    def wall() -> float:
        now[0] += 1
        return now[0]

    monkeypatch.setattr("train.speed.time.perf_counter", wall)
    monkeypatch.setattr("train.speed.time.thread_time", lambda: share[0] * now[0])
    settings, device = Settings().speed, torch.device("cpu")
    for busy in (True, False):
        share[0] = 0.5 if busy else 1.0
        assert autotune(torch.nn.Conv2d(3, 3, 1), settings, 8, 4, device)[0].amp == "none"
        printed = capsys.readouterr().out
        assert ("something else computes on this machine" in printed) == busy
        assert len(list(tmp_path.iterdir())) == (not busy)


@pytest.mark.parametrize(
    "settings, note",
    [
        ({"lambd_cooldown": 20}, ""),
        ({"lambd_cooldown": 15, "lambd_warmup": 6}, "--lambd-cooldown 15 ends at step 21, after the run of 20 steps"),
        ({"schedule": "step", "lr_drop_epochs": 1}, ""),
        ({"schedule": "step", "lr_drop_epochs": 2}, "--schedule step never lowers the learning rate"),
        ({"schedule": "plateau"}, "--lr-drop-epochs 10 in a run of 2 epochs"),
        ({"lr_drop_epochs": 20}, ""),
    ],
)
def test_schedules_longer_than_the_run(settings: dict[str, Any], note: str) -> None:
    lines = warmup_notes(Settings().replace({"epochs": 2, **settings}), steps_per_epoch=10)
    assert len(lines) == bool(note)
    assert note in "".join(lines)


@pytest.mark.parametrize(
    "epochs, warmup, lambd_warmup, notes",
    [
        (2, 2.0, 19, []),  # reached in the last step
        (2, 2.5, 0, ["--warmup-epochs 2.5 is longer than the run of 2 epochs: the learning rate ends at 0.0008"]),
        (2, 0.0, 20, ["--lambd-warmup 20 is longer than the run of 20 steps: λ ends at 0.475, below --lambd 0.5"]),
    ],
)
def test_warm_ups_longer_than_the_run(epochs: int, warmup: float, lambd_warmup: int, notes: list[str]) -> None:
    settings = Settings().replace({"epochs": epochs, "warmup_epochs": warmup, "lambd_warmup": lambd_warmup})
    lines = warmup_notes(settings, steps_per_epoch=10)
    assert len(lines) == len(notes)
    assert all(note in line for note, line in zip(notes, lines, strict=True))


def test_threads(fer_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    try:
        assert main([*QUICK, "--data", str(fer_folders), "--out", str(tmp_path / "run"), "--threads", "3"]) == 0
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert main([*QUICK, "--threads", "-1"]) == 2
    assert "--threads -1: expected" in capsys.readouterr().err
