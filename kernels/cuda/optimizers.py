"""Lesson 10's optimizers on the GPU: how do a hundred million threads agree on one number?

The sum of squares of a gradient decides how far the step is clipped. Reading n numbers is 4 n bytes, and two
operations each: memory sets the pace, unless the sum does.

version 1   square_atomic   every thread adds its square to one number. Such additions take turns: n threads
                            stand in one queue. And they come in any order: another one, another rounding
version 2   square_tree     a block adds up its numbers in shared memory, in 8 rounds with a barrier each, and
                            leaves one number; a second launch adds those up in the same way. Always in the
                            same order, so the bits are always the same
version 3   square_warps    the 32 threads of a warp run together and read each other's registers: 5 shuffles
                            need no memory and no barrier. Only the warps' sums meet in shared memory

Each reads a number once. In 2 and 3 a thread first adds up EACH numbers by itself, a block's width apart, so
that neighbours read neighbours and many reads are under way at once. Version 3 is used.

The updates read and write each number once, a thread an element: 5 * 4 n bytes for SGD, 7 * 4 n for AdamW
(p, g, m, v in; p, m, v out), against some ten operations. Muon's time goes into matrix products.

A training step asks the host for nothing: what changes from step to step, `numbers` (the rates) and `scale`
(the clipping), lies in GPU memory, so that a CUDA graph can play the step again. A scale of NaN says that
the step has diverged: then no update changes anything, and the parameters are those of the step before.
"""
import math

import numpy as np

from kernels.cpu.compiled import check_shapes
from kernels.cuda.compiled import F1, ONE, WARP, ZERO, F, U, blocks_for, cuda, f32, inline, kernel, u32
from kernels.cuda.matmul import matmul
from kernels.cuda.memory import empty, on_gpu, op

THREADS, WARPS = 256, 8  # of a block
HALVES = 128, 64, 32, 16, 8, 4, 2, 1
EACH = 16  # numbers that a thread adds up by itself
CHUNK = THREADS * EACH  # numbers of a block
ALL = 0xFFFFFFFF  # all 32 threads of a warp take part in a shuffle
A, B, C = f32(3.4445), f32(-4.775), f32(2.0315)
NAN, TINY, SMALL = f32(np.nan), f32(1e-6), f32(1e-7)


# the sum of squares


@kernel(F1, F1)
def squares_atomic(g, total):  # (n,), (1,); a thread an element
    i = u32(cuda.grid(1))
    if i < u32(g.size):
        cuda.atomic.add(total, 0, g[i] * g[i])


@inline
def block_sum_tree(mine):  # float32, another one in each thread -> float32, the same in all
    """The sum of `mine` over the THREADS threads of a block (a power of 2), in all of them.

    Each thread writes its own into shared[t]. Then, for each `half` of HALVES (128, 64, ... 1), the upper
    half is added to the lower one: shared[t] += shared[t + u32(half)], where t < half. The sum is in
    shared[0]. What a round reads, other threads have written in the one before: between the two stands a
    cuda.syncthreads(), to which all threads come, also those that add nothing.
    """
    t = u32(cuda.threadIdx.x)
    shared = cuda.shared.array(THREADS, F)
    shared[t] = mine
    cuda.syncthreads()
    for half in HALVES:
        if t < u32(half):
            shared[t] += shared[t + u32(half)]
        cuda.syncthreads()
    return shared[0]


