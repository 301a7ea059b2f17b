"""The tests of lesson 4. The oracles: sums over characters, all sets one by one, loops over lists."""
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessons import l04_decision_tree as lesson
from lessons.errors import InputError
from lessons.texts import numbered
from lessons.written_tree import Tree, first, load, outline, parameters, save
from tests.close import assert_close, unchanged

few = settings(deadline=None, max_examples=20)


def cost(counts):
    """What counted characters cost, each by itself."""
    n = sum(counts)
    return sum(c * -math.log2(c / n) for c in counts if c)


def gain_of(table, members):
    """The bits that a set saves, from the sums of its rows and of the others."""
    members = np.asarray(members)
    return cost(table.sum(axis=0)) - cost(table[members].sum(axis=0)) - cost(table[~members].sum(axis=0))


def every_set(V):
    return (np.array(members) for members in itertools.product([False, True], repeat=V))


def text_of(length, V, seed=0):
    return np.random.default_rng(seed).integers(0, V, length)


# -------- bits


def test_bits_of_a_coin_and_of_what_is_certain():
    assert_close(lesson.bits(np.array([4, 4])), 8.0, "bits of 4 heads and 4 tails")
    assert_close(lesson.bits(np.array([[0, 9, 0], [0, 0, 1]])), [0.0, 0.0], "bits of what is always the same")


def test_bits_of_nothing_is_0_and_gives_no_nan():
    assert_close(lesson.bits(np.zeros((2, 3), int)), [0.0, 0.0], "bits of no counts")


def test_bits_adds_over_the_last_axis():
    counts = np.random.default_rng(1).integers(0, 9, (2, 3, 5))
    with unchanged(counts=counts):
        got = lesson.bits(counts)
    assert_close(got, [[cost(row.tolist()) for row in rows] for rows in counts], "bits", dtype=np.float64)


# -------- histograms


def test_histograms_counts_pairs_at_each_distance():
    codes, positions = text_of(40, 3), np.array([7, 2, 2, 30, 39])
    want = np.zeros((2, 4, 4), int)
    for i in positions:
        for k in (1, 2):
            want[k - 1, codes[i - k], codes[i]] += 1
    with unchanged(codes=codes, positions=positions):
        got = lesson.histograms(codes, positions, 2, 4)
    mistakes = {"the next character stands last: [k - 1, codes[i - k], codes[i]]": want.swapaxes(1, 2),
                "tables[0] is for the last character, k = 1": want[::-1]}
    assert_close(got, want, "tables", dtype=np.int32, mistakes=mistakes)


def test_histograms_of_no_positions():
    got = lesson.histograms(text_of(9, 2), np.zeros(0, np.int64), 3, 2)
    assert_close(got, np.zeros((3, 2, 2), int), "tables of no positions", dtype=np.int32)


# -------- best_set


TABLES = [np.array(table) for table in (
    [[9, 1], [1, 9], [8, 2], [5, 5]],
    [[5, 0, 1], [0, 0, 0], [4, 0, 2], [1, 0, 7]],
    [[0, 3, 0], [2, 0, 0], [0, 4, 1], [0, 0, 6]],
)]


@pytest.mark.parametrize("table", TABLES)
def test_best_set_is_the_best_of_all_sets(table):
    with unchanged(table=table):
        members, gain = lesson.best_set(table)
    want = max(gain_of(table, some) for some in every_set(len(table)))
    assert_close(gain, want, f"gain of the best set of\n{table}\n")
    assert members.dtype == bool and members.shape == (len(table),), f"members is {members!r}"
    assert_close(gain_of(table, members), gain, "the gain of these members, counted again, ")


@few
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=6))
def test_best_set_of_two_next_characters_is_always_the_best(rows):
    """Breiman's theorem: in the order of p, the best set is a first part."""
    table = np.array(rows)
    want = max(gain_of(table, some) for some in every_set(len(table)))
    members, gain = lesson.best_set(table)
    assert abs(gain - want) < 1e-6, f"gain {gain}, but a set of\n{table}\n gains {want}"
    assert abs(gain_of(table, members) - gain) < 1e-6, f"{members} gain {gain_of(table, members)}, not {gain}"


def test_best_set_says_yes_to_the_first_part_in_order_of_the_most_frequent_character(monkeypatch):
    """Character 1 is the most frequent. Its share is small after 0 and 2, though it comes often after 0."""
    monkeypatch.setattr(lesson, "TURNS", 1)
    members, _ = lesson.best_set(np.array([[60, 40], [1, 19], [8, 2], [2, 12]]))
    assert members.tolist() == [True, False, True, False], f"members are {members.tolist()}"


