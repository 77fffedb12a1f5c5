"""The state of the loss: what is recorded, checkpointing, copies, modules built on the meta device."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from adcorre import AdaptiveAttentionMap, AdCorreLoss, EmbeddingSpace, VirtualBatch, adcorre_loss
from tests.loss.test_loss import batch
from tests.loss.tools import LINEAR
from tests.virtual.tools import CLASSES, Model, draw


def recorded(loss: AdCorreLoss) -> int:
    return int(loss.attention_map.counts.sum(2)[:, 1].ne(0).sum())


@pytest.mark.parametrize("backend", [*LINEAR, "reference"])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("pending", [1, 2])
def test_activation_checkpointing_is_one_step_with_the_same_weights(reentrant, pending, backend) -> None:
    """`pending` forward passes before the backward pass; the first run's weights are not those of the latest window."""
    plain, checked = AdCorreLoss(4, window=9, backend=backend), AdCorreLoss(4, window=9, backend=backend)
    for step in range(3):
        values, gradients = [], []
        for loss, through in ((plain, False), (checked, True)):
            leaves, total = [], torch.zeros((), dtype=torch.float64)
            for index in range(pending):
                logits, x, y = batch(20 - index)
                logits = (logits.detach() * (1 - 2 * index)).roll(step, 0).requires_grad_()
                leaves += [logits, x]

                def run(logits, x, loss=loss, y=y):
                    return loss(logits, x, y).loss.exp()

                total = total + (checkpoint(run, logits, x, use_reentrant=reentrant) if through else run(logits, x))
            values.append(total.detach())
            total.backward()
            gradients.append([leaf.grad for leaf in leaves])
        if reentrant and pending == 2:  # the first run was not recorded when the second began, so its window lacks it
            continue
        assert torch.equal(*values)
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert recorded(plain) == recorded(checked) == 3 * pending


def test_a_second_run_of_an_unknown_batch_is_refused() -> None:
    logits, x, y = batch()
    loss = AdCorreLoss(4)

    class Inside(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, upstream):
            with torch.enable_grad():
                loss(logits, x, y)
            return upstream

    with pytest.raises(RuntimeError, match="keep the loss outside the checkpointed function"):
        Inside.apply(x).sum().backward()


def test_without_gradients_nothing_is_recorded() -> None:
    """Validation with a loss that was left in training mode; a virtual batch, whose sums have no graph, is one step."""
    logits, x, y = batch()
    loss = AdCorreLoss(4)
    trained = loss(logits, x, y)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            for _ in range(6):
                loss(torch.nn.functional.one_hot(y, 4).double(), x, y)
    assert recorded(loss) == 1
    assert torch.equal(loss.attention_map.weights(), trained.attention)
    loss = AdCorreLoss(CLASSES)
    VirtualBatch(Model().double(), loss, 7)(*draw(31))
    assert recorded(loss) == 1


def test_a_copy_is_independent_and_shares_the_group() -> None:
    logits, x, y = batch()
    loss = AdCorreLoss(4, ce_weight=torch.rand(4))
    group = loss.process_group = type("Group", (), {"__deepcopy__": None, "__reduce_ex__": None})()
    copied = copy.deepcopy(nn.ModuleList([loss, loss]))
    assert copied[0] is copied[1] is not loss
    assert copied[0].process_group is group
    loss.process_group = copied[0].process_group = None
    loss(logits, x, y)
    assert (recorded(loss), recorded(copied[0])) == (1, 0)
    assert copied[0].ce_weight.data_ptr() != loss.ce_weight.data_ptr()


def test_built_on_the_meta_device() -> None:
    """After materializing, the window is empty and the settings are unchanged; a missing setting raises."""
    weight = torch.rand(4)
    with torch.device("meta"):
        loss = AdCorreLoss(4, ce_weight=weight)
        nowhere = AdCorreLoss(4, ce_weight=torch.rand(4))
        attention = AdaptiveAttentionMap(4)
    for module in (loss.to_empty(device="cpu").attention_map, attention.to_empty(device="cpu")):
        assert int(module.counts.abs().sum()) == int(module.position) == 0
    assert torch.equal(loss.ce_weight, weight)
    logits, x, y = batch()
    torch.testing.assert_close(loss(logits, x, y), AdCorreLoss(4, ce_weight=weight)(logits, x, y))
    nowhere.to_empty(device="cpu")
    assert bool(nowhere(logits, x, y).loss.isnan())
    nowhere.load_state_dict(loss.state_dict())
    assert bool(nowhere(logits, x, y).loss.isfinite())


