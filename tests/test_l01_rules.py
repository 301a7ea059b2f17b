"""The tests of f are test_f and test_f_*: they are also lesson 1's exercises.

The oracle is brute force: all_trees tries every way to cut the words, on grammars small enough, which
hypothesis draws: ambiguous ones, recursive ones, and some whose rules of one symbol go round in a circle.
"""
import itertools
import math
import random
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessons import l01_rules as lesson
from lessons import reading
from lessons.errors import InputError
from lessons.l01_rules import Rule
from lessons.toy_english import find_entities, read_grammar, sentences
from tests.close import assert_close, raises, unchanged

FEW = settings(max_examples=20, deadline=None)
CROWN = {"S": {("WE", "VP"): 1.0}, "WE": {("i",): 1.0}, "VP": {("saw", "NP"): 0.75, ("VP", "PP"): 0.25},
         "NP": {("the", "N"): 0.5, ("NP", "PP"): 0.5}, "PP": {("with", "NP"): 1.0},
         "N": {("king",): 0.5, ("crown",): 0.5}}
SAW = ["i", "saw", "the", "king", "with", "the", "crown"]
ONES = [Rule(("S",), ("S", "S"), 0.5), Rule(("S",), ("one",), 0.5)]  # as many trees as a sum has brackets
SUMS = [Rule(("S",), ("S", "T"), 0.3), Rule(("T",), ("S", "S"), 0.5), Rule(("S",), ("T", "S"), 0.2),
        Rule(("S",), ("a",), 0.5), Rule(("T",), ("a",), 0.2), Rule(("T",), ("b",), 0.3)]


def all_trees(grammar, symbol, words, above=()):
    """Every tree of symbol on words in which no symbol stands above itself on the same words."""
    for parts in grammar[symbol]:
        for row in rows(grammar, parts, tuple(words), (*above, symbol)):
            yield symbol, *row


def rows(grammar, parts, words, above):
    """Every (child, ...) in which parts are words, each part at least one."""
    part, *rest = parts
    for k in range(1, len(words) - len(rest) + 1) if rest else [len(words)]:
        if part not in grammar:
            first = [part] if words[:k] == (part,) else []
        elif rest or k < len(words) or above[0] is None:
            first = all_trees(grammar, part, words[:k])
        else:
            first = all_trees(grammar, part, words[:k], above) if part not in above else []
        for child in first:
            if not rest:
                yield (child,)
            else:
                yield from ((child, *row) for row in rows(grammar, rest, words[k:], (None,)))


def probability(grammar, tree):
    symbol, *children = tree
    p = grammar[symbol][tuple(child if isinstance(child, str) else child[0] for child in children)]
    return p * math.prod(probability(grammar, child) for child in children if not isinstance(child, str))


def levels(tree):
    return 0 if isinstance(tree, str) else 1 + max(map(levels, tree[1:]))


def ways_of(rules, words):
    """What chart must return, from the words of its docstring, one span at a time."""
    def can(symbol, i, j):
        return any(rule.chain[0] == symbol for rule, _ in ways(i, j))

    def ways(i, j):
        if j == i + 1:
            return [(rule, j) for rule in rules if list(rule.parts) == words[i:j]]
        return [(rule, k) for k in range(i + 1, j) for rule in rules if len(rule.parts) == 2
                and can(rule.parts[0], i, k) and can(rule.parts[1], k, j)]

    spans = sorted(itertools.combinations(range(len(words) + 1), 2), key=lambda span: span[1] - span[0])
    return {(i, j): {symbol: [way for way in ways(i, j) if way[0].chain[0] == symbol]
                     for symbol in dict.fromkeys(rule.chain[0] for rule, _ in ways(i, j))} for i, j in spans}


