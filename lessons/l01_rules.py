"""Lesson 1: rules. How far does one get who writes a language down?

For forty years that was how computers read and wrote. A grammar says of each thing what it can be made of:

    S -> NP VP      NP -> DET N | NP PP      VP -> VT NP | VP PP      PP -> P NP      N -> king | crown

What stands left of some arrow is a symbol, all else is a word. Each rule has a probability p: how often its
left side is made of just this. A tree has the product of the p of its rules. Followed downward, rules write;
upward, they read. CYK finds all that neighbouring words can be, short spans before long ones:

    words[i:j] can be A     if there are a rule A -> B C and a k, so that words[i:k] can be B, words[k:j] C

So each rule must have two symbols, or one word: Chomsky's normal form, into which any grammar can be brought.
Chomsky 1956 (grammars), 1959 (normal form); Younger 1967 (CYK); Booth & Thompson 1973 (probabilities).
`make lesson 1` finds names, writes, draws both trees of one sentence, and reads what it can of Shakespeare.
"""
import math
import re
from typing import NamedTuple

import numpy as np

# A number is a weight; where there is none it is 1. The words of N, VT, DET, ... stand in toy_english.py.
GRAMMAR = """
TEXT -> 4 SAY . | 3 SAY ! | 3 ASK ? | SAY ?
SAY  -> 6 S | 4 VP | NP | PP | O | CALL | O CALL | 3 O , SAY | CONJ SAY | VP , SAY | CALL , SAY | SAY , CALL
S    -> 3 NPs VPs | 3 WE VP | 3 WHO MD VP | 2 NPs IS BE | WE ARE BE | i am BE | thou art BE | NP VP
ASK  -> who VPs | WHAT MD WHO VP | WHAT IS NPs | WHAT VIs NPs | WHAT VI WE | WHAT ARE WE | WHAT art thou
ASK  -> IS NPs BE | ARE WE BE | art thou BE | MD WHO VP | WHAT | WHAT , SAY | O , ASK | ASK , CALL
VP   -> 3 VI | 4 VT OBJ | VP PP | VP ADV | be BE | not VP | give OBJ NP | have DONE | say SAY | let OBJ VP
VPs  -> 3 VIs | 4 VTs OBJ | VPs PP | VPs ADV | hath DONE
BE   -> 2 ADJ | NP | PP | ADV | DONE | not BE | BE PP | BE ADV
NPs  -> 3 NP | he | she | it | 't | this | that
NP   -> 4 DET NOM | 2 NAME | NP PP | nothing | all
NOM  -> 3 N | ADJ NOM
WHO  -> 2 NPs | WE | thou
OBJ  -> 4 NP | me | thee | him | her | us | them | you | it | 't | this | that
PP   -> P OBJ
CALL -> NAME | NOM | my NOM | you NOM | sir | madam
WHAT -> 3 what | what NOM | where | how | why | whence | when | wherefore
"""


class Rule(NamedTuple):  # of a normal form
    chain: tuple  # the symbols that it stands for, its left side first: see chains
    parts: tuple  # (symbol, symbol) or (word,)
    p: float


def tokens(text):  # str -> [str, ...]
    """Text without its white space, cut by one regular expression. A token is the first of these that fits:

    1. letters A-Z a-z, one or more; then any number of times a hyphen and letters; if an apostrophe stands
       right before the first letter, it belongs to the token
    2. digits 0-9, as many as follow each other
    3. any one character, unless it is white space

    >>> tokens("We'll come to-morrow, at 10.")
    ['We', "'ll", 'come', 'to-morrow', ',', 'at', '10', '.']
    """
    return re.findall(r"'?[A-Za-z]+(?:-[A-Za-z]+)*|[0-9]+|\S", text)


def heights(grammar):  # {symbol: {(part, ...): p}} -> {symbol: how many levels its lowest tree has}
    """A word has height 0, a rule 1 more than the highest of its parts, a symbol that of its lowest rule: inf
    if none ever ends, as in A -> A b. Begin with inf for all, and go through them until nothing changes."""
    height, before = dict.fromkeys(grammar, math.inf), None
    while height != before:
        before = dict(height)
        for symbol, rules in grammar.items():
            height[symbol] = min(1 + max(height.get(part, 0) for part in parts) for parts in rules)
    return height


def generate(grammar, symbol, rng, depth, height):  # -> (symbol, child, ...), a child: tree or word
    """A random tree of at most depth levels. rng, a random.Random, draws a rule of symbol, each as often as
    its p says (rng.choices); its parts that are symbols grow likewise, of at most depth - 1 levels. To end in
    time, only rules take part whose parts all have a height below depth; ValueError, which names symbol, if
    there is none. height is heights(grammar): words are not in it."""
    fits = {parts: p for parts, p in grammar[symbol].items() if max(height.get(x, 0) for x in parts) < depth}
    if not fits:
        raise ValueError(f"{symbol} does not end within {depth} levels: it needs {height[symbol]}")
    parts = rng.choices([*fits], [*fits.values()])[0]
    return (symbol, *(generate(grammar, x, rng, depth - 1, height) if x in grammar else x for x in parts))


