"""The benchmarks at tiny sizes: every contender agrees before it is timed, walls are rows, nothing is run twice."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from bench import gate, measure, report
from bench.loss import Shape, check
from bench.rivals import CONTENDERS, Contender

ROOT = Path(__file__).parents[2]
CPU = measure.torch.device("cpu")


def bench(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "bench", *map(str, words)], cwd=ROOT, capture_output=True, text=True
    )


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", [name for name in CONTENDERS if name not in ("triton",) and "compiled" not in name])
def test_contenders_agree_with_the_reference(name: str) -> None:
    check(name, CPU, "float32", seed=0)


def test_a_contender_that_is_wrong_is_not_timed(monkeypatch) -> None:
    from bench import loss

    right = CONTENDERS["factored"].make()
    wrong = Contender(lambda: lambda x, y, w: 1.001 * right(x, y, w), 1)
    monkeypatch.setitem(loss.CONTENDERS, "factored", wrong)
    with pytest.raises(SystemExit, match="factored: differs from the reference"):
        check("factored", CPU, "float32", seed=0)


def test_loss_writes_rows_and_does_not_run_them_twice(tmp_path) -> None:
    out = tmp_path / "loss.csv"
    words = ("loss", "--contenders", "torch", "supcon", "--parts", "n", "--n", 20, 40, "--runs", 2, "--seconds", 0.1)
    done = bench(*words, "--threads", 1, "--out", out)
    assert done.returncode == 0, done.stderr
    rows = rows_of(out)
    assert [(row["contender"], row["n"]) for row in rows] == [
        ("torch", "20"),
        ("torch", "40"),
        ("supcon", "20"),
        ("supcon", "40"),
    ]
    for row in rows:
        assert float(row["seconds"]) > 0
        assert float(row["forward"]) + float(row["backward"]) == pytest.approx(float(row["seconds"]), rel=0.9)
        assert float(row["copy_share"]) > 0
        assert (row["times_slower"] != "") == (row["contender"] == "supcon")
    again = bench(*words, "--threads", 1, "--out", out)
    assert again.returncode == 0
    assert again.stdout == ""
    assert rows_of(out) == rows


def test_a_wall_is_a_row(tmp_path) -> None:
    out = tmp_path / "loss.csv"
    words = (
        "loss",
        "--contenders",
        "reference",
        "--parts",
        "n",
        "--n",
        200,
        3000,
        100000,
        "--memory",
        0.3,
        "--runs",
        1,
    )
    done = bench(*words, "--seconds", 0.1, "--threads", 1, "--out", out)
    assert done.returncode == 0, done.stderr
    rows = rows_of(out)
    assert [row["n"] for row in rows] == ["200", "3000"]
    assert rows[0]["seconds"]
    assert "GiB" in rows[1]["note"]


def test_a_file_of_other_rows_is_left_alone(tmp_path) -> None:
    out = tmp_path / "other.csv"
    out.write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit, match="expected"):
        measure.append(out, ("a", "c"), [{"a": 1}])
    assert out.read_text() == "a,b\n1,2\n"


@pytest.mark.slow
def test_step_and_scale_run(tmp_path) -> None:
    words = ("--backbone", "resnet10t", "--image-size", 32, "--batch", 2, "--virtual", 2, "--runs", 2, "--seconds", 0.1)
    done = bench("step", *words, "--threads", 1, "--out", tmp_path / "step.csv")
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "step.csv")
    assert {"ce", "torch", "reference", "virtual, b = 2", "timm", "none", "all"} <= {row["contender"] for row in rows}
    assert all(float(row["images_per_second"]) > 0 for row in rows)
    words = ("--parts", "n", "ranks", "--last-n", 64, "--rank-n", 16, "--seconds", 0.1, "--threads", 1)
    done = bench("scale", *words, "--out", tmp_path / "scale.csv")
    assert done.returncode == 0, done.stderr
    wire = {row["ranks"]: row["bytes_on_the_wire"] for row in rows_of(tmp_path / "scale.csv") if row["part"] == "ranks"}
    assert wire["2"] == wire["4"] == str(4 * (7 * (7 * (2 * 256 + 1) + 4) + 3))


@pytest.mark.parametrize("name", gate.CHECKS)
def test_gate(name: str) -> None:
    row = next(row for row in measure.read(gate.LIMITS) if row["check"] == name)
    figure = gate.CHECKS[name](0)
    assert not gate.beyond(figure, row["sign"], float(row["limit"])), (
        f"{figure:.4g}, limit {row['sign']} {row['limit']}"
    )


def test_every_limit_has_its_check() -> None:
    assert [row["check"] for row in measure.read(gate.LIMITS)] == list(gate.CHECKS)
    assert gate.beyond(9, ">=", 10)
    assert gate.beyond(11, "<=", 10)
    assert not gate.beyond(10, "<=", 10)


def test_tables_are_those_of_the_rows() -> None:
    for path in report.TEXTS:
        text = path.read_text()
        assert report.filled(text) == text, f"{path.name}: run python -m bench report"
    with pytest.raises(ValueError, match="expected one of"):
        report.filled("<!-- bench: nothing -->\n<!-- /bench -->")


def test_pictures(tmp_path) -> None:
    report.draw(tmp_path)
    assert (tmp_path / "benchmark-loss.png").stat().st_size > 10_000


def test_shape_has_the_papers_size() -> None:
    assert Shape(n=2).numbers() == 2 * 7 * 256
