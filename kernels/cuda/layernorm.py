"""Lesson 13's layer norm: rows (N, C), one after the other, none knows of the others. Few FLOPs: what counts
is how many of the N C numbers travel, and how many travel at once.

forward    version 1   a thread a row. Neighbouring threads read numbers C apart: memory sends 32 bytes for
                       each four that are asked for, and three times, in three passes over the row.
           version 2   a warp a row. Lane 0 reads channels 0, 32, ..., lane 1 reads 1, 33, ...: all of the 128
                       bytes side by side are used. The lanes' sums meet by shuffles, without shared memory.
                       N C numbers come from memory, 2 N C more from the cache, N C are written.
           version 3   the same, but a lane keeps its numbers of the row in registers, up to KEPT of them. x
                       is read once, and all of a row is on its way before the first number has arrived.
backward   version 1   dx: a warp a row. dweight and dbias: a thread a channel and a strip of STRIP rows;
                       column_sums then adds the strips. Both launches read dout and x from memory: 4 N C
                       numbers are read, 5 N C with dresidual, and N C written.
           version 2   one launch: a block finds dx of a strip, and then adds the same rows while they are in
                       the cache. 2 N C or 3 N C from memory, N C written.

Used are forward's version 3, or 2 where a row has more than 32 KEPT channels, and backward's version 2.
"""
import math

from kernels.cpu.compiled import check_shapes
from kernels.cuda.column_sums import column_sums
from kernels.cuda.compiled import F1, F2, ONE, WARP, ZERO, F, U, blocks_for, cuda, f32, inline, kernel, u32
from kernels.cuda.memory import empty, op

THREADS = 128  # of a block in which threads work alone
WARPS = 4  # of a block with a warp a row
KEPT = 32  # numbers of a row that a lane keeps
STRIP, STRIP_WARPS = 16, 8  # rows whose dweight and dbias are added at once, and warps of their block


@inline
def warp_sum(value):  # float32 -> float32
    """The sum of `value` over the 32 threads of a warp, in every one of them, in five steps. In the first,
    each adds what the thread 16 lanes away has, and so both have the same sum. Then it is 8 away, 4, 2, 1.

    cuda.shfl_xor_sync(0xFFFFFFFF, value, step) gives the `value` of the thread whose lane is this one's lane
    ^ step. The mask of 32 ones says that all threads of the warp come here.
    """
    for step in (16, 8, 4, 2, 1):
        value += cuda.shfl_xor_sync(0xFFFFFFFF, value, step)
    return value


@kernel(F2, F1, F1, F, F2, F2)
def normalize_rows_v1(x, weight, bias, eps, out, mean_rstd):  # (N, C), (C,), (C,) -> (N, C), (N, 2)
    """Write out = (x - mean) * rstd * weight + bias for each row, and its mean and rstd into mean_rstd[n].

        mean = sum(x) / C,   rstd = 1 / sqrt(sum((x - mean)^2) / C + eps)

    x, weight and bias are only read. Launch: N threads in blocks of THREADS, so the last block may have some
    too many. A thread does its whole row, in three passes. ZERO, ONE, f32(C) and math.sqrt: else float64.
    """
    n = u32(cuda.grid(1))
    N, C = u32(x.shape[0]), u32(x.shape[1])
    if n < N:
        total = ZERO
        for c in range(C):
            total += x[n, c]
        mean = total / f32(C)
        square = ZERO
        for c in range(C):
            square += (x[n, c] - mean) * (x[n, c] - mean)
        rstd = ONE / math.sqrt(square / f32(C) + eps)
        for c in range(C):
            out[n, c] = (x[n, c] - mean) * rstd * weight[c] + bias[c]
        mean_rstd[n, 0] = mean
        mean_rstd[n, 1] = rstd


