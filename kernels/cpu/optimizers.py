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
def add_rows(grads, start, stop):
    """Chunks, so that a float32 sum stays short and its chunk in the L1 cache. Views that begin at 0 keep the
    loops vectorised: `for i in range(lo, hi): g[i]` would not be."""
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
def sgd_slice(p, g, m, lr, momentum, keep, scale):
    for i in range(p.size):
        m[i] = momentum * m[i] + scale * g[i]
        p[i] = keep * p[i] - lr * m[i]


def adamw(p, g, m, v, lr, beta1, beta2, eps, weight_decay, step, scale):
    check_shapes(p.shape, g=g, m=m, v=v)
    rate, inverse = f32(lr / (1 - beta1**step)), f32(1 / (1 - beta2**step))
    adamw_slice(p, g, m, v, rate, f32(beta1), f32(1 - beta1), f32(beta2), f32(1 - beta2), inverse, f32(eps),
                f32(1 - lr * weight_decay), f32(scale))


@kernel
def adamw_slice(p, g, m, v, rate, b1, a1, b2, a2, inverse, eps, keep, scale):
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
def nesterov(g, m, x, momentum, scale):
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
def polynomial(gram, square):  # square <- A I + B gram + C square
    for r in range(gram.shape[0]):
        gr, sr = gram[r], square[r]
        for i in range(gr.size):
            sr[i] = B * gr[i] + C * sr[i]
        sr[r] += A