def test_best_set_takes_turns():
    """The first order, by the most frequent character, is not the best; the turns find a better one."""
    table, orders = np.random.default_rng(6).integers(0, 30, (8, 5)), []
    score = table[:, table.sum(axis=0).argmax()] / table.sum(axis=1)
    order = np.argsort(score, kind="stable")
    for cut in range(1, 8):
        orders.append(gain_of(table, np.isin(np.arange(8), order[:cut])))
    _, gain = lesson.best_set(table)
    assert gain > max(orders) + 0.1, f"gain {gain}: the first order alone gives {max(orders)}"


@pytest.mark.parametrize("table", [np.zeros((3, 3), int), np.array([[0, 0], [3, 4]]),
                                   np.array([[3, 0], [5, 0]]), np.array([[1, 2], [2, 4]])])
def test_best_set_of_what_cannot_be_split_or_gains_nothing(table):
    members, gain = lesson.best_set(table)
    assert_close(gain, 0.0, "gain")
    assert not members.any(), f"members are {members.tolist()}, but nothing is gained"


def test_best_set_of_equals_takes_the_first():
    members, _ = lesson.best_set(3 * np.eye(3, dtype=int))
    assert members.tolist() == [False, True, False], (
        f"members {members.tolist()}, expected only the second: scores are 1, 0, 0, and both cuts gain the "
        "same; equal scores stay in the order of the table, and the first of equal cuts is taken")


def test_best_set_follows_the_three_steps(monkeypatch):
    """Each turn as the docstring has it, with loops. On these tables each step counts, and no order is near
    another."""
    for seed, turns in ((10, 6), (47, 6), (129, 6), (129, 1), (129, 2), (230, 6)):
        monkeypatch.setattr(lesson, "TURNS", turns)
        rng = np.random.default_rng(seed)
        table = rng.integers(0, 5, (10, 10)) * (rng.random((10, 10)) < 0.4)
        want_members, want = by_turns(table, turns)
        members, gain = lesson.best_set(table)
        assert_close(gain, want, f"gain after at most {turns} turns")
        assert np.array_equal(members, want_members), f"members {members.tolist()}, expected {want_members}"


def by_turns(table, turns):
    V, total = len(table), table.sum(axis=0).tolist()
    n, top = sum(total), total.index(max(total))
    seen = [a for a in range(V) if table[a].sum()]
    score = {a: table[a, top] / table[a].sum() for a in seen}
    best, gain = [False] * V, 0.0
    for _ in range(turns):
        order = sorted(seen, key=score.get)
        sets = [[a in order[:cut] for a in range(V)] for cut in range(1, len(order))]
        gains = [gain_of(table, some) for some in sets]
        now = max(gains)
        if now <= gain + 1e-9:
            break
        gain, best = now, sets[gains.index(now)]
        yes = table[np.array(best)].sum(axis=0).tolist()
        log = [math.log((yes[c] + total[c] / n) / (total[c] - yes[c] + total[c] / n)) if total[c] else 0.0
               for c in range(len(total))]
        score = {a: sum(table[a, c] * log[c] for c in range(len(total))) / table[a].sum() for a in seen}
    return best, gain


# -------- best_question


def test_the_question_that_is_worth_most_among_those_offered():
    tables = np.array([TABLES[0][:, ::-1], TABLES[0] * 3, TABLES[0]])
    gains = [max(gain_of(t, some) for some in every_set(4)) - 4 * 0.5 for t in tables]
    for offered, k in (([1, 1, 1], 2), ([1, 0, 1], 1), ([0, 0, 1], 3)):
        got, members, worth = lesson.best_question(tables, np.array(offered, bool), 0.5)
        assert got == k, f"offered {offered}: asks about {got}, expected {k}"
        assert_close(worth, gains[k - 1], "worth = gain - price * values")
        assert gain_of(tables[k - 1], members) == pytest.approx(worth + 2)
    for offered, price in (([0, 0, 0], 0.5), ([1, 1, 1], 50.0)):
        k, members, worth = lesson.best_question(tables, np.array(offered, bool), price)
        assert (k, worth) == (0, 0.0) and not members.any()


# -------- partition


