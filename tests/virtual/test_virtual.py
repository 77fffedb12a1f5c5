"""A virtual batch has the gradient of one plain batch, in every form that chunks may have."""

import copy

import pytest
import torch
from torch import nn

from adcorre import AdCorreLoss, VirtualBatch
from tests.virtual.tools import (
    CLASSES,
    Model,
    assert_equal_gradients,
    assert_equal_outputs,
    draw,
    gradients,
    once,
    plain_step,
    split,
)

FORMS = ("tensor", "list", "callable", "iterator")


def inputs_in(form, images, targets, size):
    chunks = split(images, targets, size)
    return {
        "tensor": (images, targets),
        "list": (chunks,),
        "callable": (lambda: iter(chunks),),
        "iterator": (once(chunks),),
    }[form]


@pytest.mark.parametrize("keep_graphs", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_equals_one_ordinary_batch(form, keep_graphs) -> None:
    """Over several steps, so that attention weights differ from 1; an uneven last chunk."""
    plain, virtual = Model().double(), Model().double()
    plain_loss, loss = AdCorreLoss(CLASSES), AdCorreLoss(CLASSES)
    step = VirtualBatch(virtual, loss, chunk_size=7, keep_graphs=keep_graphs)
    for seed in range(3):
        images, targets = draw(31, seed)
        expected = plain_step(plain, plain_loss, images, targets)
        got = step(*inputs_in(form, images, targets, 7))
        assert_equal_outputs(got, expected)
        assert_equal_gradients(virtual, plain)
    assert virtual.forwards == 3 * 5 * (1 if keep_graphs else 2)
    for name, buffer in plain_loss.named_buffers():
        assert bool((loss.get_buffer(name) == buffer).all())
    assert bool((got.attention < 1).any())


@pytest.mark.parametrize(
    "settings",
    [
        {"components": ()},
        {"components": ("nfd", "ed"), "lambd": 2.0},
        {"components": ("md",), "backend": "torch"},
        {"between_target": "simplex", "mean_target": 0.2, "embedding_target": "simplex"},
        {"label_smoothing": 0.1, "ce_weight": torch.tensor([0.1, 2.0, 1.0, 0.5])},
        {"ignore_index": 2},
        {"pairs": "sample"},
        {"pairs": "sample", "between_target": 0.1, "ignore_index": 2},
        {"pairs": "sample", "between_target": "simplex", "components": ("nfd",), "mean_target": 0.2},
        {"pairs": "sample", "between_target": 0, "components": ("ed",)},
    ],
    ids=str,
)
@pytest.mark.parametrize("keep_graphs", [False, True])
def test_every_setting_of_the_loss(settings, keep_graphs) -> None:
    images, targets = draw(23)
    plain, virtual = Model().double(), Model().double()
    expected = plain_step(plain, AdCorreLoss(CLASSES, **settings), images, targets)
    got = VirtualBatch(virtual, AdCorreLoss(CLASSES, **settings), 5, keep_graphs=keep_graphs)(images, targets)
    assert_equal_outputs(got, expected)
    assert_equal_gradients(virtual, plain)


@pytest.mark.parametrize("pairs", ["class", "sample"])
def test_a_single_embedding_and_lambda_per_call(pairs) -> None:
    class Flat(Model):
        def forward(self, images):
            logits, embeddings = super().forward(images)
            return logits, embeddings[:, 0]

    images, targets = draw(20)
    plain, virtual = Flat().double(), Flat().double()
    expected = plain_step(plain, AdCorreLoss(CLASSES, lambd=0.2, pairs=pairs), images, targets)
    got = VirtualBatch(virtual, AdCorreLoss(CLASSES, pairs=pairs), 6)(
        images, targets, lambd=torch.tensor(0.2, dtype=torch.float64)
    )
    assert_equal_outputs(got, expected)
    assert_equal_gradients(virtual, plain)


def test_gradients_add_to_those_that_are_there() -> None:
    images, targets = draw(20)
    model, loss = Model().double(), AdCorreLoss(CLASSES).eval()
    step = VirtualBatch(model, loss, 6)
    step(images, targets)
    once_only = gradients(model)
    step(images, targets)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, 2 * once_only[name], rtol=1e-12, atol=1e-14)


