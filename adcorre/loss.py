"""The whole loss, Eq. 12: cross-entropy plus lambda times the terms."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from adcorre import checks, distributed
from adcorre.attention import AdaptiveAttentionMap, check_attention_map
from adcorre.backends import resolve_options
from adcorre.distributed import BatchSums
from adcorre.equation import (
    AdCorreOutput,
    Batch,
    Part,
    Samples,
    fd_weights,
    loss_from_batch,
    make_batch,
    sum_part,
    whole_loss,
)
from adcorre.functional import three_dimensional
from adcorre.fused import AttentionState, ResolvedCall, kernel_settings, resolve_call
from adcorre.module import LossModule, check_ranks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

PENDING_STEPS = 32  # forward passes kept for a recomputation by activation checkpointing


def adcorre_loss(
    logits: Tensor,
    embeddings: Tensor,
    targets: Tensor,
    attention: Tensor,
    *,
    lambd: float | Tensor = 0.5,
    components: Collection[str] | Mapping[str, float] = ("fd", "md", "ed"),
    between_target: checks.Target = -1,
    mean_target: checks.Target = -1,
    embedding_target: checks.Target = -1,
    ce_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    logit_adjustment: Tensor | None = None,
    pairs: Literal["class", "sample"] = "class",
    precision: Literal["highest", "high", "medium"] = "highest",
    ignore_index: int = -100,
    backend: str = "auto",
    validate: bool | None = None,
) -> AdCorreOutput:
    """Eq. 12 as a function, for callers who manage the attention weights themselves.

    Args:
        logits, embeddings, targets: (n, C); (n, k, d), or (n, d) for k = 1; (n,). As in a call of `AdCorreLoss`.
        attention: (C,) floating, Eq. 7's w, one weight per class; its length gives C. It carries no gradient.
        lambd, components, between_target, mean_target, embedding_target: as in `AdCorreLoss`.
        ce_weight, label_smoothing, logit_adjustment: as in `AdCorreLoss`.
        pairs, precision, ignore_index, backend, validate: as in `AdCorreLoss`.

    Returns:
        `AdCorreOutput`; call `backward` on its `loss`.

    Raises:
        ValueError, TypeError, IndexError: as `adcorre_terms`.
    """
    checks.check_attention(attention)
    num_classes = attention.shape[0]
    targets = _check_batch(logits, embeddings, targets, num_classes, ignore_index)
    checks.check_same_device(attention, embeddings)
    checks.check_ce_settings(ce_weight, logit_adjustment, label_smoothing, num_classes)
    lambd = checks.check_lambda(lambd)
    chosen = checks.check_components(components)
    term_targets = (between_target, mean_target, embedding_target)
    options = resolve_options(
        embeddings,
        num_classes,
        backend,
        *term_targets,
        ignore_index,
        pairs,
        precision,
        float(label_smoothing),
        chosen,
    )
    samples = Samples(logits, three_dimensional(embeddings), targets, ce_weight, logit_adjustment)
    settings = kernel_settings(options, num_classes, samples.x, logits)
    if settings is not None:
        checks.check_labels(targets, num_classes, ignore_index, validate)
        return whole_loss(samples, AttentionState(attention), lambd, options, settings)[0]
    part = sum_part(samples, options)
    _check_labels(part, num_classes, validate)
    return loss_from_batch(part, make_batch(part, part.sums, fd_weights(attention, chosen)), lambd)


class AdCorreLoss(LossModule):
    """CE + lambda (FD + MD + ED), Eq. 12, with the Adaptive Attention Map.

        loss_fn = AdCorreLoss(num_classes=7)
        out = loss_fn(logits, embeddings, targets)
        out.loss.backward()

    The loss has state. In training mode each call is one step of the attention map: switch the loss to eval mode
    together with the model. A call without gradients (`torch.no_grad`) is never recorded. Under activation
    checkpointing, the recomputed forward pass is not recorded either and uses the weights of the first one. (Do not put
    a compiled loss inside the checkpointed function.)

    Args:
        num_classes: C.
        lambd: the paper's lambda, at least 0, without gradient. A call can override it, for example for a warm-up.
        window: the paper's delta, in steps (see `AdaptiveAttentionMap`).
        components: the terms in the loss: any of "fd", "md" and "ed"; "nfd" (Eq. 5, w = 1/2) can replace "fd". An empty
            tuple makes the loss plain cross-entropy. Terms that are not in the loss are still reported. A dict gives
            each term a weight: with {"fd": 1.0, "md": 0.3, "ed": 0.1} the loss is CE + lambda (FD + 0.3 MD + 0.1 ED).
        between_target, mean_target, embedding_target: target correlations of FD (between classes), MD (between class
            means) and ED (between the k vectors): -1 (the paper), "simplex", or a number in [-1, 1].
        ce_weight: (C,) class weights of the cross-entropy, `weight` of `torch.nn.functional.cross_entropy`.
        label_smoothing: label smoothing of the cross-entropy, in [0, 1].
        logit_adjustment: (C,), added to the logits for cross-entropy (logit-adjusted cross-entropy), not for the
            predictions that the attention map counts.
        attention_map: an `nn.Module` that is an `AttentionMap`, used instead of the `AdaptiveAttentionMap`: it receives
            each step's counts and returns w. `window` is then ignored.
        pairs, precision: FD over pairs of classes or of samples (see `adcorre_terms`). With a process group, pairs of
            samples need every rank's embeddings on every rank.
        ignore_index: samples with this label are ignored by cross-entropy, terms and attention map.
        backend: "auto" (fused kernels where available: "triton" on a GPU, "numba" on a CPU if Numba is installed; else
            "torch"), "triton", "numba", "torch" or "reference" (see `adcorre_terms`).
        validate: whether to raise IndexError for a bad label: one that is neither in [0, C) nor `ignore_index`. None
            (default) checks where that is free (eager mode, CPU); True always checks, with a host sync on a GPU; False
            never. A bad label that is not checked makes the loss and every gradient NaN. In a process group a bad label
            on one rank raises an error, or gives NaN, on every rank.
        process_group: the ranks that share each batch: a `torch.distributed.ProcessGroup`, "world" for the default
            group (looked up in each call, so that the module may be created before it), or None (default): each process
            computes the loss of its own samples. With a group every call does one all-reduce, in eval mode too, and
            every rank must call. A rank without samples calls with n = 0. Every rank gets the loss, terms and attention
            weights of the whole batch, and the gradient of that loss for its own samples. The backend "reference" does
            not support it.
        gradient_reduction: how the ranks' parameter gradients are reduced: "mean" (default) if they are averaged over
            the group, as in DistributedDataParallel and FSDP, "sum" if they are added.

    Raises:
        ValueError, TypeError: invalid settings.
    """

    settings = ("ce_weight", "logit_adjustment")
    ce_weight: Tensor | None
    logit_adjustment: Tensor | None

    def __init__(
        self,
        num_classes: int,
        *,
        lambd: float = 0.5,
        window: int = 5,
        components: Collection[str] | Mapping[str, float] = ("fd", "md", "ed"),
        between_target: checks.Target = -1,
        mean_target: checks.Target = -1,
        embedding_target: checks.Target = -1,
        ce_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        logit_adjustment: Tensor | None = None,
        attention_map: nn.Module | None = None,
        pairs: Literal["class", "sample"] = "class",
        precision: Literal["highest", "high", "medium"] = "highest",
        ignore_index: int = -100,
        backend: str = "auto",
        validate: bool | None = None,
        process_group: ProcessGroup | Literal["world"] | None = None,
        gradient_reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__()
        built_in = AdaptiveAttentionMap(num_classes, window, ignore_index=ignore_index)
        if attention_map is not None:
            check_attention_map("attention_map", attention_map)
        self.attention_map: Any = built_in if attention_map is None else attention_map
        self.num_classes = built_in.num_classes
        self.lambd = checks.check_lambda(lambd)
        self.components = checks.check_components(components)
        checks.check_backend(backend)
        checks.check_correlation_targets(  # raises here instead of in the first step
            num_classes, between_target=between_target, mean_target=mean_target, embedding_target=embedding_target
        )
        self.between_target = between_target
        self.mean_target = mean_target
        self.embedding_target = embedding_target
        checks.check_ce_settings(ce_weight, logit_adjustment, label_smoothing, num_classes)
        self.register_buffer("ce_weight", ce_weight)
        self.register_buffer("logit_adjustment", logit_adjustment)
        self.label_smoothing = float(label_smoothing)
        checks.check_pairs(pairs, precision)
        self.pairs = pairs
        self.precision = precision
        self.ignore_index = built_in.ignore_index
        self.backend = backend
        self.validate = validate
        distributed.check_group(process_group, gradient_reduction)
        if process_group is not None:
            self.check_additive("a process group")
        self.process_group = process_group
        self.gradient_reduction = gradient_reduction
        self._steps: deque[_Step | _FusedStep] = deque(maxlen=PENDING_STEPS)
        self._calls: dict[Hashable, ResolvedCall] = {}

    def forward(
        self, logits: Tensor, embeddings: Tensor, targets: Tensor, *, lambd: float | Tensor | None = None
    ) -> AdCorreOutput:
        """One step. In training mode the attention map records the batch's predictions before its weights are read.

        Args:
            logits: (n, C), any floating dtype; computed in float32 at least.
            embeddings: (n, k, d), or (n, d) for k = 1; before dropout.
            targets: (n,) class labels, any integer dtype.
            lambd: overrides the module's for this call: a number or a 0-d tensor without gradient.

        Raises:
            ValueError, TypeError, IndexError: as `adcorre_terms`.
        """
        lambd = checks.check_lambda(self.lambd if lambd is None else lambd)
        call = self._resolve_call(logits, embeddings, targets)
        # `nn.Module.__getattr__` takes as long as half a small operation.
        attention: Any = self._modules["attention_map"]
        settings = self._buffers
        built_in = type(attention) is AdaptiveAttentionMap and self.process_group is None
        if call.settings is None or not built_in or _within_backward():
            part = self.part(logits, embeddings, targets)
            return loss_from_batch(part, self.combine(part), lambd)
        checks.check_labels(targets, self.num_classes, self.ignore_index, self.validate)
        x, state = three_dimensional(embeddings), attention._buffers
        samples = Samples(logits, x, targets, settings["ce_weight"], settings["logit_adjustment"])
        training = attention.training
        record = training and torch.is_grad_enabled()
        state = AttentionState(None, state["counts"], state["position"], training, record)
        output, values = whole_loss(samples, state, lambd, call.options, call.settings)
        if training and not torch.compiler.is_compiling():
            self._steps.append(_FusedStep(values, self.num_classes, record))
        return output

    def _resolve_call(self, logits: Tensor, embeddings: Tensor, targets: Tensor) -> ResolvedCall:
        """Check a batch, or a part of it, except its labels' values, and resolve the options."""
        given = (
            self.backend, self.between_target, self.mean_target, self.embedding_target, self.ignore_index, self.pairs,
            self.precision, self.label_smoothing,
        )  # fmt: skip
        others = (self.num_classes, *self.components.items())
        return resolve_call(self._calls, self._resolve, (logits, embeddings, targets), (given, others))

    def _resolve(
        self, logits: Tensor, embeddings: Tensor, targets: Tensor, given: tuple[Any, ...], others: tuple[Any, ...]
    ) -> ResolvedCall:
        _check_batch(logits, embeddings, targets, self.num_classes, self.ignore_index)
        options = resolve_options(embeddings, self.num_classes, *given, self.components)
        return ResolvedCall(options, kernel_settings(options, self.num_classes, three_dimensional(embeddings), logits))

    def part(self, logits: Tensor, embeddings: Tensor, targets: Tensor) -> Part:
        """Check a batch, or a part of one, and sum over its samples. The state does not change. Sums of parts add.

        In a process group, `combine` checks the labels: a rank that raised here would leave the others waiting in the
        all-reduce.
        """
        options = self._resolve_call(logits, embeddings, targets).options
        x = three_dimensional(embeddings)
        part = sum_part(Samples(logits, x, targets.long(), self.ce_weight, self.logit_adjustment), options)
        if self.process_group is None:
            _check_labels(part, self.num_classes, self.validate)
        return part

    def combine(self, part: Part, targets: Sequence[Tensor] = (), record: bool | None = None) -> Batch:
        """Combine this rank's `part` with the other ranks' into the whole batch: one step of the attention map.

        In a process group this is an all-reduce that every rank must call. `targets`: this rank's labels by chunk, for
        error messages, if `part` is the sum of several chunks. `record`: whether the attention map records the step in
        training mode; None: if gradients are enabled.

        Raises:
            IndexError: a bad label (see `validate`) of any rank, on every rank.
        """
        _, x, labels, *_ = part.samples
        whole = part.sums
        if self.process_group is not None:
            whole = distributed.add_ranks(whole, self.process_group)
            if checks.validates_labels(labels, self.validate):
                check_ranks(whole.statistics, targets or [labels], self.num_classes, self.ignore_index)
        record = torch.is_grad_enabled() if record is None else record
        with torch.no_grad():
            attention = fd_weights(self._attention(whole, record), self.components)
        between = None
        if self.pairs == "sample" and self.process_group is not None:
            between = distributed.gather_pairs(x, labels, attention, whole.statistics, part.options, self.process_group)
        averaged = self.gradient_reduction == "mean"
        factor = distributed.world_size(self.process_group) if averaged else 1
        return make_batch(part, whole, attention, between, factor)

    def check_additive(self, over: str) -> None:
        """Raise ValueError if the loss cannot be computed from sums over parts of a batch. Subclasses may override."""
        if self.backend == "reference":
            raise ValueError(f'backend="reference" does not support {over}; use "torch", which supports float64 too')

    def _attention(self, whole: BatchSums, record: bool) -> Tensor:
        """w for a batch. In training mode the attention map records the batch if `record`."""
        if not self.attention_map.training:
            return self.attention_map.weights()
        counts = whole.predictions
        if torch.compiler.is_compiling():
            if not record:
                return self.attention_map.weights(counts)
            self.attention_map.record(counts)
            return self.attention_map.weights()
        if _within_backward():
            return self._recomputed_weights(whole)
        if record:
            self.attention_map.record(counts)
        weights = self.attention_map.weights(None if record else counts)
        self._steps.append(_Step(counts, whole.ce.detach(), weights, record))
        return weights

    def _recomputed_weights(self, whole: BatchSums) -> Tensor:
        """w for a forward pass recomputed within the backward pass: that of the first run, or the gradient is wrong.

        Reentrant checkpointing runs the first one without gradients. That step is recorded now, once.
        """
        seen = whole.predictions[1]
        same = [step for step in reversed(self._steps) if torch.equal(step.counts[1], seen)]
        if not same:
            raise RuntimeError(
                "AdCorreLoss: called within a backward pass, as by activation checkpointing, for a batch that is not "
                f"among the last {PENDING_STEPS} forward passes: its attention weights are not known. "
                "Call backward earlier, or keep the loss outside the checkpointed function"
            )
        step = min(same, key=lambda step: abs(float(step.ce[0] - whole.ce[0])))
        if not step.recorded:
            self.attention_map.record(step.counts)
            step.recorded = True
        return step.weights

    def extra_repr(self) -> str:
        components: Any = self.components
        if set(components.values()) <= {1.0}:
            components = tuple(components)
        return f"num_classes={self.num_classes}, lambd={self.lambd}, components={components}"


