"""The benchmarks at tiny sizes: every contender agrees before it is timed, walls are rows, nothing is run twice."""

import csv
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import gate, loss, measure, pictures, report
from bench.gpu import FIELDS as KERNEL_FIELDS
from bench.loss import FIELDS, Shape, check
from bench.rivals import CONTENDERS, Contender
from bench.step import FIELDS as STEP_FIELDS

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


def test_no_row_after_the_deadline(tmp_path) -> None:
    out = tmp_path / "loss.csv"
    words = ("loss", "--contenders", "torch", "factored", "--parts", "n", "--n", 20, "--threads", 1, "--out", out)
    done = bench(*words, "--minutes", 0.0001)
    assert done.returncode == 0, done.stderr
    assert "time is up" in done.stdout
    assert not out.exists()


def test_a_package_that_is_missing_is_a_row_and_tried_again(monkeypatch, tmp_path, capsys) -> None:
    out = tmp_path / "loss.csv"
    monkeypatch.setitem(loss.CONTENDERS, "supcon", Contender(lambda: None, 2, package="no_such_package"))  # type: ignore[arg-type, return-value]
    words = ["--contenders", "supcon", "--parts", "n", "--n", "20", "30", "--threads", "1", "--out", str(out)]
    for times in (1, 2):
        assert loss.main(words) == 0
        assert "not installed: no-such-package" in capsys.readouterr().out
        assert [row["n"] for row in rows_of(out)] == ["20"] * times


def test_a_contender_that_fails_leaves_the_others_their_rows(monkeypatch, tmp_path) -> None:
    out = tmp_path / "loss.csv"
    words = ["--parts", "n", "--n", "20", "--threads", "1", "--seconds", "0.1", "--out", str(out)]
    assert loss.main(["--contenders", "torch", "factored", "--memory", "0.000001", *words]) == 0
    assert all("skipped: needs about" in row["note"] for row in rows_of(out))
    said = "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert not loss.out_of_memory(RuntimeError(said))
    assert loss.out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert loss.main(["--contenders", "torch", "factored", "--again", *words]) == 1
    assert [row["note"] for row in rows_of(out)[2:]] == ["failed: 1", "failed: 1"]


