"""One token of a GPT with a KV cache, on several cores: every weight is read once, by one of them.

All of a token is one kernel. n threads run it side by side, each with its own i: thread i has some heads,
some hidden units of each MLP, some of the vocabulary. Both halves of a block, and the head, have one form:

    normalize x; dots: a matrix of which it computes some outputs; attention or GELU on these;
    sum_rows: a matrix of which it reads the rows of these, which gives its part of what is added to x

When all parts are there (meet), each thread adds them to its own x, in the same order: two meetings a layer.
The first kind of matrix lies as (out, in), the second as (in, out): so a share is one stretch of memory.
"""
import contextlib
import math
import mmap
import operator
import os
import queue
import sys
import threading
from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic

from kernels.cpu.compiled import exp, f32, inlined, kernel, largest

MATRICES = "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"
ONE, ZERO, EPS = f32(1), f32(0), f32(1e-5)
GELU_2K, GELU_A = f32(2 * math.sqrt(2 / math.pi)), f32(0.044715)
SPINS = 2000  # looks at the counter, about a microsecond, before the core is offered to others each time
LEAVE = 1 << 62  # a counter that lets everybody through
YIELD = "SwitchToThread" if sys.platform == "win32" else "sched_yield"
give_way = types.ExternalFunction(YIELD, types.int32())


class Weights(NamedTuple):
    """L layers, C channels, V vocabulary. matrices is float32 or int8, all else float32."""

    n_head: int
    matrices: np.ndarray  # flat: MATRICES of each layer, then wte; c_proj (in, out), the others (out, in)
    scales: np.ndarray  # flat, one for each output of those: the weight is matrix * scale
    biases: np.ndarray  # flat, as scales; 0 for wte
    norms: np.ndarray  # (2L + 1, 2, C): weight and bias of every layer norm
    wpe: np.ndarray  # (block_size, C)


def decode_weights(p, int8=False):
    """A copy of p (Parameters) for decode. With int8 each output of a matrix has 255 levels and a scale."""
    wte = p["wte.weight"]
    modules = [(name, *block[name]) for block in p.blocks for name in MATRICES]
    modules.append(("wte", wte.T, np.zeros(len(wte), f32)))
    matrices = large_pages(sum(weight.size for _, weight, _ in modules), np.dtype(np.int8 if int8 else f32))
    scales, end = [], 0
    for name, weight, _ in modules:
        numbers, scale = to_int8(weight) if int8 else (weight, np.ones(weight.shape[1], f32))
        numbers = numbers if name.endswith("c_proj") else numbers.T
        matrices[end:end + numbers.size].reshape(numbers.shape)[:] = numbers
        scales.append(scale)
        end += numbers.size
    norms = [block[name] for block in p.blocks for name in ("ln_1", "ln_2")] + [p["ln_f"]]
    return Weights(p.config.n_head, matrices, np.concatenate(scales, dtype=f32),
                   np.concatenate([bias for _, _, bias in modules], dtype=f32), np.array(norms, f32),
                   np.array(p["wpe.weight"], f32))


def to_int8(weight):  # (in, out) -> (in, out) int8, (out,)
    """Lesson 19's: scale = max(|column|) / 127, or 1 for a column of nearly 0; round(weight / scale)."""
    with np.errstate(invalid="ignore"):  # NaN and infinity reach the scale, and with it the logits
        scale = np.abs(weight).max(axis=0) / 127
        scale[scale < np.finfo(f32).tiny] = 1
        return np.round(weight / scale).astype(np.int8), scale