@inline
def block_sum_warps(mine):  # float32, another one in each thread -> float32, the same in all
    """The sum of `mine` over the THREADS threads of a block, in all of them, with one barrier.

    cuda.shfl_xor_sync(ALL, mine, distance) is the `mine` of the thread whose number differs from one's own in
    the bit `distance`. It is added to one's own: for 16, 8, 4, 2 and 1 in turn. After these five all threads
    of a warp have the warp's sum. Its first thread (t % WARP is 0) writes it into shared[t // WARP]. After a
    cuda.syncthreads() every thread adds up the WARPS numbers there, from the first to the last.
    """
    t = u32(cuda.threadIdx.x)
    shared = cuda.shared.array(WARPS, F)
    for distance in (16, 8, 4, 2, 1):
        mine += cuda.shfl_xor_sync(ALL, mine, distance)
    if t % WARP == 0:
        shared[t // WARP] = mine
    cuda.syncthreads()
    total = ZERO
    for warp in range(WARPS):
        total += shared[warp]
    return total


@inline
def squares_of_thread(g):  # (n,) -> float32
    """The sum of squares of EACH numbers of the block's CHUNK, THREADS apart. For a whole chunk the loop has
    no `if`, so that the compiler can put all reads before the first addition: they are under way together."""
    n, start, mine = u32(g.size), u32(cuda.blockIdx.x) * u32(CHUNK), ZERO
    first = start + u32(cuda.threadIdx.x)
    if start + u32(CHUNK) <= n:
        for k in range(EACH):
            x = g[first + u32(k) * u32(THREADS)]
            mine += x * x
    else:
        for i in range(first, n, u32(THREADS)):
            mine += g[i] * g[i]
    return mine


@inline
def share_of_thread(parts):  # (n,) -> float32
    """The sum of every THREADS-th number: one block adds up all."""
    mine = ZERO
    for i in range(u32(cuda.threadIdx.x), u32(parts.size), u32(THREADS)):
        mine += parts[i]
    return mine


@kernel(F1, F1)
def squares_tree(g, parts):  # (n,), (blocks,); a block CHUNK elements
    total = block_sum_tree(squares_of_thread(g))
    if cuda.threadIdx.x == 0:
        parts[u32(cuda.blockIdx.x)] = total


@kernel(F1, F1)
def total_tree(parts, total):  # (blocks,), (1,); one block
    sum_of_all = block_sum_tree(share_of_thread(parts))
    if cuda.threadIdx.x == 0:
        total[0] = sum_of_all


@kernel(F1, F1)
def squares_warps(g, parts):  # (n,), (blocks,); a block CHUNK elements
    total = block_sum_warps(squares_of_thread(g))
    if cuda.threadIdx.x == 0:
        parts[u32(cuda.blockIdx.x)] = total


@kernel(F1, F1)
def total_warps(parts, total):  # (blocks,), (1,); one block
    sum_of_all = block_sum_warps(share_of_thread(parts))
    if cuda.threadIdx.x == 0:
        total[0] = sum_of_all


def square_atomic(g):  # (n,) -> ()
    total = empty(1)
    total[:] = 0
    squares_atomic[blocks_for(g.size, THREADS), THREADS](g, total)
    return total[0]


def square_tree(g):  # (n,) -> ()
    blocks = blocks_for(g.size, CHUNK)
    parts, total = empty(blocks), empty(())
    squares_tree[blocks, THREADS](g, parts)
    total_tree[1, THREADS](parts, total)
    return total


def square_warps(g):  # (n,) -> ()
    blocks = blocks_for(g.size, CHUNK)
    parts, total = empty(blocks), empty(())
    squares_warps[blocks, THREADS](g, parts)
    total_warps[1, THREADS](parts, total)
    return total


@op
def gradient_norm_squared(grads, start, stop):  # (R, n) -> ()
    """A GPU needs one row alone. More are for what was computed in parts."""
    g = grads[0][start:stop]
    for r in range(1, len(grads)):
        g += grads[r][start:stop]
    return square_warps(g)


def clip(square, limit, scale):  # (), float, ()
    clip_scale[1, 1](square, limit, scale)


@kernel(F1, F, F1)
def clip_scale(square, limit, scale):  # (1,), float32, (1,); one thread
    """scale[0] <- what to multiply the gradient by, so that its norm, the root of square[0], is at most
    limit: limit / (norm + TINY), and ONE where that exceeds it. NAN if square[0] is NaN or infinite
    (math.isfinite): the step has diverged. One thread does it; the host would have to wait for the GPU."""
    if math.isfinite(square[0]):
        scale[0] = min(limit / (math.sqrt(square[0]) + TINY), ONE)
    else:
        scale[0] = NAN


# SGD and AdamW


@op
def sgd(p, g, m, lr, momentum, weight_decay, scale):
    sgd_step(p, g, m, on_gpu(sgd_numbers(lr, momentum, weight_decay)), on_gpu(scale))


def sgd_numbers(lr, momentum, weight_decay):  # -> what sgd_step takes as `numbers`
    return lr, momentum, 1 - lr * weight_decay


def sgd_step(p, g, m, numbers, scale):  # (n,), (n,), (n,), (3,), ()
    check_shapes(p.shape, g=g, m=m)
    sgd_update[blocks_for(p.size, THREADS), THREADS](p, g, m, numbers, scale)


@kernel(F1, F1, F1, F1, F1)
def sgd_update(p, g, m, numbers, scale):  # (n,), (n,), (n,), (3,), (1,); a thread an element
    i, s = u32(cuda.grid(1)), scale[0]
    lr, momentum, keep = numbers[0], numbers[1], numbers[2]
    if i < u32(p.size) and not math.isnan(s):
        m[i] = momentum * m[i] + s * g[i]
        p[i] = keep * p[i] - lr * m[i]


@op
def adamw(p, g, m, v, lr, beta1, beta2, eps, weight_decay, step, scale):
    numbers = adamw_numbers(lr, beta1, beta2, eps, weight_decay, step)
    adamw_step(p, g, m, v, on_gpu(numbers), on_gpu(scale))


def adamw_numbers(lr, beta1, beta2, eps, weight_decay, step):  # -> what adamw_step takes as `numbers`
    return (lr / (1 - beta1**step), beta1, 1 - beta1, beta2, 1 - beta2, 1 / (1 - beta2**step), eps,
            1 - lr * weight_decay)


def adamw_step(p, g, m, v, numbers, scale):  # (n,) four times, (8,), ()
    check_shapes(p.shape, g=g, m=m, v=v)
    adamw_update[blocks_for(p.size, THREADS), THREADS](p, g, m, v, numbers, scale)


@kernel(F1, F1, F1, F1, F1, F1)
def adamw_update(p, g, m, v, numbers, scale):  # (n,) four times, (8,), (1,); float32
    """One thread changes one element, i, in place; g is only read. The last block reaches beyond the end,
    where nothing may be read or written. If the scale s is NaN (math.isnan), nothing is changed.

        g' = s * g[i]
        m[i] <- b1 * m[i] + a1 * g'
        v[i] <- b2 * v[i] + a2 * g'^2
        p[i] <- keep * p[i] - rate * m[i] / (sqrt(v[i] * inverse) + eps), with the new m[i] and v[i]

    numbers are b1 = beta1, a1 = 1 - beta1, b2 = beta2, a2 = 1 - beta2, and what the host has worked out for
    all elements: rate = lr / (1 - beta1^t), inverse = 1 / (1 - beta2^t), keep = 1 - lr * weight_decay. Memory
    sets the pace, so each number is read once and written once: the new m[i] and v[i] stay in variables.
    """
    i, s = u32(cuda.grid(1)), scale[0]
    rate, b1, a1, b2 = numbers[0], numbers[1], numbers[2], numbers[3]
    a2, inverse, eps, keep = numbers[4], numbers[5], numbers[6], numbers[7]
    if i < u32(p.size) and not math.isnan(s):
        gi = s * g[i]
        mi = b1 * m[i] + a1 * gi
        vi = b2 * v[i] + a2 * gi * gi
        m[i], v[i] = mi, vi
        p[i] = keep * p[i] - rate * mi / (math.sqrt(vi * inverse) + eps)


# Muon


@op
def muon(p, g, m, lr, momentum, weight_decay, scale):
    muon_step(p, g, m, on_gpu(muon_numbers(lr, momentum, weight_decay)), on_gpu(scale))


muon_numbers = sgd_numbers  # what muon_step takes


def muon_step(p, g, m, numbers, scale):  # (n, k), (n, k), (n, k), (3,), ()
    check_shapes(p.shape, g=g, m=m)
    x, blocks = empty(p.shape), blocks_for(p.size, CHUNK)
    parts, square = empty(blocks), empty(())
    nesterov[blocks, THREADS](g.reshape(-1), m.reshape(-1), x.reshape(-1), numbers, scale, parts)
    total_warps[1, THREADS](parts, square)
    normalize[blocks_for(p.size, THREADS), THREADS](x.reshape(-1), square)
    x = newton_schulz(x)
    wider = math.sqrt(max(1, p.shape[1] / p.shape[0]))
    muon_update[blocks_for(p.size, THREADS), THREADS](p.reshape(-1), x.reshape(-1), numbers, scale, wider)


@kernel(F1, F1, F1, F1, F1, F1)
def nesterov(g, m, x, numbers, scale, parts):  # (n,), (n,), (n,), (3,), (1,), (blocks,)
    """A block has CHUNK elements: their m, x, and its part of x's sum of squares, in one go. The x of a step
    that has diverged is NaN, and is not used."""
    s, momentum, mine = scale[0], numbers[1], ZERO
    first = u32(cuda.blockIdx.x) * u32(CHUNK) + u32(cuda.threadIdx.x)
    for k in range(EACH):
        i = first + u32(k) * u32(THREADS)
        if i < u32(g.size):
            gi = s * g[i]
            mi = m[i] + (ONE - momentum) * (gi - m[i])
            xi = gi + momentum * (mi - gi)
            if not math.isnan(s):
                m[i] = mi
            x[i] = xi
            mine += xi * xi
    total = block_sum_warps(mine)
    if cuda.threadIdx.x == 0:
        parts[u32(cuda.blockIdx.x)] = total


@kernel(F1, F1)
def normalize(x, square):  # (n,), (1,); a thread an element
    i = u32(cuda.grid(1))
    if i < u32(x.size):
        x[i] *= ONE / (math.sqrt(square[0]) + SMALL)


def newton_schulz(x):  # (n, k) with norm 1 -> (n, k); x is used up
    """Five rounds on the small squares, as kernels/cpu/optimizers.py explains them: 3 + 2 for a long one."""
    tall, small, long = x.shape[0] > x.shape[1], min(x.shape), max(x.shape)
    gram, p, q, spare = (empty((small, small)) for _ in range(4))
    y = empty(x.shape)
    for rounds in (3, 2) if long >= 2 * small else (1, 1, 1, 1, 1):
        matmul(*(x.T, x) if tall else (x, x.T), gram)
        for k in range(rounds):
            matmul(gram, gram, p)
            polynomial[blocks_for(p.size, THREADS), THREADS](gram.reshape(-1), p.reshape(-1), small)
            if k + 1 < rounds:
                matmul(p, gram, spare)
                matmul(spare, p, gram)
            if k == 0:
                p, q = q, p
            else:
                matmul(p, q, spare)
                q, spare = spare, q
        matmul(*(x, q) if tall else (q, x), y)
        x, y = y, x
    return x


@kernel(F1, F1, U)
def polynomial(gram, square, n):  # (n * n,), (n * n,), n; a thread an element
    """square <- A * I + B * gram + C * square: a diagonal element comes every n + 1 numbers."""
    i = u32(cuda.grid(1))
    if i < u32(gram.size):
        value = B * gram[i] + C * square[i]
        square[i] = value + A if i % (n + u32(1)) == 0 else value


@kernel(F1, F1, F1, F1, F)
def muon_update(p, x, numbers, scale, wider):  # (n,), (n,), (3,), (1,), number; a thread an element
    i, lr, keep = u32(cuda.grid(1)), numbers[0], numbers[2]
    if i < u32(p.size) and not math.isnan(scale[0]):
        p[i] = keep * p[i] - lr * wider * x[i]
