"""The Adaptive Attention Map against scikit-learn's confusion matrix, and as module state."""

import numpy as np
import torch
from sklearn.metrics import confusion_matrix

from adcorre import AdaptiveAttentionMap, AdCorreLoss


def batches(count: int, num_classes: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    uniforms = []
    for n in [17, 1, 40, 0, 5, 23, 60, 9, 33, 12][:count]:
        logits = torch.randn(n, num_classes, generator=rng)
        targets = torch.randint(0, num_classes, (n,), generator=rng)
        logits[torch.arange(n), targets] += 1
        uniforms.append((logits, targets))
    return uniforms


def test_weights_are_those_of_the_windows_confusion_matrix() -> None:
    """Batches of several sizes, ignored samples, absent classes; more steps than the window."""
    attention = AdaptiveAttentionMap(6, window=3)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    for logits, targets in batches(10, 6):
        targets[targets == 5] = 0  # class 5 never comes
        if len(targets) > 3:
            targets[2] = -100
        weights = attention(logits, targets)
        seen.append((logits, targets))
        labels = torch.cat([t for _, t in seen[-3:]])
        predictions = torch.cat([logits.argmax(1) for logits, _ in seen[-3:]])[labels != -100]
        labels = labels[labels != -100]
        counts = confusion_matrix(labels, predictions, labels=np.arange(6)).astype(float)
        conf = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        np.testing.assert_allclose(weights.numpy(), 1 - np.diag(conf) + 1e-6, rtol=1e-12)
    assert float(weights[5]) == 1 + 1e-6


def test_empty_window_and_eval_mode() -> None:
    attention = AdaptiveAttentionMap(3)
    assert attention.weights().tolist() == [1 + 1e-6] * 3
    logits, targets = batches(1, 3)[0]
    attention.eval()
    assert attention(logits, targets).tolist() == [1 + 1e-6] * 3
    assert int(attention.counts.sum()) == 0
    attention.train()
    trained = attention(logits, targets)
    assert bool((trained < 1).any())
    attention.eval()
    assert torch.equal(attention(*batches(3, 3)[2]), trained)


def test_a_bad_label_is_not_counted() -> None:
    attention = AdaptiveAttentionMap(3)
    attention(torch.eye(3)[[0, 1, 2]], torch.tensor([0, 7, -5]))
    assert attention.counts[0].tolist() == [[1, 0, 0], [1, 0, 0]]


def test_state_is_checkpointed_and_resumes() -> None:
    first, second = AdCorreLoss(5, window=2), AdCorreLoss(5, window=2)
    steps = [(logits, torch.randn(len(targets), 2, 4), targets) for logits, targets in batches(7, 5)]
    for step in steps[:4]:
        first(*step)
    second.load_state_dict(first.state_dict())
    for step in steps[4:]:
        assert torch.equal(first(*step).attention, second(*step).attention)
    assert set(first.state_dict()) == {"attention_map.counts", "attention_map.position"}


def test_the_batch_enters_before_its_weights_are_read() -> None:
    loss = AdCorreLoss(2)
    logits = torch.tensor([[3.0, 0], [3, 0], [0, 3]])
    out = loss(logits, torch.randn(3, 1, 4), torch.tensor([0, 0, 0]))
    assert out.attention.tolist() == torch.tensor([1 - 2 / 3 + 1e-6, 1 + 1e-6]).tolist()
    assert out.attention.dtype == torch.float32
    assert (
        loss(logits.double(), torch.randn(3, 1, 4).double(), torch.tensor([0, 0, 0])).attention.dtype == torch.float64
    )
