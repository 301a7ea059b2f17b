"""Lesson 8's cross-entropy on the GPU: the loss, and over the logits their gradient, in one launch.

version 1   a thread a row, which it reads three times: for the largest, for the sum, for the gradient. The
            threads of a warp read numbers V apart: of each 32 bytes that memory sends, 4 are used at once.
version 2   a block a row, its threads side by side along the row. Largest and sum are found in one pass, the
            online softmax: where a larger number turns up, what was summed so far shrinks. The second pass
            goes from the end to the beginning: what was read last is still in the cache. N V numbers are
            read from memory, N V from the cache or from memory, N V are written; some 30 FLOPs for each, so
            memory sets the pace.

The rows' losses are added up by a block, always in the same order, and stay on the GPU until someone asks for
them: float(loss) waits for all that was queued before. Version 2 is used.
"""
import math

import numpy as np

from kernels.cuda.compiled import F1, F2, I1, ONE, WARP, ZERO, F, blocks_for, cuda, f32, inline, kernel, u32
from kernels.cuda.memory import Array, empty, op
from kernels.cuda.optimizers import THREADS, block_sum_warps, share_of_thread

IGNORE = -1
ROW_THREADS = 64  # of a block whose threads have a row each
MOST_WARPS = 32  # of a block that has a row: the GPU allows no more
EACH = 8  # numbers of a row that a thread should have, before the row gets more threads
LOWEST, NAN = f32(np.finfo(np.float32).min), f32(np.nan)  # LOWEST, not -inf: -inf minus -inf is NaN


@kernel(I1, F1)
def count_targets(targets, total):  # (N,) -> (1,); one block of THREADS threads
    """total[0] = how many are not IGNORE; 1, if none is."""
    mine = ZERO
    for n in range(u32(cuda.threadIdx.x), u32(targets.size), u32(THREADS)):
        if targets[n] != IGNORE:
            mine += ONE
    counted = block_sum_warps(mine)
    if cuda.threadIdx.x == 0:
        total[0] = max(counted, ONE)


@kernel(F1, F1, F1)
def mean_loss(losses, total, loss):  # (N,), (1,) -> (1,); one block of THREADS threads
    added = block_sum_warps(share_of_thread(losses))
    if cuda.threadIdx.x == 0:
        loss[0] = added / total[0]


@kernel(F2, I1, F1, F1)
def cross_entropy_rows_v1(logits, targets, total, losses):  # (N, V), (N,), (1,), (N,); a thread a row
    n = u32(cuda.grid(1))
    N, V = u32(logits.shape[0]), u32(logits.shape[1])
    if n < N:
        target, top, norm = targets[n], LOWEST, ZERO
        truth = logits[n, u32(target)] if target >= 0 and target < V else NAN
        for v in range(V):
            top = max(top, logits[n, v])
        for v in range(V):
            norm += math.exp(logits[n, v] - top)
        losses[n] = ZERO if target == IGNORE else math.log(norm) + (top - truth)
        for v in range(V):
            p = math.exp(logits[n, v] - top) / norm
            d = p - ONE if v == u32(target) else p
            logits[n, v] = ZERO if target == IGNORE else d / total[0]


@inline
def merged(top, norm, other_top, other_norm):  # float32 -> float32, float32
    """Two parts of a row become one. Each has its largest number, top, and norm, the sum of exp(x - top) over
    its numbers. Of the one with the smaller top the norm shrinks, by exp of the difference."""
    shrink = math.exp(-abs(top - other_top))
    if top < other_top:
        top, norm = other_top, norm * shrink + other_norm
    else:
        norm += other_norm * shrink
    return top, norm


@inline
def warp_softmax(top, norm):
    """merged, over the 32 threads of a warp, in every one of them."""
    for step in (16, 8, 4, 2, 1):
        other_top = cuda.shfl_xor_sync(0xFFFFFFFF, top, step)
        top, norm = merged(top, norm, other_top, cuda.shfl_xor_sync(0xFFFFFFFF, norm, step))
    return top, norm


@inline
def block_softmax(top, norm):  # float32, float32, others in each thread -> the same two in all
    """Largest number and norm of a row, of which each thread of the block brings those of its part. A block
    has 1 to MOST_WARPS whole warps, cuda.blockDim.x threads; all of them come here, once.

    warp_softmax (above) merges the 32 parts of a warp: then all its threads know the warp's two numbers. The
    first thread of each warp writes them into tops[warp] and norms[warp]. Behind a barrier every warp, for
    itself, reads those of all warps, lane l those of warp l, and merges them in the same way. A lane that has
    no warp to read brings LOWEST and ZERO, which change nothing.
    """
    tops = cuda.shared.array(MOST_WARPS, F)
    norms = cuda.shared.array(MOST_WARPS, F)
    lane, warp = u32(cuda.threadIdx.x) % WARP, u32(cuda.threadIdx.x) // WARP
    top, norm = warp_softmax(top, norm)
    if lane == 0:
        tops[warp] = top
        norms[warp] = norm
    cuda.syncthreads()
    there = lane < u32(cuda.blockDim.x) // WARP
    return warp_softmax(tops[lane] if there else LOWEST, norms[lane] if there else ZERO)


