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
    """For binary search: key = pair_key(left, right), left in the upper 32 bits, right in the lower; sorted.
    And the rank of each key: in which row of merges its pair stands. merges stays as it is."""
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
def pair_key(a, b):  # two int64 >= 0 -> int64
    """a * 2^32 + b: as one number, pairs are in the order of their left ids, then of their right ids."""
    return a << i64(32) | b


@inlined
def rank_of(a, b, keys, ranks):  # two ids, (m,) int64, (m,) int32 -> the merge that joins a and b, or NONE
    """keys and ranks are a merge_table. A negative a or b is EDGE or GONE, and in no merge. Else a binary
    search for key = pair_key(i64(a), i64(b)): keys[:lo] < key <= keys[hi:] holds throughout, and the middle
    one moves lo behind itself or hi to itself, until lo = hi. There key stands, if it stands in keys, which
    may be empty."""
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
def append(i, p, entries, pair, first, last, place, link):  # two indices, how many entries -> how many now
    """Pair p begins at place i: pair[i] = p, and i goes to the end of p's list. A list is a chain of entries
    e: place[e] is a place, link[e] the next entry, or NONE, which stood in link before; first[p] and last[p]
    are its ends, NONE if there is no entry yet. The new entry has the number entries; return entries + 1."""
    if first[p] == NONE:
        first[p] = entries
    else:
        link[last[p]] = entries
    last[p] = entries
    place[entries] = i
    pair[i] = p
    return entries + 1


@inlined
def ahead(p, q, shown, key):  # two pairs, (P,) int64, (P,) int64 -> bool
    """The tie rule: shown[p] > shown[q]; of equals, the smaller key, a pair_key: the left id is compared
    first. shown is the count that a pair had when it was put where it stands in the heap."""
    return shown[p] > shown[q] or (shown[p] == shown[q] and key[p] < key[q])


@inlined
def push(p, i, heap, shown, count, key):  # a pair, how many there are, four of (P,); writes shown and heap
    """Add pair p to a heap of i pairs, in which heap[n] is ahead of its children heap[2 n + 1], heap[2 n +
    2], and so heap[0] of all. shown[p] = count[p]; p goes behind the last, at heap[i], and as long as it is
    ahead of its parent, at (n - 1) >> 1, the two change places. What lies behind is not read: the arrays are
    longer."""
    shown[p], heap[i] = count[p], p
    while i > 0 and ahead(heap[i], heap[(i - 1) >> 1], shown, key):
        up = (i - 1) >> 1
        heap[i], heap[up] = heap[up], heap[i]
        i = up


@inlined
def sift_down(heap, size, shown, key):  # (P,) int32, how many count, (P,) int64, (P,) int64; writes heap
    """Only heap[0] may stand wrong among heap[:size], because it is new there or its shown fell. It changes
    places with that child of 2 n + 1 and 2 n + 2 which is ahead of the other, as long as that is ahead of it;
    at the end of the heap there may be one child, or none. What lies behind heap[:size] is not read."""
    i = 0
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and ahead(heap[child + 1], heap[child], shown, key):
            child += 1
        if not ahead(heap[child], heap[i], shown, key):
            return
        heap[i], heap[child] = heap[child], heap[i]
        i = child
