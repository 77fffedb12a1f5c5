"""Chunks that change between the passes, invalid labels and malformed inputs: nothing is left half done."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from adcorre import AdCorreLoss, VirtualBatch
from tests.virtual.tools import CLASSES, Model, assert_equal_gradients, draw, once, plain_step, split


def state(model: Model, loss: AdCorreLoss) -> list[torch.Tensor]:
    return [tensor.detach().clone() for module in (model, loss) for tensor in module.state_dict().values()]


def refused(model: Model, loss: AdCorreLoss, inputs: object, error: type[Exception], words: str, **options) -> None:
    """It raises, buffers and attention map are unchanged, and no gradient is left, not even an earlier one."""
    images, targets = draw(20)
    plain_step(model, loss, images.to(next(model.parameters()).dtype), targets)
    before = state(model, loss)
    with pytest.raises(error, match=words):
        VirtualBatch(model, loss, **options)(inputs)
    assert all(torch.equal(a, b) for a, b in zip(state(model, loss), before, strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_loader_that_shuffles_again_raises_an_error(dtype) -> None:
    images, targets = draw(31, dtype=dtype)
    order = torch.Generator().manual_seed(0)
    loader = DataLoader(TensorDataset(images, targets), batch_size=7, shuffle=True, generator=order)
    model, loss = Model(norm=True).to(dtype), AdCorreLoss(CLASSES)
    refused(model, loss, lambda: iter(loader), RuntimeError, "chunk 0 of 5 has other labels in the second pass")
    VirtualBatch(model, loss)(loader)  # an iterator can be read only once


@pytest.mark.parametrize("shade", [1.0, 1.1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_one_image_augmented_again(dtype, shade) -> None:
    """In half precision only larger changes are detected; smaller ones hardly change the gradient."""
    shade = -1.0 if dtype == torch.bfloat16 and shade != 1 else shade
    images, targets = draw(63, dtype=dtype)
    opened = 0

    def chunks():
        nonlocal opened
        opened += 1
        for index, (chunk, labels) in enumerate(split(images, targets, 21)):
            factor = torch.ones(len(labels), 1, 1, 1, dtype=dtype)
            if index == 1 and opened == 2:
                factor[3] = shade
            yield (chunk * factor).clamp(-3, 3).to(dtype), labels

    model, loss = Model().to(dtype), AdCorreLoss(CLASSES)
    if shade == 1.0:
        VirtualBatch(model, loss)(chunks)
    else:
        refused(model, loss, chunks, RuntimeError, "chunk 1 of 3 has other statistics in the second pass")


@pytest.mark.parametrize("second, words", [(2, "3 chunks in the first pass and 2"), (4, "3 .* and more in the")])
def test_another_number_of_chunks(second, words) -> None:
    images, targets = draw(28)
    counts = iter((3, second))
    chunks = split(images, targets, 7)
    refused(Model().double(), AdCorreLoss(CLASSES), lambda: chunks[: next(counts)], RuntimeError, words)


@pytest.mark.parametrize("pairs", ["class", "sample"])
def test_a_chunk_of_another_size(pairs) -> None:
    images, targets = draw(28)
    sizes = iter((14, 13))

    def chunks():
        cut = next(sizes)
        return [(images[:cut], targets[:cut]), (images[cut:], targets[cut:])]

    loss = AdCorreLoss(CLASSES, pairs=pairs)
    refused(Model().double(), loss, chunks, RuntimeError, "chunk 0 of 2 has other labels")


def test_an_iterator_that_fills_the_same_tensors_again() -> None:
    images, targets = draw(28)

    def chunks():
        staging = torch.empty_like(images[:7]), torch.empty_like(targets[:7])
        for chunk in split(images, targets, 7):
            for buffer, rows in zip(staging, chunk, strict=True):
                buffer.copy_(rows)
            yield staging

    refused(Model().double(), AdCorreLoss(CLASSES), chunks(), RuntimeError, "unless it fills the same tensors again")
    VirtualBatch(Model().double(), AdCorreLoss(CLASSES))(chunks)  # called twice, it fills them with the same values


def test_random_numbers_from_a_generator_of_its_own() -> None:
    class Noisy(Model):
        generator = torch.Generator()

        def forward(self, images):
            return super().forward(images + torch.randn(images.shape, generator=self.generator, dtype=images.dtype))

    images, targets = draw(28)
    model = Noisy().double()
    refused(model, AdCorreLoss(CLASSES), split(images, targets, 7), RuntimeError, "chunk 0 of 4 has other statistics")


@pytest.mark.parametrize("pairs", ["class", "sample"])
@pytest.mark.parametrize("keep_graphs", [False, True])
def test_a_bad_label(keep_graphs, pairs) -> None:
    images, targets = draw(28)
    targets[17] = CLASSES
    chunks = split(images, targets, 7)
    model, loss = Model(norm=True).double(), AdCorreLoss(CLASSES, pairs=pairs)
    refused(model, loss, chunks, IndexError, "label 4 at position 3 is outside", keep_graphs=keep_graphs)
    loss = AdCorreLoss(CLASSES, pairs=pairs, validate=False)
    out = VirtualBatch(model, loss, keep_graphs=keep_graphs)(chunks)
    assert all(bool(value.isnan()) for value in out[:6])
    assert all(bool(parameter.grad.isnan().any()) for parameter in model.parameters())


def test_nan_is_not_an_error() -> None:
    """A run that diverged gives NaN, as an ordinary step does, and no error about chunks."""
    images, targets = draw(28)
    images[9] = torch.nan
    out = VirtualBatch(Model().double(), AdCorreLoss(CLASSES), 7)(images, targets)
    assert bool(out.loss.isnan())


@pytest.mark.parametrize("keep_graphs", [False, True])
def test_an_error_of_the_model_or_the_loader(keep_graphs) -> None:
    images, targets = draw(28)

    def chunks():
        yield from split(images[:21], targets[:21], 7)
        raise OSError("no such image")

    model, loss = Model(norm=True).double(), AdCorreLoss(CLASSES)
    refused(model, loss, chunks, OSError, "no such image", keep_graphs=keep_graphs)
    refused(model, loss, once(chunks()), OSError, "no such image", keep_graphs=keep_graphs)
    wrong = [*split(images, targets, 14), (images[:, :1], targets)]
    refused(model, loss, wrong, RuntimeError, "channels", keep_graphs=keep_graphs)


IMAGES, TARGETS = draw(6)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((IMAGES,), ValueError, r"targets: expected one for each of the inputs \(6, 2, 6, 6\); got none"),
        ((IMAGES, TARGETS[:5]), ValueError, r"targets: expected one for each .* got shape \(5,\)"),
        (([(IMAGES, TARGETS)], TARGETS), ValueError, "targets: expected None, since chunks"),
        ((7,), TypeError, "inputs: expected a tensor, a list of chunks .* got int"),
        (([],), ValueError, "expected at least one chunk, got none; without samples, pass one of n = 0"),
        (((IMAGES, TARGETS),), TypeError, r"a chunk: expected a pair \(inputs, targets\).* got Tensor"),
        (([(IMAGES, TARGETS, TARGETS)],), TypeError, "a chunk: .* got tuple of Tensor, Tensor, Tensor"),
        (([(IMAGES, [1, 2])],), TypeError, "a chunk: .* got tuple of Tensor, list"),
        ((lambda: None,), TypeError, "NoneType"),
    ],
)
def test_unknown_forms_of_inputs_raise_an_error(arguments, error, words) -> None:
    with pytest.raises(error, match=words):
        VirtualBatch(Model().double(), AdCorreLoss(CLASSES), 3)(*arguments)


def test_settings() -> None:
    model, loss = Model(), AdCorreLoss(CLASSES)
    with pytest.raises(ValueError, match="chunk_size: expected at least 1, got 0"):
        VirtualBatch(model, loss, 0)
    with pytest.raises(TypeError, match="an AdCorreLoss or AdCorreMetricLoss, got Model and CrossEntropyLoss"):
        VirtualBatch(model, torch.nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match='backend="reference" does not support chunks'):
        VirtualBatch(model.double(), AdCorreLoss(CLASSES, backend="reference"), 3)(IMAGES, TARGETS)
    with pytest.raises(TypeError, match=r"the model's output: expected tensors \(logits, embeddings\), got Tensor"):
        VirtualBatch(torch.nn.Flatten(), loss, 3)(*draw(6))


def test_after_a_mistake_the_next_step_is_right() -> None:
    images, targets = draw(28)
    plain, virtual = Model(norm=True, dropout=0.2).double(), Model(norm=True, dropout=0.2).double()
    loss = AdCorreLoss(CLASSES)
    counts = iter((3, 2))
    with pytest.raises(RuntimeError):
        VirtualBatch(virtual, loss)(lambda: split(images, targets, 7)[: next(counts)])
    for model, used in ((plain, AdCorreLoss(CLASSES)), (virtual, loss)):
        torch.manual_seed(0)
        VirtualBatch(model, used, 7)(images, targets)
    assert_equal_gradients(virtual, plain)