@kernel(F2, F1, F1, F, F2, F2)
def normalize_rows_v2(x, weight, bias, eps, out, mean_rstd):  # (N, C), (C,), (C,) -> (N, C), (N, 2)
    """As version 1, with a warp for each row.

    Launch: blocks of (32, WARPS) threads, so thread (lane, warp) of a block is one of 32 that work on row
    `blockIdx.x * WARPS + warp`. Together they read 32 channels side by side, then the next 32: each has the
    channels lane, lane + 32, ... A row is one warp's alone, so all of its threads call warp_sum (above), or
    none does. Each of them then knows mean and rstd; lane 0 writes them.
    """
    lane, n = u32(cuda.threadIdx.x), u32(cuda.blockIdx.x * WARPS + cuda.threadIdx.y)
    N, C = u32(x.shape[0]), u32(x.shape[1])
    if n < N:
        total = ZERO
        for c in range(lane, C, WARP):
            total += x[n, c]
        mean = warp_sum(total) / f32(C)
        square = ZERO
        for c in range(lane, C, WARP):
            square += (x[n, c] - mean) * (x[n, c] - mean)
        rstd = ONE / math.sqrt(warp_sum(square) / f32(C) + eps)
        for c in range(lane, C, WARP):
            out[n, c] = (x[n, c] - mean) * rstd * weight[c] + bias[c]
        if lane == 0:
            mean_rstd[n, 0] = mean
            mean_rstd[n, 1] = rstd


@kernel(F2, F1, F1, F, F2, F2)
def normalize_rows_v3(x, weight, bias, eps, out, mean_rstd):  # (N, C), (C,), (C,) -> (N, C), (N, 2)
    """As version 2, for C <= 32 KEPT. An array lies in registers if the compiler knows every index: so each
    loop goes to KEPT, and asks whether the lane has as many."""
    lane, n = u32(cuda.threadIdx.x), u32(cuda.blockIdx.x * WARPS + cuda.threadIdx.y)
    N, C = u32(x.shape[0]), u32(x.shape[1])
    mine = (C + WARP - u32(1) - lane) // WARP
    kept = cuda.local.array(KEPT, F)
    if n < N:
        total = ZERO
        for i in range(KEPT):
            kept[i] = x[n, lane + u32(i) * WARP] if u32(i) < mine else ZERO
            total += kept[i]
        mean = warp_sum(total) / f32(C)
        square = ZERO
        for i in range(KEPT):
            if u32(i) < mine:
                square += (kept[i] - mean) * (kept[i] - mean)
        rstd = ONE / math.sqrt(warp_sum(square) / f32(C) + eps)
        for i in range(KEPT):
            if u32(i) < mine:
                c = lane + u32(i) * WARP
                out[n, c] = (kept[i] - mean) * rstd * weight[c] + bias[c]
        if lane == 0:
            mean_rstd[n, 0] = mean
            mean_rstd[n, 1] = rstd


@inline
def backward_row(n, lane, dout, x, mean_rstd, weight, dx, add):
    """Write row n of dx (N, C); if `add` is not 0, add it to what is there. The 32 threads of one warp do it
    together, and this one, number `lane`, has the channels lane, lane + 32, ... All else is only read: dout
    and x (N, C), each row's mean and rstd in mean_rstd (N, 2), weight (C,).

    With xhat = (x - mean) * rstd and d = dout * weight, and the means taken along the row:

        dx = rstd * (d - mean(d) - xhat * mean(d * xhat))

    A first pass over the row makes two sums of this lane, warp_sum (above) those of the row; a second pass,
    which finds the row in the cache, writes dx.
    """
    C, mean, rstd = u32(x.shape[1]), mean_rstd[n, 0], mean_rstd[n, 1]
    d_sum, d_xhat = ZERO, ZERO
    for c in range(lane, C, WARP):
        d = dout[n, c] * weight[c]
        d_sum += d
        d_xhat += d * (x[n, c] - mean) * rstd
    d_mean, d_xhat_mean = warp_sum(d_sum) / f32(C), warp_sum(d_xhat) / f32(C)
    for c in range(lane, C, WARP):
        xhat = (x[n, c] - mean) * rstd
        d = rstd * (dout[n, c] * weight[c] - d_mean - xhat * d_xhat_mean)
        dx[n, c] = dx[n, c] + d if add else d


@inline
def backward_channel(c, strip, dout, x, mean_rstd, dweights, dbiases):
    """One thread: dweight and dbias of channel c, over the rows of a strip. Its neighbours have the channels
    beside this one."""
    dweight, dbias, first = ZERO, ZERO, u32(strip * STRIP)
    for n in range(first, min(first + STRIP, u32(x.shape[0]))):
        dweight += dout[n, c] * (x[n, c] - mean_rstd[n, 0]) * mean_rstd[n, 1]
        dbias += dout[n, c]
    dweights[strip, c] = dweight
    dbiases[strip, c] = dbias