def test_one_chunk_is_an_ordinary_step_bit_for_bit() -> None:
    images, targets = draw(20, dtype=torch.float32)
    for form in FORMS:
        plain, virtual = Model(norm=True, dropout=0.5), Model(norm=True, dropout=0.5)
        torch.manual_seed(3)
        expected = plain_step(plain, AdCorreLoss(CLASSES), images, targets)
        torch.manual_seed(3)
        got = VirtualBatch(virtual, AdCorreLoss(CLASSES), 20)(*inputs_in(form, images, targets, 20))
        assert virtual.forwards == 1
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        assert all(torch.equal(gradients(virtual)[name], one) for name, one in gradients(plain).items())
        assert all(torch.equal(a, b) for a, b in zip(virtual.buffers(), plain.buffers(), strict=True))


def test_dropout_equals_keeping_the_graphs() -> None:
    """With the same random states; both leave the same state behind."""
    images, targets = draw(31)
    with_graphs, virtual = Model(norm=True, dropout=0.5).double(), Model(norm=True, dropout=0.5).double()
    torch.manual_seed(1)
    expected = VirtualBatch(with_graphs, AdCorreLoss(CLASSES), 7, keep_graphs=True)(images, targets)
    after = torch.get_rng_state()
    torch.manual_seed(1)
    got = VirtualBatch(virtual, AdCorreLoss(CLASSES), 7)(images, targets)
    assert_equal_outputs(got, expected)
    assert_equal_gradients(virtual, with_graphs)
    assert torch.equal(torch.get_rng_state(), after)
    torch.manual_seed(2)
    other = Model(norm=True, dropout=0.5).double()
    assert abs(float(VirtualBatch(other, AdCorreLoss(CLASSES), 7)(images, targets).loss - got.loss)) > 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_dropout_on_a_gpu() -> None:
    """The model's CUDA generator is replayed too."""
    images, targets = (tensor.cuda() for tensor in draw(31))
    with_graphs, virtual = (Model(norm=True, dropout=0.5).double().cuda() for _ in range(2))
    for model, keep_graphs in ((with_graphs, True), (virtual, False)):
        torch.manual_seed(1)
        VirtualBatch(model, AdCorreLoss(CLASSES).cuda(), 7, keep_graphs=keep_graphs)(images, targets)
    assert_equal_gradients(virtual, with_graphs)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("keep_graphs", [False, True])
def test_batch_norm_buffers_are_those_of_plain_accumulation(keep_graphs, momentum) -> None:
    images, targets = draw(31)
    plain, virtual = Model(norm=True).double(), Model(norm=True).double()
    plain.norm.momentum = virtual.norm.momentum = momentum
    for _ in range(2):
        for chunk, labels in split(images, targets, 7):
            plain_step(plain, AdCorreLoss(CLASSES), chunk, labels)
        VirtualBatch(virtual, AdCorreLoss(CLASSES), 7, keep_graphs=keep_graphs)(images, targets)
    assert int(plain.norm.num_batches_tracked) == 10
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(virtual.get_buffer(name), buffer, rtol=0, atol=0)


