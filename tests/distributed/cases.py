"""What holds on every rank. Each case is called with (rank, world) by all ranks at once, inside one gloo group.

The truth is a single process on the whole batch, which every rank computes for itself.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from adcorre import AdaptiveAttentionMap, AdCorreLoss, AdCorreOutput, VirtualBatch
from adcorre.metric import AdCorreMetricLoss
from tests.virtual.tools import (
    CLASSES,
    D,
    K,
    Model,
    assert_equal_gradients,
    assert_equal_outputs,
    draw,
    gradients,
    plain_step,
    split,
)
from train.ranks import Ranks

CASES: dict[str, Callable[[int, int], None]] = {}
SLOW: set[str] = set()
PAIRS = {"pairs": "sample", "between_target": 0.1}
SETTINGS: tuple[dict, ...] = (
    {},
    {"components": (), "backend": "torch"},
    {"components": {"nfd": 0.3, "ed": 2.0}, "label_smoothing": 0.1, "ignore_index": 2},
    {"between_target": "simplex", "mean_target": 0.2, "embedding_target": 0.1},
    {"backend": "torch", "embedding_target": 0.1},
    {
        "ce_weight": torch.tensor([0.1, 2.0, 1.0, 0.5]).double(),
        "logit_adjustment": torch.tensor([0, 1.0, -1, 2]).double(),
    },
    PAIRS,
    {"pairs": "sample", "components": ("nfd", "md"), "ignore_index": 2},
)


def case(function: Callable[[int, int], None]) -> Callable[[int, int], None]:
    CASES[function.__name__] = function
    return function


def slow(function: Callable[[int, int], None]) -> Callable[[int, int], None]:
    SLOW.add(function.__name__)
    return case(function)


def shares(n: int, world: int, kind: str = "uneven") -> list[slice]:
    """Split n samples over the ranks: rank r gets about r + 1 parts; "empty": the last of several ranks gets none."""
    sized = world - 1 if kind == "empty" and world > 1 else world
    edges = [n * r * (r + 1) // (sized * (sized + 1)) for r in range(sized + 1)]
    parts = [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]
    return parts + [slice(n, n)] * (world - sized)


def reduce_gradients(model: nn.Module, world: int, reduction: str) -> None:
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
        if reduction == "mean":
            parameter.grad /= world


def same_on_every_rank(output: AdCorreOutput) -> None:
    local = torch.cat([value.detach().double().reshape(-1) for value in output])
    from_rank_0 = local.clone()
    dist.broadcast(from_rank_0, 0)
    assert torch.equal(local, from_rank_0)


@case
def equals_a_single_process(rank: int, world: int) -> None:
    """Loss and every parameter's gradient, over steps of attention; uneven, an empty rank, classes on one rank."""
    for settings in SETTINGS:
        for reduction in ("mean", "sum"):
            plain, local = Model().double(), Model().double()
            plain_loss = AdCorreLoss(CLASSES, **settings)
            loss = AdCorreLoss(CLASSES, **settings, process_group="world", gradient_reduction=reduction)
            for step, kind in enumerate(("uneven", "empty", "sorted")):
                images, targets = draw(29, seed=step)
                if kind == "sorted":  # a class on one rank only
                    images, targets = images[targets.argsort()], targets.sort().values
                share = shares(29, world, kind)[rank]
                plain.zero_grad()
                local.zero_grad()
                expected = plain_step(plain, plain_loss, images, targets)
                got = plain_step(local, loss, images[share], targets[share])
                assert_equal_outputs(got, expected)
                same_on_every_rank(got)
                reduce_gradients(local, world, reduction)
                assert_equal_gradients(local, plain)
            for name, buffer in plain_loss.named_buffers():
                assert torch.equal(loss.get_buffer(name), buffer), name