@st.composite
def grammars(draw):
    """Three symbols, two words, rules of one to three parts; S begins."""
    part = st.sampled_from(["S", "A", "B", "a", "b"])
    rules = st.dictionaries(st.lists(part, min_size=1, max_size=3).map(tuple), st.integers(1, 9), min_size=1,
                            max_size=3)
    grammar = {symbol: draw(rules) for symbol in "SAB"}
    grammar["B"].setdefault(("b",), 1)
    return {symbol: {parts: weight / sum(rules.values()) for parts, weight in rules.items()}
            for symbol, rules in grammar.items()}


short = st.lists(st.sampled_from("ab"), min_size=1, max_size=4)


# ---- text -----------------------------------------------------------------------------------------------

def equal(got, want, name):
    assert got == want, f"{name} is\n  {got}\nexpected\n  {want}"


@pytest.mark.parametrize("text, want", [
    ("Speak, speak.", "Speak , speak ."),
    ("We'll come to-morrow, at 10.", "We 'll come to-morrow , at 10 ."),
    ("'Tis gone?!", "'Tis gone ? !"),
    ("well-a-day -- so", "well-a-day - - so"),
    ("-x- y-", "- x - y -"),
    ("1603-04", "1603 - 04"),
    ("x2 2x", "x 2 2 x"),
    ("''tis 'gainst'", "' 'tis 'gainst '"),
    ("(Café\n\tnaïve_x)", "( Caf é na ï ve _ x )"),
    ("Zz-Aa KATE McDuff", "Zz-Aa KATE McDuff"),
    ("x-'tis x'-y", "x - 'tis x ' - y"),
], ids=["marks", "apostrophe", "apostrophe first", "hyphens", "hyphen at an end", "digits", "mixed", "quotes",
        "other letters", "z and Z", "hyphen and apostrophe"])
def test_tokens(text, want):
    equal(lesson.tokens(text), want.split(), f"tokens({text!r})")


@FEW
@given(st.text("aZ09'-., \n\té_", max_size=20))
def test_tokens_lose_nothing_but_white_space(text):
    got = lesson.tokens(text)
    equal("".join(got), "".join(text.split()), f"what tokens({text!r}) gives, joined,")
    assert all(re.fullmatch(r"'?[a-zA-Z][a-zA-Z-]*|[0-9]+|.", token) for token in got), got


def test_reading_sentences_without_who_speaks():
    text = "First Citizen:\nSpeak, \n speak. Who\ncomes: he?\n\nAll:\nI said:\nResolved. resolved"
    equal(sentences(text), ["speak, speak.", "who comes: he?", "i said: resolved."], "sentences")


def test_reading_finds_persons_before_places():
    text = "Go to Verona, Lady Anne, on Monday. Duke of York! ten thousand hundred of Rome; at four o'clock."
    equal(find_entities(text), [("PLACE", "Verona"), ("PERSON", "Lady Anne"), ("TIME", "Monday"),
                                ("PERSON", "Duke of York"), ("NUMBER", "ten thousand hundred"),
                                ("PLACE", "Rome"), ("TIME", "four o'clock")], "find_entities")


def test_reading_a_grammar_adds_up_lines_and_weights():
    got = read_grammar("\nS -> 3 A b | S\nA = x y\n\nA -> 2 z\n")
    want = {"S": {("A", "b"): 0.75, ("S",): 0.25}, "A": {("x",): 0.25, ("y",): 0.25, ("z",): 0.5}}
    equal(got, want, "the grammar")


@pytest.mark.parametrize("line", ["S -> a |", "S ->", "S =", "S", "S : a", "S -> 0 a"])
def test_reading_a_grammar_refuses_a_line(line):
    with raises(InputError, repr(line), "such a line"):
        read_grammar(f"A -> b\n  {line}")


# ---- writing --------------------------------------------------------------------------------------------

def test_heights_of_symbols_in_any_order():
    grammar = {"S": {("A", "A"): 0.5, ("S", "x"): 0.5}, "A": {("B", "y"): 1.0}, "B": {("y", "y"): 1.0},
               "L": {("L", "x"): 1.0}, "M": {("S", "L"): 1.0}}
    equal(lesson.heights(grammar), {"S": 3, "A": 2, "B": 1, "L": math.inf, "M": math.inf}, "heights")


