"""The tests of kernels/cpu/ngrams.py. The oracle is Kneser-Ney by definition, in dicts (ngram_oracle.py)."""
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.cpu import ngrams as cpu
from tests import ngram_oracle as oracle
from tests.close import assert_close, unchanged

V = 4  # code 3 is in the alphabet, and in no text here
TEXT = np.random.default_rng(2).choice(3, 60, p=[0.6, 0.3, 0.1])
# Its start, 1 2 1 0, occurs nowhere else: such grams follow no character.
START = np.array([1, 2, 1, 0, 0, 2, 0, 0, 0, 2, 2, 0, 0, 1, 1, 0, 0, 2, 0, 2])
DISCOUNTS = np.array([0, 0.5, 1.25, 1.5])
texts = st.lists(st.integers(0, 2), min_size=4, max_size=40).map(np.array)
few = settings(deadline=None, max_examples=20)


# -------- runs


def assert_runs(keys, counts):
    want = Counter()
    for key, n in zip(keys, counts):
        want[key] += n
    here, number = np.array(keys, np.int64), np.array(counts, np.int64)
    g = cpu.runs(here, number)
    assert g == len(want), f"{keys} has {len(want)} different keys: expected that number, got {g!r}"
    assert_close(here[:g], sorted(want), f"the first {g} of keys, which were {keys}")
    assert_close(number[:g], [want[key] for key in sorted(want)],
                 f"the first {g} of counts, which were {counts} beside keys {keys}")


@pytest.mark.parametrize("keys, counts", [
    ([3, 3, 7], [1, 4, 2]), ([0, 0, 0, 0], [1, 1, 1, 1]), ([1, 2, 3], [5, 6, 7]), ([9], [2]),
    ([0, 5, 5, 6, 6, 6, 8, 9, 9], [1, 2, 3, 4, 5, 6, 7, 8, 9])])
def test_runs_become_one_key_with_the_sum_of_their_counts(keys, counts):
    assert_runs(keys, counts)


def test_runs_of_no_keys_are_none():
    assert cpu.runs(np.zeros(0, np.int64), np.zeros(0, np.int64)) == 0, "no keys: expected 0"


@few
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), min_size=1).map(sorted))
def test_runs_of_any_sorted_keys(pairs):
    assert_runs(*map(list, zip(*pairs)))


# -------- tally


@pytest.mark.parametrize("keys, ends", [
    ([2, 5, 9], [2, 2, 9]), ([2, 5, 9], [5]), ([2, 5, 9], []), ([1], [1, 1, 1]), ([7, 8], [8]),
    ([0, 1, 2], [0, 1, 1, 2, 2, 2])])
def test_tally_counts_how_often_each_key_stands_in_ends(keys, ends):
    here, there = np.array(keys, np.int64), np.array(ends, np.int64)
    with unchanged(keys=here, ends=there):
        got = cpu.tally(here, there)
    assert_close(got, [ends.count(key) for key in keys], f"how often {keys} stand in {ends}", dtype=np.int64)


# -------- children


def tree(text, order):
    """[(keys, counts), ...] of the orders, and before them the root, whose key is 0."""
    return [(np.zeros(1, np.int64), np.zeros(1, np.int64)),
            *((keys, counts) for keys, counts, _ in oracle.levels(text, V, order))]


