"""The cache of decoded images: the same pixels, decoded once, whatever interrupts it."""

import errno
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.train import layouts
from train.data import Request, load_data
from train.data.base import FaceDataset, Subset
from train.data.decoded import DecodedImages, decode, resized
from train.errors import UserError
from train.transforms import Preprocessing


@pytest.fixture
def faces(tmp_path: Path) -> FaceDataset:
    root = layouts.class_folders(
        tmp_path / "d", {"train": {"x": (0, 100), "y": (1, 100)}, "test": {"x": (0, 3), "y": (1, 3)}}
    )
    return load_data(str(root), Request()).train


def pixels(faces: FaceDataset) -> list[bytes]:
    return [faces.image(index).tobytes() for index in range(len(faces))]


@pytest.mark.parametrize("processes", [1, 2])
def test_small_pictures_keep_their_size(faces: FaceDataset, tmp_path: Path, processes: int) -> None:
    decoded = decode(faces, tmp_path / "cache", 64, processes)
    assert decoded.side == 24
    assert pixels(decoded) == pixels(faces)
    assert decoded.labels.tolist() == faces.labels.tolist()
    assert decoded.encoded(3) == faces.encoded(3)
    assert decoded.name(3) == faces.name(3)


def test_others_are_resized_as_for_evaluation(tmp_path: Path) -> None:
    root = layouts.class_folders(tmp_path / "d", {"": {"x": (0, 6), "y": (1, 6)}})
    Image.fromarray(layouts.pixels(0, 50)).crop((0, 0, 50, 30)).save(root / "x/5.png")
    faces = load_data(str(root), Request(validation_fraction=0.01)).train
    decoded = decode(faces, tmp_path / "cache", 32)
    assert decoded.side == 32
    evaluation = Preprocessing(32, (0,) * 3, (1,) * 3).evaluation()
    for index in range(len(faces)):
        assert (evaluation(decoded.image(index)) - evaluation(faces.image(index))).abs().max() < 0.003
        assert np.array_equal(np.asarray(decoded.image(index)), np.asarray(resized(faces.image(index), 32)))


def test_cached_until_a_file_changes(faces: FaceDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decode(faces, tmp_path / "cache", 64)
    assert "decoding" in capsys.readouterr().out
    decode(faces, tmp_path / "cache", 64)
    assert capsys.readouterr().out == ""
    assert isinstance(faces, Subset)
    root = tmp_path / "d"
    os.utime(root / "train/x/0.png", ns=(1, 1))
    again = load_data(str(root), Request()).train
    assert again.fingerprint == faces.fingerprint
    decode(again, tmp_path / "cache", 64)
    assert "decoding" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["u8", "json"])
def test_made_again_where_it_is_damaged(faces: FaceDataset, tmp_path: Path, suffix: str) -> None:
    """After a power cut, or if only a part of the folder was copied."""
    decode(faces, tmp_path / "cache", 64)
    [file] = (tmp_path / "cache").glob(f"*.{suffix}")
    os.truncate(file, 7)
    assert pixels(decode(faces, tmp_path / "cache", 64)) == pixels(faces)
    file.unlink()
    assert pixels(decode(faces, tmp_path / "cache", 64)) == pixels(faces)


def test_a_killed_process_loses_little(
    faces: FaceDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("train.data.decoded.SAVE_SECONDS", 0.0)

    class Dying:
        def __init__(self, faces: FaceDataset) -> None:
            self.faces, self.labels, self.fingerprint, self.stamp = faces, faces.labels, faces.fingerprint, faces.stamp
            self.class_names, self.split = faces.class_names, faces.split

        def __len__(self) -> int:
            return len(self.faces)

        def image(self, index: int) -> Image.Image:
            if index == 150:
                os._exit(9)
            return self.faces.image(index)

    process = multiprocessing.get_context("fork").Process(target=decode, args=(Dying(faces), tmp_path / "cache", 64, 1))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    capsys.readouterr()
    decoded = decode(faces, tmp_path / "cache", 64, 1)
    assert f"decoding {len(faces) - 128:,} images" in capsys.readouterr().out
    assert pixels(decoded) == pixels(faces)


def test_several_processes_make_one(faces: FaceDataset, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    several = [context.Process(target=decode, args=(faces, tmp_path / "cache", 64, 1)) for _ in range(3)]
    for process in several:
        process.start()
    for process in several:
        process.join(60)
    assert [process.exitcode for process in several] == [0, 0, 0]
    assert pixels(decode(faces, tmp_path / "cache", 64)) == pixels(faces)
    assert len(list((tmp_path / "cache").glob("*.u8"))) == 1


def test_it_travels_to_a_worker_as_a_few_names(faces: FaceDataset, tmp_path: Path) -> None:
    import pickle

    decoded = decode(faces, tmp_path / "cache", 64)
    decoded.image(0)
    assert len(pickle.dumps(decoded)) < len(pickle.dumps(faces)) + 2000
    assert isinstance(decoded, DecodedImages)


def test_places_that_cannot_be_written(faces: FaceDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot keep decoded images there"):
        decode(faces, tmp_path / "file", 64)

    def full(handle: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("train.data.decoded.allocate", full)
    with pytest.raises(UserError, match="cannot keep decoded images there: No space left on device"):
        decode(faces, tmp_path / "cache", 64)