def test_buffers_that_the_forward_pass_reads() -> None:
    """Spectral normalization updates its vectors in every training pass, and its output depends on them."""
    images, targets = draw(31)
    models = [Model().double() for _ in range(2)]
    for model in models:
        torch.manual_seed(0)
        nn.utils.parametrizations.spectral_norm(model.conv)
    expected = VirtualBatch(models[0], AdCorreLoss(CLASSES), 7, keep_graphs=True)(images, targets)
    got = VirtualBatch(models[1], AdCorreLoss(CLASSES), 7)(images, targets)
    assert_equal_outputs(got, expected)
    assert_equal_gradients(models[1], models[0])
    for a, b in zip(models[0].buffers(), models[1].buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_a_loader_that_draws_from_the_default_generator_is_replayed() -> None:
    """Opened again, it shuffles and augments in the same way: its random numbers are replayed too."""
    images, targets = draw(30)
    seen: list[torch.Tensor] = []

    def chunks():
        for rows in torch.randperm(30).split(7):
            augmented = images[rows] + 0.1 * torch.randn(len(rows), 2, 6, 6, dtype=torch.float64)
            seen.append(augmented)
            yield augmented, targets[rows]

    model = Model(dropout=0.3).double()
    VirtualBatch(model, AdCorreLoss(CLASSES), 7)(chunks)
    assert len(seen) == 10
    assert all(torch.equal(a, b) for a, b in zip(seen[:5], seen[5:], strict=True))


def test_an_iterator_that_draws_random_numbers_between_the_chunks() -> None:
    """Its chunks are kept, so that the second pass draws nothing; each chunk has its own random state."""
    images, targets = draw(28)

    def chunks():
        for chunk, labels in split(images, targets, 7):
            yield chunk + torch.randn_like(chunk), labels

    states: list[torch.Tensor] = []
    model = Model(dropout=0.5).double()
    model.register_forward_pre_hook(lambda *_: states.append(torch.get_rng_state()))
    VirtualBatch(model, AdCorreLoss(CLASSES))(chunks())
    assert all(torch.equal(a, b) for a, b in zip(states[:4], states[4:], strict=True))


def test_inputs_of_any_kind() -> None:
    class Pair(Model):
        def forward(self, inputs):
            return super().forward(inputs["left"] + inputs["right"])

    images, targets = draw(20)
    plain, virtual = Model().double(), Pair().double()
    plain_step(plain, AdCorreLoss(CLASSES), images, targets)
    chunks = [({"left": x / 2, "right": x / 2}, y) for x, y in split(images, targets, 6)]
    VirtualBatch(virtual, AdCorreLoss(CLASSES))(once(chunks))
    assert_equal_gradients(virtual, plain)


@pytest.mark.parametrize("frozen", ["conv", "head.embed", "head.classifier"])
def test_frozen_parts(frozen) -> None:
    images, targets = draw(20)
    plain, virtual = Model().double(), Model().double()
    for model in (plain, virtual):
        model.get_submodule(frozen).requires_grad_(False)
    plain_step(plain, AdCorreLoss(CLASSES), images, targets)
    VirtualBatch(virtual, AdCorreLoss(CLASSES), 6)(images, targets)
    assert_equal_gradients(virtual, plain)
    virtual.requires_grad_(False)
    with pytest.raises(RuntimeError, match="does not require grad"):
        VirtualBatch(virtual, AdCorreLoss(CLASSES), 6)(images, targets)


def test_chunks_without_samples_that_count() -> None:
    images, targets = draw(20)
    targets[5:12] = -100
    plain, virtual = Model().double(), Model().double()
    plain_step(plain, AdCorreLoss(CLASSES), images, targets)
    chunks = [*split(images, targets, 6), (images[:0], targets[:0])]
    VirtualBatch(virtual, AdCorreLoss(CLASSES))(chunks)
    assert_equal_gradients(virtual, plain)
    nothing = VirtualBatch(copy.deepcopy(virtual), AdCorreLoss(CLASSES), 6)(images, torch.full_like(targets, -100))
    assert float(nothing.loss) == 0


@pytest.mark.parametrize("pairs", ["class", "sample"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_a_gradient_scaler(dtype, pairs) -> None:
    """Equal to the gradient with graphs kept, times the scale; close to the float32 gradient."""
    images, targets = draw(31, dtype=torch.float32)
    models = [Model(norm=True, dropout=0.3) for _ in range(3)]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for model, keep_graphs in zip(models, (True, False), strict=False):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype):
            out = VirtualBatch(model, AdCorreLoss(CLASSES, pairs=pairs), 7, keep_graphs=keep_graphs)(
                images, targets, scaler=scaler
            )
        assert out.fd.dtype == torch.float32
    assert_equal_gradients(models[1], models[0], 2e-2)
    optimizer = torch.optim.SGD(models[1].parameters(), lr=0.0)
    scaler.unscale_(optimizer)
    torch.manual_seed(0)
    VirtualBatch(models[2], AdCorreLoss(CLASSES, pairs=pairs), 7)(images, targets)
    assert_equal_gradients(models[1], models[2], 0.1)


def test_one_chunk_with_a_scaler() -> None:
    images, targets = draw(20, dtype=torch.float32)
    plain, scaled = Model(), Model()
    VirtualBatch(plain, AdCorreLoss(CLASSES))(images, targets)
    VirtualBatch(scaled, AdCorreLoss(CLASSES))(images, targets, scaler=torch.amp.GradScaler("cpu", init_scale=4.0))
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(gradients(scaled)[name], 4 * gradient)


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.compiles, pytest.mark.slow])]
)
@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_models(backend, in_place) -> None:
    """One graph for both passes, with the same dropout masks; BatchNorm's buffers too."""
    images, targets = draw(28)
    models = [Model(norm=True, dropout=0.5).double() for _ in range(2)]
    torch._dynamo.reset()
    for model, keep_graphs in zip(models, (True, False), strict=True):
        compiled = model
        if in_place:
            model.compile(backend=backend)
        else:
            compiled = torch.compile(model, backend=backend)
        torch.manual_seed(0)
        VirtualBatch(compiled, AdCorreLoss(CLASSES), 7, keep_graphs=keep_graphs)(images, targets)
    assert_equal_gradients(models[1], models[0])
    for a, b in zip(models[0].buffers(), models[1].buffers(), strict=True):
        torch.testing.assert_close(a, b)
