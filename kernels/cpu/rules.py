"""Lesson 1's most_probable_chart, fast, with the same results: words in, scores and back pointers out.

fill  reads and writes scores (n, n + 1, S) and back (n, n + 1, S, 2); spans of one word are in scores already

Of n words most spans are few symbols: with a symbol b on the left, only its own rules b c are tried, which
stand side by side in pairs, and no rule is where no b is.
"""
import numpy as np

from kernels.cpu.compiled import kernel


def most_probable_chart(leaves, pairs, log_p):  # (n, S), (R, 3), (R,) -> (n, n + 1, S), (n, n + 1, S, 2)
    """ValueError for pairs not sorted by column 1, a symbol not from 0 to S - 1, a log_p of another
    length: the kernel checks no index."""
    n, S = leaves.shape
    if log_p.shape != (len(pairs),) or pairs.min(initial=0) < 0 or pairs.max(initial=0) >= S:
        raise ValueError(f"pairs {pairs.shape} must have symbols from 0 to {S - 1}, log_p one number a row")
    if (np.diff(pairs[:, 1]) < 0).any():
        raise ValueError("pairs must be sorted by column 1, the left one of two symbols")
    scores, back = np.full((n, n + 1, S), -np.inf), np.full((n, n + 1, S, 2), -1, np.int32)
    scores[np.arange(n), np.arange(1, n + 1)] = leaves
    fill(scores, back, pairs, log_p, np.searchsorted(pairs[:, 1], np.arange(S + 1)))
    return scores, back


@kernel
def fill(scores, back, pairs, log_p, first):
    """All spans of two words and more, the short ones first. scores (n, n + 1, S) float64 has the words, in
    scores[i, i + 1]; else it comes as -inf, and back (n, n + 1, S, 2) int32 as -1. pairs[r] = a, b, c is the
    rule a -> b c, with log_p[r]; those of b are pairs[first[b]:first[b + 1]]. Over all i < k < j and r, write

        scores[i, j, a] = max of scores[i, k, b] + scores[k, j, c] + log_p[r]        back[i, j, a] = r, k

    Of equals the smallest k is kept, then the smallest r. A symbol b whose scores[i, k, b] is -inf is passed
    over with all its rules: so most of the work is saved. What nothing makes stays -inf and -1."""
    n, S = scores.shape[0], scores.shape[2]
    for length in range(2, n + 1):
        for i in range(n - length + 1):
            j = i + length
            for k in range(i + 1, j):
                for b in range(S):
                    if scores[i, k, b] == -np.inf:
                        continue
                    for r in range(first[b], first[b + 1]):
                        a = pairs[r, 0]
                        score = scores[i, k, b] + scores[k, j, pairs[r, 2]] + log_p[r]
                        if score > scores[i, j, a]:
                            scores[i, j, a] = score
                            back[i, j, a, 0], back[i, j, a, 1] = r, k
