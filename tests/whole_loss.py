"""Tests of the whole loss through the kernels of either package: values, gradients, the attention ring, torch.compile.

A test module imports them all and gives the fixture `backend`.
"""

import copy
import itertools
import os
from typing import Any

import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from adcorre import AdaptiveAttentionMap, AdCorreLoss, adcorre_loss

DEVICE = torch.device(os.environ.get("ADCORRE_DEVICE", "cpu"))
C = 5
SETTINGS = {
    "plain": {},
    "everything": {
        "ce_weight": torch.tensor([0.2, 0.0, 1.5, 0.7, 3.0]),
        "logit_adjustment": torch.tensor([0.5, -1.0, 0.0, 2.0, 0.1]),
        "label_smoothing": 0.1,
        "components": {"fd": 1.0, "md": 0.3, "ed": 0.1},
        "lambd": 0.7,
    },
    "naive": {"components": ("nfd", "ed"), "window": 1},
    "no terms": {"components": ()},
    "other targets": {"between_target": "simplex", "mean_target": 0.2, "embedding_target": 0},
}


def draw(n: int = 20, seed: int = 0, dtype: torch.dtype = torch.float32, k: int = 3, d: int = 8) -> tuple[Tensor, ...]:
    """Logits, embeddings and targets on the device, the third of them ignored."""
    rng = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, C, generator=rng, dtype=torch.float64)
    x = torch.randn(n, k, d, generator=rng, dtype=torch.float64)
    targets = torch.randint(0, C, (n,), generator=rng)
    if n > 2:
        targets[2] = -100
    return logits.to(dtype).to(DEVICE), x.to(dtype).to(DEVICE), targets.to(DEVICE)


def step(loss: AdCorreLoss, batch: tuple[Tensor, ...], scale: float = 1.0, **named) -> list[Tensor]:
    """The output and the gradients of `scale` times the loss, in float64 on the CPU."""
    logits, x, targets = (t.detach().clone() for t in batch)
    logits.requires_grad_()
    x.requires_grad_()
    out = loss(logits, x, targets, **named)
    gradients = torch.autograd.grad(scale * out.loss, (logits, x), allow_unused=True)
    return [t.detach().double().cpu() for t in (*out, *gradients) if t is not None]


def check_operators(kernels: Any, ops: Any) -> None:
    """`torch.library.opcheck` of a kernels package's operators of the whole loss."""
    logits, x, targets = draw(9)
    attention = AdaptiveAttentionMap(C).to(DEVICE)
    settings = kernels.Settings(label_smoothing=0.1)
    ring = (attention.counts, attention.position)
    weight, up = torch.rand(C, device=DEVICE), torch.ones((), device=DEVICE)
    samples = (x, logits, targets, weight, None)
    torch.library.opcheck(ops.loss.default, (*samples, None, *ring, None, 0.5, True, True, *settings))
    torch.library.opcheck(ops.loss.default, (*samples, weight, None, None, weight[0], 0.0, False, False, *settings))
    torch.library.opcheck(ops.sample_terms.default, (x, targets, weight, *settings))
    flat = kernels.statistics(x, targets, C, -100, -1.0)
    _, ce = kernels.logits_sums(logits, targets, None, None, 0.1, -100)
    whole = (flat, ce, weight, None, 0.5, 2.0, 3, 8)
    torch.library.opcheck(ops.loss_from_sums.default, (*whole, *settings))
    *_, tables = kernels.loss_from_sums(*whole, settings)
    for given, needs_x in itertools.product((logits, None), (True, False)):
        rest = (targets, weight, None, up, up, up, tables, needs_x, C, *settings)
        torch.library.opcheck(ops.gradients.default, (x, given, *rest))


def pair(backend: str, **settings) -> tuple[AdCorreLoss, AdCorreLoss]:
    """The kernels' loss, and the reference in float64 on the CPU."""
    return AdCorreLoss(C, backend=backend, **settings).to(DEVICE), AdCorreLoss(C, backend="reference", **settings)


def in_float64(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(t.cpu().double() if t.is_floating_point() else t.cpu() for t in batch)


def close(got: list[Tensor], truth: list[Tensor], dtype: torch.dtype = torch.float32) -> None:
    assert len(got) == len(truth)
    for one, other in zip(got[:7], truth[:7], strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)
    rounding = torch.finfo(dtype).eps if dtype.itemsize == 2 else 2e-5
    for one, other in zip(got[7:], truth[7:], strict=True):
        torch.testing.assert_close(one, other, rtol=rounding, atol=2e-6)


@pytest.mark.parametrize("settings", SETTINGS)
def test_values_and_gradients_of_a_run_are_the_references(settings, backend) -> None:
    """More steps than the window, then eval mode; batches of several sizes."""
    loss, truth = pair(backend, **SETTINGS[settings])
    for seed, n in enumerate([20, 1, 33, 0, 9, 20, 12]):
        if seed == 5:
            loss.eval(), truth.eval()
        batch = draw(n, seed)
        close(step(loss, batch), step(truth, in_float64(batch)))
    assert torch.equal(loss.attention_map.counts.cpu(), truth.attention_map.counts)
    assert torch.equal(loss.attention_map.position.cpu(), truth.attention_map.position)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype, backend) -> None:
    loss, truth = pair(backend, label_smoothing=0.1)
    batch = draw(dtype=dtype)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        got = step(loss, batch)
    close(got, step(truth, in_float64(batch)), dtype)


