import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from train.data.face_drawing import draw_face
from train.data.face_model import ACTION_UNITS, EXPRESSIONS, NUM_UNITS, Person, View, sample_units
from train.data.labels import CLASS_NAMES
from train.data.synthetic import COUNTS, PEOPLE, TABLE_1, SyntheticFaces
from train.errors import UserError

ROOT = Path(__file__).parents[2]


def pixels(faces: SyntheticFaces, index: int) -> np.ndarray:
    return np.asarray(faces.image(index))


def test_a_sample_does_not_depend_on_order_count_or_what_was_drawn_before() -> None:
    faces = SyntheticFaces("train", size=32, count=40, seed=3)
    forwards = [pixels(faces, i) for i in range(5)]
    backwards = [pixels(SyntheticFaces("train", size=32, count=7, seed=3), i) for i in (4, 3, 2, 1, 0)][::-1]
    np.testing.assert_array_equal(forwards, backwards)
    np.testing.assert_array_equal(faces.labels[:7], SyntheticFaces("train", count=7).labels)


def test_another_process_draws_the_same() -> None:
    code = (
        "import hashlib, numpy as np\n"
        "from train.data.synthetic import SyntheticFaces\n"
        "f = SyntheticFaces('validation', size=48, seed=11)\n"
        "print(f.fingerprint, hashlib.sha256(b''.join(np.asarray(f.image(i)).tobytes() for i in (9, 2))).hexdigest())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "PYTHONHASHSEED": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2")
    }
    assert len(runs) == 1
    assert SyntheticFaces("validation", size=48, seed=11).fingerprint in runs.pop()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
def test_the_array_holds_the_images_however_many_processes_draw_it() -> None:
    one, two = (SyntheticFaces("test", size=16, count=201, seed=5) for _ in range(2))
    lone_image = pixels(one, 200)
    array = one.array(processes=1)
    assert array.shape == (201, 16, 16, 3)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, two.array(processes=2))
    np.testing.assert_array_equal(array[200], lone_image)
    np.testing.assert_array_equal(pixels(one, 200), lone_image)
    assert one.array() is array


def test_labels_need_no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.data.synthetic.draw_face", lambda *_: pytest.fail("a face was drawn"))
    faces = SyntheticFaces("train")
    assert faces.labels.dtype == np.int64
    assert faces.labels.shape == (len(faces),) == (COUNTS["train"],)
    assert faces.class_names == CLASS_NAMES
    assert faces.split == "train"


