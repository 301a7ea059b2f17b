"""Lesson 13: block. What stands around attention, and why does a deep stack train at all?

    x = x + attention(layernorm(x) @ W_qkv + b_qkv) @ W_o + b_o      look at other positions
    x = x + gelu(layernorm(x) @ W_1 + b_1) @ W_2 + b_2               think about each position by itself

GPT-2 calls them attn.c_attn (C, 3C), attn.c_proj (C, C), mlp.c_fc (C, 4C) and mlp.c_proj (4C, C).
x is the residual stream: each half reads it through a layer norm ("pre-norm": Radford et al. 2019, section
2.3) and adds what it found. The gradient flows back along the plus signs unchanged, whatever the depth.

B batch, T positions, C channels, K outputs of a linear layer; ... stands for (B, T), or for (N,) positions.
`make lesson 13` sends numbers through 48 layers and a gradient back, without these parts and with them.
"""
import math

import numpy as np


def linear_forward(x, weight, bias=None, residual=None):  # (..., C), (C, K), (K,), (..., K) -> (..., K)
    """residual + x @ weight + bias; what is None is left out. The weight is stored (in, out), as GPT-2 does.
    cache is (x, weight). No argument is changed."""
    out = x @ weight
    if bias is not None:
        out += bias
    if residual is not None:
        out += residual
    return out, (x, weight)


def linear_backward(dout, cache, dweight, dbias=None):  # (..., K) -> (..., C)
    """Write dweight = x^T @ dout (C, K) and, if there is a bias, dbias = sum of dout (K,), each over all
    axes but the last: (B, T) or (N,). Return dx = dout @ weight^T. dout itself, the residual's gradient as
    well, is not changed. float32 in, float32 out."""
    x, weight = cache
    rows = dout.reshape(-1, dout.shape[-1])
    dweight[:] = x.reshape(-1, x.shape[-1]).T @ rows
    if dbias is not None:
        dbias[:] = rows.sum(axis=0)
    return dout @ weight.T


def linear_gelu_forward(x, weight, bias):  # (..., C), (C, K), (K,) -> (..., K)
    """gelu(x @ weight + bias), in GPT-2's tanh form (Hendrycks & Gimpel 2016, section 2):

        gelu(y) = 0.5 y (1 + tanh(u)),   u = sqrt(2/pi) (y + 0.044715 y^3)
        slope = dgelu/dy = 0.5 (1 + tanh(u)) + 0.5 y (1 - tanh(u)^2) du/dy

    cache is (x, weight, slope): kept in place of y, it makes backward one product. No argument is changed.
    float32 in, float32 out: math.sqrt of a number, not np.sqrt, which gives a float64."""
    k = math.sqrt(2 / math.pi)
    y = x @ weight + bias
    tanh = np.tanh(k * (y + 0.044715 * y * y * y))
    slope = 0.5 * (1 + tanh) + 0.5 * y * (1 - tanh * tanh) * k * (1 + 3 * 0.044715 * y * y)
    return 0.5 * y * (1 + tanh), (x, weight, slope)


def linear_gelu_backward(dout, cache, dweight, dbias):  # (..., K) -> (..., C)
    """Through gelu, then as linear_backward. dout is used up."""
    x, weight, slope = cache
    return linear_backward(dout * slope, (x, weight), dweight, dbias)


def layernorm_forward(x, weight, bias, eps=1e-5):  # (..., C), (C,), (C,) -> (..., C)
    """(x - mean) / sqrt(var + eps) * weight + bias, over the last axis (Ba, Kiros & Hinton 2016, eq. 4).
    var is the mean of (x - mean)^2. cache is (xhat, rstd, weight): xhat (..., C) is the normalised x, and
    rstd = 1 / sqrt(var + eps) is (..., 1). x is not changed.

    >>> layernorm_forward(np.array([[1.0, 3.0]]), np.ones(2), np.zeros(2))[0].round(3)
    array([[-1.,  1.]])
    """
    mean = x.mean(axis=-1, keepdims=True)
    rstd = 1 / np.sqrt(x.var(axis=-1, keepdims=True) + eps)
    xhat = (x - mean) * rstd
    return xhat * weight + bias, (xhat, rstd, weight)


