"""Plans of the launches: grids, buffer sizes and options, from shapes and the GPU's family. Nothing is autotuned.

Plans are cached: host time dominates at small batch sizes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from adcorre_kernels.gpu import gpus
from adcorre_kernels.gpu.cached_launch import KernelOptions

COUNTED_CLASSES = 32  # up to this number of classes a counting sort orders the samples, above `torch.sort`
LOCAL_SAMPLES = 8192  # up to this n, and COUNTED_CLASSES, each program sorts its own samples of one class: no launch
GATHERED_CLASSES = 256  # up to this number of classes the backward pass reads samples unsorted, with tables in cache
SLOT_ELEMENTS = 1 << 24  # up to this total (64 MiB), a slot has a row for each sample of a step
SORT_PROGRAMS = 256  # programs that order all samples
SORT_TILE = 2048  # labels x classes that such a program ranks at once
TERMS_TILE = 8192  # embeddings x classes x entries in a tile of the terms' kernel
GRAM_ROWS = 16  # rows of a tile of `gram_per_sample`
LABELS = 256  # labels that a program with one class reads at once
LOGITS_TILE = 2048  # samples x classes in a tile of logits
LOGITS_PROGRAMS = 256  # programs that sum over the logits


class SampleTile(NamedTuple):
    """The tiles of a sample in the streaming kernels. Warp per sample (BK = 0): H tiles of W entries per embedding, BS
    samples at once. Program per sample: tiles of BK embeddings x W entries. Matrix units (PK > 0): tiles of 16 rows x W
    entries, PK rows per sample."""

    W: int
    BS: int
    BK: int
    warps: int
    PK: int = 0

    def options(self, aligned: bool) -> dict[str, Any]:
        """Constexprs and compiler options. aligned: the compiler knows that every row begins at a multiple of 16 bytes,
        so that a lane has several adjacent entries of a row. If a lane has a single entry, fusion must be off: in the
        first sum across lanes one product would be rounded and the other not, and equal sums would differ in the last
        bit.
        """
        tile = {"BD": self.W, "BK": self.BK} if self.BK else {"W": self.W, "BS": self.BS}
        if self.PK:
            tile["PK"] = self.PK
        return {**tile, "num_warps": self.warps, "enable_fp_fusion": aligned}


class SortPlan(NamedTuple):
    """Launches of `count_labels` and `place_samples`."""

    grid: tuple[int]
    share: int  # samples per program
    counting: KernelOptions
    placing: KernelOptions


class StatisticsPlan(NamedTuple):
    """Launches of `statistics`, their buffers' sizes and their arguments."""

    tile: SampleTile
    local: bool
    sort: SortPlan | None
    grid: tuple[int, int, int]  # chunks of samples, classes if each has its own programs, blocks of embeddings
    chunk: int  # samples if local, else steps
    capacity: int  # steps of a sorted list
    scratch: int  # int32 elements
    embeddings: int  # partial sums of ED
    embedding_chunk: int
    offset: int  # offset of the slots
    sums: int  # float32 elements
    flat: int
    streaming: KernelOptions
    embedding: KernelOptions
    reduce_grid: tuple[int, int]
    reduce: KernelOptions


class GradientPlan(NamedTuple):
    """The launch of `gradient`."""

    warp_per_sample: bool
    sorted: bool
    chunk: int
    grid: tuple[int]
    options: KernelOptions


