"""Every new buffer is filled with NaN (integers: their largest value), so that an element never written is noticed."""

from collections.abc import Iterator

import pytest
import torch

from adcorre_kernels.gpu import gpus, loss, plan

FEW = 4  # multiprocessors: small grids, since the interpreter runs programs one after another


@pytest.fixture(autouse=True)
def filled_buffers() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def small_grids(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "full_grids" not in request.fixturenames:
        monkeypatch.setattr(gpus, "multiprocessors", lambda _: FEW)


@pytest.fixture(autouse=True)
def fresh_plans() -> Iterator[None]:
    """Clear cached launch plans: tests change the numbers that they depend on."""
    yield
    for remembered in (
        plan.plan_statistics,
        plan.plan_gradient,
        plan.plan_terms,
        plan.plan_logits,
        loss._plan,
        loss._terms_options,
    ):
        remembered.cache_clear()


@pytest.fixture
def full_grids() -> None:
    """The grids of a GPU with 132 processors."""