def layernorm_backward(dout, cache, dweight, dbias, dresidual=None):  # (..., C) -> (..., C)
    """Write dweight and dbias (C,), the sums of dout * xhat and of dout over all axes but the last, (B, T) or
    (N,); return dx, plus dresidual (..., C) if given: what arrives along the residual path. dout is not
    changed. x reaches the output along three paths: directly, through the mean, through the variance. With
    d = dout * weight, each of the last two takes a mean over C away. float32 in, float32 out:

        dx = rstd * (d - mean(d) - xhat * mean(d * xhat)) + dresidual     (dresidual is used up)
    """
    xhat, rstd, weight = cache
    rows = tuple(range(dout.ndim - 1))  # every axis but the last shares weight and bias
    dweight[:] = (dout * xhat).sum(axis=rows)
    dbias[:] = dout.sum(axis=rows)
    d = dout * weight
    dx = rstd * (d - d.mean(axis=-1, keepdims=True) - xhat * (d * xhat).mean(axis=-1, keepdims=True))
    return dx if dresidual is None else dx + dresidual


def dropout_forward(x, rate, seed, residual=None):  # (...) -> (...)
    """residual + x * scale. scale is 0 for a share `rate` of the numbers, 1 / (1 - rate) for the others:
    Srivastava et al. 2014, section 4; divided here, so that a model in use needs no change. A number falls if
    its bits are less than rate * 2^32, rounded down. bits, in the order of x's rows, is a hash of (seed,
    place): the same in every room and in a resumed run. 0 <= rate < 1; seed whole. cache is scale, with x's
    shape and dtype, whether float32 or float64. x and residual are not changed."""
    bits = np.arange(x.size, dtype=np.uint32) * np.uint32(0x9E3779B1)
    bits += np.uint32(seed * 0x85EBCA6B % 2**32)
    for shift, factor in (16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1):  # MurmurHash3's last step
        bits = (bits ^ bits >> np.uint32(shift)) * np.uint32(factor)
    keep = (bits >= int(rate * 2**32)).reshape(x.shape)
    scale = keep.astype(x.dtype) / (1 - rate)
    out = x * scale
    return out if residual is None else out + residual, scale


def dropout_backward(dout, cache):  # (...) -> (...)
    """What was dropped gets no gradient, what was scaled gets it scaled. The residual's is dout itself."""
    return dout * cache


def branch_forward(ops, x, h, weight, bias, rate, seed):  # residual x (B, T, C), h (B, T, K) -> (B, T, C)
    """The end of each half: x + dropout(h @ weight + bias)."""
    out, linear = ops.linear_forward(h, weight, bias, residual=None if rate else x)
    out, dropout = ops.dropout_forward(out, rate, seed, residual=x) if rate else (out, None)
    return out, (linear, dropout)


def branch_backward(ops, dout, cache, dweight, dbias):  # (B, T, C) -> dh (B, T, K)
    linear, dropout = cache
    dout = dout if dropout is None else ops.dropout_backward(dout, dropout)
    return ops.linear_backward(dout, linear, dweight, dbias)


def look_forward(ops, x, p, attention, dropout=0.0, seed=0):  # (B, T, C) -> (B, T, C)
    """The first half: x + dropout(attention(layernorm(x) @ W_qkv + b_qkv) @ W_o + b_o). p["ln_1"],
    p["attn.c_attn"], p["attn.c_proj"] are (weight, bias) each; attention(qkv (B, T, 3C)) -> (out (B, T, C),
    cache) is causal or not, as the model wants. Operations are called as ops.layernorm_forward and so on, for
    kernels may stand in for those above. cache: the four steps' caches, in order. x is not changed."""
    h, norm = ops.layernorm_forward(x, *p["ln_1"])
    qkv, c_attn = ops.linear_forward(h, *p["attn.c_attn"])
    h, attended = attention(qkv)
    x, c_proj = branch_forward(ops, x, h, *p["attn.c_proj"], dropout, seed)
    return x, (norm, c_attn, attended, c_proj)


