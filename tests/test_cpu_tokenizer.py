"""The tests of kernels/cpu/tokenizer.py. The oracles: dicts, lists, heapq, and BPE as a textbook has it."""
import heapq
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernels.cpu import tokenizer as cpu
from tests.close import assert_close

few = settings(deadline=None, max_examples=20)
MERGES = np.array([[70_000, 5], [5, 70_000], [2, 9], [0, 7], [300, 0], [2, 3], [0, 0]], np.int32)


def table(pairs):
    """A merge table, by plain Python's numbers."""
    found = sorted((left * 2**32 + right, rank) for rank, (left, right) in enumerate(pairs))
    return np.array([key for key, _ in found], np.int64), np.array([rank for _, rank in found], np.int32)


# -------- merge_table, rank_of


def test_merge_table_is_sorted_by_the_left_id_then_by_the_right():
    merges = MERGES.copy()
    (keys, ranks), (want, want_ranks) = cpu.merge_table(merges), table(MERGES.tolist())
    assert_close(keys, want, "keys", dtype=np.int64)
    assert_close(ranks, want_ranks, "ranks", dtype=np.int32)
    assert_close(merges, MERGES, "merges, which merge_table only reads,")


def test_merge_table_of_no_merges():
    keys, ranks = cpu.merge_table(np.empty((0, 2), np.int32))
    assert_close(keys, np.empty(0, np.int64), "keys", dtype=np.int64)
    assert_close(ranks, np.empty(0, np.int32), "ranks", dtype=np.int32)


def test_rank_of_finds_the_rank_and_not_the_place_in_the_table():
    keys, ranks = table(MERGES.tolist())
    for rank, (a, b) in enumerate(MERGES):
        got = cpu.rank_of(a, b, keys, ranks)
        assert got == rank, f"({a}, {b}) is merge {rank}, and rank_of says {got}; keys {keys}, ranks {ranks}"


def test_rank_of_says_none_for_a_pair_that_no_merge_joins():
    keys, ranks = table(MERGES.tolist())
    for a, b in (9, 2), (0, 1), (5, 5), (70_000, 6), (70_001, 0), (2, 4), (-1, 7), (0, -1), (-2, -2):
        got = cpu.rank_of(np.int32(a), np.int32(b), keys, ranks)
        assert got == cpu.NONE, f"no merge joins ({a}, {b}): expected NONE = -1, got {got}"


@pytest.mark.parametrize("m", [0, 1, 2, 3, 4, 7, 8])
def test_rank_of_is_what_a_dict_says_for_every_pair(m):
    pairs = [(3 * i % 5, 7 * i % 8) for i in range(m)]
    keys, ranks = table(pairs)
    for a in range(6):
        for b in range(9):
            want = pairs.index((a, b)) if (a, b) in pairs else cpu.NONE
            got = cpu.rank_of(a, b, keys, ranks)
            assert got == want, f"({a}, {b}) among {pairs}: got {got}, expected {want}"


# -------- append


def test_append_adds_at_the_end_of_a_list_of_places():
    begins = [(4, 1), (7, 0), (2, 1), (9, 1), (1, 3), (8, 0), (0, 1), (3, 3)]  # at place i begins pair p
    pair, first, last, place, link = (np.full(n, cpu.NONE, np.int32) for n in (11, 5, 5, 12, 12))
    for n, (i, p) in enumerate(begins):
        entries = cpu.append(i, p, n, pair, first, last, place, link)
        assert entries == n + 1, f"after entry {n} there are {n + 1}, but append returned {entries}"
        assert pair[i] == p, f"pair {p} begins at place {i}, but pair[{i}] is {pair[i]}"
        for q in range(5):
            want = [e for e in range(n + 1) if begins[e][1] == q]
            got, e = [], first[q]
            while e != cpu.NONE and len(got) <= n:
                got.append(int(e))
                e = link[e]
            assert got == want, f"after entry {n} pair {q} has chain {got}, expected {want} (first, link)"
            assert last[q] == (want or [cpu.NONE])[-1], f"last[{q}] is {last[q]}, but the chain is {want}"
    assert_close(place[:8], np.array([i for i, _ in begins]), "place")
    assert (place[8:] == cpu.NONE).all() and (link[8:] == cpu.NONE).all(), "no entry is there yet"
    assert (pair[[5, 6, 10]] == cpu.NONE).all(), "nothing began at places 5, 6 and 10"


# -------- the heap


def order(p, shown, key):
    """What a heap of Python's heapq, whose smallest is on top, holds for pair p."""
    return -int(shown[p]), int(key[p]), int(p)


def test_ahead_is_the_more_frequent_then_the_one_with_the_smaller_ids():
    shown, key = np.array([3, 3, 5, 1, 3]), np.array([7, 2, 9, 1, 2**40])
    for p in range(5):
        for q in range(5):
            want = order(p, shown, key)[:2] < order(q, shown, key)[:2]
            got = cpu.ahead(p, q, shown, key)
            assert got == want, (f"{shown[p]} times with key {key[p]} is {'' if want else 'not '}ahead of "
                                 f"{shown[q]} times with key {key[q]}, but ahead says {got}")


def pairs_of(seed, n):
    """Counts with many ties and keys without; shown is what it was before: anything."""
    rng = np.random.default_rng(seed)
    return rng.integers(2, 6, n), rng.permutation(n) + 2**33, rng.integers(-9, 99, n)


