"""Lesson 6's embedding on the GPU. Forward is a copy; backward a sum into rows that many threads want.

forward    A block for each token, its threads side by side along the channels: neighbours read and write
           neighbours. N C numbers are written, 2 N C read, most of them from the cache.
backward   version 1   a block for each token adds its row of dout to the token's row of dwte, by atomics:
                       equal tokens take turns. N C numbers are read, and N C changed in the cache. But a sum
                       of floats depends on its order, and that is another one in every run: so are the last
                       digits of dwte, and a few thousand steps later the whole model.
           version 2   first the positions are sorted by their token. Then the rows of one token are one run
                       of the list, which one block adds up, in order: no two blocks want the same row, the
                       bits are always the same. N C numbers are read, and only the rows in use are changed.

How to sort on a GPU? Each of N positions asks by itself how many come before it. That makes N^2 comparisons
of numbers that all lie in the cache: 67 million for 8,192 tokens, no more than a small matrix product, with
one launch and no word between threads. A radix sort compares nothing, and takes a dozen launches: it pays
for millions of tokens. Version 2 is used.
"""
import numpy as np

from kernels.cpu.compiled import check_shapes
from kernels.cpu.embedding import check_rows
from kernels.cuda.compiled import F2, F3, I1, WARP, ZERO, F, U, blocks_for, cuda, f32, inline, kernel, u32
from kernels.cuda.layernorm import warp_sum
from kernels.cuda.memory import Array, empty, op

THREADS = 128  # of a block that has one row
WARPS = 4  # of a block: each has a position to sort, or every WARPS-th row of a run
NAN = f32(np.nan)


@inline
def inside(token, table):  # int32, (V, C)
    """Is there such a row? No kernel reads or writes another one."""
    return token >= 0 and token < table.shape[0]


@kernel(I1, F2, F2, U, U, F2)
def add_rows(tokens, wte, wpe, start, T, x):  # (N,), (V, C), (P, C) -> (N, C); a block a token
    n = u32(cuda.blockIdx.x)
    token, position = tokens[n], u32(start + n % T)
    known = inside(token, wte)
    for c in range(u32(cuda.threadIdx.x), u32(x.shape[1]), u32(THREADS)):
        x[n, c] = wte[u32(token), c] + wpe[position, c] if known else NAN


@kernel(I1, F2, F2)
def scatter_atomic(tokens, dout, dwte):  # (N,), (N, C), (V, C)
    """Add each row dout[n] to the row tokens[n] of dwte, which goes on from what it holds. Not for a token
    that has no row there: ask inside(token, dwte), above.

    Launch: N blocks of THREADS threads, block n for row n. Its threads stand side by side along the channels:
    thread t has the channels t, t + THREADS, ... Other blocks may add to the same row at the same moment, and
    between the reading and the writing of a += one sum would be lost. cuda.atomic.add(dwte, (row, channel),
    value) lets nobody in between. The row as a u32: a signed index costs a test.
    """
    n = u32(cuda.blockIdx.x)
    token = tokens[n]
    if inside(token, dwte):
        for c in range(u32(cuda.threadIdx.x), u32(dout.shape[1]), u32(THREADS)):
            cuda.atomic.add(dwte, (u32(token), c), dout[n, c])


@kernel(I1, I1, I1)
def sort_positions(tokens, order, runs):  # (N,) -> (N,), (N,)
    """Sort the positions 0 to N - 1 by their token, those of one token from left to right:

        order[place] = n      place: how many positions have a smaller token, or the same one further left
        runs[place] = length  where a token's run begins: how many have it. 0 where a run goes on

    so [3, 0, 3, 3] gives order [1, 0, 2, 3] and runs [1, 3, 0, 0].

    Launch: blocks of (32, WARPS) threads: thread (lane, warp) of a block is one of 32 that work on position
    `blockIdx.x * WARPS + warp`, if there is one. Lane l looks at the tokens l, l + 32, ... and counts.
    warp_sum (of layernorm.py) adds up what the lanes have counted; all 32 must call it. Then one writes.
    """
    lane, n = u32(cuda.threadIdx.x), u32(cuda.blockIdx.x * WARPS + cuda.threadIdx.y)
    N = u32(tokens.shape[0])
    if n < N:
        token, smaller, same, left = tokens[n], 0, 0, 0
        for m in range(lane, N, WARP):
            smaller += tokens[m] < token
            same += tokens[m] == token
            left += tokens[m] == token and m < n
        smaller, same, left = warp_sum(smaller), warp_sum(same), warp_sum(left)
        if lane == 0:
            order[smaller + left] = n
            runs[smaller + left] = same if left == 0 else 0


