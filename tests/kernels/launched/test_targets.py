"""Other correlation targets than -1 against float64: class pairs in the middle step, k x k per sample in the passes."""

import pytest
import torch

from tests.kernels.launched.tools import check, draw

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


# -1, the simplex target, another value, and 1; the other terms have different targets.
@pytest.mark.sample(4)
@pytest.mark.parametrize("targets", [("simplex", 0.3, -1), (0.3, 1, "simplex"), (1, "simplex", 0.3), (-1, 0, 0)])
@pytest.mark.parametrize("shape", [(33, 3, 17, 5), (24, 8, 64, 7), (6, 9, 100, 3), (2, 3, 4096, 2), (1, 1, 8, 1)])
def test_other_targets(shape, targets) -> None:
    between, mean, embedding = targets
    check(draw(*shape, between=between, mean=mean, embedding=embedding, seed=5))


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_other_targets_in_half_precision(dtype) -> None:
    check(draw(20, 7, 64, 4, between="simplex", mean=0.1, embedding=0.2), dtype)


@pytest.mark.slow
@pytest.mark.sample(6)
@pytest.mark.parametrize("targets", [("simplex", 0.3, -1), (0, 0, "simplex"), (1, 1, 1)])
@pytest.mark.parametrize(
    "shape", [(60, 7, 256, 7), (21, 16, 100, 3), (13, 4, 300, 2), (6, 3, 16, 32), (10, 9, 300, 3), (12, 16, 256, 16)]
)
def test_every_shape_with_other_targets(shape, targets) -> None:
    between, mean, embedding = targets
    if embedding != -1 and shape[1] > 16:
        embedding = -1
    for dtype in (F32, F16):
        check(draw(*shape, between=between, mean=mean, embedding=embedding, seed=6), dtype)
