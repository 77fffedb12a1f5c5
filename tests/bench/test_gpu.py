"""`python -m bench gpu` from end to end in Triton's interpreter, at toy size; and the dispatcher of the benchmarks."""

import pytest

from bench import rows
from bench.__main__ import COMMANDS
from tests.bench.tools import bench

pytest.importorskip("triton")


def test_parts_run_once_and_continue_where_they_stopped(tmp_path) -> None:
    out = tmp_path / "gpu.csv"
    first = bench("gpu", "--device", "cpu", "--parts", "agrees", "determinism", "--out", out)
    assert first.returncode == 0, first.stdout + first.stderr
    written = rows.read(out)
    assert {row["part"] for row in written} == {"agrees", "determinism"}
    assert all(row["device"] == "interpreter" and row["triton"] for row in written)
    second = bench("gpu", "--device", "cpu", "--parts", "agrees", "graph", "--out", out)
    assert "agrees: done before" in second.stdout
    assert {row["part"] for row in rows.read(out)} == {"agrees", "determinism", "graph"}
    passed = [row["part"] for row in rows.read(out) if row["metric"] == "passed"]
    assert passed == ["agrees", "determinism", "graph"]


@pytest.mark.slow
def test_every_part(tmp_path) -> None:
    """One of the parts that run test files; tests/kernels/test_interpreted.py runs all of them."""
    from bench.gpu import PARTS

    files = [part for part in PARTS if part.startswith("tests-")]
    parts = [part for part in PARTS if part not in files[1:]]
    out = tmp_path / "gpu.csv"
    done = bench("gpu", "--device", "cpu", "--parts", *parts, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all parts passed" in done.stdout
    assert {row["part"] for row in rows.read(out)} == set(parts)


def test_users_errors_are_one_message() -> None:
    for words, interpret, message in (
        (("gpu", "--device", "cpu"), False, "set TRITON_INTERPRET=1"),
        (("gpu", "--parts", "nothing"), True, "invalid choice"),
        (("nothing",), True, "expected one of " + ", ".join(COMMANDS)),
        ((), True, "usage: python -m bench"),
    ):
        done = bench(*words, interpret=interpret)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_help_lists_every_command() -> None:
    done = bench("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in COMMANDS)
