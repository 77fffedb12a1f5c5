"""Virtual batches (Sec. IV-B): the exact gradient of a batch of any size in the memory of one chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import accumulate, chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adcorre import checks
from adcorre.chunks import Chunk, Inputs, chunk_source, describe_type, drain, peek
from adcorre.equation import BackwardInputs, Batch, Part, evaluate, gradients
from adcorre.loss import AdCorreLoss
from adcorre.module import LossModule
from adcorre.replay import Buffers, Fingerprint, RandomState, check_same, fingerprint


class VirtualBatch:
    """The gradient of a batch that does not fit in memory at once, in chunks (b chunks of 60 in the paper).

    A call replaces forward pass, loss and `backward`, and adds to the parameters' gradients:

        step = VirtualBatch(model, loss_fn, chunk_size=60)
        optimizer.zero_grad()
        out = step(images, targets)
        optimizer.step()

    Pass 1 runs the forward pass of each chunk and adds up the sums. Pass 2 repeats each forward pass and backpropagates
    the whole batch's gradient for that chunk. The result is the gradient of one ordinary batch, except for layers that
    mix samples: BatchNorm normalizes each chunk by itself. Random states and buffers are restored between the passes:
    both passes see the same network, and BatchNorm's running statistics are updated once per chunk. The attention map
    takes one step. A batch of one chunk is an ordinary step with one forward pass.

    It works under autocast, with compiled models, with DistributedDataParallel and FSDP (gradients are reduced with the
    last chunk), and with a loss in a process group: the batch is then all chunks of all ranks. Ranks may have different
    numbers of chunks under DistributedDataParallel. FSDP and SyncBatchNorm communicate in every forward pass and need
    equal numbers.

    With an `adcorre.metric.AdCorreMetricLoss` the model returns embeddings alone. Pass 1 keeps the embeddings of all
    chunks, which are small compared with activations, so that all labels, targets and backends work; a call returns the
    loss.

    Args:
        model: returns (logits (n, C), embeddings (n, k, d) or (n, d)) for the inputs of one chunk; or embeddings alone.
        loss: an `AdCorreLoss` with any backend except "reference", which supports only one chunk; or an
            `AdCorreMetricLoss`.
        chunk_size: samples per chunk, when `inputs` is a tensor.
        keep_graphs: one forward pass instead of two, in the memory of all chunks.

    Raises:
        ValueError, TypeError: an invalid loss or chunk size.
    """

    def __init__(self, model: nn.Module, loss: LossModule, chunk_size: int = 60, *, keep_graphs: bool = False) -> None:
        self.chunk_size = checks.check_positive_int("chunk_size", chunk_size)
        if not isinstance(model, nn.Module) or not isinstance(loss, LossModule):
            raise TypeError(
                "VirtualBatch: expected a torch.nn.Module and an AdCorreLoss or AdCorreMetricLoss, "
                f"got {type(model).__name__} and {type(loss).__name__}"
            )
        self.model = model
        self.loss: Any = loss
        self.keep_graphs = keep_graphs

    def __call__(
        self,
        inputs: Inputs,
        targets: Tensor | None = None,
        *,
        lambd: float | Tensor | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> Any:
        """Add the gradient of one step to the parameters' `.grad`.

        Args:
            inputs: the samples, in one of four forms. A tensor (n, ...), with `targets` (n,): split into chunks of
                `chunk_size`. A list of chunks (inputs, targets). A callable that yields the same chunks each time it is
                called, twice per step. Any other iterable, such as a loader: read once, and its chunks (not their
                activations) are kept.
            targets: (n,) with a tensor, else None.
            lambd: as in `AdCorreLoss.forward`; a metric loss has none.
            scaler: for float16: the gradients are multiplied by its scale, as by `scaler.scale(loss).backward()`.

        Returns:
            The whole batch's `AdCorreOutput`, or a metric loss's value (), detached.

        Raises:
            ValueError, TypeError, IndexError: as the loss; or for inputs in none of these forms, or without a chunk.
            RuntimeError: the chunks of the second pass differ from those of the first. It is raised before the last
                chunk's backward pass, so that no rank has reduced its gradients yet.
            After an error in a batch of several chunks, buffers and attention map are as before the call, and all
            gradients of the parameters are None, also those from before the call: an optimizer step changes nothing.
        """
        open_chunks = chunk_source(inputs, targets, self.chunk_size, keep=not self.keep_graphs)
        if isinstance(self.loss, AdCorreLoss):
            lambd = checks.check_lambda(self.loss.lambd if lambd is None else lambd)
        elif lambd is not None:
            raise ValueError("lambd: a metric loss has none; multiply its components' weights")
        initial_state = RandomState(_cuda_devices(self.model))
        first, rest = peek(open_chunks)
        if not first:
            raise ValueError("virtual batch: expected at least one chunk, got none; without samples, pass one of n = 0")
        if len(first) == 1:
            return self._single_chunk_step(first[0], lambd, scaler)
        if isinstance(self.loss, AdCorreLoss):
            self.loss.check_additive("chunks")
            step = _Step(self.model, self.loss, lambd, scaler)
        else:
            step = _EmbeddingStep(self.model, self.loss, lambd, scaler)
        try:
            if self.keep_graphs:
                return step.one_pass(drain(first, rest))
            return step.two_passes(drain(first, rest), open_chunks, initial_state)
        except BaseException:
            step.undo()
            raise

    def _single_chunk_step(self, chunk: Chunk, lambd: Any, scaler: torch.amp.GradScaler | None) -> Any:
        inputs, targets = chunk
        if isinstance(self.loss, AdCorreLoss):
            output = self.loss(*_forward(self.model, inputs), targets, lambd=lambd)
            loss, output = output.loss, output._replace(loss=output.loss.detach())
        else:
            loss = self.loss(_embeddings(self.model, inputs), targets)
            output = loss.detach()
        with _outside_autocast(loss.device):
            (loss if scaler is None else scaler.scale(loss)).backward()
        return output


class _BatchGradient(NamedTuple):
    """The whole batch, over chunks and ranks, and the inputs of its chunks' gradients."""

    batch: Batch
    backward: BackwardInputs
    starts: list[int]  # index of each chunk's first sample among this rank's samples


