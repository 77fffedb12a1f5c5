"""`python -m bench host`: host time of a step, without a GPU.

The kernels' own path, forward and backward, without the launches: microseconds, dispatcher calls, allocations and
launches of the terms and of the whole loss. The ratio is to one addition of two float32 tensors of 8 numbers, timed
alternately on the same machine. For comparison: an autograd function with the same inputs and outputs that computes
nothing, called in the same way. The last line has the ratio (U) and the allocations (A) of both.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from adcorre import AdCorreLoss, adcorre_terms, functional
from bench import measure, rows

CPU = torch.device("cpu")
CLASSES = 7
ROUNDS = 60


@dataclass(frozen=True)
class Counts:
    """Of one call: dispatcher calls, those of them that are PyTorch's own, allocations, launches of kernels."""

    calls: int
    aten: int
    allocations: int
    launches: int


class _Compiled:
    """A compiled kernel whose launches only list its name."""

    def __init__(self, kernel: Any, names: list[str]) -> None:
        self.src = SimpleNamespace(fn=kernel)
        self.launch = lambda *_: names.append(kernel.fn.__name__)

    def __getitem__(self, grid: tuple[int, int, int]) -> Callable[..., None]:
        return self.launch


def forget_plans() -> None:
    """Make the kernels plan, and remember compiled kernels, anew."""
    from adcorre_kernels.gpu import loss, plan

    plans = (plan.plan_statistics, plan.plan_gradient, plan.plan_terms, plan.plan_logits)
    for cached in (loss._plan, loss._terms_options, *plans):
        cached.cache_clear()


@contextmanager
def no_launches() -> Iterator[list[str]]:
    """The kernels take CPU tensors, and launches, compiled and remembered as on a GPU, only list the kernels' names."""
    from triton.runtime.jit import JITFunction

    from adcorre_kernels.gpu import cached_launch, support

    names: list[str] = []

    def run(kernel: Any, *arguments: Any, **named: Any) -> _Compiled:
        compiled = _Compiled(kernel, names)
        compiled.launch()
        return compiled

    forget_plans()
    with (
        ExitStack() as after,
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(cached_launch, "reusable", return_value=True),
        mock.patch.object(support, "cpu_tensors", True),
        mock.patch.object(functional, "remembered_calls", {}),
    ):
        after.callback(forget_plans)
        yield names


def count(call: Callable[[], object], launches: list[str] | None = None) -> Counts:
    """What the profiler sees of one call, after one that does not count; `launches` as `no_launches` lists them."""
    call()
    before = len(launches or ())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    names = [event.name for event in profile.events() or [] if "::" in event.name]
    names = [name for name in names if not name.startswith("autograd::")]
    aten = sum(name.startswith("aten::") for name in names)
    assert profile.profiler is not None
    waiting, allocations = list(profile.profiler.kineto_results.experimental_event_tree()), 0
    while waiting:
        event = waiting.pop()
        waiting += event.children
        allocations += event.tag == torch._C._profiler._EventType.Allocation and event.extra_fields.alloc_size > 0
    return Counts(len(names), aten, allocations, len(launches or ()) - before)


def steps(n: int = 60, seed: int = 0) -> dict[str, Callable[[], object]]:
    """One step, forward and backward with given upstream gradients, of the terms and of Eq. 12; k = 7, d = 256."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 7, 256, generator=rng, requires_grad=True)
    logits = torch.randn(n, CLASSES, generator=rng, requires_grad=True)
    targets = torch.randint(0, CLASSES, (n,), generator=rng)
    attention, upstream = torch.rand(CLASSES, generator=rng), torch.ones(())
    loss = AdCorreLoss(CLASSES, backend="triton", validate=False)

    def terms_step() -> object:
        terms = adcorre_terms(x, targets, attention, backend="triton", validate=False)
        return torch.autograd.grad(tuple(terms), x, (upstream,) * 3)

    def loss_step() -> object:
        return torch.autograd.grad(loss(logits, x, targets).loss, (logits, x), upstream)

    return {"terms": terms_step, "loss": loss_step}


class _Nothing(torch.autograd.Function):
    """As many outputs () as asked for; gradients that nobody writes."""

    @staticmethod
    def forward(ctx: Any, outputs: int, *inputs: torch.Tensor) -> Any:
        ctx.save_for_backward(*inputs)
        return torch.empty(outputs).unbind()

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
        return None, *(torch.empty(x.shape) for x in ctx.saved_tensors)


def empty_steps(n: int = 60) -> dict[str, Callable[[], object]]:
    """What autograd alone takes of `steps`."""
    x, logits, upstream = torch.zeros(n, 7, 256), torch.zeros(n, CLASSES), torch.ones(())
    inputs = (logits.requires_grad_(), x.requires_grad_())
    return {
        "terms": lambda: torch.autograd.grad(_Nothing.apply(3, x), x, (upstream,) * 3),
        "loss": lambda: torch.autograd.grad(_Nothing.apply(1, *inputs), inputs, upstream),
    }


def measure_host(n: int = 60, seed: int = 0) -> dict[str, tuple[Counts, float, float, float]]:
    """By step: its counts, its microseconds, its ratio to one small addition, and that of autograd alone."""
    a, b = torch.ones(8), torch.ones(8)
    with no_launches() as launches:
        calls = steps(n, seed)
        counts = {name: count(call, launches) for name, call in calls.items()}
        empty = {f"{name} empty": call for name, call in empty_steps(n).items()}
        turns = {"addition": lambda: [torch.add(a, b) for _ in range(20)], **calls, **empty}
        times = measure.in_turns(turns, CPU, seconds=20, most=ROUNDS, warm=3, batch=10)
    addition = [seconds / 20 for seconds in times["addition"]]
    return {
        name: (
            counts[name],
            1e6 * statistics.median(times[name]),
            measure.ratio(times[name], addition),
            measure.ratio(times[f"{name} empty"], addition),
        )
        for name in calls
    }


def main(argv: list[str] | None = None) -> int:
    parser = rows.parser("host", __doc__)
    parser.add_argument("--n", type=int, default=60, help="samples of a batch")
    parser.add_argument("--seed", type=int, default=0, help="seed of the inputs")
    options = parser.parse_args(argv)
    if options.n < 1:
        parser.error("--n: expected at least 1")
    if reason := measure.busy(1):
        print(f"warning: {reason}; microseconds and ratios are of a busy machine")
    torch.set_num_threads(1)
    figures = measure_host(options.n, options.seed)
    last = []
    for name, (counts, microseconds, ratio, empty) in figures.items():
        print(
            f"{name}: {microseconds:.1f} microseconds, {ratio:.1f} additions ({empty:.1f} for autograd alone), "
            f"{counts.calls} dispatcher calls ({counts.aten} of PyTorch's own), {counts.allocations} allocations, "
            f"{counts.launches} launches"
        )
        last.append(f"{name} {ratio:.1f} calls {counts.allocations}")
    print("; ".join(last))
    return 0
