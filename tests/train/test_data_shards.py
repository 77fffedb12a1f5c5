"""Tar shards: what was written is read, by the kit and by webdataset; streams over ranks and workers."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from tests.train import layouts
from tests.train.conftest import even, write_folders
from tests.train.test_command import QUICK
from train.__main__ import main as train
from train.data import Request, load_data
from train.data.__main__ import main
from train.data.base import Subset
from train.data.loading import train_batches
from train.data.shards import INDEX, Shards, stream_order
from train.errors import UserError
from train.ranks import Ranks


@pytest.fixture(scope="module")
def sharded(fer_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "fer"
    assert main(["shard", str(fer_folders), str(out), "--samples-per-shard", "5"]) == 0
    return out


def test_shards_hold_the_same_samples(sharded: Path, fer_folders: Path) -> None:
    one, other = load_data(str(sharded), Request()), load_data(str(fer_folders), Request())
    assert one.layout == "tar shards"
    assert "shards of: FER-2013 folders" in one.report
    for name in ("train", "validation", "test"):
        part, plain = getattr(one, name), getattr(other, name)
        assert part.class_names == plain.class_names
        assert part.labels.tolist() == plain.labels.tolist()
        for index in range(len(part)):
            assert part.image(index).tobytes() == plain.image(index).tobytes()
            assert part.encoded(index) == plain.encoded(index), "the file's own bytes"
    assert len(list(sharded.glob("train-*.tar"))) == 9  # of 42 images
    index = json.loads((sharded / INDEX).read_text())
    assert sum(index["splits"]["train"]["counts"].values()) == 42


def test_webdataset_reads_them(sharded: Path, fer_folders: Path) -> None:
    urls = [str(file) for file in sorted(sharded.glob("train-*.tar"))]
    seen = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("jpg", "cls", "json"))
    plain = load_data(str(fer_folders), Request()).train
    assert [label for _, label, _ in seen] == plain.labels.tolist()
    assert [about["name"] for _, _, about in seen] == [plain.name(index) for index in range(42)]
    assert np.array_equal(np.asarray(seen[3][0].convert("RGB")), np.asarray(plain.image(3)))


def test_the_same_every_time_and_none_half_written(fer_folders: Path, sharded: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert main(["shard", str(fer_folders), str(again), "--samples-per-shard", "5"]) == 0
    for file in sharded.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes()
    assert main(["shard", str(fer_folders), str(again)]) == 2, "there is something in it"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again"]


def test_a_faces_box_is_cut_out(tmp_path: Path) -> None:
    lines = [(f"train_{n:05d}.jpg", n) for n in range(1, 8)] * 2 + [(f"test_{n:04d}.jpg", n) for n in range(1, 8)]
    lines = list(dict.fromkeys(lines)) + [(f"train_{n:05d}.jpg", n - 7) for n in range(8, 15)]
    root = layouts.raf_original(tmp_path / "raf", lines, aligned=False)
    assert main(["shard", str(root), str(tmp_path / "out")]) == 0
    test = load_data(str(tmp_path / "out"), Request()).test
    assert test.image(0).size == (32, 32)
    assert [layouts.label_seen(test.image(index)) for index in range(7)] == test.labels.tolist()


def test_broken_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_folders(tmp_path / "data", even(3, 1, 1))
    broken = data / "train/fear/Training_00001.jpg"
    broken.write_bytes(b"no picture")
    assert main(["shard", str(data), str(tmp_path / "out")]) == 2
    assert f"cannot read the image {broken}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["shard", str(data), str(tmp_path / "out"), "--on-broken", "skip"]) == 0
    assert f"{broken}" in capsys.readouterr().out
    assert len(load_data(str(tmp_path / "out"), Request()).train) == 20


def test_damaged_shards_are_named(sharded: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in sharded.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    first = copy / "train-00000.tar"
    whole = first.read_bytes()
    first.write_bytes(whole[:-512])
    with pytest.raises(UserError, match=f"{first} has .* bytes; the index says {len(whole):,}: copy it again"):
        load_data(str(copy), Request())
    first.unlink()
    with pytest.raises(UserError, match=f"{first} is missing"):
        load_data(str(copy), Request())
    first.write_bytes(b"\0" * len(whole))
    part = load_data(str(copy), Request()).train
    with pytest.raises(UserError, match=f"cannot read the image {first}, byte 512"):
        part.image(0)
    (copy / INDEX).write_text((copy / INDEX).read_text()[:300])
    with pytest.raises(UserError, match="damaged"):
        load_data(str(copy), Request())


def test_a_run_on_shards_is_the_run_on_the_files(sharded: Path, fer_folders: Path, tmp_path: Path) -> None:
    weights = []
    for data in (sharded, fer_folders):
        out = tmp_path / data.name
        assert train(["--data", str(data), "--out", str(out), *QUICK]) == 0
        weights.append((out / "last/model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert train(["--data", str(sharded), "--out", str(tmp_path / "s"), *QUICK, "--sampler", "stream"]) == 0


# Streams


def fake(samples: int, per_shard: int) -> Shards:
    shards = Shards.__new__(Shards)
    shards.labels = np.zeros(samples, np.int64)
    shards.shard = np.arange(samples) // per_shard
    return shards


@pytest.mark.parametrize(
    "samples, world, lanes, batch", [(1000, 1, 1, 8), (1003, 2, 3, 8), (997, 3, 2, 7), (5, 4, 4, 8)]
)
def test_a_stream_gives_every_sample_once(samples: int, world: int, lanes: int, batch: int) -> None:
    orders = [stream_order(fake(samples, 50), 0, epoch, 20, world, lanes, batch) for epoch in (1, 2)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(samples))
    assert samples < 10 or (orders[0] != orders[1]).any()
    assert (stream_order(fake(samples, 50), 0, 2, 20, world, lanes, batch) == orders[1]).all()


def test_every_worker_of_every_rank_has_its_own_shards_from_end_to_end() -> None:
    world, lanes, batch, window, per_shard = 2, 3, 8, 16, 40
    shards = fake(60 * per_shard, per_shard)
    order = stream_order(shards, 7, 1, window, world, lanes, batch)
    opened: dict[tuple[int, int], list[int]] = {}
    for rank in range(world):
        local = order[rank::world]
        for number in range(len(local) // batch):
            lane = opened.setdefault((rank, number % lanes), [])
            lane += local[number * batch : (number + 1) * batch].tolist()
    sets = {key: set(shards.shard[samples]) for key, samples in opened.items()}
    assert sum(map(len, sets.values())) <= 60 + world * lanes, "a shard is one worker's, or two at a boundary"
    for key, samples in opened.items():
        seen = shards.shard[samples]
        assert len(sets[key]) in (10, 11, 12), "a sixth of the shards"
        runs = 1 + int((np.diff(seen) != 0).sum())
        firsts = {shard: int(np.flatnonzero(seen == shard)[0]) for shard in sets[key]}
        lasts = {shard: int(np.flatnonzero(seen == shard)[-1]) for shard in sets[key]}
        for shard in sets[key]:
            assert lasts[shard] - firsts[shard] <= per_shard + 2 * window, "a shard is gone through in one piece"
        assert runs > len(sets[key]), "and shuffled a little"
        places = [sample % per_shard for sample in samples]
        assert places != sorted(places)


def test_workers_read_what_the_order_gives_them(sharded: Path) -> None:
    """Through the loader: each worker of each rank opens its own shards only."""

    class Noting:
        """The faces; each image's gray is the process that loaded it."""

        def __init__(self, faces: Any) -> None:
            self.faces, self.labels, self.class_names = faces, faces.labels, faces.class_names
            self.parent, self.indices = faces, np.arange(len(faces))

        def __len__(self) -> int:
            return len(self.labels)

        def image(self, index: int) -> Image.Image:
            self.faces.image(index)
            return Image.fromarray(np.array([[index, os.getpid() % 251]], np.uint8))

    faces = load_data(str(sharded), Request()).train
    assert isinstance(faces, Subset)
    seen: list[int] = []
    for rank in range(2):
        by_process: dict[int, set[int]] = {}
        noting: Any = Subset(faces, np.arange(len(faces)), "train")
        noting.image = Noting(faces).image
        steps = train_batches(
            noting, lambda image: np.asarray(image)[0], 2, 2, False, 0, ranks=Ranks(rank, 2), order="stream"
        )
        batches = [images for chunks, _ in steps for images, _ in chunks()]
        for number, images in enumerate(batches):
            for index, process in images.tolist():
                seen.append(index)
                if number < 8:  # the last ones mix the remaining images
                    by_process.setdefault(process, set()).add(index // 5)
        assert len(by_process) == 2
        first, second = by_process.values()
        assert len(first & second) <= 1
    assert len(seen) == len(set(seen)) == 40  # a last step with one image per rank is left out