@case
def virtual_batches(rank: int, world: int) -> None:
    """A different number of chunks on each rank; the first has one, so that it runs an ordinary step."""
    for settings in SETTINGS:
        for keep_graphs in (False, True):
            plain, local = Model().double(), Model().double()
            loss = AdCorreLoss(CLASSES, **settings, process_group=dist.group.WORLD)
            images, targets = draw(29)
            share = shares(29, world)[rank]
            expected = plain_step(plain, AdCorreLoss(CLASSES, **settings), images, targets)
            size = 29 if rank == 0 and world > 1 else 5
            got = VirtualBatch(local, loss, size, keep_graphs=keep_graphs)(images[share], targets[share])
            assert_equal_outputs(got, expected)
            assert local.forwards == (
                1 if rank == 0 and world > 1 else -(-(share.stop - share.start) // 5) * (2 - keep_graphs)
            )
            reduce_gradients(local, world, "mean")
            assert_equal_gradients(local, plain)


@case
def distributed_data_parallel(rank: int, world: int) -> None:
    """DDP reduces gradients once per step; enough steps for it to rebuild its buckets."""
    for kind, settings in (("uneven", {}), ("empty", {}), ("empty", PAIRS)):
        plain, local = Model().double(), DistributedDataParallel(Model().double(), bucket_cap_mb=0.001)
        plain_loss = AdCorreLoss(CLASSES, **settings)
        loss = AdCorreLoss(CLASSES, **settings, process_group="world")
        for step in range(3):
            images, targets = draw(29, seed=step)
            share = shares(29, world, kind)[rank]
            plain.zero_grad()
            local.zero_grad()
            expected = plain_step(plain, plain_loss, images, targets)
            assert_equal_outputs(plain_step(local, loss, images[share], targets[share]), expected)
            assert_equal_gradients(local.module, plain)


@case
def distributed_data_parallel_with_virtual_batches(rank: int, world: int) -> None:
    """Ranks with one, many and no chunks; gradients are reduced once, in the same order on all ranks."""
    for keep_graphs in (False, True):
        for kind, settings in (("uneven", {}), ("empty", {}), ("uneven", PAIRS)):
            plain, local = Model().double(), DistributedDataParallel(Model().double(), bucket_cap_mb=0.001)
            plain_loss = AdCorreLoss(CLASSES, **settings)
            loss = AdCorreLoss(CLASSES, **settings, process_group="world")
            step = VirtualBatch(local, loss, 5, keep_graphs=keep_graphs)
            for seed in range(3):
                images, targets = draw(29, seed=seed)
                share = shares(29, world, kind)[rank]
                plain.zero_grad()
                local.zero_grad()
                expected = plain_step(plain, plain_loss, images, targets)
                reductions = count_gradient_reductions(local)
                assert_equal_outputs(step(images[share], targets[share]), expected)
                assert_equal_gradients(local.module, plain)
                assert reductions() == len(list(local.parameters()))


def count_gradient_reductions(model: DistributedDataParallel) -> Callable[[], int]:
    """Count the gradients that DDP reduces from now on, by a communication hook."""
    if not hasattr(model, "reduced"):
        model.reduced = 0

        def hook(_, bucket):
            model.reduced += len(bucket.gradients())
            future = dist.all_reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True).get_future()
            return future.then(lambda done: done.value()[0])

        model.register_comm_hook(None, hook)
    before = model.reduced
    return lambda: model.reduced - before


@case
def batch_norm_under_ddp(rank: int, world: int) -> None:
    """Buffers and gradients are those of plain accumulation: DDP broadcasts rank 0's buffers once before a step."""
    accumulated, local = (DistributedDataParallel(Model(norm=True, dropout=0.2).double()) for _ in range(2))
    with_graphs = DistributedDataParallel(Model(norm=True, dropout=0.2).double())
    for seed in range(3):
        images, targets = draw(29 * world, seed=seed)
        images, targets = images[rank::world], targets[rank::world]
        chunks = split(images, targets, 7 if rank else 29)
        outputs = []
        for model, keep_graphs in ((local, False), (with_graphs, True)):
            loss = AdCorreLoss(CLASSES, process_group="world")
            torch.manual_seed(rank)
            model.zero_grad()
            outputs.append(VirtualBatch(model, loss, keep_graphs=keep_graphs)(chunks))
        assert_equal_outputs(outputs[0], outputs[1])
        assert_equal_gradients(local.module, with_graphs.module)
        torch.manual_seed(rank)
        for index, (chunk, labels) in enumerate(chunks):
            with nullcontext() if index == len(chunks) - 1 else accumulated.no_sync():
                plain_step(accumulated, AdCorreLoss(CLASSES), chunk, labels)
        for name, buffer in accumulated.named_buffers():
            torch.testing.assert_close(local.get_buffer(name), buffer, rtol=0, atol=0, msg=name)
            torch.testing.assert_close(with_graphs.get_buffer(name), buffer, rtol=0, atol=0, msg=name)