class _Step:
    """One call over several chunks."""

    def __init__(self, model: nn.Module, loss: Any, lambd: Any, scaler: torch.amp.GradScaler | None) -> None:
        self.model = model
        self.loss = loss
        self.lambd = lambd
        self.scaler = scaler
        self.attention = Buffers(loss)
        self.buffers = Buffers(model)
        if isinstance(model, DistributedDataParallel):
            # DDP broadcasts rank 0's buffers at the first forward pass; the second pass must start with the same ones.
            self.hook = model.module.register_forward_pre_hook(self._copy_buffers_once)

    def _copy_buffers_once(self, *_: Any) -> None:
        self.hook.remove()
        self.buffers = Buffers(self.model)

    def undo(self) -> None:
        self.attention.restore()
        self.buffers.restore()
        torch.clear_autocast_cache()
        for parameter in self.model.parameters():
            parameter.grad = None

    def two_passes(
        self, chunks: Iterator[Chunk], open_chunks: Callable[[], Iterable[Chunk]], initial_state: RandomState
    ) -> Any:
        """Pass 1: the sums of all chunks. Pass 2: the gradient, chunk by chunk."""
        devices = _cuda_devices(self.model)
        states: list[RandomState] = []
        fingerprints: list[Fingerprint] = []
        sums = self.sums()
        # A compiled model would be compiled a second time for a pass without a graph, and DDP prepares a step's first
        # forward pass only with gradients enabled. The graph is freed with the chunk.
        graph = _is_compiled(self.model) or isinstance(self.model, DistributedDataParallel)
        with torch.set_grad_enabled(graph), _without_reduction(self.model):
            for inputs, targets in chunks:
                states.append(RandomState(devices))
                fingerprints.append(self._add(sums, inputs, targets))
        output, whole = self._combine(sums, [one.labels for one in fingerprints])
        del sums

        self.buffers.restore()
        initial_state.restore()
        chunks = drain(*peek(open_chunks))
        again: list[Fingerprint] = []
        with torch.enable_grad():
            for index, state in enumerate(states):
                chunk = next(chunks, None)
                if chunk is None:
                    raise _chunk_count_error(len(states), str(index))
                last = index == len(states) - 1
                with nullcontext() if last else _without_reduction(self.model):
                    state.restore()
                    torch.clear_autocast_cache()  # PyTorch 2.10 caches the weights of pass 1 there, without a graph
                    part = self._part(*chunk)
                    again.append(self._fingerprint(part))
                    if last and next(chunks, None) is not None:
                        raise _chunk_count_error(len(states), "more")
                    if last or again[-1].labels.shape != fingerprints[index].labels.shape:
                        check_same(fingerprints, again)
                    self._backward([part], whole, index)
                    del part
        return output

    def _add(self, sums: Any, inputs: Any, targets: Tensor) -> Fingerprint:
        part = self._part(inputs, targets)
        sums.add(part)
        return self._fingerprint(part)

    def one_pass(self, chunks: Iterator[Chunk]) -> Any:
        """Keep all graphs and run one backward pass, in which DDP reduces each parameter's whole gradient."""
        parts: list[Any] = []
        labels: list[Tensor] = []
        sums = self.sums()
        chunk = next(chunks, None)
        with torch.enable_grad():
            while chunk is not None:
                following = next(chunks, None)
                with nullcontext() if following is None else _without_reduction(self.model):
                    parts.append(self._part(*chunk))
                labels.append(chunk[1].long())
                sums.add(parts[-1])
                chunk = following
        output, whole = self._combine(sums, labels)
        self._backward(parts, whole)
        return output

    def sums(self) -> Any:
        return _Sums()

    def _part(self, inputs: Any, targets: Tensor) -> Any:
        return self.loss.part(*_forward(self.model, inputs), targets)

    def _fingerprint(self, part: Any) -> Fingerprint:
        return fingerprint(part.samples.targets, part.sums.statistics, _compute_dtype(part.samples.x))

    @torch.no_grad()
    def _combine(self, sums: Any, targets: list[Tensor]) -> tuple[Any, Any]:
        """The whole batch's output, over chunks and ranks. The attention map takes its step."""
        part = sums.total(targets)
        batch = self.loss.combine(part, targets, record=True)
        dtype = torch.promote_types(batch.ce_sums.dtype, batch.statistics.dtype)  # the loss's
        one = torch.ones((), dtype=dtype, device=batch.ce_sums.device)
        upstream = one if self.scaler is None else self.scaler.scale(one)
        output, backward = evaluate(part, batch, self.lambd, upstream)
        return output, _BatchGradient(batch, backward, [0, *accumulate(map(len, targets))])

    def _backward(self, parts: list[Any], whole: Any, first: int = 0) -> None:
        """Backpropagate the gradient of some chunks, `first` being the index of the first one."""
        tensors: list[Tensor] = []
        upstream: list[Tensor] = []
        for index, part in enumerate(parts, first):
            logits, x, *_ = part.samples
            batch = whole.batch.rows(whole.starts[index], whole.starts[index + 1])
            # If neither requires a gradient, backward raises the error.
            needed = logits.requires_grad or not x.requires_grad, x.requires_grad
            for tensor, gradient in zip(
                (logits, x), gradients(part.samples, batch, whole.backward, part.options, *needed), strict=True
            ):
                if gradient is not None:
                    tensors.append(tensor)
                    upstream.append(gradient)
        with _outside_autocast(tensors[0].device):
            torch.autograd.backward(tensors, upstream)