def test_energy_is_that_of_the_calls(monkeypatch) -> None:
    millijoules = iter([5000, 8000])
    fake = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda name: name,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(millijoules),
        nvmlDeviceGetClockInfo=lambda handle, kind: 1980,
        nvmlDeviceGetTemperature=lambda handle, kind: 41,
        NVML_CLOCK_SM=1,
        NVML_TEMPERATURE_GPU=0,
        NVMLError=RuntimeError,
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(measure.torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1-2"))
    nvml = measure.Nvml(measure.torch.device("cuda"))
    assert nvml.handle == b"GPU-1-2"
    assert nvml.during(lambda: None, CPU, seconds=0) == {"joules": "1", "clock_mhz": "1980", "celsius": "41"}
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert measure.Nvml(measure.torch.device("cuda")).during(lambda: None, CPU) == {}
    assert measure.Nvml(CPU).during(lambda: None, CPU) == {}


@pytest.mark.slow
def test_micro_benchmarks_run() -> None:
    words = [sys.executable, "-m", "pytest", "bench/micro.py", "-q", "--benchmark-disable"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "9 passed" in done.stdout


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
    assert {"ce", "torch", "reference", "virtual, b = 2", "timm", "none", "all but compile"} <= {
        row["contender"] for row in rows
    }
    assert all(float(row["images_per_second"]) > 0 for row in rows)
    assert all(float(row["forward"]) > 0 for row in rows if row["contender"] in ("ce", "torch", "reference"))
    again = bench("step", *words, "--threads", 1, "--out", tmp_path / "step.csv")
    assert again.returncode == 0
    assert again.stdout == ""
    words = ("--last-n", 64, "--class-n", 64, "--rank-n", 64, "--seconds", 0.1, "--threads", 1)
    done = bench("scale", *words, "--out", tmp_path / "scale.csv")
    assert done.returncode == 0, done.stderr
    wire = {row["ranks"]: row["bytes_on_the_wire"] for row in rows_of(tmp_path / "scale.csv") if row["part"] == "ranks"}
    assert wire["2"] == wire["4"] == str(4 * (7 * (7 * (2 * 256 + 1) + 4) + 3))


def test_every_limit_has_its_check() -> None:
    assert [row["check"] for row in measure.read(gate.LIMITS)] == list(gate.CHECKS)
    assert gate.beyond(9, ">=", 10)
    assert gate.beyond(11, "<=", 10)
    assert not gate.beyond(10, "<=", 10)


def test_gate_fails_beyond_a_limit_and_takes_ratios_again(monkeypatch, tmp_path, capsys) -> None:
    figures = iter([2.0, 3.0, 12.0, 7.0, 1.0, 1.0, 1.0])
    (ratio, wrong, *_), (exact, *_) = gate.RATIOS, gate.EXACT
    monkeypatch.setattr(gate, "CHECKS", dict.fromkeys(gate.CHECKS, lambda seed: next(figures)))
    monkeypatch.setattr(gate, "LIMITS", tmp_path / "gate.csv")
    rows = [
        {"check": name, "figure": 0, "sign": ">=", "limit": limit, "about": ""}
        for name, limit in ((ratio, 10), (exact, 5), (wrong, 10))
    ]
    measure.append(gate.LIMITS, gate.FIELDS, rows)
    assert gate.main(["--update", "--threads", str(measure.torch.get_num_threads())]) == 1
    assert [row["figure"] for row in measure.read(gate.LIMITS)] == ["12", "7", "1"]
    assert capsys.readouterr().out.count("BEYOND") == 1
    assert next(figures, None) is None


def test_gate_counts_operations() -> None:
    row = next(row for row in measure.read(gate.LIMITS) if row["check"].startswith("ATen"))
    assert float(row["limit"]) / 2 < gate.operations(0) <= float(row["limit"])


def test_tables_are_those_of_the_rows() -> None:
    for path in report.TEXTS:
        text = path.read_text()
        assert report.filled(text) == text, f"{path.name}: run python -m bench report"
    with pytest.raises(ValueError, match="expected one of"):
        report.filled("<!-- bench: nothing -->\n<!-- /bench -->")


def drawn_rows(folder: Path) -> None:
    """Rows of a CPU and of a GPU in a folder, of every command."""
    for driver, device in (("", "a CPU"), ("580", "a GPU")):
        place = {"date": "2026-01-01T00:00", "commit": "abc", "device": device, "driver": driver, "threads": 2}
        shape = {"k": 7, "d": 256, "classes": 7, "dtype": "float32", "seconds": 0.5, "forward": 0.2, "backward": 0.3}
        cases = [("torch", 60, {}), ("torch", 600, {}), ("reference", 600, {"times_slower": 3}), ("torch", 60, {})]
        rows = [
            {
                **place,
                "part": "n",
                "contender": name,
                "n": n,
                **shape,
                "gb_per_s": 1,
                "copy_share": 0.125,
                "peak_extra_mib": 2,
                **more,
            }
            for name, n, more in cases
        ]
        rows.append({**place, "part": "n", "contender": "reference", "n": 4096, "note": "out of memory"})
        rows.append({**place, "part": "n", "contender": "supcon", "n": 60, "note": "not installed: it"})
        measure.append(folder / "loss.csv", FIELDS, rows)
        steps = [
            {**place, "part": part, "contender": name, "image_size": 96, "batch": 12, "seconds": 1,
             "images_per_second": 12, "against": "ce", "ratio": 1, "loss_share": 0.01, "forward": 0.5, "loss": 0.1,
             "backward": 0.3, "optimizer": 0.1}
            for part, name in (("loss", "torch"), ("levers", "all"))
        ]  # fmt: skip
        measure.append(folder / "step.csv", STEP_FIELDS, steps)


def test_tables_and_pictures_of_each_device(monkeypatch, tmp_path) -> None:
    drawn_rows(tmp_path)
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    for name, device in (("loss", "a CPU"), ("loss-gpu", "a GPU")):
        found = report.written(name).splitlines()
        assert found[2:4] == ["| `torch` | 500 ms | 500 ms |  |", "| `reference` |  | 500 ms (3x) | wall |"]
        assert found[-1].startswith(f"{device}, ")
        assert found[-1].endswith("Walls: `reference` at n = 4,096 out of memory.")
    said = " ".join(report.written("claims").split())
    assert said.startswith("- **The loss** (`torch`, a CPU, 2 threads, float32")
    assert "n = 600 takes 500 ms, and 3 times as long with the n x n reference; n = 600 takes 833 µs a sample" in said
    assert report.written("claims-gpu").startswith("- **The loss** (`torch`, a GPU, float32")
    assert "- **A training step**" in said
    assert report.written("claims-gpu").count("\n- **") == 1
    words = {"part": "bandwidth", "case": "forward + backward", "n": 65536, "dtype": "float32"}
    metric = {"metric": "share of a copy's bandwidth", "value": 0.31}
    about = {"device": "a GPU", "driver": "580", "commit": "abc"}
    pairs = {"part": "pairs-rate", "case": "pairs, medium", "n": 16384, "dtype": "bfloat16"}
    rate = {"metric": "share of a product's rate", "value": 0.62}
    out_of_memory = {"part": "pairs-rivals", "case": "reference", "metric": "ran out of memory", "value": True}
    rows = [{**words, **metric}, {**pairs, **rate}, {**pairs, **out_of_memory}]
    measure.append(tmp_path / "gpu.csv", KERNEL_FIELDS, [{**about, **row} for row in rows])
    said = " ".join(report.written("claims-gpu").split())
    assert "a GPU, commit abc, k = 7, d = 256, C = 7, forward + backward): n = 65,536 at 31 %" in said
    assert 'a GPU, commit abc, bfloat16, `precision="medium"`): n = 16,384 forward at 62 % of a' in said
    assert report.written("scale") == "`scale`: not measured yet."
    drawn = pictures.draw(tmp_path)
    assert [path.name for path in drawn] == [
        f"benchmark-{name}{suffix}.png" for suffix in ("", "-gpu") for name in ("loss", "step")
    ]
    assert all(path.stat().st_size > 10_000 for path in drawn)


def test_shape_has_the_papers_size() -> None:
    assert Shape(n=2).numbers() == 2 * 7 * 256
