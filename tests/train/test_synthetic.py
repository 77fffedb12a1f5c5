import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train.data.labels import CLASS_NAMES
from train.data.synthetic.dataset import COUNTS, PEOPLE, SyntheticFaces
from train.data.synthetic.drawing import draw_face
from train.data.synthetic.face import ACTION_UNITS, EXPRESSIONS, NUM_UNITS, Person, View, sample_units
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
        "from train.data.synthetic.dataset import SyntheticFaces\n"
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
    monkeypatch.setattr("train.data.synthetic.dataset.draw_face", lambda *_: pytest.fail("a face was drawn"))
    faces = SyntheticFaces("train")
    assert faces.labels.dtype == np.int64
    assert faces.labels.shape == (len(faces),) == (COUNTS["train"],)
    assert faces.class_names == CLASS_NAMES
    assert faces.split == "train"


def test_training_has_the_imbalance_of_table_1_and_the_other_splits_none() -> None:
    labels = SyntheticFaces("train", count=5000).labels
    expected = np.array([6198, 8989, 6077, 4002, 5121, 547, 4953]) / 35887
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
    by_split: dict[str, set[Person]] = {}
    for split in PEOPLE:
        faces = SyntheticFaces(split, count=100)
        by_split[split] = {faces.person(index) for index in range(100)}
        assert 10 < len(by_split[split]) < 100, "people recur, and there are many"
    assert not by_split["train"] & by_split["validation"]
    assert not by_split["train"] & by_split["test"]
    assert not by_split["validation"] & by_split["test"]


def test_seeds_differ_in_more_than_their_people(monkeypatch: pytest.MonkeyPatch) -> None:
    same = Person.sample(np.random.default_rng(0))
    monkeypatch.setattr(Person, "sample", lambda _: same)
    pictures = [pixels(SyntheticFaces(split, size=32, seed=s), 0).astype(int) for split in PEOPLE for s in (0, 1)]
    for i, picture in enumerate(pictures):
        assert all(np.abs(picture - other).mean() > 10 for other in pictures[:i])


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
    plain: dict[str, Any] = {
        "light_strength": 0.0,
        "exposure": 1.0,
        "contrast": 1.0,
        "tint": (1.0, 1.0, 1.0),
        "gaze": (0.0, 0.0),
    }
    return person, replace(straight, occluder="none", asymmetry=0.0, grey=False, **plain)


# Rows of a 100-pixel face: forehead and brows, eyes, nose, mouth and chin.
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


def features(sitter: tuple[Person, View], **intensities: float) -> dict[str, float]:
    """The positions of brows and lips in pixels (y down), and the visible areas of lips, eyes and open mouth."""
    person, view = sitter
    paint: dict[str, Any] = {
        "skin": (200, 0, 200),
        "hair": (200, 0, 0),
        "brow": (0, 0, 200),
        "lips": (0, 220, 0),
        "iris": (0, 0, 0),
    }
    units = np.zeros(NUM_UNITS)
    for name, intensity in intensities.items():
        units[int(name[2:])] = intensity
    picture = draw_face(replace(person, **paint, age=0.0), view, units, 200).astype(int)
    red, green, blue = picture[:, :100].transpose(2, 0, 1)  # one half: the other one mirrors it
    brow = (blue > 100) & (red < 70) & (green < 70)
    lips = (green > 90) & (red < 80) & (blue < 80)
    white = (red > 150) & (green > 150) & (blue > 150)
    dark = (red < 75) & (green < 60) & (blue < 60)
    rows, columns = np.mgrid[:200, :100]
    inner, outer = (columns[brow] > np.quantile(columns[brow], q) for q in (0.8, 0.2))
    left = columns[lips].min()
    corner, middle = lips & (columns < left + 5), lips & (columns > 95)
    return {
        "inner brow": rows[brow][inner].mean(),
        "outer brow": rows[brow][~outer].mean(),
        "brow's end": columns[brow].max(),
        "corner": rows[corner].mean() - rows[middle].mean(),
        "reach": 100 - left,
        "lips": lips.sum(),
        "upper edge": rows[middle].min(),
        "lower edge": rows[middle].max(),
        "eye": white[:110].sum(),
        "opening": (dark | white)[118:].sum(),
    }


@pytest.mark.parametrize(
    "intensities, feature, least, most",
    [
        ({"au1": 1}, "inner brow", -20, -6),
        ({"au2": 1}, "outer brow", -20, -4),
        ({"au4": 1}, "inner brow", 5, 20),
        ({"au4": 1}, "brow's end", 3, 10),
        ({"au1": 1, "au4": 1}, "inner brow", -20, -2),
        ({"au5": 1}, "eye", 100, 1000),
        ({"au7": 1}, "eye", -1000, -60),
        ({"au6": 1}, "eye", -1000, -60),
        ({"au43": 1}, "eye", -1000, -50),
        ({"au10": 1, "au25": 0.5}, "upper edge", -20, -3),
        ({"au12": 1}, "corner", -25, -7),
        ({"au12": 1}, "reach", 5, 20),
        ({"au15": 1}, "corner", 7, 25),
        ({"au16": 1, "au25": 0.5}, "lower edge", 4, 20),
        ({"au20": 1}, "reach", 7, 20),
        ({"au23": 1}, "lips", -1000, -60),
        ({"au25": 1}, "opening", 100, 1000),
        ({"au25": 1, "au26": 1}, "opening", 250, 3000),
        ({"au25": 1, "au26": 1}, "lower edge", 15, 60),
    ],
)
def test_a_unit_moves_things_the_way_of_its_name(
    intensities: dict[str, float], feature: str, least: float, most: float, sitter: tuple[Person, View]
) -> None:
    change = features(sitter, **intensities)[feature] - features(sitter)[feature]
    assert least <= change <= most
    half = {name: intensity / 2 for name, intensity in intensities.items()}
    weaker = features(sitter, **half)[feature] - features(sitter)[feature]
    assert abs(weaker) < abs(change), "weaker by half the intensity"


def test_a_class_changes_the_expression_and_nothing_else(sitter: tuple[Person, View]) -> None:
    pictures = [
        draw_face(*sitter, sample_units(label, np.random.default_rng(4)), 100).astype(int) for label in range(7)
    ]
    for label, picture in enumerate(pictures):
        for other in pictures[:label]:
            change = np.abs(picture - other).sum(axis=2)
            assert change.max() > 100
            assert change[:8].max() == 0, "the hair moved"
            assert (change > 20).mean() < 0.35
    numbers = [np.random.default_rng(4) for _ in range(7)]
    for label, rng in enumerate(numbers):
        sample_units(label, rng)
    assert len({int(rng.integers(2**60)) for rng in numbers}) == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"split": "valid"}, "'valid'.*train, validation, test"),
        ({"size": 8}, "image size is 8.*16 to 1024"),
        ({"size": 5000}, "image size is 5000"),
        ({"count": 0}, "count is 0.*at least one"),
        ({"seed": -1}, "seed is -1.*at least 0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SyntheticFaces(**{"split": "train", **arguments})


@pytest.mark.parametrize("index", [-1, 10])
def test_an_index_out_of_range_is_an_error(index: int) -> None:
    with pytest.raises(IndexError, match=f"sample {index} of 10"):
        SyntheticFaces("test", size=16, count=10).image(index)