@pytest.mark.parametrize("text", [TEXT, START, np.array([0, 0, 2])], ids=["text", "start", "002"])
def test_children(text):
    """The last gram of 0 0 2 has no children, and others of START have none in their middle."""
    for n in 1, 2, 3:
        (parents, _), (keys, counts) = tree(text, 3)[n - 1:n + 1]
        with unchanged(parents=parents, keys=keys, counts=counts, discounts=DISCOUNTS):
            got = cpu.children(parents, keys, V, counts, DISCOUNTS)
        assert type(got) is tuple and len(got) == 3, f"expected first, total and mass, got {got!r}"
        of = [[int(c) for key, c in zip(keys, counts) if key // V == parent] for parent in parents]
        for name, array, want, dtype in (
                ("first", got[0], np.cumsum([0, *map(len, of)]), np.int64),
                ("total", got[1], [sum(here) for here in of], np.int64),
                ("mass", got[2], [sum(DISCOUNTS[min(c, 3)] for c in here) for here in of], np.float64)):
            assert_close(array, want, f"{name} of level {n}", dtype=dtype)


def test_children_of_a_parent_may_be_none_at_the_start_and_between():
    parents, keys, counts = np.array([0, 2, 3, 5]), np.array([9, 10, 11, 21]), np.array([1, 2, 7, 0])
    first, total, mass = cpu.children(parents, keys, V, counts, DISCOUNTS)
    assert_close(first, [0, 0, 3, 3, 4], "first of parents 0 2 3 5, keys 9 10 11 21")
    assert_close(total, [0, 10, 0, 0], "total of parents 0 2 3 5, counts 1 2 7 0")
    assert_close(mass, [0, 3.25, 0, 0], "mass of parents 0 2 3 5, counts 1 2 7 0")


# -------- descend


def place(keys, gram):
    at = [i for i, key in enumerate(keys) if key == oracle.key(gram, V)]
    return at[0] if at else cpu.NONE


def inputs(counted, text, n):
    """What descend is given for level n, from 0, of order 4."""
    (parents, _), (keys, counts) = tree(counted, 4)[n:n + 2]
    of = [[i for i, key in enumerate(keys) if key // V == parent] for parent in parents]
    first = np.cumsum([0, *map(len, of)])
    total = np.array([counts[here].sum() for here in of], np.int64)
    mass = np.array([DISCOUNTS[np.minimum(counts[here], 3)].sum() for here in of])
    node = np.full(len(text) + 1, -77)
    for t in range(n, len(text)):
        node[t] = place(parents, text[t - n:t])
    return keys, counts, DISCOUNTS, first, total, mass, node


@pytest.mark.parametrize("counted", [TEXT, START], ids=["text", "start"])
@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_descend(n, counted):
    text = np.random.default_rng(5).choice(V, 80, p=[0.4, 0.3, 0.2, 0.1])
    *arrays, node = inputs(counted, text, n)
    keys, counts, D, _, total, mass = arrays
    before = node.copy()
    lower = np.random.default_rng(6).random(len(text))
    p = lower.copy()
    with unchanged(text=text, keys=keys, counts=counts, discounts=D, first=arrays[3], total=total, mass=mass):
        cpu.descend(text, n, V, *arrays, node, p)
    places, want = before[:n + 1].tolist(), lower.copy()
    for t in range(n, len(text)):
        parent, child = before[t], place(keys, text[t - n:t + 1])
        places.append(child)
        if parent != cpu.NONE and total[parent] > 0:
            count = counts[child] if child != cpu.NONE else 0
            want[t] = (count - D[min(count, 3)]) / total[parent] + mass[parent] / total[parent] * lower[t]
    assert_close(node, places, f"node after level n = {n}", mistakes={
        "node[t] is the gram before text[t]: what ends with it belongs at t + 1":
        np.append(places[1:], before[-1])})
    assert_close(p, want, f"p after level n = {n}", rtol=1e-12)


# -------- all together


def assert_counted(text, order):
    keys, raw, continued = cpu.count_grams(text, V, order)
    assert (len(keys), len(raw), len(continued)) == (order, order, order - 1)
    for n in range(1, order + 1):
        want = sorted(oracle.raw(text, n).items())
        assert_close(keys[n - 1], [oracle.key(gram, V) for gram, _ in want], f"keys of the {n}-grams",
                     dtype=np.int64)
        assert_close(raw[n - 1], [count for _, count in want], f"raw counts of the {n}-grams", dtype=np.int64)
        if n < order:
            want = sorted(oracle.continued(text, n).items())
            assert_close(continued[n - 1], [count for _, count in want], f"continued of the {n}-grams",
                         dtype=np.int64)


@few
@given(texts, st.integers(1, 4))
def test_all_orders_are_counted(text, order):
    assert_counted(text, order)


def test_a_text_as_long_as_the_order_is_counted():
    assert_counted(np.array([2, 0, 1]), 3)
    assert_counted(START, 5)


@few
@given(texts, texts.map(lambda text: (text + 1) % V), st.integers(1, 4), st.booleans())
def test_a_text_gets_the_probabilities_of_the_definition(counted, text, order, modified):
    model = oracle.model(counted, V, order, modified)
    got = cpu.interpolated(oracle.levels(counted, V, order, modified), V, text)
    want = [model(text[t - order + 1:t])[text[t]] for t in range(order - 1, len(text))]
    assert_close(got, want, "p of a text", rtol=1e-12, dtype=np.float64)
