"""How a problem is cut up: grids, buffers and launch settings, from shapes alone. Fixed, none is searched for.

Plans are remembered: at small batches the host's time is all there is.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch

from adcorre_kernels.gpu.start import Constants

COUNTED_CLASSES = 32  # up to here counting orders the samples; beyond, a sort does
LOCAL_SAMPLES = 8192  # up to here, and so few classes, a program orders its own samples, of one class: one launch less
GATHERED_CLASSES = 256  # up to here the backward pass takes the samples as they lie and the tables out of the caches
SLOT_NUMBERS = 1 << 24  # up to 64 MiB of slots, a slot has a row for each sample of a step
ORDERING = 256  # programs that order all samples
ORDER_TILE = 2048  # labels x classes that such a program ranks at a time
NARROW_TILE = 8192  # numbers of BS samples that four warps can hold
WIDE_TILE = 8192  # numbers of a sample that one program can hold
TERMS_TILE = 8192  # numbers of k embeddings x C classes x d entries that the program of the values can hold
LABELS = 256  # that a program with one class looks at at a time


class Shape(NamedTuple):
    """How the streaming kernels see a sample: `narrow`, in H tiles of W entries an embedding, BS samples at once; or
    `wide` (BK > 0), in tiles of BK embeddings x W entries."""

    W: int
    BS: int
    BK: int
    warps: int

    def options(self, aligned: bool) -> dict[str, Any]:
        """`aligned`: every row begins at a multiple of 16 bytes, known to the compiler, so that a lane has several
        neighbouring entries of a row. A lane with a single one must not fuse: its product would enter the first sum
        across lanes unrounded and the other lane's rounded, and sums that must agree would not, in the last bit.
        """
        tile = {"BD": self.W, "BK": self.BK} if self.BK else {"W": self.W, "BS": self.BS}
        return {**tile, "num_warps": self.warps, "enable_fp_fusion": aligned}


class OrderPlan(NamedTuple):
    """Launches of `count_labels` and `place_samples`."""

    grid: tuple[int]
    share: int  # samples a program
    counting: Constants
    placing: Constants


class StatisticsPlan(NamedTuple):
    """Launches of `statistics`, their buffers' sizes and their arguments."""

    shape: Shape
    local: bool
    order: OrderPlan | None
    grid: tuple[int, int, int]  # chunks of samples, classes if each has programs of its own, blocks of embeddings
    chunk: int  # samples if local, else steps
    capacity: int  # steps of an order
    scratch: int  # int32 numbers
    embeddings: int  # partial sums of ED
    embedding_chunk: int
    offset: int  # of the slots
    sums: int  # float32 numbers
    flat: int
    streaming: Constants
    embedding: Constants
    reduce_grid: tuple[int, int]
    reduce: Constants


class GradientPlan(NamedTuple):
    """The launch of `gradient`."""

    narrow: bool
    ordered: bool
    chunk: int
    grid: tuple[int]
    options: Constants