def test_logits_of_another_dtype_and_a_scaled_loss(backend) -> None:
    loss, truth = pair(backend)
    logits, x, targets = draw()
    for mixed in ((logits.double(), x, targets), (logits.half(), x.bfloat16(), targets)):
        got, expected = step(loss, mixed, 1024.0), step(truth, in_float64(mixed), 1024.0)
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=8e-3, atol=2e-3)
    assert loss(logits.double(), x, targets).loss.dtype == torch.float64
    assert loss(logits.half(), x.half(), targets).loss.dtype == torch.float32


@pytest.mark.parametrize("lambd", [0, 0.3, torch.tensor(0.3), torch.tensor(0.3, dtype=torch.float64)])
def test_lambda_is_a_number_or_a_tensor(lambd, backend) -> None:
    loss, truth = pair(backend)
    batch = draw()
    on_device = lambd.to(DEVICE) if isinstance(lambd, Tensor) else lambd
    close(step(loss, batch, lambd=on_device), step(truth, in_float64(batch), lambd=lambd))


def test_the_ring_is_the_confusion_matrix_of_the_window(backend) -> None:
    loss = AdCorreLoss(C, window=3, backend=backend).to(DEVICE)
    seen = []
    for seed in range(6):
        logits, x, targets = draw(30, seed)
        weights = loss(logits, x, targets).attention
        labelled = targets != -100
        seen.append((targets[labelled].cpu(), logits.argmax(1)[labelled].cpu()))
        labels, predictions = (torch.cat(part) for part in zip(*seen[-3:], strict=True))
        matrix = torch.from_numpy(confusion_matrix(labels, predictions, labels=range(C))).double()
        recall = matrix.diagonal() / matrix.sum(1).clamp(min=1)
        torch.testing.assert_close(weights.cpu().double(), 1 - recall + 1e-6)


def test_which_steps_the_attention_map_records(backend) -> None:
    """Training steps with gradients, once; not eval mode, `no_grad`, or the second run under checkpointing."""
    loss = AdCorreLoss(C, window=9, backend=backend).to(DEVICE)
    logits, x, targets = draw()
    logits.requires_grad_()
    with torch.no_grad():
        before = loss(logits, x, targets).attention
    assert int(loss.attention_map.position) == 0
    assert torch.equal(loss(logits, x, targets).attention, before)
    for reentrant in (False, True):
        checkpoint(lambda a: loss(a, x, targets).loss, logits, use_reentrant=reentrant).backward()
    assert int(loss.attention_map.position) == 3
    loss.eval()
    loss(logits, x, targets)
    assert int(loss.attention_map.position) == 3


def test_checkpointing_has_the_gradient_of_the_plain_step(backend) -> None:
    plain, checked = (AdCorreLoss(C, backend=backend).to(DEVICE) for _ in range(2))
    for seed in range(3):
        logits, x, targets = draw(seed=seed)
        gradients = []
        for loss in (plain, checked):
            leaves = [t.clone().requires_grad_() for t in (logits, x)]
            if loss is plain:
                total = loss(*leaves, targets).loss
            else:
                total = checkpoint(lambda a, b: checked(a, b, targets).loss, *leaves, use_reentrant=False)  # noqa: B023
            gradients.append(torch.autograd.grad(total, leaves))
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other)


