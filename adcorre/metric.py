"""The loss of embeddings and labels alone, for metric learning: FD + MD + ED, without logits.

Where pytorch-metric-learning is installed, `AdCorreMetricLoss` is one of its `BaseMetricLossFunction`s.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from adcorre import checks, distributed
from adcorre.attention import check_attention_map
from adcorre.backends import Options, resolve_options
from adcorre.distributed import BatchSums
from adcorre.equation import fd_weights, term_weights
from adcorre.functional import all_terms, class_sums, terms_from_sums, three_dimensional
from adcorre.module import LossModule, check_ranks
from adcorre.nearest_means import ClassMeans
from adcorre.statistics import Values

try:
    from pytorch_metric_learning.losses import BaseMetricLossFunction as _Base
except ImportError:

    class _Base(nn.Module):  # type: ignore[no-redef]
        """The part of pytorch-metric-learning's interface that this loss uses."""

        collect_stats = False

        def forward(self, *batch: Any) -> Tensor:
            return self.compute_loss(*batch)["loss"]["losses"]

        def compute_loss(self, *batch: Any) -> dict[str, Any]:
            raise NotImplementedError


if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

RECORDED = ("fd", "md", "ed")  # recorded with collect_stats
NO_CLASS = -100  # ignore_index for labels mapped to 0 ... C - 1