class _EmbeddingStep(_Step):
    """A step for a metric loss: pass 1 keeps all embeddings, and the loss is computed on all of them at once."""

    def sums(self) -> _Embeddings:
        return _Embeddings()

    def _part(self, inputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        x = _embeddings(self.model, inputs)
        checks.check_embeddings(x)
        return x, checks.check_targets(targets.to(x.device), x.shape[0], x.device, self.loss.ignore_index)

    def _fingerprint(self, part: tuple[Tensor, Tensor]) -> Fingerprint:
        x, targets = part
        return fingerprint(targets, x.detach().to(checks.STATISTICS_DTYPE[x.dtype]).flatten(), _compute_dtype(x))

    @torch.enable_grad()
    def _combine(self, sums: _Embeddings, targets: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The loss, and dL/dx of each chunk."""
        x = torch.cat(sums.x).requires_grad_()
        loss = self.loss(x, torch.cat(targets))
        with _outside_autocast(x.device):
            (gradient,) = torch.autograd.grad(loss if self.scaler is None else self.scaler.scale(loss), x)
        return loss.detach(), gradient.split([len(labels) for labels in targets])

    def _backward(self, parts: list[tuple[Tensor, Tensor]], whole: tuple[Tensor, ...], first: int = 0) -> None:
        tensors = [x for x, _ in parts]
        with _outside_autocast(tensors[0].device):
            torch.autograd.backward(tensors, whole[first : first + len(parts)])


class _Embeddings:
    """The embeddings of all chunks."""

    def __init__(self) -> None:
        self.x: list[Tensor] = []

    def add(self, part: tuple[Tensor, Tensor]) -> None:
        self.x.append(part[0].detach().clone())


class _Sums:
    """The chunks' sums, added in float64 if the device supports it."""

    def __init__(self) -> None:
        self.packed: Tensor | None = None
        self.x: list[Tensor] = []  # (n, k, d) of each chunk, only for pairs="sample"

    def add(self, part: Part) -> None:
        packed = part.sums.pack()
        if self.packed is None:
            self.packed = packed.to(packed.dtype if packed.device.type == "mps" else torch.float64)
        else:
            self.packed += packed
        logits, x, *_ = part.samples
        if part.options.pairs == "sample":
            self.x.append(x.detach().clone())
        self.last = part._replace(samples=part.samples._replace(logits=logits[:0].detach(), x=x[:0].detach()))

    def total(self, targets: list[Tensor]) -> Part:
        """All chunks as one part: their sums and, for pairs="sample", their samples; no logits."""
        assert self.packed is not None  # there is at least one chunk
        samples = self.last.samples._replace(targets=torch.cat(targets))
        if self.x:
            samples = samples._replace(x=torch.cat(self.x))
        return self.last._replace(samples=samples, sums=self.last.sums.unpack(self.packed))


def _forward(model: nn.Module, inputs: Any) -> tuple[Tensor, Tensor]:
    output = model(inputs)
    if not isinstance(output, list | tuple) or len(output) != 2 or not all(isinstance(x, Tensor) for x in output):
        raise TypeError(f"the model's output: expected tensors (logits, embeddings), got {describe_type(output)}")
    return output[0], output[1]


def _embeddings(model: nn.Module, inputs: Any) -> Tensor:
    output = model(inputs)
    if not isinstance(output, Tensor):
        raise TypeError(f"the model's output: expected a tensor of embeddings, got {describe_type(output)}")
    return output


def _compute_dtype(x: Tensor) -> torch.dtype:
    """The least precise dtype used to compute the embeddings x."""
    autocast = torch.is_autocast_enabled(x.device.type)
    return torch.get_autocast_dtype(x.device.type) if autocast and x.dtype != torch.float64 else x.dtype


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    tensors = chain(model.parameters(), model.buffers())
    return sorted({tensor.device for tensor in tensors if tensor.is_cuda}, key=str)


def _is_compiled(model: nn.Module) -> bool:
    return any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules())


def _outside_autocast(device: torch.device) -> torch.autocast:
    """Disable autocast for a backward pass: its ops use the dtypes of the forward pass."""
    return torch.autocast(device.type, enabled=False)


def _chunk_count_error(first: int, second: str) -> RuntimeError:
    return RuntimeError(
        f"virtual batch: {first} chunks in the first pass and {second} in the second. A callable must yield the "
        "same chunks each time it is called. The gradients of this call were dropped"
    )


@contextmanager
def _without_reduction(model: Any) -> Iterator[None]:
    """Do not reduce gradients over ranks: `no_sync` of DDP and FSDP."""
    if hasattr(model, "no_sync"):
        with model.no_sync():
            yield
    elif hasattr(model, "set_requires_gradient_sync"):  # fully_shard
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)
    else:
        yield