NARROW = (
    (torch.uint8, 200, torch.arange(140, 200), -100),  # 156 is 256 - 100
    (torch.uint8, 256, torch.arange(40), -100),
    (torch.int8, 128, torch.arange(40), -100),
    (torch.int16, 40_000, torch.arange(4), -100),
    (torch.int32, 5, torch.arange(5), -(2**32)),  # 0 in 32 bits
    (torch.uint8, 5, torch.arange(5), 256),
    (torch.uint16, 300, torch.arange(0, 300, 7), -100),
    (torch.uint64, 5, torch.arange(5), -100),
)


@pytest.mark.parametrize("dtype, num_classes, labels, ignored", NARROW)
@pytest.mark.parametrize("backend", [*LINEAR, "reference"])
def test_narrow_labels_are_the_wide_ones(dtype, num_classes, labels, ignored, backend) -> None:
    """Comparisons with C and ignore_index would wrap around in a dtype that cannot hold them."""
    if backend == "reference" and num_classes > 1000:
        num_classes, labels = 1000, labels
    generator = torch.Generator().manual_seed(0)
    logits, x = torch.randn(len(labels), num_classes, generator=generator), torch.randn(len(labels), 2, 16)
    seen = []
    for targets in (labels, labels.to(dtype)):
        leaves = logits.clone().requires_grad_(), x.clone().requires_grad_()
        loss = AdCorreLoss(num_classes, ignore_index=ignored, backend=backend)
        out = loss(*leaves, targets)
        out.loss.backward()
        assert int(loss.attention_map.counts.sum(0)[1].sum()) == len(labels)
        alone = AdaptiveAttentionMap(num_classes, ignore_index=ignored)
        assert torch.equal(alone(logits, targets), loss.attention_map.weights())
        pairs = AdCorreLoss(num_classes, ignore_index=ignored, pairs="sample", between_target=0, backend=backend)
        seen.append([*out, *(leaf.grad for leaf in leaves), *pairs(logits, x, targets)])
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    torch.testing.assert_close(seen[0][1], torch.nn.functional.cross_entropy(logits, labels))


@pytest.mark.parametrize(
    "lambd, error, words",
    [
        (torch.tensor(0.5, requires_grad=True), ValueError, r"lambd: carries no gradient.* pass lambd.detach\(\)"),
        (-1, ValueError, "lambd: expected a finite number of at least 0, got -1"),
        (float("nan"), ValueError, "lambd: .*got nan"),
        (float("inf"), ValueError, "lambd: .*got inf"),
        (torch.tensor(-1.0), ValueError, "lambd: .*got -1.0"),
        ("0.5", TypeError, "lambd: expected a number, got str"),
        (True, TypeError, "lambd: expected a number, got bool"),
        (torch.ones(1), TypeError, "lambd: expected a number or a 0-d floating tensor"),
    ],
)
def test_lambda_is_a_finite_number_without_gradient_everywhere(lambd, error, words) -> None:
    logits, x, y = batch()
    loss = AdCorreLoss(4)
    calls = (
        lambda: AdCorreLoss(4, lambd=lambd),
        lambda: loss(logits, x, y, lambd=lambd),
        lambda: adcorre_loss(logits, x, y, torch.ones(4), lambd=lambd),
        lambda: VirtualBatch(Model().double(), AdCorreLoss(CLASSES), 30)(*draw(20), lambd=lambd),
        lambda: VirtualBatch(Model().double(), AdCorreLoss(CLASSES), 7)(*draw(20), lambd=lambd),
    )
    for call in calls:
        with pytest.raises(error, match=words):
            call()
    assert recorded(loss) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_zero_row_stays_zero_in_half_precision(dtype) -> None:
    """In float16 the usual eps of 1e-12 is 0."""
    space = EmbeddingSpace(8, 3, k=2, d=4, dropout=0.0).to(dtype)
    nn.init.zeros_(space.embed.bias)
    features = torch.randn(3, 8).to(dtype)
    features[1] = 0
    logits, embeddings = space(features)
    (logits.sum() + embeddings.sum()).backward()
    assert embeddings.dtype == dtype
    assert bool(embeddings.isfinite().all())
    assert float(embeddings[1].abs().max()) == 0
    torch.testing.assert_close(embeddings[0].float().norm(dim=1), torch.ones(2), rtol=2e-2, atol=0)
    assert all(bool(parameter.grad.isfinite().all()) for parameter in space.parameters())
