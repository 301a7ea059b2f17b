"""Lesson 10's optimizers, compiled: every number of a slice is read and written once.

add_rows     reads grads, writes their sum into row 0; returns its sum of squares
sgd_slice    reads p, g, m; writes p, m
adamw_slice  reads p, g, m, v; writes p, m, v
nesterov     reads g, m; writes m and the direction x; returns x's sum of squares
polynomial   reads gram, overwrites square (which holds gram squared)
"""
import math

import numpy as np

from kernels.cpu.compiled import check_shapes, f32, kernel

CHUNK = 4096
A, B, C = f32(3.4445), f32(-4.775), f32(2.0315)


def gradient_norm_squared(grads, start, stop):  # (R, n) -> float
    return add_rows(grads, start, stop)


@kernel
def add_rows(grads, start, stop):  # (R, n) -> float
    """Between start and stop: grads[0] <- the sum of all R rows; return its sum of squares. Rows 1.. are only
    read, and nothing outside the slice is touched.

    In chunks of CHUNK numbers, the last one shorter: a chunk of grads[0] gets its R - 1 additions and its sum
    of squares while it is in the L1 cache. The float32 sum of a chunk stays short; the sum over chunks is
    float64. Views that begin at 0 (g = grads[0, lo:hi]) keep the loops vectorised: `for i in range(lo, hi):
    grads[0, i]` would not be.
    """
    total = 0.0
    for lo in range(start, stop, CHUNK):
        hi = min(lo + CHUNK, stop)
        g, part = grads[0, lo:hi], f32(0)
        for r in range(1, grads.shape[0]):
            other = grads[r, lo:hi]
            for i in range(g.size):
                g[i] += other[i]
        for i in range(g.size):
            part += g[i] * g[i]
        total += part
    return total


def sgd(p, g, m, lr, momentum, weight_decay, scale):
    check_shapes(p.shape, g=g, m=m)
    sgd_slice(p, g, m, f32(lr), f32(momentum), f32(1 - lr * weight_decay), f32(scale))


@kernel
def sgd_slice(p, g, m, lr, momentum, keep, scale):  # (n,), (n,), (n,); the rest float32
    """One loop over i, in place; g is only read. keep is 1 - lr * weight_decay.

        m <- momentum * m + scale * g
        p <- keep * p - lr * m, with the new m
    """
    for i in range(p.size):
        m[i] = momentum * m[i] + scale * g[i]
        p[i] = keep * p[i] - lr * m[i]


def adamw(p, g, m, v, lr, beta1, beta2, eps, weight_decay, step, scale):
    check_shapes(p.shape, g=g, m=m, v=v)
    rate, inverse = f32(lr / (1 - beta1**step)), f32(1 / (1 - beta2**step))
    adamw_slice(p, g, m, v, rate, f32(beta1), f32(1 - beta1), f32(beta2), f32(1 - beta2), inverse, f32(eps),
                f32(1 - lr * weight_decay), f32(scale))


@kernel
def adamw_slice(p, g, m, v, rate, b1, a1, b2, a2, inverse, eps, keep, scale):  # (n,) four times; float32
    """One loop over i, in place; g is only read. g' = scale * g.

        m <- b1 * m + a1 * g'         b1 = beta1, a1 = 1 - beta1
        v <- b2 * v + a2 * g'^2       b2 = beta2, a2 = 1 - beta2
        p <- keep * p - rate * m / (sqrt(v * inverse) + eps), with the new m and v

    Adam's corrections are the same for all numbers, so adamw has worked them out: rate is lr / (1 - beta1^t)
    and inverse is 1 / (1 - beta2^t). keep is 1 - lr * weight_decay. Use a1 and a2 as they are given: 1 - b1
    is rounded differently.
    """
    for i in range(p.size):
        gi = g[i] * scale
        mi = b1 * m[i] + a1 * gi
        vi = b2 * v[i] + a2 * gi * gi
        m[i], v[i] = mi, vi
        p[i] = keep * p[i] - rate * mi / (math.sqrt(vi * inverse) + eps)


def muon(p, g, m, lr, momentum, weight_decay, scale):  # (n_in, n_out) each
    check_shapes(p.shape, g=g, m=m)
    x = np.empty_like(p)
    norm = math.sqrt(nesterov(g, m, x, f32(momentum), f32(scale)))
    x *= f32(1 / (norm + 1e-7))
    x = newton_schulz(x)
    x *= f32(lr * math.sqrt(max(1, p.shape[1] / p.shape[0])))
    p *= f32(1 - lr * weight_decay)
    p -= x


@kernel
def nesterov(g, m, x, momentum, scale):  # (n, k), (n, k), (n, k) -> float
    """What muon does before Newton-Schulz, in one pass over the numbers; g' = scale * g, which is not stored.

        m <- m + (1 - momentum) * (g' - m)
        x <- g' + momentum * (m - g'), with the new m
        return the sum of x^2: float32 within a row, float64 over the rows

    g is only read; what was in x is overwritten.
    """
    total = 0.0
    for r in range(g.shape[0]):
        gr, mr, xr, part = g[r], m[r], x[r], f32(0)
        for i in range(gr.size):
            gi = gr[i] * scale
            mi = mr[i] + (f32(1) - momentum) * (gi - mr[i])
            xi = gi + momentum * (mi - gi)
            mr[i], xr[i] = mi, xi
            part += xi * xi
        total += part
    return total


def newton_schulz(x):  # (n, k) with norm 1 -> (n, k); x is used up
    """Five rounds of X <- P X, where P = a I + b G + c G^2 and G = X X^T (tall: X <- X P, G = X^T X).

    P and G are small symmetric squares, and they commute. So several rounds can be done on the squares alone:
    collect Q <- P Q, let G <- P G P, and multiply X once by Q at the end. For a matrix at least twice as long
    as wide this takes 1.3 times less than five long products. All five at once would take 1.4 times less, but
    G loses the smallest singular values to float32's rounding: errors of 1e-3 in place of 1e-4. So 3 + 2.

    NumPy sees that G @ G.T is symmetric and computes half of it.
    """
    tall, small, long = x.shape[0] > x.shape[1], min(x.shape), max(x.shape)
    gram, p, q, spare = (np.empty((small, small), x.dtype) for _ in range(4))
    y = np.empty_like(x)
    for rounds in (3, 2) if long >= 2 * small else (1, 1, 1, 1, 1):
        np.matmul(x.T, x, out=gram) if tall else np.matmul(x, x.T, out=gram)
        for k in range(rounds):
            np.matmul(gram, gram.T, out=p)
            polynomial(gram, p)
            if k + 1 < rounds:
                np.matmul(p, gram, out=spare)
                np.matmul(spare, p, out=gram)
            if k == 0:
                p, q = q, p
            else:
                np.matmul(p, q, out=spare)
                q, spare = spare, q
        np.matmul(x, q, out=y) if tall else np.matmul(q, x, out=y)
        x, y = y, x
    return x


@kernel
def polynomial(gram, square):  # (n, n), (n, n)
    """square <- A * I + B * gram + C * square, with the constants A, B, C above; gram is only read. square
    holds gram @ gram, and I is the identity: A is added on the diagonal."""
    for r in range(gram.shape[0]):
        gr, sr = gram[r], square[r]
        for i in range(gr.size):
            sr[i] = B * gr[i] + C * sr[i]
        sr[r] += A