@kernel(F2, F2, F2, F1, F2, U)
def backward_rows(dout, x, mean_rstd, weight, dx, add):
    """Launch: as version 2 of forward."""
    lane, n = u32(cuda.threadIdx.x), u32(cuda.blockIdx.x * WARPS + cuda.threadIdx.y)
    if n < u32(x.shape[0]):
        backward_row(n, lane, dout, x, mean_rstd, weight, dx, add)


@kernel(F2, F2, F2, F2, F2)
def backward_channels(dout, x, mean_rstd, dweights, dbiases):  # (N, C), (N, C), (N, 2) -> (S, C), (S, C)
    """Launch: a grid of (S, C / THREADS rounded up) blocks."""
    strip, c = u32(cuda.blockIdx.x), u32(cuda.blockIdx.y * THREADS + cuda.threadIdx.x)
    if c < u32(x.shape[1]):
        backward_channel(c, strip, dout, x, mean_rstd, dweights, dbiases)


@kernel(F2, F2, F2, F1, F2, U, F2, F2)
def backward_strips(dout, x, mean_rstd, weight, dx, add, dweights, dbiases):
    """Launch: S blocks of (32, STRIP_WARPS) threads. What a block writes first, dx, it does not read again:
    no barrier."""
    lane, warp, strip = u32(cuda.threadIdx.x), u32(cuda.threadIdx.y), u32(cuda.blockIdx.x)
    N, C, first = u32(x.shape[0]), u32(x.shape[1]), u32(strip * STRIP)
    for n in range(first + warp, min(first + STRIP, N), STRIP_WARPS):
        backward_row(n, lane, dout, x, mean_rstd, weight, dx, add)
    for c in range(warp * WARP + lane, C, STRIP_WARPS * WARP):
        backward_channel(c, strip, dout, x, mean_rstd, dweights, dbiases)


@op
def layernorm_forward(x, weight, bias, eps=1e-5):
    version_3 = x.shape[-1] <= WARP * KEPT
    return forward(normalize_rows_v3 if version_3 else normalize_rows_v2, x, weight, bias, eps)


def layernorm_forward_v1(x, weight, bias, eps=1e-5):
    return forward(normalize_rows_v1, x, weight, bias, eps, rows=THREADS, threads=THREADS)


def layernorm_forward_v2(x, weight, bias, eps=1e-5):
    return forward(normalize_rows_v2, x, weight, bias, eps)


def forward(normalize, x, weight, bias, eps, rows=WARPS, threads=(32, WARPS)):
    """A block has so many rows, and threads."""
    check_shapes(x.shape[-1:], weight=weight, bias=bias)
    matrix = x.reshape(-1, x.shape[-1])
    out, mean_rstd = empty(matrix.shape), empty((len(matrix), 2))
    normalize[blocks_for(len(matrix), rows), threads](matrix, weight, bias, eps, out, mean_rstd)
    return out.reshape(x.shape), (x, mean_rstd, weight)


@op
def layernorm_backward(dout, cache, dweight, dbias, dresidual=None):
    """dresidual is used up: the result is added into it."""
    rows, strips, dx = prepared(dout, cache, dweight, dbias, dresidual)
    backward_strips[len(strips[0]), (32, STRIP_WARPS)](*rows, dx, dresidual is not None, *strips)
    column_sums(strips[0], dweight)
    column_sums(strips[1], dbias)
    return dx.reshape(dout.shape)


def layernorm_backward_v1(dout, cache, dweight, dbias, dresidual=None):
    rows, strips, dx = prepared(dout, cache, dweight, dbias, dresidual)
    S, C = strips[0].shape
    backward_rows[blocks_for(len(dx), WARPS), (32, WARPS)](*rows, dx, dresidual is not None)
    backward_channels[(S, blocks_for(C, THREADS)), THREADS](*rows[:3], *strips)
    column_sums(strips[0], dweight)
    column_sums(strips[1], dbias)
    return dx.reshape(dout.shape)


def prepared(dout, cache, dweight, dbias, dresidual):
    """What the kernels read, as rows; where they write the sums of strips, and dx."""
    x, mean_rstd, weight = cache
    check_shapes(x.shape, dout=dout, dresidual=dresidual)
    check_shapes(weight.shape, dweight=dweight, dbias=dbias)
    N, C = len(mean_rstd), len(weight)
    strips = [empty((blocks_for(N, STRIP), C)) for _ in range(2)]
    dx = empty((N, C)) if dresidual is None else dresidual.reshape(N, C)
    return (dout.reshape(N, C), x.reshape(N, C), mean_rstd, weight), strips, dx
