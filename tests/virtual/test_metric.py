"""Virtual batches of a metric loss, embeddings alone: the plain batch's loss and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adcorre import AdaptiveAttentionMap, VirtualBatch
from adcorre.metric import AdCorreMetricLoss
from tests.virtual.tools import D, K, Model, assert_equal_gradients, draw, gradients, once, split


class Embedder(Model):
    """images -> embeddings (n, k, d), or (n, k d)."""

    def __init__(self, flat: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.flat = flat

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        x = super().forward(images)[1]
        return x.flatten(1) if self.flat else x


SETTINGS: dict[str, dict[str, Any]] = {
    "mapped": {},
    "given classes": {"num_classes": 50},
    "every pair of samples": {"pairs": "sample", "between_target": 0.1},
    "reference": {"backend": "reference"},
    "attention map": {"num_classes": 50, "embedding_size": (K, D)},
}


def make_loss(name: str) -> AdCorreMetricLoss:
    options = dict(SETTINGS[name])
    if "embedding_size" in options:
        options["attention"] = AdaptiveAttentionMap(50)
    return AdCorreMetricLoss(**options).double()


@pytest.mark.parametrize("form", ["tensor", "callable", "once", "one chunk", "graphs kept"])
@pytest.mark.parametrize("name", SETTINGS)
def test_equals_the_ordinary_batch(name: str, form: str) -> None:
    """Over two steps, so that the second uses the attention map of the first; some labels are in one chunk only."""
    images, labels = draw(31)
    labels = labels * 7 + (torch.arange(31) > 20) * 9
    plain, chunked = Embedder().double(), Embedder().double()
    loss, virtual_loss = make_loss(name), make_loss(name)
    chunks = split(images, labels, 8)
    inputs: Any = {"callable": lambda: chunks, "once": once(chunks), "graphs kept": chunks}.get(form, images)
    step = VirtualBatch(chunked, virtual_loss, 31 if form == "one chunk" else 8, keep_graphs=form == "graphs kept")
    for _ in range(2):
        for model in (plain, chunked):
            model.zero_grad()
        expected = loss(plain(images), labels)
        expected.backward()
        if form == "once":
            inputs = once(chunks)
        actual = step(inputs, labels if inputs is images else None)
        assert not actual.requires_grad
        torch.testing.assert_close(actual, expected.detach(), rtol=1e-12, atol=1e-12)
        assert gradients(plain)
        for model in (plain, chunked):
            model.head.zero_grad()  # its classifier takes no part
        assert_equal_gradients(chunked.conv, plain.conv)
    for key, value in loss.state_dict().items():
        torch.testing.assert_close(virtual_loss.state_dict()[key], value)


def test_random_layers_and_scaler() -> None:
    """Dropout is replayed; float16's scale multiplies the gradients."""
    images, labels = draw(20)
    one, two = Embedder(flat=True, dropout=0.5).double(), Embedder(flat=True, dropout=0.5).double()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    torch.manual_seed(1)
    VirtualBatch(one, AdCorreMetricLoss(), 6, keep_graphs=True)(images, labels)
    torch.manual_seed(1)
    VirtualBatch(two, AdCorreMetricLoss(), 6)(images, labels, scaler=scaler)
    for parameter in two.parameters():
        if parameter.grad is not None:
            parameter.grad /= 8
    assert_equal_gradients(two.conv, one.conv)


def test_mistakes() -> None:
    images, labels = draw(20)
    opened = iter([split(images, labels, 7), split(images * 1.1, labels, 7)])
    model, loss = Embedder().double(), AdCorreMetricLoss()
    with pytest.raises(RuntimeError, match="chunk 0 of 3 has other statistics in the second pass"):
        VirtualBatch(model, loss)(lambda: next(opened))
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(TypeError, match="embeddings, got tuple of Tensor, Tensor"):
        VirtualBatch(Model().double(), loss, 7)(images, labels)
    with pytest.raises(ValueError, match="a metric loss has none"):
        VirtualBatch(model, loss)(images, labels, lambd=0.5)
    with pytest.raises(TypeError, match="AdCorreMetricLoss"):
        VirtualBatch(model, nn.Linear(1, 1))  # type: ignore[arg-type]
