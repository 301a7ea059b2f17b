"""Lesson 7: word vectors. How does a machine learn, from text alone, that a king is something like a queen?

Lesson 6 gave each word a row of numbers, and left open which. Here the rows learn from who stands near whom:
"the king spoke", "the queen spoke": words with the same neighbours shall get the same direction.

- Skip-gram with negative sampling (Mikolov et al. 2013, arXiv 1310.4546, eq. 4): tell a true neighbour c of
  the word w from K words drawn at random. Each word has a row as centre, v, and another as neighbour, u:

      loss = -log sigmoid(v_w . u_c) - sum over the K drawn words k of log sigmoid(-v_w . u_k)

- GloVe (Pennington, Socher & Manning 2014, eq. 8): count first how often i and j are near, X_ij; then fit

      loss = sum over X_ij > 0 of f(X_ij) (v_i . u_j + b_i + b_j - log X_ij)^2

Goldberg & Levy 2014 derive the first step by step; Levy & Goldberg 2014 show that it too factors a matrix of
counts. V words, D numbers a word. `make lesson 7` trains both, asks for neighbours and analogies, and draws.
"""
import time

import numpy as np

from lessons import devices
from lessons.texts import read_text


def keep_probability(counts, threshold):  # (V,) -> (V,)
    """With which probability an occurrence of each word stays in the text: "the" has little to tell and would
    take most of the time. f = counts / their sum is how frequent a word is, and it stays with

        min(1, sqrt(threshold / f) + threshold / f)

    The paper has the root alone (eq. 5); its program, and gensim, add the second term. Each count is above 0.
    """
    ratio = threshold * counts.sum() / counts
    return np.minimum(1, np.sqrt(ratio) + ratio)


def noise_table(counts, size):  # (V,) -> (size,) int32
    """Words in proportion to count^0.75: who draws a place of the table, draws a word. The power makes rare
    words a little less rare (section 2.2). With P_w the sum of the shares of the words 0 .. w, place s holds

        the first w whose P_w > (s + 1/2) / size                        np.searchsorted finds it

    >>> noise_table(np.array([16, 1]), 9)
    array([0, 0, 0, 0, 0, 0, 0, 0, 1], dtype=int32)
    """
    shares = np.cumsum(counts ** 0.75)
    return np.searchsorted(shares / shares[-1], (np.arange(size) + 0.5) / size, "right").astype(np.int32)


def skipgram_loss(v, u):  # (D,), (1 + K, D) -> float, (D,), (1 + K, D)
    """The loss above, and its gradients dv and du. v is the centre's row, u[0] the true neighbour's, the K
    others were drawn. With s = u v, and t = 1 for the true one, 0 for the others:

        loss = sum of log(1 + exp(-s)) where t is 1, of log(1 + exp(s)) where it is 0
        g = sigmoid(s) - t        dv = sum of g_k u_k        du_k = g_k v

    np.logaddexp(0, s) is log(1 + exp(s)) without its overflow: a score of 1000 must do. And sigmoid(s),
    which is 1 / (1 + exp(-s)), is exp(-log(1 + exp(-s))).
    """
    s, true = u @ v, np.arange(len(u)) == 0
    loss = np.logaddexp(0, np.where(true, -s, s)).sum()
    g = np.exp(-np.logaddexp(0, -s)) - true
    return float(loss), g @ u, np.outer(g, v)


def draw(state, n):  # (1,) int64, int -> int
    """A number from 0 to n - 1, n <= 2^31, by the generator of Park & Miller 1988: any state from 1 to
    2^31 - 2 begins a row of 2^31 - 2 numbers. A kernel needs its own, which each thread has to itself."""
    state[0] = state[0] * 48271 % 0x7FFFFFFF
    return int(state[0]) * n >> 31


def train_skipgram(words, vectors, table, window, negatives, rates, state):  # (n,) int, (2, V, D), (S,) int
    """One walk over a text, as word2vec's program does it. vectors (all v, all u) and state change in place.

    For each place i, in order: reach = 1 + draw(state, window), so that near words count more often; rate =
    rates[0] + (rates[1] - rates[0]) i / n. Then for each neighbour j, from i - reach to i + reach, inside the
    text and not i: draw `negatives` places of the table by draw(state, len(table)), leave out the words that
    equal words[j], and go a step down the gradient of skipgram_loss: v -= rate dv, u -= rate du. A word that
    is drawn twice moves twice (np.subtract.at).
    """
    (centres, neighbours), n = vectors, len(words)
    for i, word in enumerate(words):
        reach, rate = 1 + draw(state, window), rates[0] + (rates[1] - rates[0]) * i / n
        for j in range(max(i - reach, 0), min(i + reach + 1, n)):
            if j == i:
                continue
            drawn = [table[draw(state, len(table))] for _ in range(negatives)]
            targets = [words[j]] + [other for other in drawn if other != words[j]]
            _, dv, du = skipgram_loss(centres[word], neighbours[targets])
            centres[word] -= rate * dv
            np.subtract.at(neighbours, targets, rate * du)


