"""Device code shared by the streaming kernels: one tile of embedding vectors, centred and normalized."""

import triton
import triton.language as tl
from triton import knobs

# Launch arguments that must not select a compiled variant: they change from batch to batch.
DO_NOT_SPECIALIZE = ["n", "chunk", "ignore_index", "C", "capacity"]
_INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def centre(tiles, D: tl.constexpr, W: tl.constexpr):
    """R vectors in tiles (R, W) side by side, zero beyond D -> centred tiles, 1 / |x - mean| (R,), |x| (R,).

    1 / |x - mean| is 0 for a constant vector (|x - mean| <= 32 eps |x|) and NaN where the length overflowed. A squared
    length below the least normal number counts as 0: `rsqrt` would flush it to zero and return infinity.
    """
    total = tiles[0].to(tl.float32)
    for h in tl.static_range(1, len(tiles)):
        total += tiles[h].to(tl.float32)
    mean = tl.sum(total, 1) * (1.0 / D)
    centred = ()
    for h in tl.static_range(len(tiles)):
        tile = tiles[h].to(tl.float32) - mean[:, None]
        if (h + 1) * W > D:
            tile = tl.where((h * W + tl.arange(0, W) < D)[None, :], tile, 0.0)
        if h == 0:
            squares = tile * tile
        else:
            squares += tile * tile
        centred = centred + (tile,)
    squared = tl.sum(squares, 1)
    inverse, length = inverse_length(squared, mean, D)
    return centred, inverse, length


@triton.jit
def inverse_length(squared, mean, D: tl.constexpr):
    """1 / |x - mean| and |x| of vectors with squared = |x - mean|^2; 0 and NaN as described in `centre`."""
    squared_x = squared + mean * mean * D
    constant = squared <= tl.maximum(squared_x * 1.4551915228366852e-11, 1.1754943508222875e-38)  # (32 eps)^2
    inverse = tl.where(constant, 0.0, tl.rsqrt(squared))
    inverse = tl.where(squared == float("inf"), float("nan"), inverse)
    return inverse, tl.sqrt(squared_x)


@triton.jit
def dot(a, b, c):
    """c + a b by matrix units."""
    if _INTERPRETED:  # the interpreter multiplies the bits of bfloat16
        return tl.dot(a.to(tl.float32), b.to(tl.float32), c)
    else:
        return tl.dot(a, b, c)


@triton.jit
def zeros(count: tl.constexpr, R: tl.constexpr, W: tl.constexpr):
    tiles = ()
    for _ in tl.static_range(count):
        tiles = tiles + (tl.zeros((R, W), tl.float32),)
    return tiles


@triton.jit
def load_scalar(pointer):
    """The float32 value at a pointer; 0 if it is None."""
    value = tl.full((), 0.0, tl.float32)
    if pointer is not None:
        value = tl.load(pointer).to(tl.float32)
    return value


@triton.jit
def table_pointers(feature_ptr, mean_ptr, scale_ptr, C, KD: tl.constexpr):
    """Pointers to H and to the scale; after G if they are None."""
    if mean_ptr is None:
        mean_ptr = feature_ptr + C.to(tl.int64) * KD
        scale_ptr = mean_ptr + C.to(tl.int64) * KD
    return mean_ptr, scale_ptr


@triton.jit
def sign(x):
    """-1, 0 or 1 as `torch.sign`, but 0 for NaN."""
    return tl.where(x > 0, 1.0, 0.0) - tl.where(x < 0, 1.0, 0.0)


@triton.jit
def labels_of(targets_ptr, index, valid, ignore_index, C):
    """Labels as int32, -1 for an ignored sample; and whether a label is bad."""
    label = tl.load(targets_ptr + index, mask=valid, other=0).to(tl.int64)
    in_range = (label >= 0) & (label < C)
    ignored = label == ignore_index
    takes_part = valid & in_range & (ignored == 0)
    bad = valid & (in_range == 0) & (ignored == 0)
    return tl.where(takes_part, label, -1).to(tl.int32), bad