@kernel(F2, I1, F1, F1)
def cross_entropy_rows_v2(logits, targets, total, losses):  # (N, V), (N,), (1,), (N,)
    """Write each row's loss, and over its logits the gradient, divided by total[0]:

        losses[n] = log(norm) + (top - logits[n, target]),    norm = sum over v of exp(logits[n, v] - top)
        logits[n, v] = (exp(logits[n, v] - top) / norm - (1 if v == target else 0)) / total[0]

    with top the largest of the row. If the target is IGNORE, the loss is 0, and so is the row, whatever was
    in it. Another target that is none of the V classes gives a loss of NAN, and no access outside of the row.

    Launch: N blocks, of any number of whole warps (cuda.blockDim.x threads). Block n has row n, and its
    thread t the numbers t, t + threads, ...: neighbours read neighbours. Begin with LOWEST and ZERO; a number
    x is a part of the row by itself, with the top x and the norm ONE: merged (above) adds it. block_softmax
    (above) then knows top and norm of the row. Its barrier also parts reading from writing: the target's
    logit is read before it, the gradient written behind it. Thread 0 writes the loss. The second pass begins
    at the end of the row, which is still in the cache. A row that is IGNOREd has no barrier, so its whole
    block may return.
    """
    n, t, threads = u32(cuda.blockIdx.x), u32(cuda.threadIdx.x), u32(cuda.blockDim.x)
    V, target = u32(logits.shape[1]), targets[n]
    if target == IGNORE:
        for v in range(t, V, threads):
            logits[n, v] = ZERO
        if t == 0:
            losses[n] = ZERO
        return
    truth = logits[n, u32(target)] if target >= 0 and target < V else NAN
    top, norm = LOWEST, ZERO
    for v in range(t, V, threads):
        top, norm = merged(top, norm, logits[n, v], ONE)
    top, norm = block_softmax(top, norm)
    if t == 0:
        losses[n] = math.log(norm) + (top - truth)
    scale = ONE / total[0]
    ratio = scale / norm
    for i in range(t, V, threads):
        v = V - u32(1) - u32(i)
        p = math.exp(logits[n, v] - top) * ratio
        logits[n, v] = p - scale if v == u32(target) else p


def threads_for(n):  # int -> int
    """How many threads share a row of n numbers: 32, 64, ... 1024. The fewest with EACH or less each."""
    return min(32 * MOST_WARPS, 32 << (blocks_for(n, 32 * EACH) - 1).bit_length())


def rows_v1(logits, targets, total, losses):
    cross_entropy_rows_v1[blocks_for(len(logits), ROW_THREADS), ROW_THREADS](logits, targets, total, losses)


def rows_v2(logits, targets, total, losses):
    cross_entropy_rows_v2[len(logits), threads_for(logits.shape[1])](logits, targets, total, losses)


def cross_entropy(logits, targets, total=None):  # (..., V) float32, (...) int -> (), (..., V)
    """Loss and dlogits. logits are used up: dlogits are written over them."""
    return loss_and_gradient(rows_v2, logits, *checked(logits, targets, total))


def cross_entropy_v1(logits, targets, total=None):
    return loss_and_gradient(rows_v1, logits, *checked(logits, targets, total))


def checked(logits, targets, total):  # -> targets, total
    """The host cannot look at targets that are an Array, nor count them: then the GPU does."""
    V, targets = logits.shape[-1], targets if isinstance(targets, Array) else np.asarray(targets)
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"targets {targets.shape} must be {logits.shape[:-1]}: one for each row of logits")
    if isinstance(targets, Array):
        return targets, total
    targets = targets.astype(np.int64, casting="same_kind", copy=False)
    low, high = int(targets.min(initial=0)), int(targets.max(initial=0))
    if low < IGNORE or high >= V:
        raise ValueError(f"target {low if low < IGNORE else high} is none of {V} classes: "
                         f"use 0 to {V - 1}, or {IGNORE} for what does not count")
    return targets, max(1, np.count_nonzero(targets != IGNORE)) if total is None else total


@op
def loss_and_gradient(rows, logits, targets, total):
    N = targets.size
    losses, loss, divisor = empty(N), empty(()), empty(1)
    if total is None:
        count_targets[1, THREADS](targets.reshape(-1), divisor)
    else:
        divisor[:] = total
    if N:
        rows(logits.reshape(N, -1), targets.reshape(-1), divisor, losses)
    mean_loss[1, THREADS](losses, divisor, loss)
    return loss, logits