@case
def eval_mode(rank: int, world: int) -> None:
    """In eval mode too it is the loss of the whole batch; the attention map does not change."""
    images, targets = draw(29)
    share = shares(29, world)[rank]
    loss = AdCorreLoss(CLASSES, process_group="world").eval()
    expected = plain_step(Model().double(), AdCorreLoss(CLASSES).eval(), images, targets)
    assert_equal_outputs(plain_step(Model().double(), loss, images[share], targets[share]), expected)
    assert int(loss.attention_map.counts.sum()) == int(loss.attention_map.position) == 0


@case
def one_all_reduce_of_a_known_size(rank: int, world: int) -> None:
    """The payload is that of docs/scale.md for any n: one collective per step, none in the backward pass."""
    sent: list[int] = []
    all_reduce = dist.all_reduce

    def counted(tensor: Tensor, *arguments: object, **options: object) -> object:
        sent.append(tensor.numel() * tensor.element_size())
        return all_reduce(tensor, *arguments, **options)

    dist.all_reduce = counted
    try:
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            for n in (world, 29, 200):
                images, targets = draw(n, dtype=dtype)
                share = shares(n, world)[rank]
                for make in (plain_step, lambda m, l, x, y: VirtualBatch(m, l, 5)(x, y)):
                    sent.clear()
                    make(Model().to(dtype), AdCorreLoss(CLASSES, process_group="world"), images[share], targets[share])
                    width = 8 if dtype == torch.float64 else 4
                    assert sent == [width * (CLASSES * (K * (2 * D + 1) + 4) + 3)], (sent, n)
    finally:
        dist.all_reduce = all_reduce


@case
def what_pairs_of_samples_cost(rank: int, world: int) -> None:
    """Every rank's embeddings in their dtype and its labels, padded to the largest rank, and a sum of 2 numbers."""
    sent: list[int] = []
    originals = {name: getattr(dist, name) for name in ("all_reduce", "all_gather_into_tensor")}

    def counted(name: str) -> Callable[..., object]:
        def call(tensor: Tensor, *arguments: object, **options: object) -> object:
            sent.append(tensor.numel() * tensor.element_size())
            return originals[name](tensor, *arguments, **options)

        return call

    images, targets = draw(29, dtype=torch.bfloat16)
    share = shares(29, world, "empty")[rank]
    places = max(part.stop - part.start for part in shares(29, world, "empty"))
    samples = [world * 8, world * places * 8, world * places * K * D * 2]
    try:
        for name in originals:
            setattr(dist, name, counted(name))
        for make in (plain_step, lambda m, l, x, y: VirtualBatch(m, l, 5)(x, y)):
            sent.clear()
            loss = AdCorreLoss(CLASSES, process_group="world", **PAIRS)
            make(Model().to(torch.bfloat16), loss, images[share], targets[share])
            assert sent == [4 * (CLASSES * (K * (2 * D + 1) + 4) + 3), *samples, 8], sent
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


