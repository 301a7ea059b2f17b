"""The models before the transformer: each operation of devices.BEFORE gives on the kernels what it gives on
the lesson's own lines, on real text. (What is right is tested where each of them is.)

A line of CASES makes the arguments of one operation. What it returns and what it writes into them must agree.
"""
import copy
from typing import NamedTuple

import numpy as np
import pytest

from lessons import devices
from lessons.texts import numbered, read_text, split
from tests.close import assert_close

CODES, ALPHABET = numbered(read_text("shakespeare")[:5000])
V = len(ALPHABET)
WORDS, NAMES = np.unique(read_text("grimm")[:3000].lower().split(), return_inverse=True)
rng = np.random.default_rng


class Case(NamedTuple):
    subject: str
    arguments: object  # () -> the operation's arguments
    rtol: float = 1e-9
    atol: float = 1e-12


def shares(*shape):  # positive, each row sums to 1
    x = rng(shape[-1]).uniform(0.1, 1, shape)
    return x / x.sum(axis=-1, keepdims=True)


def hidden_states(n=400, S=5):
    return CODES[:n], shares(S), shares(S, S), shares(S, V).T.copy()


def levels(order=4):
    lesson = devices.module("numpy", "ngrams")
    return lesson.levels_of(lesson.count(lesson, split(CODES)[0], V, order), order, True)


def sentence(n=9, S=6):
    leaves, pairs = rng(0).normal(size=(n, S)), np.unique(rng(1).integers(0, S, (30, 3)), axis=0)
    leaves[leaves < -0.5] = -np.inf
    return leaves, pairs[:, [1, 0, 2]].astype(np.int32), np.log(shares(len(pairs)))  # sorted by the second


def tables(places=4):
    lesson = devices.module("numpy", "decision_tree")
    return lesson.histograms(CODES, np.arange(places, 3000), places, V)


def tree(leaves=30):
    lesson, kernels = (devices.module(room, "decision_tree") for room in ("numpy", "cpu"))
    return lesson.grow(kernels, CODES[:4000], V, leaves)


def word_rows(D):
    return rng(D).normal(0, 0.3, (2, len(WORDS), D)).astype(np.float32)


def skipgram():
    table = NAMES.astype(np.int32)
    return NAMES[:200], word_rows(16), table, 3, 4, (0.05, 0.02), np.array([7])


def glove():
    first, second, X = devices.module("numpy", "word_vectors").cooccurrences(NAMES[:300], len(WORDS), 3)
    return first, second, X, word_rows(17), np.ones((2, len(WORDS), 17), np.float32), 0.1, 10


def gates(*shapes):
    return tuple(rng(k).normal(size=shape).astype(np.float32) for k, shape in enumerate(shapes))


B, H = 5, 12
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}
CASES = {
    "most_probable_chart": Case("rules", sentence),
    "count_grams": Case("ngrams", lambda: (CODES, V, 5)),
    "interpolated": Case("ngrams", lambda: (levels(), V, CODES[-700:])),
    "forward": Case("hmm", hidden_states),
    "expected_counts": Case("hmm", lambda: (*hidden_states(), np.zeros(5), np.ones((5, 5)), np.ones((V, 5)))),
    "viterbi": Case("hmm", hidden_states),
    "histograms": Case("decision_tree", lambda: (CODES, np.arange(100, 900), 6, V)),
    "best_question": Case("decision_tree", lambda: (tables(), np.array([True, True, False, True]), 0.5)),
    "partition": Case("decision_tree", lambda: (CODES, np.arange(50, 950), 3, rng(0).random(V) < 0.5)),
    "smooth": Case("decision_tree", lambda: (tree().counts, tree().yes, 1.5)),
    "find_leaves": Case("decision_tree", lambda: (CODES, 4000, *tree()[:3])),
    "train_skipgram": Case("word_vectors", skipgram, **FLOAT32),
    "train_glove": Case("word_vectors", glove, **FLOAT32),
    "lstm_step_forward": Case("recurrent", lambda: gates(
        (B, 4 * H), (B, 4 * H), (4 * H,), (B, H), (B, H), (B, H)), **FLOAT32),
    "lstm_step_backward": Case("recurrent", lambda: gates(
        (B, H), (B, H), (B, 4 * H), (B, H), (B, H)), **FLOAT32),
}


def test_every_operation_has_a_case():
    listed = {op: subject for subject, (_, ops) in devices.BEFORE.items() for op in ops}
    assert {op: case.subject for op, case in CASES.items()} == listed


@pytest.mark.parametrize("op", CASES)
def test_the_kernel_gives_what_the_lesson_gives(op):
    case, found = CASES[op], {}
    arguments = case.arguments()
    for room in "numpy", "cpu":
        mine = copy.deepcopy(arguments)
        with np.errstate(divide="ignore"):  # ln 0
            answer = getattr(devices.module(room, case.subject), op)(*mine)
        found[room] = {"returned": answer, "its arguments afterwards": mine}
    for what in found["numpy"]:
        same(found["cpu"][what], found["numpy"][what], f"{op}, {what}", case)


def same(got, want, name, case):
    """Arrays and numbers, also in tuples and lists in one another."""
    if want is None:
        assert got is None, f"{name}: the lesson returns nothing"
    elif isinstance(want, (tuple, list)):
        assert len(got) == len(want), f"{name}: {len(got)} parts, the lesson has {len(want)}"
        for k, (one, other) in enumerate(zip(got, want, strict=True)):
            same(one, other, f"{name}[{k}]", case)
    else:
        assert_close(got, want, name, case.rtol, case.atol)