def large_pages(n, dtype):  # -> (n,) zeros
    """Fresh memory in pages of 2 MB where the system has them: with pages of 4 KB a token of 10 million
    float32 weights takes a third longer. It begins on a cache line."""
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    room = mmap.mmap(-1, n * dtype.itemsize, **private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            room.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(room, dtype)


def decode(weights, token, position, kv, threads=1):  # int, int, (L, block_size, 2C) float32 -> (V,)
    """Logits of what follows `token`. Positions before its own are filled in kv; its k and v are added.

    The result depends on the number of threads by rounding alone. Calls with several threads take turns.
    """
    token, position, n = operator.index(token), operator.index(position), operator.index(threads)
    (block_size, C), L = weights.wpe.shape, len(weights.norms) // 2
    V = weights.scales.size - 9 * L * C
    check(token, position, n, kv, V, (L, block_size, 2 * C))
    counter, logits, parts = np.zeros(1, np.int64), np.empty(V, f32), np.empty((2, n, C), f32)
    job = weights, token, position, kv, counter, parts, np.empty((n, 7 * C + block_size), f32), logits
    if n == 1:
        decode_share(0, 1, *job)
        return logits
    with LOCK:
        failures = []
        try:
            while len(HELPERS) < n - 1:
                jobs = queue.SimpleQueue()
                threading.Thread(target=help_out, args=(jobs,), daemon=True).start()
                HELPERS.append(jobs)
            for i in range(1, n):
                HELPERS[i - 1].put((i, n, job, failures))
            decode_share(0, n, *job)
        except BaseException:  # Ctrl-C before the kernel began: nobody shall wait for this thread
            counter[0] = LEAVE
            raise
    if failures:
        raise failures[0]
    return logits


def check(token, position, n, kv, V, shape):
    """ValueError for what the kernel, which checks no index, would read or write out of bounds."""
    if not 0 <= token < V:
        raise ValueError(f"token {token} has no row in a table of {V}: encode with the model's own tokenizer")
    if not 0 <= position < shape[1]:
        raise ValueError(f"position {position} is not in a block of {shape[1]}: read a shorter text anew")
    if kv.shape != shape or kv.dtype != f32 or not kv.flags.c_contiguous or not kv.flags.writeable:
        raise ValueError(f"kv is {kv.dtype} {kv.shape}, but it must be writeable, contiguous float32 {shape}")
    if n < 1:
        raise ValueError(f"threads is {n}: at least 1 is needed")


LOCK, HELPERS = threading.Lock(), []  # a queue for each helper; they sleep between tokens


def help_out(jobs):
    while True:
        i, n, job, failures = jobs.get()
        try:
            decode_share(i, n, *job)
        except BaseException as failure:  # noqa: BLE001 (the thread that asked raises it)
            failures.append(failure)
            job[4][0] = LEAVE
        del job  # or the last model would stay in memory


def forget_helpers():
    """A forked process has none of its parent's threads."""
    global LOCK
    LOCK = threading.Lock()
    HELPERS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_helpers)


