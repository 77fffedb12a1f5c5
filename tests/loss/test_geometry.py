"""Freely optimized vectors reach, for each target, the geometry that the derivation predicts."""

import pytest
import torch

from bench.targets import ATTENTION, COUNTS, optimise

EQUAL = (0.3,) * 4
FD, MD, ED = torch.eye(3).tolist()


def pairs(correlations: torch.Tensor) -> torch.Tensor:
    return correlations[..., ~torch.eye(correlations.shape[-1], dtype=torch.bool)]


@pytest.mark.parametrize("target, expected", [("simplex", -1 / 3), (0, 0.0)])
def test_fd_separates_classes_at_the_target(target, expected) -> None:
    result = optimise((10, 20, 5, 15), EQUAL, weights=FD, between_target=target)
    assert (pairs(result.directions) - expected).abs().max() <= 0.02
    assert result.loss < 1e-3


def test_fd_at_minus_one_asks_only_that_the_classes_sum_to_zero() -> None:
    """At the same minimum of the loss, the correlations of class pairs can differ."""
    results = [optimise((10, 20, 5, 15), EQUAL, weights=FD, seed=seed) for seed in (0, 1)]
    assert max(result.resultant for result in results) < 1e-6
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-9)
    assert float(pairs(results[0].directions).max() - pairs(results[0].directions).min()) > 0.3
    assert (results[0].directions - results[1].directions).abs().max() > 0.1


def test_unequal_weights_draw_classes_of_similar_recall_together() -> None:
    """At -1 easy classes (Neutral, Happy, Surprise) coincide, and hard ones (Sad, Fear, Disgust); "simplex" holds."""
    for weights, least in ((FD, 0.98), ([1.0, 1.0, 0.0], 0.8)):  # MD does not prevent it
        together = optimise(COUNTS, ATTENTION, weights=weights).directions[0]
        for group in ((0, 1, 3), (2, 4, 5)):
            assert float(pairs(together[list(group)][:, list(group)]).min()) > least
    apart = optimise(COUNTS, ATTENTION, weights=FD, between_target="simplex").directions
    assert (pairs(apart) + 1 / 6).abs().max() <= 0.02


@pytest.mark.parametrize("target, expected", [("simplex", -1 / 3), (0, 0.0)])
def test_md_separates_class_means_at_the_target(target, expected) -> None:
    result = optimise((6, 6, 6, 6), EQUAL, weights=MD, mean_target=target)
    assert (pairs(result.means) - expected).abs().max() <= 0.02


@pytest.mark.parametrize("target, expected", [("simplex", -1 / 3), (0, 0.0)])
def test_ed_separates_a_samples_vectors_at_the_target(target, expected) -> None:
    result = optimise((6, 6), (0.5, 0.5), weights=ED, embedding_target=target, k=4)
    assert (pairs(result.vectors) - expected).abs().max() <= 0.02


def test_ed_at_minus_one_makes_two_vectors_one_and_its_mirror_image() -> None:
    result = optimise((6, 6), (0.5, 0.5), weights=ED, k=2)
    assert float(pairs(result.vectors).max()) < -0.999
