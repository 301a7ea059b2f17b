"""Lesson 5's learn and encode_word, fast, with the same results. A text arrives as its different words (N,)
int32, one row of bytes' ids with EDGE around each word, and their order (W,): which word is where.

learn_merges  reads words and order, uses words up, returns the merges and how often each pair occurred
apply_merges  reads words, order and a merge_table, uses words up, returns the ids of the text

The tokens of a word are a linked list, so a merge moves nothing. Every pair has a list of the places where
it begins, so a merge visits these and no others. No list needs repair: a pair (a, b) can appear only in the
step that makes the younger of the two. So after that step its list is complete, from left to right, and its
count can only fall; an entry is out of date when by now another pair begins there (aaa: one merge, not two).
"""
import numpy as np

from kernels.cpu.compiled import inlined, kernel

i64 = np.int64
BYTES = 256  # tokens below are single bytes, in some order; merge m makes token 256 + m
EDGE, GONE, NONE = -1, -2, -1  # between words; swallowed by the token on its left; no pair begins here


def learn_merges(words, order, n):  # (N,) int32, (W,) int32 -> (m, 2) int32, (m,) int64
    """The ids that each merge joins, and how often the pair occurred then. m is n, or less if no pair occurs
    twice any more."""
    n = min(n, words.size)  # every merge leaves a token less
    weights = np.append(np.bincount(order), 0)[np.cumsum(words == EDGE) - 1]  # how often its word occurs
    merges, merged, P = np.empty((n, 2), np.int32), np.empty(n, np.int64), 3 * words.size
    count, key, shown, heap = (np.zeros(P, t) for t in (np.int64, np.int64, np.int64, np.int32))
    seen, met = np.full((BYTES, BYTES), NONE, np.int32), np.full((2, BYTES + n), NONE, np.int32)
    m = learn(words, weights, merges, merged, *lists(words.size, P), count, key, shown, heap, seen, met)
    return merges[:m], merged[:m]


def merge_table(merges):  # (m, 2) int32 -> (m,) int64, (m,) int32
    """Both ids of a merge as one key, sorted, and the rank (the row in merges) of each: for binary search."""
    keys = merges[:, 0].astype(np.int64) << 32 | merges[:, 1]
    ranks = np.argsort(keys)
    return keys[ranks], ranks.astype(np.int32)


def apply_merges(words, order, keys, ranks):  # (N,) int32, (W,) int32, merge_table -> (tokens of the text,)
    """Merge by merge in the order of learning: what is left is what training would have made of this text."""
    apply(words, keys, ranks, *lists(words.size, len(keys)))
    words = words[words != GONE]
    edges = np.flatnonzero(words == EDGE)
    start, length = edges[order] + 1, np.diff(edges)[order] - 1
    shift = start - (np.cumsum(length) - length)  # from a place in the result to its place in words
    return words[np.arange(length.sum()) + np.repeat(shift, length)]


def lists(N, pairs):
    """left, right (N,): the neighbours. pair (N,): which pair begins at a place. The places of pair p are
    place[e] for e = first[p], link[e], ...; 3 N are enough: a merge ends a token and begins two pairs."""
    neighbours = np.arange(-1, N - 1, dtype=np.int32), np.arange(1, N + 1, dtype=np.int32)
    return *neighbours, *(np.full(size, NONE, np.int32) for size in (N, pairs, pairs, 3 * N, 3 * N))