@case
def a_bad_label_on_one_rank(rank: int, world: int) -> None:
    """Every rank raises after the one all-reduce: none waits forever, none counts the batch."""
    images, targets = draw(29)
    share = shares(29, world)[rank]
    images, targets = images[share], targets[share].clone()
    if rank == world - 1:
        targets[3] = CLASSES
    words = "label 4 at position 3 is outside" if rank == world - 1 else "another rank has a label that is outside"
    for chunk_size in (None, 2):

        def step(loss: AdCorreLoss, model: nn.Module, size: int | None = chunk_size) -> AdCorreOutput:
            return (
                VirtualBatch(model, loss, size)(images, targets) if size else plain_step(model, loss, images, targets)
            )

        for validate in (None, True):
            loss = AdCorreLoss(CLASSES, process_group="world", validate=validate)
            model = Model().double()
            where = words.replace("position 3", "position 1") if chunk_size else words
            with pytest.raises(IndexError, match=where):
                step(loss, model)
            assert int(loss.attention_map.counts.sum()) == int(loss.attention_map.position) == 0
            assert not gradients(model)
        model = Model().double()
        out = step(AdCorreLoss(CLASSES, process_group="world", validate=False), model)
        assert all(bool(value.isnan()) for value in out[:6])
        assert all(bool(gradient.isnan().any()) for gradient in gradients(model).values())
        same_on_every_rank(AdCorreOutput(*(value.nan_to_num() for value in out)))


@case
def nobody_has_a_sample(rank: int, world: int) -> None:
    images, targets = draw(2 * world)
    for count, settings in ((0, {}), (2, {}), (0, PAIRS), (2, PAIRS)):
        local = Model().double()
        loss = AdCorreLoss(CLASSES, **settings, process_group="world")
        out = plain_step(local, loss, images[:count], torch.full_like(targets[:count], -100))
        assert float(out.loss) == 0
        assert all(float(gradient.abs().max()) == 0 for gradient in gradients(local).values())


