"""Plans of the launches: grids, buffer sizes and options, from shapes and the GPU's family. Nothing is autotuned.

Plans are cached: host time dominates at small batch sizes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from adcorre_kernels.gpu import gpus
from adcorre_kernels.gpu.cached_launch import KernelOptions

COUNTED_CLASSES = 32  # up to here counting orders the samples; beyond, a sort does
LOCAL_SAMPLES = 8192  # up to here, and so few classes, a program orders its own samples, of one class: one launch less
GATHERED_CLASSES = 256  # up to here the backward pass takes the samples as they lie and the tables out of the caches
SLOT_NUMBERS = 1 << 24  # up to 64 MiB of slots, a slot has a row for each sample of a step
SORT_PROGRAMS = 256  # programs that order all samples
SORT_TILE = 2048  # labels x classes that such a program ranks at a time
TERMS_TILE = 8192  # numbers of k embeddings x C classes x d entries that the program of the values can hold
GRAM_ROWS = 16  # rows of a tile of `gram_per_sample`
LABELS = 256  # that a program with one class looks at at a time
LOGITS_TILE = 2048  # numbers of samples x classes that a program over the logits holds
LOGITS_PROGRAMS = 256  # programs that sum over the logits


class SampleTile(NamedTuple):
    """How the streaming kernels cut a sample: with a warp per sample (BK = 0) in H tiles of W entries an embedding, BS
    samples at once; with a program per sample in tiles of BK embeddings x W entries; for matrix units (PK > 0) in tiles
    of 16 rows x W entries, PK rows a sample."""

    W: int
    BS: int
    BK: int
    warps: int
    PK: int = 0

    def options(self, aligned: bool) -> dict[str, Any]:
        """`aligned`: every row begins at a multiple of 16 bytes, known to the compiler, so that a lane has several
        neighbouring entries of a row. A lane with a single one must not fuse: its product would enter the first sum
        across lanes unrounded and the other lane's rounded, and sums that must agree would not, in the last bit.
        """
        tile = {"BD": self.W, "BK": self.BK} if self.BK else {"W": self.W, "BS": self.BS}
        if self.PK:
            tile["PK"] = self.PK
        return {**tile, "num_warps": self.warps, "enable_fp_fusion": aligned}


class SortPlan(NamedTuple):
    """Launches of `count_labels` and `place_samples`."""

    grid: tuple[int]
    share: int  # samples a program
    counting: KernelOptions
    placing: KernelOptions


class StatisticsPlan(NamedTuple):
    """Launches of `statistics`, their buffers' sizes and their arguments."""

    tile: SampleTile
    local: bool
    sort: SortPlan | None
    grid: tuple[int, int, int]  # chunks of samples, classes if each has programs of its own, blocks of embeddings
    chunk: int  # samples if local, else steps
    capacity: int  # steps of a sorted list
    scratch: int  # int32 numbers
    embeddings: int  # partial sums of ED
    embedding_chunk: int
    offset: int  # of the slots
    sums: int  # float32 numbers
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

    With a warp per sample a row of a tile lies within a warp, whose lanes load 16 bytes each. Matrix units take k from
    5 on: with fewer embeddings sums over the samples of a tile would cross lanes.
    """
    gram = settings.gram
    if gram and aligned and not pairs and 4 < k <= GRAM_ROWS and d >= 32:
        width, rows = gram.width, power_of_2(k)
        if rows * round_up(d, width) <= gram.sample_numbers:
            return SampleTile(width, GRAM_ROWS // rows, 0, 1, rows)
    width = min(max(16, power_of_2(d)), settings.max_width)
    samples = min(settings.sample_numbers // (k * ceil_div(d, width) * width), settings.row_numbers // width, 16)
    if samples >= 4 and k <= (8 if pairs else 16):
        return SampleTile(width, 1 << (samples.bit_length() - 1), 0, settings.warps)
    width = max(16, power_of_2(d))
    block = power_of_2(k)
    if block * width > settings.program_numbers:
        block = settings.program_numbers // 2 // width
    return SampleTile(width, 1, block, 4 if width * block <= settings.small_numbers else 8)


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
    processors: int,
) -> StatisticsPlan:
    settings = gpus.STREAMING[family, itemsize]
    tile = sample_tile(k, d, settings, embedding_target != -1.0, aligned)
    blocks = ceil_div(k, tile.BK) if tile.BK else 1
    counted = num_classes <= COUNTED_CLASSES
    local = counted and n <= LOCAL_SAMPLES
    slot = round_up(2 * k * (d + 1), 32)
    if tile.PK:
        assert settings.gram is not None
        per_processor = settings.gram.programs
    else:
        per_processor = settings.small_programs if tile.BK and tile.warps == 4 else settings.programs
    resident = per_processor * processors // blocks
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
    rows = 1 if tile.PK or slots * slot * tile.BS > SLOT_NUMBERS else tile.BS
    embedding_chunk = _chunk_of_samples(n, processors, 1, settings)
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
    processors: int,
) -> GradientPlan:
    settings = gpus.STREAMING[family, itemsize]
    tile = sample_tile(k, d, settings._replace(gram=None), embedding_target != -1.0, aligned)
    chunk = _chunk_of_samples(n, processors, tile.BS, settings)
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
    # Away from -1 a class meets every other, and registers hold one embedding at a time.
    embeddings = TERMS_TILE // (rows * columns) if between_target in (-1.0, None) and mean_target == -1.0 else 1
    tile = {"BK": max(1, min(power_of_2(k), embeddings)), "BC": rows, "BD": columns}
    targets = {"BETWEEN": between_target, "MEAN": mean_target, "EMBEDDING": embedding_target}
    weights = {"FD": 1.0, "MD": 1.0, "ED": 1.0, "NAIVE": False}
    options = {"num_warps": 8, "enable_fp_fusion": False}  # see `SampleTile.options`
    return KernelOptions(K=k, D=d, **tile, **targets, **weights, **options)


class LogitsPlan(NamedTuple):
    """Launches of the steps over the logits."""

    programs: int
    share: int  # samples a program
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


def _chunk_of_samples(n: int, processors: int, samples: int, settings: gpus.StreamingSettings) -> int:
    """Samples of a program that keeps nothing: some waves of programs, but not a launch per step of `samples`."""
    steps = n // (settings.gradient_programs * samples * processors)
    return samples * max(1, min(settings.gradient_steps, steps))


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    return -(-a // b) * b


def power_of_2(a: int) -> int:
    """The least power of two that is at least a."""
    return 1 << (a - 1).bit_length()
