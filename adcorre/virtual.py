"""Virtual batches (Sec. IV-B): the exact gradient of a batch of any size in the memory of one chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adcorre import checks
from adcorre.backends import Options
from adcorre.between import between_gradient, per_pair
from adcorre.chunks import Chunk, Inputs, chunk_source, described, drain, open_ahead
from adcorre.distributed import BatchSums
from adcorre.functional import embedding_gradient, three_dimensional, values_and_tables
from adcorre.loss import AdCorreLoss, AdCorreOutput, eq_12, mean_of
from adcorre.replay import Buffers, Fingerprint, RandomState, check_same, fingerprint
from adcorre.statistics import Tables


class VirtualBatch:
    """One optimizer step's gradient over a batch that is too large to be held at once: the paper's b chunks of 60.

    A call takes the place of forward pass, loss and `backward`, and adds to the parameters' gradients:

        step = VirtualBatch(model, loss_fn, chunk_size=60)
        optimizer.zero_grad()
        out = step(images, targets)
        optimizer.step()

    Pass 1 forwards the chunks and adds up their sums; pass 2 forwards each again and backpropagates the whole batch's
    dL/dx and its share of the cross-entropy. That is the gradient of one plain batch, but for layers that mix samples:
    BatchNorm normalises each chunk by itself. Between the passes random states and buffers are put back, so that both
    see the same network and BatchNorm's running statistics are updated once a chunk. The attention map takes one step.
    A batch of one chunk is an ordinary step with one forward pass.

    Works under autocast, with compiled models, with DistributedDataParallel and FSDP (gradients are reduced with the
    last chunk), and with a loss in a process group: the batch is then all chunks of all ranks. Ranks may have different
    numbers of chunks under DistributedDataParallel; FSDP and SyncBatchNorm communicate in every forward pass and need
    equal numbers.

    Args:
        model: gives (logits (n, C), embeddings (n, k, d) or (n, d)) for the inputs of one chunk.
        loss: with any backend but "reference", which takes one chunk only.
        chunk_size: samples of a chunk, where a tensor is given.
        keep_graphs: one forward pass instead of two, in the memory of all chunks.

    Raises:
        ValueError, TypeError: a loss or chunk size that cannot serve.
    """

    def __init__(self, model: nn.Module, loss: AdCorreLoss, chunk_size: int = 60, *, keep_graphs: bool = False) -> None:
        checks.check_positive_int("chunk_size", chunk_size)
        if not isinstance(model, nn.Module) or not isinstance(loss, AdCorreLoss):
            raise TypeError(
                "VirtualBatch: expected a torch.nn.Module and an AdCorreLoss, "
                f"got {type(model).__name__} and {type(loss).__name__}"
            )
        self.model = model
        self.loss = loss
        self.chunk_size = chunk_size
        self.keep_graphs = keep_graphs

    def __call__(
        self,
        inputs: Inputs,
        targets: Tensor | None = None,
        *,
        lambd: float | Tensor | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> AdCorreOutput:
        """The gradient of one step, added to the parameters' `.grad`.

        Args:
            inputs: the samples, in one of four forms. A tensor (n, ...), with `targets` (n,): split into chunks of
                `chunk_size`. A list of chunks (inputs, targets). A callable that yields the same chunks each time it is
                called, twice a step. Any other iterable, a loader say, is read once to its end and its chunks (not
                their activations) are kept.
            targets: (n,) with a tensor, else None.
            lambd: as in `AdCorreLoss.forward`.
            scaler: for float16: the gradients come out multiplied by its scale, as of `scaler.scale(loss).backward()`.

        Returns:
            The whole batch's `AdCorreOutput`, all of it detached.

        Raises:
            ValueError, TypeError, IndexError: as the loss, or for inputs in none of the forms, or without a chunk.
            RuntimeError: the second pass saw other chunks than the first. It comes before the last chunk's backward
                pass, so that no rank has reduced its gradients yet.
            Whatever is raised, buffers and attention map of a batch of several chunks are as before the call and all
            its parameters' gradients are None, those from before the call too: a step would change nothing.
        """
        open_chunks = chunk_source(inputs, targets, self.chunk_size, keep=not self.keep_graphs)
        lambd = self.loss.lambd if lambd is None else lambd
        opening = RandomState(_cuda_devices(self.model))
        first, rest = open_ahead(open_chunks)
        if not first:
            raise ValueError("virtual batch: no chunk came; a rank without samples gives one chunk of n = 0")
        if len(first) == 1:
            return self._ordinary_step(first[0], lambd, scaler)
        if self.loss.backend == "reference":
            raise ValueError('backend="reference" has no sums to add over chunks; "torch" has, in float64 too')
        step = _Step(self.model, self.loss, lambd, scaler)
        try:
            if self.keep_graphs:
                return step.one_pass(drain(first, rest))
            return step.two_passes(drain(first, rest), open_chunks, opening)
        except BaseException:
            step.undo()
            raise

    def _ordinary_step(self, chunk: Chunk, lambd: float | Tensor, scaler: torch.amp.GradScaler | None) -> AdCorreOutput:
        logits, embeddings = _forward(self.model, chunk[0])
        output = self.loss(logits, embeddings, chunk[1], lambd=lambd)
        with _outside_autocast(embeddings.device):
            (output.loss if scaler is None else scaler.scale(output.loss)).backward()
        return output._replace(loss=output.loss.detach())


class _Part(NamedTuple):
    """One chunk after its forward pass."""

    ce: Tensor  # sum of its samples' cross-entropies, with the graph
    embeddings: Tensor  # with the graph
    targets: Tensor
    sums: BatchSums
    options: Options


class _Upstream(NamedTuple):
    """What every chunk's gradient is computed from."""

    terms: Tensor  # (4,), of fd, md, ed, nfd
    ce: Tensor  # (), of a chunk's sum of cross-entropies
    tables: Tables
    between: Sequence[Tensor] | None  # (n, k, d) a chunk, what comes on top for pairs="sample"


