"""EmbeddingSpace: shapes, norms, and the paper's Table 11 to the digit."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from adcorre import EmbeddingSpace

XCEPTION = 20_861_480  # the paper's count, BatchNorm's running mean and variance included
TABLE_11 = {1: 21_386_281, 3: 22_437_419, 7: 24_545_839, 10: 26_132_530}
FLOPS = 4_554_344_528  # the paper's, multiply-adds at 224 x 224


def test_logits_and_embeddings() -> None:
    space = EmbeddingSpace(32, 4, k=3, d=8)
    features = torch.randn(5, 32)
    logits, embeddings = space(features)
    assert logits.shape == (5, 4)
    assert embeddings.shape == (5, 3, 8)
    torch.testing.assert_close(embeddings.norm(dim=2), torch.ones(5, 3))
    separate = torch.nn.functional.linear(features, space.embed.weight[8:16], space.embed.bias[8:16])
    torch.testing.assert_close(embeddings[:, 1], torch.nn.functional.normalize(separate, dim=1))


def test_dropout_stands_behind_the_embeddings() -> None:
    space = EmbeddingSpace(32, 4, k=3, d=8, dropout=0.5)
    features = torch.randn(5, 32)
    first, second = space(features), space(features)
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], second[0])
    space.eval()
    assert torch.equal(space(features)[0], space(features)[0])


@pytest.fixture(scope="module")
def xception() -> torch.nn.Module:
    timm = pytest.importorskip("timm")
    return timm.create_model("legacy_xception", num_classes=0)


@pytest.mark.parametrize("k, expected", TABLE_11.items())
def test_parameter_counts_of_table_11(xception, k, expected) -> None:
    """Classes = k in that table; counts include BatchNorm's running mean and variance."""
    space = EmbeddingSpace(xception.num_features, k, k=k)
    backbone = sum(p.numel() for p in xception.parameters())
    running = sum(b.numel() for name, b in xception.named_buffers() if "running" in name)
    assert backbone + running == XCEPTION
    assert backbone + running + sum(p.numel() for p in space.parameters()) == expected


def test_flops_of_xception(xception) -> None:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        xception.eval()(torch.zeros(1, 3, 224, 224))
    assert counter.get_total_flops() / 2 == pytest.approx(FLOPS, rel=2e-3)
