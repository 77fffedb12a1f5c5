"""With pytorch-metric-learning's trainer, tester, miner and wrappers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("pytorch_metric_learning")

from pytorch_metric_learning import distances, losses, miners, regularizers, samplers, testers, trainers
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN

from adcorre.metric import AdCorreMetricLoss


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(12, 8, requires_grad=True), torch.arange(12) % 4 + 30


def test_is_a_base_metric_loss_function() -> None:
    loss = AdCorreMetricLoss()
    assert isinstance(loss, losses.BaseMetricLossFunction)
    x, labels = batch()
    plain = loss(x, labels)
    assert torch.equal(loss(x, labels, None, x, labels), plain)
    assert torch.equal(loss(x, labels, ref_emb=x.view_as(x), ref_labels=labels.clone()), plain)
    of_others = losses.MultipleLosses([loss, losses.TripletMarginLoss()], miners=[None, miners.MultiSimilarityMiner()])
    assert bool(of_others(x, labels).isfinite())
    several = losses.MultipleLosses([loss, losses.TripletMarginLoss()])
    assert float(several(x, labels).detach()) > float(plain.detach())
    regularized = AdCorreMetricLoss(embedding_regularizer=regularizers.LpRegularizer(), embedding_reg_weight=0.5)
    torch.testing.assert_close(regularized(x, labels), plain + 0.5 * x.norm(dim=1).mean())


def test_its_record_keepers_get_the_terms() -> None:
    x, labels = batch()
    loss = AdCorreMetricLoss(collect_stats=True, components={"fd": 2.0, "md": 1.0})
    value = loss(x, labels)
    recorded = {name: getattr(loss, name) for name in loss._record_these_stats}
    assert recorded.keys() == {"fd", "md", "ed"}
    assert 2 * recorded["fd"] + recorded["md"] == pytest.approx(float(value.detach()))
    assert recorded["fd"] > 0 < recorded["md"]
    assert not hasattr(AdCorreMetricLoss(), "fd")


def test_other_pairs_are_refused() -> None:
    loss, (x, labels) = AdCorreMetricLoss(), batch()
    with pytest.raises(ValueError, match="Remove the miner"):
        loss(x, labels, miners.MultiSimilarityMiner()(x, labels))
    for references in ((torch.randn(5, 8), torch.arange(5)), (x.detach().clone(), labels), (x, labels + 1)):
        with pytest.raises(ValueError, match="ref_emb: expected None"):
            loss(x, labels, None, *references)
    with pytest.raises(Exception, match="CrossBatchMemory not supported for AdCorreMetricLoss"):
        losses.CrossBatchMemory(loss, 8)


def test_its_trainer_and_tester() -> None:
    """Two epochs of its example's shape: MetricLossOnly with a sampler, then GlobalEmbeddingSpaceTester."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat(30) * 7
    images = torch.randn(4, 10, generator=rng)[labels // 7] + torch.randn(120, 10, generator=rng)
    dataset = torch.utils.data.TensorDataset(images, labels)
    trunk = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 8))
    tester = testers.GlobalEmbeddingSpaceTester(
        accuracy_calculator=AccuracyCalculator(
            include=("precision_at_1", "mean_average_precision_at_r"),
            k="max_bin_count",
            device=torch.device("cpu"),
            knn_func=CustomKNN(distances.CosineSimilarity()),
        ),
        dataloader_num_workers=0,
        data_device=torch.device("cpu"),
    )
    accuracies: list[float] = []

    def test(trainer: trainers.BaseTrainer) -> None:
        tester.test({"test": dataset}, trainer.epoch, trunk)
        accuracies.append(tester.all_accuracies["test"]["mean_average_precision_at_r_level0"])

    trainers.MetricLossOnly(
        models={"trunk": trunk},
        optimizers={"trunk_optimizer": torch.optim.Adam(trunk.parameters(), lr=0.02)},
        batch_size=32,
        loss_funcs={"metric_loss": AdCorreMetricLoss()},
        dataset=dataset,
        sampler=samplers.MPerClassSampler(labels, m=8, length_before_new_iter=128),
        data_device=torch.device("cpu"),
        dataloader_num_workers=0,
        end_of_epoch_hook=test,
    ).train(num_epochs=2)
    assert len(accuracies) == 2
    assert accuracies[1] > 0.6


def test_its_trainer_compiled() -> None:
    """Model and loss compiled: the weights of the eager ones."""
    labels = torch.arange(4).repeat(16)
    dataset = torch.utils.data.TensorDataset(torch.randn(64, 6, generator=torch.Generator().manual_seed(0)), labels)
    weights = []
    for compiled in (False, True):
        torch.manual_seed(0)
        trunk, loss = nn.Linear(6, 5), AdCorreMetricLoss(4, between_target="simplex")
        parts = [torch.compile(part, backend="aot_eager") if compiled else part for part in (trunk, loss)]
        trainers.MetricLossOnly(
            models={"trunk": parts[0]},
            optimizers={"trunk_optimizer": torch.optim.SGD(trunk.parameters(), lr=1.0)},
            batch_size=32,
            loss_funcs={"metric_loss": parts[1]},
            dataset=dataset,
            data_device=torch.device("cpu"),
            dataloader_num_workers=0,
        ).train(num_epochs=1)
        weights.append(trunk.weight.detach())
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-5)
    torch.manual_seed(0)
    assert (weights[0] - nn.Linear(6, 5).weight).abs().max() > 1e-3
