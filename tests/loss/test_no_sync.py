"""No host sync: on the meta device there are no values, so reading one raises."""

import pytest
import torch

from adcorre import AdCorreLoss


@pytest.mark.parametrize("target", [-1, "simplex"])
@pytest.mark.parametrize("components", [("fd", "md", "ed"), ("nfd",)])
def test_a_step_does_not_synchronize(target, components) -> None:
    loss = AdCorreLoss(
        7,
        components=components,
        between_target=target,
        mean_target=target,
        embedding_target=target,
        ce_weight=torch.rand(7),
        label_smoothing=0.1,
        backend="torch",
    ).to("meta")
    logits = torch.empty(60, 7, device="meta", requires_grad=True)
    embeddings = torch.empty(60, 7, 16, device="meta", dtype=torch.bfloat16, requires_grad=True)
    targets = torch.empty(60, dtype=torch.int64, device="meta")
    out = loss(logits, embeddings, targets, lambd=torch.empty((), device="meta"))
    out.loss.backward()
    assert embeddings.grad.shape == embeddings.shape
    with pytest.raises(RuntimeError, match="meta"):
        out.loss.item()


def test_validate_true_reads_the_labels() -> None:
    loss = AdCorreLoss(7, validate=True, backend="torch").to("meta")
    with pytest.raises(RuntimeError, match="meta"):
        loss(
            torch.empty(4, 7, device="meta"),
            torch.empty(4, 2, 8, device="meta"),
            torch.empty(4, dtype=torch.int64, device="meta"),
        )