def test_partition_sorts_in_place_and_keeps_the_order_of_each_side():
    codes, members = text_of(50, 4), np.array([True, False, True, False])
    for k in (1, 3):
        positions = np.random.default_rng(k).permutation(np.arange(5, 50))
        want = sorted(positions.tolist(), key=lambda i, k=k: not members[codes[i - k]])  # a stable sort
        many = sum(bool(members[codes[i - k]]) for i in positions)
        with unchanged(codes=codes, members=members):
            got = lesson.partition(codes, positions, k, members)
        assert_close(positions, want, f"positions, by the {k}-th last character,")
        assert_close(got, many, "how many say yes")


def test_partition_of_a_slice_leaves_its_neighbours_alone():
    codes, positions = np.array([0, 1, 0, 1, 0, 1, 0]), np.array([1, 2, 3, 4, 5, 6])
    assert_close(lesson.partition(codes, positions[1:5], 1, np.array([True, False])), 2, "how many say yes")
    assert_close(positions, [1, 3, 5, 2, 4, 6], "positions")


@pytest.mark.parametrize("answer", [True, False])
def test_partition_where_all_answer_the_same(answer):
    positions = np.array([4, 3, 5])
    got = lesson.partition(np.zeros(9, np.int64), positions, 1, np.array([answer]))
    assert_close(got, 3 * answer, "how many say yes")
    assert_close(positions, [4, 3, 5], "positions")


# -------- grow


def plain_histograms(codes, positions, places, V):
    tables = np.zeros((places, V, V), np.int32)
    for i in positions:
        for k in range(1, places + 1):
            tables[k - 1, codes[i - k], codes[i]] += 1
    return tables


def plain_question(tables, offered, price):
    """The best of all sets, tried one by one; of those equally good, the first."""
    V = tables.shape[1]
    best = 0, np.zeros(V, bool), 0.0
    for k in np.flatnonzero(offered) + 1:
        for members in every_set(V):
            worth = gain_of(tables[k - 1], members) - price * tables[k - 1].any(axis=1).sum()
            if worth > best[2] + 1e-9:
                best = int(k), members, worth
    return best


def plain_partition(codes, positions, k, members):
    order = sorted(positions.tolist(), key=lambda i: not members[codes[i - k]])
    positions[:] = order
    return sum(bool(members[codes[i - k]]) for i in order)


PLAIN = SimpleNamespace(histograms=plain_histograms, best_question=plain_question, partition=plain_partition)


def speech():
    """Three characters; the next one often is the last, or that of two places before."""
    rng, codes = np.random.default_rng(2), [0, 1]
    for _ in range(160):
        codes.append(int(rng.choice([codes[-1], codes[-2], rng.integers(3)], p=[0.3, 0.4, 0.3])))
    return np.array(codes)


@pytest.fixture
def short_memory(monkeypatch):
    monkeypatch.setattr(lesson, "K", 2)
    monkeypatch.setattr(lesson, "PRICE", 0.0)


def down(tree, codes, i):
    """The nodes on the way of position i, and whether every answer fits."""
    way = [0]
    while tree.ask[way[-1]]:
        v = way[-1]
        way.append(int(tree.yes[v]) + (not tree.members[v, codes[i - tree.ask[v]]]))
    return way


def test_grow_counts_at_every_node_who_passes_it(short_memory):
    codes = speech()
    with unchanged(codes=codes):
        tree = lesson.grow(PLAIN, codes, 3, 6, price=0.0)
    want = np.zeros((11, 3), int)
    for i in range(2, len(codes)):
        want[down(tree, codes, i), codes[i]] += 1
    assert_close(tree.counts, want, "counts of 6 leaves and 5 questions", dtype=np.int32)
    assert_close(tree.ask > 0, tree.yes > 0, "who asks has two children, and nobody else;")
    assert_close(np.sort(tree.yes[tree.yes > 0]), [1, 3, 5, 7, 9], "the nodes where yes leads")


def test_grow_splits_the_leaf_whose_question_is_worth_most(short_memory):
    """Each smaller tree is the beginning of the next larger one; the leaf that it splits is the worthiest."""
    codes = speech()
    for leaves in (1, 2, 4):
        tree, larger = (lesson.grow(PLAIN, codes, 3, n, price=0.0) for n in (leaves, leaves + 1))
        worths = {}
        for leaf in np.flatnonzero(tree.ask == 0):
            at = [i for i in range(2, len(codes)) if down(tree, codes, i)[-1] == leaf]
            worths[leaf] = plain_question(plain_histograms(codes, at, 2, 3), [True, True], 0.0)
        best = max(worths, key=lambda leaf: (worths[leaf][2], -leaf))
        split = np.flatnonzero(larger.yes == 2 * leaves - 1).tolist()
        assert split == [best], f"{leaves} leaves: {split} is split, but {best} has the worthiest question"
        assert larger.ask[best] == worths[best][0] and np.array_equal(larger.members[best], worths[best][1])


