"""For every test: environment, seeds, hypothesis settings, sampling of long tests, the skip without a C++ compiler."""

import os
import random
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import settings

settings.register_profile("adcorre", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("adcorre")

SAMPLE = "ADCORRE_SAMPLE"


def can_compile() -> bool:
    """Whether Inductor can build C++: it needs a compiler and Python's headers."""
    compilers = (os.environ.get("CXX"), "g++", "clang++", "c++")
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return any(name and shutil.which(name) for name in compilers) and headers.exists()


def seed_of_commit() -> int:
    """A number that changes with the commit; 0 outside of a repository."""
    try:
        command = ["git", "rev-parse", "--short=7", "HEAD"]
        commit = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout
    except OSError:
        commit = ""
    return int(commit.strip()[:7] or "0", 16)


def pytest_configure() -> None:
    """Set one seed for all processes of this run. A GPU is fast enough to run every case."""
    os.environ.setdefault(SAMPLE, "all" if "ADCORRE_DEVICE" in os.environ else str(seed_of_commit()))


def pytest_report_header() -> str:
    return f"{SAMPLE}={os.environ[SAMPLE]} selects the cases of tests marked sample; {SAMPLE}=all runs every case"


def left_out(items: list[pytest.Item], seed: int) -> list[pytest.Item]:
    """Shuffle the cases of each test marked sample(m) and keep every m-th, starting at `seed`; return the others."""
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sample"):
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    cases = []
    for test, own in tests.items():
        [m] = own[0].get_closest_marker("sample").args  # type: ignore[union-attr]
        random.Random(test).shuffle(own)  # taken in order, every m-th case could always have the same dtype
        cases += [item for place, item in enumerate(own) if (place - seed) % m]
    return cases


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not can_compile():
        for item in items:
            if item.get_closest_marker("compiles"):
                item.add_marker(pytest.mark.skip(reason="no C++ compiler, or no Python.h"))
    names_tests = config.option.keyword or any("::" in argument for argument in config.args)
    if os.environ[SAMPLE] != "all" and not names_tests:
        deselected = left_out(items, int(os.environ[SAMPLE]))
        config.hook.pytest_deselected(items=deselected)
        names = {item.nodeid for item in deselected}
        items[:] = [item for item in items if item.nodeid not in names]


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Take back what a command that runs inside a test process sets for its own (MPLBACKEND, OpenMP's waiting)."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(autouse=True)
def seed() -> None:
    random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
