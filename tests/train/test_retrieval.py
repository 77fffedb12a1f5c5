"""Retrieval metrics against their definitions, query by query."""

import math

import pytest
import torch
from torch import Tensor

from train import retrieval
from train.retrieval import retrieval_metrics


def by_definition(similarity: Tensor, labels: Tensor) -> dict[str, float]:
    """Precision at 1, R-precision and MAP@R from an (n, n) similarity, with loops."""
    actual: list[tuple[float, float, float]] = []
    for query in range(len(labels)):
        others = [other for other in similarity[query].argsort(descending=True).tolist() if other != query]
        right = [bool(labels[other] == labels[query]) for other in others]
        r = sum(right)
        if r:
            precisions = [sum(right[: i + 1]) / (i + 1) for i in range(r) if right[i]]
            actual.append((float(right[0]), sum(right[:r]) / r, sum(precisions) / r))
    means = torch.tensor(actual, dtype=torch.float64).mean(0).tolist()
    return dict(zip(("precision_at_1", "r_precision", "map_at_r"), means, strict=True))


@pytest.mark.parametrize("similarity", ["correlation", "cosine"])
def test_matches_the_definition(similarity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of queries (the last is short), labels not exact in float32, a class of one sample, a shift along d."""
    monkeypatch.setattr(retrieval, "QUERIES", 16)
    x = torch.randn(45, 3, 6) + 2
    labels = torch.randint(0, 4, (45,)) + 2**40
    labels[7] = 5
    z = x - x.mean(-1, keepdim=True) if similarity == "correlation" else x
    z = torch.nn.functional.normalize(z, dim=-1)
    expected = by_definition(torch.einsum("ild,jld->ij", z, z), labels)
    actual = retrieval_metrics(x, labels, similarity)  # type: ignore[arg-type]
    assert actual == pytest.approx(expected, abs=1e-12)
    assert 0 < actual["map_at_r"] < actual["r_precision"] < 1


def test_two_dimensions_are_one_vector() -> None:
    x, labels = torch.randn(20, 8), torch.randint(0, 3, (20,))
    assert retrieval_metrics(x, labels) == retrieval_metrics(x[:, None], labels)
    assert retrieval_metrics(x[labels], labels) == pytest.approx(dict.fromkeys(retrieval.METRICS, 1.0))


def test_without_a_pair_of_one_class() -> None:
    assert all(map(math.isnan, retrieval_metrics(torch.randn(3, 4), torch.arange(3)).values()))


def test_invalid_inputs_raise_an_error() -> None:
    for x, labels in (
        (torch.randn(3), torch.arange(3)),
        (torch.randn(3, 2), torch.arange(2)),
        (torch.randn(0, 2),) * 2,
    ):
        with pytest.raises(ValueError, match="embeddings"):
            retrieval_metrics(x, labels)
    with pytest.raises(ValueError, match="similarity"):
        retrieval_metrics(torch.randn(3, 2), torch.arange(3), "euclidean")  # type: ignore[arg-type]