def test_grow_stops_where_no_question_is_worth_its_price(short_memory):
    tree = lesson.grow(PLAIN, speech(), 3, 5, price=1000.0)
    assert len(tree.ask) == 1, f"{len(tree.ask)} nodes, but every question costs 1000 bits a value"
    assert_close(tree.counts[0], np.bincount(speech()[2:], minlength=3), "counts of the root")
    some = lesson.grow(PLAIN, speech(), 3, 500, price=1.0)
    assert 3 <= len(some.ask) < 99 and len(some.ask) == len(some.members) == len(some.yes) == len(some.counts)


def test_grow_asks_only_what_is_offered(short_memory):
    asked = []

    def offer():
        asked.append(np.arange(2) == len(asked) % 2)
        return asked[-1]
    tree = lesson.grow(PLAIN, speech(), 3, 4, offer, 0.0)
    nodes = len(tree.ask)
    assert len(asked) == nodes > 4, f"offer() was called {len(asked)} times, and there are {nodes} nodes"
    wrong = [v for v in range(nodes) if tree.ask[v] and not asked[v][tree.ask[v] - 1]]
    assert not wrong, f"nodes {wrong} ask about a place that offer() did not give them"


# -------- smooth


def test_smooth_a_node_by_its_parent():
    counts, yes = np.array([[3, 1, 0], [3, 0, 0], [0, 1, 0]]), np.array([1, 0, 0])
    root = [(3 + 2 * 2 / 3) / 8, (1 + 2 * 2 / 3) / 8, (2 * 2 / 3) / 8]  # 2 types, so 2 * 2 of the parent
    want = [root, [(3 + 2 * root[0]) / 5, 2 * root[1] / 5, 2 * root[2] / 5],
            [2 * root[0] / 3, (1 + 2 * root[1]) / 3, 2 * root[2] / 3]]
    with unchanged(counts=counts, yes=yes):
        got = lesson.smooth(counts, yes, 2.0)
    assert_close(got, want, "p", dtype=np.float64)


@pytest.mark.parametrize("trust", [0.5, 24.0])
def test_smooth_gives_each_character_a_chance_and_sums_to_1(trust):
    rng, yes = np.random.default_rng(0), np.array([1, 5, 3, 0, 0, 0, 0])
    counts = rng.integers(0, 4, (7, 6)) * (rng.random((7, 6)) < 0.5) + np.eye(7, 6, dtype=int)
    counts[6, 0] = 1
    p, parents = lesson.smooth(counts, yes, trust), {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 1}
    assert p.min() > 0, "a character that never came has no chance: does the root trust 1 / V?"
    assert_close(p.sum(axis=1), np.ones(7), "the sums of p")
    for v, parent in parents.items():
        pull = trust * (counts[v] > 0).sum()
        assert_close(p[v], (counts[v] + pull * p[parent]) / (counts[v].sum() + pull), f"p[{v}]")


# -------- nats and the rest: no exercise is named so


def small_forest():
    codes = text_of(400, 5, seed=3)
    codes[2::3] = codes[1::3][:len(codes[2::3])]  # something to find
    return codes, [lesson.grow(lesson, codes, 5, leaves, price=0.3) for leaves in (2, 7)]


def test_ways_down_end_where_the_answers_lead():
    codes, (_, tree) = small_forest()
    got = lesson.find_leaves(codes, 9, *tree[:3])
    assert_close(got, [down(tree, codes, i)[-1] for i in range(9, len(codes))], "leaves")


def test_the_trees_multiply_what_they_say():
    codes, model = small_forest()
    before, after = codes[:390], codes[390:]
    logs = 0
    for tree in model:
        p = lesson.smooth(tree.counts, tree.yes, lesson.TRUST)
        logs = logs + np.log([p[down(tree, codes, i)[-1]] for i in range(390, 400)]) / 2
    p = np.exp(logs) / np.exp(logs).sum(axis=1, keepdims=True)
    got = lesson.nats(lesson, model, before, after)
    assert_close(got, -np.log(p[np.arange(10), after]), "nats", dtype=np.float64)


