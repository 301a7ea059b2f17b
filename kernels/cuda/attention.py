"""Lesson 12's attention on the GPU: softmax(q k^T / sqrt(D)) v, and back.

B batch, H heads, D channels of a head, C = H D, Tq queries, Tk keys. Nothing is taken apart or copied: query
t of head h is q[b, t, h D:], key j is kv[b, j, start + h D:], its value lies C further on. For self-attention
q and kv are both the packed (B, T, 3C), and start is C; for cross-attention kv is (B, Tk, 2C), and start
is 0. Gradients are written the same way. In scores, weights, lse and delta, h stands before t.

1  materialised  All scores (B, H, Tq, Tk) are written, become weights, and are multiplied by the values:
                 4 B H Tq Tk D floating-point operations, B H Tq Tk numbers moved 7 times. softmax_by_thread
                 gives each row to a thread: neighbours read numbers Tk apart, and for 4 bytes the memory
                 moves 32. softmax_by_warp gives it to 32 threads, which read neighbours and add by shuffles.
2  flash_row     No score is written. A thread goes along the keys with one query and keeps the largest score
                 so far, the sum of the weights and the weighted sum of the values; where a larger score
                 comes, both sums shrink (online softmax: Milakov and Gimelshein 2018, algorithm 3). What is
                 stored grows with T, not with T squared. But every query reads all of its keys and values
                 anew.
3  flash         A block goes along the keys with a tile of queries. Tiles lie in shared memory, so each key
                 is read once for 64 queries (32 if D > 64); a thread has 4 queries by 4 keys in registers, so
                 that 32 numbers from shared memory serve 64 multiplications. Tiles that no query may see are
                 left out. Backward keeps no weights: exp(score - lse) are they, where lse is the logarithm of
                 the sum of all exp(score). One kernel goes along the queries with a tile of keys, for dk and
                 dv, one goes along the keys with a tile of queries, for dq. So q k^T and dout v^T are
                 multiplied twice, 14 B H Tq Tk D operations instead of 10, but nobody adds to another block's
                 numbers: no atomics, and the same bits every time. Dao et al. 2022, algorithms 1 to 4; Dao
                 2023, section 3.

Version 3 is used, and version 1 for heads of more than 128 channels: their tiles do not fit.
"""
import functools
import math
from typing import NamedTuple

import numpy as np

from kernels.cuda.compiled import (
    F3,
    F4,
    I1,
    ONE,
    WARP,
    ZERO,
    F,
    U,
    blocks_for,
    cuda,
    f32,
    inline,
    kernel,
    u32,
)
from kernels.cuda.memory import Array, empty, on_gpu, op

LOWEST, MASKED = f32(np.finfo(f32).min), f32(-np.inf)  # exp(MASKED - LOWEST) is 0; MASKED - MASKED is NaN
ALL = 0xFFFFFFFF  # threads of a warp
THREADS = 128  # of a block, in versions 1 and 2
ROWS = 4  # of a tile, in one thread
PAD = 4  # numbers at the end of a tile's row: rows that are read together lie in different banks


# ---- the operations -------------------------------------------------------------------------------------


def self_attention_forward(qkv, n_head, causal=True, lengths=None):  # (B, T, 3C) -> (B, T, C)
    return self_forward(qkv, n_head, causal, checked(qkv.shape, qkv.shape, 3 * n_head, causal, lengths))


def cross_attention_forward(q, kv, n_head, causal=False, lengths=None):  # (B, Tq, C), (B, Tk, 2C) -> like q
    if 2 * q.shape[2] != kv.shape[2]:
        raise ValueError(f"queries {q.shape} need keys and values (B, Tk, {2 * q.shape[2]}), not {kv.shape}")
    return cross_forward(q, kv, n_head, causal, checked(q.shape, kv.shape, 2 * n_head, causal, lengths))


@op
def self_attention_backward(dout, cache):  # (B, T, C) -> (B, T, 3C)
    dqkv = empty(cache[0].shape)
    backward(dout, cache, dqkv, dqkv)
    return dqkv


@op
def cross_attention_backward(dout, cache):  # (B, Tq, C) -> (B, Tq, C), (B, Tk, 2C)
    dq, dkv = empty(cache[0].shape), empty(cache[1].shape)
    backward(dout, cache, dq, dkv)
    return dq, dkv


