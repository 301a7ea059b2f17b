"""Lesson 1 at work: its grammar as numbers for the kernel, the best tree of a sentence, the demonstration."""
import math
import random
import time
from collections import Counter
from itertools import zip_longest

import numpy as np

from lessons import devices
from lessons import l01_rules as lesson
from lessons.texts import read_text
from lessons.toy_english import DICTIONARY, ENTITIES, find_entities, read_grammar, sentences


def numbered_rules(rules):  # normal_form(...) -> {symbol: number}, (R, 3) int32, (R,), {word: (S,)}
    """The S symbols, numbered in the order of the alphabet; the R rules of two symbols as numbers, and their
    ln p; and for each word the ln p of its rule in each symbol, the best if there are several, or -inf."""
    two = [rule for rule in rules if len(rule.parts) == 2]
    symbols = {rule.chain[0] for rule in rules}.union(*(rule.parts for rule in two))
    ids = {symbol: a for a, symbol in enumerate(sorted(symbols))}
    pairs = [[ids[symbol] for symbol in (rule.chain[0], *rule.parts)] for rule in two]
    leaves = {rule.parts[0]: np.full(len(ids), -np.inf) for rule in rules[len(two):]}
    for (symbol, *_), (word,), p in rules[len(two):]:
        leaves[word][ids[symbol]] = max(leaves[word][ids[symbol]], math.log(p))
    return ids, np.array(pairs, np.int32).reshape(-1, 3), np.log([rule.p for rule in two]), leaves


def best_tree(rules, ids, back, words, symbol, i, j):  # back of most_probable_chart -> tree of words[i:j]
    """There must be one: its score is above -inf."""
    if j == i + 1:
        ways = [rule for rule in rules if rule.chain[0] == symbol and rule.parts == (words[i],)]
        return lesson.original(max(ways, key=lambda rule: rule.p), [words[i]])
    r, k = back[i, j, ids[symbol]]
    left, right = rules[r].parts
    return lesson.original(rules[r], [best_tree(rules, ids, back, words, left, i, k),
                               best_tree(rules, ids, back, words, right, k, j)])


def draw(tree):  # (symbol, child, ...) -> [line, ...]
    """A symbol with one word stands in one line with it.

    >>> print("\\n".join(draw(("S", ("NP", "he"), ("VP", ("V", "sees"), ("NP", "me"))))))
    S
    ├─ NP he
    └─ VP
       ├─ V sees
       └─ NP me
    """
    symbol, *children = tree
    if len(children) == 1 and isinstance(children[0], str):
        return [f"{symbol} {children[0]}"]
    lines = [symbol]
    for n, child in enumerate(children, 1):
        branch, beside = ("└─ ", "   ") if n == len(children) else ("├─ ", "│  ")
        first, *more = [child] if isinstance(child, str) else draw(child)
        lines += [branch + first, *(beside + line for line in more)]
    return lines


def side_by_side(left, right):  # [line, ...], [line, ...] -> str
    width = max(map(len, left)) + 4
    return "\n".join(f"  {a:{width}}{b}".rstrip() for a, b in zip_longest(left, right, fillvalue=""))


def words_of(tree):
    return [word for child in tree[1:] for word in ([child] if isinstance(child, str) else words_of(child))]


def show():
    text, ops = read_text("shakespeare"), devices.module("cpu", "rules")
    print("A regular expression cuts text into tokens:  ", *lesson.tokens("We'll meet him to-morrow, sir!"))
    print("Four find names and numbers in Shakespeare, and how often:")
    found = Counter(find_entities(text)).most_common()
    for kind in ENTITIES:
        print(f"  {kind:7}", ", ".join([f"{name} {times}" for (of, name), times in found if of == kind][:6]))
    print("Is God a place? A capital after 'of', 'in', 'to' or 'at' is, says the rule.")

    grammar = read_grammar(lesson.GRAMMAR + DICTIONARY)
    rng, height, rules = random.Random(8), lesson.heights(grammar), lesson.normal_form(grammar)
    print(f"\nThe {sum(map(len, grammar.values()))} rules of a grammar write, at most 9 levels deep:")
    for _ in range(5):
        print("  ", *words_of(lesson.generate(grammar, "TEXT", rng, 9, height)))

    ids, pairs, log_p, leaves = numbered_rules(rules)

    def parse(words):  # -> ln p of the best tree, back
        scores, back = ops.most_probable_chart(np.array([leaves[word] for word in words]), pairs, log_p)
        return scores[0, len(words), ids["TEXT"]], back

    words = lesson.tokens("i saw the king with the crown.")
    best = best_tree(rules, ids, parse(words)[1], words, "TEXT", 0, len(words))
    both = lesson.trees(lesson.chart(rules, words), "TEXT", 0, len(words))
    other, = [tree for tree in both if tree != best]
    print(f"\nOnce they are {len(rules)} in normal form, they read. Who had the crown: the king, or i, "
          "to see with?\nTwo trees; the left one is the more probable:")
    print(side_by_side(draw(best), draw(other)))

    began, written = time.perf_counter(), [lesson.tokens(sentence) for sentence in sentences(text)]
    known = [words for words in written if leaves.keys() >= {*words}]
    fits = [parse(words)[0] > -np.inf for words in known]
    seconds, n, no_tree = time.perf_counter() - began, len(written), fits.count(False)
    met = [word in leaves for words in written for word in words]
    print(f"\nThe grammar has {len(leaves)} tokens, {sum(met) / len(met):.0%} of all in its sentences. Of "
          f"{n:,} sentences\n{n - len(known):7,} have a token that it does not know: ",
          *next(words for words in written if words not in known))
    print(f"{no_tree:7,} have only such as it knows, and no tree:", *known[fits.index(False)])
    longest = max((words for words, fit in zip(known, fits) if fit), key=len)
    count = lesson.count_trees(lesson.chart(rules, longest))["TEXT", 0, len(longest)]
    print(f"{len(known) - no_tree:7,} it reads, {(len(known) - no_tree) / n:.1%}; the longest, "
          f"{count} trees:    ", *longest)
    print(f"That took {seconds:.1f} seconds. Its rules and words were chosen with this very text in view.")
