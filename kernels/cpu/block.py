"""Lesson 13's operations, compiled. np.matmul does the matrix products, kernels the passes between them.

Each kernel reads and writes every array once (layernorm's read x again while the row is in the L1 cache).
All arrays are float32 rows (N, C) in C order. Constants are ONE, ZERO, f32(0.5); a count divides as f32(C). A
bare 1 or 0.5, or x / C with an int64, makes Numba compute in float64, and so half as many numbers at once.
"""
import math

import numpy as np

from kernels.cpu.compiled import check_shapes, exp, f32, kernel

u32 = np.uint32
ONE, ZERO = f32(1), f32(0)
GELU_2K, GELU_A, GELU_3A = f32(2 * math.sqrt(2 / math.pi)), f32(0.044715), f32(3 * 0.044715)


def as_rows(x):  # (..., C) -> (N, C) in C order: a view, or a copy of what is not contiguous
    return np.ascontiguousarray(x).reshape(-1, x.shape[-1])


def matmul(x, weight):  # (..., C), (C, K) -> (..., K)
    """One two-dimensional product: np.matmul of (B, T, C) would make B small ones."""
    out = np.empty((*x.shape[:-1], weight.shape[1]), np.float32)
    np.matmul(as_rows(x), weight, out=as_rows(out))
    return out


def linear_forward(x, weight, bias=None, residual=None):
    out = matmul(x, weight)
    check_shapes(out.shape[-1:], bias=bias)
    check_shapes(out.shape, residual=residual)
    if residual is not None and bias is not None:
        add_bias_residual(as_rows(out), bias, as_rows(residual))
    elif bias is not None:
        add_bias(as_rows(out), bias)
    elif residual is not None:
        out += residual
    return out, (x, weight)


def linear_backward(dout, cache, dweight, dbias=None):
    x, weight = cache
    check_shapes(dout.shape[-1:], dbias=dbias)
    np.matmul(as_rows(x).T, as_rows(dout), out=dweight)
    if dbias is not None:
        column_sums(as_rows(dout), dbias)
    return matmul(dout, weight.T)


def linear_gelu_forward(x, weight, bias):
    slope = matmul(x, weight)
    check_shapes(slope.shape[-1:], bias=bias)
    out = np.empty_like(slope)
    bias_gelu(as_rows(slope), bias, as_rows(out))
    return out, (x, weight, slope)


def linear_gelu_backward(dout, cache, dweight, dbias):
    """dout is used up."""
    x, weight, slope = cache
    check_shapes(slope.shape, dout=dout)
    check_shapes(slope.shape[-1:], dbias=dbias)
    rows = as_rows(dout)
    scale_and_column_sums(rows, as_rows(slope), dbias)
    return linear_backward(rows.reshape(dout.shape), (x, weight), dweight)


def layernorm_forward(x, weight, bias, eps=1e-5):
    check_shapes(x.shape[-1:], weight=weight, bias=bias)
    out, rows = np.empty(x.shape, np.float32), as_rows(x)
    mean_rstd = np.empty((len(rows), 2), np.float32)
    normalize_rows(rows, weight, bias, f32(eps), as_rows(out), mean_rstd)
    return out, (x, mean_rstd, weight)


def layernorm_backward(dout, cache, dweight, dbias, dresidual=None):
    """dresidual is used up: the result is added into it."""
    x, mean_rstd, weight = cache
    check_shapes(x.shape, dout=dout, dresidual=dresidual)
    check_shapes(weight.shape, dweight=dweight, dbias=dbias)
    rows = np.empty((len(mean_rstd), len(weight)), np.float32) if dresidual is None else as_rows(dresidual)
    normalize_rows_backward(as_rows(dout), as_rows(x), mean_rstd, weight, rows, dweight, dbias,
                            dresidual is not None)
    return rows.reshape(x.shape)


def dropout_forward(x, rate, seed, residual=None):
    out, scale = np.empty(x.shape, np.float32), np.empty(x.shape, np.float32)
    drop(as_rows(x).reshape(-1), u32(int(rate * 2**32)), f32(1 / (1 - rate)), u32(seed * 0x85EBCA6B % 2**32),
         out.reshape(-1), scale.reshape(-1))
    if residual is not None:
        out += residual
    return out, scale


def dropout_backward(dout, cache):
    return dout * cache


@kernel
def add_bias(out, bias):
    N, K = out.shape
    for n in range(N):
        for k in range(K):
            out[n, k] += bias[k]


@kernel
def add_bias_residual(out, bias, residual):
    N, K = out.shape
    for n in range(N):
        for k in range(K):
            out[n, k] += bias[k] + residual[n, k]


@kernel
def column_sums(dout, sums):  # (N, K) -> (K,)
    """Write sums[k] = the sum of dout[n, k] over n: a bias's gradient. What was in sums before is gone.

    The inner loop runs along a row: numbers that lie side by side are added several at a time.
    """
    N, K = dout.shape
    sums[:] = ZERO
    for n in range(N):
        for k in range(K):
            sums[k] += dout[n, k]