def split_long(grammar):  # -> a new grammar, whose rules have two symbols, one symbol or one word
    """A rule of two or more parts becomes one of two symbols: the first part, and the rest. Where one of
    these is not a symbol of grammar, a helper stands for it. Its one rule has p = 1 and is split likewise:

        VP -> give OBJ NP    becomes    VP -> [ give ] [ OBJ NP ]    [ give ] -> give    [ OBJ NP ] -> OBJ NP

    The helper for x y z is called "[ x y z ]"; rules may share it. Rules of one part stay; all keep p."""
    split, rules = {}, [(symbol, parts, p) for symbol in grammar for parts, p in grammar[symbol].items()]
    for symbol, parts, p in rules:  # more are appended on the way
        if len(parts) > 1:
            halves = parts[:1], parts[1:]
            names = [" ".join(half) for half in halves]
            parts = tuple(name if name in grammar else f"[ {name} ]" for name in names)
            rules += [(part, half, 1.0) for part, half in zip(parts, halves) if part not in grammar]
        split.setdefault(symbol, {})[parts] = p
    return split


def chains(grammar, symbol):  # -> [((symbol, B, C, ...), p), ...]
    """What symbol can turn into by rules of one symbol each, symbol -> B, B -> C, ..., and the product of
    their p; first ((symbol,), 1.0). No symbol is twice in a chain, or it could go round for ever."""
    found = [((symbol,), 1.0)]
    for chain, p in found:  # more are appended on the way
        found += [((*chain, *parts), p * q) for parts, q in grammar[chain[-1]].items()
                  if len(parts) == 1 and parts[0] in grammar and parts[0] not in chain]
    return found


def normal_form(grammar):  # -> [Rule, ...]: those of two symbols first, sorted by the left one
    """split_long; then rules of one symbol go: for each chain from A to C, every other rule of C is one of A,
    with the product of both p. (A new start symbol serves the empty text only; no rule of ours is empty.)"""
    grammar = split_long(grammar)
    rules = [Rule(chain, parts, p * q) for symbol in grammar for chain, p in chains(grammar, symbol)
             for parts, q in grammar[chain[-1]].items() if len(parts) == 2 or parts[0] not in grammar]
    return sorted(rules, key=lambda rule: (-len(rule.parts), rule.parts, rule.chain))


def original(rule, children):  # Rule, (tree or word, ...) -> a tree of the grammar as it was
    """Undoes normal_form at one node. A child that is a helper, ("[ ...", ...), gives its place to its own
    children. Below the last symbol of rule.chain stand all of them, below the one before it that tree, ..."""
    below = []
    for child in children:
        below += child[1:] if child[0].startswith("[ ") else [child]
    for symbol in reversed(rule.chain):
        below = [(symbol, *below)]
    return below[0]


def chart(rules, words):  # -> {(i, j): {symbol: [(rule, k), ...]}} for all 0 <= i < j <= len(words)
    """CYK: all ways in which a symbol can be words[i:j]. One word: the rules whose parts are (word,), k = j.
    More: the rules whose left symbol can be words[i:k] and whose right one words[k:j], for each k between i
    and j; first by k, then as in rules. A symbol without a way is left out. Short spans come before long."""
    ways = {}
    for length in range(1, len(words) + 1):
        for i in range(len(words) - length + 1):
            j = i + length
            if length == 1:
                found = [(rule, j) for rule in rules if rule.parts == (words[i],)]
            else:
                found = [(rule, k) for k in range(i + 1, j) for rule in rules
                         if rule.parts[0] in ways[i, k] and rule.parts[-1] in ways[k, j]]
            ways[i, j] = {}
            for rule, k in found:
                ways[i, j].setdefault(rule.chain[0], []).append((rule, k))
    return ways


def count_trees(ways):  # chart(...) -> {(symbol, i, j): how many trees symbol has on words[i:j]}
    """A way with k = j is one tree; any other is each tree of its left with each of its right symbol."""
    count = {}
    for (i, j), cell in ways.items():  # short spans first
        for symbol, found in cell.items():
            count[symbol, i, j] = sum(1 if k == j else count[rule.parts[0], i, k] * count[rule.parts[1], k, j]
                                      for rule, k in found)
    return count


def trees(ways, symbol, i, j):  # chart(...) -> an iterator over all trees of symbol on words[i:j]
    """One after the other (yield): nobody can wait for millions. Of each way, in order, original() makes a
    tree from its word; or from each left tree with each right one, and the right one changes faster."""
    for rule, k in ways[i, j].get(symbol, []):
        if k == j:
            yield original(rule, rule.parts)
        else:
            for left in trees(ways, rule.parts[0], i, k):
                for right in trees(ways, rule.parts[1], k, j):
                    yield original(rule, [left, right])


def most_probable_chart(leaves, pairs, log_p):  # (n, S), (R, 3), (R,) -> (n, n + 1, S), (n, n + 1, S, 2)
    """CYK for the best tree alone, with S symbols as numbers: pairs[r] = a, b, c is the rule a -> b c, sorted
    by b, log_p[r] its ln p; leaves[i, a] = ln p(a -> word i), or -inf. scores, float64, has the best ln p:

        scores[i, i + 1] = leaves[i]    scores[i, j, a] = max of scores[i, k, b] + scores[k, j, c] + log_p[r]

    and back[i, j, a] = r, k, int32, where that came from: of equals the smallest k, then r. Where there is no
    tree, scores is -inf and back -1, -1; back is so for single words too."""
    n, S = leaves.shape
    scores, back = np.full((n, n + 1, S), -np.inf), np.full((n, n + 1, S, 2), -1, np.int32)
    scores[np.arange(n), np.arange(n) + 1] = leaves
    for length in range(2, n + 1):
        for i in range(n - length + 1):
            j = i + length
            for k in range(i + 1, j):
                for r, (a, b, c) in enumerate(pairs):
                    score = scores[i, k, b] + scores[k, j, c] + log_p[r]
                    if score > scores[i, j, a]:
                        scores[i, j, a], back[i, j, a] = score, (r, k)
    return scores, back


def main():
    from lessons.reading import show  # it reads by these functions, and by their kernel
    show()