def test_the_chances_of_all_next_characters_sum_to_1_with_any_past():
    codes, model = small_forest()
    for past in (codes[:0], codes[:3], codes[:50]):
        p = [math.exp(-lesson.nats(lesson, model, past, np.array([c]))[0]) for c in range(5)]
        assert sum(p) == pytest.approx(1, abs=1e-6)


def test_what_comes_later_changes_nothing():
    codes, model = small_forest()
    other = codes[:60].copy()
    other[40:] = 0
    got, want = (lesson.nats(lesson, model, codes[:0], c)[:40] for c in (other, codes[:60]))
    assert np.array_equal(got, want)


def test_a_forest_has_trees_of_its_seed_and_each_another():
    rng, codes = np.random.default_rng(0), list(range(5)) * 2
    for _ in range(1500):  # a copy of one of the last 8, mostly: every place is worth a question
        codes.append(codes[-rng.integers(1, 9)] if rng.random() < 0.9 else int(rng.integers(5)))
    codes = np.array(codes)
    one, again, other = (list(lesson.forest(lesson, codes, 5, 2, 5, seed)) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(one[1], again[1], strict=True))
    for tree in (one[1], other[0]):
        assert not all(np.array_equal(a, b) for a, b in zip(one[0], tree, strict=True))


def test_the_beginning_of_a_tree_is_a_tree():
    codes, (_, tree) = small_forest()
    for leaves in 1, 4, 99:
        want = lesson.grow(lesson, codes, 5, min(leaves, 7), price=0.3)
        for name, got, array in zip(Tree._fields, first(tree, leaves), want):
            at = want.ask > 0 if name == "members" else slice(None)  # a leaf may remember its question
            assert np.array_equal(got[at], array[at]), f"{name} of {leaves} leaves"


def test_a_saved_forest_comes_back_whole(tmp_path):
    _, model = small_forest()
    save(tmp_path / "tree.npz", "a text", 2.5, model)
    loaded, seconds = load(tmp_path / "tree.npz", "a text")
    assert seconds == 2.5 and len(loaded) == 2
    for tree, other in zip(model, loaded):
        for got, want in zip(other, tree, strict=True):
            assert got.dtype == want.dtype and np.array_equal(got, want)
    leaf_counts = sum(np.count_nonzero(tree.counts[tree.ask == 0]) for tree in model)
    assert parameters(model) == leaf_counts + 2 * (1 + 6)


def test_a_file_of_another_lesson_is_refused(tmp_path):
    from lessons.model_file import save_model
    save_model(tmp_path / "x.npz", "a text", 1.0, emission=np.ones(3))
    with pytest.raises(InputError, match="no model of lesson 4"):
        load(tmp_path / "x.npz", "a text")


def test_an_outline_says_it_in_words():
    codes, alphabet = numbered("abab abab b" * 20)
    tree = lesson.grow(lesson, codes, len(alphabet), 4)
    lines = list(outline(tree, lesson.bits, alphabet, 1))
    assert len(lines) == 3 and "the last" in lines[0] and lines[0].endswith("100%]"), lines
    assert lines[1].startswith("  yes: ") and lines[2].startswith("  no: "), lines


def test_main_shows_questions_and_bits(capsys):
    lesson.main()
    out = capsys.readouterr().out
    assert "is the last none of" in out and "2,000 leaves" in out
    numbers = [float(line.split()[-1]) for line in out.splitlines() if " leaves " in line]
    assert len(numbers) == 8 and 2 < numbers[7] < 2.65
    assert numbers[7] < numbers[4] < numbers[0]


@pytest.mark.parametrize("argv, words", [(["--trees", "3"], "need --train"),
                                         (["--leaves", "0"], "'0' is not"), (["--what"], "--what"),
                                         (["--leaves", "999999"], "'999999' is not .* to 200000"),
                                         (["--train", "--out", "."], "cannot be written: Is a directory")])
def test_main_refuses_in_one_line(argv, words):
    with pytest.raises(InputError, match=words):
        lesson.main(*argv)


def test_training_writes_a_file_that_loads(tmp_path, monkeypatch, capsys):
    from lessons import decision_tree_run
    monkeypatch.setattr(decision_tree_run, "read_text", lambda _: "to be or not to be, " * 300)
    lesson.main("--train", "--trees", "2", "--leaves", "9", "--out", str(tmp_path / "t.npz"))
    assert "2 trees" in capsys.readouterr().out
    assert len(load(tmp_path / "t.npz", "to be or not to be, " * 300)[0]) == 2
