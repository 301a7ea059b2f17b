"""Lesson 2: n-grams. How far does one get by counting which character follows which?

An n-gram is n characters in a row: a context h of n - 1, and c, which followed it. Counting them is all the
learning there is; but with count(h c) / count(h), what never followed h gets 0. So Kneser-Ney takes a little,
D, from every count. How much that was decides how far h is trusted, and it goes to what follows h', which is
h without its oldest character:

    p(c | h) = (count(h c) - D) / total(h) + mass(h) / total(h) p(c | h')
    total(h) = sum over c of count(h c)            mass(h) = sum over c of D

D depends on the count alone, and a count of 0 gives nothing. Below the empty context p is 1 / V: no p is 0,
and as mass is what was taken, the p of all c sum to 1. Below the highest order, a count is not how often the
gram occurs, but after how many different characters. Of the 161 Z that are counted here, 150 follow an I, as
in ELIZABETH: Z is frequent, and yet not to be expected where h is unknown.

V characters in the alphabet, N in a text; order n: the grams have n characters, the contexts n - 1.
Kneser & Ney 1995, in the interpolated form of Chen & Goodman 1999, section 3, whose discounts D are used.
`make lesson 2` scores orders 1 to 8 on text that was not counted, writes text, and draws bits against order.
"""
import math
import time
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from lessons import devices
from lessons.errors import InputError
from lessons.ngrams_picture import draw
from lessons.texts import numbered, read_text, split


class Counts(NamedTuple):
    """Tuples of arrays (g,) int64, one for each order n: keys[n - 1] belongs to the n-grams."""
    V: int
    keys: tuple  # the different n-grams, as numbers, sorted
    raw: tuple  # how often each occurs
    continued: tuple  # after how many different characters; the highest order has none


def number(grams, V):  # (..., n) int64 -> (...) int64
    """Each gram as one number, its key: the characters are digits in base V, the oldest first. So key // V is
    the context, key % V the last character, and keys sort as grams do. n may be 0: the key is 0.

    >>> number(np.array([[1, 2, 3], [0, 0, 9]]), 10)
    array([123,   9])
    """
    return grams @ V ** np.arange(grams.shape[-1] - 1, -1, -1)


def lookup(keys, values, wanted):  # (g,) sorted, (g,), (m,) -> (m,)
    """The value beside each wanted key, found by binary search; 0 for a key that is not there. g >= 1.

    >>> lookup(np.array([2, 5]), np.array([20, 50]), np.array([5, 4, 2, 9]))
    array([50,  0, 20,  0])
    """
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


def count_grams(codes, V, order):  # (N,) -> order arrays of keys, order of counts, order - 1 of counts
    """keys, raw and continued of Counts, three tuples of int64 arrays. sliding_window_view(codes, n) has all
    n-grams as its rows. An n-gram occurs after as many different characters as there are (n + 1)-grams that
    end with it: their key % V**n is its key. That is 0 for one that only begins the text. For aab, a is 0:

    >>> count_grams(np.array([0, 0, 1]), 2, 2)
    ((array([0, 1]), array([0, 1])), (array([2, 1]), array([1, 1])), (array([1, 1]),))
    """
    keys, raw = zip(*(np.unique(number(sliding_window_view(codes, n), V), return_counts=True)
                      for n in range(1, order + 1)))
    ends = (np.unique(longer % V**n, return_counts=True) for n, longer in enumerate(keys[1:], 1))
    return keys, raw, tuple(lookup(*end, shorter) for end, shorter in zip(ends, keys))


def count(ops, codes, V, order):  # (N,) -> Counts
    """Of orders 1 to order. InputError if the text has no such grams, or their keys do not fit in 63 bits."""
    most = max((n for n in range(1, len(codes) + 1)[:62] if V**n < 2**63), default=0)
    if not 1 <= order <= most:
        raise InputError(f"order {order} cannot be counted in {len(codes)} characters of {V} kinds (a gram's "
                         f"number has 63 bits): take an order from 1 to {most}")
    return Counts(V, *ops.count_grams(np.asarray(codes, np.int64), V, order))


