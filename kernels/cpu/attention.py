"""Lesson 12's attention on a CPU: BLAS multiplies, one compiled pass each way does the rest.

softmax           reads and writes the scores (B, H, Tq, Tk) in place: weights, exactly 0 where masked
softmax_backward  reads weights and dweights (B, H, Tq, Tk); dweights become dscores in place

Heads are views of the packed arrays, which BLAS multiplies where they lie: nothing is copied. A causal square
is cut into stripes of STRIPE queries; keys to the right of a stripe are not multiplied, read or written.
"""
import math

import numpy as np

from kernels.cpu.compiled import exp, f32, kernel, largest

STRIPE = 32  # 16 and 64 are up to 10 % slower


def self_attention_forward(qkv, n_head, causal=True, lengths=None):  # (B, T, 3C) -> (B, T, C)
    return forward(*heads(qkv, n_head, 3), causal, lengths)


def self_attention_backward(dout, cache):  # (B, T, C) -> (B, T, 3C)
    B, T, C = dout.shape
    dqkv = np.empty((B, T, 3 * C), f32)
    backward(dout, cache, *heads(dqkv, cache[0].shape[1], 3))
    return dqkv


def cross_attention_forward(q, kv, n_head, causal=False, lengths=None):  # (B, Tq, C), (B, Tk, 2C) -> like q
    return forward(*heads(q, n_head, 1), *heads(kv, n_head, 2), causal, lengths)


def cross_attention_backward(dout, cache):  # (B, Tq, C) -> (B, Tq, C), (B, Tk, 2C)
    B, Tq, C = dout.shape
    n_head, Tk = cache[1].shape[1:3]
    dq, dkv = np.empty((B, Tq, C), f32), np.empty((B, Tk, 2 * C), f32)
    backward(dout, cache, *heads(dq, n_head, 1), *heads(dkv, n_head, 2))
    return dq, dkv


