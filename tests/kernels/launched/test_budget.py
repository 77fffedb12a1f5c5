"""Values and gradients of the kernels against float64, over shapes, dtypes and targets."""

import pytest
import torch

from adcorre_kernels.gpu import plan
from tests.kernels.launched.tools import check, draw

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16

# n, k, d, C. Narrow kernels: a warp holds a sample of k unrolled embeddings.
NARROW = [
    (60, 7, 256, 7),  # the paper's
    (33, 3, 17, 5),  # odd d: a masked tail, no aligned vectors
    (21, 16, 100, 3),  # the most embeddings
    (9, 1, 2, 3),  # the least d; k = 1
    (13, 4, 300, 2),  # several tiles per vector, the last one partly full
    (1, 2, 32, 3),  # one sample
    (6, 3, 16, 32),  # most classes absent
]
# Wide kernels: a program holds one sample, or loops over blocks of its embeddings.
WIDE = [
    (10, 9, 300, 3),  # padded in k and d
    (6, 20, 130, 3),  # k > 16
    (5, 3, 1024, 2),  # a row over several warps
    (4, 3, 4096, 2),  # larger than a tile: blocks
    (3, 64, 72, 2),  # the largest k
]
# In half precision, lengths by matrix units: one or two samples per tile; several tiles per row, the last partly full.
GRAM = [(9, 16, 48, 3), (11, 5, 80, 3)]
MANY_CLASSES = [(40, 3, 20, 33), (12, 6, 32, 40), (20, 2, 16, 100), (5, 9, 130, 33)]  # one order of all samples


@pytest.mark.sample(4)
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("shape", NARROW + WIDE + GRAM)
def test_terms_of_the_paper(shape, dtype) -> None:
    check(draw(*shape), dtype)


@pytest.mark.sample(2)
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("shape", MANY_CLASSES)
def test_many_classes(shape, dtype, monkeypatch) -> None:
    check(draw(*shape), dtype)
    monkeypatch.setattr(plan, "GATHERED_CLASSES", 8)  # the backward pass ordered by class
    check(draw(*shape, seed=1), dtype)


@pytest.mark.parametrize("shape", [(20, 4, 64, 3), (8, 9, 130, 3)])
def test_vectors_far_from_centred(shape) -> None:
    check(draw(*shape, shift=30.0))


@pytest.mark.parametrize("shape", [(50, 3, 32, 4), (12, 9, 130, 3), (23, 6, 32, 3)])
def test_one_order_of_all_samples(shape, monkeypatch) -> None:
    """The path for large batches: two launches sort all samples; a program loops over the runs of several classes."""
    monkeypatch.setattr(plan, "LOCAL_SAMPLES", 0)
    monkeypatch.setattr(plan, "SORT_TILE", 128)  # 16 labels x 8 classes: several programs sort
    for dtype in (F32, BF16):
        check(draw(*shape), dtype)
    monkeypatch.setattr(plan, "SORT_PROGRAMS", 2)  # several tiles a program
    monkeypatch.setattr(plan, "SLOT_ELEMENTS", 0)  # slots of one row
    plan.plan_statistics.cache_clear()
    check(draw(*shape), F32)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_grids_of_a_gpu(dtype, full_grids) -> None:
    check(draw(130, 7, 256, 7), dtype)
    check(draw(130, 3, 40, 50), dtype)