@op
def self_forward(qkv, n_head, causal, lengths):
    return forward(qkv, qkv, qkv.shape[2] // 3, n_head, causal, lengths)


@op
def cross_forward(q, kv, n_head, causal, lengths):
    return forward(q, kv, 0, n_head, causal, lengths)


def forward(q, kv, start, n_head, causal, lengths):  # -> out (B, Tq, C), cache
    lengths = everything(len(q)) if lengths is None else on_gpu(lengths, np.int32)
    return version((kv.shape[2] - start) // 2 // n_head)[0](q, kv, start, n_head, causal, lengths)


def backward(dout, cache, dq, dkv):
    version(dout.shape[2] // cache[3])[1](dout, cache, dq, dkv)


def version(D):  # -> its forward, its backward
    if D > max(TILES):
        return materialised_forward, materialised_backward
    return flash_forward, flash_backward


@functools.cache
def everything(B):  # -> Array (B,) int32: no limit
    return on_gpu(np.full(B, 2**31 - 1), np.int32)


def checked(q_shape, kv_shape, heads, causal, lengths):  # -> list of B, None, or the Array
    """The lengths, before they are copied: to look at numbers on the GPU means to wait. ValueErrors are those
    of kernels/cpu. Lengths in an Array were checked by whoever copied them; no kernel reads behind the
    keys."""
    (B, Tq, _), (B_k, Tk, width) = q_shape, kv_shape
    if width % heads or B_k != B:
        raise ValueError(f"queries {q_shape} and keys {kv_shape} are not {B} times {heads} heads of one size")
    if not isinstance(lengths, Array):
        given = np.full(B, Tk) if lengths is None else np.asarray(lengths)
        if given.shape != (B,) or given.min() < 1 or given.max() > Tk:
            raise ValueError(f"lengths {given.tolist()} do not fit {B} rows of {Tk} keys: "
                             f"each must be from 1 to {Tk}")
        lengths = lengths if lengths is None else given.tolist()
    if causal and Tq > Tk:
        raise ValueError(f"{Tq} queries cannot be the last of {Tk} positions: pass at least {Tq} keys")
    return lengths


@inline
def visible(t, Tq, Tk, length, causal):
    """How many keys query t may see: the first n. At least one."""
    n = min(u32(length), u32(Tk))
    return min(n, u32(u32(Tk) - u32(Tq) + t + u32(1))) if causal else n


# ---- version 1: all scores in memory --------------------------------------------------------------------


def materialised_forward(q, kv, start, n_head, causal, lengths, softmax=None):  # -> out (B, Tq, C), cache
    """softmax: by_warp or by_thread."""
    (B, Tq, _), Tk, C = q.shape, kv.shape[1], (kv.shape[2] - start) // 2
    weights, out, rows = empty((B, n_head, Tq, Tk)), empty((B, Tq, C)), B * n_head * Tq
    products[rows, THREADS](q, 0, kv, start, C, weights)
    (softmax or by_warp)(weights, lengths, causal, 1 / math.sqrt(C // n_head))
    averages[rows, THREADS](weights, kv, start + C, C, out, 0)
    return out, (q, kv, start, n_head, causal, lengths, weights)


def materialised_backward(dout, cache, dq, dkv):
    """dq and dkv are packed like q and kv; for self-attention they are one array."""
    q, kv, start, n_head, _, _, weights = cache
    (B, H, Tq, Tk), C = weights.shape, dout.shape[2]
    dscores, queries, keys = empty(weights.shape), B * H * Tq, B * H * Tk
    products[queries, THREADS](dout, 0, kv, start + C, C, dscores)
    averages_backward[keys, THREADS](weights, dout, 0, C, dkv, start + C)
    softmax_backward[queries, 32](weights, dscores, 1 / math.sqrt(C // n_head))
    averages[queries, THREADS](dscores, kv, start, C, dq, 0)
    averages_backward[keys, THREADS](dscores, q, 0, C, dkv, start)


def by_thread(scores, lengths, causal, scale):  # (B, H, Tq, Tk), in place
    rows = math.prod(scores.shape[:3])
    softmax_by_thread[blocks_for(rows, THREADS), THREADS](scores, lengths, causal, scale)


def by_warp(scores, lengths, causal, scale):  # (B, H, Tq, Tk), in place
    softmax_by_warp[math.prod(scores.shape[:3]), 32](scores, lengths, causal, scale)


@inline
def place(row, H, T):  # -> b, h, t of a row of (B, H, T, ...)
    return row // u32(T) // u32(H), row // u32(T) % u32(H), row % u32(T)


@kernel(F3, U, F3, U, U, F4)
def products(x, x0, y, y0, C, scores):  # blocks: B H Tx, one for a row of scores
    """scores[b, h, i, j] = sum over d of x[b, i, x0 + h D + d] y[b, j, y0 + h D + d]. Thread: some j."""
    H, Tx, Ty = scores.shape[1], scores.shape[2], u32(scores.shape[3])
    b, h, i = place(u32(cuda.blockIdx.x), H, Tx)
    D = u32(C) // u32(H)
    for j in range(u32(cuda.threadIdx.x), Ty, u32(cuda.blockDim.x)):
        total = ZERO
        for d in range(h * D, (h + u32(1)) * D):
            total += x[b, i, x0 + d] * y[b, j, y0 + d]
        scores[b, h, i, j] = total


@kernel(F4, F3, U, U, F3, U)
def averages(weights, x, x0, C, out, out0):  # blocks: B H Tq, one for a row of weights
    """out[b, t, out0 + h D + d] = sum over j of weights[b, h, t, j] x[b, j, x0 + h D + d]. Thread: some d."""
    H, Tq, Tk = weights.shape[1], weights.shape[2], u32(weights.shape[3])
    b, h, t = place(u32(cuda.blockIdx.x), H, Tq)
    D = u32(C) // u32(H)
    for d in range(h * D + u32(cuda.threadIdx.x), (h + u32(1)) * D, u32(cuda.blockDim.x)):
        total = ZERO
        for j in range(Tk):
            total += weights[b, h, t, j] * x[b, j, x0 + d]
        out[b, t, out0 + d] = total


@kernel(F4, F3, U, U, F3, U)
def averages_backward(weights, dout, dout0, C, dx, dx0):  # blocks: B H Tk, one for a column of weights
    """dx[b, j, dx0 + h D + d] = sum over t of weights[b, h, t, j] dout[b, t, dout0 + h D + d]."""
    H, Tq, Tk = weights.shape[1], u32(weights.shape[2]), weights.shape[3]
    b, h, j = place(u32(cuda.blockIdx.x), H, Tk)
    D = u32(C) // u32(H)
    for d in range(h * D + u32(cuda.threadIdx.x), (h + u32(1)) * D, u32(cuda.blockDim.x)):
        total = ZERO
        for t in range(Tq):
            total += weights[b, h, t, j] * dout[b, t, dout0 + d]
        dx[b, j, dx0 + d] = total


@kernel(F4, I1, U, F)
def softmax_by_thread(scores, lengths, causal, scale):
    """scores (B, H, Tq, Tk) become weights, in place. In a row, over the first n keys:

        weight_j = exp((score_j - m) scale) / sum of these        m the largest of the n scores, scale > 0

    and exactly 0 behind them, whatever stood there. n = visible(t, Tq, Tk, lengths[b], causal). Thread number
    `row` of the grid has row number `row` of the B H Tq (place says which b, h, t that is); threads behind
    the last one do nothing. A NaN among the n scores makes its row NaN, no other. No shared memory, no
    barrier.
    """
    row, (B, H, Tq, Tk) = u32(cuda.grid(1)), scores.shape
    b, h, t = place(row, H, Tq)
    if b >= u32(B):
        return
    n, m, total = visible(t, Tq, Tk, lengths[b], causal), LOWEST, ZERO
    for j in range(n):
        m = max(m, scores[b, h, t, j])
    for j in range(n):
        weight = math.exp((scores[b, h, t, j] - m) * scale)
        scores[b, h, t, j] = weight
        total += weight
    for j in range(u32(Tk)):
        scores[b, h, t, j] = scores[b, h, t, j] / total if j < n else ZERO


@inline
def largest_of(value, lanes):
    """The largest value of `lanes` neighbours in a warp (a power of two), in each of them."""
    step = u32(lanes) >> u32(1)
    while step > u32(0):
        value = max(value, cuda.shfl_xor_sync(ALL, value, step))
        step = step >> u32(1)
    return value


@inline
def sum_of(value, lanes):
    """The sum of the values of `lanes` neighbours in a warp (a power of two), the same bits in each."""
    step = u32(lanes) >> u32(1)
    while step > u32(0):
        value += cuda.shfl_xor_sync(ALL, value, step)
        step = step >> u32(1)
    return value


@kernel(F4, I1, U, F)
def softmax_by_warp(scores, lengths, causal, scale):
    """What softmax_by_thread does, one warp for a row: block number `row` of 32 threads has row number `row`.

    Thread `lane` takes the keys lane, lane + 32, lane + 64, ... up to n, so that neighbours read and write
    neighbours. largest_of(value, WARP) and sum_of(value, WARP) put together what the 32 threads have; all of
    them come to both, those without a key too. Behind the n keys up to Tk: 0.
    """
    lane, (H, Tq, Tk) = u32(cuda.threadIdx.x), scores.shape[1:]
    b, h, t = place(u32(cuda.blockIdx.x), H, Tq)
    n, m, total = visible(t, Tq, Tk, lengths[b], causal), LOWEST, ZERO
    for j in range(lane, n, WARP):
        m = max(m, scores[b, h, t, j])
    m = largest_of(m, WARP)
    for j in range(lane, n, WARP):
        weight = math.exp((scores[b, h, t, j] - m) * scale)
        scores[b, h, t, j] = weight
        total += weight
    total = sum_of(total, WARP)
    for j in range(lane, u32(Tk), WARP):
        scores[b, h, t, j] = scores[b, h, t, j] / total if j < n else ZERO


@kernel(F4, F4, F)
def softmax_backward(weights, dweights, scale):  # blocks: B H Tq of 32 threads, one for a row
    """dweights (B, H, Tq, Tk) become dscores, in place: weight (dweight - sum of weight dweight) scale."""
    lane, (H, Tq, Tk) = u32(cuda.threadIdx.x), weights.shape[1:]
    b, h, t = place(u32(cuda.blockIdx.x), H, Tq)
    total = ZERO
    for j in range(lane, u32(Tk), WARP):
        total += weights[b, h, t, j] * dweights[b, h, t, j]
    total = sum_of(total, WARP)
    for j in range(lane, u32(Tk), WARP):  # a masked weight is 0, and so is its score's gradient
        dweights[b, h, t, j] = weights[b, h, t, j] * (dweights[b, h, t, j] - total) * scale


# ---- version 2: online softmax, a thread for a query ----------------------------------------------------


def flash_row_forward(q, kv, start, n_head, causal, lengths):  # -> out (B, Tq, C), cache of flash_backward
    (B, Tq, _), C = q.shape, (kv.shape[2] - start) // 2
    out, lse = empty((B, Tq, C)), empty((B, n_head, Tq))
    blocks = blocks_for(Tq, THREADS), n_head, B
    flash_row[blocks, THREADS](q, kv, start, lengths, causal, 1 / math.sqrt(C // n_head), out, lse)
    return out, (q, kv, start, n_head, causal, lengths, out, lse)


@kernel(F3, F3, U, I1, U, F, F3, F3)
def flash_row(q, kv, start, lengths, causal, scale, out, lse):
    """One query: out[b, t, h D + d] = sum of weight_j v_j / sum of weight_j over the n keys it sees.

    q holds queries at [b, t, h D + d], kv keys at [b, j, start + h D + d], and each key's value C further on,
    for d < D; out (B, Tq, C), C = H D; lse (B, H, Tq); q, kv and lengths are only read. Blocks: (enough for
    Tq, H, B), so h is blockIdx.y and b is blockIdx.z; threads behind the last query do nothing.

    With m = the lowest float, total = 0 and out = 0 to begin with, for j = 0 .. n - 1, in this order:

        score = scale * sum of q_d k_d      new = max(m, score)      shrink = exp(m - new)
        weight = exp(score - new)           total = total shrink + weight
        out = out shrink + weight v_j       m = new

    At the end out is divided by total, and lse[b, h, t] = m + log(total). n = visible(...).
    """
    t, h, b = u32(cuda.grid(1)), u32(cuda.blockIdx.y), u32(cuda.blockIdx.z)
    Tq, Tk, C = u32(out.shape[1]), u32(kv.shape[1]), u32(out.shape[2])
    D = C // u32(cuda.gridDim.y)
    first, last = h * D, (h + u32(1)) * D
    if t >= Tq:
        return
    m, total = LOWEST, ZERO
    for c in range(first, last):
        out[b, t, c] = ZERO
    for j in range(visible(t, Tq, Tk, lengths[b], causal)):
        score = ZERO
        for c in range(first, last):
            score += q[b, t, c] * kv[b, j, start + c]
        new = max(m, score * scale)
        shrink, weight = math.exp(m - new), math.exp(score * scale - new)
        total = total * shrink + weight
        for c in range(first, last):
            out[b, t, c] = out[b, t, c] * shrink + weight * kv[b, j, start + C + c]
        m = new
    for c in range(first, last):
        out[b, t, c] /= total
    lse[b, h, t] = m + math.log(total)


# ---- version 3: online softmax, a block for a tile of queries -------------------------------------------


class Tiles(NamedTuple):
    """A kernel of version 3 and its sizes. A block has `rows` queries (dkv: keys) and goes along the others
    by `columns`. A thread has ROWS rows; `lanes` neighbours in a warp share them and divide columns and
    channels."""

    kernel: object
    rows: int
    columns: int
    lanes: int

    def __call__(self, T, H, B, *arguments):
        threads = self.rows // ROWS * self.lanes
        self.kernel[(blocks_for(T, self.rows), H, B), threads](*arguments)


def flash_forward(q, kv, start, n_head, causal, lengths, tiles=None):  # -> out (B, Tq, C), cache
    """tiles: what forward_tiles() returns, another than the one for this D."""
    (B, Tq, _), C = q.shape, (kv.shape[2] - start) // 2
    out, lse, D = empty((B, Tq, C)), empty((B, n_head, Tq)), C // n_head
    run = tiles or fitting(D)[0]
    run(Tq, n_head, B, q, kv, start, lengths, causal, 1 / math.sqrt(D), out, lse)
    return out, (q, kv, start, n_head, causal, lengths, out, lse)


def flash_backward(dout, cache, dq, dkv, tiles=None):
    """dq and dkv are packed like q and kv, or are one array. tiles: those for dkv and those for dq."""
    q, kv, start, n_head, causal, lengths, out, lse = cache
    (B, Tq, C), Tk, delta = dout.shape, kv.shape[1], empty(lse.shape)
    run_dkv, run_dq = tiles or fitting(C // n_head)[1:]
    given = q, kv, start, lengths, causal, 1 / math.sqrt(C // n_head), dout, lse, delta
    row_products[B * n_head * Tq, 32](dout, out, delta)
    run_dkv(Tk, n_head, B, *given, dkv)
    run_dq(Tq, n_head, B, *given, dq)


@kernel(F3, F3, F3)
def row_products(dout, out, delta):  # blocks: B H Tq of 32 threads
    """delta[b, h, t] = sum over d of dout out, which is the sum over j of weight dweight."""
    lane, (H, Tq), C = u32(cuda.threadIdx.x), delta.shape[1:], u32(out.shape[2])
    b, h, t = place(u32(cuda.blockIdx.x), H, Tq)
    D, total = C // u32(H), ZERO
    for c in range(h * D + lane, (h + u32(1)) * D, WARP):
        total += dout[b, t, c] * out[b, t, c]
    total = sum_of(total, WARP)
    if lane == u32(0):
        delta[b, h, t] = total


@inline
def load(x, b, first, stop, channel, D, tile, group, groups, lane, lanes):
    """All threads: tile[i, d] = x[b, first + i, channel + d], 0 from row `stop` of x on and for d >= D."""
    for i in range(u32(0), u32(tile.shape[0]), groups):
        for d in range(u32(0), u32(tile.shape[1] - PAD), lanes):
            inside = first + group + i < stop and lane + d < D
            tile[group + i, lane + d] = x[b, first + group + i, channel + lane + d] if inside else ZERO


@inline
def multiply(x, row, y, lane, lanes, scores):
    """scores[i, j] = sum over d of x[row + i, d] y[lane + j lanes, d]. 4 channels are one load."""
    for i in range(scores.shape[0]):
        for j in range(scores.shape[1]):
            scores[i, j] = ZERO
    for d in range(u32(0), u32(x.shape[1] - PAD), u32(4)):
        for i in range(scores.shape[0]):
            for j in range(scores.shape[1]):
                for e in range(u32(4)):
                    scores[i, j] += x[row + u32(i), d + e] * y[lane + u32(j) * lanes, d + e]


@inline
def channel(j, lane, lanes):
    """Which channel is number j of a thread's: 4 together (one load), then the other lanes' turn."""
    return (u32(j) // u32(4) * lanes + lane) * u32(4) + u32(j) % u32(4)


@inline
def add_products(weights, row, x, lane, lanes, sums):
    """sums[i, j] += sum over c of weights[row + i, c] x[c, channel(j)]."""
    for c in range(u32(0), u32(x.shape[0]), u32(4)):
        for i in range(sums.shape[0]):
            for j in range(sums.shape[1]):
                for e in range(u32(4)):
                    sums[i, j] += weights[row + u32(i), c + e] * x[c + e, channel(j, lane, lanes)]


@inline
def store(sums, x, b, first, stop, channel0, D, lane, lanes):
    """x[b, first + i, channel0 + channel(j)] = sums[i, j], before row `stop` and for channels below D."""
    for i in range(sums.shape[0]):
        for j in range(sums.shape[1]):
            t, d = first + u32(i), channel(j, lane, lanes)
            if t < stop and d < D:
                x[b, t, channel0 + d] = sums[i, j]


@inline
def flash_queries(q, kv, start, lengths, causal, scale, out, lse, queries, keys, values, weights, scores,
                  sums, lanes):
    """out and lse of a tile of queries; the arrays up to lse are those of flash_row, the others are empty:

        shared   queries (rows, W + PAD), keys and values (columns, W + PAD), weights (rows, columns + PAD)
        local    scores (ROWS, columns // lanes), sums (ROWS, W // lanes), of this thread alone

    Blocks: (enough for Tq, H, B), of rows // ROWS * lanes threads. The tile begins with query `first`. A
    thread has its ROWS rows from `row` on, which it shares with the other lanes, its neighbours; its
    scores[i, j] are those of row + i and column lane + j lanes, its sums[i, j] those of row + i and
    channel(j, lane, lanes).

    The queries are loaded (stop: Tq). Largest scores begin as LOWEST, totals and sums as 0. Then keys and
    values from j0 = 0, columns, 2 columns, ... up to `last` are loaded (stop: last) and multiplied, and for
    each row

        score = scores[i, j] scale, or MASKED if the row's query does not see key j0 + lane + j lanes
        new = largest_of(the largest so far and all of these)           shrink = exp(largest - new)
        weight = exp(score - new), which goes into weights as well      total = total shrink + weights
        sums = sums shrink, and add_products adds the values

    All threads of a block load and read the tiles: a barrier stands before loading, and one behind it.
    weights are read by neighbours only: syncwarp is enough. A lane's total is that of its own columns, so at
    the end the lanes' are added by sum_of; then sums / total are stored (stop: Tq), and lane 0 writes lse =
    largest + log(total) of the rows before Tq.
    """
    n, h, b = u32(cuda.threadIdx.x), u32(cuda.blockIdx.y), u32(cuda.blockIdx.z)
    lane, group, row = n % lanes, n // lanes, n // lanes * u32(ROWS)
    rows, columns, groups = u32(queries.shape[0]), u32(keys.shape[0]), u32(queries.shape[0] // ROWS)
    Tq, Tk, C = u32(out.shape[1]), u32(kv.shape[1]), u32(out.shape[2])
    D = C // u32(cuda.gridDim.y)
    first = u32(cuda.gridDim.x - 1 - cuda.blockIdx.x) * rows  # those that see most begin first
    last = visible(first + rows - u32(1), Tq, Tk, lengths[b], causal)
    largest, total = cuda.local.array(ROWS, F), cuda.local.array(ROWS, F)
    load(q, b, first, Tq, h * D, D, queries, group, groups, lane, lanes)
    for i in range(ROWS):
        largest[i], total[i] = LOWEST, ZERO
        for j in range(sums.shape[1]):
            sums[i, j] = ZERO
    for j0 in range(u32(0), last, columns):
        cuda.syncthreads()
        load(kv, b, j0, last, start + h * D, D, keys, group, groups, lane, lanes)
        load(kv, b, j0, last, start + C + h * D, D, values, group, groups, lane, lanes)
        cuda.syncthreads()
        multiply(queries, row, keys, lane, lanes, scores)
        for i in range(ROWS):
            new, n = largest[i], visible(first + row + u32(i), Tq, Tk, lengths[b], causal)
            for j in range(scores.shape[1]):
                scores[i, j] = scores[i, j] * scale if j0 + lane + u32(j) * lanes < n else MASKED
                new = max(new, scores[i, j])
            new = largest_of(new, lanes)
            shrink = math.exp(largest[i] - new)
            largest[i], total[i] = new, total[i] * shrink
            for j in range(scores.shape[1]):
                weight = math.exp(scores[i, j] - new)
                weights[row + u32(i), lane + u32(j) * lanes] = weight
                total[i] += weight
            for j in range(sums.shape[1]):
                sums[i, j] *= shrink
        cuda.syncwarp()
        add_products(weights, row, values, lane, lanes, sums)
    for i in range(ROWS):
        total[i] = sum_of(total[i], lanes)
        share = ONE / total[i]
        for j in range(sums.shape[1]):
            sums[i, j] *= share
        if lane == u32(0) and first + row + u32(i) < Tq:
            lse[b, h, first + row + u32(i)] = largest[i] + math.log(total[i])
    store(sums, out, b, first + row, Tq, h * D, D, lane, lanes)


@inline
def flash_dq(q, kv, start, lengths, causal, scale, dout, lse, delta, dq, queries, douts, keys, values,
             dscores, scores, dweights, sums, lanes):
    """dq of a tile of queries, which goes along the keys and values as flash_queries does.

        weight = exp(score scale - lse), 0 if masked        dweight = sum over d of dout value
        dscore = weight (dweight - delta) scale             dq = sum over keys of dscore key

    q, kv, start, lengths, causal, scale and the tiles are as in flash_queries; so are the grid, the rows,
    lanes and barriers. dout and dq are (B, Tq, ...), with head h from channel h D on; lse and delta (B, H,
    Tq) are read at queries before Tq only. The rows' tiles are queries and douts, of q and dout. Shared is
    also dscores (rows, columns + PAD). Of this thread alone are scores and dweights (ROWS, columns // lanes),
    for what multiply finds, and sums (ROWS, W // lanes).
    """
    n, h, b = u32(cuda.threadIdx.x), u32(cuda.blockIdx.y), u32(cuda.blockIdx.z)
    lane, group, row = n % lanes, n // lanes, n // lanes * u32(ROWS)
    rows, columns, groups = u32(queries.shape[0]), u32(keys.shape[0]), u32(queries.shape[0] // ROWS)
    Tq, Tk, C = u32(dout.shape[1]), u32(kv.shape[1]), u32(dout.shape[2])
    D = C // u32(cuda.gridDim.y)
    first = u32(cuda.gridDim.x - 1 - cuda.blockIdx.x) * rows
    last = visible(first + rows - u32(1), Tq, Tk, lengths[b], causal)
    load(q, b, first, Tq, h * D, D, queries, group, groups, lane, lanes)
    load(dout, b, first, Tq, h * D, D, douts, group, groups, lane, lanes)
    for i in range(ROWS):
        for j in range(sums.shape[1]):
            sums[i, j] = ZERO
    for j0 in range(u32(0), last, columns):
        cuda.syncthreads()
        load(kv, b, j0, last, start + h * D, D, keys, group, groups, lane, lanes)
        load(kv, b, j0, last, start + C + h * D, D, values, group, groups, lane, lanes)
        cuda.syncthreads()
        multiply(queries, row, keys, lane, lanes, scores)
        multiply(douts, row, values, lane, lanes, dweights)
        for i in range(ROWS):
            t = first + row + u32(i)
            n = visible(t, Tq, Tk, lengths[b], causal) if t < Tq else u32(0)
            for j in range(scores.shape[1]):
                dscore = ZERO
                if j0 + lane + u32(j) * lanes < n:
                    weight = math.exp(scores[i, j] * scale - lse[b, h, t])
                    dscore = weight * (dweights[i, j] - delta[b, h, t]) * scale
                dscores[row + u32(i), lane + u32(j) * lanes] = dscore
        cuda.syncwarp()
        add_products(dscores, row, keys, lane, lanes, sums)
    store(sums, dq, b, first + row, Tq, h * D, D, lane, lanes)


@inline
def flash_dkv(q, kv, start, lengths, causal, scale, dout, lse, delta, dkv, keys, values, queries, douts,
              weights, scores, dweights, dk, dv, lanes):
    """dk and dv of a tile of keys, which goes along the queries: rows are keys here, and columns queries.

    For the rest as flash_dq. weights (rows, columns + PAD), shared, hold the weights and then the dscores:

        dv = sum over queries of weight dout                dk = sum over queries of dscore query
    """
    n, h, b = u32(cuda.threadIdx.x), u32(cuda.blockIdx.y), u32(cuda.blockIdx.z)
    lane, group, row = n % lanes, n // lanes, n // lanes * u32(ROWS)
    rows, columns, groups = u32(keys.shape[0]), u32(queries.shape[0]), u32(keys.shape[0] // ROWS)
    Tq, Tk, C = u32(dout.shape[1]), u32(kv.shape[1]), u32(dout.shape[2])
    D = C // u32(cuda.gridDim.y)
    first = u32(cuda.blockIdx.x) * rows
    last = visible(Tq - u32(1), Tq, Tk, lengths[b], causal)  # what the last query sees, some query sees
    since = Tq if first >= last else first + Tq - Tk if causal and first + Tq > Tk else u32(0)
    load(kv, b, first, last, start + h * D, D, keys, group, groups, lane, lanes)
    load(kv, b, first, last, start + C + h * D, D, values, group, groups, lane, lanes)
    for i in range(ROWS):
        for j in range(dk.shape[1]):
            dk[i, j], dv[i, j] = ZERO, ZERO
    for t0 in range(since, Tq, columns):
        cuda.syncthreads()
        load(q, b, t0, Tq, h * D, D, queries, group, groups, lane, lanes)
        load(dout, b, t0, Tq, h * D, D, douts, group, groups, lane, lanes)
        cuda.syncthreads()
        multiply(keys, row, queries, lane, lanes, scores)
        multiply(values, row, douts, lane, lanes, dweights)
        for j in range(scores.shape[1]):
            t = t0 + lane + u32(j) * lanes
            n = visible(t, Tq, Tk, lengths[b], causal) if t < Tq else u32(0)
            for i in range(ROWS):
                weight, dscore = ZERO, ZERO
                if first + row + u32(i) < n:
                    weight = math.exp(scores[i, j] * scale - lse[b, h, t])
                    dscore = weight * (dweights[i, j] - delta[b, h, t]) * scale
                weights[row + u32(i), lane + u32(j) * lanes], dweights[i, j] = weight, dscore
        cuda.syncwarp()
        add_products(weights, row, douts, lane, lanes, dv)
        cuda.syncwarp()
        for i in range(ROWS):
            for j in range(scores.shape[1]):
                weights[row + u32(i), lane + u32(j) * lanes] = dweights[i, j]
        cuda.syncwarp()
        add_products(weights, row, queries, lane, lanes, dk)
    store(dk, dkv, b, first + row, Tk, start + h * D, D, lane, lanes)
    store(dv, dkv, b, first + row, Tk, start + C + h * D, D, lane, lanes)


def forward_tiles(W, rows, columns, lanes):  # -> Tiles
    """For heads of up to W channels, a multiple of 4 lanes. What must have a fixed size is made here."""
    of_rows, of_columns, pairs = (rows, W + PAD), (columns, W + PAD), (rows, columns + PAD)
    some_pairs, some_channels = (ROWS, columns // lanes), (ROWS, W // lanes)

    @kernel(F3, F3, U, I1, U, F, F3, F3)
    def flash_forward(q, kv, start, lengths, causal, scale, out, lse):
        queries = cuda.shared.array(of_rows, F)
        keys = cuda.shared.array(of_columns, F)
        values = cuda.shared.array(of_columns, F)
        weights = cuda.shared.array(pairs, F)
        scores = cuda.local.array(some_pairs, F)
        sums = cuda.local.array(some_channels, F)
        flash_queries(q, kv, start, lengths, causal, scale, out, lse, queries, keys, values, weights, scores,
                      sums, u32(lanes))

    return Tiles(flash_forward, rows, columns, lanes)


def backward_tiles(W, rows, columns, lanes):  # -> Tiles for dkv, Tiles for dq
    of_rows, of_columns, pairs = (rows, W + PAD), (columns, W + PAD), (rows, columns + PAD)
    some_pairs, some_channels = (ROWS, columns // lanes), (ROWS, W // lanes)

    @kernel(F3, F3, U, I1, U, F, F3, F3, F3, F3)
    def flash_backward_kv(q, kv, start, lengths, causal, scale, dout, lse, delta, dkv):
        keys = cuda.shared.array(of_rows, F)
        values = cuda.shared.array(of_rows, F)
        queries = cuda.shared.array(of_columns, F)
        douts = cuda.shared.array(of_columns, F)
        weights = cuda.shared.array(pairs, F)
        scores = cuda.local.array(some_pairs, F)
        dweights = cuda.local.array(some_pairs, F)
        dk = cuda.local.array(some_channels, F)
        dv = cuda.local.array(some_channels, F)
        flash_dkv(q, kv, start, lengths, causal, scale, dout, lse, delta, dkv, keys, values, queries, douts,
                  weights, scores, dweights, dk, dv, u32(lanes))

    @kernel(F3, F3, U, I1, U, F, F3, F3, F3, F3)
    def flash_backward_q(q, kv, start, lengths, causal, scale, dout, lse, delta, dq):
        queries = cuda.shared.array(of_rows, F)
        douts = cuda.shared.array(of_rows, F)
        keys = cuda.shared.array(of_columns, F)
        values = cuda.shared.array(of_columns, F)
        dscores = cuda.shared.array(pairs, F)
        scores = cuda.local.array(some_pairs, F)
        dweights = cuda.local.array(some_pairs, F)
        sums = cuda.local.array(some_channels, F)
        flash_dq(q, kv, start, lengths, causal, scale, dout, lse, delta, dq, queries, douts, keys, values,
                 dscores, scores, dweights, sums, u32(lanes))

    return Tiles(flash_backward_kv, rows, columns, lanes), Tiles(flash_backward_q, rows, columns, lanes)


TILES = {  # channels -> forward, dkv, dq: as large as 48 KB of shared memory and 128 registers a thread allow
    32: (forward_tiles(32, 64, 32, 8), *backward_tiles(32, 64, 32, 8)),
    64: (forward_tiles(64, 64, 32, 8), *backward_tiles(64, 32, 32, 16)),
    128: (forward_tiles(128, 32, 16, 16), *backward_tiles(128, 8, 32, 32)),
}


def fitting(D):  # -> forward, dkv, dq for heads of D channels
    return TILES[min(W for W in TILES if W >= D)]
