"""The machine runs compiled kernels, so a process with TRITON_INTERPRET=1 has nothing to test here."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    collect_ignore_glob = ["test_*.py"]

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")


@pytest.fixture(params=["sm_80", "sm_90", "sm_120"])
def arch(request: pytest.FixtureRequest) -> str:
    return request.param