@case
def copies_and_checkpoints(rank: int, world: int) -> None:
    """A copy shares the group; recomputation under checkpointing is no second step on any rank; no learned lambda."""
    images, targets = draw(29)
    share = shares(29, world)[rank]
    x, labels = images[share].flatten(1)[:, : K * D].unflatten(1, (K, D)), targets[share]
    logits = images[share].flatten(1)[:, :CLASSES]
    loss = AdCorreLoss(CLASSES, process_group=dist.group.WORLD)
    copied = copy.deepcopy(loss)
    assert copied.process_group is loss.process_group
    seen = []
    for module, through in ((loss, False), (copied, True)):
        leaves = logits.clone().requires_grad_(), x.clone().requires_grad_()

        def run(logits: Tensor, x: Tensor, module: AdCorreLoss = module) -> Tensor:
            return module(logits, x, labels).loss

        for _ in range(2):
            value = checkpoint(run, *leaves, use_reentrant=False) if through else run(*leaves)
            value.backward()
        seen.append([value.detach(), *(leaf.grad for leaf in leaves), *module.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    with pytest.raises(ValueError, match="lambd: carries no gradient"):
        loss(logits, x, labels, lambd=torch.tensor(0.5, requires_grad=True))


@case
def groups_within_the_world(rank: int, world: int) -> None:
    """Each group is a batch of its own; a rank outside of a group cannot use it."""
    groups = [dist.new_group([r for r in range(world) if r % 2 == parity]) for parity in range(min(2, world))]
    local = groups[rank % 2] if world > 1 else groups[0]
    n, members = 24, dist.get_world_size(local)
    images, targets = draw(n, seed=rank % 2)
    share = shares(n, members)[dist.get_rank(local)]
    plain, model = Model().double(), Model().double()
    expected = plain_step(plain, AdCorreLoss(CLASSES, **PAIRS), images, targets)
    got = plain_step(model, AdCorreLoss(CLASSES, **PAIRS, process_group=local), images[share], targets[share])
    assert_equal_outputs(got, expected)
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad, group=local)
        parameter.grad /= members
    assert_equal_gradients(model, plain)
    whole = images.flatten(1).requires_grad_()
    own = whole.detach()[share].requires_grad_()
    AdCorreMetricLoss()(whole, targets).backward()
    AdCorreMetricLoss(process_group=local)(own, targets[share]).backward()
    torch.testing.assert_close(own.grad, members * whole.grad[share], rtol=1e-10, atol=1e-12)
    if world > 1:
        with pytest.raises(ValueError, match="not a member of the group"):
            AdCorreLoss(CLASSES, process_group=groups[1 - rank % 2])


@case
def half_precision(rank: int, world: int) -> None:
    """Statistics are reduced in float32; each rank's gradient has the dtype of its embeddings."""

    class Half(Model):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            logits, embeddings = super().forward(images)
            return logits, embeddings.bfloat16()

    images, targets = draw(29, dtype=torch.float32)
    share = shares(29, world)[rank]
    for settings in ({}, PAIRS):
        plain, local = Half(), Half()
        expected = plain_step(plain, AdCorreLoss(CLASSES, **settings), images, targets)
        loss = AdCorreLoss(CLASSES, **settings, process_group="world")
        got = plain_step(local, loss, images[share], targets[share])
        assert_equal_outputs(got, expected, 1e-5)
        reduce_gradients(local, world, "mean")
        assert_equal_gradients(local, plain, 2e-2)


@case
def a_copy_of_the_module(rank: int, world: int) -> None:
    """ "world" is a string, so the module can be copied and pickled."""
    loss = copy.deepcopy(AdCorreLoss(CLASSES, process_group="world"))
    images, targets = draw(8)
    assert bool(plain_step(Model().double(), loss, images, targets).loss.isfinite())


@case
def other_chunks_on_one_rank(rank: int, world: int) -> None:
    """That rank raises before any gradient is reduced."""
    images, targets = draw(28, seed=rank)
    model, loss = Model().double(), AdCorreLoss(CLASSES, process_group="world")
    order = torch.Generator().manual_seed(0)
    opened = (torch.randperm(28, generator=order) if rank == 0 else torch.arange(28) for _ in range(2))
    step = VirtualBatch(model, loss)
    with pytest.raises(RuntimeError, match="chunk 0 of 4 has other labels") if rank == 0 else nullcontext():
        step(lambda: ((images[rows], targets[rows]) for rows in next(opened).split(7)))
    assert (rank == 0) == (not gradients(model))


@case
def ranks_of_a_training_run(rank: int, world: int) -> None:
    """Rank 0's weights and buffers reach every rank, in any memory layout; values are gathered in order of ranks."""
    ranks = Ranks(rank, world)
    first = Model(norm=True)
    for buffers_only in (False, True):
        layout = torch.channels_last if rank else torch.contiguous_format
        model = Model(norm=True, seed=rank).to(memory_format=layout)
        model.norm.running_mean += rank
        own = copy.deepcopy(model)
        ranks.broadcast(model, buffers_only=buffers_only)
        for name, buffer in model.named_buffers():
            assert torch.equal(buffer, first.get_buffer(name)), name
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, (own if buffers_only else first).get_parameter(name)), name
    assert ranks.all_gather(rank) == list(range(world))
    assert ranks.broadcast_from_first(rank) == 0


@slow
def compiled_loss(rank: int, world: int) -> None:
    """No graph break: the collective is traced."""
    images, targets = draw(29)
    share = shares(29, world)[rank]
    plain, local = Model().double(), Model().double()
    expected = plain_step(plain, AdCorreLoss(CLASSES), images, targets)
    for group in ("world", dist.group.WORLD):
        local.zero_grad()
        loss = torch.compile(AdCorreLoss(CLASSES, process_group=group), fullgraph=True, backend="aot_eager")
        assert_equal_outputs(plain_step(local, loss, images[share], targets[share]), expected)
        reduce_gradients(local, world, "mean")
        assert_equal_gradients(local, plain)


@slow
def compiled_model_in_ddp(rank: int, world: int) -> None:
    images, targets = draw(29, seed=rank)
    with_graphs, local = (
        DistributedDataParallel(torch.compile(Model(norm=True, dropout=0.2).double(), backend="aot_eager"))
        for _ in range(2)
    )
    for model, keep_graphs in ((local, False), (with_graphs, True)):
        torch.manual_seed(rank)
        loss = AdCorreLoss(CLASSES, process_group="world")
        VirtualBatch(model, loss, 7, keep_graphs=keep_graphs)(images, targets)
    assert_equal_gradients(local, with_graphs)
    for a, b in zip(local.buffers(), with_graphs.buffers(), strict=True):
        torch.testing.assert_close(a, b)


