"""The benchmarks at tiny sizes: contenders are checked before they are timed, walls are rows, nothing runs twice."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import gate, host, loss, measure, rows
from bench.loss import check
from bench.rivals import CONTENDERS, Contender, ours_on
from tests.bench.tools import bench

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "name", [name for name in CONTENDERS if CONTENDERS[name].fits("cpu") and "compiled" not in name]
)
def test_contenders_agree_with_the_reference(name: str) -> None:
    check(name, CPU, "float32", seed=0)


def test_a_contender_that_is_wrong_is_not_timed(monkeypatch) -> None:
    right = CONTENDERS["factored"].make()
    wrong = Contender(lambda: lambda x, y, w: 1.001 * right(x, y, w), True)
    monkeypatch.setitem(loss.CONTENDERS, "factored", wrong)
    with pytest.raises(SystemExit, match="factored: differs from the reference"):
        check("factored", CPU, "float32", seed=0)


def measure_loss(out: Path, words: str) -> int:
    """`python -m bench loss` in this process, on one thread and however busy the machine is."""
    return loss.main(
        ["--busy", "--parts", "n", "--threads", "1", "--seconds", "0.1", "--out", str(out), *words.split()]
    )


def test_loss_writes_rows_and_does_not_run_them_twice(tmp_path, capsys) -> None:
    out = tmp_path / "loss.csv"
    words = "--contenders torch supcon --n 20 40 --runs 2"
    assert measure_loss(out, words) == 0
    written = rows.read(out)
    assert [(row["contender"], row["n"]) for row in written] == [
        ("torch", "20"),
        ("torch", "40"),
        ("supcon", "20"),
        ("supcon", "40"),
    ]
    for row in written:
        assert float(row["seconds"]) > 0
        assert float(row["forward"]) > 0
        assert row["session"] == written[0]["session"] != ""
        assert float(row["copy_share"]) > 0
        assert (row["times_slower"] != "") == (row["contender"] != ours_on("cpu")[0])
    capsys.readouterr()
    assert measure_loss(out, words) == 0
    assert capsys.readouterr().out == ""
    assert rows.read(out) == written


def test_a_wall_is_recorded_as_a_row(tmp_path) -> None:
    out = tmp_path / "loss.csv"
    assert measure_loss(out, "--contenders reference --n 200 3000 100000 --memory 0.3 --runs 1") == 0
    written = rows.read(out)
    assert [row["n"] for row in written] == ["200", "3000"]
    assert written[0]["seconds"]
    assert "GiB" in written[1]["note"]


def test_no_row_after_the_deadline(tmp_path, capsys) -> None:
    out = tmp_path / "loss.csv"
    assert measure_loss(out, "--contenders torch factored --n 20 --minutes 0.0001") == 0
    assert "time is up" in capsys.readouterr().out
    assert not out.exists()


def test_a_missing_package_is_recorded_and_retried(monkeypatch, tmp_path, capsys) -> None:
    out = tmp_path / "loss.csv"
    monkeypatch.setitem(loss.CONTENDERS, "supcon", Contender(lambda: None, False, package="no_such_package"))  # type: ignore[arg-type, return-value]
    words = ["--busy", "--contenders", "supcon", "--parts", "n", "--n", "20", "30", "--threads", "1", "--out", str(out)]
    for times in (1, 2):
        assert loss.main(words) == 0
        assert "not installed: no-such-package" in capsys.readouterr().out
        assert [row["n"] for row in rows.read(out)] == ["20"] * times


def test_a_contender_that_fails_leaves_the_others_their_rows(monkeypatch, tmp_path) -> None:
    out = tmp_path / "loss.csv"
    words = ["--busy", "--parts", "n", "--n", "20", "--threads", "1", "--seconds", "0.1", "--out", str(out)]
    assert loss.main(["--contenders", "torch", "factored", "--memory", "0.000001", *words]) == 0
    assert all("out of memory under" in row["note"] for row in rows.read(out))
    message = "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert not loss.out_of_memory(RuntimeError(message))
    assert loss.out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert loss.main(["--contenders", "torch", "factored", "--again", *words]) == 1
    assert [row["note"] for row in rows.read(out)[2:]] == ["failed: 1", "failed: 1"]


@pytest.mark.slow
def test_micro_benchmarks_run() -> None:
    words = [sys.executable, "-m", "pytest", "bench/micro.py", "-q", "--benchmark-disable"]
    done = subprocess.run(words, cwd=rows.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "14 passed" in done.stdout


def test_a_file_of_other_rows_is_left_alone(tmp_path) -> None:
    out = tmp_path / "other.csv"
    out.write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit, match="expected"):
        rows.append(out, ("a", "c"), [{"a": 1}])
    assert out.read_text() == "a,b\n1,2\n"
    rows.append(out, ("a", "b", "session"), [{"a": 3, "session": "x"}])
    assert out.read_text() == "a,b,session\n1,2\n3,,x\n"
    assert rows.read(out)[0] == {"a": "1", "b": "2", "session": ""}


@pytest.mark.slow
def test_step_and_scale_run(tmp_path) -> None:
    words = "--busy --backbone resnet10t --image-size 32 --batch 2 --virtual 2 --runs 2 --seconds 0.1 --threads 1"
    command = ("step", *words.split(), "--out", tmp_path / "step.csv")
    done = bench(*command, interpret=False)
    assert done.returncode == 0, done.stderr
    written = rows.read(tmp_path / "step.csv")
    assert {"ce", "torch", "reference", "virtual, b = 2", "timm", "none", "all but compile"} <= {
        row["contender"] for row in written
    }
    assert all(float(row["images_per_second"]) > 0 for row in written)
    assert all(float(row["loss"]) > 0 for row in written if row["contender"] in ("ce", "torch", "reference"))
    again = bench(*command, interpret=False)
    assert again.returncode == 0
    assert again.stdout == ""
    words = "--busy --n 64 --seconds 0.1 --threads 1"
    done = bench("scale", *words.split(), "--out", tmp_path / "scale.csv", interpret=False)
    assert done.returncode == 0, done.stderr
    written = rows.read(tmp_path / "scale.csv")
    wire = {row["ranks"]: row["bytes_on_the_wire"] for row in written if row["part"] == "ranks"}
    assert wire["2"] == wire["4"] == str(4 * (7 * (7 * (2 * 256 + 1) + 4) + 3))


def test_every_limit_is_checked() -> None:
    assert sorted(row["check"] for row in rows.read(gate.LIMITS)) == sorted(gate.CHECKS)
    assert rows.beyond(9, ">=", 10)
    assert rows.beyond(11, "<=", 10)
    assert not rows.beyond(10, "<=", 10)


def test_gate_fails_beyond_a_limit_and_takes_ratios_again(monkeypatch, tmp_path, capsys) -> None:
    figures = iter([2.0, 3.0, 12.0, 7.0, 1.0, 1.0, 1.0])
    (ratio, wrong, *_), (exact, *_) = gate.RATIOS, gate.EXACT
    monkeypatch.setattr(gate, "CHECKS", dict.fromkeys(gate.CHECKS, lambda seed: next(figures)))
    monkeypatch.setattr(gate, "LIMITS", tmp_path / "gate.csv")
    limits = [
        {"check": name, "figure": 0, "sign": ">=", "limit": limit, "about": ""}
        for name, limit in ((ratio, 10), (exact, 5), (wrong, 10))
    ]
    rows.append(gate.LIMITS, gate.FIELDS, limits)
    assert gate.main(["--update", "--threads", str(torch.get_num_threads())]) == 1
    assert [row["figure"] for row in rows.read(gate.LIMITS)] == ["12", "7", "1"]
    assert capsys.readouterr().out.count("BEYOND") == 1
    assert next(figures, None) is None


def test_gate_counts_operations() -> None:
    row = next(row for row in rows.read(gate.LIMITS) if row["check"].startswith("ATen"))
    assert float(row["limit"]) / 2 < gate.CHECKS[row["check"]](0) <= float(row["limit"])


def session_of(path: Path, *words: str) -> rows.Session:
    parser = rows.parser("loss", "", path)
    return rows.Session(parser, parser.parse_args(list(words)), ("date", "commit", "part", "note"), ("part",))


def test_a_session_continues_until_another_commit_or_again(monkeypatch, tmp_path: Path) -> None:
    commit = ["abc"]
    monkeypatch.setattr(rows, "_output", lambda *words: commit[0])
    first = session_of(tmp_path / "a.csv")
    first.append({"part": "one"}, {"part": "two", "note": "failed: no"})
    assert first.status == 1
    second = session_of(tmp_path / "a.csv")
    assert second.origin["session"] == first.origin["session"]
    assert second.done(part="one")
    assert not second.done(part="two")
    again = session_of(tmp_path / "a.csv", "--again")
    assert not again.done(part="one")
    commit[0] = "def"
    other = session_of(tmp_path / "a.csv")
    assert len({first.origin["session"], again.origin["session"], other.origin["session"]}) == 3


def test_a_busy_machine_is_not_measured_unless_asked(monkeypatch, tmp_path: Path, capsys) -> None:
    readings = iter([100.0, 101.0, 100.0, 100.0])
    monkeypatch.setattr(measure, "_busy_seconds", lambda: next(readings))
    monkeypatch.setattr(measure.os, "cpu_count", lambda: 2)
    assert re.match(r"other processes use \d+\.\d of 2 cores \(load average", measure.busy(2, seconds=0.01))
    assert measure.busy(2, seconds=0.01) == ""
    monkeypatch.setattr(measure, "_busy_seconds", lambda: None)
    assert measure.busy(2) == ""
    monkeypatch.setattr(measure, "busy", lambda threads: "other processes use 1.5 of 2 cores")
    session = session_of(tmp_path / "a.csv")
    assert session.stops("torch")
    assert session.status == 2
    assert "other processes use 1.5 of 2 cores; --busy measures nevertheless" in capsys.readouterr().out
    assert not session_of(tmp_path / "a.csv", "--busy").stops("torch")


def test_host_counts_what_a_call_does() -> None:
    x, y = torch.ones(8), torch.ones(8)
    assert host.count(lambda: x + y) == host.Counts(calls=1, aten=1, allocations=1, launches=0)
    assert host.count(lambda: x.add_(y)).allocations == 0


def test_host_runs_the_path_of_the_kernels(monkeypatch, capsys) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(measure, "busy", lambda threads: "")
    monkeypatch.setattr(host, "ROUNDS", 2)
    assert host.main([]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"terms \d+\.\d calls \d+; loss \d+\.\d calls \d+", last)
    with host.no_launches() as names:
        assert host.count(host.steps()["terms"], names).launches == len(names) / 2 > 0
