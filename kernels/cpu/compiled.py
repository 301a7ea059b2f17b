"""How the kernels of this room are compiled, and the two functions that LLVM cannot vectorise by itself.

Kernels are serial and release the GIL: the caller runs one Python thread per core, each on its share of
the batch (lesson 18). They are compiled on first use and kept in __pycache__.
"""
import numpy as np
from numba import njit

f32, i32 = np.float32, np.int32

# The compiler may reorder sums and use multiply-add. It may not assume away NaN and infinity ('nnan' and
# 'ninf' are left out): a loss that explodes must be seen, and a masked score is -inf.
FASTMATH = {"reassoc", "contract", "arcp", "nsz"}
kernel = njit(nogil=True, cache=True, error_model="numpy", fastmath=FASTMATH)
inlined = njit(nogil=True, error_model="numpy", fastmath=FASTMATH)



def check_shapes(shape, **arrays):
    """ValueError unless all have this shape: a kernel checks no index and would write into other arrays."""
    for name, array in arrays.items():
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}, but it must be {shape}")


LOG2E, LN2 = f32(1.4426950408889634), f32(0.6931471805599453)
E2, E3, E4 = f32(0.5), f32(0.16666665459), f32(4.1665795894e-2)
E5, E6 = f32(8.3334519073e-3), f32(1.3981999507e-3)


@inlined
def exp(x):  # float32 -> float32
    """x = n ln 2 + r, with a whole number n = floor(x log2(e) + 1/2), and so |r| <= ln(2) / 2:

        exp(x) = 2^n exp(r)             exp(r) = 1 + r + E2 r^2 + E3 r^3 + E4 r^4 + E5 r^5 + E6 r^6

    2^n needs no power: it is the float32 whose bits are those of the int32 (n + 127) << 23, for in bits 23 to
    30 a float32 keeps its exponent + 127. i32(...).view(f32) reads an int's bits as those of a float; i32 is
    needed, since a compiled << or ^ makes an int64 of an int32.

    Below -87 and above 88 the nearest of the two is taken, so exp(-inf) is 2e-38 and not 0; NaN stays NaN.
    np.floor stays in float32; math.floor would return an int64 and stop vectorisation. The relative error is
    3e-7 near 0 and 5e-7 elsewhere: x - n ln 2 is rounded once. Plain Python rounds it twice: 1e-5.
    """
    x = min(max(x, f32(-87)), f32(88))
    n = np.floor(x * LOG2E + f32(0.5))
    r = x - n * LN2
    p = f32(1) + r * (f32(1) + r * (E2 + r * (E3 + r * (E4 + r * (E5 + r * E6)))))
    return p * i32((i32(n) + i32(127)) << i32(23)).view(f32)


@inlined
def largest(x):  # (n,) -> float32
    """The largest of x, n >= 1. LLVM vectorises no float32 maximum, so the bits are compared as int32:

        ordered = bits                      if bits >= 0: positive floats are in the right order
        ordered = bits ^ 0x7fffffff         if not: all but the sign is flipped, or -2 would be above -1

    bits >> 31 is 0 or -1, all ones: with it there is no `if`. The largest is flipped back in the same way,
    and read as a float by i32(...).view(f32), as in exp.

    A NaN counts as above +inf or below -inf, by its sign bit: look for NaN in what is computed from x, not in
    the result.
    """
    bits, m = x.view(i32), i32(-2**31)
    for j in range(bits.size):
        ordered = bits[j] ^ ((bits[j] >> i32(31)) & i32(0x7FFFFFFF))
        if ordered > m:  # noqa: PLR1730 (max is as fast, and slower to compile)
            m = ordered
    return i32(m ^ ((m >> i32(31)) & i32(0x7FFFFFFF))).view(f32)
