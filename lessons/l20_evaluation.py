"""Lesson 20: evaluation. Which of two models is better, and by how much?

A language model gives every token of a text it has never seen a probability. The more, the better:

    loss                 mean of -ln p(token | what precedes it), in nats a token
    perplexity           exp(loss): it is as unsure as among so many tokens of equal probability
    bits a character     sum of -log2 p(token) / number of characters                     Shannon 1951

Loss and perplexity depend on what a token is: a model of characters guesses among 64, one of 512 pieces among
more, but says a word in fewer guesses. Bits a character do not: the product over all tokens is a probability
of the whole text (of one way to cut it; the other ways could only add to it), and its -log2 is the length to
which the model can compress it. So all models of this course meet in that unit, on the last tenth of
data/shakespeare.txt. Recipes were chosen by it too, so a text that nobody looked at would be fairer.
Where a model names a class or writes a sentence, its answers are compared with the right ones (precision,
recall, F1; BLEU), and of an experiment with yes and no for an answer we ask how sure it makes us (interval).

B windows, T positions, K classes.
`make lesson 20` prints the league of all models trained so far and draws it (lessons/league.py);
`make lesson 20 ARGS=blind` lets you tell a model's lines from Shakespeare's (lessons/blind_test.py).
"""
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

from lessons import devices
from lessons.l08_losses import IGNORE
from lessons.l16_gpt import gpt_forward


def perplexity(nats, tokens):  # sum of -ln p over all tokens, their number -> float
    """exp of the mean: 1 for somebody who always knows, V for somebody who guesses among V tokens.

    >>> round(perplexity(3 * math.log(10), 3), 6)
    10.0
    """
    return math.exp(nats / tokens)


def bits_per_character(nats, characters):  # sum of -ln p over all tokens, characters of their text -> float
    """The mean of -log2 p, with log2 p = ln p / ln 2, over the text's characters, not the model's tokens.

    >>> bits_per_character(100 * math.log(64), 100)
    6.0
    """
    return nats / math.log(2) / characters


def windows(before, tokens, T, stride):  # (>= T,), (n,) -> X (B, T), Y (B, T)
    """Inputs and targets of overlapping windows, in which every token of `tokens` is a target once.

    In blocks side by side the first token of a block is guessed from one token, the second from two: on
    average a model sees half of what it could. Here the first T - stride targets of a window, or more in the
    last one, are IGNOREd: the window before has counted them, or they belong to `before`, whose end precedes
    the first token. So what counts is guessed from more than T - stride tokens. It costs T / stride times as
    much. The k-th window's last target is token (k + 1) stride - 1, or the very last one. Y[b, t] is the
    token that follows X[b, t] in the text, or IGNORE. B = n / stride, rounded up; no tokens: both are (0, T).
    ValueError if `before` is shorter than a window, or stride is none of 1 .. T.

    >>> X, Y = windows(np.arange(4), np.arange(4, 9), T=4, stride=2)
    >>> print(X, Y, sep="\\n")
    [[1 2 3 4]
     [3 4 5 6]
     [4 5 6 7]]
    [[-1 -1  4  5]
     [-1 -1  6  7]
     [-1 -1 -1  8]]
    """
    if len(before) < T or not 1 <= stride <= T:
        raise ValueError(f"{len(before)} tokens before and stride {stride}: {T} before, stride 1 to {T}")
    text, starts = np.concatenate([before[-T:], tokens]), np.arange(0, len(tokens), stride)
    ends = np.minimum(starts + stride, len(tokens))
    places = T + ends[:, None] - np.arange(T, 0, -1)  # of the targets
    return text[places - 1], np.where(places >= T + starts[:, None], text[places], IGNORE)


def total_nats(ops, p, before, tokens, stride):  # (>= T,), (n,) -> -ln p(all tokens | before)
    """The sum of -ln p(token | what its window of windows() shows before it) over all n tokens.

    Every core (devices.cores()) takes batches of windows in turn, as many as have 2^22 logits (16 MB) among
    them, but at least one; each batch through gpt_forward, then ops.cross_entropy(logits, Y, 1): a sum. The
    products get one thread each (threadpool_limits): the batches are what runs side by side. p.config has
    T, block_size, and V, vocab_size. Returns a float.
    """
    X, Y = windows(before, tokens, p.config.block_size, stride)
    batch = max(1, 2**22 // (p.config.block_size * p.config.vocab_size))  # 16 MB of logits, or one window

    def nats(start):  # a sum: cross_entropy divides by 1
        rows = slice(start, start + batch)
        return ops.cross_entropy(gpt_forward(ops, p, X[rows])[0], Y[rows], 1)[0]

    with threadpool_limits(1, "blas"), ThreadPoolExecutor(devices.cores()) as pool:
        return sum(pool.map(nats, range(0, len(X), batch)))


def confusion_matrix(classes, guesses, K):  # (n,), (n,) whole numbers from 0 to K - 1 -> (K, K) int64
    """Which class is taken for which: element [i, j] counts the cases of class i in which j was guessed.
    Cases whose class is IGNORE do not count, whatever was guessed.

    >>> confusion_matrix(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), K=2)
    array([[2, 1],
           [0, 1]])
    """
    confusion, known = np.zeros((K, K), np.int64), classes != IGNORE
    np.add.at(confusion, (classes[known], guesses[known]), 1)
    return confusion


def precision_recall_f1(confusion, average=None):  # (K, K) -> (3, K), or (3,) with an average; float64
    """How well each class is found: rows precision, recall, F1. 0 where the divisor is 0.

        precision  right / guessed      of what was called c, how much is c?
        recall     right / there        of what is c, how much was called c?
        F1         2 right / (guessed + there), the harmonic mean of the two       van Rijsbergen 1979, ch. 7

    right: cases of class c that were called c, the diagonal; guessed: all that were called c, the column's
    sum; there: all that are c, the row's sum. average="macro": the mean over the classes of each of the
    three; a rare class counts as much as a frequent one. "micro": the same formulas with right, guessed and
    there summed over all classes. Where every case gets one guess, all three are then the accuracy, the share
    of right guesses: a mistake is missing in one class and too much in another. Sebastiani 2002, section 7.1.
    """
    right, guessed, there = np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1)
    if average == "micro":
        right, guessed, there = right.sum(), guessed.sum(), there.sum()
    above, below = np.array([right, right, 2 * right]), np.array([guessed, there, guessed + there])
    scores = above / np.maximum(below, 1)  # nothing below: nothing above
    return scores.mean(axis=1) if average == "macro" else scores


