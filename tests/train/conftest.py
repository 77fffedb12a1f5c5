"""Small generated datasets in the layouts of FER-2013. Every image is a pattern of its class plus noise."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
FOLDERS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
CSV_NAMES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")  # codes 0 to 6
CANONICAL = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "angry")
Counts = Mapping[str, Mapping[str, int]]


def face(name: str, rng: np.random.Generator, size: int = 48) -> np.ndarray:
    """(size, size) uint8: waves whose direction and period belong to the class."""
    index = CANONICAL.index(name)
    y, x = np.mgrid[:size, :size] / size
    angle, period = np.pi * index / 7, 2 + index
    wave = np.sin(2 * np.pi * period * (np.cos(angle) * x + np.sin(angle) * y) + rng.uniform(0, 6))
    return np.clip(127 + 80 * wave + rng.normal(0, 10, (size, size)), 0, 255).astype(np.uint8)


def even(training: int, public: int, private: int) -> Counts:
    """The same number of images for every class."""
    parts = {"Training": training, "PublicTest": public, "PrivateTest": private}
    return {usage: dict.fromkeys(CANONICAL, count) for usage, count in parts.items() if count}


def write_folders(root: Path, counts: Counts) -> Path:
    rng = np.random.default_rng(0)
    for usage, classes in counts.items():
        for name, count in classes.items():
            folder = root / ("train" if usage == "Training" else "test") / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                Image.fromarray(face(name, rng)).save(folder / f"{usage}_{number:05d}.jpg", quality=92)
    return root


def csv_rows(counts: Counts) -> list[tuple[int, str, str]]:
    """(code, usage, pixels), the classes of a usage interleaved as in the real file."""
    rng = np.random.default_rng(0)
    rows = []
    for usage, classes in counts.items():
        names = [name for name, count in classes.items() for _ in range(count)]
        for name in rng.permutation(names):
            pixels = " ".join(map(str, face(str(name), rng).ravel()))
            rows.append((CSV_NAMES.index(str(name)), usage, pixels))
    return rows


def write_fer2013_csv(file: Path, counts: Counts) -> Path:
    lines = ["emotion,pixels,Usage", *(f"{code},{pixels},{usage}" for code, usage, pixels in csv_rows(counts))]
    file.write_text("\n".join(lines) + "\n")
    return file


def write_icml_csv(file: Path, counts: Counts) -> Path:
    lines = ["emotion, Usage, pixels", *(f"{code},{usage},{pixels}" for code, usage, pixels in csv_rows(counts))]
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Caches go to a folder of the tests."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADCORRE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def fer_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("folders") / "fer2013", even(6, 2, 3))


@pytest.fixture(scope="session")
def fer_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fer2013_csv(tmp_path_factory.mktemp("csv") / "fer2013.csv", even(6, 2, 3))


def run_train(*arguments: str | Path, cwd: Path = ROOT, code: int = 0) -> subprocess.CompletedProcess[str]:
    """`python -m train` as a user runs it, on one thread, without a network."""
    paths = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": paths,
    }
    command = [sys.executable, "-m", "train", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="session")
def train() -> Callable[..., subprocess.CompletedProcess[str]]:
    return run_train


@pytest.fixture(scope="session")
def finished_run(fer_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of two epochs on `fer_folders`. Tests may add files to it, and change none."""
    from train.__main__ import main

    run = tmp_path_factory.mktemp("runs") / "run"
    tiny = ("--backbone", "test_resnet", "--k", "2", "--d", "8", "--image-size", "32", "--batch-size", "16")
    plain = ("--device", "cpu", "--amp", "none", "--channels-last", "no", "--epochs", "2", "--log-every", "1")
    assert main(["--data", str(fer_folders), "--out", str(run), *tiny, *plain]) == 0
    return run


@pytest.fixture(scope="session")
def undisturbed(fer_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from tests.train import trainer

    run = tmp_path_factory.mktemp("undisturbed") / "run"
    process = trainer.start(run.with_suffix(".log"), "--data", fer_folders, "--out", run, *trainer.RUN)
    assert trainer.finish(process) == 0
    return trainer.outcome(run)


@pytest.fixture
def stopped(fer_folders: Path, tmp_path: Path) -> Path:
    """A run of three epochs that was stopped in its second, with two checkpoints."""
    from tests.train import trainer
    from train.checkpoint import checkpoints

    with pytest.MonkeyPatch.context() as patch:
        trainer.stop_after(8, patch)
        arguments = ["--data", str(fer_folders), "--out", str(tmp_path / "run"), *trainer.RUN]
        assert trainer.main(arguments) == 128 + signal.SIGTERM
    assert [path.name.split("-")[1] for path in checkpoints(tmp_path / "run")] == ["step000000008", "step000000006"]
    return tmp_path / "run"