SHORT = {"S": {("S", "S"): 0.4, ("A",): 0.2, ("a",): 0.4}, "A": {("B", "b"): 1.0}, "B": {("c",): 1.0}}
HEIGHT = {"S": 1, "A": 2, "B": 1}


def grow(seed, depth=4, symbol="S", grammar=SHORT, height=HEIGHT):
    tree = lesson.generate(grammar, symbol, random.Random(seed), depth, height)
    assert tree is not None, "generate returns None: did you forget `return`?"
    return tree


def test_generate_keeps_to_the_rules_and_to_the_depth():
    for seed in range(60):
        tree = grow(seed)
        try:
            probability(SHORT, tree)
        except KeyError as no_rule:
            raise AssertionError(f"{tree}: the grammar has no rule {no_rule}") from None
        assert tree[0] == "S", f"{tree} must begin with its symbol, S"
        assert levels(tree) <= 4, f"{tree} has {levels(tree)} levels, and 4 are allowed"


def test_generate_uses_all_levels_that_it_may():
    """A is 2 levels high and stands below S: a depth of 3 is just enough."""
    assert max(levels(grow(seed, 3)) for seed in range(60)) == 3, "with a depth of 3 some tree has 3 levels"
    high = ("S", ("A", ("B", "c"), "b"))
    assert any(grow(seed, 3) == high for seed in range(60)), f"{high} has 3 levels, and was never drawn"


def test_generate_draws_each_rule_as_often_as_it_is_probable():
    grammar = {"S": {("a",): 0.3, ("b", "c"): 0.6, ("A",): 0.1}, "A": {("a",): 1.0}}
    times = Counter(grow(seed, 9, "S", grammar, {"S": 1, "A": 2})[1:] for seed in range(900))
    for parts, p in ((("a",), 0.3), (("b", "c"), 0.6), ((("A", "a"),), 0.1)):
        assert abs(times[parts] / 900 - p) < 0.05, f"{parts} with p = {p} came {times[parts]} times of 900"


def test_generate_takes_what_fits_when_little_depth_is_left():
    equal({grow(seed, 1) for seed in range(20)}, {("S", "a")}, "the trees of 1 level")


def test_generate_is_the_same_for_the_same_seed():
    equal(grow(3, 8), grow(3, 8), "the tree of the same seed")
    assert len({grow(seed, 8) for seed in range(20)}) > 4, "other seeds give other trees: draw with rng"


def test_generate_refuses_a_depth_that_is_too_small():
    for symbol, depth in (("S", 0), ("A", 1), ("L", 99)):
        with raises(ValueError, symbol, f"{symbol} in {depth} levels"):
            grow(0, depth, symbol, SHORT | {"L": {("L", "a"): 1.0}}, HEIGHT | {"L": math.inf})


def test_generate_stops_where_another_rule_would_have_no_end():
    grammar = {"S": {("S", "L"): 0.9, ("a",): 0.1}, "L": {("L",): 1.0}}
    equal({grow(seed, 9, "S", grammar, {"S": 1, "L": math.inf}) for seed in range(20)}, {("S", "a")}, "trees")


# ---- the normal form ------------------------------------------------------------------------------------

def test_split_long_rules_into_two_halves():
    grammar = {"V": {("give", "O", "N"): 0.25, ("O",): 0.5, ("go",): 0.25}, "O": {("O", "N"): 1.0},
               "N": {("me", "too"): 1.0}}
    want = {"V": {("[ give ]", "[ O N ]"): 0.25, ("O",): 0.5, ("go",): 0.25}, "O": {("O", "N"): 1.0},
            "N": {("[ me ]", "[ too ]"): 1.0}, "[ give ]": {("give",): 1.0}, "[ O N ]": {("O", "N"): 1.0},
            "[ me ]": {("me",): 1.0}, "[ too ]": {("too",): 1.0}}
    equal(lesson.split_long(grammar), want, "split_long")