def sample_tile(k: int, d: int, settings: gpus.StreamingSettings, pairs: bool, aligned: bool) -> SampleTile:
    """The tile for k embeddings of d entries; `pairs` if ED's target is not -1.

    With a warp per sample, a row of a tile belongs to one warp, whose lanes load 16 bytes each. Matrix units are used
    for k >= 5: with fewer embeddings, sums over the samples of a tile would cross lanes.
    """
    gram = settings.gram
    if gram and aligned and not pairs and 4 < k <= GRAM_ROWS and d >= 32:
        width, rows = gram.width, power_of_2(k)
        if rows * round_up(d, width) <= gram.sample_elements:
            return SampleTile(width, GRAM_ROWS // rows, 0, 1, rows)
    width = min(max(16, power_of_2(d)), settings.max_width)
    samples = min(settings.sample_elements // (k * ceil_div(d, width) * width), settings.row_elements // width, 16)
    if samples >= 4 and k <= (8 if pairs else 16):
        return SampleTile(width, 1 << (samples.bit_length() - 1), 0, settings.warps)
    width = max(16, power_of_2(d))
    block = power_of_2(k)
    if block * width > settings.program_elements:
        block = settings.program_elements // 2 // width
    return SampleTile(width, 1, block, 4 if width * block <= settings.small_elements else 8)


@lru_cache(maxsize=1024)
def plan_statistics(
    n: int,
    k: int,
    d: int,
    num_classes: int,
    embedding_target: float,
    itemsize: int,
    aligned: bool,
    family: str,
    multiprocessors: int,
) -> StatisticsPlan:
    settings = gpus.STREAMING[family, itemsize]
    tile = sample_tile(k, d, settings, embedding_target != -1.0, aligned)
    blocks = ceil_div(k, tile.BK) if tile.BK else 1
    counted = num_classes <= COUNTED_CLASSES
    local = counted and n <= LOCAL_SAMPLES
    slot = round_up(2 * k * (d + 1), 32)
    if tile.PK:
        assert settings.gram is not None
        per_multiprocessor = settings.gram.programs
    else:
        per_multiprocessor = settings.small_programs if tile.BK and tile.warps == 4 else settings.programs
    resident = per_multiprocessor * multiprocessors // blocks
    sort = None
    if local:
        groups = num_classes
        programs = max(1, min(resident // num_classes, ceil_div(n, 16)))
        chunk = max(1, ceil_div(n, programs))
        capacity = ceil_div(chunk, tile.BS)
        scratch = programs * groups * blocks * (capacity * tile.BS + 2)
        slots = programs * num_classes
    else:
        groups = 1
        programs = max(1, min(resident, ceil_div(n, 32)))
        capacity = n // tile.BS + min(num_classes, n) + 1
        chunk = ceil_div(capacity, programs)
        scratch = capacity * (tile.BS + 1) + 2 * num_classes + 1
        slots = programs + num_classes
        if counted:
            sort = _plan_sort(n, num_classes, tile.BS)
            scratch += sort.grid[0] * (num_classes + 1)
    rows = 1 if tile.PK or slots * slot * tile.BS > SLOT_ELEMENTS else tile.BS
    embedding_chunk = _chunk_of_samples(n, multiprocessors, 1, settings)
    embeddings = programs * groups if blocks == 1 else ceil_div(n, embedding_chunk)
    offset = round_up(embeddings, 32)
    constants = {"K": k, "D": d}
    streaming: dict[str, Any] = {"SLOT": slot, "LOCAL": local, "BL": LABELS}
    if tile.PK and settings.gram is not None:
        streaming["STAGES"] = settings.gram.stages
    else:
        streaming["TARGET"] = embedding_target
    if not tile.BK and not tile.PK:
        streaming["ROWS"] = rows
        streaming["PREFETCH"] = settings.look_ahead
    columns = 128 if counted else 512
    reduce = {
        "SLOT": slot,
        "BS": tile.BS,
        "BP": 32 if counted else 4,
        "BJ": columns,
        "BK": power_of_2(k),
        "ROWS": rows,
        "LOCAL": local,
        "BC": 1,
        "BL": 1,
        "COUNT": False,
        "RECORD": False,
    }
    return StatisticsPlan(
        tile=tile,
        local=local,
        sort=sort,
        grid=(programs, groups, blocks),
        chunk=chunk,
        capacity=capacity,
        scratch=scratch,
        embeddings=embeddings,
        embedding_chunk=embedding_chunk,
        offset=offset,
        sums=offset + slots * slot * rows,
        flat=num_classes * k * (2 * d + 1) + 2 * num_classes + 1,
        streaming=KernelOptions(**constants, **streaming, **tile.options(aligned)),
        embedding=KernelOptions(**constants, TARGET=embedding_target, **tile.options(aligned)),
        reduce_grid=(num_classes, ceil_div(2 * k * d + k, columns)),
        reduce=KernelOptions(**constants, **reduce, num_warps=4, enable_fp_fusion=True),
    )


def _plan_sort(n: int, num_classes: int, step: int) -> SortPlan:
    classes = power_of_2(max(8, num_classes))
    labels = SORT_TILE // classes
    programs = max(1, min(SORT_PROGRAMS, ceil_div(n, labels)))
    share = round_up(ceil_div(n, programs), labels)
    programs = max(1, ceil_div(n, share))
    tile = {"BC": classes, "BL": labels, "BS": step, "num_warps": 4}
    return SortPlan((programs,), share, KernelOptions(**tile), KernelOptions(**tile, BP=power_of_2(programs)))


@lru_cache(maxsize=1024)
def plan_gradient(
    n: int,
    k: int,
    d: int,
    num_classes: int,
    embedding_target: float,
    itemsize: int,
    aligned: bool,
    family: str,
    multiprocessors: int,
) -> GradientPlan:
    settings = gpus.STREAMING[family, itemsize]
    tile = sample_tile(k, d, settings._replace(gram=None), embedding_target != -1.0, aligned)
    chunk = _chunk_of_samples(n, multiprocessors, tile.BS, settings)
    by_class = num_classes > GATHERED_CLASSES
    options = KernelOptions(K=k, D=d, TARGET=embedding_target, SORTED=by_class, **tile.options(aligned))
    if not tile.BK:
        options["PREFETCH"] = settings.look_ahead
    return GradientPlan(not tile.BK, by_class, chunk, (ceil_div(n, chunk),), options)


@lru_cache(maxsize=1024)
def plan_terms(
    k: int, d: int, num_classes: int, between_target: float | None, mean_target: float, embedding_target: float
) -> KernelOptions:
    rows = power_of_2(max(8, num_classes))
    columns = min(max(16, power_of_2(d)), 4096 // rows)
    # At targets other than -1 each class is compared with every other: registers hold one embedding at a time.
    embeddings = TERMS_TILE // (rows * columns) if between_target in (-1.0, None) and mean_target == -1.0 else 1
    tile = {"BK": max(1, min(power_of_2(k), embeddings)), "BC": rows, "BD": columns}
    targets = {"BETWEEN": between_target, "MEAN": mean_target, "EMBEDDING": embedding_target}
    weights = {"FD": 1.0, "MD": 1.0, "ED": 1.0, "NAIVE": False}
    options = {"num_warps": 8, "enable_fp_fusion": False}  # see `SampleTile.options`
    return KernelOptions(K=k, D=d, **tile, **targets, **weights, **options)


class LogitsPlan(NamedTuple):
    """Launches of the steps over the logits."""

    programs: int
    share: int  # samples per program
    tiles: int  # programs of the gradient
    sums: KernelOptions
    reduce: KernelOptions
    gradient: KernelOptions


@lru_cache(maxsize=1024)
def plan_logits(n: int, num_classes: int, label_smoothing: float, double: bool) -> LogitsPlan:
    classes = power_of_2(max(8, num_classes))
    rows = LOGITS_TILE // classes
    programs = max(1, min(LOGITS_PROGRAMS, ceil_div(n, rows)))
    share = round_up(ceil_div(n, programs), rows)
    constants = {"BN": rows, "BC": classes, "SMOOTHING": label_smoothing, "DOUBLE": double}
    options = {"num_warps": 4, "enable_fp_fusion": False}  # see `SampleTile.options`
    reduce = {"BC": classes, "BP": max(4, LOGITS_TILE // 2 // classes)}
    return LogitsPlan(
        programs=max(1, ceil_div(n, share)) if share else 1,
        share=share,
        tiles=ceil_div(n, rows),
        sums=KernelOptions(**constants, **options),
        reduce=KernelOptions(**reduce, **options),
        gradient=KernelOptions(**constants, **options),
    )


def _chunk_of_samples(n: int, multiprocessors: int, samples: int, settings: gpus.StreamingSettings) -> int:
    """Samples per program for programs without state between steps, for a few waves of programs."""
    steps = n // (settings.gradient_programs * samples * multiprocessors)
    return samples * max(1, min(settings.gradient_steps, steps))


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    return -(-a // b) * b


def power_of_2(a: int) -> int:
    """The least power of two that is at least a."""
    return 1 << (a - 1).bit_length()