def cooccurrences(words, V, window):  # (n,) int, int, int -> first (M,), second (M,), X (M,)
    """X[m] says how often the words first[m] and second[m] are near, for all pairs that are at all. Words at
    distance d <= window count 1 / d, once as (a, b) and once as (b, a); sorted by first, then second.

    A pair is one number, first V + second: np.unique finds which occur, np.bincount adds up what they weigh.

    >>> [x.tolist() for x in cooccurrences(np.array([0, 1, 0]), 2, 2)]
    [[0, 0, 1], [0, 1, 0], [1.0, 2.0, 2.0]]
    """
    keys, weights, words = [], [], words.astype(np.int64)  # first V + second is too large for an int32
    for d in range(1, window + 1):
        a, b = words[:-d], words[d:]
        keys += [a * V + b, b * V + a]
        weights.append(np.full(2 * len(a), 1 / d))
    pairs, which = np.unique(np.concatenate(keys), return_inverse=True)
    return pairs // V, pairs % V, np.bincount(which, np.concatenate(weights))


def glove_loss(row, other, X, x_max):  # (n, D + 1) twice, (n,), float -> float, (n, D + 1) twice
    """GloVe's loss of n pairs, a Python float, and its gradients. The last number of a row is its bias, and f
    (eq. 9) keeps the most frequent pairs from deciding all:

        gap = v . u + b_v + b_u - log X        f = min(1, X / x_max)^0.75        loss = sum of f gap^2
        dv = 2 f gap u,    du = 2 f gap v,    and of both biases 2 f gap
    """
    v, u, f = row[:, :-1], other[:, :-1], np.minimum(1, X / x_max) ** 0.75
    gap = (v * u).sum(axis=1) + row[:, -1] + other[:, -1] - np.log(X)
    pull, one = (2 * f * gap)[:, None], np.ones((len(X), 1))
    return float((f * gap**2).sum()), pull * np.hstack([u, one]), pull * np.hstack([v, one])


def train_glove(first, second, X, vectors, squares, rate, x_max):  # (M,) thrice, (2, V, D + 1) twice -> float
    """One walk over the pairs, one after the other, by AdaGrad: each number has a square, the sum of its
    squared gradients so far, and moves by -rate * gradient / sqrt(square), before this gradient joins it.
    vectors and squares change in place. Returns the sum of the losses."""
    total = 0.0
    for m in range(len(X)):
        places = (0, first[m]), (1, second[m])
        loss, *gradients = glove_loss(*(vectors[place][None] for place in places), X[m:m + 1], x_max)
        total += loss
        for place, (gradient,) in zip(places, gradients):
            vectors[place] -= rate * gradient / np.sqrt(squares[place])
            squares[place] += gradient**2
    return total


def nearest(vectors, query, n, but=()):  # (V, D), (D,), int, some words -> (n,) int
    """The n words whose rows point most nearly where query points, the nearest first, without the words in
    `but`. By the cosine v . q / (|v| |q|), where |q|, the same for all, changes no order and is left out:

        v . q / |v|

    The length of a row says little of what a word means: frequent ones grow longer. Of equals, the first in
    the table comes first: kind="stable" of np.argsort.
    """
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1)
    cosines[list(but)] = -np.inf
    return np.argsort(-cosines, kind="stable")[:n]


def principal_components(x, n):  # (N, D) -> (N, n)
    """The n numbers a row that keep most of how rows differ: coordinates along the n directions in which x,
    less the mean row, spreads most. With x - mean = U S V^T, np.linalg.svd's, these are the first n columns
    of U S; each may come with the other sign."""
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    return u[:, :n] * s[:n]


def main():
    from lessons import word_experiments as experiments  # here, because that file imports this one
    ops, threads = devices.module("cpu", "word_vectors"), devices.cores()
    words, names = experiments.number_words(read_text("grimm") + read_text("shakespeare"))
    number = {name: n for n, name in enumerate(names)}
    print(f"Grimm's tales and Shakespeare: {len(words):,} words, {len(names):,} different")
    models = {}
    for name, train in (("skip-gram", experiments.skipgram), ("GloVe", experiments.glove)):
        start = time.perf_counter()
        models[name] = train(ops, words, len(names), threads=threads)
        print(f"{name}, {models[name].shape[1]} numbers a word: {time.perf_counter() - start:.1f} s")
    for name, vectors in models.items():
        print(f"nearest words, {name}:")
        for word in "king", "mother", "love", "sword", "wolf", "gold", "three", "hath":
            near = nearest(vectors, vectors[number[word]], 6, [number[word]])
            print(f"  {word:7}", *(names[n] for n in near))
    experiments.print_analogies(models, number)
    print("picture:", experiments.draw_map(models["skip-gram"], number))