def test_split_long_rules_of_four_parts_into_three():
    want = {"S": {("S", "[ S x S ]"): 0.5, ("x",): 0.5}, "[ S x S ]": {("S", "[ x S ]"): 1.0},
            "[ x S ]": {("[ x ]", "S"): 1.0}, "[ x ]": {("x",): 1.0}}
    equal(lesson.split_long({"S": {("S", "S", "x", "S"): 0.5, ("x",): 0.5}}), want, "split_long")


def test_split_long_lets_rules_share_a_helper_and_leaves_the_grammar_as_it_was():
    grammar = {"S": {("A", "x", "y"): 0.5, ("B", "x", "y"): 0.5}, "A": {("a",): 1.0}, "B": {("b",): 1.0}}
    before = {symbol: dict(rules) for symbol, rules in grammar.items()}
    got = lesson.split_long(grammar)
    equal(grammar, before, "the grammar that was given")
    equal(got["S"], {("A", "[ x y ]"): 0.5, ("B", "[ x y ]"): 0.5}, "S")


UNITS = {"A": {("B",): 0.5, ("C",): 0.3, ("a",): 0.1, ("D", "a"): 0.1}, "C": {("A",): 0.2, ("c",): 0.8},
         "B": {("C",): 0.5, ("A",): 0.25, ("B", "C"): 0.25}, "D": {("d",): 1.0}}


@pytest.mark.parametrize("symbol, want", [
    ("A", {("A",): 1.0, ("A", "B"): 0.5, ("A", "C"): 0.3, ("A", "B", "C"): 0.25}),
    ("B", {("B",): 1.0, ("B", "C"): 0.5, ("B", "A"): 0.25, ("B", "C", "A"): 0.1, ("B", "A", "C"): 0.075}),
    ("D", {("D",): 1.0})], ids="ABD")
def test_chains_of_a_circle_go_round_once(symbol, want):
    got = lesson.chains(UNITS, symbol)
    assert got and tuple(got[0]) == ((symbol,), 1.0), f"the first of {got} must be {((symbol,), 1.0)}"
    equal(sorted(chain for chain, _ in got), sorted(want), f"the chains of {symbol}")
    for chain, p in got:
        assert_close(p, want[chain], f"p of the chain {chain}")


@FEW
@given(grammars())
def test_normal_form_has_two_symbols_or_one_word_and_is_sorted(grammar):
    rules = lesson.normal_form(grammar)
    left = {rule.chain[0] for rule in rules}
    for rule in rules:
        assert len(rule.parts) == 2 or rule.parts[0] in "ab", rule
        assert not left & {"a", "b"} and (len(rule.parts) == 1 or not {"a", "b"} & {*rule.parts}), rule
    firsts = [rule.parts[0] for rule in rules if len(rule.parts) == 2]
    assert firsts == sorted(firsts) and all(len(rule.parts) == 2 for rule in rules[:len(firsts)])


def test_original_gives_back_helpers_and_chains():
    rule = Rule(("A", "B"), ("[ x ]", "[ C y ]"), 1.0)
    got = lesson.original(rule, [("[ x ]", "x"), ("[ C y ]", ("C", "c"), "y")])
    equal(got, ("A", ("B", "x", ("C", "c"), "y")), "original")


@FEW
@given(grammars(), short)
def test_normal_form_and_back_gives_every_tree_once(grammar, words):
    want = [*itertools.islice(all_trees(grammar, "S", words), 300)]
    ways = lesson.chart(lesson.normal_form(grammar), words)
    if len(want) < 300:
        got = [*lesson.trees(ways, "S", 0, len(words))]
        equal(Counter(got), Counter(want), f"the trees of {words}")
        assert lesson.count_trees(ways).get(("S", 0, len(words)), 0) == len(want)


# ---- reading --------------------------------------------------------------------------------------------

