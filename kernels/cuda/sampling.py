"""Lesson 19's choice of a token on the GPU: the logits of V tokens stay there, and one number comes back.

The probabilities softmax(logits / temperature) lie end to end from 0 to 1. A token is chosen if the random
number u falls into its part. Where that part begins, only the sum of all parts before it can tell: how can a
thousand threads help?

version 1   one thread. V exponentials and V additions, one after the other, twice.
version 2   a block. Together its threads find the largest logit, then each adds up a strip of neighbouring
            tokens. A scan turns these sums into where each strip ends, in log2(threads) rounds, though every
            end is a sum over all strips before it. The thread in whose strip u falls looks for the token.

V numbers are read twice, the second time from the cache, and nothing is written but one. Version 2 is used.
"""
import math

import numpy as np

from kernels.cuda.compiled import F1, I1, ZERO, F, cuda, f32, i32, inline, kernel, u32
from kernels.cuda.losses import LOWEST, MOST_WARPS, block_softmax, threads_for
from kernels.cuda.memory import empty, op

MOST_THREADS = 32 * MOST_WARPS
BELOW_ONE = f32(1 - 2**-24)  # the largest float32 below 1: u = 1 would point behind the last token


@inline
def largest(logits, first, step):  # (V,) -> float32, where
    """The largest of the logits first, first + step, ..., and where it first is. LOWEST and 0, if none is
    larger than LOWEST."""
    top, at = LOWEST, i32(0)
    for v in range(first, u32(logits.size), step):
        if logits[v] > top:
            top, at = logits[v], i32(v)
    return top, at


@inline
def part_of(logit, top, temperature):  # how long a token's part is, if that of the largest logit is 1
    return math.exp((logit - top) / temperature)


@inline
def walk(logits, first, last, top, temperature, begin, target, otherwise):  # -> a token
    """The one from first to last - 1 in whose part target falls, if the first begins at `begin`: the last
    that has a part which begins at or before target. `otherwise`, if there is none."""
    token = otherwise
    for v in range(first, last):
        part = part_of(logits[v], top, temperature)
        if part > ZERO and begin <= target:
            token = i32(v)
        begin += part
    return token


@kernel(F1, F, F, I1)
def sample_v1(logits, temperature, u, token):  # (V,), float32, float32, (1,); one thread
    V = u32(logits.size)
    top, at = largest(logits, u32(0), u32(1))
    if temperature > ZERO:
        total = ZERO
        for v in range(V):
            total += part_of(logits[v], top, temperature)
        at = walk(logits, u32(0), V, top, temperature, ZERO, u * total, at)
    token[0] = at


@inline
def block_scan(value):  # float32, another one in each thread -> float32, float32
    """Two sums: of `value` over the threads 0 to t, t this one (an inclusive scan), and over all threads. The
    block has cuda.blockDim.x threads, up to MOST_THREADS; all of them come here, once.

    Hillis and Steele (1986). sums[t] begins as thread t's own value. In a round of step s every thread from s
    on adds sums[t - s] to its own, and s doubles from 1, as long as it is less than the number of threads.
    After the round, sums[t] is the sum of the 2s values up to t, or of as many as there are. A thread reads
    what another one is about to change: so all read, a barrier, all write, a barrier.
    """
    sums = cuda.shared.array(MOST_THREADS, F)
    t, threads, step = u32(cuda.threadIdx.x), u32(cuda.blockDim.x), u32(1)
    sums[t] = value
    cuda.syncthreads()
    while step < threads:
        before = sums[t - step] if t >= step else ZERO
        cuda.syncthreads()
        sums[t] += before
        cuda.syncthreads()
        step *= u32(2)
    return sums[t], sums[threads - u32(1)]


@kernel(F1, F, F, I1)
def sample_v2(logits, temperature, u, token):  # (V,), float32, float32, (1,)
    """token[0] = the token in whose part u (0 <= u < 1) falls. The parts lie end to end from 0 to 1, each
    as long as its token's probability, softmax(logits / temperature). If temperature is 0, token[0] = the
    first of the largest logits. It is a token in any case, also if logits are NaN or infinite.

    Launch: one block, of any number of whole warps. Thread t finds the `largest` (above) of the logits t,
    t + threads, ...: neighbours read neighbours. block_softmax (of losses.py; its second number is of no use
    here) then knows the top of all. Of the threads that have it, the one with the smallest place counts:
    cuda.atomic.min(found, 0, place), of whole numbers, has the same result in any order. found[0] is V before
    that, and a barrier parts the two.

    Then the parts: thread t has the strip of `strip` tokens from t * strip on, fewer at the logits' end, and
    adds up their part_of (above). block_scan (above) says where the strip ends, and the sum of all; u times
    that sum is the target. A strip begins at its end less its sum. Where does target fall? In the last strip
    that has a sum above 0 and begins at or before target: cuda.atomic.max(found, 1, t), from 0 on. When all
    have come to the barrier behind it, that strip's thread writes what its walk (above) finds; `otherwise`
    is found[0].
    """
    t, threads, V = u32(cuda.threadIdx.x), u32(cuda.blockDim.x), u32(logits.size)
    found = cuda.shared.array(2, i32)  # the largest logit's place; the strip
    if t == 0:
        found[0] = V
        found[1] = 0
    mine, at = largest(logits, t, threads)
    top, _ = block_softmax(mine, ZERO)
    if mine == top:
        cuda.atomic.min(found, 0, at)
    cuda.syncthreads()
    if temperature > ZERO:
        strip = (V + threads - u32(1)) // threads
        first, last = min(t * strip, V), min(t * strip + strip, V)
        total = ZERO
        for v in range(first, last):
            total += part_of(logits[v], top, temperature)
        end, total_of_all = block_scan(total)
        begin, target = end - total, u * total_of_all
        if total > ZERO and begin <= target:
            cuda.atomic.max(found, 1, i32(t))
        cuda.syncthreads()
        if t == found[1]:
            token[0] = walk(logits, first, last, top, temperature, begin, target, found[0])
    elif t == 0:
        token[0] = found[0]


@op
def sample(logits, temperature, u):  # (V,), float >= 0, 0 <= float < 1 -> () int32
    """A token drawn from softmax(logits / temperature) by the random number u. Temperature 0: the most
    probable, of equal ones the first."""
    token = empty((), np.int32)
    sample_v2[1, threads_for(logits.size)](logits, temperature, min(f32(u), BELOW_ONE), token)
    return token


@op
def sample_by_one_thread(logits, temperature, u):
    """The same, with version 1."""
    token = empty((), np.int32)
    sample_v1[1, 1](logits, temperature, min(f32(u), BELOW_ONE), token)
    return token
