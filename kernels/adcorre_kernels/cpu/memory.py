"""Device code shared by the CPU kernels: rows at raw addresses, casts, and half precision as bits."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_name
from numba import carray, njit, types
from numba.extending import intrinsic

# Contraction and reassociation: sums run in vector lanes. Never nnan or ninf: NaN and infinity must come through.
SUMS = {"forceinline": True, "fastmath": {"contract", "reassoc", "nsz", "arcp"}, "error_model": "numpy"}
EXACT = {"forceinline": True, "error_model": "numpy"}

FLOAT16, BFLOAT16, FLOAT32, FLOAT64 = range(4)


@intrinsic
def _pointer(typing, address, like):
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like)(address, like), generate


@intrinsic
def cast(typing, value, like):
    """`value` as a number of `like`'s type; Numba takes float32 with an integer to float64."""

    def generate(context, builder, signature, arguments):
        return context.cast(builder, arguments[0], signature.args[0], signature.return_type)

    return like(value, like), generate


@intrinsic
def bitcast(typing, value, like):
    """The bits of `value` as a number of `like`'s type, which has the same size."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return like(value, like), generate


@intrinsic
def _prefetch(typing, address):
    def generate(context, builder, signature, arguments):
        pointer = ir.IntType(8).as_pointer()
        number = ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [pointer], ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        )
        hints = [ir.Constant(number, hint) for hint in (0, 3, 1)]  # to be read, soon again, data
        builder.call(function, [builder.inttoptr(arguments[0], pointer), *hints])
        return context.get_dummy_value()

    return types.void(address), generate


@njit(**EXACT)
def prefetch(address, size):
    """Prefetch memory that is read soon: the hardware cannot predict the next row."""
    for offset in range(0, size, 64):
        _prefetch(address + offset)


@intrinsic
def widest_vectors(typing):
    """Lets the compiler use 512-bit vectors in the function that calls this; LLVM stops at 256 on Intel's CPUs.

    Except on the first three with AVX-512, whose clock falls.
    """

    def generate(context, builder, signature, arguments):
        if get_host_cpu_name() not in ("skylake-avx512", "cascadelake", "cooperlake"):
            # The parent's `add` knows no attribute that has a value.
            set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def size_of(typing, like):
    """Bytes of a number."""

    def generate(context, builder, signature, arguments):
        size = context.get_abi_sizeof(context.get_value_type(signature.args[0]))
        return context.get_constant(types.int64, size)

    return types.int64(like), generate


@njit(**EXACT)
def view(address, size, like):
    """The `size` numbers of `like`'s type at an address. Nothing keeps the memory alive."""
    return carray(_pointer(address, like), (size,))


@njit(**SUMS)
def dot(a, b):
    """The sum of products in float64."""
    widest_vectors()
    total = 0.0
    for j in range(a.shape[0]):
        total += np.float64(a[j]) * np.float64(b[j])
    return total


@njit(**SUMS)
def add_scaled(row, factor, total):
    """total += factor * row."""
    widest_vectors()
    for j in range(row.shape[0]):
        total[j] += factor * row[j]


@njit(**EXACT)
def takes_part(label, num_classes, ignore_index):
    return 0 <= label < num_classes and label != ignore_index


@njit(**EXACT)
def fill(row, value):
    """Compiles much faster than `row[:] = value`."""
    for j in range(row.shape[0]):
        row[j] = value


@njit(**EXACT)
def load(address, dtype, size, buffer):
    """A row of any dtype in float64: the row itself if it is float64, else converted into `buffer`."""
    if dtype == FLOAT64:
        return view(address, size, 0.0)
    row = view(buffer, size, 0.0)
    if dtype == FLOAT32:
        single = view(address, size, np.float32(0))
        for j in range(size):
            row[j] = single[j]
    else:
        widen(view(address, size, np.uint16(0)), dtype, row)
    return row


@njit(**EXACT)
def widen(half, dtype, row):
    if dtype == BFLOAT16:
        for j in range(half.shape[0]):
            row[j] = bitcast(np.uint32(np.uint32(half[j]) << np.uint32(16)), np.float32(0))
    else:
        for j in range(half.shape[0]):
            row[j] = _from_float16(np.uint32(half[j]))


@njit(**EXACT)
def _from_float16(half):
    magnitude = np.uint32((half & np.uint32(0x7FFF)) << np.uint32(13))
    exponent = magnitude & np.uint32(0x0F800000)
    normal = np.uint32(magnitude + np.uint32(0x38000000))
    # A subnormal number is moved next to 2^-14, which is then subtracted: exact, and no float32 subnormal on the way.
    small = bitcast(np.uint32(normal + np.uint32(0x00800000)), np.float32(0)) - bitcast(
        np.uint32(0x38800000), np.float32(0)
    )
    special = np.uint32(normal + np.uint32(0x38000000))  # infinity and NaN
    bits = special if exponent == np.uint32(0x0F800000) else normal
    bits = bitcast(small, np.uint32(0)) if exponent == np.uint32(0) else bits
    return bitcast(np.uint32(bits | np.uint32((half & np.uint32(0x8000)) << np.uint32(16))), np.float32(0))


@njit(**EXACT)
def store(row, address, dtype):
    """Write a row's numbers in any dtype, rounded to nearest, ties to even."""
    size = row.shape[0]
    if dtype == FLOAT64:
        double = view(address, size, np.float64(0))
        for j in range(size):
            double[j] = row[j]
    elif dtype == FLOAT32:
        single = view(address, size, np.float32(0))
        for j in range(size):
            single[j] = row[j]
    else:
        half = view(address, size, np.uint16(0))
        if dtype == BFLOAT16:
            for j in range(size):
                half[j] = _to_bfloat16(bitcast(np.float32(row[j]), np.uint32(0)))
        else:
            for j in range(size):
                half[j] = _to_float16(bitcast(np.float32(row[j]), np.uint32(0)))


@njit(**EXACT)
def _to_bfloat16(bits):
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = np.uint32(bits + np.uint32(0x7FFF) + odd)
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.uint16((np.uint32(bits | np.uint32(0x00400000)) if is_nan else rounded) >> np.uint32(16))


@njit(**EXACT)
def _to_float16(bits):
    sign = bits & np.uint32(0x80000000)
    magnitude = np.uint32(bits ^ sign)
    odd = (magnitude >> np.uint32(13)) & np.uint32(1)
    normal = np.uint32(magnitude + np.uint32(0xC8000FFF) + odd) >> np.uint32(13)
    half = np.float32(0.5)  # its last bit is float16's smallest subnormal number: the addition rounds there
    small = np.uint32(bitcast(np.float32(bitcast(magnitude, half) + half), np.uint32(0)) - np.uint32(0x3F000000))
    large = np.uint32(0x7E00) if magnitude > np.uint32(0x7F800000) else np.uint32(0x7C00)
    result = small if magnitude < np.uint32(0x38800000) else normal
    result = large if magnitude >= np.uint32(0x47800000) else result
    return np.uint16(result | (sign >> np.uint32(16)))