def test_chart_of_one_word_has_the_rules_of_this_word():
    equal(lesson.chart(SUMS, ["a"]), {(0, 1): {"S": [(SUMS[3], 1)], "T": [(SUMS[4], 1)]}}, "chart")
    equal(lesson.chart(SUMS, ["c"]), {(0, 1): {}}, "chart of an unknown word")


@pytest.mark.parametrize("words", ["ab", "ba", "aab", "abab", "bbbb", "acb", "aaaaa"])
def test_chart_has_all_ways_in_order(words):
    got, want = lesson.chart(SUMS, [*words]), ways_of(SUMS, [*words])
    assert got is not None, "chart returns None: did you forget `return`?"
    equal([*got], [*want], "the order of the spans, short ones first,")
    for span in want:
        equal(got[span], want[span], f"the ways for {words[slice(*span)]!r}, span {span},")


def test_chart_keeps_rules_that_differ_in_their_chain():
    rules = [Rule(("S",), ("a",), 0.5), Rule(("S", "A"), ("a",), 0.5)]
    equal(lesson.chart(rules, ["a"]), {(0, 1): {"S": [(rules[0], 1), (rules[1], 1)]}}, "chart")
    rules = [Rule(("S", "A"), ("B", "B"), 0.5), Rule(("B", "C"), ("b",), 1.0)]
    equal(lesson.chart(rules, ["b", "b"])[0, 2], {"S": [(rules[0], 1)]},
          "the ways for two words, by the first symbol of the chain S, A,")


@pytest.mark.parametrize("n, want", [(1, 1), (2, 1), (3, 2), (4, 5), (5, 14), (6, 42)])
def test_count_trees_of_a_sum_is_catalans_number(n, want):
    ways = ways_of(ONES, ["one"] * n)
    equal(lesson.count_trees(ways)["S", 0, n], want, f"the number of trees of {n} ones")


def test_count_trees_of_every_span():
    words = [*"aabb"]
    ways = ways_of(SUMS, words)
    want = {(symbol, i, j): number(ways, symbol, i, j) for (i, j), cell in ways.items() for symbol in cell}
    equal(lesson.count_trees(ways), want, "count_trees")


def number(ways, symbol, i, j):
    return sum(1 if k == j else number(ways, rule.parts[0], i, k) * number(ways, rule.parts[1], k, j)
               for rule, k in ways[i, j][symbol])


def test_trees_of_a_way_with_chain_and_helper():
    rule, word = Rule(("S", "A"), ("[ the ]", "N"), 0.5), Rule(("N",), ("king",), 1.0)
    ways = ways_of([rule, Rule(("[ the ]",), ("the",), 1.0), word], ["the", "king"])
    equal([*lesson.trees(ways, "S", 0, 2)], [("S", ("A", "the", ("N", "king")))], "the trees")
    equal([*lesson.trees(ways, "N", 0, 2)], [], "the trees of a symbol that the words are not")
    equal([*lesson.trees(ways, "N", 1, 2)], [("N", "king")], "the trees of the second word")


def test_trees_change_the_right_one_first():
    """Two rules for each word, with and without a chain: four trees."""
    rules = [Rule(("S",), ("A", "A"), 1.0), Rule(("A",), ("x",), 0.5), Rule(("A", "B"), ("x",), 0.5)]
    low, high = ("A", "x"), ("A", ("B", "x"))
    equal([*lesson.trees(ways_of(rules, ["x", "x"]), "S", 0, 2)],
          [("S", low, low), ("S", low, high), ("S", high, low), ("S", high, high)], "the trees, in order,")


def test_trees_of_three_ones_come_in_the_order_of_the_ways():
    one = ("S", "one")
    equal([*lesson.trees(ways_of(ONES, ["one"] * 3), "S", 0, 3)],
          [("S", one, ("S", one, one)), ("S", ("S", one, one), one)], "the trees")