def look_backward(ops, dx, cache, g):  # (B, T, C) -> (B, T, C)
    """The same lines from last to first, ops.self_attention_backward(dh, cache) for attention. At the plus dx
    goes two ways: back through the branch, and straight on as layer norm's dresidual. Their sum is returned.
    g["ln_1"], g["attn.c_attn"], g["attn.c_proj"] are (dweight, dbias) each, to be written. dx is used up."""
    norm, c_attn, attended, c_proj = cache
    dh = branch_backward(ops, dx, c_proj, *g["attn.c_proj"])
    dqkv = ops.self_attention_backward(dh, attended)
    dh = ops.linear_backward(dqkv, c_attn, *g["attn.c_attn"])
    return ops.layernorm_backward(dh, norm, *g["ln_1"], dresidual=dx)


def think_forward(ops, x, p, dropout=0.0, seed=0):  # (B, T, C) -> (B, T, C)
    """The second half."""
    h, norm = ops.layernorm_forward(x, *p["ln_2"])
    h, c_fc = ops.linear_gelu_forward(h, *p["mlp.c_fc"])
    x, c_proj = branch_forward(ops, x, h, *p["mlp.c_proj"], dropout, seed)
    return x, (norm, c_fc, c_proj)


def think_backward(ops, dx, cache, g):  # (B, T, C) -> (B, T, C)
    norm, c_fc, c_proj = cache
    dh = branch_backward(ops, dx, c_proj, *g["mlp.c_proj"])
    dh = ops.linear_gelu_backward(dh, c_fc, *g["mlp.c_fc"])
    return ops.layernorm_backward(dh, norm, *g["ln_2"], dresidual=dx)


def block_forward(ops, x, p, attention, dropout=0.0, seed=0):  # (B, T, C) -> (B, T, C)
    """One block. Each half drops others: dropout's seed must be another one."""
    x, looked = look_forward(ops, x, p, attention, dropout, 2 * seed)
    x, thought = think_forward(ops, x, p, dropout, 2 * seed + 1)
    return x, (looked, thought)


def block_backward(ops, dx, cache, g):  # (B, T, C) -> (B, T, C)
    looked, thought = cache
    return look_backward(ops, think_backward(ops, dx, thought, g), looked, g)


def main():
    print("32 random positions through 48 layers of gelu(x @ W) @ W, and a random gradient back\n\n"
          "spread of x after: layer 1  layer 12  layer 48    positions alike    gradient at the input")
    rng, C = np.random.default_rng(0), 64
    layers = rng.normal(0, 1 / math.sqrt(C), (48, 2, C, C))
    positions, gradient = rng.normal(size=(2, 1, 32, C))
    ones, zeros, ignored = np.ones(C), np.zeros(C), [np.empty((C, C)), np.empty(C)]  # gradients
    for name, norm, residual in ("plain", 0, 0), ("layer norm", 1, 0), ("residual", 0, 1), ("both", 1, 1):
        x, dx, caches, spread = positions, gradient, [], []
        for w_in, w_out in layers:
            h, norm_cache = layernorm_forward(x, ones, zeros) if norm else (x, None)
            h, in_cache = linear_gelu_forward(h, w_in, zeros)
            x, out_cache = linear_forward(h, w_out, zeros, residual=x if residual else None)
            caches.append((norm_cache, in_cache, out_cache))
            spread.append(x.std())
        for norm_cache, in_cache, out_cache in reversed(caches):
            dh = linear_gelu_backward(linear_backward(dx, out_cache, *ignored), in_cache, *ignored)
            dh = layernorm_backward(dh, norm_cache, zeros.copy(), zeros.copy()) if norm else dh
            dx = dx + dh if residual else dh
        directions = x[0] / np.linalg.norm(x[0], axis=-1, keepdims=True)
        alike = (directions @ directions.T)[~np.eye(32, dtype=bool)].mean()
        print(f"{name:17s}{spread[0]:9.1e}{spread[11]:10.1e}{spread[47]:10.1e}{alike:19.2f}{dx.std():25.1e}")
    print("\nPlain: all fades. Layer norm alone: positions end up alike (cosine near 1), what they were is "
          "lost.\nResidual alone: numbers grow and grow. With both, each layer adds a little to what is.")
