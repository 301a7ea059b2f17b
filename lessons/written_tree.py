"""A tree of lesson 4 written down: in words for people, in few numbers for a file."""
from typing import NamedTuple

import numpy as np

from lessons.errors import InputError
from lessons.model_file import load_model, save_model

PLACES = "", "last", "2nd last", "3rd last"
SHOWN = {" ": "_", "\n": "\\n"}


class Tree(NamedTuple):
    """n nodes; 0 is the root. They are numbered as they were made: the first 2 L - 1 are a tree too, the one
    there was when it had L leaves."""
    ask: np.ndarray  # (n,) int64: the place k that a node asks about, 0 at a leaf
    members: np.ndarray  # (n, V) bool: yes if the k-th last character is one of them
    yes: np.ndarray  # (n,) int64: the node where yes leads, no leads to the one behind it; 0 at a leaf
    counts: np.ndarray  # (n, V) int32: how often each character came next


def first(tree, leaves):
    """The tree as it was when it had so many leaves."""
    n = min(2 * leaves - 1, len(tree.ask))
    kept = tree.yes[:n] < n  # its children are there, both, for n is odd
    return Tree(tree.ask[:n] * kept, tree.members[:n], tree.yes[:n] * kept, tree.counts[:n])


def question(k, members, alphabet):  # 1.., (V,) bool -> str
    """The shorter of two ways to ask: for the members, or for all others.

    >>> question(2, np.array([c in "abcde" for c in " abcdefghijk"]), " abcdefghijk")
    'is the 2nd last one of a-e?'
    >>> question(1, np.array([c != "_" for c in "_abc"]), "_abc")
    'is the last none of _?'
    """
    short = members if 2 * members.sum() <= len(members) else ~members
    place, one = PLACES[k] if k < len(PLACES) else f"{k}th last", "one" if short is members else "none"
    return f"is the {place} {one} of {listed(np.flatnonzero(short), alphabet)}?"


def listed(codes, alphabet):
    """Letters that follow each other are given by the first and the last one, from four on."""
    runs = []
    for v in codes.tolist():
        if runs and runs[-1][-1] == v - 1 and kind(alphabet[v]) == kind(alphabet[v - 1]) != "":
            runs[-1].append(v)
        else:
            runs.append([v])
    names = [[SHOWN.get(alphabet[v], alphabet[v]) for v in run] for run in runs]
    return " ".join(f"{run[0]}-{run[-1]}" if len(run) > 3 else " ".join(run) for run in names)


def kind(character):
    return "a" * character.islower() + "A" * character.isupper()


def outline(tree, bits, alphabet, depth, v=0, begin=""):
    """Yields the lines of the first `depth` questions, and below them what comes next most often."""
    counts, yes = tree.counts[v], tree.yes[v]
    n = counts.sum()
    if yes == 0 or depth == 0:
        best = [c for c in counts.argsort(kind="stable")[:-9:-1] if counts[c]]
        yield begin + " ".join(f"{SHOWN.get(alphabet[c], alphabet[c])} {counts[c] / n:.0%}" for c in best)
        return
    saved = (bits(counts) - bits(tree.counts[yes]) - bits(tree.counts[yes + 1])) / n
    asked = question(tree.ask[v], tree.members[v], alphabet)
    yield f"{begin}{asked} [{saved:.2f} bits, {n / tree.counts[0].sum():.0%}]"
    indent = "  " + " " * (len(begin) - len(begin.lstrip()))
    yield from outline(tree, bits, alphabet, depth - 1, yes, indent + "yes: ")
    yield from outline(tree, bits, alphabet, depth - 1, yes + 1, indent + "no: ")


def parameters(model):
    """What is stored: a place and a set for each question, and the counts of the leaves that are not 0."""
    return sum(2 * np.count_nonzero(tree.ask) + np.count_nonzero(tree.counts[tree.ask == 0])
               for tree in model)


def save(path, text, seconds, model):
    """The trees one behind the other. The counts of a leaf are mostly 0; those of other nodes are sums."""
    ask, members, yes, counts = (np.concatenate(parts) for parts in zip(*model))
    counts[ask > 0] = 0
    where = np.flatnonzero(counts)
    save_model(path, text, seconds, sizes=[len(tree.ask) for tree in model], vocabulary=counts.shape[1],
               ask=ask.astype(np.uint8), members=np.packbits(members, axis=1), yes=yes, where=where,
               counts=counts.ravel()[where])


def load(path, text):  # -> [Tree, ...], seconds of training
    arrays, seconds = load_model(path, text)
    try:
        V, ask = int(arrays["vocabulary"]), arrays["ask"].astype(np.int64)
        members = np.unpackbits(arrays["members"], axis=1, count=V).astype(bool)
        counts = np.zeros((len(ask), V), np.int32)
        counts.ravel()[arrays["where"]] = arrays["counts"]
        ends = np.cumsum(arrays["sizes"])[:-1]
        if (ask > 8).any() or len(members) != len(ask) or min(arrays["sizes"]) < 1:
            raise ValueError("more than the last 8 characters, or a tree without nodes")
        split = [np.split(array, ends) for array in (ask, members, arrays["yes"], counts)]
        model = [Tree(*parts) for parts in zip(*split)]
        for tree in model:
            inner, last = np.flatnonzero(tree.ask), len(tree.ask) - 1
            if V != len(set(text)) or not ((inner < tree.yes[inner]) & (tree.yes[inner] < last)).all():
                raise ValueError("a question leads to no node, or the characters are others")
            for v in np.flatnonzero(tree.ask)[::-1].tolist():  # children before their parents
                tree.counts[v] = tree.counts[tree.yes[v]] + tree.counts[tree.yes[v] + 1]
        return model, seconds
    except (KeyError, ValueError, IndexError, TypeError):
        raise InputError(f"{path} is no model of lesson 4: train anew") from None
