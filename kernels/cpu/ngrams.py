"""Lesson 2's n-grams on a CPU: one sort counts all orders, one walk over a text finds all its grams.

runs      reads and overwrites sorted keys and their counts
tally     reads sorted keys and sorted ends, returns counts
children  reads two levels of the tree, returns where the children of each parent begin, and their sums
descend   reads a level of the tree and a text, overwrites node and p

Sorted keys are a tree. The children of a gram are those grams that go on from it by one character; they stand
side by side on the next level. The gram that ends at character t is a child of the gram, one character
shorter, that ends at t - 1. So no gram is sought from the root: it is sought among the children, at most V,
of a gram that was found a level above.
"""
from itertools import pairwise

import numpy as np

from kernels.cpu.compiled import inlined, kernel

i64 = np.int64
NONE = -1  # in place of a gram: it does not occur


def count_grams(codes, V, order):  # (N,) -> order arrays of keys, order of counts, order - 1 of counts
    """NumPy sorts the grams of the longest order. Those of the next shorter one are the beginnings of these,
    already sorted, and one more, the last of the text, which begins no longer one. And so on. Continuation
    counts are tallied from the ends of the different grams that are longer by one."""
    windows = np.lib.stride_tricks.sliding_window_view(codes, order)
    longest = np.sort(windows @ V ** np.arange(order - 1, -1, -1))
    levels = [level(longest, np.ones_like(longest))]
    for n in range(order - 1, 0, -1):
        keys, counts = levels[0]
        keys, last = keys // V, codes[codes.size - n:] @ V ** np.arange(n - 1, -1, -1)
        at = np.searchsorted(keys, last)
        levels.insert(0, level(np.insert(keys, at, last), np.insert(counts, at, 1)))
    keys, raw = zip(*levels)
    return keys, raw, tuple(tally(short, np.sort(long % V**n)) for n, (short, long)
                            in enumerate(pairwise(keys), 1))


def interpolated(levels, V, text):  # [(keys, counts, discounts), ...], (T,) int64 -> (T - order + 1,)
    """From level to level p, the probability of every character, and node, the gram before it."""
    text, p = np.ascontiguousarray(text), np.full(text.size, 1 / V)
    node, parents = np.zeros(text.size + 1, np.int64), np.zeros(1, np.int64)  # the root: the empty gram
    for n, (keys, counts, discounts) in enumerate(levels):
        descend(text, n, V, keys, counts, discounts, *children(parents, keys, V, counts, discounts), node, p)
        parents = keys
    return p[len(levels) - 1:]


def level(keys, counts):
    g = runs(keys, counts)
    return keys[:g].copy(), counts[:g].copy()  # copies: the rest of the long arrays is freed


@kernel
def runs(keys, counts):  # (m,) int64, sorted, (m,) int64 -> g
    """Equal keys stand side by side: make one of each run, and the sum of its counts. Overwrites the first g
    of keys and counts, with g the number of different keys; what stands behind them means nothing any more.
    keys 3 3 7 with counts 1 4 2 become 3 7 with 5 2. m may be 0."""
    g = i64(0)
    for i in range(keys.size):
        if g and keys[i] == keys[g - 1]:
            counts[g - 1] += counts[i]
        else:
            keys[g], counts[g] = keys[i], counts[i]
            g += 1
    return g


@kernel
def tally(keys, ends):  # (g,) int64, sorted, all different, (m,) int64, sorted -> (g,) int64
    """How often each of keys stands in ends, 0 or more times. Every one of ends is in keys. Both are sorted,
    so one place in ends moves along, from the first to the last, while the keys go by."""
    counts, j = np.zeros_like(keys), i64(0)
    for i in range(keys.size):
        while j < ends.size and ends[j] == keys[i]:
            counts[i] += 1
            j += 1
    return counts


@kernel
def children(parents, keys, V, counts, discounts):  # (P,), (g,), ., (g,), (4,) -> (P + 1,), (P,), (P,)
    """The children of parents[i] are those keys with key // V = parents[i]: keys[first[i]:first[i + 1]]. Both
    are sorted, and every key has a parent; a parent may have no children. -> first int64; total int64 and
    mass float64: the sums over the children of each parent of count, and of discounts[min(count, 3)]."""
    first, j = np.zeros(parents.size + 1, np.int64), i64(0)
    total, mass = np.zeros(parents.size, np.int64), np.zeros(parents.size)
    for i in range(parents.size):
        while j < keys.size and keys[j] // V == parents[i]:
            total[i] += counts[j]
            mass[i] += discounts[min(counts[j], 3)]
            j += 1
        first[i + 1] = j
    return first, total, mass


@kernel
def descend(text, n, V, keys, counts, discounts, first, total, mass, node, p):
    """One level deeper, for each character text[t] with n before it, t = n .. T - 1; node (T + 1,) and p (T,)
    are overwritten.

    node[t] is the parent: the place, a level above, of the n characters before text[t], or NONE. child is the
    place in keys of these and text[t], find(keys, first[parent], first[parent + 1], V, text[t]), or NONE too,
    as it is without a parent. It is the parent of the next character on the next level: node[t + 1] = child,
    so t runs from the end to the front, or a node would be overwritten before it is read. And where there is
    a parent with total[parent] > 0:

        p[t] = (count - D) / total[parent] + mass[parent] / total[parent] p[t]

    with count = counts[child] and D = discounts[min(count, 3)], both 0 without a child."""
    for t in range(text.size - 1, n - 1, -1):
        parent, child = node[t], i64(NONE)
        if parent != NONE:
            child = find(keys, first[parent], first[parent + 1], V, text[t])
            if total[parent] > 0:
                p[t] *= mass[parent] / total[parent]
                if child != NONE:
                    p[t] += (counts[child] - discounts[min(counts[child], 3)]) / total[parent]
        node[t + 1] = child


@inlined
def find(keys, lo, hi, V, c):  # -> the place of the one in keys[lo:hi] that ends with c, or NONE
    """Binary search: keys[lo:hi] have all but the last character in common."""
    end = hi
    while lo < hi:
        mid = (lo + hi) >> 1
        if keys[mid] % V < c:
            lo = mid + 1
        else:
            hi = mid
    return lo if lo < end and keys[lo] % V == c else i64(NONE)