@kernel
def learn(tokens, weights, merges, merged, left, right, pair, first, last, place, link,
          count, key, shown, heap, seen, met):  # -> the number of merges
    """count, key, shown: of each pair, how often it occurs, its two ids, and what count was when it took its
    place in the heap. seen[a, b]: the pair of two bytes. met[side, c]: the last of c and a new token."""
    pairs = entries = i64(0)  # always int64: each other type would compile the small functions again
    for i in range(tokens.size - 1):
        a, b = tokens[i], tokens[i + 1]
        if a >= 0 and b >= 0:
            if seen[a, b] == NONE:
                seen[a, b], key[pairs] = pairs, pair_key(i64(a), i64(b))
                pairs += 1
            count[seen[a, b]] += weights[i]
            entries = append(i64(i), i64(seen[a, b]), entries, pair, first, last, place, link)
    for p in range(pairs):
        push(p, p, heap, shown, count, key)
    size = pairs

    for m in range(len(merges)):
        while size and count[heap[0]] < shown[heap[0]]:  # the top has become rarer since it was put there
            shown[heap[0]] = count[heap[0]]
            sift_down(heap, size, shown, key)
        if size == 0 or shown[heap[0]] < 2:
            return m
        best, new, fresh = heap[0], BYTES + m, pairs
        merges[m, 0], merges[m, 1], merged[m] = key[best] >> 32, key[best] & 0xFFFFFFFF, shown[best]
        size -= 1
        heap[0] = heap[size]
        sift_down(heap, size, shown, key)

        e = first[best]
        while e != NONE:
            i, e = place[e], link[e]
            if pair[i] != best:
                continue
            h, j = left[i], right[i]
            k = right[j]
            tokens[i], tokens[j], right[i], left[k] = new, GONE, k, i
            for side in range(2):  # (h, i) and (j, k) end; (h, i) and (i, k) begin
                other, old, at = (tokens[h], h, h) if side == 0 else (tokens[k], j, i)
                if other < 0:
                    pair[at] = NONE
                    continue
                count[pair[old]] -= weights[i]
                p = met[side, other]
                if p < fresh:  # (other, new) or (new, other): the first in this step
                    p = met[side, other] = pairs
                    key[p] = pair_key(i64(other), i64(new)) if side == 0 else pair_key(i64(new), i64(other))
                    pairs += 1
                count[p] += weights[i]
                entries = append(i64(at), i64(p), entries, pair, first, last, place, link)
            pair[j] = NONE
        for p in range(fresh, pairs):
            push(p, size, heap, shown, count, key)
            size += 1
    return len(merges)


@kernel
def apply(tokens, keys, ranks, left, right, pair, first, last, place, link):
    entries = i64(0)
    for i in range(tokens.size - 1):
        p = rank_of(tokens[i], tokens[i + 1], keys, ranks)
        if p != NONE:
            entries = append(i64(i), i64(p), entries, pair, first, last, place, link)
    for m in range(len(keys)):
        e = first[m]
        while e != NONE:
            i, e = place[e], link[e]
            if pair[i] != m:
                continue
            h, j = left[i], right[i]
            k = right[j]
            tokens[i], tokens[j], right[i], left[k] = BYTES + m, GONE, k, i
            pair[h] = pair[i] = pair[j] = NONE
            for at, a, b in ((h, tokens[h], tokens[i]), (i, tokens[i], tokens[k])):
                p = rank_of(a, b, keys, ranks)
                if p != NONE:
                    entries = append(i64(at), i64(p), entries, pair, first, last, place, link)


@inlined
def pair_key(a, b):
    return a << i64(32) | b


@inlined
def rank_of(a, b, keys, ranks):  # -> the merge that joins a and b, or NONE
    if a < 0 or b < 0:
        return NONE
    key, lo, hi = pair_key(i64(a), i64(b)), 0, len(keys)
    while lo < hi:
        mid = (lo + hi) >> 1
        if keys[mid] < key:
            lo = mid + 1
        else:
            hi = mid
    return ranks[lo] if lo < len(keys) and keys[lo] == key else NONE


@inlined
def append(i, p, entries, pair, first, last, place, link):
    if first[p] == NONE:
        first[p] = entries
    else:
        link[last[p]] = entries
    last[p] = entries
    place[entries] = i
    pair[i] = p
    return entries + 1


@inlined
def ahead(p, q, shown, key):
    """The tie rule: the more frequent pair first; of equals, the one with the smaller ids, the left compared
    first. shown is the count that a pair had when it was put where it stands in the heap."""
    return shown[p] > shown[q] or (shown[p] == shown[q] and key[p] < key[q])


@inlined
def push(p, i, heap, shown, count, key):
    """Add pair p to a heap of i pairs, in which each is ahead of the two at 2 i + 1 and 2 i + 2."""
    shown[p], heap[i] = count[p], p
    while i > 0 and ahead(heap[i], heap[(i - 1) >> 1], shown, key):
        up = (i - 1) >> 1
        heap[i], heap[up] = heap[up], heap[i]
        i = up


@inlined
def sift_down(heap, size, shown, key):
    i = 0
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and ahead(heap[child + 1], heap[child], shown, key):
            child += 1
        if not ahead(heap[child], heap[i], shown, key):
            return
        heap[i], heap[child] = heap[child], heap[i]
        i = child