def ngrams(tokens, n):
    """How often each sequence of n tokens occurs: Counter({("a", "rose"): 2, ...})."""
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))


def bleu(hypotheses, references):  # [[token, ...], ...], [[[token, ...], ...], ...] -> 0 to 100
    """How much do the hypotheses' words, pairs, triples and fours occur in the references? Those of
    hypotheses[i] are the translations references[i], one or more.        Papineni et al. 2002, section 2

        BLEU = 100 min(1, exp(1 - R / H)) (p1 p2 p3 p4)^(1/4)        p_n = right_n / all_n

    all_n: n-grams of all hypotheses. right_n: those that a reference has, each counted at most as often as in
    the reference of its hypothesis that has it most often ("the the the" gets no three points). H: tokens of
    all hypotheses; R: of their references, of each hypothesis' the one nearest in length, the shorter one of
    two equally near. It punishes what is too short, as p_n punishes what is too long.
    The k-th n for which right_n is 0 has right_n = 1 / 2^k instead (sacrebleu's "exp"; Chen & Cherry 2014,
    method 3): else it alone would make all 0. 0 if no word is right, or no hypothesis has four. ValueError if
    there are not as many lists of references as hypotheses.
    """
    right, every, length, wanted = [0] * 4, [0] * 4, 0, 0
    for hypothesis, choices in zip(hypotheses, references, strict=True):
        length += len(hypothesis)
        wanted += min((abs(len(choice) - len(hypothesis)), len(choice)) for choice in choices)[1]
        for n in range(4):
            found, allowed = ngrams(hypothesis, n + 1), Counter()
            for choice in choices:
                allowed |= ngrams(choice, n + 1)  # the larger count of each
            right[n] += (found & allowed).total()  # the smaller one
            every[n] += found.total()
    if right[0] == 0 or every[3] == 0:
        return 0.0
    logs = [math.log((right[n] or 0.5 ** right[:n + 1].count(0)) / every[n]) for n in range(4)]
    return 100 * math.exp(min(0, 1 - wanted / length) + sum(logs) / 4)


def interval(right, n, z=1.96):  # int, int -> low, high
    """Between which probabilities of success does the true one lie, if `right` of n trials succeeded? The
    z = 1.96 standard deviations make it 95 %. Wilson 1927: all p for which right / n lies within z standard
    deviations sqrt(p (1 - p) / n) of p. The two ends solve a quadratic equation; with r = right / n:

        (r + z^2 / 2n  -+  z sqrt(r (1 - r) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    0 of 10 gives 0 to 0.28: ten failures do not prove that it never succeeds. Of 0 trials: 0 to 1.
    """
    if n == 0:
        return 0.0, 1.0
    r, middle = right / n, (right + z * z / 2) / n
    half = z * math.sqrt(r * (1 - r) / n + (z / n / 2) ** 2)
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def main(*argv):
    if argv[:1] == ("blind",):
        from lessons.blind_test import run
        return run(argv[1:])
    from lessons.league import run
    run(argv)
    lazy, cat = np.array([[95, 0], [5, 0]]), ["the", "cat", "sat", "on", "the", "mat"]
    accuracy, f1 = (precision_recall_f1(lazy, average)[2] for average in ("micro", "macro"))
    few, many = ("{:.0%} to {:.0%}".format(*interval(7 * n, 10 * n)) for n in (1, 10))
    print(f"\nAlways 'no', where 5 of 100 cases are 'yes': accuracy {accuracy:.2f}, macro F1 {f1:.2f}.\n"
          f"'... on a mat' for '{' '.join(cat)}': BLEU {bleu([[*cat[:4], 'a', cat[5]]], [[cat]]):.1f}.\n"
          f"7 right of 10 may mean {few}, 70 of 100 {many}, with 95 % confidence.")
