"""The machine runs compiled kernels, so a process with TRITON_INTERPRET=1 has nothing to test here."""

import csv
import os
from pathlib import Path

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    collect_ignore_glob = ["test_*.py"]

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")


@pytest.fixture(params=["sm_80", "sm_90", "sm_120"])
def arch(request: pytest.FixtureRequest) -> str:
    return request.param


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ptx-table", type=Path, help="write what the covering set showed, a row a case")


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:  # type: ignore[no-untyped-def]
    """In the process that receives all test reports."""
    path = config.getoption("--ptx-table", None)
    if path is None or not terminalreporter.stats.get("passed"):
        return
    from tests.ptx.package import COLUMNS

    passed = sorted(terminalreporter.stats["passed"], key=lambda report: report.nodeid)
    rows = [value for report in passed for name, value in report.user_properties if name == "ptx"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    terminalreporter.write_line(f"{len(rows)} rows in {path}")
