"""The tests of kernels/cpu/decision_tree.py. The oracles: loops over lists, and all cuts counted anew."""
import math

import numpy as np
import pytest

from kernels.cpu import decision_tree as cpu
from tests.close import assert_close, unchanged


def cost(counts):
    n = sum(counts)
    return sum(c * -math.log2(c / n) for c in counts if c)


def gain_of(yes, total):
    return cost(total.tolist()) - cost(yes.tolist()) - cost((total - yes).tolist())


def by_turns(table, turns=6):
    """The set that the lesson's three steps find, with loops."""
    V, total = len(table), table.sum(axis=0)
    n, top = total.sum(), total.argmax()
    seen = [a for a in range(V) if table[a].sum()]
    score = {a: table[a, top] / table[a].sum() for a in seen}
    best, gain = np.zeros(V, bool), 0.0
    for _ in range(turns):
        order = sorted(seen, key=score.get)
        sets = [np.isin(np.arange(V), order[:cut]) for cut in range(1, len(order))]
        gains = [gain_of(table[some].sum(axis=0), total) for some in sets]
        if not gains or max(gains) <= gain + 1e-9:
            break
        gain = max(gains)
        best = sets[gains.index(gain)]
        yes = table[best].sum(axis=0)
        side, other = (np.where(total > 0, counts + total / n, 1) for counts in (yes, total - yes))
        log = np.log(side / other)
        score = {a: table[a] @ log / table[a].sum() for a in seen}
    return best, gain


# -------- best_cut


def cut(rows, order):
    """best_cut, and what it leaves in `yes`."""
    left, yes = np.full(rows.shape[1], 77), np.full(rows.shape[1], 99)
    gain, at = cpu.best_cut(rows, order, left, yes)
    return gain, at, yes


@pytest.mark.parametrize("r, t, most", [(2, 1, 5), (2, 3, 9), (6, 4, 9), (9, 5, 3000), (3, 7, 9000)])
def test_best_cut_is_the_best_of_all_cuts(r, t, most):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        rows, order = rng.integers(0, most, (r, t)).astype(np.int32), rng.permutation(r)
        rows[:, 0] += 1  # every value occurs
        total = rows.sum(axis=0)
        sides = [rows[order[:n]].sum(axis=0) for n in range(1, r)]
        gains = [gain_of(side, total) for side in sides]
        with unchanged(rows=rows, order=order):
            gain, at, yes = cut(rows, order)
        assert_close(gain, max(gains), f"gain of {r} values, {t} characters", atol=1e-7 * total.sum())
        assert gains[at - 1] == pytest.approx(max(gains), abs=1e-7 * total.sum()), \
            f"cut {at} gains {gains[at - 1]}, but {1 + int(np.argmax(gains))} gains {max(gains)}"
        assert_close(yes, sides[at - 1], "yes, the counts of the first part,")


def test_best_cut_of_equal_gains_is_the_first():
    rows = np.array([[4, 0], [2, 2], [0, 4]], np.int32)
    gain, at, yes = cut(rows, np.arange(3))
    assert_close(at, 1, "cut")
    assert_close(yes, [4, 0], "yes")
    assert_close(gain, gain_of(np.array([4, 0]), np.array([6, 6])), "gain")


def test_best_cut_goes_by_the_order_that_it_is_given():
    rows = np.array([[5, 0], [0, 5], [6, 0], [0, 6]], np.int32)
    gain, at, yes = cut(rows, np.array([2, 0, 3, 1]))
    assert_close(at, 2, "cut")
    assert_close(yes, [11, 0], "yes")
    assert_close(gain, 22.0, "gain", rtol=1e-9)


# -------- find_leaves


def tree():
    ask = np.array([1, 0, 3, 0, 2, 0, 0])
    yes = np.array([1, 0, 3, 0, 5, 0, 0])
    members = np.zeros((7, 3), bool)
    members[0, 0] = members[2, 1] = members[4, [0, 2]] = True
    return ask, members, yes