@intrinsic
def add_atomic(typingctx, counter, n):
    """counter[0] += n in one go. What a thread wrote before is seen by all who see the sum."""
    def build(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.atomic_rmw("add", array.data, arguments[1], "acq_rel")
    return types.int64(counter, types.int64), build


@intrinsic
def load_atomic(typingctx, counter):
    def build(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.load_atomic(array.data, "acquire", 8)
    return types.int64(counter), build


@inlined
def meet(counter, everyone):
    """Each who comes adds one. Wait until `everyone` has been reached."""
    add_atomic(counter, 1)
    looks = 0
    while load_atomic(counter) < everyone:
        looks += 1
        if looks >= SPINS:
            give_way()


@inlined
def add_parts(x, parts, bias):  # (C,), (n, C), (C,)
    for c in range(x.size):
        x[c] += bias[c]
    for i in range(parts.shape[0]):
        part = parts[i]
        for c in range(x.size):
            x[c] += part[c]


@inlined
def normalize(x, weight, bias, out):  # (C,) four times, float32
    """Layer norm of one position: out[:] = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + EPS) * weight + bias.

    Reads x three times: for the mean, for the spread around it, for the result. The sums are of float32. One
    pass with mean(x^2) - mean(x)^2 would lose the spread of an x that is far from 0."""
    C, total, square = x.size, ZERO, ZERO
    for c in range(C):
        total += x[c]
    mean = total / f32(C)
    for c in range(C):
        square += (x[c] - mean) * (x[c] - mean)
    rstd = ONE / np.sqrt(square / f32(C) + EPS)
    for c in range(C):
        out[c] = (x[c] - mean) * rstd * weight[c] + bias[c]


@inlined
def dots(x, rows, scale, bias, out):  # (K,), (N K,), (N,) three times
    """out[j] = x . row j * scale[j] + bias[j], where row j of the matrix is rows[j K : (j + 1) K].

    rows is float32 or int8: each of its numbers becomes float32 (f32) before it is multiplied. out is
    written, whatever was in it. For a matrix that lies as (out, in): a share of outputs is one stretch."""
    K = x.size
    for j in range(out.size):
        row, total = rows[j * K:(j + 1) * K], ZERO
        for k in range(K):
            total += x[k] * f32(row[k])
        out[j] = total * scale[j] + bias[j]


@inlined
def sum_rows(x, rows, scale, out):  # (K,), (K N,), (N,) twice
    """out[j] = scale[j] * (the sum over k of x[k] * row k [j]), where row k is rows[k N : (k + 1) N].

    rows is float32 or int8: each of its numbers becomes float32 (f32) before it is multiplied. out is
    written, whatever was in it. For a matrix that lies as (in, out): a share of inputs is one stretch.
    Four rows at a time, and what is left over one by one: out is loaded and stored a quarter as often."""
    N, whole = out.size, x.size - x.size % 4
    for j in range(N):
        out[j] = ZERO
    for k in range(0, whole, 4):
        a, b, c, d = x[k], x[k + 1], x[k + 2], x[k + 3]
        row_a, row_b = rows[k * N:(k + 1) * N], rows[(k + 1) * N:(k + 2) * N]
        row_c, row_d = rows[(k + 2) * N:(k + 3) * N], rows[(k + 3) * N:(k + 4) * N]
        for j in range(N):
            out[j] += (a * f32(row_a[j]) + b * f32(row_b[j])) + (c * f32(row_c[j]) + d * f32(row_d[j]))
    for k in range(whole, x.size):
        row = rows[k * N:(k + 1) * N]
        for j in range(N):
            out[j] += x[k] * f32(row[j])
    for j in range(N):
        out[j] *= scale[j]


@inlined
def attend(q, kv, n, first, scores, out):  # (D,), (block_size, 2C), int, int, (block_size,), (D,)
    """One head, whose channels begin with `first`, looks at n positions, each with its key and value:

        k = kv[t, first : first + D]      v = kv[t, C + first : C + first + D]      t = 0 .. n - 1
        a = softmax over t of (q . k / sqrt(D))              out[:] = the sum over t of a[t] * v

    Positions from n on hold anything, NaN too: they are not read. scores is scratch; the first n are used.
    softmax is exp(x - m) / sum, where m is `largest` of the n (compiled.py): exp cannot overflow."""
    D, C, scale = q.size, kv.shape[1] // 2, ONE / np.sqrt(f32(q.size))
    for t in range(n):
        k, total = kv[t, first:first + D], ZERO
        for d in range(D):
            total += q[d] * k[d]
        scores[t] = total
    m, total = largest(scores[:n]), ZERO
    for t in range(n):
        e = exp((scores[t] - m) * scale)
        scores[t] = e
        total += e
    for d in range(D):
        out[d] = ZERO
    for t in range(n):
        v, a = kv[t, C + first:C + first + D], scores[t] / total
        for d in range(D):
            out[d] += a * v[d]


@kernel
def decode_share(i, n, weights, token, position, kv, counter, parts, scratch, logits):
    """Share i of n. counter (1,) is 0; parts (2, n, C) and scratch (n, 7C + block_size) hold anything."""
    H, matrices, scales, biases, norms, wpe = weights
    V, C, L = logits.size, wpe.shape[1], kv.shape[0]
    D, mine, m, s = C // H, scratch[i], 0, 0  # m, s: where the next matrix and its scales begin
    x, h, hidden, y, scores = mine[:C], mine[C:2 * C], mine[2 * C:6 * C], mine[6 * C:7 * C], mine[7 * C:]
    what, where = matrices[matrices.size - (V - token) * C:], wpe[position]
    for c in range(C):
        x[c] = f32(what[c]) * scales[scales.size - V + token] + where[c]
    for half in range(2 * L + 1):
        if half > 0:
            meet(counter, half * n)
            add_parts(x, parts[half % 2], biases[s - C:s])
        normalize(x, norms[half, 0], norms[half, 1], h)
        head, attention = half == 2 * L, half % 2 == 0
        out, groups, width = hidden, 1, 4 * C
        if head:
            out, width, a, b = logits, V, V * i // n, V * (i + 1) // n
        elif attention:  # q, k and v of its heads
            groups, width, a, b = 3, C, H * i // n * D, H * (i + 1) // n * D
        else:
            a, b = 4 * C * i // n, 4 * C * (i + 1) // n
        for group in range(groups):
            j, k = group * C + a, group * C + b
            dots(h, matrices[m + j * C:m + k * C], scales[s + j:s + k], biases[s + j:s + k], out[j:k])
        if head:
            break
        m, s = m + groups * width * C, s + groups * width
        if attention:
            past = kv[half // 2]
            now = past[position]
            for c in range(a, b):
                now[c], now[C + c] = hidden[C + c], hidden[2 * C + c]
            for c in range(a, b, D):
                attend(hidden[c:c + D], past, position + 1, c, scores, y[c:c + D])
            out = y
        else:
            for c in range(a, b):
                u = hidden[c]
                hidden[c] = u / (ONE + exp(-GELU_2K * u * (ONE + GELU_A * u * u)))
        sum_rows(out[a:b], matrices[m + a * C:m + b * C], scales[s:s + C], parts[(half + 1) % 2, i])
        m, s = m + width * C, s + C
    meet(counter, (2 * L + 1) * n)
