"""What holds for every test: seeds, hypothesis' settings, and the skip where nothing can be compiled."""

import os
import random
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("adcorre", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("adcorre")


def can_compile() -> bool:
    """Whether Inductor can build C++: it needs a compiler and Python's headers, which a bare machine has not."""
    compilers = (os.environ.get("CXX"), "g++", "clang++", "c++")
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return any(name and shutil.which(name) for name in compilers) and headers.exists()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not can_compile():
        for item in items:
            if item.get_closest_marker("compiles"):
                item.add_marker(pytest.mark.skip(reason="no C++ compiler, or no Python.h"))


@pytest.fixture(autouse=True)
def seed() -> None:
    random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
