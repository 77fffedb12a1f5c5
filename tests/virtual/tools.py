"""A small model, random images, and an ordinary step to compare a virtual batch with."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from adcorre import AdCorreLoss, AdCorreOutput, EmbeddingSpace

CLASSES, K, D = 4, 3, 8


class Model(nn.Module):
    """images (n, 2, 6, 6) -> (logits, embeddings). Counts its forward passes."""

    def __init__(self, norm: bool = False, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(
                2, 5, 3, bias=not norm
            )  # before BatchNorm, a bias has only rounding noise as its gradient
            self.norm = nn.BatchNorm2d(5) if norm else nn.Identity()
            self.dropout = nn.Dropout(dropout)
            self.head = EmbeddingSpace(5 * 16, CLASSES, k=K, d=D, dropout=dropout)
        self.forwards = 0

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.forwards += 1
        features = self.dropout(torch.relu(self.norm(self.conv(images))))
        logits, embeddings = self.head(features.flatten(1))
        return logits, embeddings


def draw(n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 2, 6, 6, generator=rng, dtype=torch.float64).to(dtype)
    return images, torch.randint(0, CLASSES, (n,), generator=rng)


def plain_step(model: nn.Module, loss: AdCorreLoss, images: Tensor, targets: Tensor) -> AdCorreOutput:
    logits, embeddings = model(images)
    output = loss(logits, embeddings, targets)
    output.loss.backward()
    return output._replace(loss=output.loss.detach())


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_equal_gradients(got: nn.Module, reference: nn.Module, tolerance: float = 1e-10) -> None:
    """Relative to each parameter's largest entry."""
    expected = gradients(reference)
    actual = gradients(got)
    assert actual.keys() == expected.keys()
    assert expected
    for name, gradient in expected.items():
        error = float((actual[name] - gradient).abs().max() / gradient.abs().max().clamp(min=1e-6))
        assert error <= tolerance, f"{name}: {error}"


def assert_equal_outputs(got: AdCorreOutput, expected: AdCorreOutput, tolerance: float = 1e-10) -> None:
    for name, value, target in zip(got._fields, got, expected, strict=True):
        assert not value.requires_grad, name
        assert value.dtype == target.dtype, name
        torch.testing.assert_close(value, target, rtol=tolerance, atol=tolerance, msg=name)


def split(images: Tensor, targets: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(images.split(size), targets.split(size), strict=True))


def once(chunks: Iterable[tuple[Tensor, Tensor]]) -> Iterable[tuple[Tensor, Tensor]]:
    """A one-shot iterator."""
    yield from chunks