@dataclass
class _Step:
    """A step in training mode, kept for a recomputation by activation checkpointing."""

    counts: Tensor
    ce: Tensor
    weights: Tensor
    recorded: bool


@dataclass
class _FusedStep:
    """A `_Step` that reads its fields from the kernels' `values`."""

    values: Tensor
    num_classes: int
    recorded: bool

    @property
    def counts(self) -> Tensor:
        return self.values[5 + self.num_classes : -2].view(2, self.num_classes).round().long()

    @property
    def ce(self) -> Tensor:
        return self.values[-2:]

    @property
    def weights(self) -> Tensor:
        return self.values[5 : 5 + self.num_classes]


def _within_backward() -> bool:
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _check_batch(logits: Tensor, embeddings: Tensor, targets: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Check a batch, or a part of it, except its labels' values; return the labels as int64."""
    checks.check_logits(logits, num_classes)
    checks.check_embeddings(embeddings)
    checks.check_same_batch(logits, embeddings)
    return checks.check_targets(targets, embeddings.shape[0], embeddings.device, ignore_index)


def _check_labels(part: Part, num_classes: int, validate: bool | None) -> None:
    """Raise IndexError for a bad label, if `validate` says so. A bad label has made the sum of weights NaN."""
    if checks.validates_labels(part.samples.targets, validate) and bool(part.sums.ce[1].isnan()):
        checks.check_labels(part.samples.targets, num_classes, part.options.ignore_index, True)