@pytest.mark.parametrize("start", [3, 4, 20])
def test_find_leaves_follows_the_answers(start):
    ask, members, yes = tree()
    text, want = np.random.default_rng(4).integers(0, 3, 20), []
    for i in range(start, 20):
        if text[i - 1] == 0:
            want.append(1)
        elif text[i - 3] == 1:
            want.append(3)
        else:
            want.append(5 if text[i - 2] in (0, 2) else 6)
    with unchanged(text=text, ask=ask, members=members, yes=yes):
        got = cpu.find_leaves(text, start, ask, members, yes)
    assert_close(got, np.array(want, np.int64), "leaves", dtype=np.int64)


def test_find_leaves_of_a_tree_without_questions():
    none = np.zeros(1, np.int64)
    got = cpu.find_leaves(np.array([0, 1, 1]), 1, none, np.zeros((1, 2), bool), none)
    assert_close(got, [0, 0], "leaves", dtype=np.int64)


# -------- the others: no exercise is named so


def test_tables_count_pairs():
    codes, positions = np.random.default_rng(0).integers(0, 3, 40), np.array([7, 2, 2, 39])
    want = np.zeros((2, 4, 4), int)
    for i in positions:
        for k in (1, 2):
            want[k - 1, codes[i - k], codes[i]] += 1
    assert_close(cpu.histograms(codes, positions, 2, 4), want, "tables", dtype=np.int32)


@pytest.mark.parametrize("V, most, price", [(1, 9, 0.0), (2, 9, 0.5), (6, 5, 0.0), (9, 4, 1.0), (12, 2, 0.3)])
def test_the_worthiest_question_as_the_lesson_has_it(V, most, price):
    """The tables of one node count the same next characters."""
    rng = np.random.default_rng(V)
    codes = rng.integers(0, V, 30 * most)
    tables = cpu.histograms(codes, np.arange(3, 15 * most), 3, V)
    tables[:, :, V // 2] = 0  # a character that never comes next
    for offered in ([True] * 3, [False, True, True], [False] * 3):
        want = 0, np.zeros(V, bool), 0.0
        for k in np.flatnonzero(offered) + 1:
            members, gain = by_turns(tables[k - 1].astype(int))
            worth = gain - price * tables[k - 1].any(axis=1).sum()
            if worth > want[2] + 1e-9:
                want = k, members, worth
        k, members, worth = cpu.best_question(tables, np.array(offered), price)
        assert k == want[0] and np.array_equal(members, want[1]), (k, members, want)
        assert_close(worth, want[2], "worth", atol=1e-6)


def test_a_node_without_positions_asks_nothing():
    k, members, worth = cpu.best_question(np.zeros((2, 3, 3), np.int32), np.ones(2, bool), 0.0)
    assert (k, worth) == (0, 0.0) and not members.any()


def test_positions_are_parted_in_place():
    codes, members = np.random.default_rng(1).integers(0, 4, 50), np.array([True, False, True, False])
    for k in (1, 3):
        positions = np.random.default_rng(k).permutation(np.arange(5, 50))
        want = sorted(positions.tolist(), key=lambda i, k=k: not members[codes[i - k]])
        many = sum(bool(members[codes[i - k]]) for i in want)
        assert cpu.partition(codes, positions, k, members) == many
        assert_close(positions, want, "positions")


def test_chances_are_pulled_towards_the_parents():
    counts, yes = np.array([[3, 1, 0], [3, 0, 0], [0, 1, 0]], np.int32), np.array([1, 0, 0])
    root = np.array([3, 1, 0]) / 8 + 4 / 8 / 3
    want = [root, (counts[1] + 2 * root) / 5, (counts[2] + 2 * root) / 3]
    assert_close(cpu.smooth(counts, yes, 2.0), want, "p", dtype=np.float64)