@kernel(I1, I1, I1, F2, F2)
def sum_runs(tokens, order, runs, dout, dwte):  # (N,), (N,), (N,), (N, C), (V, C)
    """Add to each row of dwte the sum of the rows of dout that belong to its token. order and runs are those
    of sort_positions (above): where runs[place] is not 0, a token has the positions order[place],
    order[place + 1], ..., order[place + runs[place] - 1]. A token not inside(token, dwte) is left out.

    Launch: a grid of (N, C / 32 rounded up) blocks, each of (32, WARPS) threads. Block (place, j) has the run
    that begins there, if one does, and the channels from 32 j on, of which thread (lane, warp) has channel
    32 j + lane: of every WARPS-th row of the run, from row `warp` on. It leaves its sum in
    parts[warp, lane]; behind a barrier, one thread of each channel adds up its WARPS parts, from the first to
    the last, and adds that to dwte. Each number of dwte is one thread's alone: no atomics. Always the same
    order: the same bits. Where no run begins, the whole block can return; where one does, all of its threads
    come to the barrier, also those of channels that dwte does not have.
    """
    place, lane, warp = u32(cuda.blockIdx.x), u32(cuda.threadIdx.x), u32(cuda.threadIdx.y)
    parts = cuda.shared.array((WARPS, 32), F)
    c, C = u32(cuda.blockIdx.y * WARP + lane), u32(dout.shape[1])
    length, token = u32(runs[place]), tokens[order[place]]
    if length == 0 or not inside(token, dwte):
        return
    total = ZERO
    if c < C:
        for i in range(warp, length, u32(WARPS)):
            total += dout[order[place + i], c]
    parts[warp, lane] = total
    cuda.syncthreads()
    if warp == 0 and c < C:
        total = ZERO
        for i in range(WARPS):
            total += parts[i, lane]
        dwte[u32(token), c] += total


@kernel(F3, U, F2)
def sum_batch(dout, start, dwpe):  # (B, T, C) -> (P, C); a block a position
    p, B, T = u32(cuda.blockIdx.x), u32(dout.shape[0]), u32(dout.shape[1])
    for c in range(u32(cuda.threadIdx.x), u32(dwpe.shape[1]), u32(THREADS)):
        total = ZERO
        if p >= start and p < start + T:
            for b in range(B):
                total += dout[b, p - start, c]
        dwpe[p, c] = total


def embedding_forward(tokens, wte, wpe, start=0):  # (B, T) int, (V, C), (P, C) -> (B, T, C)
    """The host cannot look at tokens that are an Array. Where one has no row in wte, x becomes NaN."""
    if isinstance(tokens, Array):
        check_rows(np.empty((0, tokens.shape[1]), int), start, wte, wpe)
    else:
        tokens = np.asarray(tokens).astype(np.int64, casting="same_kind", copy=False)
        check_rows(tokens, start, wte, wpe)
    return forward(tokens, wte, wpe, start)


@op
def forward(tokens, wte, wpe, start):
    (B, T), C = tokens.shape, wte.shape[1]
    x = empty((B, T, C))
    if x.size:
        add_rows[B * T, THREADS](tokens.reshape(-1), wte, wpe, start, T, x.reshape(-1, C))
    return x, (tokens, start, wte.shape)


@op
def embedding_backward(dout, cache, dwte, dwpe):  # (B, T, C)
    """Adds to dwte (V, C), writes dwpe (P, C). Tokens that have no row in dwte are left out."""
    backward(sorted_scatter, dout, cache, dwte, dwpe)


@op
def embedding_backward_atomic(dout, cache, dwte, dwpe):
    """The same, with version 1."""
    backward(atomic_scatter, dout, cache, dwte, dwpe)


def backward(scatter, dout, cache, dwte, dwpe):
    tokens, start, table = cache
    check_shapes(table, dwte=dwte)
    check_rows(np.empty((0, tokens.shape[1]), int), start, dwte, dwpe)
    check_shapes((*tokens.shape, table[1]), dout=dout)
    sum_batch[len(dwpe), THREADS](dout, start, dwpe)
    if dout.size:
        scatter(tokens.reshape(-1), dout.reshape(-1, table[1]), dwte)


def atomic_scatter(tokens, dout, dwte):  # (N,), (N, C), (V, C)
    scatter_atomic[tokens.size, THREADS](tokens, dout, dwte)


def sorted_scatter(tokens, dout, dwte):  # (N,), (N, C), (V, C)
    N, C = dout.shape
    order, runs = empty(N, np.int32), empty(N, np.int32)
    sort_positions[blocks_for(N, WARPS), (32, WARPS)](tokens, order, runs)
    sum_runs[(N, blocks_for(C, 32)), (32, WARPS)](tokens, order, runs, dout, dwte)