class Own(torch.nn.Module):
    """A user-defined attention map."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = AdaptiveAttentionMap(C)
        self.seen: list[Tensor] = []

    def record(self, counts: Tensor) -> None:
        self.seen.append(counts)
        self.inner.record(counts)

    def weights(self, counts: Tensor | None = None) -> Tensor:
        return self.inner.weights(counts)


def test_a_custom_attention_map_gets_the_counts(backend) -> None:
    built_in, own = AdCorreLoss(C, backend=backend).to(DEVICE), AdCorreLoss(C, backend=backend, attention_map=Own())
    own.to(DEVICE)
    batch = draw()
    close(step(own, batch), step(built_in, batch))
    assert own.attention_map.seen[0].dtype == torch.int64
    assert torch.equal(own.attention_map.seen[0], built_in.attention_map.counts[0])


def test_the_functional_form(backend) -> None:
    logits, x, targets = draw()
    w = torch.rand(C, generator=torch.Generator().manual_seed(3))
    got = adcorre_loss(logits, x, targets, w.to(DEVICE), backend=backend)
    truth = adcorre_loss(*in_float64((logits, x)), targets.cpu(), w.double(), backend="reference")
    close([t.detach().double().cpu() for t in got], list(truth))


@pytest.mark.parametrize("label", [C, -1, 2**40])
def test_a_bad_label_is_nan_everywhere(label, backend) -> None:
    loss = AdCorreLoss(C, backend=backend, validate=False).to(DEVICE)
    logits, x, targets = draw()
    targets[5] = label
    *values, attention, dlogits, dx = step(loss, (logits, x, targets))
    assert all(bool(t.isnan().all()) for t in (*values, dlogits, dx))
    assert bool(attention.isfinite().all())
    with pytest.raises(IndexError, match=f"label {label} at position 5"):
        AdCorreLoss(C, backend=backend, validate=True).to(DEVICE)(logits, x, targets)


@pytest.mark.parametrize("kind", ["transposed", "odd start", "narrow labels", "one embedding", "strided weights"])
def test_any_strides(kind, backend) -> None:
    loss, truth = pair(backend, ce_weight=torch.rand(C, 2)[:, 0] if kind == "strided weights" else None)
    logits, x, targets = draw()
    if kind == "transposed":
        logits, x = logits.t().contiguous().t(), x.transpose(0, 2).contiguous().transpose(0, 2)
    if kind == "odd start":
        logits = torch.cat((logits.new_zeros(1), logits.flatten()))[1:].view(20, C)
        x = torch.cat((x.new_zeros(1), x.flatten()))[1:].view_as(x)
    if kind == "narrow labels":
        targets = targets.to(torch.int8)
    if kind == "one embedding":
        x = x[:, 0]
    close(step(loss, (logits, x, targets)), step(truth, in_float64((logits, x, targets.long()))))


def test_the_same_bits_every_time(backend) -> None:
    loss = AdCorreLoss(C, backend=backend).to(DEVICE)
    results = [step(copy.deepcopy(loss), draw(33)) for _ in range(3)]
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_each_gradient_alone_and_a_second_backward_pass(backend) -> None:
    logits, x, targets = draw()
    loss = AdCorreLoss(C, backend=backend).to(DEVICE).eval()
    both = step(loss, (logits, x, targets))[7:]
    for index in range(2):
        leaves = [logits.clone(), x.clone()]
        leaves[index].requires_grad_()
        out = loss(*leaves, targets).loss
        first = torch.autograd.grad(out, leaves[index], retain_graph=True)[0]
        assert torch.equal(first.cpu().double(), both[index])
        assert torch.equal(torch.autograd.grad(out, leaves[index])[0], first)


def test_saved_tensors_that_come_back_elsewhere(backend) -> None:
    """A hook may return a saved tensor with different strides."""
    logits, x, targets = draw()
    loss = AdCorreLoss(C, backend=backend).to(DEVICE).eval()
    x = x.transpose(0, 1).contiguous().transpose(0, 1)
    expected = step(loss, (logits, x, targets))[7:]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t.contiguous()):
        leaves = [logits.clone().requires_grad_(), x.clone().requires_grad_()]
        got = torch.autograd.grad(loss(*leaves, targets).loss, leaves)
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one.cpu().double(), other)


def test_transforms(backend) -> None:
    logits, x, targets = draw(6)
    loss = AdCorreLoss(C, backend=backend).to(DEVICE).eval()
    expected = step(loss, (logits, x, targets))[8]
    got = torch.func.grad(lambda x: loss(logits, x, targets).loss)(x)
    assert torch.equal(got.cpu().double(), expected)
    with pytest.raises(Exception, match=r"jvp|forward"):
        torch.func.jvp(lambda x: loss(logits, x, targets).loss, (x,), (torch.ones_like(x),))
    with pytest.raises(Exception, match="vmap"):
        torch.func.vmap(lambda x: loss(logits, x, targets).loss)(x[None])
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logits, leaf, targets).loss, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        gradient.sum().backward()


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.compiles)])
def test_compiled_equals_eager(compiler, backend) -> None:
    """The ring buffer too, which is mutated inside."""
    torch._dynamo.reset()
    eager = AdCorreLoss(C, backend=backend, window=2).to(DEVICE)
    module = copy.deepcopy(eager)
    compiled = torch.compile(module, fullgraph=True, backend=compiler, dynamic=True)
    for seed, n in enumerate((12, 7, 20)):
        batch = draw(n, seed)
        for lambd in (0.5, 0.1 * (seed + 1)):
            for one, other in zip(step(eager, batch, lambd=lambd), step(compiled, batch, lambd=lambd), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
        assert torch.equal(module.attention_map.counts, eager.attention_map.counts)
        assert torch.equal(module.attention_map.position, eager.attention_map.position)
