"""Kneser-Ney by its definition, gram by gram in dicts: slow, and the oracle for both rooms of lesson 2."""
from collections import Counter

import numpy as np


def raw(text, n):  # -> {gram: how often it occurs}
    return Counter(tuple(text[i:i + n]) for i in range(len(text) - n + 1))


def continued(text, n):  # -> {gram: after how many different characters it occurs}
    longer = raw(text, n + 1)
    return {gram: sum(other[1:] == gram for other in longer) for gram in raw(text, n)}


def key(gram, V):
    return sum(int(c) * V**i for i, c in enumerate(reversed(gram)))


def discounts(counts, modified):  # numbers -> [D of 0, of 1, of 2, of 3 and more]
    n1, n2, n3, n4 = (sum(c == n for c in counts) for n in (1, 2, 3, 4))
    Y = n1 / (n1 + 2 * n2) if n1 + n2 else 0
    if not modified:
        return [0, *[Y if 0 < Y < 1 else 0.5] * 3]
    D = [i - (i + 1) * Y * more / n if n and Y else 0
         for i, n, more in ((1, n1, n2), (2, n2, n3), (3, n3, n4))]
    return [0, *(d if 0 < d < i else i / 2 for i, d in enumerate(D, 1))]


def counted(text, order):  # -> [{gram: count}, ...] for orders 1 to order, as smoothing needs them
    return [continued(text, n) for n in range(1, order)] + [raw(text, order)]


def levels(text, V, order, modified=False):  # -> [(keys, counts, discounts), ...]
    out = []
    for counts in counted(text, order):
        grams = sorted(counts)
        out.append((np.array([key(gram, V) for gram in grams]), np.array([counts[gram] for gram in grams]),
                    np.array(discounts(counts.values(), modified), float)))
    return out


def model(text, V, order, modified=False):  # -> a function: context of order - 1 characters -> [p of each c]
    tables = counted(text, order)

    def p(context):
        context = tuple(int(c) for c in context)
        lower = p(context[1:]) if context else [1 / V] * V
        counts = tables[len(context)]
        D = discounts(counts.values(), modified)
        here = [counts.get((*context, c), 0) for c in range(V)]
        taken = [D[min(count, 3)] for count in here]
        if sum(here) == 0:
            return lower
        return [(count - d + sum(taken) * q) / sum(here) for count, d, q in zip(here, taken, lower)]
    return p