def test_training_has_the_imbalance_of_table_1_and_the_other_splits_none() -> None:
    labels = SyntheticFaces("train", count=5000).labels
    expected = np.asarray(TABLE_1) / sum(TABLE_1)
    for prefix in (5000, 1000):
        counts = np.bincount(labels[:prefix], minlength=7)
        assert np.abs(counts - expected * prefix).max() <= 1.5
    for split in ("validation", "test"):
        assert set(np.bincount(SyntheticFaces(split).labels).tolist()) == {COUNTS[split] // 7}
    assert set(SyntheticFaces("train", count=60).labels.tolist()) == set(range(7))


@pytest.mark.parametrize("size", [16, 48, 64, 100, 224])
def test_images_are_rgb_of_the_size_asked_for(size: int) -> None:
    image = SyntheticFaces("test", size=size).image(1)
    assert image.mode == "RGB"
    assert image.size == (size, size)
    array = np.asarray(image)
    assert array.dtype == np.uint8
    assert array.std() > 10


def test_a_picture_is_about_the_same_at_every_size() -> None:
    small, large = (SyntheticFaces("test", size=size).image(4) for size in (32, 128))
    again = np.asarray(large.reduce(4), dtype=float)
    assert np.abs(again - np.asarray(small)).mean() < 12
    assert np.abs(again - np.asarray(SyntheticFaces("test", size=32).image(5))).mean() > 24


def test_splits_and_seeds_differ_and_share_no_person() -> None:
    sets = [SyntheticFaces(split, size=16, count=40, seed=seed) for split in PEOPLE for seed in (0, 1)]
    assert len({faces.fingerprint for faces in sets}) == len(sets)
    assert len({pixels(faces, 0).tobytes() for faces in sets}) == len(sets)
    drawn: dict[str, set[Person]] = {}
    for split in PEOPLE:
        faces = SyntheticFaces(split, count=100)
        drawn[split] = {faces.person(index) for index in range(100)}
        assert 10 < len(drawn[split]) < 100, "people recur, and there are many"
    assert not drawn["train"] & drawn["validation"]
    assert not drawn["train"] & drawn["test"]
    assert not drawn["validation"] & drawn["test"]


def test_the_fingerprint_tells_size_and_count() -> None:
    prints = {SyntheticFaces("train", size=s, count=c).fingerprint for s in (32, 64) for c in (10, 20, None)}
    assert len(prints) == 6


def test_expressions_are_made_of_known_action_units() -> None:
    assert tuple(EXPRESSIONS) == CLASS_NAMES
    assert {unit for recipe in EXPRESSIONS.values() for unit in recipe} <= set(ACTION_UNITS)
    for label in range(7):
        units = np.stack([sample_units(label, np.random.default_rng([label, i])) for i in range(300)])
        assert units.shape == (300, NUM_UNITS)
        assert 0 <= units.min() <= units.max() <= 1
        for unit in ACTION_UNITS:
            part = EXPRESSIONS[CLASS_NAMES[label]].get(unit, (0.0, 0.0))[1]
            assert np.mean(units[:, unit] > 0) >= part - 0.1
            assert units[:, unit].min() == 0 or part > 0.9
        if label:
            strongest = units.max(axis=1)
            assert np.quantile(strongest, 0.05) < 0.6, "some are weak"
            assert np.quantile(strongest, 0.5) > 0.7


@pytest.fixture(scope="module")
def sitter() -> tuple[Person, View]:
    rng = np.random.default_rng(8)
    person = replace(Person.sample(rng), hair_style="short", beard="none", glasses="none", hairline=-0.95)
    view = View.sample(rng)
    straight = replace(view, roll=0.0, yaw=0.0, pitch=0.0, scale=0.4, shift=(0.0, 0.0), noise=0.0, blur=0.0)
    return person, replace(straight, occluder="none", asymmetry=0.0, grey=False)


# Rows of a 100-pixel picture of the sitter: forehead and brows, eyes, nose, mouth and chin.
REGIONS = {"brows": slice(0, 38), "eyes": slice(38, 52), "nose": slice(52, 66), "mouth": slice(66, 100)}
MOVES = {
    1: {"brows"},
    2: {"brows"},
    4: {"brows", "eyes"},
    5: {"brows", "eyes"},
    6: {"eyes"},
    7: {"eyes"},
    9: {"brows", "eyes", "nose", "mouth"},
    10: {"nose", "mouth"},
    12: {"mouth"},
    15: {"mouth"},
    16: {"mouth"},
    17: {"mouth"},
    20: {"mouth"},
    23: {"mouth"},
    24: {"mouth"},
    25: {"mouth"},
    26: {"mouth"},
    43: {"eyes"},
}


@pytest.mark.parametrize("unit", ACTION_UNITS)
def test_a_unit_changes_the_part_of_the_face_that_it_moves(unit: int, sitter: tuple[Person, View]) -> None:
    units = np.zeros(NUM_UNITS)
    units[25] = 0.5 * (unit in (16, 26))  # which show between parted lips
    rest = draw_face(*sitter, units, 100).astype(float)
    units[unit] = 1.0
    change = np.abs(draw_face(*sitter, units, 100) - rest).sum(axis=2)
    largest = {name: change[rows].max() for name, rows in REGIONS.items()}
    assert all(largest[name] > 60 for name in MOVES[unit]), largest
    share = sum(change[rows].sum() for name, rows in REGIONS.items() if name in MOVES[unit]) / change.sum()
    assert share > 0.8, (share, largest)


def test_a_class_changes_the_expression_and_nothing_else(sitter: tuple[Person, View]) -> None:
    drawn = [draw_face(*sitter, sample_units(label, np.random.default_rng(4)), 100).astype(int) for label in range(7)]
    for label, picture in enumerate(drawn):
        for other in drawn[:label]:
            change = np.abs(picture - other).sum(axis=2)
            assert change.max() > 100
            assert change[:8].max() == 0, "the hair moved"
            assert (change > 20).mean() < 0.35
    numbers = [np.random.default_rng(4) for _ in range(7)]
    for label, rng in enumerate(numbers):
        sample_units(label, rng)
    assert len({int(rng.integers(2**60)) for rng in numbers}) == 1


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"split": "valid"}, "'valid'.*train, validation, test"),
        ({"size": 8}, "image size is 8.*16 to 1024"),
        ({"size": 5000}, "image size is 5000"),
        ({"count": 0}, "count is 0.*at least one"),
        ({"seed": -1}, "seed is -1.*at least 0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        SyntheticFaces(**{"split": "train", **arguments})


@pytest.mark.parametrize("index", [-1, 10])
def test_an_index_out_of_range_is_an_error(index: int) -> None:
    with pytest.raises(IndexError, match=f"sample {index} of 10"):
        SyntheticFaces("test", size=16, count=10).image(index)
