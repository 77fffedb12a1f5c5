"""The whole loss, Eq. 12: cross-entropy plus lambda times the terms."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from adcorre import checks, distributed
from adcorre.attention import AdaptiveAttentionMap
from adcorre.backends import Options, resolve_options
from adcorre.between import Whole, between_alone, between_sums
from adcorre.distributed import BatchSums
from adcorre.functional import all_terms, class_sums, three_dimensional

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class AdCorreOutput(NamedTuple):
    """What one call computes. `loss` carries the graph; the rest is for logs, detached, and costs no host sync.

    loss: (), Eq. 12. ce: () cross-entropy. fd, md, ed: () the terms, not multiplied by lambda, also those that are
    switched off. nfd: () the naive FD (Eq. 5): beside it a log tells what embeddings do from what the weights do.
    attention: (C,) Eq. 7's w as used in this call.
    """

    loss: Tensor
    ce: Tensor
    fd: Tensor
    md: Tensor
    ed: Tensor
    nfd: Tensor
    attention: Tensor


def adcorre_loss(
    logits: Tensor,
    embeddings: Tensor,
    targets: Tensor,
    attention: Tensor,
    *,
    lambd: float | Tensor = 0.5,
    components: Collection[str] = ("fd", "md", "ed"),
    between_target: checks.Target = -1,
    mean_target: checks.Target = -1,
    embedding_target: checks.Target = -1,
    ce_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    pairs: Literal["class", "sample"] = "class",
    precision: Literal["highest", "high", "medium"] = "highest",
    ignore_index: int = -100,
    backend: str = "auto",
    validate: bool | None = None,
) -> AdCorreOutput:
    """Eq. 12 as a function, for who keeps Eq. 7's weights himself: `attention` (C,) is w. The rest as `AdCorreLoss`."""
    num_classes = attention.shape[0]
    checks.check_logits(logits, num_classes)
    checks.check_same_batch(logits, embeddings)
    checks.check_attention(attention, embeddings.device)
    checks.check_inputs(embeddings, targets, num_classes, ignore_index, validate)
    checks.check_ce_settings(ce_weight, label_smoothing, num_classes)
    components = checks.check_components(components)
    options = resolve_options(
        embeddings,
        num_classes,
        backend,
        between_target,
        mean_target,
        embedding_target,
        ignore_index,
        pairs,
        precision,
    )
    attention = weights_used(attention, components)
    fd, md, ed, nfd = all_terms(embeddings if components else embeddings.detach(), targets, attention, options)
    ce = mean_of(*_cross_entropy(logits, targets, ce_weight, label_smoothing, ignore_index))
    loss = eq_12(ce, (fd, md, ed), lambd, components)
    return AdCorreOutput(loss, ce.detach(), fd.detach(), md.detach(), ed.detach(), nfd, attention.to(fd.dtype))


def weights_used(attention: Tensor, components: Collection[str]) -> Tensor:
    """w as it enters FD: with 1/2 everywhere FD is the naive FD."""
    return torch.full_like(attention, 0.5) if "nfd" in components else attention


def eq_12(
    ce: Tensor, terms: tuple[Tensor, Tensor, Tensor], lambd: float | Tensor, components: Collection[str]
) -> Tensor:
    """CE + lambda (FD + MD + ED), of `terms` = (fd, md, ed) only those in `components`."""
    if not components:
        return ce
    fd, md, ed = terms
    chosen = {"fd": fd, "nfd": fd, "md": md, "ed": ed}
    return ce + lambd * sum(chosen[name] for name in components)


def mean_of(total: Tensor, weight: Tensor) -> Tensor:
    """Mean cross-entropy from its sum and the sum of its weights: 0 if no sample takes part."""
    return total / torch.where(weight == 0, 1, weight)