def heads(x, n_head, n):  # (B, T, n C) -> n views (B, H, T, D), as one array (n, B, H, T, D)
    """Take n arrays apart that are packed side by side, like q|k|v, and each of them into H heads:

        out[i, b, h, t, d] = x[b, t, (i H + h) D + d]               C = H D

    Views, whatever view x is itself: forward and backward write through them into the array of their caller.
    """
    B, T, nC = x.shape
    return x.reshape(B, T, n, n_head, nC // (n * n_head)).transpose(2, 0, 3, 1, 4)


def cut(Tq, stripe):  # -> [(now, past, future)], slices
    """For each stripe of positions: itself, all up to its end, all from its start on. With a causal mask its
    queries see no keys but those of the past, and its keys are seen by no queries but those of the future."""
    return [(slice(i, i + stripe), slice(0, i + stripe), slice(i, Tq)) for i in range(0, Tq, stripe)]


def forward(q, k, v, causal, lengths):  # (B, H, Tq, D), (B, H, Tk, D) twice -> (B, Tq, C)
    """out = softmax(q k^T / sqrt(D)) v in float32, a position's heads side by side, as heads() reads them.

    A causal square (Tq = Tk) is cut into stripes of STRIPE positions; anything else is one stripe as long as
    the longer side. np.matmul writes q k^T into an empty (B, H, Tq, Tk): a stripe's queries, `now`, by the
    keys of `past` (see cut). softmax makes weights of them in place. np.matmul writes weights v, again now by
    past, through the heads of an empty out: np.matmul(a, b, out=view) needs no array for its result.

    The cache is (q, k, v, weights, stripe). ValueError if a length is not in 1 .. Tk, or causal and Tq > Tk.
    """
    (B, H, Tq, D), Tk = q.shape, k.shape[2]
    lengths = np.full(B, Tk) if lengths is None else np.ascontiguousarray(lengths, np.int64)
    if lengths.min() < 1 or lengths.max() > Tk:  # the kernel checks no index
        raise ValueError(f"lengths {lengths.tolist()} do not fit {Tk} keys: each must be from 1 to {Tk}")
    if causal and Tq > Tk:
        raise ValueError(f"{Tq} queries cannot be the last of {Tk} positions: pass at least {Tq} keys")
    stripe = STRIPE if causal and Tq == Tk else max(Tq, Tk)
    parts = cut(Tq, stripe)
    weights, out, kT = np.empty((B, H, Tq, Tk), f32), np.empty((B, Tq, H * D), f32), k.swapaxes(2, 3)
    out_heads, = heads(out, H, 1)
    for now, past, _ in parts:
        np.matmul(q[:, :, now], kT[..., past], out=weights[:, :, now, past])
    softmax(weights, lengths, causal, stripe, 1 / math.sqrt(D))
    for now, past, _ in parts:
        np.matmul(weights[:, :, now, past], v[:, :, past], out=out_heads[:, :, now])
    return out, (q, k, v, weights, stripe)


def backward(dout, cache, dq, dk, dv):  # (B, Tq, C); writes the three (B, H, T, D)
    """Every number of dq, dk and dv is written, whatever was there; they may be views. dout is only read.

        dweights = dout v^T        dq = dscores k           for a stripe's queries (now) and keys of past
        dv = weights^T dout        dk = dscores^T q         for a stripe's keys (now) and queries of future

    dweights stand in one empty (B, H, Tq, Tk), where softmax_backward makes dscores of them. What no matmul
    wrote there is garbage, and past and future leave it out. 1 / sqrt(D) is the scale of forward.
    """
    q, k, v, weights, stripe = cache
    H, Tq, D = q.shape[1:]
    parts, dscores = cut(Tq, stripe), np.empty(weights.shape, f32)
    dout, = heads(dout, H, 1)
    vT, weightsT, dscoresT = v.swapaxes(2, 3), weights.swapaxes(2, 3), dscores.swapaxes(2, 3)
    for now, past, future in parts:
        np.matmul(dout[:, :, now], vT[..., past], out=dscores[:, :, now, past])
        np.matmul(weightsT[:, :, now, future], dout[:, :, future], out=dv[:, :, now])
    softmax_backward(weights, dscores, stripe, 1 / math.sqrt(D))
    for now, past, future in parts:
        np.matmul(dscores[:, :, now, past], k[:, :, past], out=dq[:, :, now])
        np.matmul(dscoresT[:, :, now, future], q[:, :, future], out=dk[:, :, now])


@kernel
def softmax(scores, lengths, causal, stripe, scale):  # (B, H, Tq, Tk) float32, (B,) int64; in place
    """scores become weights: over the first n keys exp((score - m) scale) / their sum, behind them exactly 0.

        n = min(lengths[b], Tk - Tq + t + 1 if causal else Tk)              what query t may see
        m = the largest of the n scores                                     scale is positive

    Query t is in stripe number t // stripe. Only the keys up to the end of that stripe (or Tk, if that comes
    first) have scores: the rest of the row was never written, and is neither read nor written here.
    """
    B, H, Tq, Tk = scores.shape
    scale, zero = f32(scale), f32(0)
    for b in range(B):
        for h in range(H):
            for t in range(Tq):
                row = scores[b, h, t][:min((t // stripe + 1) * stripe, Tk)]
                n = min(lengths[b], Tk - Tq + t + 1 if causal else Tk)
                m, total = largest(row[:n]), zero
                for j in range(n):
                    e = exp((row[j] - m) * scale)
                    row[j] = e
                    total += e
                r = f32(1) / total
                for j in range(n):
                    row[j] *= r
                row[n:] = zero


@kernel
def softmax_backward(weights, dweights, stripe, scale):  # (B, H, Tq, Tk) float32 twice; in place
    """dweights become dscores; weights are only read. In a row, over the keys up to the end of its stripe:

        dscore_j = weight_j (dweight_j - sum_k weight_k dweight_k) scale

    Keys behind it are neither read nor written, as in softmax. No mask: a masked weight is 0.
    """
    B, H, Tq, Tk = weights.shape
    scale, zero = f32(scale), f32(0)
    for b in range(B):
        for h in range(H):
            for t in range(Tq):
                n = min((t // stripe + 1) * stripe, Tk)
                row, drow, mean = weights[b, h, t], dweights[b, h, t], zero
                for j in range(n):
                    mean += row[j] * drow[j]
                for j in range(n):  # a masked weight is 0, and so its score's gradient
                    drow[j] = row[j] * (drow[j] - mean) * scale