@lru_cache(maxsize=64)
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; an H100's where there is none, so that its grids are what tests run."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def shape_of(k: int, d: int, itemsize: int, pairs: bool) -> Shape:
    """The kernel for k embeddings of d entries; `pairs` if ED's target is not -1.

    Narrow: a row of a tile lies within a warp, whose lanes load 16 bytes each.
    """
    width = min(max(16, power_of_2(d)), 128 if itemsize == 4 else 256)
    samples = min(NARROW_TILE // (k * ceil_div(d, width) * width), (512 if itemsize == 4 else 1024) // width, 16)
    if samples >= 4 and k <= (8 if pairs else 16):
        return Shape(width, 1 << (samples.bit_length() - 1), 0, 4)
    width = max(16, power_of_2(d))
    block = power_of_2(k)
    if block * width > WIDE_TILE:
        block = WIDE_TILE // 2 // width
    return Shape(width, 1, block, 4 if width * block <= 2048 else 8)


@lru_cache(maxsize=1024)
def of_statistics(
    n: int, k: int, d: int, num_classes: int, itemsize: int, embedding_target: float, aligned: bool, processors: int
) -> StatisticsPlan:
    shape = shape_of(k, d, itemsize, embedding_target != -1.0)
    blocks = ceil_div(k, shape.BK) if shape.BK else 1
    counted = num_classes <= COUNTED_CLASSES
    local = counted and n <= LOCAL_SAMPLES
    slot = round_up(2 * k * (d + 1), 32)
    resident = processors * (4 if shape.BK and shape.warps == 4 else 2) // blocks
    order = None
    if local:
        groups = num_classes
        programs = max(1, min(resident // num_classes, ceil_div(n, 16)))
        chunk = max(1, ceil_div(n, programs))
        capacity = ceil_div(chunk, shape.BS)
        scratch = programs * groups * blocks * (capacity * shape.BS + 2)
        slots = programs * num_classes
    else:
        groups = 1
        programs = max(1, min(resident, ceil_div(n, 32)))
        capacity = n // shape.BS + min(num_classes, n) + 1
        chunk = ceil_div(capacity, programs)
        scratch = capacity * (shape.BS + 1) + 2 * num_classes + 1
        slots = programs + num_classes
        if counted:
            order = _of_order(n, num_classes, shape.BS)
            scratch += order.grid[0] * (num_classes + 1)
    rows = shape.BS if slots * slot * shape.BS <= SLOT_NUMBERS else 1
    embedding_chunk = _chunk_of_samples(n, processors, 1)
    embeddings = programs * groups if blocks == 1 else ceil_div(n, embedding_chunk)
    offset = round_up(embeddings, 32)
    constants = {"K": k, "D": d}
    streaming = {"SLOT": slot, "LOCAL": local, "BL": LABELS}
    if not shape.BK:
        streaming["ROWS"] = rows
        streaming["PREFETCH"] = itemsize == 2  # float32 has more bytes in flight and no register to spare
    columns = 128 if counted else 512
    reduce = {
        "SLOT": slot,
        "BS": shape.BS,
        "BP": 32 if counted else 4,
        "BJ": columns,
        "BK": power_of_2(k),
        "ROWS": rows,
        "LOCAL": local,
    }
    return StatisticsPlan(
        shape=shape,
        local=local,
        order=order,
        grid=(programs, groups, blocks),
        chunk=chunk,
        capacity=capacity,
        scratch=scratch,
        embeddings=embeddings,
        embedding_chunk=embedding_chunk,
        offset=offset,
        sums=offset + slots * slot * rows,
        flat=num_classes * k * (2 * d + 1) + 2 * num_classes + 1,
        streaming=Constants(**constants, TARGET=embedding_target, **streaming, **shape.options(aligned)),
        embedding=Constants(**constants, TARGET=embedding_target, **shape.options(aligned)),
        reduce_grid=(num_classes, ceil_div(2 * k * d + k, columns)),
        reduce=Constants(**constants, **reduce, num_warps=4, enable_fp_fusion=True),
    )


def _of_order(n: int, num_classes: int, step: int) -> OrderPlan:
    classes = power_of_2(max(8, num_classes))
    labels = ORDER_TILE // classes
    programs = max(1, min(ORDERING, ceil_div(n, labels)))
    share = round_up(ceil_div(n, programs), labels)
    programs = max(1, ceil_div(n, share))
    tile = {"BC": classes, "BL": labels, "BS": step, "num_warps": 4}
    return OrderPlan((programs,), share, Constants(**tile), Constants(**tile, BP=power_of_2(programs)))


@lru_cache(maxsize=1024)
def of_gradient(
    n: int, k: int, d: int, num_classes: int, itemsize: int, embedding_target: float, aligned: bool, processors: int
) -> GradientPlan:
    shape = shape_of(k, d, itemsize, embedding_target != -1.0)
    chunk = _chunk_of_samples(n, processors, shape.BS)
    ordered = num_classes > GATHERED_CLASSES
    options = Constants(K=k, D=d, TARGET=embedding_target, ORDERED=ordered, **shape.options(aligned))
    if not shape.BK:
        options["PREFETCH"] = itemsize == 2
    return GradientPlan(not shape.BK, ordered, chunk, (ceil_div(n, chunk),), options)


@lru_cache(maxsize=1024)
def of_terms(
    k: int, d: int, num_classes: int, between_target: float | None, mean_target: float, embedding_target: float
) -> Constants:
    rows = power_of_2(max(8, num_classes))
    columns = min(max(16, power_of_2(d)), 4096 // rows)
    # Away from -1 a class meets every other, and registers hold one embedding at a time.
    embeddings = TERMS_TILE // (rows * columns) if between_target in (-1.0, None) and mean_target == -1.0 else 1
    tile = {"BK": max(1, min(power_of_2(k), embeddings)), "BC": rows, "BD": columns}
    targets = {"BETWEEN": between_target, "MEAN": mean_target, "EMBEDDING": embedding_target}
    return Constants(K=k, D=d, **tile, **targets, num_warps=8, enable_fp_fusion=False)  # see `Shape.options`


def _chunk_of_samples(n: int, processors: int, samples: int) -> int:
    """Samples of a program that keeps nothing: some waves of programs, but not a launch per step of `samples`."""
    return samples * max(1, min(16, n // (32 * samples * processors)))


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    return -(-a // b) * b


def power_of_2(a: int) -> int:
    """The least power of two that is at least a."""
    return 1 << (a - 1).bit_length()