def _cross_entropy(
    logits: Tensor, targets: Tensor, weight: Tensor | None, label_smoothing: float, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed over the samples that take part, and the sum of their weights: NaN if a label is bad.

    `cross_entropy` itself gets clean labels: on CUDA a bad one would end the process's use of the device. Rows that
    take no part are set to zero, or a NaN in one of them would reach its gradient.
    """
    takes_part, bad = checks.label_masks(targets, logits.shape[1], ignore_index)
    logits = torch.where(takes_part[:, None], logits.to(checks.at_least_float32(logits.dtype)), 0)
    labels = torch.where(takes_part, targets, ignore_index).long()
    weight = weight if weight is None else weight.to(logits.dtype)
    total = cross_entropy(
        logits, labels, weight, reduction="sum", label_smoothing=label_smoothing, ignore_index=ignore_index
    )
    per_sample = takes_part if weight is None else torch.where(takes_part, weight[labels.clamp(min=0)], 0)
    return total, torch.where(bad.any(), torch.nan, per_sample.sum().to(total.dtype))


class AdCorreLoss(nn.Module):
    """CE + lambda (FD + MD + ED), Eq. 12, with the Adaptive Attention Map inside.

    Args:
        num_classes: C.
        lambd: the paper's lambda. A call can give its own, for a warm-up say.
        window: the paper's delta, in steps (see `AdaptiveAttentionMap`).
        components: which terms enter the loss: any of "fd", "md", "ed"; "nfd" (Eq. 5, w = 1/2) instead of "fd". None
            of them gives plain cross-entropy. Terms left out are still reported.
        between_target, mean_target, embedding_target: the correlations that FD, MD and ED ask for between classes,
            between class means and between the k vectors: -1 (the paper), "simplex", or a number in [-1, 1].
        ce_weight: (C,) class weights of the cross-entropy, as `torch.nn.functional.cross_entropy` has them.
        label_smoothing: of the cross-entropy, in [0, 1].
        pairs, precision: FD over pairs of classes or of samples (see `adcorre_terms`). With a process group, pairs of
            samples need every rank's embeddings on every rank.
        ignore_index: samples with this label take no part in anything.
        backend: "auto", "triton", "torch" or "reference" (see `adcorre_terms`).
        validate: what becomes of a bad label (see `adcorre_terms`). One that nobody looked at makes the loss and
            every gradient NaN. In a process group a bad label on one rank raises, or gives NaN, on every rank.
        process_group: the ranks that share each batch: a `torch.distributed.ProcessGroup`, "world" for the default
            group (looked up in each call: the module may be made before the group), or None (default), a single
            process. With a group every call, in eval mode too, is one all-reduce in which all its ranks take part, one
            without samples with n = 0. Every rank gets the loss, terms and attention weights of the whole batch; its
            gradient is the whole batch's for its own samples. Needs a backend other than "reference".
        gradient_reduction: what becomes of the ranks' gradients of the parameters: "mean" (default) if they are
            averaged over the group, as DistributedDataParallel and FSDP do, "sum" if they are added.

    Raises:
        ValueError, TypeError: settings out of range.
    """

    ce_weight: Tensor | None

    def __init__(
        self,
        num_classes: int,
        *,
        lambd: float = 0.5,
        window: int = 5,
        components: Collection[str] = ("fd", "md", "ed"),
        between_target: checks.Target = -1,
        mean_target: checks.Target = -1,
        embedding_target: checks.Target = -1,
        ce_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        pairs: Literal["class", "sample"] = "class",
        precision: Literal["highest", "high", "medium"] = "highest",
        ignore_index: int = -100,
        backend: str = "auto",
        validate: bool | None = None,
        process_group: ProcessGroup | Literal["world"] | None = None,
        gradient_reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__()
        self.attention_map = AdaptiveAttentionMap(num_classes, window, ignore_index=ignore_index)
        self.num_classes = num_classes
        self.lambd = lambd
        self.components = checks.check_components(components)
        checks.check_backend(backend)
        for name, target in (
            ("between_target", between_target),
            ("mean_target", mean_target),
            ("embedding_target", embedding_target),
        ):
            checks.resolve_target(name, target, num_classes)  # a wrong one is refused here, not in the first step
        self.between_target = between_target
        self.mean_target = mean_target
        self.embedding_target = embedding_target
        checks.check_ce_settings(ce_weight, label_smoothing, num_classes)
        self.register_buffer("ce_weight", ce_weight)
        self.label_smoothing = label_smoothing
        checks.check_pairs(pairs, precision)
        self.pairs = pairs
        self.precision = precision
        self.ignore_index = ignore_index
        self.backend = backend
        self.validate = validate
        distributed.check_group(process_group, gradient_reduction)
        if process_group is not None and backend == "reference":
            raise ValueError('backend="reference" has no sums to add over a process group; "torch" has, in float64 too')
        self.process_group = process_group
        self.gradient_reduction = gradient_reduction

    def forward(
        self, logits: Tensor, embeddings: Tensor, targets: Tensor, *, lambd: float | Tensor | None = None
    ) -> AdCorreOutput:
        """One step. In training mode the batch's predictions enter the attention map before its weights are read.

        Args:
            logits: (n, C), any floating dtype; computed in float32 at least.
            embeddings: (n, k, d), or (n, d) for k = 1; before dropout.
            targets: (n,) class labels, any integer dtype.
            lambd: in place of the module's, for this call: a number or a 0-d tensor.

        Raises:
            ValueError, TypeError, IndexError: as `adcorre_terms`.
        """
        lambd = self.lambd if lambd is None else lambd
        if self.process_group is not None:
            return self._of_the_group(logits, embeddings, targets, lambd)
        self._check(logits, embeddings, targets)
        return adcorre_loss(
            logits,
            embeddings,
            targets,
            self.attention_map(logits, targets),
            lambd=lambd,
            components=self.components,
            between_target=self.between_target,
            mean_target=self.mean_target,
            embedding_target=self.embedding_target,
            ce_weight=self.ce_weight,
            label_smoothing=self.label_smoothing,
            pairs=self.pairs,
            precision=self.precision,
            ignore_index=self.ignore_index,
            backend=self.backend,
            validate=False,  # looked at above, before the attention map counted the batch
        )

    def _of_the_group(
        self, logits: Tensor, embeddings: Tensor, targets: Tensor, lambd: float | Tensor
    ) -> AdCorreOutput:
        """`forward` of this rank's samples as a part of the group's batch."""
        options = self._check(logits, embeddings, targets)
        ce_sum, own = self._sums(logits, embeddings, targets, options)
        whole, attention = self._whole(own, [targets])
        x = embeddings if self.components else embeddings.detach()
        between = self._between(embeddings, targets, attention, options) if self.pairs == "sample" else None
        fd, md, ed, nfd = all_terms(x, targets, attention, options, whole.statistics, between)
        share = eq_12(mean_of(ce_sum, whole.ce_weight), (fd, md, ed), lambd, self.components)
        fd, md, ed, ce = fd.detach(), md.detach(), ed.detach(), mean_of(whole.ce, whole.ce_weight)
        value = eq_12(ce, (fd, md, ed), lambd, self.components)
        loss = _WholeLoss.apply(share, value, self._gradient_factor())
        return AdCorreOutput(loss, ce, fd, md, ed, nfd, attention.to(fd.dtype))

    def _check(self, logits: Tensor, embeddings: Tensor, targets: Tensor) -> Options:
        """The errors of a batch, or of a part of it, before anything has changed.

        In a process group labels wait for `_whole`: a rank that raised here would leave the others in the all-reduce.
        """
        checks.check_logits(logits, self.num_classes)
        checks.check_same_batch(logits, embeddings)
        validate = self.validate if self.process_group is None else False
        checks.check_inputs(embeddings, targets, self.num_classes, self.ignore_index, validate)
        return resolve_options(
            embeddings,
            self.num_classes,
            self.backend,
            self.between_target,
            self.mean_target,
            self.embedding_target,
            self.ignore_index,
            self.pairs,
            self.precision,
        )

    def _sums(self, logits: Tensor, embeddings: Tensor, targets: Tensor, options: Options) -> tuple[Tensor, BatchSums]:
        """The sum of the samples' cross-entropies, with its graph, and the sums that chunks and ranks add up."""
        ce, ce_weight = _cross_entropy(logits, targets, self.ce_weight, self.label_smoothing, self.ignore_index)
        statistics = class_sums(embeddings, targets, self.num_classes, options)
        return ce, BatchSums(statistics, self.attention_map.count(logits, targets), ce.detach(), ce_weight)

    def _whole(self, own: BatchSums, targets: Sequence[Tensor]) -> tuple[BatchSums, Tensor]:
        """The whole batch's sums, over the ranks if there are any, and w; a training step for the attention map.

        Raises IndexError for a bad label (see `validate`), of whichever rank and on every rank. `targets` are this
        rank's, for the message.
        """
        whole = own
        if self.process_group is not None:
            whole = distributed.add_ranks(own, self.process_group)
            count = whole.statistics[-1 - self.num_classes : -1]  # NaN if a label was bad
            if checks.looks_at_labels(targets[0], self.validate) and bool(count.isnan().any()):
                for labels in targets:
                    checks.check_labels(labels, self.num_classes, self.ignore_index, True)
                raise IndexError(
                    f"targets: another rank has a label that is outside [0, {self.num_classes}) and is not "
                    f"ignore_index ({self.ignore_index})"
                )
        if self.attention_map.training:
            self.attention_map.record(whole.predictions)
        return whole, weights_used(self.attention_map.weights(), self.components)

    def _between(
        self, embeddings: Tensor, targets: Tensor, attention: Tensor, options: Options
    ) -> tuple[Whole, Tensor]:
        """For pairs="sample": the whole batch's samples, over the ranks if there are any, and FD's sums over them."""
        x = three_dimensional(embeddings)
        if self.process_group is None:
            return between_alone(x, targets, attention, options)
        whole = distributed.gather_samples(x, targets, self.process_group, self.ignore_index)
        return whole, distributed.add_between(between_sums(whole, attention, options), self.process_group)

    def _gradient_factor(self) -> int:
        """What the gradient of the group's loss is multiplied by, so that the ranks' reduction gives it unchanged."""
        return distributed.world_size(self.process_group) if self.gradient_reduction == "mean" else 1

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, lambd={self.lambd}, components={self.components}"


class _WholeLoss(torch.autograd.Function):
    """The value of the whole batch's loss; its gradient is that of this rank's share, times `factor`."""

    @staticmethod
    def forward(share: Tensor, value: Tensor, factor: int) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.factor = inputs[2]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return upstream[0] * ctx.factor, None, None
