"""Lesson 13's operations around attention: linear layers, gelu, dropout. Layer norm has a file of its own.

linear     the product is matmul's (kernels/cuda/matmul.py), which adds bias and residual and finds gelu where
           it has a number of the result in a register anyway. Version 1 leaves gelu to a kernel of its own:
           matmul writes N K numbers, they are read again, and 2 N K written. Now only the 2 N K are.
dbias      by column_sums. On the way, where gelu was, dout *= slope: 2 N K numbers are read and N K written.
           In a kernel of its own it would be N K more, which column_sums reads.
dropout    N numbers are read, 2 N with a residual, and N written. Which numbers fell is not kept, as it is
           in the other rooms: to find a number's bits again takes less time than to read what they said.
           Backward is the same kernel.
"""
from kernels.cpu.compiled import check_shapes
from kernels.cuda.column_sums import ROWS, STRIP, add_strips, column_sums, sum_over_warps
from kernels.cuda.compiled import F1, F2, WARP, ZERO, F, U, blocks_for, cuda, kernel, u32
from kernels.cuda.layernorm import layernorm_backward, layernorm_forward
from kernels.cuda.matmul import gelu, matmul
from kernels.cuda.memory import empty, op

__all__ = ["column_sums", "dropout_backward", "dropout_forward", "layernorm_backward", "layernorm_forward",
           "linear_backward", "linear_forward", "linear_gelu_backward", "linear_gelu_forward"]

THREADS = 256  # of a block in which threads work alone


def as_rows(x):  # (..., C) -> (N, C)
    return x.reshape(-1, x.shape[-1])


def product(x, weight, bias=None, residual=None, slope=None):  # (..., C), (C, K) -> (..., K)
    """Not an operation of the table. ValueError for shapes that do not fit together."""
    K = weight.shape[-1]
    shape = *x.shape[:-1], K
    check_shapes((x.shape[-1], K), weight=weight)
    check_shapes((K,), bias=bias)
    check_shapes(shape, residual=residual)
    out = empty(shape)
    matmul(as_rows(x), weight, as_rows(out), bias, None if residual is None else as_rows(residual), slope)
    return out


@op
def linear_forward(x, weight, bias=None, residual=None):
    return product(x, weight, bias, residual), (x, weight)


@op
def linear_backward(dout, cache, dweight, dbias=None):
    x, weight = cache
    check_shapes((*x.shape[:-1], weight.shape[1]), dout=dout)
    check_shapes(weight.shape, dweight=dweight)
    check_shapes(dout.shape[-1:], dbias=dbias)
    if dbias is not None:
        column_sums(as_rows(dout), dbias)
    if dweight.transposed:  # the head's: (x^T @ dout)^T = dout^T @ x
        matmul(as_rows(dout).T, as_rows(x), dweight.T)
    else:
        matmul(as_rows(x).T, as_rows(dout), dweight)
    return product(dout, weight.T)


@op
def linear_gelu_forward(x, weight, bias):
    slope = empty((*x.shape[:-1], weight.shape[-1]))
    return product(x, weight, bias, slope=as_rows(slope)), (x, weight, slope)


def linear_gelu_forward_v1(x, weight, bias):
    check_shapes(weight.shape[-1:], bias=bias)
    slope = product(x, weight)
    out = empty(slope.shape)
    bias_gelu[blocks_for(out.size, THREADS), THREADS](as_rows(slope), bias, as_rows(out))
    return out, (x, weight, slope)


@op
def linear_gelu_backward(dout, cache, dweight, dbias):
    """dout is used up."""
    x, weight, slope = cache
    check_shapes(slope.shape, dout=dout)
    check_shapes(weight.shape, dweight=dweight)
    check_shapes(slope.shape[-1:], dbias=dbias)
    add_strips(scaled_column_sums, as_rows(dout), dbias, as_rows(slope))
    return linear_backward(dout, (x, weight), dweight)


@kernel(F2, F1, F2)
def bias_gelu(y, bias, out):  # (N, K), (K,) -> (N, K)
    """Write out = gelu(y + bias), and y becomes the slope there. Launch: N K threads in blocks of THREADS."""
    i, N, K = u32(cuda.grid(1)), u32(y.shape[0]), u32(y.shape[1])
    n, k = i // K, i % K
    if n < N:
        out[n, k], y[n, k] = gelu(y[n, k] + bias[k])


@kernel(F2, F2, F2)
def scaled_column_sums(dout, slope, sums):  # (N, K), (N, K) -> (S, K)
    """dout *= slope, and the sums over its strips of rows: for the rest see sum_columns_v2."""
    strip, k = u32(cuda.blockIdx.x), u32(cuda.blockIdx.y * WARP + cuda.threadIdx.x)
    warp = u32(cuda.threadIdx.y)
    N, K = u32(dout.shape[0]), u32(dout.shape[1])
    first = u32(strip * STRIP)
    total = ZERO
    if k < K:
        for n in range(first + warp, min(first + STRIP, N), ROWS):
            d = dout[n, k] * slope[n, k]
            dout[n, k] = d
            total += d
    total = sum_over_warps(total)
    if k < K and warp == 0:
        sums[strip, k] = total


@kernel(F1, U, F, U, F1, U, F1)
def drop(x, threshold, scale_up, seed, residual, add, out):  # (n,) -> (n,)
    """Write out[i] = x[i] * scale: scale is scale_up where bits >= threshold, else 0. If `add` is not 0, add
    residual[i]: only then is it to be read. bits is lesson 13's hash of (seed, place i), in uint32, modulo
    2^32 (^ is bitwise xor):

        bits = i * 0x9E3779B1 + seed
        bits = (bits ^ bits >> 16) * 0x85EBCA6B
        bits = (bits ^ bits >> 13) * 0xC2B2AE35
        bits =  bits ^ bits >> 16

    To Numba the product and the sum of two uint32 are uint64: u32() around each takes them back, modulo 2^32.
    threshold and seed are uint32, scale_up is a float32. Launch: n threads, in blocks of THREADS, the last of
    which may have some too many.
    """
    i = u32(cuda.grid(1))
    if i < x.size:
        bits = u32(u32(i * u32(0x9E3779B1)) + seed)
        bits = u32((bits ^ (bits >> u32(16))) * u32(0x85EBCA6B))
        bits = u32((bits ^ (bits >> u32(13))) * u32(0xC2B2AE35))
        bits = u32(bits ^ (bits >> u32(16)))
        kept = x[i] * (scale_up if bits >= threshold else ZERO)
        out[i] = kept + residual[i] if add else kept


def dropped(x, rate, seed, residual=None):
    out, add = empty(x.shape), residual is not None
    flat = [a.reshape(-1) for a in (x, residual if add else x, out)]
    drop[blocks_for(x.size, THREADS), THREADS](flat[0], int(rate * 2**32), 1 / (1 - rate),
                                               seed * 0x85EBCA6B % 2**32, flat[1], add, flat[2])
    return out


@op
def dropout_forward(x, rate, seed, residual=None):
    """cache is what finds the same numbers again: (shape, rate, seed)."""
    check_shapes(x.shape, residual=residual)
    return dropped(x, rate, seed, residual), (x.shape, rate, seed)


@op
def dropout_backward(dout, cache):
    shape, rate, seed = cache
    check_shapes(shape, dout=dout)
    return dropped(dout, rate, seed)