@pytest.mark.parametrize("seed", range(6))
def test_push_keeps_every_pair_ahead_of_its_children(seed):
    count, key, shown = pairs_of(seed, 14)
    count[13], shown[13] = 1, -10**6  # behind the heap: who reads heap[-1] finds a pair that all are ahead of
    heap, want = np.full(14, 13, np.int32), []
    for i, p in enumerate(np.random.default_rng(seed).permutation(13)):
        before = count.copy(), key.copy()
        heapq.heappush(want, order(p, count, key))
        cpu.push(p, i, heap, shown, count, key)
        assert shown[p] == before[0][p], f"shown[{p}] is {shown[p]}, expected its count, {before[0][p]}"
        assert_close(heap, np.array([p for *_, p in want] + [13] * (13 - i), np.int32),
                     f"heap after {i + 1} pairs, count {count.tolist()}, key - 2^33 {(key - 2**33).tolist()}")
        assert_close(count, before[0], "count, which push only reads,")
        assert_close(key, before[1], "key, which push only reads,")
        count[p] = 0  # by now it occurs nowhere, but in the heap it stands where shown put it


@pytest.mark.parametrize("size", range(1, 13))
def test_sift_down_moves_the_top_to_where_it_belongs(size):
    for seed in range(6):
        _, key, shown = pairs_of(seed, 14)
        shown[13] = 100  # heap[size:]: who reads it finds a pair that is ahead of all
        want = [order(p, shown, key) for p in range(size)]
        heapq.heapify(want)
        heap = np.array([p for *_, p in want] + [13] * (14 - size), np.int32)
        before = heap[:size].tolist()
        shown[heap[0]] = np.random.default_rng(seed).integers(-9, 99)  # its count fell, or it is new there
        heapq.heapreplace(want, order(heap[0], shown, key))
        kept = shown.copy()
        cpu.sift_down(heap, size, shown, key)
        assert_close(heap, np.array([p for *_, p in want] + [13] * (14 - size), np.int32),
                     f"heap, {before} before, shown {shown.tolist()}, key - 2^33 {(key - 2**33).tolist()},")
        assert_close(shown, kept, "shown, which sift_down only reads,")


def test_sift_down_of_an_empty_heap_does_nothing():
    heap = np.array([0, 1, 2], np.int32)
    cpu.sift_down(heap, 0, np.array([1, 2, 3]), np.array([1, 2, 3]))
    assert_close(heap, np.array([0, 1, 2]), "heap")


# -------- the whole: learn_merges and apply_merges


def packed(words):
    """The different words with EDGE around each, and which word stands where."""
    different = [*dict.fromkeys(words)]
    flat = [cpu.EDGE, *(id for word in different for id in [*word, cpu.EDGE])]
    return np.array(flat, np.int32), np.array([different.index(word) for word in words], np.int32)


def join(word, pair, new):
    done = []
    while word:
        width = 2 if tuple(word[:2]) == pair else 1
        done.append(new if width == 2 else word[0])
        word = word[width:]
    return done


def textbook(words, n):
    """Count all pairs, merge the best one everywhere, begin again. -> merges, how often each pair occurred"""
    words, merges, often = [[*word] for word in words], [], []
    for new in range(256, 256 + n):
        pairs = Counter(pair for word in words for pair in pairwise(word))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            break
        merges.append(best)
        often.append(pairs[best])
        words = [join(word, best, new) for word in words]
    return merges, often


some_words = st.lists(st.lists(st.sampled_from([97, 98, 99]), min_size=1, max_size=8).map(tuple), max_size=12)


@few
@given(some_words, st.integers(0, 30), some_words)
@example([tuple(b"aaaaaaa"), tuple(b"aaa"), tuple(b"aaaaaaa")], 9, [(97,) * n for n in range(1, 30)])
@example([tuple(b"abababab"), tuple(b"babab")], 9, [tuple(b"abababbab")] * 2)
def test_learn_merges_and_apply_merges_do_what_the_textbook_does(words, n, others):
    want, often = textbook(words, n)
    merges, found = cpu.learn_merges(*packed(words), n)
    assert_close(merges, np.array(want, np.int32).reshape(-1, 2), "merges", dtype=np.int32)
    assert_close(found, np.array(often, np.int64), "how often each pair occurred")
    ids = []
    for word in others:
        for new, pair in enumerate(want, 256):
            word = join(word, pair, new)
        ids.extend(word)
    got = cpu.apply_merges(*packed(others), *table(want))
    assert_close(got, np.array(ids, np.int32), "ids", dtype=np.int32)


def test_learn_merges_counts_a_word_as_often_as_it_occurs():
    hug = tuple(b"hug")
    merges, often = cpu.learn_merges(*packed([hug, (32, *hug), (32, *hug, 115)]), 9)
    g, h, u = b"ghu"
    assert merges.tolist() == [[h, u], [256, g], [32, 257]] and often.tolist() == [3, 3, 2]


def test_apply_merges_puts_every_word_in_its_place():
    ids = cpu.apply_merges(*packed([(1, 2), (5, 3, 1, 2), (5, 1, 2), (1, 2)]), *table([(1, 2)]))
    assert ids.tolist() == [256, 5, 3, 256, 5, 256, 256]