class _Step:
    """One call over several chunks."""

    def __init__(
        self, model: nn.Module, loss: AdCorreLoss, lambd: float | Tensor, scaler: torch.amp.GradScaler | None
    ) -> None:
        self.model = model
        self.loss = loss
        self.lambd = lambd
        self.scaler = scaler
        self.attention = Buffers(loss)
        self.buffers = Buffers(model)
        if isinstance(model, DistributedDataParallel):
            # The first forward pass begins with rank 0's buffers: these are the ones to begin the second pass with.
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
        self, chunks: Iterator[Chunk], open_chunks: Callable[[], Iterable[Chunk]], opening: RandomState
    ) -> AdCorreOutput:
        """The sums of all chunks; then chunk by chunk the gradient, with its graph."""
        devices = _cuda_devices(self.model)
        states: list[RandomState] = []
        prints: list[Fingerprint] = []
        sums = _Sums()
        # Where a model is compiled, a pass without graph would be compiled apart; DDP does what belongs before a step's
        # first forward pass only where it sees a graph coming. The graph is dropped with the chunk.
        graph = _is_compiled(self.model) or isinstance(self.model, DistributedDataParallel)
        with torch.set_grad_enabled(graph), _without_reduction(self.model):
            for inputs, targets in chunks:
                states.append(RandomState(devices))
                prints.append(self._add(sums, inputs, targets))
        output, upstream = self._whole(sums, [one.labels for one in prints])
        del sums

        self.buffers.restore()
        opening.restore()
        chunks = drain(*open_ahead(open_chunks))
        again: list[Fingerprint] = []
        with torch.enable_grad():
            for index, state in enumerate(states):
                chunk = next(chunks, None)
                if chunk is None:
                    raise _other_number(len(states), str(index))
                last = index == len(states) - 1
                with nullcontext() if last else _without_reduction(self.model):
                    state.restore()
                    torch.clear_autocast_cache()  # where PyTorch 2.10 holds weights of pass 1, without their graph
                    part = self._part(*chunk)
                    again.append(_fingerprint(part))
                    if last and next(chunks, None) is not None:
                        raise _other_number(len(states), "more")
                    if last or part.targets.shape != prints[index].labels.shape:
                        check_same(prints, again)
                    self._backward([part], upstream, index)
                    del part
        return output

    def _add(self, sums: _Sums, inputs: Any, targets: Tensor) -> Fingerprint:
        part = self._part(inputs, targets)
        sums.add(part)
        return _fingerprint(part)

    def one_pass(self, chunks: Iterator[Chunk]) -> AdCorreOutput:
        """All graphs at once, and one backward pass, in which DDP sees each parameter's whole gradient."""
        parts: list[_Part] = []
        sums = _Sums()
        chunk = next(chunks, None)
        with torch.enable_grad():
            while chunk is not None:
                following = next(chunks, None)
                with nullcontext() if following is None else _without_reduction(self.model):
                    parts.append(self._part(*chunk))
                sums.add(parts[-1])
                chunk = following
        output, upstream = self._whole(sums, [part.targets for part in parts])
        self._backward(parts, upstream)
        return output

    def _part(self, inputs: Any, targets: Tensor) -> _Part:
        logits, embeddings = _forward(self.model, inputs)
        options = self.loss._check(logits, embeddings, targets)
        ce, sums = self.loss._sums(logits, embeddings, targets, options)
        return _Part(ce, embeddings, targets, sums, options)

    @torch.no_grad()
    def _whole(self, sums: _Sums, targets: list[Tensor]) -> tuple[AdCorreOutput, _Upstream]:
        """The whole batch's output, over chunks and ranks; with it the attention map has taken its step."""
        whole, attention = self.loss._whole(sums.total(), targets)
        values, tables = values_and_tables(whole.statistics, attention, sums.k, sums.d, sums.options)
        components = self.loss.components
        factor = torch.full_like(values[0], self.loss._gradient_factor())
        factor = factor if self.scaler is None else self.scaler.scale(factor)
        fd_in = "fd" in components or "nfd" in components  # with w = 1/2, FD is the naive FD
        chosen = values.new_tensor([fd_in, "md" in components, "ed" in components, False])
        terms, between = chosen * self.lambd * factor, None
        if self.loss.pairs == "sample":
            sizes = [len(part) for part in targets]
            samples, pairs = self.loss._between(torch.cat(sums.embeddings), torch.cat(targets), attention, sums.options)
            scale = per_pair(whole.statistics, self.loss.num_classes, sums.k, sums.d)
            zero = torch.zeros_like(scale)
            values = values + scale * torch.stack((pairs[0], zero, zero, pairs[1]))
            if fd_in:
                between = between_gradient(samples, attention, terms[0] * scale, sums.options).split(sizes)
        upstream = _Upstream(terms, mean_of(factor, whole.ce_weight).to(whole.ce.dtype), tables, between)
        fd, md, ed, nfd = values.unbind()
        ce = mean_of(whole.ce, whole.ce_weight)
        loss = eq_12(ce, (fd, md, ed), self.lambd, components)
        return AdCorreOutput(loss, ce, fd, md, ed, nfd, attention.to(fd.dtype)), upstream

    def _backward(self, parts: list[_Part], upstream: _Upstream, first: int = 0) -> None:
        """The gradient of some chunks, of which the batch's chunk `first` is the first."""
        tensors: list[Tensor] = []
        gradients: list[Tensor] = []
        for index, part in enumerate(parts, first):
            x = part.embeddings
            between = None if upstream.between is None else upstream.between[index]
            if part.ce.requires_grad or not x.requires_grad:  # if neither does, let backward say so
                tensors.append(part.ce)
                gradients.append(upstream.ce)
            if x.requires_grad and self.loss.components:
                tensors.append(x)
                gradients.append(
                    embedding_gradient(x, part.targets, upstream.terms, upstream.tables, part.options, between)
                )
        with _outside_autocast(parts[0].embeddings.device):
            torch.autograd.backward(tensors, gradients)