@slow
def fully_sharded(rank: int, world: int) -> None:
    """FSDP averages too. It communicates in every forward pass, so each rank needs the same number of chunks."""
    from torch.distributed.fsdp import fully_shard

    images, targets = draw(20 * world)
    plain = Model().double()
    expected = plain_step(plain, AdCorreLoss(CLASSES), images, targets)
    local = Model().double()
    fully_shard(local.head)
    fully_shard(local)
    loss = AdCorreLoss(CLASSES, process_group="world")
    part = slice(20 * rank, 20 * rank + 20)
    for size in (20, 6):
        local.zero_grad()
        loss.attention_map.counts.zero_()
        assert_equal_outputs(VirtualBatch(local, loss, size)(images[part], targets[part]), expected)
        for (name, parameter), other in zip(local.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad.full_tensor(), other.grad, rtol=1e-10, atol=1e-12, msg=name)


@case
def metric_loss_equals_a_single_process(rank: int, world: int) -> None:
    """Loss and gradients of embeddings and labels alone: given and mapped classes, some of them on one rank only."""
    rng = torch.Generator().manual_seed(5)
    every = torch.randn(13, 2, 6, generator=rng, dtype=torch.float64)
    labels = torch.randint(0, 5, (13,), generator=rng).sort()[0]
    every_setting = (
        {"num_classes": 5},
        {},
        PAIRS,
        {"ignore_index": 37},
        {"num_classes": 5, "map": True},
        {"num_classes": 5, "gradient_reduction": "sum"},
    )
    for settings in every_setting:
        factor = 1 if "gradient_reduction" in settings else world
        losses = []
        for group in (None, "world"):
            options = {name: value for name, value in settings.items() if name != "map"}
            if "map" in settings:
                options |= {"attention": AdaptiveAttentionMap(5), "embedding_size": (2, 6)}
            losses.append(AdCorreMetricLoss(**options, process_group=group).double())
        given = labels if "num_classes" in settings else labels * 10 + 7  # 0, which pads, is no label
        for kind in ("uneven", "empty"):
            own = shares(13, world, kind)[rank]
            whole, local = every.clone().requires_grad_(), every[own].clone().requires_grad_()
            expected, loss = losses[0](whole, given), losses[1](local, given[own])
            expected.backward()
            loss.backward()
            torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(local.grad, factor * whole.grad[own], rtol=1e-10, atol=1e-12)
        for name, value in losses[0].state_dict().items():
            torch.testing.assert_close(losses[1].state_dict()[name], value)


@case
def metric_loss_in_its_librarys_wrapper(rank: int, world: int) -> None:
    """pytorch-metric-learning's wrapper gathers equal batches, and multiplies the loss by the number of ranks."""
    if importlib.util.find_spec("pytorch_metric_learning") is None:
        return
    from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

    every = torch.randn(6 * world, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    labels = torch.arange(6 * world) % 5 * 7
    own = slice(6 * rank, 6 * rank + 6)
    whole, local_x = every.clone().requires_grad_(), every[own].clone().requires_grad_()
    expected, loss = (
        AdCorreMetricLoss()(whole, labels),
        DistributedLossWrapper(AdCorreMetricLoss())(local_x, labels[own]),
    )
    expected.backward()
    loss.backward()
    torch.testing.assert_close(loss, world * expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(local_x.grad, world * whole.grad[own], rtol=1e-10, atol=1e-12)


@case
def metric_loss_with_a_bad_label(rank: int, world: int) -> None:
    loss = AdCorreMetricLoss(3, process_group="world")
    with pytest.raises(IndexError, match="label 3" if rank == 0 else "another rank"):
        loss(torch.randn(4, 6, requires_grad=True), torch.tensor([0, 1, 2, 3 if rank == 0 else 0]))