def test_trees_come_one_by_one(monkeypatch):
    """9 ones have 1430 trees, the first of them 17 nodes."""
    rule, one = ONES
    n, made, original = 9, [], lesson.original
    monkeypatch.setattr(lesson, "original", lambda *node: made.append(node) or original(*node))
    ways = {(i, j): {"S": [(one, j)] if j == i + 1 else [(rule, k) for k in range(i + 1, j)]}
            for i in range(n) for j in range(i + 1, n + 1)}
    first = next(iter(lesson.trees(ways, "S", 0, n)))
    equal((len(first), levels(first)), (3, n), "the first tree's size and depth")
    assert len(made) < 40, (
        f"{len(made)} nodes were made before the first tree came, which has 17: give each as soon as it "
        "is made (yield), and put none into lists (itertools.product does)")


# the best tree, as numbers

def best(leaves, pairs, log_p):
    """For every span and symbol the largest sum over all trees, by plain recursion; -inf if there is none."""
    n, S = leaves.shape

    def score(i, j, a):
        if j == i + 1:
            return leaves[i, a]
        return max([score(i, k, b) + score(k, j, c) + log_p[r] for k in range(i + 1, j)
                    for r, (of, b, c) in enumerate(pairs) if of == a], default=-np.inf)

    want = np.full((n, n + 1, S), -np.inf)
    for i, j in itertools.combinations(range(n + 1), 2):
        want[i, j] = [score(i, j, a) for a in range(S)]
    return want


PAIRS = np.array([[1, 0, 2], [0, 0, 0], [2, 1, 0], [0, 1, 1], [0, 2, 1]], np.int32)
LOG_P = np.log([0.3, 0.2, 0.7, 0.5, 0.1])
LEAVES = np.log([[0.5, 0.1, 0.3], [0.2, 0.4, 1e-9], [0.6, 0.3, 0.2], [0.25, 0.125, 0.9]])
LEAVES[1, 2] = LEAVES[2, 0] = -np.inf
for shared in PAIRS, LOG_P, LEAVES:
    shared.setflags(write=False)


def most_probable(leaves, pairs=PAIRS, log_p=LOG_P):
    got = lesson.most_probable_chart(leaves, pairs, log_p)
    assert isinstance(got, tuple) and len(got) == 2, "most_probable_chart returns two arrays, scores and back"
    return got


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_most_probable_chart_has_the_best_of_all_trees(n):
    scores, _ = most_probable(LEAVES[:n])
    finite(scores, best(LEAVES[:n], PAIRS, LOG_P))


def finite(scores, want):
    """assert_close where it is finite, and -inf in the same places: none above."""
    assert getattr(scores, "shape", None) == want.shape, f"scores must be an array of shape {want.shape}"
    no_tree = want == -np.inf
    assert (scores[no_tree] == -np.inf).all(), f"scores{first_of(no_tree)} must be -inf: there is no tree"
    assert_close(np.where(no_tree, 0, scores), np.where(no_tree, 0, want), "scores", rtol=1e-12, dtype=float)


def first_of(where):
    return np.argwhere(where)[0].tolist()


def test_most_probable_chart_says_where_each_came_from():
    scores, back = most_probable(LEAVES)
    assert_close(back.shape, (4, 5, 3, 2), "the shape of back")
    assert back.dtype == np.int32, f"back is {back.dtype}, expected int32"
    for i, j in itertools.combinations(range(5), 2):
        for a in range(3):
            r, k = back[i, j, a]
            if j == i + 1 or scores[i, j, a] == -np.inf:
                assert (r, k) == (-1, -1), f"back{[i, j, a]} is {r, k}, expected -1, -1: nothing joined"
            else:
                assert PAIRS[r, 0] == a and i < k < j, f"back{[i, j, a]} is {r, k}: no rule and split of {a}"
                left, right = scores[i, k, PAIRS[r, 1]], scores[k, j, PAIRS[r, 2]]
                assert_close(left + right + LOG_P[r], scores[i, j, a], f"what back{[i, j, a]} = {r, k} gives")


