"""Tables and pictures of the benchmarks: all figures of a line come from one run."""

from functools import partial
from pathlib import Path

import pytest

from bench import pictures, report, rows
from bench.gpu import FIELDS as KERNEL_FIELDS
from bench.loss import FIELDS
from bench.step import FIELDS as STEP_FIELDS


def test_tables_are_those_of_the_rows() -> None:
    for path in report.TEXTS:
        text = path.read_text()
        assert report.fill(text) == text, f"{path.name}: run python -m bench report"
    with pytest.raises(ValueError, match="expected one of"):
        report.fill("<!-- bench: nothing -->\n<!-- /bench -->")


def loss_row(contender: str, n: int, **more: object) -> dict[str, object]:
    row = {"date": "2026-01-01T00:00", "commit": "abc", "device": "a CPU", "driver": "", "threads": 2}
    row |= {"session": "s", "k": 7, "d": 256, "classes": 7, "dtype": "float32", "gb_per_s": 1, "copy_share": 0.125}
    return row | {"part": "n", "contender": contender, "n": n, "seconds": 0.5, "forward": 0.2, "backward": 0.3} | more


def of_gpu(row: dict[str, object]) -> dict[str, object]:
    return row | {"device": "a GPU", "driver": "580"}


@pytest.fixture
def results(monkeypatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    return tmp_path


COMPLETE = [
    loss_row("torch", 600),
    loss_row("reference", 600, seconds=1.5, times_slower=3),
    loss_row("supcon", 600, seconds=1, times_slower=2),
    loss_row("multi-similarity", 600, seconds=2, times_slower=4),
]
LATER = {"date": "2026-02-01T00:00", "seconds": 0.001}


@pytest.mark.parametrize("other", [{"device": "another"}, {"commit": "def"}, {"session": "t"}, {"threads": 1}])
def test_cells_of_a_row_come_from_one_run(results: Path, other: dict[str, object]) -> None:
    path = results / "loss.csv"
    append = partial(rows.append, path, (*FIELDS, "session"))
    append(COMPLETE[1:])
    append([loss_row("torch", 600, **LATER, **other), loss_row("reference", 600, **LATER, **other, times_slower=7)])
    append([loss_row("supcon", 600, **LATER, **other, times_slower=8)])
    line = report.write("speed").splitlines()[-1]  # in both runs: the newer run's three values count
    assert line.startswith("| 600 | 1 ms | 1 ms (7x) | 1 ms (8x) |")
    assert "(4x)" not in report.write("speed")
    assert report.missing(False).endswith("--n 600 --contenders numba reference supcon multi-similarity")
    append(COMPLETE[:1])
    line = report.write("speed").splitlines()[-1]
    assert line == "| 600 | 500 ms | 1.5 s (3x) | 1 s (2x) | 2 s (4x) | a CPU, 2 threads | abc |"
    assert report.missing(False) == ""


def test_readme_has_a_gpu_from_the_rows_of_kernels(results: Path) -> None:
    rows.append(results / "loss.csv", (*FIELDS, "session"), COMPLETE)
    case = {
        "date": "2026-01-01T00:00",
        "commit": "abc",
        "device": "a GPU",
        "driver": "580",
        "part": "latency",
        "n": 600,
    }
    figures = [
        ("terms, triton", "float32", "time", 0.001),
        ("terms, triton", "bfloat16", "time", 0.9),
        ("terms, reference", "float32", "time", 0.003),
        ("terms", "float32", "times faster than reference", 3.1),
        ("Eq. 12", "float32", "times faster than reference", 2.2),
    ]
    listed = [dict(zip(("case", "dtype", "metric", "value"), figure, strict=True)) for figure in figures]
    rows.append(results / "gpu.csv", (*KERNEL_FIELDS, "session"), [case | row for row in listed])
    assert report.write("speed").splitlines()[2:] == [
        "| 600 | 500 ms | 1.5 s (3x) | 1 s (2x) | 2 s (4x) | a CPU, 2 threads | abc |",
        "| 600 | 1 ms | 3 ms (3.1x) |  |  | a GPU | abc |",
    ]
    rows.append(results / "loss.csv", (*FIELDS, "session"), [of_gpu(loss_row("triton", 600))])
    assert report.write("speed").splitlines()[-1] == "| 600 | 500 ms |  |  |  | a GPU | abc |"


def test_tables_and_pictures_of_each_device(results: Path) -> None:
    own = [*COMPLETE, loss_row("reference", 4096, seconds="", note="out of memory"), loss_row("torch", 4096)]
    lacking = loss_row("supcon", 60, seconds="", note="not installed: it")
    rows.append(results / "loss.csv", (*FIELDS, "session"), [*own, lacking, *map(of_gpu, own)])
    steps = [
        {**loss_row(name, 0), "part": part, "image_size": 96, "batch": 12, "backbone": "net", "ratio": ratio,
         "images_per_second": 12, "against": "ce", "loss_share": share}
        for part, name, ratio, share in (("loss", "torch", 1, 0.01), ("levers", "all", 1.5, ""))
    ]  # fmt: skip
    rows.append(results / "step.csv", (*STEP_FIELDS, "session"), steps)
    assert report.write("loss").splitlines()[2:] == [
        "| 600 | 500 ms | 1.5 s (3x) | 1 s (2x) | 2 s (4x) | a CPU, 2 threads | abc |",
        "| 4,096 | 500 ms | wall |  |  | a CPU, 2 threads | abc |",
    ]
    assert report.write("loss-gpu").splitlines()[-1] == "| 4,096 | 500 ms | wall |  |  | a GPU | abc |"
    assert report.write("steps").splitlines()[-1] == "| net | 96 | 12 | 1.00 % | 1.5x | a CPU, 2 threads | abc |"
    assert report.write("steps-gpu") == "`steps-gpu`: not measured yet."
    assert [line.split(" | ")[-3] for line in report.write("step").splitlines()[2:]] == ["1.00 %", ""]
    words = {"device": "a GPU", "driver": "580", "commit": "abc", "date": "2026-01-01T00:00", "dtype": "bfloat16"}
    listed = [
        {"part": "bandwidth", "n": 65536, "case": "forward + backward", "metric": "share of a copy's bandwidth",
         "value": 0.31},
        {"part": "pairs-rate", "n": 16384, "case": "pairs, medium", "metric": "share of a product's rate",
         "value": 0.62},
        {"part": "pairs-rivals", "n": 16384, "case": "reference", "metric": "ran out of memory", "value": True},
    ]  # fmt: skip
    rows.append(results / "gpu.csv", (*KERNEL_FIELDS, "session"), [{**words, **row} for row in listed])
    assert report.write("kernels-gpu").splitlines()[-1] == "| 65,536 | bfloat16 | 31 % | a GPU | abc |"
    assert report.write("pairs-gpu").splitlines()[-1] == "| 16,384 | bfloat16 | 62 % | a GPU | abc |"
    assert report.write("scale") == "`scale`: not measured yet."
    paths = pictures.draw(results)
    pictures_of_cpu = ["time-over-n.png", "benchmark-loss.png"]
    assert [path.name for path in paths] == [*pictures_of_cpu, "time-over-n-gpu.png", "benchmark-loss-gpu.png"]
    assert all(path.stat().st_size > 10_000 for path in paths)