def stored(counts, order):
    """How many counts a model of this order keeps: one for each different gram of orders 1 to order."""
    return sum(len(keys) for keys in counts.keys[:order])


def discounts(counts, modified):  # (g,) int64 -> (4,) float64
    """D of a count of 0, of 1, of 2, and of 3 or more; n1 is how many of counts are 1, and so on:

        Y = n1 / (n1 + 2 n2)                            plain: 0, Y, Y, Y
        modified: 0, 1 - 2 Y n2 / n1, 2 - 3 Y n3 / n2, 3 - 4 Y n4 / n3       Chen & Goodman 1999, eq. 26

    All but the first must be above 0, and below 1 (plain) or 1, 2, 3 (modified), so that no count falls to 0.
    Small texts lack an n, or have odd ones: an estimate outside, or none (0 / 0), becomes half its limit.

    >>> discounts(np.array([1, 1, 1, 1, 2, 2, 3, 4]), True), discounts(np.array([7, 8]), False)
    (array([0.  , 0.5 , 1.25, 1.  ]), array([0. , 0.5, 0.5, 0.5]))
    """
    n, i = np.bincount(np.minimum(counts, 5), minlength=5), np.arange(1, 4)
    with np.errstate(divide="ignore", invalid="ignore"):
        Y = n[1] / (n[1] + 2 * n[2])
        D, limit = (i - (i + 1) * Y * n[i + 1] / n[i], i) if modified else (np.full(3, Y), np.ones(3))
    return np.append(0, np.where((D > 0) & (D < limit), D, limit / 2))


def levels_of(counts, order, modified):  # -> [(keys (g,), counts (g,), discounts (4,)), one of each order]
    """Raw counts for the highest order, continuation counts below it. ValueError if it was not counted."""
    if not 1 <= order <= len(counts.keys):
        raise ValueError(f"orders 1 to {len(counts.keys)} were counted, not {order}")
    used = *counts.continued[:order - 1], counts.raw[order - 1]
    return [(keys, c, discounts(c, modified)) for keys, c in zip(counts.keys, used)]


def probabilities(levels, V, context):  # levels_of, (>= order - 1,) int64 -> (V,) float64
    """p(c | context) for every c, by the formula on top: from p = 1 / V level by level. That of order n looks
    at h, the last n - 1 of context. What followed it stands side by side in keys, from number(h) V up to, not
    including, number(h) V + V. D is discounts[min(count, 3)]. Where total(h) is 0, p stays as it is."""
    p = np.full(V, 1 / V)
    for n, (keys, counts, D) in enumerate(levels):
        h = number(context[len(context) - n:], V)
        here = slice(*np.searchsorted(keys, [h * V, h * V + V]))
        total, D = counts[here].sum(), D[np.minimum(counts[here], 3)]
        if total > 0:
            p *= D.sum() / total
            p[keys[here] % V] += (counts[here] - D) / total
    return p