@kernel
def bias_gelu(y, bias, out):  # (N, K), (K,) -> (N, K)
    """Write out = gelu(y + bias), and y becomes the slope there. 0.5 (1 + tanh(u)) is the sigmoid of 2u, one
    exp in place of a tanh. With x = y + bias:

        s = 1 / (1 + exp(-2u)),   2u = GELU_2K x (1 + GELU_A x^2)
        out = x s,   slope = s + x s (1 - s) d2u/dx,   d2u/dx = GELU_2K (1 + GELU_3A x^2)

    Each 1 is ONE: with a bare one Numba computes in float64.
    """
    N, K = y.shape
    for n in range(N):
        for k in range(K):
            x = y[n, k] + bias[k]
            s = ONE / (ONE + exp(-GELU_2K * x * (ONE + GELU_A * x * x)))
            out[n, k] = x * s
            y[n, k] = s + x * s * (ONE - s) * GELU_2K * (ONE + GELU_3A * x * x)


@kernel
def scale_and_column_sums(dout, slope, sums):
    """dout *= slope, and the sums over its rows."""
    N, K = dout.shape
    sums[:] = ZERO
    for n in range(N):
        for k in range(K):
            d = dout[n, k] * slope[n, k]
            dout[n, k] = d
            sums[k] += d


@kernel
def normalize_rows(x, weight, bias, eps, out, mean_rstd):  # (N, C), (C,), (C,) -> (N, C), (N, 2)
    """Write out = (x - mean) * rstd * weight + bias for each row, and its mean and rstd into mean_rstd[n].

        mean = sum(x) / C,   rstd = 1 / sqrt(sum((x - mean)^2) / C + eps)

    The mean comes first, in a pass of its own: sum(x^2) / C - mean^2 would be the same in one pass, but
    float32 has no digits left for it where the mean is large beside the spread. Write ONE for 1, and f32(C)
    for the int64 C: float32 / int64 is float64 to Numba.
    """
    N, C = x.shape
    for n in range(N):
        total = ZERO
        for c in range(C):
            total += x[n, c]
        mean = total / f32(C)
        square = ZERO
        for c in range(C):
            square += (x[n, c] - mean) * (x[n, c] - mean)
        rstd = ONE / np.sqrt(square / f32(C) + eps)
        for c in range(C):
            out[n, c] = (x[n, c] - mean) * rstd * weight[c] + bias[c]
        mean_rstd[n, 0] = mean
        mean_rstd[n, 1] = rstd


@kernel
def normalize_rows_backward(dout, x, mean_rstd, weight, dx, dweight, dbias, add):  # (N, C), ... -> (N, C)
    """Write dweight and dbias (C,), and dx; with `add`, add dx to what is there. mean_rstd (N, 2) has each
    row's mean and rstd. With xhat = (x - mean) * rstd and d = dout * weight:

        dweight = sum(dout * xhat),   dbias = sum(dout)             over all rows
        dx = rstd * (d - mean(d) - xhat * mean(d * xhat))           the means along each row

    The first pass over a row finds its two means, the second writes dx.
    """
    N, C = x.shape
    dweight[:] = ZERO
    dbias[:] = ZERO
    for n in range(N):
        mean, rstd = mean_rstd[n, 0], mean_rstd[n, 1]
        d_sum, d_xhat = ZERO, ZERO
        for c in range(C):
            xhat = (x[n, c] - mean) * rstd
            d = dout[n, c] * weight[c]
            d_sum += d
            d_xhat += d * xhat
            dweight[c] += dout[n, c] * xhat
            dbias[c] += dout[n, c]
        d_sum /= f32(C)
        d_xhat /= f32(C)
        if not add:
            dx[n, :] = ZERO
        for c in range(C):
            dx[n, c] += rstd * (dout[n, c] * weight[c] - d_sum - (x[n, c] - mean) * rstd * d_xhat)


@kernel
def drop(x, threshold, scale_up, seed, out, scale):  # (n,) -> (n,), (n,)
    """Write scale[i] = scale_up where bits >= threshold, else 0, and out = x * scale.

    bits is lesson 13's hash of (seed, place i), in uint32, everything modulo 2^32 (^ is bitwise xor):

        bits = i * 0x9E3779B1 + seed
        bits = (bits ^ bits >> 16) * 0x85EBCA6B
        bits = (bits ^ bits >> 13) * 0xC2B2AE35
        bits =  bits ^ bits >> 16

    To Numba the product and the sum of two uint32 are uint64: u32() around each takes them back, modulo 2^32.
    i is an int64, threshold and seed are uint32, scale_up is a float32.
    """
    for i in range(x.size):
        bits = u32(u32(u32(i) * u32(0x9E3779B1)) + seed)
        bits = u32((bits ^ (bits >> u32(16))) * u32(0x85EBCA6B))
        bits = u32((bits ^ (bits >> u32(13))) * u32(0xC2B2AE35))
        bits = u32(bits ^ (bits >> u32(16)))
        scale[i] = scale_up if bits >= threshold else ZERO
        out[i] = x[i] * scale[i]
