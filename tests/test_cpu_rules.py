"""The tests of f are test_f and test_f_*: they are also exercises of lesson 1.

The oracle tries every way to join the words, by plain recursion. In plain Python: NUMBA_DISABLE_JIT=1 make
check 1.
"""
import itertools

import numpy as np
import pytest

from kernels.cpu import rules as cpu
from tests.close import assert_close, raises, unchanged

#                  a -> b c, sorted by b; no rule has 3 on its left side, and none has 1 first
PAIRS = np.array([[2, 0, 0], [1, 0, 2], [0, 0, 3], [0, 2, 0], [2, 2, 3], [1, 2, 2], [0, 3, 0]], np.int32)
LOG_P = np.log([0.3, 0.2, 0.7, 0.5, 0.1, 0.4, 0.6])
FIRST = np.array([0, 3, 3, 6, 7])
LEAVES = np.log([[0.5, 0.1, 0.3, 0.9], [0.2, 0.4, 0.1, 0.3], [0.6, 0.3, 0.2, 0.8], [0.25, 0.125, 0.9, 0.1]])
LEAVES[1, 2] = LEAVES[2, 0] = LEAVES[0, 3] = LEAVES[3, 3] = -np.inf


def want_of(leaves, pairs, log_p):  # -> scores, back
    """The best over all trees, and the smallest k, then r, that gives it."""
    n, S = leaves.shape

    def ways(i, j, a):
        return [(score(i, k, b) + score(k, j, c) + log_p[r], -k, -r) for k in range(i + 1, j)
                for r, (of, b, c) in enumerate(pairs) if of == a]

    def score(i, j, a):
        return leaves[i, a] if j == i + 1 else max([way[0] for way in ways(i, j, a)], default=-np.inf)

    scores, back = np.full((n, n + 1, S), -np.inf), np.full((n, n + 1, S, 2), -1)
    for i, j in itertools.combinations(range(n + 1), 2):
        for a in range(S):
            scores[i, j, a] = score(i, j, a)
            if j > i + 1 and scores[i, j, a] > -np.inf:
                _, k, r = max(ways(i, j, a))
                back[i, j, a] = -r, -k
    return scores, back


def assert_same(scores, back, want):
    no_tree = want[0] == -np.inf
    assert scores.shape == want[0].shape, f"scores have the shape {scores.shape}, expected {want[0].shape}"
    wrong = np.argwhere((scores == -np.inf) != no_tree)
    assert not len(wrong), f"scores{wrong[0].tolist()} must be -inf if there is no tree, and only then"
    got, expected = (np.where(no_tree, 0, x) for x in (scores, want[0]))
    assert_close(got, expected, "scores, 0 for -inf,", rtol=1e-12, dtype=float)
    assert_close(back, want[1], "back", dtype=np.int32)


def run_fill(leaves, pairs=PAIRS, log_p=LOG_P, first=FIRST):
    n, S = leaves.shape
    scores, back = np.full((n, n + 1, S), -np.inf), np.full((n, n + 1, S, 2), -1, np.int32)
    scores[np.arange(n), np.arange(1, n + 1)] = leaves
    assert cpu.fill(scores, back, pairs, log_p, first) is None, "fill returns nothing: it writes in place"
    return scores, back


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_fill_has_the_best_of_all_trees_and_where_it_came_from(n):
    assert_same(*run_fill(LEAVES[:n]), want_of(LEAVES[:n], PAIRS, LOG_P))


@pytest.mark.parametrize("seed", range(4))
def test_fill_of_random_rules(seed):
    rng = np.random.default_rng(seed)
    pairs = rng.integers(0, 3, (6, 3)).astype(np.int32)
    pairs = pairs[np.argsort(pairs[:, 1], kind="stable")]
    first = np.array([(pairs[:, 1] < b).sum() for b in range(4)])
    leaves = np.where(rng.random((4, 3)) < 0.3, -np.inf, np.log(rng.random((4, 3))))
    log_p = np.log(rng.random(6))
    assert_same(*run_fill(leaves, pairs, log_p, first), want_of(leaves, pairs, log_p))


def test_fill_takes_the_smallest_split_then_the_first_rule():
    pairs, log_p = np.array([[0, 0, 0], [0, 0, 1], [1, 1, 0]], np.int32), np.log([0.5, 0.5, 0.5])
    leaves = np.log(np.full((4, 2), 0.5))
    assert_same(*run_fill(leaves, pairs, log_p, np.array([0, 2, 3])), want_of(leaves, pairs, log_p))


def test_fill_leaves_the_rules_and_the_words_alone():
    pairs, log_p, first = PAIRS.copy(), LOG_P.copy(), FIRST.copy()
    with unchanged(pairs=pairs, log_p=log_p, first=first):
        scores, _ = run_fill(LEAVES, pairs, log_p, first)
    i = np.arange(4)
    assert (scores[i, i + 1] == LEAVES).all(), "the scores of single words stay"


def test_most_probable_chart():
    leaves, pairs, log_p = LEAVES.copy(), PAIRS.copy(), LOG_P.copy()
    with unchanged(leaves=leaves, pairs=pairs, log_p=log_p):
        got = cpu.most_probable_chart(leaves, pairs, log_p)
    assert_same(*got, want_of(LEAVES, PAIRS, LOG_P))


def test_most_probable_chart_without_rules():
    scores, back = cpu.most_probable_chart(LEAVES, PAIRS[:0], LOG_P[:0])
    assert_same(scores, back, want_of(LEAVES, PAIRS[:0], LOG_P[:0]))


@pytest.mark.parametrize("pairs, log_p, words", [
    (PAIRS[::-1], LOG_P, "sorted"), (PAIRS + 1, LOG_P, "from 0 to 3"), (PAIRS - 1, LOG_P, "from 0 to 3"),
    (PAIRS, LOG_P[1:], "one number a row")], ids=["order", "above", "below", "length"])
def test_most_probable_chart_refuses_what_would_be_read_outside_the_arrays(pairs, log_p, words):
    with raises(ValueError, words, "such rules"):
        cpu.most_probable_chart(LEAVES, pairs, log_p)