def interpolated(levels, V, text):  # levels_of, (T,) int64 -> (T - order + 1,) float64
    """p(c | h) of every character of text that has its h of order - 1 characters before it: probabilities in
    step. A window of order characters is h and c, its last n are a gram. Equal contexts, keys // V, stand
    side by side: np.add.reduceat sums their counts, or D of them, from where each begins. So lookup gives
    total(h) and mass(h). Where total(h) is 0, or h does not occur, p stays as it is."""
    windows = sliding_window_view(text, len(levels))
    p = np.full(len(windows), 1 / V)
    for n, (keys, counts, D) in enumerate(levels, 1):
        grams, D = number(windows[:, len(levels) - n:], V), D[np.minimum(counts, 3)]
        contexts, begins = np.unique(keys // V, return_index=True)
        total, mass = (lookup(contexts, np.add.reduceat(x, begins), grams // V) for x in (counts, D))
        p = np.where(total > 0, (lookup(keys, counts - D, grams) + mass * p) / np.maximum(total, 1), p)
    return p


def with_context(before, codes, V, order):  # (>= order - 1,), (m,) -> (order - 1 + m,) int64
    """codes, and what precedes them. ValueError: too little does, or a code is none of 0 .. V - 1."""
    text = np.concatenate([before[max(len(before) - order + 1, 0):], codes]).astype(np.int64)
    if len(before) < order - 1 or not ((text >= 0) & (text < V)).all():
        raise ValueError(f"order {order} takes codes 0 to {V - 1}, and {order - 1} of them before the first")
    return text


def kneser_ney_nats(ops, counts, before, codes, order, modified=False):  # (>= order - 1,), (m,) -> (m,)
    """-ln p of each of codes, given what precedes it: the end of `before`, then codes themselves."""
    levels = levels_of(counts, order, modified)
    return -np.log(ops.interpolated(levels, counts.V, with_context(before, codes, counts.V, order)))


def add_k_nats(counts, before, codes, order, k):  # (>= order - 1,), (m,) -> (m,)
    """The same of the oldest smoothing, with raw counts, each taken to be larger by k > 0 (Laplace's: k = 1):
    p(c | h) = (count(h c) + k) / (total(h) + k V). So it is 1 / V where h never occurred."""
    V, keys, raw = counts.V, counts.keys[order - 1], counts.raw[order - 1]
    grams = number(sliding_window_view(with_context(before, codes, V, order), order), V)
    contexts, begins = np.unique(keys // V, return_index=True)
    total = lookup(contexts, np.add.reduceat(raw, begins), grams // V)
    return -np.log((lookup(keys, raw, grams) + k) / (total + k * V))


def sample(levels, V, before, m, rng):  # levels_of, (>= order - 1,) -> (m,) int64
    """m characters to go on from `before`, each by rng.choice(V, p=probabilities after all that precedes)."""
    n = len(levels) - 1
    text = with_context(before, np.zeros(m, np.int64), V, n + 1)
    for t in range(n, n + m):
        text[t] = rng.choice(V, p=probabilities(levels, V, text[:t]))
    return text[n:]


def main():
    codes, alphabet = numbered(read_text("shakespeare"))
    parts, V, orders, table = split(codes), len(alphabet), range(1, 9), []
    ops, names = devices.module("cpu", "ngrams"), ("Kneser-Ney", "modified", "add 0.01")
    kneser_ney_nats(ops, count(ops, codes[:99], V, 2), *parts, 2)  # compiles the kernels
    print(f"{len(parts[0]):,} characters counted, the next {len(parts[1]):,} predicted; bits a character:\n"
          f"order  {'   '.join(names)}   perplexity of modified   counts stored   count and predict")
    for order in orders:
        start = time.perf_counter()
        counts = count(ops, parts[0], V, order)
        nats = [kneser_ney_nats(ops, counts, *parts, order)]
        seconds = time.perf_counter() - start
        nats += [kneser_ney_nats(ops, counts, *parts, order, True), add_k_nats(counts, *parts, order, 0.01)]
        table.append([each.mean() / math.log(2) for each in nats])
        print(f"{order:5}", *(f"{bits:10.3f}" for bits in table[-1]),
              f"{math.exp(nats[1].mean()):24.2f} {stored(counts, order):15,} {seconds:17.2f} s")
    for order in 1, 3, 6:
        prompt = np.array([alphabet.index(c) for c in "ROMEO:\n"])
        text = sample(levels_of(counts, order, True), V, prompt, 200, np.random.default_rng(order))
        print(f"\norder {order} goes on from ROMEO:", "".join(alphabet[c] for c in text), sep="\n")
    print("\npicture:", draw(orders, dict(zip(names, zip(*table)))))