class _Sums:
    """The chunks' sums, added up in float64 where the device has it: there may be many chunks."""

    def __init__(self) -> None:
        self.packed: Tensor | None = None
        self.embeddings: list[Tensor] = []  # (n, k, d) a chunk; kept for pairs="sample" alone

    def add(self, part: _Part) -> None:
        packed = part.sums.pack()
        if self.packed is None:
            self.packed = packed.to(packed.dtype if packed.device.type == "mps" else torch.float64)
        else:
            self.packed += packed
        self.layout = part.sums
        self.options = part.options
        x = three_dimensional(part.embeddings)
        _, self.k, self.d = x.shape
        if part.options.pairs == "sample":
            self.embeddings.append(x.detach().clone())

    def total(self) -> BatchSums:
        assert self.packed is not None  # there is at least one chunk
        return self.layout.unpack(self.packed)


def _forward(model: nn.Module, inputs: Any) -> tuple[Tensor, Tensor]:
    output = model(inputs)
    if not isinstance(output, list | tuple) or len(output) != 2 or not all(isinstance(x, Tensor) for x in output):
        raise TypeError(f"the model's output: expected tensors (logits, embeddings), got {described(output)}")
    return output[0], output[1]


def _fingerprint(part: _Part) -> Fingerprint:
    x = part.embeddings
    autocast = torch.is_autocast_enabled(x.device.type)
    dtype = torch.get_autocast_dtype(x.device.type) if autocast and x.dtype != torch.float64 else x.dtype
    return fingerprint(part.targets, part.sums.statistics, dtype)


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    tensors = chain(model.parameters(), model.buffers())
    return sorted({tensor.device for tensor in tensors if tensor.is_cuda}, key=str)


def _is_compiled(model: nn.Module) -> bool:
    return any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules())


def _outside_autocast(device: torch.device) -> torch.autocast:
    """For a backward pass inside the caller's autocast region: its ops take the dtypes of the forward pass."""
    return torch.autocast(device.type, enabled=False)


def _other_number(first: int, second: str) -> RuntimeError:
    return RuntimeError(
        f"virtual batch: {first} chunks came in the first pass and {second} in the second. A callable must yield the "
        "same chunks each time it is called. The gradients of this call were dropped"
    )


@contextmanager
def _without_reduction(model: Any) -> Iterator[None]:
    """Gradients of what runs in here stay on this rank: DDP's and FSDP's `no_sync`."""
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