class AdCorreMetricLoss(LossModule, _Base):
    """FD + MD + ED of (embeddings, labels), in linear time: `loss(embeddings, labels)` is a scalar.

    If pytorch-metric-learning is installed, this is a `BaseMetricLossFunction` that works with its trainers, testers
    and `DistributedLossWrapper`; otherwise it is a plain module. The loss is computed from sums over the batch's
    classes and compares all pairs of the batch. It therefore raises an error for other pairs: a miner's
    `indices_tuple`, a `ref_emb` that is not the embeddings themselves, `CrossBatchMemory`.

    Args:
        num_classes: C, for labels 0 ... C - 1. None: labels may be any integers; the classes are those of the batch (of
            all its ranks). They are found by sorting, which synchronizes with a GPU. C is part of MD's divisor k C^2
            (Eq. 10) and the number of rows of the class sums. None suits thousands of classes of which a batch contains
            some.
        attention: Eq. 7's w. None: 1/2 for every class. (C,) floating: one weight per class. An `nn.Module` that is an
            `AttentionMap`: it records each training step, and takes O(n C k d) time. A sample counts as predicted right
            if, of all class means, it correlates most with that of its own class; the means are moving averages over
            earlier steps. Weights and maps need `num_classes`; a map needs `embedding_size` too.
        embedding_size: d, or (k, d), for the class means that an attention map needs.
        between_target, mean_target: the target correlation of two classes. "simplex" is -1 / (C - 1), with the batch's
            C if `num_classes` is None. Targets other than -1 take O(C^2 k d) time in addition to the O(n k d) of -1.
        components, embedding_target, pairs, precision: as in `AdCorreLoss`. With k = 1, ED is 0.
        ignore_index, backend, validate, process_group, gradient_reduction: as in `AdCorreLoss`. Without `num_classes`
            the ranks of a group exchange their labels first.
        options: embedding_regularizer, embedding_reg_weight and collect_stats of pytorch-metric-learning's losses. With
            collect_stats=True each call stores its terms as floats in the attributes `fd`, `md` and `ed`, which
            synchronizes with a GPU; the library's record keepers log them.

    Raises:
        ValueError, TypeError: invalid settings.
    """

    settings = ("attention_weights",)
    attention_weights: Tensor | None

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        attention: Tensor | nn.Module | None = None,
        embedding_size: int | tuple[int, int] | None = None,
        components: Collection[str] | Mapping[str, float] = ("fd", "md", "ed"),
        between_target: checks.Target = -1,
        mean_target: checks.Target = -1,
        embedding_target: checks.Target = -1,
        pairs: Literal["class", "sample"] = "class",
        precision: Literal["highest", "high", "medium"] = "highest",
        ignore_index: int = -100,
        backend: str = "auto",
        validate: bool | None = None,
        process_group: ProcessGroup | Literal["world"] | None = None,
        gradient_reduction: Literal["mean", "sum"] = "mean",
        **options: Any,
    ) -> None:
        if unknown := options.keys() - {"embedding_regularizer", "embedding_reg_weight", "collect_stats"}:
            name, reason = min(unknown), ""
            if name in ("distance", "reducer"):
                reason = "; it always compares embeddings by correlation and returns one number per batch"
            raise TypeError(f"AdCorreMetricLoss: unexpected argument {name!r}{reason}")
        super().__init__(**options)
        if num_classes is not None:
            checks.check_positive_int("num_classes", num_classes)
        elif attention is not None:
            raise ValueError("attention: needs num_classes, since weights belong to fixed classes")
        self.num_classes = num_classes
        self.attention_map: Any = None
        self.class_means: ClassMeans | None = None
        if isinstance(attention, nn.Module):
            check_attention_map("attention", attention)
            if embedding_size is None:
                raise ValueError("attention: a map needs embedding_size, d or (k, d), for its class means")
            size = (1, embedding_size) if isinstance(embedding_size, int) else tuple(embedding_size)
            self.attention_map = attention
            self.class_means = ClassMeans(num_classes or 1, *size)
            attention = None
        if attention is not None:
            checks.check_attention(attention)
            if attention.shape[0] != num_classes:
                raise ValueError(f"attention: expected {num_classes} weights, one per class; got {len(attention)}")
        self.register_buffer("attention_weights", attention)
        self.components = checks.check_components(components)
        if not self.components:
            raise ValueError("components: expected at least one of fd, nfd, md and ed; got none")
        checks.check_backend(backend)
        checks.check_correlation_targets(
            num_classes or 2, between_target=between_target, mean_target=mean_target, embedding_target=embedding_target
        )
        self.between_target = between_target
        self.mean_target = mean_target
        self.embedding_target = embedding_target
        checks.check_pairs(pairs, precision)
        self.pairs = pairs
        self.precision = precision
        self.ignore_index = ignore_index
        self.backend = backend
        self.validate = validate
        distributed.check_group(process_group, gradient_reduction)
        if process_group is not None and backend == "reference":
            raise ValueError('backend="reference" does not support a process group; use "torch"')
        self.process_group = process_group
        self.gradient_reduction = gradient_reduction
        if self.collect_stats:
            records: Any = self
            records.add_to_recordable_attributes(list_of_names=list(RECORDED), is_stat=True)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Any = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss (), in float32 or float64; arguments and errors as in `compute_loss`."""
        checks.check_tensor("embeddings", embeddings)
        if labels is not None:
            checks.check_tensor("labels", labels)
        return super().forward(embeddings, labels, indices_tuple, ref_emb, ref_labels)

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: Any = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> dict[str, Any]:
        """Compute the loss, as called by pytorch-metric-learning's `forward`.

        Args:
            embeddings: (n, d), or (n, k, d). They need not be normalized.
            labels: (n,) integers.
            indices_tuple: None.
            ref_emb, ref_labels: None, or the embeddings and labels themselves.

        Raises:
            ValueError, TypeError, IndexError: as `adcorre_terms`, or for pairs other than all pairs of the batch.
        """
        if labels is None:
            raise ValueError("labels: expected (n,) integers, got None")
        if indices_tuple is not None:
            raise ValueError(
                "indices_tuple: expected None; the loss is computed from sums over classes and uses every pair of the "
                "batch. Remove the miner"
            )
        if ref_emb is not None and not _same(embeddings, labels, ref_emb, ref_labels):
            raise ValueError(
                "ref_emb: expected None or the embeddings themselves; the loss compares the samples of one batch with "
                'each other. For larger batches use adcorre.VirtualBatch, or process_group="world" over processes; '
                "CrossBatchMemory and DistributedLossWrapper(efficient=True) are not supported"
            )
        loss = self._loss(embeddings, labels.to(embeddings.device))
        return {"loss": {"losses": loss, "indices": None, "reduction_type": "already_reduced"}}

    def _loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        checks.check_embeddings(embeddings)
        targets = checks.check_targets(labels, embeddings.shape[0], embeddings.device, self.ignore_index, "labels")
        targets, num_classes, ignore_index = self._map_labels(targets)
        requested = {name: getattr(self, name) for name in Options._fields if hasattr(self, name)}
        options = resolve_options(embeddings, num_classes, **requested | {"ignore_index": ignore_index})
        if self.process_group is None:
            checks.check_labels(targets, num_classes, ignore_index, self.validate, "labels")
        x = three_dimensional(embeddings)
        values, factor = self._values(x, targets, num_classes, options)
        if self.collect_stats:
            for name in RECORDED:
                setattr(self, name, getattr(values, name).item())
        loss = torch.zeros_like(values.fd)
        for name, weight in term_weights(self.components).items():
            loss = loss + weight * getattr(values, name)
        # Averaging over ranks divides the gradient: multiply it, not the value.
        return loss if factor == 1 else loss.detach() + factor * (loss - loss.detach())

    def _map_labels(self, targets: Tensor) -> tuple[Tensor, int, int]:
        """Labels in [0, C), C, and their ignore_index."""
        if self.num_classes is not None:
            return targets, self.num_classes, self.ignore_index
        ignored = targets == self.ignore_index
        classes, group = targets[~ignored], self.process_group
        classes = classes.unique() if group is None else distributed.union_over_ranks(classes, group)
        mapped = torch.searchsorted(classes, targets).masked_fill(ignored, NO_CLASS)
        return mapped, max(1, classes.shape[0]), NO_CLASS

    def _values(self, x: Tensor, targets: Tensor, num_classes: int, options: Options) -> tuple[Values, int]:
        """The terms of the batch over all ranks, and the factor of their gradient."""
        means, group = self.class_means, self.process_group
        if means is None and group is None:
            return all_terms(x, targets, self._weights(x, num_classes), options), 1
        flat = class_sums(x, targets, num_classes, options)
        counts = targets.new_zeros(2, num_classes) if means is None else means.count(x, targets, self.ignore_index)
        sums = BatchSums(flat, counts, flat.new_zeros(2))
        if group is not None:
            sums = distributed.add_ranks(sums, group)
            if checks.validates_labels(targets, self.validate):
                check_ranks(sums.statistics, [targets], num_classes, options.ignore_index, "labels")
        attention = self._weights(x, num_classes) if means is None else self._count(means, sums)
        if group is None:
            return all_terms(x, targets, attention, options), 1
        between = None
        if self.pairs == "sample":
            between = distributed.gather_pairs(x, targets, attention, sums.statistics, options, group)
        factor = distributed.world_size(group) if self.gradient_reduction == "mean" else 1
        return terms_from_sums(x, targets, attention, sums.statistics, between, options), factor

    def _weights(self, x: Tensor, num_classes: int) -> Tensor:
        if self.attention_weights is not None:
            return fd_weights(self.attention_weights, self.components)
        return torch.full((num_classes,), 0.5, dtype=checks.STATISTICS_DTYPE[x.dtype], device=x.device)

    def _count(self, means: ClassMeans, sums: BatchSums) -> Tensor:
        """w of the attention map. It records the batch in training mode with gradients enabled."""
        if not self.attention_map.training:
            weights = self.attention_map.weights()
        elif not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "AdCorreMetricLoss: called within a backward pass, as by activation checkpointing; the attention map "
                "has changed since the first call. Keep the loss outside the checkpointed function"
            )
        elif torch.is_grad_enabled():
            self.attention_map.record(sums.predictions)
            weights = self.attention_map.weights()
            means.record(sums.statistics)
        else:
            weights = self.attention_map.weights(sums.predictions)
        return fd_weights(weights, self.components)

    def extra_repr(self) -> str:
        components: Any = self.components
        if set(components.values()) <= {1.0}:
            components = tuple(components)
        return f"num_classes={self.num_classes}, components={components}"


def _same(embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor | None) -> bool:
    """Whether the references are the batch itself. Synchronizes with a GPU if the labels are another tensor."""
    if ref_emb is not embeddings and (ref_emb.data_ptr(), ref_emb.shape) != (embeddings.data_ptr(), embeddings.shape):
        return False
    return ref_labels is None or ref_labels is labels or torch.equal(ref_labels.to(labels.device), labels)