def test_most_probable_chart_takes_the_smallest_split_then_the_first_rule():
    pairs, log_p = np.array([[0, 0, 0], [0, 0, 1], [1, 1, 0]], np.int32), np.log([0.5, 0.5, 0.5])
    _, back = most_probable(np.log(np.full((4, 2), 0.5)), pairs, log_p)
    assert_close(back[0, 4], [[0, 1], [2, 1]], "back[0, 4], where all are equal,")
    leaves, pairs = np.full((3, 3), -np.inf), np.array([[2, 0, 1], [0, 1, 1], [2, 1, 0]], np.int32)
    leaves[:, 1] = 0
    _, back = most_probable(leaves, pairs, np.zeros(3))
    assert_close(back[0, 3, 2], [2, 1], "back[0, 3, 2], where rule 2 at k = 1 is as good as rule 0 at k = 2,")


def test_most_probable_chart_of_nothing_that_fits_stays_empty():
    scores, back = most_probable(LEAVES[:3], PAIRS[:0], LOG_P[:0])
    assert (scores[0, 2:] == -np.inf).all() and (back == -1).all(), "without rules no words are joined"
    assert scores[0, 1, 0] == LEAVES[0, 0], "the words' own scores stand at [i, i + 1]"


def test_most_probable_chart_leaves_its_arguments_alone():
    leaves, pairs, log_p = LEAVES.copy(), PAIRS.copy(), LOG_P.copy()
    with unchanged(leaves=leaves, pairs=pairs, log_p=log_p):
        most_probable(leaves, pairs, log_p)


# ---- all together ---------------------------------------------------------------------------------------

@FEW
@given(grammars(), short)
def test_reading_gives_the_most_probable_of_all_trees(grammar, words):
    every = [*itertools.islice(all_trees(grammar, "S", words), 300)]
    rules = lesson.normal_form(grammar)
    ids, pairs, log_p, leaves = reading.numbered_rules(rules)
    unknown = np.full(len(ids), -np.inf)
    scores, back = lesson.most_probable_chart(np.array([leaves.get(w, unknown) for w in words]), pairs, log_p)
    got = scores[0, len(words), ids["S"]] if "S" in ids else -np.inf
    if not every:
        assert got == -np.inf
    elif len(every) < 300:
        want = max(probability(grammar, tree) for tree in every)
        assert_close(math.exp(got), want, "the best probability", rtol=1e-9, atol=0)
        tree = reading.best_tree(rules, ids, back, words, "S", 0, len(words))
        assert tree in every
        assert_close(probability(grammar, tree), want, "the best tree's probability", rtol=1e-9, atol=0)


def test_reading_the_crown_in_two_ways():
    ways = lesson.chart(lesson.normal_form(CROWN), SAW)
    got = [*lesson.trees(ways, "S", 0, 7)]
    equal(Counter(got), Counter(all_trees(CROWN, "S", SAW)), "the trees")
    assert len(got) == lesson.count_trees(ways)["S", 0, 7] == 2


def test_whatever_is_generated_can_be_read_and_its_tree_is_among_the_trees():
    grammar = read_grammar(lesson.GRAMMAR + reading.DICTIONARY)
    rules, height = lesson.normal_form(grammar), lesson.heights(grammar)
    for seed in range(12):
        tree = lesson.generate(grammar, "TEXT", random.Random(seed), 7, height)
        words = reading.words_of(tree)
        if len(words) < 8:
            assert tree in lesson.trees(lesson.chart(rules, words), "TEXT", 0, len(words)), words


def test_main_draws_two_trees_and_reads_a_little_of_shakespeare(capsys):
    lesson.main()
    said = capsys.readouterr().out
    for words in ("We 'll meet him to-morrow , sir !", "God 25", "├─ VT saw", "12,775 sentences", "5.5%"):
        assert words in said, f"{words!r} is not in\n{said}"
